"""What of a working directory travels with a job: code does; secrets, data and .git never do."""

import os
import shutil
import subprocess
import time
import zipfile
from pathlib import Path

import pytest

from raytrain.errors import ConfigError
from raytrain.launch import packing
from raytrain.launch.packing import choose_files, write_archive
from raytrain.launch.secret_files import LOOKED_AT_BYTES

CODE = ["main.py", "src/net.py", "requirements.txt", "conf/run.yaml", "tokenizer/tokenizer.json"]
NEVER = {
    "version control, environments and caches": [".git/config", ".venv/bin/python", "src/__pycache__/net.pyc"],
    "secrets": [
        *(".env", ".env.local", "deploy/ID_RSA", "tls/server.pem", ".aws/credentials", "gcp-credentials.json"),
        *(".envrc", "terraform.tfstate.backup", "hf_token", "token", "secrets.txt", ".s3cfg", ".pgpass", "kaggle.json"),
    ],
    "data and weights": ["data/train.parquet", "a.csv", "weights/model.safetensors", "dump.TAR", "rows.jsonl"],
}


def write(folder: Path, *names: str, num_bytes: int = 3) -> None:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x" * num_bytes)


def test_code_travels_and_nothing_else(tmp_path: Path) -> None:
    write(tmp_path, *CODE, *(name for names in NEVER.values() for name in names))
    # An ignore file can't let in what never travels.
    (tmp_path / ".rayignore").write_text("".join(f"!{name}\n" for names in NEVER.values() for name in names))
    choice = choose_files(str(tmp_path))
    assert sorted(choice.sizes) == sorted([*CODE, ".rayignore"])
    for reason, names in NEVER.items():
        for name in names:  # each is named, by itself or by the folder that it lies in
            assert any(name.startswith(out) for out in choice.left_out[reason]), name
    assert sum(map(len, NEVER.values())) == sum(map(len, choice.left_out.values()))
    text = "\n".join(choice.lines())
    assert "left out, secrets: .aws/, .env" in text
    assert "and 9 more" in text


CORPUS = Path(__file__).parents[1] / "secret_names.txt"
NAMES = [line.split(maxsplit=1) for line in CORPUS.read_text().splitlines() if line and not line.startswith("# ")]


@pytest.mark.parametrize(("kind", "name"), NAMES, ids=[name for _, name in NAMES])
def test_names_of_the_corpus(tmp_path: Path, kind: str, name: str) -> None:
    write(tmp_path, name)
    assert what_becomes_of(tmp_path, name) == kind


def what_becomes_of(folder: Path, name: str) -> str:
    choice = choose_files(str(folder))
    left_out = [out for names in choice.left_out.values() for out in names]
    if any(name == out or (out.endswith("/") and name.startswith(out)) for out in left_out):
        assert all(reason.startswith("secrets") for reason in choice.left_out)
        return "secret"
    assert (name in choice.doubtful) != (name in choice.sizes)
    return "sent" if name in choice.sizes else "doubtful"


