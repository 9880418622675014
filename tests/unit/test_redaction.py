"""Credentials reach no file, tracker or message. Both corpora grow with each find."""

import ast
import time
from pathlib import Path
from typing import Any

import pytest
from running import tiny_run, write_config

from raytrain import redaction
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError, RaytrainError, first_line
from raytrain.redaction import find_credential, redact, redact_tree
from raytrain.runs.provenance import command_line
from raytrain.storage import Storage
from raytrain.tracking.base import TrackedRun
from raytrain.training.outcome import Failed
from raytrain.training.records import JsonlWriter

# Each holds the word HUSH, or one of SHAPED, which must not be left.
MUST_GO = [
    # the user's part of a URL
    "https://HUSH@host/mlflow",
    "https://user:HUSH@host/mlflow",
    "https://user%3AHUSH@host",
    "s3://AKIA:HUSH@bucket/runs",
    "s3://AKIA:x/HUSH@bucket/a@x",
    "s3://id:ab/HUSH+x@bucket/runs: denied",
    "abfs://:HUSH@account/a.parquet",
    "abfs://container:HUSH@account.dfs.core.windows.net/runs",
    "postgresql+psycopg2://user:HUSH@db:5432/mlflow",
    "mysql://root:HUSH@db/mlflow",
    "git+https://HUSH@github.com/a/b",
    "redis://:HUSH@head:6379/0",
    "HTTPS://HUSH@HOST",
    "[a.parquet, 'abfs://:HUSH@account/a.parquet']",
    "failed twice: https://HUSH@a and https://HUSH@b",
    # its query
    "https://b.s3.amazonaws.com/x?X-Amz-Signature=HUSH",
    "https://b.s3.amazonaws.com/x?X-Amz-Credential=a&X-Amz-Security-Token=HUSH&X-Amz-Date=1",
    "https://storage.googleapis.com/b/x?X-Goog-Signature=HUSH",
    "https://host/x?passwd=HUSH",
    "https://host/x?pwd=HUSH&a=1",
    "https://host/x?api%5Fkey=HUSH",
    "https://host/x?%73ig=HUSH",
    "mssql+pyodbc:///?odbc_connect=Driver%3DODBC%3BUID%3Dme%3BPWD%3DHUSH",
    "mssql+pyodbc:///?odbc_connect=DRIVER%253DODBC%253BPWD%253DHUSH",
    "abfs://c@a.dfs.core.windows.net/p?sv=1&sig=HUSH&se=2",
    "abfs://c@a/runs?sig=HUSH: no",
    "s3://bucket/a.parquet?access_key=a&secret_key=HUSH",
    "s3://bucket/a?a=1;sig=HUSH",
    "https://host/cb#access_token=HUSH",
    "gs://b/x?key=HUSH",
    # pairs
    "task.args.api_key=HUSH",
    "raytrain train x.yaml 'task.args.password=HUSH two' seed=1",
    "error: DefaultEndpointsProtocol=https;AccountName=a;AccountKey=HUSH;EndpointSuffix=core.windows.net",
    "AWS_SECRET_ACCESS_KEY=HUSH",
    "Driver=ODBC;UID=me;PWD=HUSH",
    'could not log in with {"user": "me", "password": "HUSH"}',
    "run --token HUSH --x",
    "run --api-key HUSH",
    "Authorization: Bearer HUSH-0123456789",
    "{'Authorization': 'Basic HUSH0123456789=='}",
    "refused: bearer HUSH-0123456789",
    "PGPASSWORD=HUSH psql",
    "task.args.mysql_password=HUSH",
]
SHAPED = [
    "AKIAIOSFODNN7EXAMPLE",
    "ghp_0123456789abcdefghijABCDEFGHIJ012345",
    "github_pat_11ABCDEFG0abcdefghijkl_mnopqrstuv",
    "hf_abcdefghijABCDEFGHIJabcdefghijABCD",
    "glpat-abcdefghij0123456789",
    "xoxb-123456789012-abcdefghijkl",
    "sk-proj-abcdefghij0123456789ABCDEFGHIJ",
    "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.abc-def_ghi",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIE\n-----END RSA PRIVATE KEY-----",
]
MUST_STAY = [
    "s3://bucket/a:b@c/runs",
    "abfs://container@account.dfs.core.windows.net/runs",
    "s3://bucket/a.parquet?endpoint_override=localhost:9000&design=1",
    "hdfs://user@host:8020/a@b",
    "hdfs://host:8020/a@b",
    "postgresql://me@db/mlflow",
    "sqlite:///runs/me@home/mlflow.db",
    "https://user.github.io/x?page=2&sort=assigned#section-1",
    "s3://bucket/tokens=1/secret=no/part.parquet",
    "s3://bucket/token=abc/secret=no/part.parquet",
    "https://host/x?tokenizer=bert&max_tokens=5",
    "basic state-of-the-art methods, and the bearer of-good-news-and-more",
    "write to me@example.com, or to a:b@c",
    "ssh://git@github.com/a/b",
    "seed=7 training.epochs=3 model.path=null",
    "model.config.pad_token_id=0 model.config.eos_token=</s> task.args.image_token=<image>",
    "task.tokens_column=tokens task.text_column=password",
    "data.max_length: 512 tokens; token: must be text",
    "training.deepspeed.comet.api_key: by its name this is a credential",
    "task.args.api_key=${MY_KEY} password=null",
    "credentials=/etc/keys/service.json",
    "max_new_tokens=16 token_type_ids=none num_tokens=1234567890123456789",
    "sk-learn and basic classification of sentences",
    "the model sha256:0123456789abcdef0123456789abcdef is not the one that the run was started with",
]


