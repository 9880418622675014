"""Section on the adapter of a model."""

import math
from typing import Annotated, Literal, Self

from pydantic import Field, PositiveFloat, model_validator

from raytrain.config.base import Affects, PositiveInt, Section

ALL_LINEAR = "all-linear"
# Fields without effect on a kind.
NOT_OF = {
    "lora": ("feedforward", "allocation"),
    "adalora": ("feedforward", "dora", "rslora"),
    "ia3": ("rank", "alpha", "dropout", "dora", "rslora", "allocation"),
}


class AllocationConfig(Section):
    """How AdaLoRA distributes its ranks over the layers. Updates are those that are applied: a skipped step is none."""

    first_rank: Annotated[PositiveInt | None, Affects.RESULT | Affects.SPEED] = None
    """Rank of each layer at first, above `model.adapter.rank`; null: one and a half times it."""
    begin: Annotated[float, Field(ge=0.0, lt=1.0), Affects.RESULT] = 0.1
    """Share of the run's steps after which ranks begin to be removed."""
    end: Annotated[float, Field(gt=0.0, lt=1.0), Affects.RESULT] = 0.7
    """Share of the run's steps after which the last ones have been removed. The rest of the run trains what is left."""
    every: Annotated[PositiveInt, Affects.RESULT | Affects.SPEED] = 10
    """Updates between two removals."""
    orthogonality: Annotated[float, Field(ge=0.0), Affects.RESULT | Affects.SPEED] = 0.5
    """Factor of the penalty that keeps the vectors of a layer orthogonal, so that their importance can be told apart; 0
    turns it off."""

    @model_validator(mode="after")
    def _in_order(self) -> Self:
        if self.begin >= self.end:
            raise ValueError(
                f"model.adapter.allocation.begin {self.begin:g} must be below model.adapter.allocation.end {self.end:g}"
            )
        return self


class AdapterConfig(Section):
    """Small trained matrices or vectors beside the frozen weights of `model.path`. Needs `raytrain[adapters]`."""

    kind: Annotated[Literal["lora", "adalora", "ia3"], Affects.RESULT | Affects.SPEED] = "lora"
    """lora: a product of two matrices of `rank` is added to each target's weight. adalora: the same, with more ranks
    where they matter and fewer where they don't; `rank` is their average. ia3: each target's outputs are multiplied by
    a vector, or its inputs where `feedforward` names it."""
    rank: Annotated[PositiveInt, Affects.RESULT | Affects.SPEED] = 8
    """Inner dimension of the two matrices; of adalora the average that is left at the end."""
    alpha: Annotated[PositiveFloat | None, Affects.RESULT] = None
    """The product is multiplied by alpha / rank, and with adalora by alpha / `allocation.first_rank`; null: twice that
    rank."""
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
    allocation: AllocationConfig = AllocationConfig()
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
        for name in NOT_OF[self.kind]:
            if getattr(self, name) != type(self).model_fields[name].default:  # a run's config.yaml has all fields
                raise ValueError(f"model.adapter.{name} has no effect on model.adapter.kind={self.kind}: leave it out")
        return self

    @model_validator(mode="after")
    def _some_to_remove(self) -> Self:
        if self.kind == "adalora" and self.first_rank <= self.rank:
            raise ValueError(
                f"model.adapter.allocation.first_rank {self.first_rank} must be above model.adapter.rank {self.rank}, "
                "which is what is left of it on average: raise it, or use model.adapter.kind=lora"
            )
        return self

    @property
    def first_rank(self) -> int:
        """The rank of each layer at first."""
        if self.kind != "adalora":
            return self.rank
        return self.allocation.first_rank or math.ceil(1.5 * self.rank)

    @property
    def scale_numerator(self) -> float:
        """`alpha`, or what null stands for."""
        return self.alpha if self.alpha is not None else 2.0 * self.first_rank
