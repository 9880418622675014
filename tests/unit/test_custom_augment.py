"""data.augment.custom: a function of the user's own, and what is said of its mistakes. No Ray."""

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from running import tiny_run
from tiny import context

from raytrain.data.custom_augment import CustomAugment
from raytrain.errors import ConfigError
from raytrain.runs.preflight import resolve
from raytrain.runs.resume import changed_keys

NUMBERS = itertools.count()
GOOD = """
def change(sample, generator):
    sample["input_ids"] = sample["input_ids"][:1] + [int(generator.integers(5, 30))] + sample["input_ids"][1:]
    return sample
"""
SAMPLES = pa.table(
    {"input_ids": pa.array([[2, 5, 3], [2, 6, 7, 3]], pa.list_(pa.int32())), "labels": pa.array([0, 1], pa.int64())}
)


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Write a module of another name each time, since imported ones stay; returns the function's dotted name."""
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> str:
        name = f"own_augment_{next(NUMBERS)}"
        (tmp_path / f"{name}.py").write_text(text)
        return f"{name}:change"

    return write


def test_it_is_called_with_the_random_numbers_of_the_sample(write: Any) -> None:
    made = CustomAugment(write(GOOD), None, 8)
    ids = np.array([9, 4])
    together = made(SAMPLES, context(2, ids=ids, epoch=1)).to_pylist()
    assert [len(row["input_ids"]) for row in together] == [4, 5]
    assert made(SAMPLES.take([1]), context(1, ids=ids[1:], epoch=1)).to_pylist() == together[1:]
    assert made(SAMPLES, context(2, ids=ids, epoch=2)).to_pylist() != together
    assert made(SAMPLES, context(2)).schema == SAMPLES.schema


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("return None", "for training sample 9 it returned a NoneType, and not a dict"),
        ("return {'input_ids': [2]}", "it returned a dict of 'input_ids', and not of 'input_ids', 'labels'"),
        ("return {**sample, 'input_ids': []}", r"it returned 0 tokens, and not 1 to 8 \(data.max_length\)"),
        ("return {**sample, 'input_ids': [2] * 9}", r"it returned 9 tokens, and not 1 to 8"),
        ("return {**sample, 'input_ids': 'text'}", "it returned input_ids that is not a list"),
        ("return {**sample, 'input_ids': ['a']}", "it returned a value of another type"),
        ("return sample['nothing']", r"it failed: KeyError: 'nothing' \(.*own_augment_\d+.py, line 3\)"),
    ],
)
def test_what_it_does_wrong_is_said(write: Any, body: str, message: str) -> None:
    made = CustomAugment(write(f"\ndef change(sample, generator):\n    {body}\n"), None, 8)
    with pytest.raises(ConfigError, match=rf"data.augment.custom own_augment_\d+:change: .*{message}"):
        made(SAMPLES, context(2, ids=np.array([9, 4])))


def test_tags_must_stay_beside_their_tokens(write: Any) -> None:
    samples = pa.table({name: pa.array([[1, 2, 3]], pa.list_(pa.int32())) for name in ("input_ids", "labels")})
    samples = samples.append_column("sentence_lengths", pa.array([[1]], pa.list_(pa.int32())))
    made = CustomAugment(write(GOOD), None, 8)
    with pytest.raises(ConfigError, match="lists of different lengths: input_ids 4, labels 3"):
        made(samples, context(1))


def test_its_file_is_part_of_the_experiment(write: Any, tmp_path: Path) -> None:
    target = write(GOOD)
    resolved = resolve(tiny_run(tmp_path, "a", f"data.augment.custom={target}"))
    augment = resolved.data.augment
    assert augment is not None and augment.custom_source is not None
    CustomAugment(target, augment.custom_source, 8)
    (tmp_path / f"{target.partition(':')[0]}.py").write_text(GOOD + "\n# another\n")
    with pytest.raises(ConfigError, match="are not those that the run was started with"):
        CustomAugment(target, augment.custom_source, 8)
    again = resolve(tiny_run(tmp_path, "a", f"data.augment.custom={target}"))
    changes = changed_keys(resolved.model_dump(mode="json"), again.model_dump(mode="json"))
    assert [key for key, _, _ in changes] == ["data.augment.custom_source"], "so the run is not resumed"


@pytest.mark.parametrize(
    ("text", "function", "message"),
    [
        (GOOD, "chance", "has no 'chance'; did you mean change?"),
        ("change = 3", "change", "is not a function"),
        ("import nothing_like_it", "change", "importing .* failed: No module named 'nothing_like_it'"),
        ("1 / 0", "change", "failed: ZeroDivisionError"),
    ],
)
def test_a_function_that_can_not_be_had(write: Any, text: str, function: str, message: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.augment\.custom .*{message}".replace("?", r"\?")):
        CustomAugment(write(text).replace(":change", f":{function}"), None, 8)


def test_a_mistake_is_found_before_anything_starts(write: Any, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="data.augment.custom: must be a function, as package.module:function"):
        tiny_run(tmp_path, "a", "data.augment.custom=my_function")
    with pytest.raises(ConfigError, match="data.augment.custom not_there:f: there is no module 'not_there'"):
        resolve(tiny_run(tmp_path, "a", "data.augment.custom=not_there:f"))