@pytest.mark.parametrize("text", MUST_GO)
def test_a_credential_is_hidden(text: str) -> None:
    clean = redact(text)
    assert "HUSH" not in clean and "***" in clean, clean
    assert redact(clean) == clean, "what is clean stays as it is"


@pytest.mark.parametrize("key", SHAPED, ids=[key[:8] for key in SHAPED])
def test_a_key_is_known_by_its_shape(key: str) -> None:
    assert redact(f"no access with {key} to s3://bucket") == "no access with *** to s3://bucket"
    assert find_credential({"task": {"args": {"other": [key]}}}) == ("task.args.other", "value")


@pytest.mark.parametrize("text", MUST_STAY)
def test_what_is_not_a_credential_stays(text: str) -> None:
    assert redact(text) == text


@pytest.mark.parametrize(
    "piece",
    [
        "s3://" + ":a" * 9,
        ":a",
        "a.b-",
        "-",
        "a=",
        "'a': '",
        "--a ",
        "a=b&",
        "a://",
        "://:",
        "-----BEGIN PRIVATE KEY-----",
    ],
)
def test_a_long_text_is_no_burden(piece: str) -> None:
    """Other programs print what they like. Work in the square of the length would take minutes here."""
    for text in (piece * (60_000 // len(piece)), "https://h/?" + piece * (60_000 // len(piece))):
        started_at_s = time.process_time()
        redact(text)
        assert time.process_time() - started_at_s < 2


def test_values_of_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A variable that the shell has expanded is a credential under any name."""
    monkeypatch.setenv("SOME_SERVICE_TOKEN", "s3cr3t-value-of-it")
    monkeypatch.setenv("SERVICE_PASSWORD", "postgres")  # a word, which a path may have too
    monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(tmp_path))
    assert redact(f"s3cr3t-value-of-it at /data/postgres and {tmp_path}") == f"*** at /data/postgres and {tmp_path}"
    assert find_credential({"task": {"args": {"auth": "s3cr3t-value-of-it"}}}) == ("task.args.auth", "value")


def test_it_imports_nothing_of_raytrain() -> None:
    """`raytrain doctor` sends it to nodes that may have no raytrain."""
    tree = ast.parse(Path(redaction.__file__).read_text())
    names = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not [name for name in names if name and name.startswith("raytrain")]


TREE: dict[str, Any] = {
    "comet": {"api_key": "HUSH", "workspace": "team"},
    "passwords": ["a"],
    "credentials": {"user": "HUSH", "more": ["HUSH", {"x": "HUSH"}]},
    "pin": {"password": 12345, "max_tokens": 5, "token": 7},
    "accountKey": "HUSH",
    "hubToken": "HUSH",
    "my_token": "HUSH-0123456789abcdef",
    "url": "https://HUSH@host",
    "labels": {"password": 2.0, "secret": True, "token": None},
    "eos_token": "</s>",
}


def test_nested_values_are_hidden_by_their_keys() -> None:
    clean = redact_tree(TREE)
    assert "HUSH" not in str(clean) and "12345" not in str(clean)
    for key in ("labels", "passwords", "eos_token"):
        assert clean[key] == TREE[key]
    assert (clean["comet"]["workspace"], clean["pin"]["max_tokens"], clean["pin"]["token"]) == ("team", 5, 7)
    assert find_credential(clean) is None


REFUSED = [
    ("task.args.api_key=HUSH", "by its name"),
    ("task.args.login.password=HUSH", "by its name"),
    ("task.args.keys={openai_api_key: HUSH}", "by its name"),
    ("task.args.password=123456", "by its name"),
    ("task.args.other=AKIAIOSFODNN7EXAMPLE", "by its value"),
    ("task.args.url='https://HUSH@host'", "this URI holds credentials"),
    ("training.deepspeed.comet.api_key=HUSH", "by its name"),
    ("training.deepspeed={comet: {enabled: true, api_key: HUSH}}", "by its name"),
    ("training.communication.environment.NCCL_AUTH_TOKEN=HUSH", "by its name"),
    ("model.config.hub_token=HUSH", "by its name"),
    ("tracking.mlflow.tracking_uri='https://HUSH@host'", "this URI holds credentials"),
    ("tracking.mlflow.tracking_uri='mssql+pyodbc:///?odbc_connect=PWD%3DHUSH'", "this URI holds credentials"),
    ("data.train.path='https://h/x?passwd=HUSH'", "this URI holds credentials"),
    ("data.train.path=[a, 'https://h/x?X-Amz-Signature=HUSH']", "this URI holds credentials"),
]


@pytest.mark.parametrize(
    ("override", "variable"),
    [
        ("tracking.wandb.api_key=HUSH", "WANDB_API_KEY"),
        ("tracking.wandb={api_key: HUSH}", "WANDB_API_KEY"),
        ("tracking.mlflow.password=HUSH", "MLFLOW_TRACKING_PASSWORD"),
        ("tracking.mlflow.tracking_uri='https://me:HUSH@host'", "MLFLOW_TRACKING_PASSWORD"),
        ("model.token=HUSHHUSHHUSHHUSH", "HF_TOKEN"),
    ],
)
def test_the_variable_that_is_read_instead_is_named(tmp_path: Path, override: str, variable: str) -> None:
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, [override])
    message = str(caught.value)
    assert f"set {variable.partition('_PASS')[0][:6]}" in message and variable in message and "HUSH" not in message
    assert "`raytrain submit` sends no variables along" in message
    assert "AWS_" not in message and "a task of your own" not in message


@pytest.mark.parametrize(("override", "reason"), REFUSED)
def test_a_config_with_a_credential_is_refused_without_repeating_it(tmp_path: Path, override: str, reason: str) -> None:
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    with pytest.raises(ConfigError) as caught:
        parse_config(raw, [override, "training.epochs=0"])
    assert reason in str(caught.value)
    assert "HUSH" not in str(caught.value) and "AKIA" not in str(caught.value) and "123456" not in str(caught.value)


def test_a_space_with_a_credential_is_refused() -> None:
    from raytrain.tuning.space.space import parse_space

    with pytest.raises(ConfigError, match="parameters.task.args.api_key") as caught:
        parse_space({"parameters": {"task.args.api_key": {"kind": "choice", "values": ["HUSH", "x"]}}}, "space.yaml")
    assert "HUSH" not in str(caught.value)


def test_a_reference_to_a_variable_is_no_credential(tmp_path: Path) -> None:
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    raw["task"] = {"kind": "python", "target": "a.b:C"}
    config = parse_config(raw, ["task.args.api_key=${MY_KEY}"])
    assert config.task.args == {"api_key": "${MY_KEY}"}


def test_every_writer_redacts(tmp_path: Path) -> None:
    """Messages of errors, of other programs and of outcomes; rows of the logs; commands; what trackers are told."""
    text = "can't open https://HUSH@host/x"
    assert "HUSH" not in str(RaytrainError(text)) + first_line(text) + Failed(RaytrainError.code, text).message
    command = command_line(["/x/raytrain", "resume", "s3://id:HUSH@bucket/run", "task.args.password=HUSH"])
    assert command is not None and "HUSH" not in command
    writer = JsonlWriter(Storage(str(tmp_path)), "events.jsonl")
    writer.write({"kind": "failure", "cause": text, "list": [{"password": "HUSH", "text": text}]})
    writer.close()
    assert b"HUSH" not in (tmp_path / "events.jsonl").read_bytes()
    config = tiny_run(tmp_path, "a")
    written = config.model_copy(update={"model": config.model.model_copy(update={"path": "https://HUSH@host/x"})})
    assert "HUSH" not in str(TrackedRun(Storage(str(tmp_path)), written).settings())
    assert write_config(config, tmp_path)
