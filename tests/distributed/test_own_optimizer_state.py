"""P10 for an optimizer of the user's: what it keeps is sharded, saved, and loaded at any world size and ZeRO stage."""

from pathlib import Path
from typing import Any

import pytest
from launcher import run_workers
from tiny_engine import make_engine, make_model, train

from raytrain.checkpoint.ranges import FP32, StateRange
from raytrain.config import OptimizerConfig, Precision
from raytrain.engine.zero_state import load_ranges, owned_ranges

ZERO_STAGES = (0, 1, 2, 3)
SAVED_STEPS, NEXT_STEPS = 3, 4
OPTIMIZERS = {
    "momentum_buffer": ("torch.optim:SGD", {"momentum": 0.9}),
    "square_avg": ("torch.optim:RMSprop", {"alpha": 0.9}),
}


class Reader:
    """The ranges of all workers, in memory."""

    def __init__(self, ranges: list[StateRange]):
        self.ranges = ranges

    def load(self, wanted: Any) -> None:
        for one in wanted:
            end, num_found = one.start + len(one.target), 0
            for piece in self.ranges:
                if piece.name == one.name and one.kind in piece.tensors:
                    tensor = piece.tensors[one.kind]
                    low, high = max(one.start, piece.start), min(end, piece.start + len(tensor))
                    if low < high:
                        one.target[low - one.start : high - one.start] = tensor[low - piece.start : high - piece.start]
                        num_found += high - low
            assert num_found == len(one.target), one


def engine_of(kind: str, zero_stage: int, seed: int = 0, precision: Precision = Precision.FP32) -> Any:
    target, args = OPTIMIZERS[kind]
    optimizer = OptimizerConfig(learning_rate=1e-2, target=target, args=args)
    return make_engine(zero_stage, model=make_model(seed), optimizer=optimizer, precision=precision)


def _save() -> dict[Any, Any]:
    """(kind, stage) -> this worker's ranges after three steps, and its share of the losses of all steps."""
    found = {}
    for kind in OPTIMIZERS:
        for zero_stage in ZERO_STAGES:
            engine = engine_of(kind, zero_stage)
            losses = train(engine, range(SAVED_STEPS))
            ranges = owned_ranges(engine)
            found[kind, zero_stage] = ranges, losses + train(engine, range(SAVED_STEPS, SAVED_STEPS + NEXT_STEPS))
            engine.close()
    return found


def _load(saved: dict[Any, list[StateRange]]) -> dict[Any, list[float]]:
    found = {}
    for (kind, source), ranges in saved.items():
        for zero_stage in ZERO_STAGES:
            engine = engine_of(kind, zero_stage, seed=99)
            load_ranges(engine, Reader(ranges), optimizer_step=SAVED_STEPS)
            found[kind, source, zero_stage] = train(engine, range(SAVED_STEPS, SAVED_STEPS + NEXT_STEPS))
            engine.close()
    return found


def _save_bf16() -> bool:
    """Stage 1 in bf16 is another class of DeepSpeed's."""
    is_loaded = True
    for zero_stage in (1, 2, 3):
        engine = engine_of("momentum_buffer", zero_stage, precision=Precision.BF16)
        train(engine, range(SAVED_STEPS))
        ranges = owned_ranges(engine)
        is_loaded &= all(set(piece.tensors) == {FP32, "momentum_buffer"} for piece in ranges if piece.name != "gain")
        is_loaded &= any(piece.tensors["momentum_buffer"].any() for piece in ranges if piece.name != "gain")
        engine.close()
    return is_loaded


def total(losses_of_workers: Any) -> list[float]:
    return [sum(parts) for parts in zip(*losses_of_workers, strict=True)]


@pytest.mark.slow
def test_one_worker_and_two_train_alike_and_any_number_resumes(tmp_path: Path) -> None:
    (alone,), two = run_workers(_save, 1), run_workers(_save, 2)
    undisturbed = {kind: alone[kind, 0][1] for kind in OPTIMIZERS}
    assert undisturbed["momentum_buffer"] != pytest.approx(undisturbed["square_avg"], abs=1e-3), "they are two"
    for (kind, zero_stage), expected in {key: undisturbed[key[0]] for key in alone}.items():
        found = total(worker[kind, zero_stage][1] for worker in two)
        assert found == pytest.approx(expected, abs=1e-6), (kind, zero_stage)
    saved = {(kind, 2): [piece for worker in two for piece in worker[kind, 2][0]] for kind in OPTIMIZERS}
    for world_size in (1, 3):
        results = run_workers(_load, world_size, saved)
        for kind, source, zero_stage in results[0]:
            found = total(worker[kind, source, zero_stage] for worker in results)
            assert found == pytest.approx(undisturbed[kind][SAVED_STEPS:], abs=1e-6), (kind, world_size, zero_stage)


def test_its_state_is_saved_in_sixteen_bits_too() -> None:
    assert run_workers(_save_bf16, 2) == [True, True]
