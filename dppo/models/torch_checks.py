"""Tries out, before anything is trained, whether a user's torch module keeps what dppo promises of a network.

A sample's outputs depend on nothing but that sample and the parameters: not on the rest of its batch, on chance, or on
what was computed before. Otherwise ranks would differ from one rank, a resumed run from the run that it continues, and
the ratio of the first minibatch from 1.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

ROWS = 6
ROUNDING = 1e-4
"""The share of the largest output that rounding may change: batches of other sizes are summed up in another order."""
BUFFER_TYPES = frozenset({
    torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64,
    torch.float16, torch.float32, torch.float64,
})  # fmt: skip
SHIFT = 0.05
"""The distance from their start at which parameters are tried as well: a last layer of zeros would hide the others."""

Outputs = tuple[torch.Tensor, torch.Tensor]
Inputs = Any
"""What forward takes: a tensor [B, ...], or dicts and tuples of these."""


class Samples(NamedTuple):
    """Inputs to try a network with."""

    blank: Inputs
    """Two rows of zeros, or of the least values."""
    usual: tuple[Inputs, ...]
    """ROWS rows each. The network has to be able to take one of these."""


def vector_samples(size: int) -> Samples:
    """Returns vectors [B, size]: like normalised observations, or in [0, 1)."""
    random = torch.Generator().manual_seed(0)
    return Samples(
        torch.zeros(2, size), (torch.randn((ROWS, size), generator=random), torch.rand((ROWS, size), generator=random))
    )


def check_module(module: torch.nn.Module, samples: Samples, num_outputs: int, state_size: int = 0) -> None:
    """Raises ValueError, with what does not fit, and the repair. Parameters keep their values, in other memory."""
    _check_layers(module)
    trial = _Trial(module, num_outputs, state_size)
    with torch.no_grad():
        types = [str(out.dtype) for out in trial.run(samples.blank)]
    _check_parameters(module)
    _check_buffers(module)
    if types != ["torch.float32"] * 2:
        raise ValueError(f"forward must give float32, but gave {types}")
    inputs = _inputs_that_fit(trial, samples)
    _check_outputs(trial, inputs)
    with _shifted(module):
        if all(_is_possible(out) for out in trial.run(inputs)):
            _check_outputs(trial, inputs)
    _check_gradient(trial, inputs)
    _check_memory(trial, inputs)


def _check_parameters(module: torch.nn.Module) -> None:
    parameters = dict(module.named_parameters())
    for name, parameter in parameters.items():
        if parameter.dtype != torch.float32:
            raise ValueError(f"all parameters must be float32, and {name} is {parameter.dtype}")
        if parameter.device.type != "cpu":
            raise ValueError(f"all parameters must be on the CPU, and {name} is on {parameter.device}")
    if "log_std" in parameters:
        raise ValueError("a parameter is called log_std, which is dppo's own: rename it")
    if not any(p.requires_grad for p in parameters.values()):
        raise ValueError("no parameter requires a gradient: there is nothing to learn")
    end, last = 0, ""
    for start, stop, name in sorted((*_extent(p), name) for name, p in parameters.items() if p.numel()):
        if start < end:
            raise ValueError(f"parameters {last} and {name} share memory: use one torch.nn.Parameter for both")
        end, last = stop, name


def _check_layers(module: torch.nn.Module) -> None:
    for name, part in module.named_modules():
        called = name or type(part).__name__
        if isinstance(part, _DropoutNd) and part.p > 0 and part.training:
            raise ValueError(
                f"dropout ({called}) draws from a stream that no checkpoint holds: leave it out, or set its p to 0;"
                " LayerNorm steadies a network, and an entropy bonus keeps its actions random"
            )
        if isinstance(part, _BatchNorm) and (part.training or part.running_mean is None):
            raise ValueError(
                f"batch normalisation ({called}) makes a row depend on its batch, and its buffers change: use LayerNorm"
                " or GroupNorm, whose statistics are of one row"
            )


def _can_be_saved(buffer: torch.Tensor) -> bool:
    return buffer.dtype in BUFFER_TYPES and buffer.layout == torch.strided


def _check_buffers(module: torch.nn.Module) -> None:
    for name, buffer in module.named_buffers():
        if not _can_be_saved(buffer):
            kind = buffer.dtype if buffer.layout == torch.strided else f"{buffer.layout}, {buffer.dtype}"
            raise ValueError(f"the buffer {name} is {kind}, which no checkpoint can hold: make it a float32 one")
        if buffer.device.type != "cpu":
            raise ValueError(f"all buffers must be on the CPU, and {name} is on {buffer.device}")
        if buffer.requires_grad:
            raise ValueError(
                f"the buffer {name} requires a gradient, and would never learn: make it a torch.nn.Parameter, or"
                " detach() it"
            )
        start, stop = _extent(buffer)
        for parameter_name, parameter in module.named_parameters():
            first, last = _extent(parameter)
            if buffer.numel() and parameter.numel() and start < last and first < stop:
                raise ValueError(f"the buffer {name} and the parameter {parameter_name} share memory: clone() it")


def _extent(tensor: torch.Tensor) -> tuple[int, int]:
    """Returns the first and the last address of a tensor's memory."""
    span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride(), strict=True))
    return tensor.data_ptr(), tensor.data_ptr() + span * tensor.element_size()


