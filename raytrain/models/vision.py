"""Building a vision model of Transformers with a head for our labels."""

import logging
from typing import TYPE_CHECKING, Any

from raytrain.config import ModelConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.models.build import build_with_head

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


def build_vision_model(model: ModelConfig, labels: list[str], training: TrainingConfig, **changes: Any) -> "nn.Module":
    """A pretrained (or new) vision model with a classification head, fp32 on the CPU. Arguments and errors are those of
    `build_with_head`.

    Batch normalization computes with the mean of a micro-batch, and keeps averages on each worker: both depend on how a
    step is divided among workers. A pretrained model keeps the averages that it came with; a new one is refused.
    """
    built: Any = build_with_head("AutoModelForImageClassification", model, labels, training, **changes)
    if (count := freeze_statistics(built)) and model.path is None:
        raise ConfigError(
            f"model.config.model_type {built.config.model_type} has batch normalization, whose result depends on how a "
            "step is divided among workers. A new model needs one with layer or group normalization, such as vit, "
            "convnext or swin; a pretrained one (model.path) is trained with its averages as they are"
        )
    if count:
        logger.info("%s layers of batch normalization keep their averages of the pretrained model", count)
    return built


def freeze_statistics(model: "nn.Module") -> int:
    """Let each batch normalization use the averages that it has, in training too. Its weights are trained. Returns how
    many there are."""
    from torch.nn.modules.batchnorm import _BatchNorm

    count = 0
    for part in model.modules():
        if isinstance(part, _BatchNorm) and part.track_running_stats:
            _freeze(part)
            count += 1
    return count


def _freeze(layer: Any) -> None:
    kind = type(layer)
    if not getattr(kind, "keeps_statistics", False):

        def train(self: Any, mode: bool = True) -> Any:
            """Set the layer to evaluation, whatever the mode of the model."""
            return kind.train(self, False)

        layer.__class__ = type(kind.__name__, (kind,), {"train": train, "keeps_statistics": True})
    layer.eval()
