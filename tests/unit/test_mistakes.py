"""P16: forty mistakes that people make in a config, each through `raytrain plan` as they would type it. No Ray.

The message must name the option by its dotted path, and the command must end with exit code 2.
"""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from running import tiny_run, write_config
from tiny import write_conll

from raytrain.cli.main import app
from raytrain.errors import RaytrainError

MISTAKES = [
    # key names
    ("trainig.epochs=2", "trainig: unknown key; did you mean training"),
    ("epochs=2", "epochs: unknown key; did you mean training.epochs"),
    ("training.lr=1e-3", "training.lr: unknown key"),
    ("training.optimizer.lr=1e-3", "training.optimizer.lr: unknown key"),
    ("training.batch_size=8", "did you mean training."),
    ("data.max_len=64", "did you mean data.max_length"),
    ("ray.adress=auto", "did you mean ray.address"),
    ("training.deepspeed.zero_optimisation.overlap_comm=true", "training.deepspeed.zero_optimisation"),
    # values that no field allows
    ("name=my/run", "name: must be letters"),
    ("seed=-1", "seed: must be"),
    ("task.kind=classification", "task.kind: 'classification' is not known"),
    ("data.max_length=0", "data.max_length: must be"),
    ("data.on_error=skip", "data.on_error: must be"),
    ("data.train.format=parquett", "data.train.format: must be 'auto', 'parquet'"),
    ("data.validation={fraction: 1.5}", "data.validation.fraction: must be"),
    ("training.epochs=0", "training.epochs: must be"),
    ("training.optimizer.learning_rate=-1e-4", "training.optimizer.learning_rate: must be"),
    ("training.optimizer=adam", "training.optimizer: expected a section"),
    ("training.schedule.kind=cosin", "training.schedule.kind: must be"),
    ("training.schedule.warmup_ratio=6", "training.schedule.warmup_ratio: must be"),
    ("training.precision=fp8", "training.precision: must be"),
    ("training.zero_stage=4", "training.zero_stage: must be"),
    ("training.dropout=1", "training.dropout: must be"),
    ("workers.cpus=0", "workers.cpus: must be"),
    ("workers.gpu=maybe", "workers.gpu"),
    ("checkpoint.keep_last=0", "checkpoint.keep_last: must be"),
    ("task.labels=[no, no]", "task.labels names 'no' twice"),
    ("task.labels=[]", "task.labels"),
    ("task.labels=[positive, negative, positive]", "task.labels"),
    # fields that do not go together
    ("workers={min: 3, max: 2}", "workers.min 3 is more than workers.max 2"),
    ("workers.max=16", "workers.max 16 is more than the 4 micro-batches of a step"),
    ("training.micro_batch_size=16", "training.micro_batch_size 16 is more than training.global_batch_size 8"),
    ("data.canonical_shards=3", "data.canonical_shards 3 does not divide training.global_batch_size 8"),
    ("training={epochs: 2, max_steps: 10}", "training.epochs and training.max_steps are both given"),
    ("model.path=some/model", "add model.config=null to train the pretrained model"),
    ("data.validation=null training.eval_every_steps=5", "training.eval_every_steps needs data.validation"),
    (
        "training.eval_every_epochs=0.5 training.eval_every_steps=5",
        "training.eval_every_steps=5 and training.eval_every",
    ),
    ("training.communication.overlap=sometimes", "training.communication.overlap"),
    ("data.validation=null training.best_metric=accuracy", "training.best_metric needs data.validation"),
    ("training.early_stopping={metric: loss, mode: max}", "a larger loss is worse"),
    ("training.early_stopping={metric: acuracy}", "training.early_stopping.metric 'acuracy'"),
    ("training.deepspeed={train_batch_size: 4}", "training.deepspeed.train_batch_size is set by raytrain"),
    ("training.deepspeed.zero_optimization.stage=3", "training.deepspeed.zero_optimization.stage"),
    (
        "training.deepspeed.zero_optimization.overlap_com=true",
        "did you mean training.deepspeed.zero_optimization.overlap_comm",
    ),
    (
        "training.gradient_checkpointing=true model.config={model_type: albert, hidden_size: 64}",
        "training.gradient_checkpointing: Transformers has none for AlbertForSequenceClassification",
    ),
    (
        "model.config={model_type: bert, hiden_size: 96}",
        "model.config.hiden_size is not a field of BertConfig; did you",
    ),
    (
        "model.config={model_type: gpt2, intermediate_size: 9}",
        "model.config.intermediate_size is not a field of GPT2",
    ),
    (
        "model.config={model_type: lama}",
        "model.config.model_type: Transformers has no model type 'lama'; did you mean llama?",
    ),
    # what is not there, or not as the config says
    ("data.train.path={folder}/data/trian.parquet", "data.train.path"),
    ("data.test.path={folder}/gone", "data.test.path"),
    ("data.train.path={folder}/half.parquet", "data.train.path"),
    ("data.train.path={folder}/notes.docx", "data.train.format"),
    ("task.label_column=sentiment", "task.label_column"),
    ("model.tokenizer={folder}/data", "model.tokenizer"),
    ("storage_path=/proc/nothing", "storage_path"),
    ("storage_path=s3://AKIA:hush@bucket/runs", "storage_path"),
    ("training.global_batch_size=512 data.drop_last=true", "data.drop_last"),
    # what the hardware or the model can't do
    ("training.precision=fp16 workers.gpu=false", "training.precision fp16"),
    ("training.precision=bf16 --gpu v100", "training.precision bf16"),
    ("workers.gpu=false --gpu a10g", "workers.gpu"),
    ("workers.min=4 workers.max=4 --gpu a10g --nodes 2", "workers.min 4 needs 4 GPUs"),
    ("workers.min=2 workers.max=2 ray.num_cpus=2", "workers.min 2"),
    ("data.max_length=256", "data.max_length 256 is more than the 128 positions"),
    ("data.max_length=2", "data.max_length 2 leaves no room"),
    ("model.config.model_type=brt", "model.config"),
    ("model.config.hidden_size=wide", "model.config"),
    ("model.config.num_attention_heads=3", "model.config"),
    ("model.config.vocab_size=10", "model.config.vocab_size 10"),
]
TOKEN_MISTAKES = [
    ("task.tags_column=ner", "task.tags_column"),
    ("task.case_feature=true model.config={model_type: distilbert, vocab_size: 64}", "task.case_feature"),
    ("training.best_metric=accuracy", "training.best_metric 'accuracy'"),
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("mistakes")
    write_config(tiny_run(folder, "sequence"), folder)
    raw = yaml.safe_load((folder / "sequence.yaml").read_text())
    raw |= {"name": "token", "task": {"kind": "token_classification"}}
    raw["data"] |= {
        split: {"path": write_conll(folder / "data" / f"{split}.conll", 40, 0)} for split in ("train", "test")
    }
    raw["data"]["validation"] = {"fraction": 0.2}
    (folder / "token.yaml").write_text(yaml.safe_dump(raw))
    whole = folder / "data" / "train.parquet"
    (folder / "half.parquet").write_bytes(whole.read_bytes()[:-100])
    (folder / "notes.docx").write_text("text")
    pq.write_table(pa.table({"text": ["a"]}), folder / "unlabelled.parquet")
    return folder


def plan(*words: str) -> str:
    """What `raytrain plan WORDS` says when it refuses."""
    with pytest.raises(RaytrainError) as caught:
        app(["plan", *words], standalone_mode=False)
    assert caught.value.exit_code == 2
    return str(caught.value)


@pytest.mark.parametrize(("words", "expected"), MISTAKES, ids=[words for words, _ in MISTAKES])
def test_a_mistake_is_named_by_its_path(folder: Path, words: str, expected: str) -> None:
    text = plan(str(folder / "sequence.yaml"), *_words(words, folder))
    assert expected in text


@pytest.mark.parametrize(("words", "expected"), TOKEN_MISTAKES, ids=[words for words, _ in TOKEN_MISTAKES])
def test_a_mistake_of_token_classification(folder: Path, words: str, expected: str) -> None:
    assert expected in plan(str(folder / "token.yaml"), *_words(words, folder))


def test_without_a_mistake_it_fits(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("sequence", "token"):
        assert app(["plan", str(folder / f"{name}.yaml")], standalone_mode=False) == 0
        assert "fits: " in capsys.readouterr().out


def _words(words: str, folder: Path) -> list[str]:
    """Split at blanks that begin an override or an option, not at those inside a value."""
    parts: list[str] = []
    for word in words.format_map({"folder": folder}).split(" ") if "{folder}" in words else words.split(" "):
        is_new = (
            word.startswith("--")
            or ("=" in word and not word.startswith(" "))
            or (parts and parts[-1].startswith("--"))
        )
        if is_new or not parts:
            parts.append(word)
        else:
            parts[-1] += f" {word}"
    return parts
