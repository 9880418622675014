"""data.balance.by with a column of the training files: an epoch has its values as asked for. No Ray."""

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from test_dedup import in_this_process, make_config, texts, write_rows

from raytrain.config import RunConfig, SequenceClassificationConfig
from raytrain.data.copies import copies_per_epoch, describe_epoch
from raytrain.data.lineage import source_of
from raytrain.data.prepare import prepare
from raytrain.data.stages.classes import name_of
from raytrain.data.stages.held_out import _units
from raytrain.data.step_reader import make_order
from raytrain.errors import ConfigError, DataError
from raytrain.tasks import make_task

LANGUAGES = ["en"] * 150 + ["de"] * 40 + [10] * 8 + [None] * 2


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("raytrain.data.prepare.run_pass", in_this_process)


def rows_of(seed: int) -> list[dict[str, Any]]:
    languages = np.random.default_rng(seed).permutation(np.array(LANGUAGES, dtype=object)).tolist()
    return [
        {"text": text, "label": "ab"[i % 2], "lang": language}
        for i, (text, language) in enumerate(zip(texts(len(languages), seed), languages, strict=True))
    ]


def two_files(folder: Path) -> dict[str, Any]:
    return {f"{i}.jsonl": write_rows(folder / "data" / f"{i}.jsonl", rows_of(i)) for i in (1, 2)}


def epoch_of(config: RunConfig, epoch: int = 0) -> Counter[tuple[str, Any]]:
    """How many samples an epoch has by file and language, traced to the rows of the files."""
    store = prepare(config)
    order = make_order(config, store)
    ids = Counter(np.concatenate([order.step_samples(epoch, step) for step in range(order.steps_per_epoch)]).tolist())
    found: Counter[tuple[str, Any]] = Counter()
    for sample, count in ids.items():
        source = source_of(store, "train", sample)
        row = json.loads(Path(source.file).read_text().splitlines()[source.rows[0] - 1])
        found[Path(source.file).name, row["lang"]] += count
    return found


@pytest.mark.parametrize(
    ("to", "expected"),
    [
        ("uniform", {"en": 100, "de": 100, 10: 100, None: 100}),
        ("{en: 30, de: 60, '10': 16, '': 0}", {"en": 30, "de": 60, 10: 16}),
    ],
)
def test_an_epoch_has_each_value_as_asked_for(tmp_path: Path, to: str, expected: dict[Any, int]) -> None:
    paths = list(two_files(tmp_path).values())
    config = make_config(tmp_path, {"train": paths}, f"data.balance={{by: lang, to: {to}}}")
    for epoch in (0, 1):
        by_language: Counter[Any] = Counter()
        for (_, language), count in epoch_of(config, epoch).items():
            by_language[language] += count
        assert by_language == expected
    assert prepare(config).manifest.splits["train"].class_counts == {"": 4, "10": 16, "de": 80, "en": 300}
    assert "'de' " in describe_epoch(config, prepare(config).manifest)[1]


def test_within_weighted_sources(tmp_path: Path) -> None:
    paths = two_files(tmp_path)
    sources = [{"path": path, "weight": weight} for path, weight in zip(paths.values(), (3, 1), strict=True)]
    overrides = ("data.train.path=null", f"data.train.sources={json.dumps(sources)}", "data.balance={by: lang}")
    config = make_config(tmp_path, {"train": list(paths.values())}, *overrides, validation={"fraction": 0.2})
    found = epoch_of(config)
    size = prepare(config).manifest.splits["train"].num_samples
    for name, share in (("1.jsonl", 0.75), ("2.jsonl", 0.25)):
        counts = [count for (file, _), count in found.items() if file == name]
        assert abs(sum(counts) - share * size) <= 1 and max(counts) - min(counts) <= 1


def test_tagged_sentences_by_their_document(tmp_path: Path) -> None:
    rows = [{"tokens": ["w", "x"], "tags": ["O", "B-LOC"], "lang": "en" if i % 9 else "de"} for i in range(90)]
    path = tmp_path / "data" / "a.jsonl"
    path.parent.mkdir()
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = "task={kind: token_classification, document_context: false}"
    config = make_config(tmp_path, {"train": str(path)}, task, "data.balance={by: lang}")
    assert epoch_of(config) == {("a.jsonl", "en"): 45, ("a.jsonl", "de"): 45}


def test_what_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = two_files(tmp_path)["1.jsonl"]

    def refused(balance: str) -> str:
        config = make_config(tmp_path, {"train": path}, f"data.balance={balance}")
        with pytest.raises((ConfigError, DataError)) as error:
            copies_per_epoch(config, prepare(config).manifest)
        return str(error.value)

    message = refused("{by: lng}")
    assert "data.balance.by 'lng': " in message and "has no such column; it has text" in message
    assert "data.balance.to has no count for ''" in refused("{by: lang, to: {en: 1, de: 1, '10': 1}}")
    assert "'fr', which is not a value of 'lang'" in refused("{by: lang, to: {en: 1, de: 1, '10': 1, '': 1, fr: 1}}")
    monkeypatch.setattr("raytrain.data.stages.classes.MOST_CLASSES", 30)
    assert "data.balance.by 'text' has more than 30 different values" in refused("{by: text}")


def test_a_number_is_the_same_value_and_unit_however_it_is_stored() -> None:
    """pandas writes integers beside missing values as decimals."""
    assert [name_of(value) for value in (7, 7.0, 7.5, True, "7", None)] == ["7", "7", "7.5", "true", "7", ""]
    task = make_task(SequenceClassificationConfig(kind="sequence_classification"), 32)
    integers, decimals = (
        pa.table({"text": ["a", "b"], "author": pa.array([7, 8], kind)}) for kind in (pa.int64(), pa.float64())
    )
    assert _units(task, integers, "author") == _units(task, decimals, "author") == ["group 7", "group 8"]
