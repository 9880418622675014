"""`raytrain export`: what is written answers like the trained model, or is not written."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from running import run_cli
from saved_models import model_config, save_best
from tiny import make_reviews

import raytrain
from raytrain.errors import ConfigError, TrainingError
from raytrain.inference import export as module
from raytrain.inference.export import ExportRequest, export_model
from raytrain.inference.formats import DType, Format
from raytrain.models.card import without_folders
from raytrain.storage import Storage

STATE = {"labels": ["negative", "positive"]}
TAGS = {"labels": ["B-PER", "I-PER", "O"]}


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("rows") / "rows.parquet"
    pq.write_table(pa.Table.from_pylist(make_reviews(40, 0)), path)
    return path


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory, rows: Path) -> str:
    """A best/ whose own data is `rows`."""
    folder = tmp_path_factory.mktemp("reviews")
    config = model_config(folder, {"kind": "sequence_classification", **STATE}, validation={"path": str(rows)})
    return save_best(config, STATE, folder)


def request(out: Path, **options: Any) -> ExportRequest:
    return ExportRequest(str(out), **options)


@pytest.mark.parametrize("dtype", [DType.FP32, DType.BF16, DType.FP16])
def test_files_of_transformers(reviews: str, rows: Path, tmp_path: Path, dtype: DType) -> None:
    from safetensors.torch import load_file
    from transformers import AutoModelForSequenceClassification

    found = export_model(reviews, request(tmp_path / "out", dtype=dtype))
    assert found.num_rows == 40 and found.agreement > 0.9
    weights = load_file(tmp_path / "out" / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {getattr(torch, module.DTYPES[dtype])}
    loaded = AutoModelForSequenceClassification.from_pretrained(tmp_path / "out")
    assert loaded.dtype == getattr(torch, module.DTYPES[dtype])
    texts = pq.read_table(rows)["text"].to_pylist()
    ours, theirs = (raytrain.load(place)(texts, probabilities=True) for place in (reviews, tmp_path / "out"))
    difference = max(abs(a["probability"] - b["probability"]) for a, b in zip(ours, theirs, strict=True))
    assert difference < (1e-6 if dtype == DType.FP32 else 0.05)
    facts = json.loads((tmp_path / "out" / "raytrain.json").read_text())
    assert facts["export"]["dtype"] == str(dtype) and facts["export"]["rows_of"] == str(rows)
    assert "## Export" in (tmp_path / "out" / "README.md").read_text()


def test_a_graph_of_any_size(reviews: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The graph is traced at one size: at others it must answer alike."""
    import onnxruntime

    code, printed = run_cli("export", reviews, str(tmp_path / "onnx"), "--format", "onnx", "--rows", "30")
    assert code == 0, printed
    assert "compared with the trained model on 30 rows (60 logits)" in printed
    texts = pq.read_table(rows)["text"].to_pylist()
    trained, graph = raytrain.load(reviews), raytrain.load(tmp_path / "onnx")
    for chosen in (texts[:1], texts):
        ours, theirs = trained(chosen, probabilities=True), graph(chosen, probabilities=True)
        assert [one["predicted_label"] for one in ours] == [one["predicted_label"] for one in theirs]
        np.testing.assert_allclose(*([one["probability"] for one in side] for side in (ours, theirs)), atol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "onnx" / "model.onnx"))
    assert [one.name for one in session.get_outputs()] == ["logits"]
    # Nothing was trained: many logits are nearly equal, which --tolerance is for.
    small = export_model(reviews, request(tmp_path / "small", format=Format.ONNX, dtype=DType.INT8, tolerance=0.1))
    assert small.agreement >= 0.9
    assert (tmp_path / "small" / "model.onnx").stat().st_size < (tmp_path / "onnx" / "model.onnx").stat().st_size
    with pytest.raises(ConfigError, match="is an export in the format onnx: give the run"):
        export_model(str(tmp_path / "onnx"), request(tmp_path / "again"))


def test_tags(tmp_path: Path) -> None:
    task = {"kind": "token_classification", "labels": TAGS["labels"]}
    best = save_best(model_config(tmp_path, task), TAGS, tmp_path)
    sentences = tmp_path / "sentences.jsonl"
    lines = [{"tokens": text["text"].split()} for text in make_reviews(20, 1)]
    sentences.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ConfigError, match=r"train.parquet, which can't be read: .*Name other rows .* with --data FILE"):
        export_model(best, request(tmp_path / "out"))
    found = export_model(best, request(tmp_path / "out", format=Format.ONNX, source=str(sentences)))
    assert found.num_outputs > 3 * 20 and found.agreement == 1.0
    words = lines[0]["tokens"]
    assert raytrain.load(best)([words]) == raytrain.load(tmp_path / "out")([words])


