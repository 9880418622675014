"""Population-based training: which trials continue from which models. Pure."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.config.io import parse_config
from raytrain.errors import ConfigError
from raytrain.tuning.population.explore import Member, exchange
from raytrain.tuning.population.pb2 import Gain
from raytrain.tuning.space.space import Space, check_space, draw_values, overrides_of

LR, KIND, MIN_RATIO = "training.optimizer.learning_rate", "training.schedule.kind", "training.schedule.min_ratio"
RAW: dict[str, Any] = {
    "name": "a",
    "task": {"kind": "sequence_classification"},
    "model": {"path": "some/model"},
    "data": {"train": {"path": "a.parquet"}, "validation": {"fraction": 0.1}},
}
PARAMETERS = {
    LR: {"kind": "loguniform", "low": 1e-5, "high": 1e-3},
    "training.optimizer.weight_decay": {"kind": "quniform", "low": 0.0, "high": 0.1, "step": 0.02},
    "training.schedule.warmup_steps": {"kind": "randint", "low": 1, "high": 9},
    "training.optimizer.beta2": {"kind": "normal", "mean": 0.99, "deviation": 0.01, "low": 0.9, "high": 0.999},
    KIND: {"kind": "choice", "values": ["linear", "cosine", "constant"]},
    MIN_RATIO: {"kind": "uniform", "low": 0.1, "high": 0.5, "when": {KIND: ["linear", "cosine"]}},
}


def population(parameters: dict[str, Any] = PARAMETERS, *, every_steps: int = 10, **more: Any) -> Space:
    scheduler = {"kind": "pbt", "every_steps": every_steps, **more.pop("scheduler", {})}
    return Space.model_validate({"parameters": parameters, "scheduler": scheduler, **more})


@given(
    values=st.lists(st.floats(-9, 9) | st.just(-math.inf), min_size=2, max_size=24),
    quantile=st.floats(0.01, 0.5),
    generation=st.integers(0, 20),
)
def test_the_worst_go_on_from_the_best(values: list[float], quantile: float, generation: int) -> None:
    """Each value that comes out is a possible one, and no trial is both replaced and gone on from."""
    space = population(scheduler={"quantile": quantile})
    members = {f"t{index:02d}": Member(value, draw_values(space, index)) for index, value in enumerate(values)}
    changes = exchange(space, generation, members)
    assert changes == exchange(space, generation, dict(reversed(members.items())))
    sources = {change.source for change in changes.values()}
    assert 1 <= len(changes) <= max(1, len(values) * quantile)
    assert not sources & set(changes)
    untouched = set(members) - set(changes)
    assert max(members[name].value for name in changes) <= min(members[name].value for name in untouched)
    for change in changes.values():
        parse_config(RAW, overrides_of(change.values))
        assert (MIN_RATIO in change.values) == (change.values[KIND] != "constant")
        for key, value in change.values.items():
            domain = space.parameters[key]
            if hasattr(domain, "low"):
                assert domain.low <= value <= domain.high + 1e-9


def test_a_move_is_a_small_one() -> None:
    space = population(scheduler={"resample": 0.0})
    members = {f"t{index}": Member(index, draw_values(space, index)) for index in range(8)}
    for generation in range(20):
        for change in exchange(space, generation, members).values():
            before = members[change.source].values
            ratio = change.values[LR] / before[LR]
            assert ratio == pytest.approx(0.8) or ratio == pytest.approx(1.2) or change.values[LR] in (1e-5, 1e-3)
            assert (
                abs(change.values["training.optimizer.weight_decay"] - before["training.optimizer.weight_decay"])
                < 0.021
            )
            assert abs(change.values["training.schedule.warmup_steps"] - before["training.schedule.warmup_steps"]) <= 2


def test_values_are_drawn_anew_now_and_then() -> None:
    space = population({LR: PARAMETERS[LR]}, scheduler={"resample": 1.0})
    members = {f"t{index}": Member(index, draw_values(space, index)) for index in range(8)}
    changes = [change for generation in range(30) for change in exchange(space, generation, members).values()]
    assert np.std([math.log(change.values[LR] / members[change.source].values[LR]) for change in changes]) > 0.5


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            {"parameters": {"training.global_batch_size": {"kind": "choice", "values": [8, 16]}}},
            "can't change training.g",
        ),
        ({"repeats": 2}, "repeats 1"),
        ({"searcher": {"kind": "tpe"}}, "searcher.kind random"),
        ({"budget": {"trials": 1}}, "budget.trials of 2 or more"),
    ],
)
def test_what_a_population_can_not_do(change: dict[str, Any], words: str) -> None:
    whole = {"parameters": PARAMETERS, "scheduler": {"kind": "pbt", "every_steps": 5}, **change}
    with pytest.raises(ValueError, match=words):
        Space.model_validate(whole)


def test_a_generation_ends_with_an_evaluation() -> None:
    assert check_space(population(every_steps=40), RAW, []).training.eval_every_steps == 40
    assert (
        check_space(population(every_steps=40), RAW, ["training.eval_every_steps=20"]).training.eval_every_steps == 20
    )
    with pytest.raises(ConfigError, match="every_steps 40 is not a multiple of training.eval_every_steps 30"):
        check_space(population(every_steps=40), RAW, ["training.eval_every_steps=30"])
    instead = check_space(population(every_steps=40), RAW, ["training.eval_every_epochs=0.5"]).training
    assert (instead.eval_every_steps, instead.eval_every_epochs) == (40, None), "generations are counted in steps"


def test_bandits_learn_where_trials_gain() -> None:
    """What helps moves with time; proposals follow it, and differ from each other."""
    parameters = {LR: PARAMETERS[LR], "training.optimizer.weight_decay": {"kind": "uniform", "low": 0.0, "high": 0.1}}
    space = population(parameters, scheduler={"kind": "pb2", "quantile": 0.5, "doubt": 0.0})
    rate = space.parameters[LR]

    def gain(values: dict[str, Any], generation: int) -> float:
        return -((rate.unit(values[LR]) - (0.9 if generation < 4 else 0.2)) ** 2)

    drawn = [
        (generation, draw_values(space, 8 * generation + member)) for generation in range(1, 9) for member in range(8)
    ]
    gains = [Gain(generation, values, gain(values, generation)) for generation, values in drawn]
    members = {f"t{index}": Member(index, draw_values(space, index)) for index in range(8)}
    changes = exchange(space, 8, members, gains)
    assert len(changes) == 4
    assert all(abs(rate.unit(change.values[LR]) - 0.2) < 0.15 for change in changes.values())
    assert len({change.values[LR] for change in changes.values()}) == 4
    assert changes == exchange(space, 8, members, gains)


def test_bandits_choose_numbers_only() -> None:
    with pytest.raises(ValueError, match="scheduler.kind pb2 needs numeric ranges"):
        population(scheduler={"kind": "pb2"})
