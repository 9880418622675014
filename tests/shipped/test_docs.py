"""The pages in docs/ and the README: what they quote, name and show exists. No Ray; the last test builds them."""

import ast
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from raytrain.cli.main import app
from raytrain.config.io import parse_config
from raytrain.tuning.space.space import Space, check_space

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.append(str(ROOT / "tools"))

import reference  # noqa: E402

PAGES = {
    str(path.relative_to(DOCS)): path.read_text()
    for path in sorted(DOCS.rglob("*.md"))
    if path.relative_to(DOCS).parts[0] not in ("reference", "_build")
}
TEXTS = {**PAGES, "../README.md": (ROOT / "README.md").read_text()}
MADE = {f"reference/{name}": text for name, text in reference.pages().items()}
TROUBLE = PAGES["troubleshooting.md"]
BASE: dict[str, Any] = {
    "name": "base",
    "task": {"kind": "sequence_classification"},
    "model": {"path": "models/base"},
    "data": {"train": {"path": "data/train.parquet"}, "validation": {"fraction": 0.1}},
}


def blocks(language: str) -> Iterator[tuple[str, str]]:
    """(page, contents) of each block of code, without the indentation that it has in a list."""
    for page, text in TEXTS.items():
        for indent, body in re.findall(rf"^( *)```{language}\n(.*?)^ *```$", text, re.MULTILINE | re.DOTALL):
            yield page, re.sub(rf"^{indent}", "", body, flags=re.MULTILINE)


def inline_code() -> Iterator[tuple[str, str]]:
    """(page, code) of each piece of code in a line of text; a quoted message is none."""
    for page, text in TEXTS.items():
        prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
        prose = re.sub(r"^`.*`\n(?=: )", "", prose, flags=re.MULTILINE)
        prose = re.sub(r"\{\w+\}`[^`]*`", "", prose)
        for code in re.findall(r"`([^`]+)`", prose):
            yield page, " ".join(code.split())


def targets(page: str) -> set[str]:
    """Anchors of a page: headings as GitHub and MyST name them, and explicit ones."""
    text = {**PAGES, **MADE}[page]
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
    return slugs | set(re.findall(r"^\(([\w-]+)\)=$", text, re.MULTILINE))


@pytest.mark.parametrize(("page", "text"), blocks("yaml"))
def test_yaml_is_valid(page: str, text: str) -> None:
    kind, found = text.splitlines()[0], yaml.safe_load(text)
    if kind == "# run.yaml":
        parse_config(found)
    elif kind == "# part of run.yaml":
        parse_config({**BASE, **found, "data": {**BASE["data"], **found.get("data", {})}})
    else:
        assert kind == "# space.yaml", f"{page}: the first line of a YAML block says what it is"
        check_space(Space.model_validate(found), BASE, [])


def console_commands() -> Iterator[tuple[str, list[str]]]:
    """(page, words after `raytrain`) of each such line of a console block, and of one for a shell, without its `$`."""
    for language, prompt in (("console", r"\$ "), ("sh", "")):
        for page, text in blocks(language):
            for line in re.findall(rf"^{prompt}(?:\S*/)?raytrain (.*)$", text, re.MULTILINE):
                yield page, shlex.split(line, comments=True)


@pytest.mark.parametrize(("page", "words"), console_commands())
def test_commands_parse(page: str, words: list[str]) -> None:
    parse_command(words)


def parse_command(words: list[str]) -> None:
    """Let the command line's own parser read the words; the command that `submit` is given, too."""
    command: Any = typer.main.get_command(app)
    words = list(words)
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"no command {name}"
        command = command.commands[name]
    command.make_context(name, list(words))
    if name == "submit":
        parse_command(words[words.index("--") + 1 :])


def test_the_readme_names_every_command() -> None:
    command: Any = typer.main.get_command(app)
    readme = [code.split() for page, code in inline_code() if page == "../README.md"]
    named = {words[1] for words in readme if words[0] == "raytrain" and len(words) > 1}
    missing = {name for name, one in command.commands.items() if not one.hidden} - named
    missing -= {"jobs", "reclaim-watch"}  # of those who look after a cluster: docs/clusters/
    assert not missing, "a row of the README's table of what one may want to do"


