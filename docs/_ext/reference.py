"""The reference pages, made from what they describe: the config, the search space, the command line.

They are written into `docs/reference/`, which git ignores, before each build. And inline code in any page that names a
field or a command is linked to its place there; one that names a field which does not exist is a warning, so that a
page can't outlive what it speaks of. The functions at the top need no Sphinx; the tests use them.
"""

import functools
import json
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

FOLDER = Path(__file__).parents[1] / "reference"
MADE = "<!-- Made by docs/_ext/reference.py from {source}: change that, not this. -->"
SECTIONS = tuple(RunConfig.model_fields)
FILE_ENDINGS = (".json", ".jsonl", ".yaml", ".py", ".html", ".safetensors", ".sbatch", ".md", ".sh")

CONFIG_HEAD = """\
# Configuration

Every field of a run's config. `raytrain configs show --fields` prints the same on a terminal, and
`raytrain configs show NAME --resolved` a config with all its defaults. A field is given in the file, or on the
command line as `dotted.key=value`, whose value is read as YAML; defaults give way to the file, and the file to the
command line. Unknown keys are refused.
"""
SPACE_HEAD = """\
# Search space

Every field of a search space, which `raytrain tune CONFIG --space SPACE` reads. [Sweeps](../sweeps.md) says how they
work together.
`KEY` stands for the dotted key of a config field, such as `training.optimizer.learning_rate`.
"""
METRICS_HEAD = """\
# Metrics

What runs and sweeps tell Prometheus through Ray's agents, which put `ray_` before each name and add the node's labels.
[Watching a run](../watching.md) says where they are read and how long. A gauge is that of one run or trial; counters
begin at 0 with each command, and those of a sweep's trials count together.
"""


CLI_HEAD = """\
# Command line

Every command prints this with `--help`. `CONFIG` is a YAML file or the name of a shipped config, `RUN` the folder of a
run, `<storage_path>/<name>`.

Exit codes: 0 done; 1 the run failed or was stopped; 2 the command, the config or the data is wrong, and nothing was
trained.
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
    """Of `raytrain.config`."""
    return _fields_page(CONFIG_HEAD, "raytrain/config/", fields_of(RunConfig), "confval", "The run")


def space_page() -> str:
    """Of `raytrain.tuning.space.space`."""
    return _fields_page(SPACE_HEAD, "raytrain/tuning/space/space.py", fields_of(Space), "spacefield", "The sweep")


def metrics_page() -> str:
    """Of `raytrain.monitoring.names`."""
    rows = ["| metric | kind | labels | |", "|---|---|---|---|"]
    for metric in METRICS.values():
        kind = "counter" if metric.is_counter else "gauge"
        labels = ", ".join(f"`{label}`" for label in metric.labels)
        rows.append(f"| `{RAY_PREFIX}{metric.name}` | {kind} | {labels} | {metric.description} |")
    values = [("cause", CAUSES), ("status", STATUSES), ("class", tuple(CLASSES))]
    said = [f"- `{label}`: {', '.join(f'`{value}`' for value in allowed)}" for label, allowed in values]
    head = [MADE.format(source="raytrain/monitoring/names.py"), METRICS_HEAD]
    return "\n".join([*head, *rows, "", "Values of labels:", "", *said, ""])


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


def _fields_page(head: str, source: str, rows: Iterable[FieldHelp], directive: str, top: str) -> str:
    parts = [MADE.format(source=source), head]
    seen: set[str] = set()
    heading = ""
    for row in sorted(rows, key=lambda row: bool(_heading_of(row))):  # what is in no section comes first
        new = _heading_of(row) or top
        if new != heading:
            heading = new
            parts.append(f"## {heading}\n")
        parts.append(_field(row, directive, is_known=row.path in seen))
        seen.add(row.path)
    return "\n".join(parts)


def _heading_of(row: FieldHelp) -> str:
    """The top section that a field belongs to, or nothing; a union's members have one each."""
    if row.condition:
        return f"With `{row.condition.replace(' ', ': ')}`"
    first, dot, _ = row.path.partition(".")
    return f"`{first}`" if dot or row.is_section or ANY_KEY in row.path else ""


def _field(row: FieldHelp, directive: str, *, is_known: bool) -> str:
    lines = [f"```{{{directive}}} {row.path}", f":type: {json.dumps(row.kind)}"]
    default = "required" if row.is_required else row.default and f"`{row.default}`"
    lines += [f":default: {json.dumps(default)}"] if default else []
    lines += [":no-index:"] if is_known else []  # of two tasks' fields of one name, the first is linked to
    lines += ["", row.sentence, ""] if row.sentence else [""]
    lines += [f"- `{value}`: {meaning}" for value, meaning in row.choices.items()]
    return "\n".join([*lines, "```", ""])


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
    """Of the Typer app."""
    parts = [MADE.format(source="raytrain/cli*.py"), CLI_HEAD]
    for words, command in commands().items():
        is_group = hasattr(command, "commands")
        level = "##" if " " not in words else "###"
        parts += [f"({command_label(words)})=", f"{level} `raytrain {words}`\n", f"{_text(command.help)}\n"]
        if not is_group:
            parts += [_usage(words, command), *_parameters(command)]
    return "\n".join(parts)


def command_label(words: str) -> str:
    """What a command's heading is linked by."""
    return f"cli-{words.replace(' ', '-')}"


def _usage(words: str, command: Any) -> str:
    arguments = [_metavar(p) for p in command.params if p.param_type_name == "argument"]
    return "\n".join(["```text", " ".join(["raytrain", words, "[OPTIONS]", *arguments]), "```", ""])


def _parameters(command: Any) -> Iterator[str]:
    yield "| | |"
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


# --- Sphinx ---


def setup(app: Any) -> dict[str, Any]:
    """Called by Sphinx."""
    from sphinx.domains.std import ConfigurationValue

    app.add_object_type("spacefield", "spacefield")
    app.add_directive_to_domain("std", "spacefield", ConfigurationValue, override=True)
    app.connect("config-inited", lambda *_: write_pages())
    app.connect("doctree-read", _link_inline_code)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _link_inline_code(app: Any, tree: Any) -> None:
    """Links of inline code to the field or the command that it names."""
    from docutils import nodes
    from sphinx.addnodes import desc_signature, pending_xref
    from sphinx.util import logging

    name_of_page = app.env.current_document.docname
    for literal in list(tree.findall(nodes.literal)):
        text, parent = literal.astext(), literal.parent
        if isinstance(parent, nodes.title | nodes.term | nodes.reference | pending_xref | desc_signature):
            continue
        try:
            kind, target = "confval", named_field(text)
        except LookupError as error:
            logging.getLogger(__name__).warning("%s", error, location=literal)
            continue
        if target is None and (command := named_command(text)) is not None:
            kind, target = "ref", command_label(command)
        if target is None and "." in text and text in space_fields():
            kind, target = "spacefield", text
        if target is None:
            continue
        reference = pending_xref(
            "", refdomain="std", reftype=kind, reftarget=target, refexplicit=True, refdoc=name_of_page, refwarn=True
        )
        parent.replace(literal, reference)
        reference += literal
