"""Adapters: small trained matrices inside a frozen pretrained model, by PEFT.

PEFT's layers are put into the model itself, which stays a model of Transformers. Modules that are trained whole, such
as a head, stay what they are; in the files they are PEFT's `modules_to_save`. torch and PEFT are imported late.
"""

import copy
import difflib
import json
import os
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raytrain.config import AdapterConfig, ModelConfig
from raytrain.config.adapter import ALL_LINEAR
from raytrain.errors import CheckpointError, ConfigError, did_you_mean, first_line
from raytrain.models.card import BASE_HASH, FACTS
from raytrain.models.files import ADAPTER_WEIGHTS
from raytrain.models.frozen import combined_hash, frozen_parameters, hash_of_parameter

if TYPE_CHECKING:
    from torch import Tensor, nn

NAME = "default"  # of the adapter inside the model; PEFT's files don't have it
PREFIX = "base_model.model."  # of all names in PEFT's files
MOST_LISTED = 12
READ_DIRECTLY = ("dt_proj", "rel_pos_bias")
"""Linear layers of Mamba and LayoutLMv3 whose weights are read without calling them: an adapter would do nothing."""
TASK_TYPES = {
    "ForSequenceClassification": "SEQ_CLS",
    "ForTokenClassification": "TOKEN_CLS",
    "ForCausalLM": "CAUSAL_LM",
    "LMHeadModel": "CAUSAL_LM",
}
"""End of a class's name -> what PEFT calls its task, which decides how PEFT wraps the model."""


def has_adapter(model: Any) -> bool:
    """Whether `add_adapter` was called on this model."""
    return NAME in getattr(model, "peft_config", {})


def add_adapter(model: Any, config: ModelConfig, head: Collection[str] = (), fresh: Iterable[str] = ()) -> "nn.Module":
    """The model with an adapter as `model.adapter` says, if it does; all else is frozen. The adapter's first weights
    are drawn by torch's generator, so they are the same on all workers that have built the model with one seed.

    Args:
        head: Modules that are trained whole besides those of `also_train`.
        fresh: Parameters that the files of the base model lack: their modules are trained whole, too.

    Raises:
        ConfigError: A name matches no module, or one that can't be a target; or PEFT is not installed.
    """
    adapter = config.adapter
    if adapter is None:
        return model
    peft = _peft()
    whole = _whole_modules(model, adapter, head, fresh)
    targets = _targets(model, adapter, whole)
    settings = _settings(peft, model, adapter, targets)
    settings.base_model_name_or_path, settings.revision = config.path, config.revision
    try:
        adapted = peft.inject_adapter_in_model(settings, model, NAME)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"model.adapter: {first_line(str(error))}") from None
    for name in whole:
        adapted.get_submodule(name).requires_grad_(True)
    adapted.peft_config[NAME].modules_to_save = whole or None
    return adapted


def save_adapter(model: Any, weights: "Mapping[str, Tensor]", folder: str) -> None:
    """Write an adapter, and what is trained with it, to a local folder in PEFT's format, and the configs of the whole
    model beside it.

    Args:
        weights: Of the trained parameters at least, by their names in the model.
    """
    import torch
    from safetensors.torch import save_file

    config = copy.deepcopy(model.peft_config[NAME])
    kind = next((kind for end, kind in TASK_TYPES.items() if type(model).__name__.endswith(end)), None)
    config.inference_mode, config.task_type = True, kind
    trained = {name: weights[name] for name, parameter in model.named_parameters() if parameter.requires_grad}
    named = _in_files(model, trained)
    tensors = {name: tensor.clone(memory_format=torch.contiguous_format) for name, tensor in named.items()}
    save_file(tensors, f"{folder}/{ADAPTER_WEIGHTS}", metadata={"format": "pt"})
    config.save_pretrained(folder)
    model.config.save_pretrained(folder)
    if getattr(model, "generation_config", None) is not None:  # tokens that end a text, as those of a chat
        model.generation_config.save_pretrained(folder)


def load_adapter(model: Any, folder: str) -> None:
    """Load what `save_adapter` wrote into a model that `add_adapter` has made of the same base.

    Raises ConfigError when raytrain.json in the folder names another base, and CheckpointError when the file is of
    another adapter.
    """
    import torch
    from safetensors.torch import load_file

    _check_base(model, folder)
    saved = load_file(f"{folder}/{ADAPTER_WEIGHTS}")
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    wanted = _in_files(model, trained)
    wrong = {*wanted} ^ {*saved} or {name for name in wanted if wanted[name].shape != saved[name].shape}
    if wrong:
        raise CheckpointError(
            f"{folder}/{ADAPTER_WEIGHTS} is not of this adapter: it and the model differ in {min(wrong)}. Restore the "
            "folder from a backup, and use the versions of the packages that raytrain.json names"
        )
    with torch.no_grad():
        for name, parameter in wanted.items():
            parameter.copy_(saved[name])


