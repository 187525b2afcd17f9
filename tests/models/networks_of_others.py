"""Networks as a user might write them, for `--model.factory tests.models.networks_of_others:NAME`.

Each is a small body with one thing between its layers. REFUSED says why dppo cannot train some; the others it can.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional


class Plain(nn.Module):
    """One body for both outputs."""

    def __init__(self, size: int, outputs: int) -> None:
        super().__init__()
        self.body, self.policy, self.value = nn.Linear(size, 8), nn.Linear(8, outputs), nn.Linear(8, 1)
        self.build()

    def build(self) -> None:
        """What else it has."""

    def between(self, features: torch.Tensor) -> Any:
        return features

    def forward(self, x: torch.Tensor) -> Any:
        features = self.between(torch.tanh(self.body(x)))
        return self.policy(features), self.value(features).squeeze(-1)


# -- what dppo can train --------------------


class DropoutOfZero(Plain):
    def build(self) -> None:
        self.dropout = nn.Dropout(0.0)

    def between(self, features: torch.Tensor) -> Any:
        return functional.dropout(self.dropout(features), 0.0, training=True)


class DropoutInEvalMode(Plain):
    def build(self) -> None:
        self.dropout = nn.Dropout(0.5)
        self.eval()

    def between(self, features: torch.Tensor) -> Any:
        return self.dropout(features)


class NormalisedRows(Plain):
    def build(self) -> None:
        self.layers = nn.Sequential(nn.LayerNorm(8), nn.GroupNorm(2, 8))

    def between(self, features: torch.Tensor) -> Any:
        return self.layers(features)


class Attention(Plain):
    """Over the features of a row."""

    probability = 0.0

    def build(self) -> None:
        self.attention = nn.MultiheadAttention(4, 2, dropout=self.probability, batch_first=True)

    def between(self, features: torch.Tensor) -> Any:
        tokens = features.reshape(-1, 2, 4)
        return self.attention(tokens, tokens, tokens)[0].reshape(-1, 8)


class SharedParameter(Plain):
    def build(self) -> None:
        self.other = nn.Linear(8, 8)
        self.third = nn.Linear(8, 8)
        self.third.weight = self.other.weight

    def between(self, features: torch.Tensor) -> Any:
        return torch.tanh(self.other(features)) + self.third(features)


class UnusedParameter(Plain):
    def build(self) -> None:
        self.unused = nn.Linear(3, 3)


class FrozenBody(Plain):
    def build(self) -> None:
        self.body.requires_grad_(False)


class ConstantValue(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x)[0], torch.zeros(len(x))


class MaskedLogits(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        head, value = super().forward(x)
        ruled_out = torch.zeros_like(head, dtype=torch.bool)
        ruled_out[:, 0] = x[:, 0] > 0
        return head.masked_fill(ruled_out, -torch.inf), value


class Lookup(Plain):
    """Of the first number of an observation, as an index."""

    def build(self) -> None:
        self.table = nn.Embedding(3, 8)

    def forward(self, x: torch.Tensor) -> Any:
        features = torch.tanh(self.body(x)) + self.table(x[:, 0].long())
        return self.policy(features), self.value(features).squeeze(-1)


class Transposed(Plain):
    """A parameter that is not contiguous."""

    def build(self) -> None:
        self.matrix = nn.Parameter(torch.randn(4, 8).t())

    def between(self, features: torch.Tensor) -> Any:
        return features @ self.matrix @ self.matrix.t()


class ConstantFromNumPy(Plain):
    """Drawn from NumPy's global generator; it is no parameter, so no rank is told of it."""

    def build(self) -> None:
        self.constant = torch.tensor(np.random.randn(8), dtype=torch.float32)  # noqa: NPY002

    def between(self, features: torch.Tensor) -> Any:
        return features * self.constant


# -- what it cannot --------------------


class FunctionalDropout(Plain):
    def between(self, features: torch.Tensor) -> Any:
        return functional.dropout(features, 0.001, training=True)


class DropoutBeforeALayerOfZeros(Plain):
    def build(self) -> None:
        for layer in (self.policy, self.value):
            nn.init.zeros_(layer.weight)

    def between(self, features: torch.Tensor) -> Any:
        return functional.dropout(features, 0.5, training=True)


class DropoutLayer(DropoutOfZero):
    def build(self) -> None:
        self.dropout = nn.Dropout(0.1)


class AttentionWithDropout(Attention):
    probability = 0.1


class Noise(Plain):
    """From a generator of its own, of which torch's global state shows nothing."""

    def build(self) -> None:
        self.random = torch.Generator()

    def between(self, features: torch.Tensor) -> Any:
        return features + 1e-4 * torch.randn(features.shape, generator=self.random)


class LearntNoise(Plain):
    """None at the start."""

    def build(self) -> None:
        self.scale = nn.Parameter(torch.zeros(8))

    def between(self, features: torch.Tensor) -> Any:
        return features + self.scale * float(np.random.randn())  # noqa: NPY002


