"""A pretrained head whose labels are not those of the task in their order: permuted, or initialized anew."""

import copy
import logging
from typing import Any

import torch
from torch import nn

logger = logging.getLogger(__name__)

DEFAULT_STD = 0.02  # of new weights, as in Transformers, when the config names none


def adopt_head(model: Any, dims: dict[str, int], saved_labels: list[str], labels: list[str]) -> None:
    """Make the rows of a head that was loaded the task's labels.

    Where both have the same names in another order, the rows are permuted. Where names differ, a row would silently
    mean another label, so the head gets new weights. `LABEL_3`, Transformers' name for a label without one, is `3`;
    upper and lower case are not told apart where that leaves the names distinct.

    Args:
        dims: The head's parameters, from `label_dimensions`.
        saved_labels: The labels that the model was saved with, in the order of their ids; as many as `labels`.
    """
    order = order_of(saved_labels, labels)
    parameters = dict(model.named_parameters())
    if order is not None and all(parameters[name].shape[dim] == len(labels) for name, dim in dims.items()):
        for name, dim in dims.items():
            parameters[name].data = parameters[name].data.index_select(dim, torch.tensor(order)).contiguous()
        return
    std = getattr(model.config, "initializer_range", None) or DEFAULT_STD
    for name in dims:
        _initialize(parameters[name], std)
    logger.warning(
        "the head of the pretrained model is initialized anew: its labels (%s) are not those of the data (%s). To keep "
        "it, write the data's names in the id2label of the model's config.json",
        _listed(saved_labels),
        _listed(labels),
    )


def order_of(saved: list[str], wanted: list[str]) -> list[int] | None:
    """For each wanted label its place among the saved ones; None when the names are not the same."""
    for spelling in (str, _plain):
        places = {spelling(name): place for place, name in enumerate(saved)}
        names = [spelling(name) for name in wanted]
        if len(places) == len(saved) and len(set(names)) == len(names) and set(names) == set(places):
            return [places[name] for name in names]
    return None


def label_dimensions(config: Any, factory: Any, trust_remote_code: bool = False) -> dict[str, int]:
    """Name -> dimension of each parameter whose size depends on the number of labels. Nothing is allocated."""
    shapes = []
    for more in (0, 1):
        changed = copy.deepcopy(config)
        changed.num_labels = config.num_labels + more
        with torch.device("meta"):
            model = factory.from_config(changed, trust_remote_code=trust_remote_code)
        shapes.append({name: parameter.shape for name, parameter in model.named_parameters()})
    return {
        name: next(dim for dim, size in enumerate(shape) if size != shapes[1][name][dim])
        for name, shape in shapes[0].items()
        if shape != shapes[1][name]
    }


def _plain(name: str) -> str:
    return name.strip().casefold().removeprefix("label_")


def _initialize(parameter: nn.Parameter, std: float) -> None:
    with torch.no_grad():
        if parameter.ndim > 1:
            parameter.normal_(std=std)
        else:
            parameter.zero_()


def _listed(labels: list[str]) -> str:
    return ", ".join(labels[:5]) + (", ..." if len(labels) > 5 else "")
