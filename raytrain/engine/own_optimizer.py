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

from raytrain.checkpoint.ranges import BUFFER, FP32, MOMENTS
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

    Raises ConfigError: it can't be imported, is not an optimizer, or can't be made of these arguments.
    """
    assert optimizer.target is not None
    target = optimizer.target
    made: Any = import_named(target, OPTION)
    if not (isinstance(made, type) and issubclass(made, torch.optim.Optimizer)):
        raise ConfigError(f"{OPTION} {target} is not a subclass of torch.optim.Optimizer")
    check_source(target, optimizer.source, OPTION, "training.optimizer.source")
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


def layout_of(optimizer: OptimizerConfig) -> StateLayout:
    """What the config's optimizer keeps. One of the user's own is tried on a few numbers; the process's random numbers
    stay as they are.

    Raises ConfigError when it can't be sharded and resized, with the reason.
    """
    if optimizer.target is None:
        return ADAMW
    with torch.random.fork_rng(devices=[]):
        try:
            return _examined(optimizer)
        except RaytrainError:
            raise
        except Exception as error:
            raise ConfigError(f"{OPTION} {optimizer.target}: step failed: {_told(error, optimizer.target)}") from error


def _examined(optimizer: OptimizerConfig) -> StateLayout:
    generator = torch.Generator().manual_seed(0)
    start = torch.randn(_SHAPE, generator=generator)
    gradients = [torch.randn(_SHAPE, generator=generator) for _ in range(4)]
    whole = _Trial(optimizer, [start])
    if whole.optimizer.state:
        raise _refused(optimizer, "it keeps state before its first step, which DeepSpeed would not shard")
    groups_before = _settings(whole.optimizer)
    for gradient in gradients[:3]:
        whole.step(gradient)
    if changed := [name for name, value in _settings(whole.optimizer).items() if groups_before.get(name) != value]:
        raise _refused(optimizer, f"its step changes {changed[0]!r} of its parameter groups, which is not saved")
    layout = _layout(optimizer, whole)
    resumed = _Trial(optimizer, whole.weights())
    for parameter, old in zip(resumed.parameters, whole.parameters, strict=True):
        resumed.optimizer.state[parameter] = {
            name: value.clone() if isinstance(value, Tensor) else value
            for name, value in whole.optimizer.state.get(old, {}).items()
            if name in layout.kinds or name == STEP
        }
    cut = _Trial(optimizer, [start.flatten()[:_CUT], start.flatten()[_CUT:]])
    for gradient in gradients[:3]:
        cut.step(gradient)
    for trial in (whole, resumed, cut):
        trial.step(gradients[3])
    scale = float((whole.flat() - start.flatten()).abs().max()) or 1.0
    if not torch.allclose(whole.flat(), resumed.flat(), rtol=0, atol=_TOLERANCE * scale):
        raise _refused(
            optimizer,
            "continued from its tensors shaped like the parameter and its step, it does something else: it draws "
            "random numbers, or keeps something elsewhere",
        )
    if not torch.allclose(whole.flat(), cut.flat(), rtol=0, atol=_TOLERANCE * scale):
        raise _refused(
            optimizer,
            "the update of an element depends on others of its tensor, or on the tensor's shape (as in LAMB, LARS, "
            "Muon, Shampoo or Adafactor), and workers hold only parts of tensors",
        )
    return layout


def _layout(optimizer: OptimizerConfig, trial: "_Trial") -> StateLayout:
    """What it keeps after some steps."""
    kinds: list[str] = []
    step: type | None = None
    for parameter in trial.parameters:
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
    if taken := [name for name in kinds if name in (FP32, BUFFER) or ":" in name]:
        raise _refused(optimizer, f"its state is named {taken[0]!r}, which raytrain's checkpoints use otherwise")
    return StateLayout(tuple(sorted(kinds)), step)


class _Trial:
    """The user's optimizer over a few parameters."""

    def __init__(self, optimizer: OptimizerConfig, tensors: list[Tensor]):
        self.parameters = [nn.Parameter(tensor.detach().clone()) for tensor in tensors]
        self.optimizer = make_own([{"params": self.parameters, "weight_decay": optimizer.weight_decay}], optimizer)

    def step(self, gradient: Tensor) -> None:
        """`gradient`: of all parameters, one after the other, in any shape."""
        parts = gradient.flatten().split([parameter.numel() for parameter in self.parameters])
        for parameter, part in zip(self.parameters, parts, strict=True):
            parameter.grad = part.clone().view(parameter.shape)
        for group in self.optimizer.param_groups:
            group["lr"] = _LEARNING_RATE
        self.optimizer.step()

    def weights(self) -> list[Tensor]:
        return [parameter.detach() for parameter in self.parameters]

    def flat(self) -> Tensor:
        return torch.cat([weight.flatten() for weight in self.weights()])


def _settings(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The values of its only group, for comparison."""
    return {name: repr(value) for name, value in optimizer.param_groups[0].items() if name not in ("params", "lr")}


def _refused(optimizer: OptimizerConfig, why: str) -> ConfigError:
    return ConfigError(
        f"{OPTION} {optimizer.target} can't be sharded and resized: {why}. Choose one that treats each element alone, "
        "such as torch.optim:SGD, torch.optim:RAdam or a Lion; or leave training.optimizer.target out for AdamW"
    )


def _told(error: Exception, target: str) -> str:
    return told(error, file_of(target, OPTION))