def _check_outputs(trial: _Trial, inputs: Inputs) -> None:
    kept, random_state = mapped(inputs, torch.Tensor.clone), torch.get_rng_state()
    first = trial.run(inputs)
    for (name, tensor), (_, before) in zip(tensors(inputs), tensors(kept), strict=True):
        if not torch.equal(tensor, before):
            of = f" ({name})" if name else ""
            raise ValueError(
                f"forward changes its argument{of} in place, which is needed again as it was: copy it first"
            )
    gap = max(_gap(first, trial.run(inputs)) for _ in range(3))
    if not torch.equal(torch.get_rng_state(), random_state):
        raise ValueError(
            "forward draws random numbers (dropout, noise), from a stream that no checkpoint holds: leave that out, or"
            " set its probability to 0; exploration comes from sampling actions"
        )
    if gap > 0:
        raise ValueError(
            f"two forwards of the same observations differ, by {gap:.1g} of the largest output: leave out dropout and"
            " noise (exploration comes from sampling actions), and whatever is kept from one forward to the next"
        )
    with torch.no_grad():
        if (gap := _gap(first, trial.run(inputs))) > ROUNDING:
            raise ValueError(f"forward gives something else under torch.no_grad(), where acting is done, by {gap:.1g}")
    alone = [trial.run(_row(inputs, i)) for i in range(num_rows(inputs))]
    together = torch.cat([head for head, _ in alone]), torch.cat([value for _, value in alone])
    if (gap := _gap(first, together)) > ROUNDING:
        raise ValueError(
            f"what an observation gives depends on the others in its batch, by {gap:.1g} of the largest output: leave"
            " out statistics of the batch (x - x.mean(0)) and attention along it; LayerNorm works on each row alone"
        )


def _check_gradient(trial: _Trial, inputs: Inputs) -> None:
    if not trial.run(inputs)[0].requires_grad:
        raise ValueError(
            "the head depends on no parameter that requires a gradient (is there a detach, or a no_grad?): the policy"
            " could not learn"
        )
    first, again = trial.gradients(inputs), trial.gradients(inputs)
    for name, gradient in first.items():
        if not bool(torch.isfinite(gradient).all()):
            raise ValueError(f"the gradient of {name} is not finite, before anything is learnt")
        if not torch.equal(gradient, again[name]):
            raise ValueError(f"two backwards of the same observations differ, in the gradient of {name}")


def _check_memory(trial: _Trial, inputs: Inputs) -> None:
    """Checks that the parameters can move to the flat vector: what has kept their old memory would never learn."""
    with _shifted(trial.module):
        before = trial.run(inputs)
    for parameter in trial.module.parameters():
        parameter.data = parameter.detach().clone()
    with _shifted(trial.module):
        after = trial.run(inputs)
    if _gap(before, after) > ROUNDING:
        raise ValueError("forward uses memory of a parameter that was kept (.data, detach()): use the parameter itself")
    flat = {name: torch.zeros_like(p) for name, p in trial.module.named_parameters()}
    for name, parameter in trial.module.named_parameters():
        parameter.grad = flat[name]
    expected = trial.gradients(inputs)
    trial.gradients(inputs, accumulate=True)
    for name, gradient in expected.items():
        if not torch.allclose(flat[name], gradient, rtol=1e-3, atol=1e-6):
            raise ValueError(f"the gradient of {name} does not reach its grad: leave zero_grad and the like to dppo")