def merged(model: Any) -> Any:
    """A copy of the model with the adapter added to its weights, in their precision; a plain model of Transformers."""
    from peft.tuners.tuners_utils import BaseTunerLayer

    plain = copy.deepcopy(model)
    for name, module in list(plain.named_modules()):
        if isinstance(module, BaseTunerLayer):
            module.merge()
            parent, _, child = name.rpartition(".")
            setattr(plain.get_submodule(parent), child, module.get_base_layer())
    del plain.peft_config
    return plain


def hash_of_base(model: "nn.Module") -> str:
    """SHA-256 over the names and values of the frozen weights, as checkpoints have it."""
    return combined_hash({name: hash_of_parameter(parameter) for name, parameter in frozen_parameters(model)})


def _check_base(model: Any, folder: str) -> None:
    if not os.path.exists(f"{folder}/{FACTS}"):
        return
    with open(f"{folder}/{FACTS}", encoding="utf-8") as file:
        facts = json.load(file)
    saved, found = (facts["base_model"] or {}).get(BASE_HASH), hash_of_base(model)
    if saved is not None and saved != found:
        raise ConfigError(
            f"the adapter belongs to other weights than those of {model.peft_config[NAME].base_model_name_or_path} "
            f"(SHA-256 {saved}, here {found}): the base model was changed since. Restore it, or for predict and "
            "export say with model.path=FOLDER where it is now"
        )


def _peft() -> Any:
    try:
        import peft
    except ModuleNotFoundError:
        raise ConfigError(
            "model.adapter needs the package peft, which is not installed: pip install 'raytrain[adapters]', on every "
            "node"
        ) from None
    return peft


def _settings(peft: Any, model: Any, adapter: AdapterConfig, targets: list[str]) -> Any:
    """PEFT's own settings of an adapter of these layers. `modules_to_save` is left out, since PEFT would keep a copy of
    each. Raises ConfigError."""
    from transformers.pytorch_utils import Conv1D

    is_transposed = all(isinstance(model.get_submodule(name), Conv1D) for name in targets)
    if adapter.kind == "ia3":
        inner = [name for end in adapter.feedforward for name in _ending(end, targets, "feedforward")]
        return peft.IA3Config(target_modules=targets, feedforward_modules=inner, fan_in_fan_out=is_transposed)
    alpha = adapter.scale_numerator
    if adapter.kind == "adalora":  # PEFT's own schedule, which is not used, wants to know the steps
        return peft.AdaLoraConfig(
            init_r=adapter.first_rank,
            target_r=adapter.rank,
            total_step=1,
            lora_alpha=int(alpha) if alpha == int(alpha) else alpha,
            lora_dropout=adapter.dropout,
            orth_reg_weight=adapter.allocation.orthogonality,
            target_modules=targets,
            fan_in_fan_out=is_transposed,
        )
    return peft.LoraConfig(
        r=adapter.rank,
        lora_alpha=int(alpha) if alpha == int(alpha) else alpha,  # other programs expect an integer
        lora_dropout=adapter.dropout,
        use_dora=adapter.dora,
        use_rslora=adapter.rslora,
        target_modules=targets,
        fan_in_fan_out=is_transposed,
    )


def _in_files(model: Any, tensors: "Mapping[str, Any]") -> dict[str, Any]:
    """Trained tensors by their names in PEFT's files instead of those in the model."""
    import peft

    whole = model.peft_config[NAME].modules_to_save or []
    kept = {name: tensor for name, tensor in tensors.items() if _is_in(name, whole)}
    inner = {name: tensor for name, tensor in tensors.items() if name not in kept}
    # Whether embeddings were resized is asked of the hub unless it is said.
    found = peft.get_peft_model_state_dict(model, inner, adapter_name=NAME, save_embedding_layers=False)
    assert len(found) == len(inner), "PEFT knows every other trained weight"
    return {f"{PREFIX}{name}": tensor for name, tensor in {**found, **kept}.items()}


