"""The recurrent core of a network: a GRU or an LSTM between the encoders and the towers.

It is trained on whole sequences by backpropagation through time, from the state that the acting network had at the
sequence's start. Where an episode begins, the state is 0 and no gradient passes.

Source: Kapturowski et al. 2019 (R2D2), section 3: the stored state, rather than zeros, at a sequence's start. Their
burn-in is for states that a replay buffer has aged; here a state is at most one rollout old.
Source: OpenAI et al. 2019 (OpenAI Five), section 3 and appendix C: PPO on sequences with an LSTM, minibatches of whole
sequences.
Source: SB3-contrib's RecurrentPPO: the core behind the features, before the towers of policy and value.
"""

from __future__ import annotations

import torch
from torch import nn

from dppo.algo.sequences import Packing

CORES: dict[str, type[nn.GRU | nn.LSTM]] = {"gru": nn.GRU, "lstm": nn.LSTM}


class Core(nn.Module):
    """A recurrent layer. Its state is one vector: of an LSTM, the output, then the cell.

    Args:
      kind: gru (Cho et al. 2014) or lstm (Hochreiter and Schmidhuber 1997).
      num_inputs: F, the size of its input.
      size: H, the size of its output.
    """

    def __init__(self, kind: str, num_inputs: int, size: int) -> None:
        super().__init__()
        self.layer = CORES[kind](num_inputs, size)
        self._size, self._is_lstm = size, kind == "lstm"
        self.state_size = 2 * size if self._is_lstm else size
        for name, parameter in self.layer.named_parameters():
            if name.startswith("bias"):
                nn.init.zeros_(parameter)
            else:
                # each gate's matrix by itself, as a tall stack of them would make none of them orthogonal
                for gate in parameter.detach().split(size):
                    nn.init.orthogonal_(gate)

    def forward(
        self, features: torch.Tensor, states: torch.Tensor, packing: Packing | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Computes one step, or whole sequences.

        Args:
          features: [B, F].
          states: [B, S] before the step; of sequences, [Q, S] at their starts, in the order of `packing.starts`.
          packing: of sequences; None: every row makes one step.

        Returns:
          The outputs [B, H], and the states [B, S] after the step; of sequences, [Q, S] after each.
        """
        before = states[None]
        hidden = tuple(part.contiguous() for part in before.split(self._size, dim=2)) if self._is_lstm else before
        if packing is None:
            out, after = self.layer(features[None], hidden)
            out = out[0]
        else:
            data = features[torch.from_numpy(packing.order)]
            packed = nn.utils.rnn.PackedSequence(data, torch.from_numpy(packing.sizes))
            packed_out, after = self.layer(packed, hidden)
            out = packed_out.data[torch.from_numpy(packing.inverse)]
        return out, torch.cat(after, dim=2)[0] if self._is_lstm else after[0]
