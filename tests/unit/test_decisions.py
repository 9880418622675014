"""No decision reads a message: what is written for people may hold anything, such as the path of a file.

Found are comparisons, searches and prefixes of the text of an error, of a message, of what a program has printed or of
a line of it. Text of other programs decides only through `raytrain.errors.says`, whose list is in that file.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import raytrain

PACKAGE = Path(raytrain.__file__).parent
# Names of what is written for people.
MESSAGES = {"message", "error", "err", "exc", "exception", "reason", "output", "stderr", "stdout", "failure", "cause"}
READERS = {"logs", "log"}  # functions that give what a program has printed
SEARCHES = {"startswith", "endswith", "find", "rfind", "index", "count", "match", "search", "fullmatch", "findall"}
# A `line` or a `text` is the user's data in other modules, which has to be read.
PRINTED = ("terminal", "cli", "launch.server", "launch.job_events")
MAY_READ = {
    "cli.group": "the word that was typed, which click keeps in an attribute of its error",
    "launch.job_events": "what a job prints for programs, told from what it prints for people",
    "config.io": "which override a message of pydantic is about",
}


def is_message(node: ast.AST, names: set[str]) -> bool:
    """Whether an expression is a message: named so, the text of an error, or what a program has printed."""
    if isinstance(node, ast.Name):
        return node.id in names
    if isinstance(node, ast.Attribute):
        return node.attr in names
    if isinstance(node, ast.Subscript):
        return is_message(node.value, names)
    if not isinstance(node, ast.Call):
        return False
    if isinstance(node.func, ast.Name) and node.func.id in ("str", "repr", "first_line") and node.args:
        return any(is_message(part, names) or is_key(part, names) for part in ast.walk(node.args[0]))
    if isinstance(node.func, ast.Attribute):  # message.lower(), server.logs(job)
        return node.func.attr in READERS or is_message(node.func.value, names)
    return False


def is_key(node: ast.AST, names: set[str]) -> bool:
    """Whether it is a message's name in a mapping, as in `detail["error"]`."""
    return isinstance(node, ast.Constant) and node.value in names


def matches_in(tree: ast.AST, names: set[str] = MESSAGES) -> Iterator[int]:
    """Lines in which a message is compared, searched or matched."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Compare):
            sides = [node.left, *node.comparators]
            is_text = any(isinstance(op, ast.In | ast.NotIn) for op in node.ops) and is_message(sides[-1], names)
            is_told_word = any(isinstance(op, ast.Eq | ast.NotEq) for op in node.ops) and any(
                isinstance(side, ast.Constant) and isinstance(side.value, str) and side.value for side in sides
            )
            if is_text or (is_told_word and any(is_message(side, names) for side in sides)):
                yield node.lineno
        elif (
            isinstance(node, ast.Call)
            and isinstance(node.func, ast.Attribute)
            and node.func.attr in SEARCHES
            and any(is_message(part, names) for part in (node.func.value, *node.args))
        ):
            yield node.lineno


def readers() -> dict[str, list[int]]:
    """Module below the package -> lines in which it matches a message."""
    found = {}
    for path in PACKAGE.rglob("*.py"):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        names = MESSAGES | {"line", "text"} if module.startswith(PRINTED) else MESSAGES
        if lines := list(matches_in(ast.parse(path.read_text()), names)):
            found[module] = lines
    return found


def test_no_decision_reads_a_message() -> None:
    found = readers()
    assert not {module: lines for module, lines in found.items() if module not in MAY_READ}
    assert not set(MAY_READ) - set(found), "they do so no longer: delete them from MAY_READ"


@pytest.mark.parametrize(
    "code",
    [
        'if "gloo" in str(error): pass',
        "found = any(words in message for words in PEER_LOST)",
        'if "404" not in str(error.cause): pass',
        'if error.startswith("Authentication required"): pass',
        "if GO_ON in server.logs(job)[seen:]: pass",
        'if result.message == "stopped on request": pass',
        'kind = re.match("out of memory", first_line(str(error)))',
        'if "OOM" in result.message.upper(): pass',
        'return re.search(key, str((detail.get("ctx") or {}).get("error")))',
    ],
)
def test_such_a_decision_is_found(code: str) -> None:
    assert list(matches_in(ast.parse(f"def f():\n    {code}")))


@pytest.mark.parametrize(
    "code",
    [
        "if failure.code is FailureCode.DIVERGED: pass",
        "if error is None: pass",
        'say(f"it failed: {error}")',
        "told = str(error)",
        "if row.message: pass",
        "if says(job.message, ForeignMessage.NO_MODULE): pass",
    ],
)
def test_telling_a_message_is_no_decision(code: str) -> None:
    assert not list(matches_in(ast.parse(f"def f():\n    {code}")))
