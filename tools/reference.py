"""Makes docs/reference/: every field, option and metric, from what the source says of them.

    python tools/reference.py

The pages are committed, so that they can be read on a Git host without a build, and are plain Markdown for the same
reason. tests/unit/test_reference.py fails when they no longer agree with the source. `docs/_ext/field_links.py` uses
the functions here to link inline code to the field or the command that it names.
"""

import functools
import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import typer

from raytrain.cli.main import app as cli_app
from raytrain.config import RunConfig
from raytrain.config.help import ANY_KEY, FieldHelp, fields_of
from raytrain.monitoring.names import CAUSES, METRICS, RAY_PREFIX, STATUSES
from raytrain.reports.goodput import CLASSES
from raytrain.tuning.space.space import Space

FOLDER = Path(__file__).parents[1] / "docs" / "reference"
MADE = "<!-- Made by tools/reference.py from {source}: change that, then run the script. -->"
SECTIONS = tuple(RunConfig.model_fields)
FILE_ENDINGS = (".json", ".jsonl", ".yaml", ".py", ".html", ".safetensors", ".sbatch", ".md", ".sh")

CONFIG_HEAD = """\
# Configuration

Every field of a run's config: its type and allowed values, its default, and what it means. A field is set in the config
file, or on the command line as `dotted.key=value`, where the value is read as YAML. The command line overrides the
file, and the file overrides the defaults. Unknown keys are refused.

`raytrain configs show --fields` prints the same on a terminal, and `raytrain configs show NAME --resolved` prints a
config with all its defaults.
"""
SPACE_HEAD = """\
# Search space

Every field of a search space, the file that `raytrain tune CONFIG --space SPACE` reads. [Sweeps](../sweeps.md) explains
how the fields work together. `KEY` stands for the dotted key of a config field, such as
`training.optimizer.learning_rate`.
"""
METRICS_HEAD = """\
# Metrics

The metrics that runs and sweeps export to Prometheus through Ray's agents. Ray puts `ray_` before each name and adds
the node's labels. [Watching a run](../watching.md) explains where to read them and how long they stay. A gauge belongs
to one run or trial. Counters start at 0 with each command, and those of a sweep's trials count together.
"""
CLI_HEAD = """\
# Command line

Every command prints the same with `--help`. `CONFIG` is a YAML file or the name of a shipped config. `RUN` is the
folder of a run, `<storage_path>/<name>`.

| exit code | meaning |
|---|---|
| 0 | done |
| 1 | the run failed or was stopped |
| 2 | the command, the config or the data is wrong, and nothing was trained |
"""


def pages() -> dict[str, str]:
    """The text of each page, by its file name."""
    return {"config.md": config_page(), "space.md": space_page(), "cli.md": cli_page(), "metrics.md": metrics_page()}


def write_pages() -> None:
    """Write the pages that have changed."""
    FOLDER.mkdir(exist_ok=True)
    for name, text in pages().items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:
            path.write_text(text, encoding="utf-8")


def config_page() -> str:
    """The fields of `raytrain.config`."""
    return _fields_page(CONFIG_HEAD, "raytrain/config/", fields_of(RunConfig), "The run")


def space_page() -> str:
    """The fields of a search space."""
    return _fields_page(SPACE_HEAD, "raytrain/tuning/space/space.py", fields_of(Space), "The sweep")


