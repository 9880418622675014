"""How deep in a model its parameters lie."""

from typing import Any

from raytrain.errors import ConfigError

OPTION = "training.layerwise_lr_decay"


def depths_of(model: Any) -> tuple[dict[str, int], int]:
    """Depth of each parameter by its name, and the largest depth.

    Embeddings, and what comes before the layers, have depth 0; the parameters of the layers 1 to their number, those of
    an adapter among them; the head, and what else comes after the layers, one more. Not collective.

    Raises:
        ConfigError: The model has no single stack of layers with weights of their own.
    """
    from torch import nn

    stacks, count = _stacks(model)
    embeddings = {id(part.weight) for part in model.modules() if isinstance(part, nn.Embedding)}
    inner = getattr(model, "base_model_prefix", "")
    inside = f"{inner}." if inner and hasattr(model, inner) else ""
    depths, is_above = {}, False
    for name, parameter in model.named_parameters():
        stack = next((stack for stack in stacks if name.startswith(f"{stack}.")), None)
        if stack is not None:
            depths[name] = int(name[len(stack) + 1 :].partition(".")[0]) + 1
            is_above = True
        elif id(parameter) in embeddings:
            depths[name] = 0
        else:
            depths[name] = count + 1 if is_above or not name.startswith(inside) else 0
    return depths, count + 1


def _stacks(model: Any) -> tuple[list[str], int]:
    """Names of the lists of layers, and the number of layers. Some models have several lists of as many parts each.
    Raises ConfigError."""
    from torch import nn

    config: Any = getattr(model, "config", None)
    if getattr(config, "is_encoder_decoder", False):
        raise ConfigError(
            f"{OPTION} is for a single stack of layers, and {type(model).__name__} has an encoder and a decoder: leave "
            "it out"
        )
    text_config = config.get_text_config() if hasattr(config, "get_text_config") else config
    count = getattr(text_config, "num_hidden_layers", None)
    lists = [name for name, part in model.named_modules() if isinstance(part, nn.ModuleList) and len(part) == count]
    outer = [name for name in lists if not any(name.startswith(f"{other}.") for other in lists)]
    if not count or not outer:
        raise ConfigError(
            f"{OPTION}: {type(model).__name__} has no list of layers with weights of their own: leave it out"
        )
    return outer, count
