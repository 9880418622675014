"""Section on the adapter of a model."""

from typing import Annotated, Any, Literal, Self

from pydantic import BeforeValidator, Field, PositiveFloat, model_validator

from raytrain.config.base import Affects, PositiveInt, Section

ALL_LINEAR = "all-linear"
NOT_THERE = ("adalora",)
OF_LORA = ("rank", "alpha", "dropout", "dora", "rslora")


def _kind(value: Any) -> Any:
    if value in NOT_THERE:
        raise ValueError(
            f"model.adapter.kind {value} is not supported yet; give lora or ia3, or leave model.adapter out"
        )
    return value


class AdapterConfig(Section):
    """Small trained matrices or vectors beside the frozen weights of `model.path`. Needs `raytrain[adapters]`."""

    kind: Annotated[Literal["lora", "ia3"], BeforeValidator(_kind), Affects.RESULT | Affects.SPEED] = "lora"
    """lora: a product of two matrices of `rank` is added to each target's weight. ia3: each target's outputs are
    multiplied by a vector, or its inputs where `feedforward` names it."""
    rank: Annotated[PositiveInt, Affects.RESULT | Affects.SPEED] = 8
    """Inner dimension of the two matrices."""
    alpha: Annotated[PositiveFloat | None, Affects.RESULT] = None
    """The product is multiplied by alpha / rank; null: twice the rank."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0), Affects.RESULT | Affects.SPEED] = 0.0
    """Dropout of the adapter's inputs. `training.dropout` does not change it."""
    targets: Annotated[str | list[str], Affects.RESULT | Affects.SPEED] = ALL_LINEAR
    """Linear layers that get an adapter: all-linear, the ends of their names, such as [query, value], or a regular
    expression for whole names. The model's head is trained whole instead."""
    dora: Annotated[bool, Affects.RESULT | Affects.SPEED] = False
    """True: DoRA, which also trains the length of each weight's rows apart from their direction."""
    rslora: Annotated[bool, Affects.RESULT] = False
    """True: rank-stabilized LoRA, which multiplies by alpha / sqrt(rank)."""
    feedforward: Annotated[list[str], Affects.RESULT | Affects.SPEED] = []
    """Targets of ia3 whose inputs are scaled instead of their outputs, by the ends of their names. In the paper these
    are the second layers of the feed-forward networks, beside the layers of keys and values."""
    also_train: Annotated[list[str], Affects.RESULT | Affects.SPEED] = []
    """Modules that are trained whole, by the ends of their names, besides the task's head."""

    @model_validator(mode="after")
    def _some_target(self) -> Self:
        if not self.targets or any(not name.strip() for name in (*self.targets, *self.also_train)):
            raise ValueError(
                "model.adapter.targets and model.adapter.also_train are names: give for instance "
                f"model.adapter.targets=[query,value], or {ALL_LINEAR}"
            )
        return self

    @model_validator(mode="after")
    def _of_one_kind(self) -> Self:
        others = OF_LORA if self.kind == "ia3" else ("feedforward",)
        for name in others:
            if getattr(self, name) != type(self).model_fields[name].default:  # a run's config.yaml has all fields
                raise ValueError(f"model.adapter.{name} has no effect on model.adapter.kind={self.kind}: leave it out")
        return self

    @property
    def scale_numerator(self) -> float:
        """`alpha`, or what null stands for."""
        return self.alpha if self.alpha is not None else 2.0 * self.rank