class RandomSlope(Plain):
    def between(self, features: torch.Tensor) -> Any:
        return functional.rrelu(features, training=True)


class Remembers(Plain):
    memory: Any = 0.0

    def between(self, features: torch.Tensor) -> Any:
        out = features + self.memory
        self.memory = 0.1 * out.detach().mean()
        return out


class BatchMean(Plain):
    def between(self, features: torch.Tensor) -> Any:
        return features - 0.01 * features.mean(0)


class BatchMeanBeforeALayerOfZeros(DropoutBeforeALayerOfZeros):
    def between(self, features: torch.Tensor) -> Any:
        return features - features.mean(0)


class BatchNormWithoutBuffers(Plain):
    def build(self) -> None:
        self.norm = nn.BatchNorm1d(8, track_running_stats=False)

    def between(self, features: torch.Tensor) -> Any:
        return self.norm(features)


class AttentionAlongTheBatch(Plain):
    def between(self, features: torch.Tensor) -> Any:
        return torch.softmax(features @ features.T, -1) @ features


class KnowsItsPlace(Plain):
    def between(self, features: torch.Tensor) -> Any:
        return features + 0.1 * torch.arange(len(features))[:, None]


class OneRowIsAnother(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x)[0], self.value(torch.tanh(self.body(x))).squeeze()


class ChangesItsInput(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        return super().forward(x.mul_(0.5))


class LearnsOnly(Plain):
    def between(self, features: torch.Tensor) -> Any:
        return features * 1.1 if torch.is_grad_enabled() else features


class DetachedHead(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        head, value = super().forward(x)
        return head.detach(), value


class AllFrozen(Plain):
    def build(self) -> None:
        self.requires_grad_(False)


class RootOfZero(Plain):
    def build(self) -> None:
        self.zero = nn.Parameter(torch.zeros(1))

    def between(self, features: torch.Tensor) -> Any:
        return features + torch.sqrt(self.zero**2)


class NotANumber(Plain):
    def between(self, features: torch.Tensor) -> Any:
        return features * torch.nan


class TiedMemory(SharedParameter):
    def build(self) -> None:
        super().build()
        self.third.weight = nn.Parameter(self.other.weight.detach())


class KeptMemory(Plain):
    def build(self) -> None:
        self.kept = self.body.weight.detach()

    def forward(self, x: torch.Tensor) -> Any:
        features = torch.tanh(self.body(x)) + x @ self.kept.T
        return self.policy(features), self.value(features).squeeze(-1)


class ForgetsItsGradient(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        self.zero_grad()
        return super().forward(x)


class DoubleOutputs(Plain):
    def forward(self, x: torch.Tensor) -> Any:
        return tuple(out.double() for out in super().forward(x))


class Raises(Plain):
    def between(self, features: torch.Tensor) -> Any:
        if len(features) == 1:
            raise RuntimeError("too few")
        return features


REFUSED = {
    FunctionalDropout: "draws random numbers",
    DropoutBeforeALayerOfZeros: "draws random numbers",
    DropoutLayer: r"dropout \(dropout\)",
    AttentionWithDropout: "draws random numbers",
    Noise: "two forwards of the same observations differ",
    LearntNoise: "two forwards of the same observations differ",
    RandomSlope: "draws random numbers",
    Remembers: "two forwards of the same observations differ",
    BatchMean: "depends on the others in its batch",
    BatchMeanBeforeALayerOfZeros: "depends on the others in its batch",
    BatchNormWithoutBuffers: r"batch normalisation \(norm\) .*use LayerNorm or GroupNorm",
    AttentionAlongTheBatch: "depends on the others in its batch",
    KnowsItsPlace: "depends on the others in its batch",
    OneRowIsAnother: r"forward of \[1, 5\] must give \(head \[1, 3\], value \[1\]\)",
    ChangesItsInput: "changes its argument in place",
    LearnsOnly: r"something else under torch\.no_grad\(\)",
    DetachedHead: "the head depends on no parameter",
    AllFrozen: "no parameter requires a gradient",
    RootOfZero: "the gradient of zero is not finite",
    NotANumber: "gives NaN or infinity",
    TiedMemory: r"parameters other\.weight and third\.weight share memory|third\.weight and other\.weight share memory",
    KeptMemory: "uses memory of a parameter that was kept",
    ForgetsItsGradient: "does not reach its grad",
    DoubleOutputs: "forward must give float32",
    Raises: r"forward of \[1, 5\] raised RuntimeError: too few",
}
TRAINABLE = [
    Plain, DropoutOfZero, DropoutInEvalMode, NormalisedRows, Attention, SharedParameter, UnusedParameter, FrozenBody,
    ConstantValue, MaskedLogits, Lookup, Transposed, ConstantFromNumPy,
]  # fmt: skip