def _whole_modules(model: Any, adapter: AdapterConfig, head: Collection[str], fresh: Iterable[str]) -> list[str]:
    """Names of the modules that are trained whole, none inside another. Raises ConfigError."""
    named = dict(model.named_modules())
    found = dict.fromkeys(head)
    for name in adapter.also_train:
        matching = [full for full in named if _ends_in(full, name) and any(True for _ in named[full].parameters())]
        if not matching:
            raise ConfigError(_no_module("also_train", name, (full for full in named if full)))
        if tied := _tied(model, matching):
            raise ConfigError(
                f"model.adapter.also_train: {name} shares its weights with {tied}, which PEFT's files can't express: "
                "leave it out"
            )
        found.update(dict.fromkeys(matching))
    parameters = {name for name, _ in model.named_parameters()}
    for name in fresh:
        if name in parameters and not _is_in(name, found):
            module = name.rpartition(".")[0]
            if not module or any(True for _ in named[module].children()):
                raise ConfigError(
                    f"model.path lacks the weight {name}, which PEFT's files can't hold by itself: leave model.adapter "
                    "out, or give a model that has this weight"
                )
            found[module] = None
    return [name for name in found if not _is_in(name, [other for other in found if other != name])]


def _targets(model: Any, adapter: AdapterConfig, whole: Sequence[str]) -> list[str]:
    """Names of the layers that get an adapter. Raises ConfigError."""
    import torch
    from transformers.pytorch_utils import Conv1D

    # A class made of Linear may return something else, as the routers of experts do.
    linear = [name for name, module in model.named_modules() if type(module) in (torch.nn.Linear, Conv1D)]
    inner = [name for name in linear if not _is_in(name, whole)]
    if adapter.targets == ALL_LINEAR:
        output = model.get_output_embeddings() if hasattr(model, "get_output_embeddings") else None
        called = [name for name in inner if not name.endswith(READ_DIRECTLY)]
        if chosen := [name for name in called if model.get_submodule(name) is not output]:
            return chosen
        raise ConfigError(
            f"model.adapter: {type(model).__name__} has no linear layers that adapters are for: leave it out"
        )
    every = [name for name, _ in model.named_modules() if name]
    if isinstance(adapter.targets, str):
        found = _matching(adapter.targets, every)
    else:
        found = [name for target in adapter.targets for name in _ending(target, every)]
    if wrong := [name for name in found if name not in linear]:
        kind = type(model.get_submodule(wrong[0])).__name__
        raise ConfigError(
            f"model.adapter.targets: {wrong[0]} is a {kind}, and adapters are for linear layers, such as "
            f"{_listed(_ends(inner))}"
        )
    chosen = [name for name in dict.fromkeys(found) if name in inner]
    if not chosen:
        raise ConfigError(
            f"model.adapter.targets: {found[0]} is trained whole already. Give layers that are not, such as "
            f"{_listed(_ends(inner))}"
        )
    for name in chosen:
        if tied := _tied(model, [name]):
            raise ConfigError(
                f"model.adapter.targets: {name} shares its weights with {tied}, which an adapter of one of the two "
                "would part: leave it out"
            )
    return chosen


def _matching(pattern: str, names: list[str]) -> list[str]:
    """The names that a regular expression matches, or where it is just a name, that end in it. Raises ConfigError."""
    if re.fullmatch(r"[\w.]+", pattern) and any(_ends_in(name, pattern) for name in names):
        return _ending(pattern, names)
    try:
        found = [name for name in names if re.fullmatch(pattern, name)]
    except re.error as error:
        raise ConfigError(f"model.adapter.targets: {pattern!r} is not a regular expression: {error}") from None
    if not found:
        raise ConfigError(_no_module("targets", pattern, names))
    return found


def _ending(target: str, names: list[str], option: str = "targets") -> list[str]:
    found = [name for name in names if _ends_in(name, target)]
    if not found:
        raise ConfigError(_no_module(option, target, names))
    return found


def _no_module(option: str, name: str, names: Iterable[str]) -> str:
    ends, last = _ends(names), name.rpartition(".")[2]
    ends.sort(key=lambda end: -difflib.SequenceMatcher(None, last, end).ratio())
    hint = did_you_mean(last, ends) or "."
    return (
        f"model.adapter.{option}: the model has no module called {name!r}{hint} The names of its modules end in "
        f"{_listed(ends, most=40)}"
    )


def _tied(model: Any, modules: Sequence[str]) -> str | None:
    """The name of a parameter outside of these modules that is also one of theirs; None: there is none."""
    names: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), []).append(name)
    for same in names.values():
        outside = [name for name in same if not _is_in(name, modules)]
        if 0 < len(outside) < len(same):
            return outside[0]
    return None


def _ends_in(name: str, end: str) -> bool:
    return name == end or name.endswith(f".{end}")


def _is_in(name: str, modules: Iterable[str]) -> bool:
    return any(name == module or name.startswith(f"{module}.") for module in modules)


def _ends(names: Iterable[str]) -> list[str]:
    """The last parts of names, once each, without the numbers of layers."""
    ends = dict.fromkeys(name.rpartition(".")[2] for name in names)
    return [end for end in ends if not end.isdigit()]


def _listed(names: Sequence[str], most: int = MOST_LISTED) -> str:
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
