"""What is checked before Ray starts: it leaves nothing behind, and says where it looked. No Ray."""

import json
import re
from pathlib import Path

import pytest
from chat_templates import TINY_CHAT, chat_tokenizer
from running import tiny_run

from raytrain.config.io import load_config
from raytrain.config.shipped import communication_variables
from raytrain.errors import ConfigError, DataError
from raytrain.runs.preflight import check


def test_a_check_leaves_no_folder_behind(tmp_path: Path) -> None:
    config = tiny_run(tmp_path, "a")
    before = sorted(tmp_path.rglob("*"))
    check(config)
    assert sorted(tmp_path.rglob("*")) == before


def test_storage_that_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for place in ("/proc/nothing", f"{tmp_path}/file", f"{tmp_path}/file/runs"):
        with pytest.raises(ConfigError, match=f"storage_path {place}: can't write there"):
            check(tiny_run(tmp_path, "a", f"storage_path={place}"))


def test_a_relative_path_is_named_with_the_place_that_was_looked_at(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    tiny_run(tmp_path, "a")
    with pytest.raises(DataError) as caught:
        check(tiny_run(tmp_path, "a", "data.train.path=data/trian.parquet"))
    assert f"'data/trian.parquet': no such file or folder (looked for {tmp_path}/data/trian.parquet)" in str(
        caught.value
    )
    assert "did you mean data/train.parquet?" in str(caught.value)
    with pytest.raises(DataError, match=f"looked for {tmp_path}/data/"):
        check(tiny_run(tmp_path, "a", "data.train.path=data/*.csv"))


def test_a_shipped_config_outside_a_clone_says_where_its_data_comes_from(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(DataError, match=r"fetch_data\.py.*raytrain configs show movie_reviews"):
        check(load_config("movie_reviews", ["workers.max=1"]))
    with pytest.raises(DataError, match="gone.csv"):
        check(load_config("movie_reviews", ["workers.max=1", "data.train.path=[gone.csv]"]))
    with pytest.raises(DataError) as caught:
        check(load_config("movie_reviews", ["workers.max=1", "data.train.path=mine.csv", "model.path=a/b/c"]))
    assert "fetch_data" not in str(caught.value)


def test_the_variables_of_a_network(tmp_path: Path) -> None:
    own = "training.communication.environment={NCCL_SOCKET_IFNAME: eth0, NCCL_DEBUG: WARN, NCCL_IB_DISABLE: 1}"
    config = check(tiny_run(tmp_path, "run", "training.communication.network=ethernet", own)).config
    environment = communication_variables(config.training.communication)
    assert environment["NCCL_SOCKET_IFNAME"] == "eth0"  # the config's own come first
    assert environment["NCCL_IB_DISABLE"] == "1"  # text, and not what Python calls it
    assert environment["NCCL_NSOCKS_PERTHREAD"] == "4"
    assert "NCCL_NSOCKS_PERTHREAD" not in config.training.communication.environment, "a resume may name another network"


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("training.communication.network=efq", "training.communication.network: no network file 'efq'"),
        ("training.communication.environment={PATH: /bin}", "training.communication.environment.PATH: only variables"),
        ("training.communication.bucket_elements=0", "training.communication.bucket_elements"),
        ("training.communication.overlap=often", "training.communication.overlap"),
        ("workers.stall_timeout_s=0", "workers.stall_timeout_s"),
    ],
)
def test_mistakes_of_communication(tmp_path: Path, override: str, words: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        check(tiny_run(tmp_path, "run", override))


@pytest.mark.parametrize("kind", ["chat", "preference", "reward"])
@pytest.mark.parametrize(
    ("template", "words"),
    [
        (None, "no chat template, as that of a base model"),
        ("{{ messages[0].content }}", "does not write the content of an assistant turn"),
        ("{% for message in messages %}{{ message.content }}THE END{% endfor %}", "7 tokens of the tokenizer"),
    ],
)
def test_a_chat_template_that_is_missing_or_can_not_be_used(
    tmp_path: Path, kind: str, template: str | None, words: str
) -> None:
    base = Path(chat_tokenizer(tmp_path / "base", None))
    (base / "config.json").write_text(json.dumps(TINY_CHAT))
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    rows = {"messages": turns, "prompt": "a", "chosen": "b", "rejected": "c"}
    (tmp_path / "rows.jsonl").write_text(json.dumps(rows) + "\n")
    changes = [f"task={{kind: {kind}}}", f"model={{path: {base}}}", f"data.train.path={tmp_path / 'rows.jsonl'}"]
    changes += [f"task.chat_template={json.dumps(template)}"] if template else []
    with pytest.raises(ConfigError, match=rf"task\.chat_template.*{words}"):
        check(tiny_run(tmp_path, "a", "data.test=null", "data.validation=null", *changes))