# Put together here, so that no scanner takes this file for a leak.
HOLD_SECRETS = {
    "-----BEGIN " + "RSA PRIVATE KEY-----\nMII": "secret",
    "-----BEGIN " + "PRIVATE KEY-----\nMII": "secret",
    "-----BEGIN " + "OPENSSH PRIVATE KEY-----\nb3B": "secret",
    "-----BEGIN PGP " + "PRIVATE KEY BLOCK-----": "secret",
    "PuTTY-User-Key-" + "File-3: ssh-ed25519": "secret",
    "# age\nAGE-SECRET-" + "KEY-1QQQ": "secret",
    "id = AKIA" + "QYLPMN5HHHFPZAM2": "secret",
    "aws_secret_access_key=" + "abcdEFGH" * 5: "secret",
    '{"type": "authorized_' + 'user"}': "secret",
    '{"type": "service_' + 'account"}': "secret",
    "maps: AIza" + "Sy" * 17 + "x": "secret",
    "x = hf_" + "aB" * 17: "secret",
    "ghp_" + "a1" * 18: "secret",
    "glpat-" + "a1" * 10: "secret",
    "xoxb-" + "1" * 12: "secret",
    "sk-proj-" + "a1" * 20: "secret",
    "DefaultEndpointsProtocol=https;AccountKey=" + "a1" * 43 + "==": "secret",
    "db:\n  db_password: hunter22": "doubtful",
    '{"api_key": "0123456789"}': "doubtful",
    "url: postgres://me:hunter22@db/x": "doubtful",
    "export HF_TOKEN=abcdefgh": "doubtful",
    "password: ${PASSWORD}\nsecret: <yours>\napi_key: null\n": "sent",
    "aws_access_key_id: AKIA" + "IOSFODNN7EXAMPLE": "sent",
    '{"pad_token": "[PAD]", "unk_token": "[UNK]"}': "sent",
    "url: https://example.com:8080/x@y": "sent",
    "-----BEGIN CERTIFICATE-----\nMII": "sent",
    "the password is a word of the text": "sent",
}


@pytest.mark.parametrize(("text", "kind"), HOLD_SECRETS.items())
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16"])
def test_a_look_into_files(tmp_path: Path, text: str, kind: str, encoding: str) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "prod.yaml").write_bytes(f"first: 1\n{text}\n".encode(encoding))
    assert what_becomes_of(tmp_path, "conf/prod.yaml") == kind
    (tmp_path / "conf" / "prod.yaml").rename(tmp_path / "prod.py")  # code: the user decides
    is_key = kind == "secret"
    assert what_becomes_of(tmp_path, "prod.py") == ("doubtful" if is_key else "sent")