class _Trial:
    """A module, with checks that all of its answers have to pass."""

    def __init__(self, module: torch.nn.Module, num_outputs: int, state_size: int) -> None:
        self.module, self._num_outputs, self._state_size = module, num_outputs, state_size
        self._state = torch.rand(state_size, generator=torch.Generator().manual_seed(2)) - 0.5
        self._buffers = dict(_buffers(module))

    def run(self, inputs: Inputs) -> Outputs:
        """Returns copies of head and value: the module might write to its own again. With memory, every row begins in
        the same state, and the new states lie beside the head.
        """
        n, k, s, shown = num_rows(inputs), self._num_outputs, self._state_size, described(inputs)
        own = mapped(inputs, lambda tensor: tensor)  # dicts of its own, as in training
        try:
            result = self.module(own, self._state.repeat(n, 1)) if s else self.module(own)
        except Exception as error:
            text = f"forward of {shown} raised {type(error).__name__}: {error}"
            alone = "; an observation must do without others in its batch" if n == 1 else ""
            raise ValueError(text + alone) from error
        are_tensors = isinstance(result, tuple) and all(isinstance(r, torch.Tensor) for r in result)
        shapes = [tuple(r.shape) for r in result] if are_tensors else type(result).__name__
        if shapes != [(n, k), (n,), (n, s)][: 3 if s else 2]:
            states = f", states [{n}, {s}]" if s else ""
            raise ValueError(f"forward of {shown} must give (head [{n}, {k}], value [{n}]{states}), but gave {shapes}")
        self._check_constants()
        head, value, *after = result
        return torch.cat([head, *after], dim=1), value.clone()

    def _check_constants(self) -> None:
        """Checks that the buffers are as they were. The first forward may make those that were not there yet."""
        now = dict(_buffers(self.module))
        for name in self._buffers | now:
            if self._buffers.setdefault(name, now.get(name)) != now.get(name):
                raise ValueError(
                    f"forward changes the buffer {name}, which must be a constant, or ranks and resumed runs would"
                    " differ: leave out what is counted or averaged (dppo normalises observations), and make what is"
                    " learnt a torch.nn.Parameter"
                )

    def gradients(self, inputs: Inputs, *, accumulate: bool = False) -> dict[str, torch.Tensor]:
        """Returns the gradients of the parameters that the outputs depend on, for one direction of the outputs; {}
        where they are added to the parameters' own gradients.
        """
        outputs = [out for out in self.run(inputs) if out.requires_grad]
        directions = [torch.linspace(-1.0, 2.0, out.numel()).reshape(out.shape) for out in outputs]
        learnt = {name: p for name, p in self.module.named_parameters() if p.requires_grad}
        try:
            if accumulate:
                torch.autograd.backward(outputs, directions)
                return {}
            found = torch.autograd.grad(outputs, list(learnt.values()), directions, allow_unused=True)
        except Exception as error:
            raise ValueError(f"backward raised {type(error).__name__}: {error}") from error
        return {name: g for name, g in zip(learnt, found, strict=True) if g is not None}


def _buffers(module: torch.nn.Module) -> Iterator[tuple[str, object]]:
    """Yields each buffer's name, and what shows that it was changed."""
    for name, buffer in module.named_buffers():
        if not torch.nn.parameter.is_lazy(buffer) and buffer.device.type == "cpu" and _can_be_saved(buffer):
            yield name, (buffer.data_ptr(), buffer.dtype, buffer.shape, buffer.detach().numpy().tobytes())


def _inputs_that_fit(trial: _Trial, samples: Samples) -> Inputs:
    """Returns the first of the usual inputs that the module can take."""
    problems = []
    for inputs in samples.usual:
        try:
            if all(_is_possible(out) for out in trial.run(inputs)):
                return inputs
            problems.append(ValueError("forward of ordinary observations gives NaN or infinity"))
        except ValueError as error:
            problems.append(error)
    raise problems[0]


def mapped(inputs: Inputs, function: Callable[[torch.Tensor], torch.Tensor]) -> Inputs:
    """Applies a function to all tensors in `inputs`. Returns new dicts and tuples."""
    if isinstance(inputs, dict):
        return {name: mapped(part, function) for name, part in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(mapped(part, function) for part in inputs)
    return function(inputs)


def tensors(inputs: Inputs, path: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    """Yields all tensors in `inputs`, each with the path that leads to it."""
    if not isinstance(inputs, dict | tuple):
        yield path, inputs
        return
    for name, part in inputs.items() if isinstance(inputs, dict) else enumerate(inputs):
        yield from tensors(part, f"{path}/{name}" if path else str(name))


def _row(inputs: Inputs, i: int) -> Inputs:
    return mapped(inputs, lambda tensor: tensor[i : i + 1])


def num_rows(inputs: Inputs) -> int:
    """Returns B."""
    return len(next(tensors(inputs))[1])


def described(inputs: Inputs) -> str:
    """Returns the shapes in `inputs`, and the types that are not float32."""
    if isinstance(inputs, dict):
        return "{" + ", ".join(f"{name}: {described(part)}" for name, part in inputs.items()) + "}"
    if isinstance(inputs, tuple):
        return "(" + ", ".join(described(part) for part in inputs) + ")"
    kind = "" if inputs.dtype == torch.float32 else f" {str(inputs.dtype).removeprefix('torch.')}"
    return f"{list(inputs.shape)}{kind}"


@contextlib.contextmanager
def _shifted(module: torch.nn.Module) -> Iterator[None]:
    """Moves the parameters' values away for a while."""
    kept = [p.detach().clone() for p in module.parameters()]
    random = torch.Generator().manual_seed(1)
    try:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(SHIFT * torch.randn(parameter.shape, generator=random))
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(module.parameters(), kept, strict=True):
                parameter.copy_(value)


def _is_possible(out: torch.Tensor) -> bool:
    """Returns whether all outputs are finite or -inf, which a mask of actions makes of a logit."""
    return bool((torch.isfinite(out) | torch.isneginf(out)).all())


def _gap(one: Outputs, other: Outputs) -> float:
    """Returns the largest difference, as a share of the largest output of its kind; equal infinities do not differ."""
    gaps = []
    for a, b in zip((x.detach() for x in one), (x.detach() for x in other), strict=True):
        difference = torch.where(a == b, torch.zeros_like(a), (a - b).abs()).nan_to_num(nan=float("inf")).max()
        size = torch.where(torch.isfinite(a), a, torch.zeros_like(a)).abs().max()
        gaps.append(float(difference) / max(float(size), 1e-2))
    return max(gaps)