def metrics_page() -> str:
    """The metrics of `raytrain.monitoring.names`."""
    rows = ["| metric | kind | labels | meaning |", "|---|---|---|---|"]
    for metric in METRICS.values():
        kind = "counter" if metric.is_counter else "gauge"
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{RAY_PREFIX}{metric.name}` | {kind} | {labels} | {metric.description} |")
    values = [("cause", CAUSES), ("status", STATUSES), ("class", tuple(CLASSES))]
    said = [f"- `{label}`: {', '.join(f'`{value}`' for value in allowed)}" for label, allowed in values]
    head = [MADE.format(source="raytrain/monitoring/names.py"), METRICS_HEAD]
    return "\n".join([*head, *rows, "", "Values of the labels:", "", *said, ""])


@functools.cache
def config_fields() -> frozenset[str]:
    """Dotted paths of the config, of sections too."""
    return frozenset(row.path for row in fields_of(RunConfig)) | {"task"}


@functools.cache
def space_fields() -> frozenset[str]:
    """Dotted paths of a search space."""
    return frozenset(row.path for row in fields_of(Space))


def named_field(text: str) -> str | None:
    """The config field that inline code names: `workers.min`, `workers.min=2`, `workers.min: 2`. Else None.

    Raises LookupError when it looks like one that does not exist.
    """
    key = re.split(r"=|: ", text, maxsplit=1)[0]
    if key in config_fields() and ("." in key or key == "storage_path"):
        return key
    looks_like_one = re.fullmatch(rf"({'|'.join(SECTIONS)})(\.[a-z_0-9]+)+", key) and not key.endswith(FILE_ENDINGS)
    if looks_like_one and not key.startswith(OPEN_ENDED):
        raise LookupError(f"{text!r} names no field of the config")
    return None


OPEN_ENDED = ("training.deepspeed.", "model.config.")
"""Sections whose keys are another program's."""


def named_command(text: str) -> str | None:
    """The command that inline code begins with: `raytrain jobs stop JOB`. Else None."""
    words = text.split()
    if words[:1] != ["raytrain"]:
        return None
    path: list[str] = []
    known = commands()
    for word in words[1:]:
        if " ".join([*path, word]) not in known:
            break
        path.append(word)
    return " ".join(path) or None


# --- fields ---


def _fields_page(head: str, source: str, rows: Iterable[FieldHelp], top: str) -> str:
    parts = [MADE.format(source=source), head]
    seen: set[str] = set()
    heading = ""
    for row in sorted(rows, key=lambda row: bool(_heading_of(row))):  # fields outside any section come first
        new = _heading_of(row) or top
        if new != heading:
            parts += ["", f"## {new}", ""] if heading else [f"## {new}", ""]
            heading = new
        parts += _field(row, is_known=row.path in seen)
        seen.add(row.path)
    return "\n".join([*parts, ""])


def _heading_of(row: FieldHelp) -> str:
    """The top section that a field belongs to, or nothing; a union's members have one each."""
    if row.condition:
        return f"With `{row.condition.replace(' ', ': ')}`"
    first, dot, _ = row.path.partition(".")
    return f"`{first}`" if dot or row.is_section or ANY_KEY in row.path else ""


def _field(row: FieldHelp, *, is_known: bool) -> list[str]:
    """A list item. Where two tasks have a field of the same name, links lead to the first one."""
    anchor = "" if is_known else f'<a id="{row.path}"></a>'
    default = "required" if row.is_required else row.default and f"default `{row.default}`"
    kind = row.kind if row.is_section else f"`{row.kind}`"
    said = ", ".join(part for part in (kind, default) if part)
    sentence = f"\\\n  {row.sentence}" if row.sentence else ""
    choices = [f"  - `{value}`: {meaning}" for value, meaning in row.choices.items()]
    return [f"- {anchor}**`{row.path}`** ({said}){sentence}", *choices]


# --- command line ---


@functools.cache
def commands() -> dict[str, Any]:
    """Every command and group of commands by its words after `raytrain`, in their order."""
    return dict(_commands(typer.main.get_command(cli_app), ""))


def _commands(group: Any, above: str) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        yield f"{above}{name}", command
        if hasattr(command, "commands"):
            yield from _commands(command, f"{above}{name} ")


def cli_page() -> str:
    """The commands and options of the Typer app."""
    parts = [MADE.format(source="raytrain/cli/"), CLI_HEAD]
    for words, command in commands().items():
        is_group = hasattr(command, "commands")
        level = "##" if " " not in words else "###"
        parts += [f"{level} `raytrain {words}`\n", f"{_text(command.help)}\n"]
        if not is_group:
            parts += [_usage(words, command), *_parameters(command)]
    return "\n".join(parts)


def command_anchor(words: str) -> str:
    """The anchor of a command's heading, by the rule that Git hosts and Sphinx share."""
    return f"raytrain-{words.replace(' ', '-')}"


def _usage(words: str, command: Any) -> str:
    arguments = [_metavar(p) for p in command.params if p.param_type_name == "argument"]
    return "\n".join(["```text", " ".join(["raytrain", words, "[OPTIONS]", *arguments]), "```", ""])


def _parameters(command: Any) -> Iterator[str]:
    yield "| argument or option | meaning |"
    yield "|---|---|"
    for parameter in command.params:
        if parameter.param_type_name == "argument":
            name = _metavar(parameter)
        else:
            name = ", ".join([*parameter.opts, *parameter.secondary_opts])
            name += "" if parameter.is_flag else f" {_metavar(parameter)}"
        default = parameter.default
        said = "" if default in (None, False, "") or callable(default) else f" Default: `{_shown(parameter)}`."
        yield f"| `{_cell(name)}` | {_cell(_text(parameter.help))}{said} |"
    yield ""


def _metavar(parameter: Any) -> str:
    return parameter.metavar or parameter.name.upper()


def _shown(parameter: Any) -> str:
    return parameter.opts[0] if parameter.default is True else str(parameter.default)


def _text(help: str | None) -> str:
    return re.sub(r"<(\w+)>", r"\\<\1>", " ".join((help or "").split()))


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    write_pages()