def test_commands_and_options_in_the_text_exist() -> None:
    for page, code in inline_code():
        words = code.split()
        if words[0] != "raytrain" or len(words) == 1:
            continue
        name = reference.named_command(code)
        assert name is not None, f"{page}: {code}"
        options = {word for parameter in reference.commands()[name].params for word in parameter.opts}
        own = words[: words.index("--")] if "--" in words else words
        assert {word for word in own if word.startswith("--")} <= options, f"{page}: {code}"


def test_fields_in_the_text_exist() -> None:
    known = 0
    for page, code in inline_code():
        try:
            known += reference.named_field(code) is not None
        except LookupError as error:
            pytest.fail(f"{page}: {error}")
    assert known > 50, "the pages name many fields: does this test find them?"


def test_links_lead_somewhere() -> None:
    for page, text in TEXTS.items():
        prose = re.sub(r"^ *```.*?^ *```$", "", text, flags=re.MULTILINE | re.DOTALL)
        links = re.findall(r"\]\(([^)\s]+)\)", prose)
        for link in links:
            if "://" in link:
                continue
            path, _, anchor = link.partition("#")
            target = (DOCS / page).parent.joinpath(path).resolve() if path else DOCS / page
            name = str(target.relative_to(DOCS)) if target.is_relative_to(DOCS) else ""
            assert name in {**PAGES, **MADE} or target.exists(), f"{page}: {link}"
            assert not anchor or anchor in targets(name), f"{page}: {link}"


def test_every_page_is_in_the_table_of_contents() -> None:
    listed = set()
    for page, text in PAGES.items():
        for body in re.findall(r"^```\{toctree\}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
            names = [line for line in body.splitlines() if line and not line.startswith(":")]
            listed |= {str(Path(page).parent / f"{name}.md") for name in names}
    assert listed | {"index.md"} == {*PAGES, *MADE}


def messages() -> list[str]:
    """The messages that the page on troubleshooting explains."""
    return re.findall(r"^`(.+)`\n: ", TROUBLE, re.MULTILINE)


def test_messages_are_those_of_the_source() -> None:
    said = [text for path in (ROOT / "raytrain").rglob("*.py") for text in strings_of(ast.parse(path.read_text()))]
    assert len(messages()) > 50
    stale = []
    for message in messages():
        parts = re.split(r"\.{3,}", message)
        pattern = re.compile(r"\.?.*\.?".join(map(re.escape, parts)), re.DOTALL)
        texts = [text for text in said if all(part in text for part in parts)]
        if not any(pattern.search(text) for text in texts):
            stale.append(message)
    assert not stale, stale


def strings_of(tree: ast.AST) -> Iterator[str]:
    """The texts in a module; what an f-string puts in stands there as {}."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        if isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
            yield "".join(map(str, parts))


def test_the_run_directory_is_described() -> None:
    from raytrain.reports.goodput import CLASSES
    from raytrain.runs.result import RunResult
    from raytrain.terminal.events import EVENT_TEXTS
    from raytrain.training.progress import Progress
    from raytrain.training.run_log import TRACKED

    page = PAGES["run_directory.md"]
    source = "".join(path.read_text() for path in (ROOT / "raytrain" / "training").glob("*.py"))
    kinds = {*EVENT_TEXTS, *re.findall(r'\.event\("(\w+)"', source)}
    names = {*kinds, *CLASSES, *TRACKED, *RunResult.__dataclass_fields__, *Progress.__dataclass_fields__}
    assert not {name for name in names if f"`{name}`" not in page}
    for name, meaning in CLASSES.items():
        assert f"| `{name}` | {meaning} |" in page


def test_the_shipped_spaces_and_cluster_files_are_named() -> None:
    from raytrain.config.shipped import cluster_names, space_names

    text = "".join(PAGES.values())
    assert not [name for name in space_names() if f"`{name}`" not in PAGES["sweeps.md"]]
    files = {name for name in cluster_names() if not name.endswith(".dockerignore")}
    assert not [name for name in files if f"`{name}`" not in text and f"`{name.rpartition('/')[2]}`" not in text]


def test_the_pages_build(tmp_path: Path) -> None:
    for needed in ("sphinx", "myst_parser", "furo"):
        pytest.importorskip(needed, reason="pip install 'raytrain[docs]'")
    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", "-n", "-d", str(tmp_path / "trees")]
    built = subprocess.run([*command, str(DOCS), str(tmp_path / "html")], capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
