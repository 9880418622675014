"""The reference of a preference loss on a real Ray: computed once, resumed after a kill, shared by a sweep."""

from pathlib import Path
from typing import Any

import pytest
import torch

from raytrain.config import RunConfig
from raytrain.data import reference
from raytrain.data.prepare import find_prepared, prepare
from raytrain.data.prepared import PreparedStore
from tests.chat_templates import TINY_CHAT, chat_tokenizer
from tests.tiny import write_parquet

pytestmark = pytest.mark.usefixtures("local_ray")


def save_model(folder: Path, seed: int) -> str:
    import transformers

    chat_tokenizer(folder)
    torch.manual_seed(seed)
    raw = {key: value for key, value in TINY_CHAT.items() if key != "model_type"}
    config = transformers.LlamaConfig(**raw, initializer_range=0.2)
    transformers.LlamaForCausalLM(config).save_pretrained(str(folder))
    return str(folder)


def column_of(store: PreparedStore) -> list[list[float]]:
    tables = [store.read_row_group("train", group) for group in range(len(store.row_group_starts("train")) - 1)]
    return [pair for table in tables for pair in table["reference"].to_pylist()]


def test_once_for_a_model_and_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reference, "SLICE_ROWS", 32)
    rows = [{"prompt": f"say {i}", "chosen": "ab" * (1 + i % 9), "rejected": "yz" * (1 + i % 7)} for i in range(90)]
    rows.append({"prompt": "say", "chosen": "same", "rejected": "same"})
    train, model = write_parquet(tmp_path / "train.parquet", rows), save_model(tmp_path / "model", 1)

    def config(**task: Any) -> RunConfig:
        raw: dict[str, Any] = {
            "name": "pairs",
            "storage_path": str(tmp_path / "runs"),
            "task": {"kind": "preference", **task},
            "model": {"path": model},
            "data": {"train": {"path": train}, "max_length": 200, "on_error": "quarantine", "max_quarantined": 0.5},
        }
        return RunConfig.model_validate(raw)

    ran: list[int] = []
    run_pass = reference.run_pass

    def dying(slices: Any, function: Any, options: Any) -> Any:
        """The command dies after the first slice."""
        begins = list(slices) if ran else list(slices)[:1]  # others would be done before it dies, or not
        for report in run_pass(begins, function, options):
            ran.append(report["ordinal"])
            yield report
            if len(ran) == 1:
                raise KeyboardInterrupt

    monkeypatch.setattr(reference, "run_pass", dying)
    with pytest.raises(KeyboardInterrupt):
        prepare(config())
    assert find_prepared(config()) is None
    told: list[tuple[int, int | None]] = []
    store = prepare(config(), lambda done, total, _: told.append((done, total)))
    assert told[-1] == (90, 90)
    assert len(ran) == len(set(ran)), "what was done before the kill is not done again"

    base = prepare(config(loss="orpo"))
    assert "reference" not in base.read_row_group("train", 0).column_names
    assert [len(store.read_row_group("train", i)) for i in range(2)] == [
        len(base.read_row_group("train", i)) for i in range(2)
    ]
    assert store.row_group_starts("train").tolist() == base.row_group_starts("train").tolist()
    assert store.manifest.splits["train"].num_quarantined == 1
    assert store.storage.list_names("quarantine") == base.storage.list_names("quarantine")
    store.verify()

    again = [find_prepared(config(loss="ipo")), find_prepared(config(beta=0.5)), prepare(config(beta=0.7))]
    assert {one.root for one in again if one is not None} == {store.root}, "a sweep over the loss shares it"
    task: Any = reference.make_task(config().task, 200)
    model_of = reference.load_reference(config(), task, {})
    first = base.read_row_group("train", 0)
    from tests.tiny import context

    batch = {name: torch.from_numpy(array) for name, array in task.collate(first, context(len(first))).items()}
    expected = task.refer(model_of, batch).tolist()
    for ours, true in zip(column_of(store), expected, strict=False):
        assert ours == pytest.approx(true, abs=1e-3)

    monkeypatch.setattr(reference, "run_pass", run_pass)
    save_model(tmp_path / "model", 2)
    assert find_prepared(config()) is None
    other = prepare(config())
    assert other.root != store.root
    assert other.manifest.content != store.manifest.content
    assert column_of(other)[0] != pytest.approx(column_of(store)[0], abs=1e-3)
