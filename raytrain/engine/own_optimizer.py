"""An optimizer class of the user's: which ones can be sharded, saved and resized, found out by trying.

ZeRO flattens parameters and cuts them anywhere, and a resize cuts them elsewhere. So an element's update may depend on
that element's weight, gradient and state alone, and all state must be tensors shaped like the parameter, besides the
count of updates. Optimizers that use the norm, the shape or the rank of a whole tensor (LAMB, LARS, Muon, Shampoo,
Adafactor) are refused.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from raytrain.checkpoint.ranges import AVERAGE, BUFFER, FP32, MOMENTS, SENSITIVITY, UNCERTAINTY
from raytrain.config import OptimizerConfig
from raytrain.errors import ConfigError, RaytrainError
from raytrain.tasks.imported import check_source, file_of, import_named
from raytrain.tasks.user_code import told

OPTION = "training.optimizer.target"
STEP = "step"
_SHAPE, _CUT = (4, 6), 7
# Relative to the largest change of a weight. Vectorized and scalar instructions round differently.
_TOLERANCE = 1e-4
_LEARNING_RATE = 0.01
# Of the gradients of the trial's steps: some optimizers treat large or small ones, or every few steps, otherwise.
_SCALES = (1.0, 1.0, 0.01, 1.0, 1.0, 1.0, 0.01, 1.0, 1.0, 100.0, 1000.0, 1.0)

_KEEPS_MORE = (
    f"continued from its tensors shaped like the parameter and {STEP!r}, the number of updates, it does something "
    "else: it draws random numbers, or keeps something elsewhere"
)
_MIXES_ELEMENTS = (
    "the update of an element depends on others, of its tensor or of other tensors, or on the tensor's shape (as in "
    "LAMB, LARS, Muon, Shampoo or Adafactor), and workers hold only parts of tensors"
)


@dataclass(frozen=True)
class StateLayout:
    """What an optimizer keeps for each parameter."""

    kinds: tuple[str, ...]
    """Names of the tensors shaped like the parameter."""
    step: type | None
    """Type of the count of updates: Tensor, int, float, or None if it keeps none."""


ADAMW = StateLayout(MOMENTS, Tensor)


def make_own(groups: list[dict[str, Any]], optimizer: OptimizerConfig) -> torch.optim.Optimizer:
    """An object of the user's class over groups of `params` and `weight_decay`.

    The class is given the groups, `lr`, and the config's args; their weight decay has an effect if it has
    such an argument.

    Raises ConfigError: it can't be imported, is not an optimizer, is not the one that the run was started with, or
    can't be made of these arguments.
    """
    assert optimizer.target is not None
    check_source(optimizer.target, optimizer.source, OPTION, "training.optimizer.source")
    return _made(groups, optimizer)


def _made(groups: list[dict[str, Any]], optimizer: OptimizerConfig) -> torch.optim.Optimizer:
    target = str(optimizer.target)
    made: Any = import_named(target, OPTION)
    if not (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)):
        raise ConfigError(f"{OPTION} {target} is not a subclass of torch.optim.Optimizer")
    make: Any = made
    try:
        found: torch.optim.Optimizer = make(groups, lr=optimizer.learning_rate, **optimizer.args)
    except Exception as error:
        raise ConfigError(
            f"{OPTION} {target}: it can't be made of training.optimizer.args {optimizer.args}: {_told(error, target)}"
        ) from error
    is_default = optimizer.weight_decay == OptimizerConfig.model_fields["weight_decay"].default
    if "weight_decay" not in found.defaults and optimizer.weight_decay and not is_default:
        raise ConfigError(
            f"training.optimizer.weight_decay {optimizer.weight_decay:g} has no effect: {target} has no weight_decay; "
            "set it to 0, or leave it out"
        )
    return found


def step_state(layout: StateLayout, num_updates: int, device: "str | torch.device") -> dict[str, Any]:
    """What the optimizer has after `num_updates` as their count."""
    if layout.step is Tensor:
        return {STEP: torch.tensor(float(num_updates), dtype=torch.float32, device=device)}
    return {} if layout.step is None else {STEP: layout.step(num_updates)}


def layout_of(optimizer: OptimizerConfig) -> StateLayout:
    """What the config's optimizer keeps. One of the user's own is tried on a few numbers; the process's random numbers
    stay as they are.

    Raises ConfigError when it can't be sharded and resized, with the reason.
    """
    if optimizer.target is None:
        return ADAMW
    check_source(optimizer.target, optimizer.source, OPTION, "training.optimizer.source")
    with torch.random.fork_rng(devices=[]):
        try:
            return _examined(optimizer)
        except RaytrainError:
            raise
        except Exception as error:
            raise ConfigError(f"{OPTION} {optimizer.target}: step failed: {_told(error, optimizer.target)}") from error


def _examined(optimizer: OptimizerConfig) -> StateLayout:
    """Its steps over a whole tensor are compared with those over two parts of it, each of an optimizer of its own as on
    two workers; and each step with that of a new optimizer that continues from what is saved."""
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(_SHAPE, generator=generator)
    first, second = start.flatten()[:_CUT], start.flatten()[_CUT:]
    whole, *cut = (_Trial(optimizer, *tensors) for tensors in ([start], [first], [second], [first, second]))
    if whole.optimizer.state:
        raise _refused(optimizer, "it keeps state before its first step, which DeepSpeed would not shard")
    settings, attributes, layout = _settings(whole.optimizer), None, StateLayout((), None)
    for num_updates, scale in enumerate(_SCALES):
        before = whole.weights()
        gradient = scale * _almost_orthogonal(torch.randn(start.numel(), generator=generator), before)
        resumed, at_half_rate = (whole.resumed(layout, num_updates) for _ in range(2))
        whole.step(gradient)
        resumed.step(gradient)
        at_half_rate.step(gradient, _LEARNING_RATE / 2)
        for trial, its_own in zip(cut, (gradient[:_CUT], gradient[_CUT:], gradient), strict=True):
            trial.step(its_own)
        _check_is_kept(optimizer, settings, _settings(whole.optimizer), "of its parameter groups")
        attributes = attributes or _attributes(whole.optimizer)
        _check_is_kept(optimizer, attributes, _attributes(whole.optimizer), "of its own")
        layout = _layout(optimizer, whole)
        after = whole.weights()
        allowed = _TOLERANCE * _distance(after, start.flatten())
        if _distance(after, resumed.weights()) > allowed:
            raise _refused(optimizer, _KEEPS_MORE)
        if _distance(after.repeat(2), torch.cat([trial.weights() for trial in cut])) > allowed:
            raise _refused(optimizer, _MIXES_ELEMENTS)
        if _distance(after, before) > 0 and _distance(after, at_half_rate.weights()) == 0:
            raise _refused(optimizer, "its step does not depend on `lr` of its parameter groups, the learning rate")
    return layout


def _check_is_kept(optimizer: OptimizerConfig, before: dict[str, str], after: dict[str, str], of_what: str) -> None:
    if changed := [name for name, value in after.items() if before.get(name) != value]:
        raise _refused(optimizer, f"its step changes {changed[0]!r} {of_what}, which is not saved")


def _layout(optimizer: OptimizerConfig, trial: "_Trial") -> StateLayout:
    """What it keeps after some steps."""
    kinds: list[str] = []
    step: type | None = None
    (parameter,) = trial.parameters
    for name, value in trial.optimizer.state.get(parameter, {}).items():
        is_tensor = isinstance(value, Tensor)
        if name == STEP and (isinstance(value, int | float) or (is_tensor and value.numel() == 1)):
            step = Tensor if is_tensor else type(value)
        elif is_tensor and value.shape == parameter.shape and value.dtype == torch.float32:
            kinds.append(name)
        elif value is not None:
            what = f"a tensor of shape {tuple(value.shape)} and {value.dtype}" if is_tensor else f"{value!r}"
            raise _refused(
                optimizer,
                f"its state {name!r} is {what}; saved are tensors in fp32 shaped like the parameter, here "
                f"{tuple(parameter.shape)}, and {STEP!r}",
            )
    if taken := [name for name in kinds if name in (AVERAGE, BUFFER, FP32, SENSITIVITY, UNCERTAINTY) or ":" in name]:
        raise _refused(optimizer, f"its state is named {taken[0]!r}, which raytrain's checkpoints use otherwise")
    return StateLayout(tuple(sorted(kinds)), step)


class _Trial:
    """The user's optimizer over a few parameters."""

    def __init__(self, optimizer: OptimizerConfig, *tensors: Tensor):
        self._config = optimizer
        self.parameters = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
        self.optimizer = _made([{"params": self.parameters, "weight_decay": optimizer.weight_decay}], optimizer)

    def resumed(self, layout: StateLayout, num_updates: int) -> "_Trial":
        """A new one with what a checkpoint has after `num_updates` steps."""
        found = _Trial(self._config, *self.parameters)
        for old, new in zip(self.parameters, found.parameters, strict=True):
            if num_updates:
                kept = {kind: self.optimizer.state[old][kind].clone() for kind in layout.kinds}
                found.optimizer.state[new] = kept | step_state(layout, num_updates, "cpu")
        return found

    def step(self, gradient: Tensor, learning_rate: float = _LEARNING_RATE) -> None:
        """`gradient`: of all parameters, one after the other, in one dimension."""
        parts = gradient.split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.clone().view(parameter.shape)
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        self.optimizer.step()

    def weights(self) -> Tensor:
        """A copy of all, in one dimension."""
        return torch.cat([parameter.detach().flatten() for parameter in self.parameters])


def _almost_orthogonal(gradient: Tensor, weights: Tensor) -> Tensor:
    """A gradient as of weights whose scale has hardly an effect: some optimizers (AdamP) treat it otherwise."""
    direction = weights / weights.norm()
    return gradient - (gradient @ direction) * direction + 0.01 * gradient.norm() * direction


def _distance(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max())


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """The values of its only group, for comparison."""
    return {name: repr(value) for name, value in optimizer.param_groups[0].items() if name not in ("params", "lr")}


def _attributes(optimizer: torch.optim.Optimizer) -> dict[str, str]:
    """The values of the object, for comparison."""
    return {name: repr(value) for name, value in vars(optimizer).items() if name not in ("state", "param_groups")}


def _refused(optimizer: OptimizerConfig, why: str) -> ConfigError:
    return ConfigError(
        f"{OPTION} {optimizer.target} can't be sharded and resized: {why}. Choose one that treats each element alone, "
        "such as torch.optim:SGD, torch.optim:RAdam or a Lion; or leave training.optimizer.target out for AdamW"
    )


def _told(error: Exception, target: str) -> str:
    return told(error, file_of(target, OPTION))