def test_one_that_differs_is_not_written(reviews: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(module.DTYPES, DType.FP16, "float8_e4m3fn")  # far fewer bits than the name says
    with pytest.raises(
        TrainingError, match=r"differs from the trained one on 40 rows: by .* allowed: 0.02 at most.*--tolerance"
    ):
        export_model(reviews, request(tmp_path / "out", dtype=DType.FP16))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dtype": DType.INT8}, "--dtype int8 is for --format onnx"),
        ({"format": Format.ONNX, "dtype": DType.BF16}, "an ONNX graph is written in fp32 or int8"),
        ({"tolerance": -1.0}, "--tolerance -1: give a number above 0, such as 0.0001"),
        ({"license": "Apache 2.0"}, "--license 'Apache 2.0': give the identifier that the Hub has for it"),
        ({"language": "English"}, "--language 'English': .*such as en"),
        ({"push": "reviews"}, "--push 'reviews': give OWNER/NAME"),
        ({"push": "ada/reviews"}, "--push needs a token that may write: set HF_TOKEN in the environment"),
        ({"source": "nowhere.csv"}, "nowhere.csv, which can't be read"),
        ({"overrides": ("data.max_length=3",)}, "data.max_length can't be changed"),
    ],
)
def test_mistakes(
    reviews: str, tmp_path: Path, options: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ConfigError, match=message):
        export_model(reviews, request(tmp_path / "out", **options))
    assert not list(tmp_path.iterdir())


def test_what_is_there_is_kept(reviews: str, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    with pytest.raises(ConfigError, match="is there already"):
        export_model(reviews, request(tmp_path / "mine"))
    with pytest.raises(ConfigError, match="not an export of raytrain"):
        export_model(reviews, request(tmp_path / "mine", overwrite=True))
    with pytest.raises(ConfigError, match="a trained model that is not an export"):
        export_model(reviews, request(Path(reviews), overwrite=True))
    export_model(reviews, request(tmp_path / "out"))
    export_model(reviews, request(tmp_path / "out", dtype=DType.FP16, overwrite=True))
    assert json.loads((tmp_path / "out" / "raytrain.json").read_text())["export"]["dtype"] == "fp16"


def test_the_hub_is_asked_before_any_work(reviews: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_" + "a1" * 17)
    monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    pushed = request(tmp_path / "out", push="ada/reviews")
    with pytest.raises(ConfigError, match=r"127.0.0.1:9 can't be reached, or does not accept HF_TOKEN") as raised:
        export_model(reviews, pushed)
    assert "a1a1" not in str(raised.value) and not list(tmp_path.iterdir())
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(ConfigError, match="HF_HUB_OFFLINE is set"):
        export_model(reviews, pushed)


def test_the_card_of_an_export(rows: Path, tmp_path: Path) -> None:
    """An export of an export has it all, too."""
    import yaml

    config = model_config(tmp_path, {"kind": "sequence_classification", **STATE}, validation={"path": str(rows)})
    best = save_best(config, STATE, tmp_path)
    line = {"step": 1, "split": "test", "time": 1.0, "accuracy": 0.75, "loss": 0.5}
    (tmp_path / "evals.jsonl").write_text(json.dumps(line) + "\n")
    export_model(best, request(tmp_path / "one", license="apache-2.0", language="en"))
    export_model(str(tmp_path / "one"), request(tmp_path / "two", dtype=DType.BF16))
    for name in ("one", "two"):
        page = (tmp_path / name / "README.md").read_text()
        front = yaml.safe_load(page.split("---")[1])
        assert (front["license"], front["language"]) == ("apache-2.0", "en")
        (result,) = front["model-index"][0]["results"]
        assert result["dataset"] == {"name": "answers (test)", "type": "0123", "split": "test"}
        assert {"type": "accuracy", "value": 0.75} in result["metrics"]
        weights = Storage(str(tmp_path / name)).sha256("model.safetensors")
        assert f"`model.safetensors`: SHA-256 `{weights}`" in page and "At most 128 tokens" in page
        assert str(tmp_path) not in page
    assert "Measured with the trained model in fp32" in page
    facts = without_folders(json.loads((tmp_path / "two" / "raytrain.json").read_text()))
    assert str(rows.parent) not in json.dumps(facts) and facts["export"]["rows_of"] == rows.name


def test_a_remote_model_is_copied_once(
    reviews: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copies = []
    monkeypatch.setattr(
        Storage, "local_path", lambda self, name="": None if self.path_of() == reviews else self._full(name)
    )
    copy = Storage.local_copy

    def counted(self: Storage, name: str) -> str:
        copies.append(self.path_of(name))
        return copy(self, name)

    monkeypatch.setattr(Storage, "local_copy", counted)
    export_model(reviews, request(tmp_path / "out", source=str(rows)))
    assert copies.count(reviews) == 1 and Path(reviews, "config.json").exists()