@pytest.mark.parametrize("text", ["\n", "-", "- ", "a", "{", "x://a:", '"type" ', "-----BEGIN "])
def test_a_look_into_a_file_takes_no_time(tmp_path: Path, text: str) -> None:
    """No pattern backtracks over a file of one repeated piece."""
    (tmp_path / "notes.yaml").write_text(text * (2 * LOOKED_AT_BYTES // len(text)))
    began_s = time.process_time()
    choose_files(str(tmp_path))
    assert time.process_time() - began_s < 2


def test_a_doubtful_file_travels_only_where_it_is_named(tmp_path: Path) -> None:
    write(tmp_path, "main.py", "conf/token.json", "conf/tokens.json", "conf/secret.json")
    choice = choose_files(str(tmp_path))
    assert sorted(choice.doubtful) == ["conf/token.json", "conf/tokens.json"]
    assert "    conf/token.json: its name" in list(choice.lines())
    write_archive(str(tmp_path / "job.zip"), choice, {})
    assert zipfile.ZipFile(tmp_path / "job.zip").namelist() == ["main.py"]
    choice.include(["./conf/token.json"])
    assert sorted(choice.sizes) == ["conf/token.json", "main.py"]
    assert list(choice.doubtful) == ["conf/tokens.json"]
    choice.include(["conf/*.json", "conf/token.json"])
    assert not choice.doubtful and "conf/secret.json" not in choice.sizes
    with pytest.raises(ConfigError, match=r"--include conf/secret.json: left out, secrets; such files are never sent"):
        choice.include(["conf/secret.json"])
    with pytest.raises(ConfigError, match=r"--include gone.json: no doubtful file has this name"):
        choice.include(["gone.json"])


def test_what_the_config_names_stays(tmp_path: Path) -> None:
    write(tmp_path, "main.py", "corpus/a.txt", "more/b.txt", "more/b.md", "runs/x/config.yaml")
    named = [str(tmp_path / "corpus"), str(tmp_path / "more" / "*.txt"), str(tmp_path / "runs")]
    assert sorted(choose_files(str(tmp_path), named).sizes) == ["main.py", "more/b.md"]


def test_links_stay(tmp_path: Path) -> None:
    """They may point at anything."""
    write(tmp_path, "elsewhere/key", "job/main.py")
    os.symlink(tmp_path / "elsewhere" / "key", tmp_path / "job" / "notes.txt")
    os.symlink(tmp_path / "elsewhere", tmp_path / "job" / "folder")
    choice = choose_files(str(tmp_path / "job"))
    assert list(choice.sizes) == ["main.py"]
    assert choice.left_out == {packing.LINKS: ["folder", "notes.txt"]}


@pytest.mark.skipif(shutil.which("git") is None, reason="git decides what is right")
def test_gitignore_means_what_it_means_to_git(tmp_path: Path) -> None:
    write(
        tmp_path, "a.py", "a.log", "keep.log", "out/x.py", "sub/b.log", "sub/out/y.py", "sub/only.py", "deep/er/c.tmp"
    )
    write(tmp_path, "deep/er/d.py", "deep/out.py")
    (tmp_path / ".gitignore").write_text("*.log\n!keep.log\n/out/\n*.tmp\n")
    (tmp_path / "sub" / ".gitignore").write_text("!b.log\n/only.py\n")
    (tmp_path / "deep" / ".gitignore").write_text("er/*.py\n")
    subprocess.run(["git", "init", "--quiet", str(tmp_path)], check=True)
    command = ["git", "-C", str(tmp_path), "ls-files", "--cached", "--others", "--exclude-standard"]
    expected = subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()
    assert sorted(choose_files(str(tmp_path)).sizes) == sorted(expected)
    for part in ("sub", "deep", "deep/er"):  # what is ignored in the repository is so in its parts
        inside = [name.removeprefix(f"{part}/") for name in expected if name.startswith(f"{part}/")]
        assert sorted(choose_files(str(tmp_path / part)).sizes) == sorted(inside), part


def test_too_much_is_refused_with_the_biggest_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(packing, "MOST_BYTES", 1000)
    write(tmp_path, "main.py", *(f"small/{i}.txt" for i in range(50)))
    assert choose_files(str(tmp_path)).total_bytes == 153
    write(tmp_path, "assets/big.json", num_bytes=900)
    with pytest.raises(
        ConfigError, match=r"--working-dir .* allowed: 1\.0 kB.*52 files:\n +0\.9 kB  assets/big\.json\n"
    ):
        choose_files(str(tmp_path))
    (tmp_path / ".rayignore").write_text("assets/\n")
    assert choose_files(str(tmp_path)).total_bytes < 1000
    with pytest.raises(ConfigError, match="is not a folder"):
        choose_files(str(tmp_path / "nothing"))


def test_the_archive_holds_the_choice_and_our_files(tmp_path: Path) -> None:
    write(tmp_path / "job", "main.py", "raytrain_job/config.yaml", ".env")
    (tmp_path / "job" / "main.py").chmod(0o755)
    ours = {"raytrain_job/config.yaml": b"ours"}
    write_archive(str(tmp_path / "one.zip"), choose_files(str(tmp_path / "job")), ours)
    with zipfile.ZipFile(tmp_path / "one.zip") as archive:
        assert sorted(archive.namelist()) == ["main.py", "raytrain_job/config.yaml"]
        assert archive.read("raytrain_job/config.yaml") == b"ours"
        assert archive.getinfo("main.py").external_attr >> 16 == 0o755
    os.utime(tmp_path / "job" / "main.py", (0, 0))
    write_archive(str(tmp_path / "two.zip"), choose_files(str(tmp_path / "job")), ours)
    assert (tmp_path / "one.zip").read_bytes() == (tmp_path / "two.zip").read_bytes()
    write_archive(str(tmp_path / "none.zip"), None, ours)
    assert zipfile.ZipFile(tmp_path / "none.zip").namelist() == ["raytrain_job/config.yaml"]
