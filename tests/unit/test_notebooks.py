"""The notebooks of examples/: their cells compile, the names of raytrain in them exist, and outputs tell no machine."""

import ast
import json
import re
from pathlib import Path
from typing import Any

import pytest

import raytrain

FOLDER = Path(__file__).resolve().parents[2] / "examples" / "notebooks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def cells(name: str, kind: str) -> list[dict[str, Any]]:
    found = json.loads((FOLDER / f"{name}.ipynb").read_text())
    return [cell for cell in found["cells"] if cell["cell_type"] == kind]


def source_of(cell: dict[str, Any]) -> str:
    """What Python runs of a cell."""
    return re.sub(r"^%%writefile .*\n", "", "".join(cell["source"]))


def test_there_are_as_many_as_the_page_says() -> None:
    page = (FOLDER.parents[1] / "docs" / "python_api.md").read_text()
    assert sorted(re.findall(r"^\| `(\w+)\.ipynb` \|", page, re.MULTILINE)) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_cells_compile_and_name_what_there_is(name: str) -> None:
    trees = [ast.parse(source_of(cell)) for cell in cells(name, "code")]
    named = {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "raytrain"
    }
    assert named and not [word for word in named if not hasattr(raytrain, word)]


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_there_and_small_and_tell_no_machine(name: str) -> None:
    outputs = [output for cell in cells(name, "code") for output in cell["outputs"]]
    assert outputs and not [output for output in outputs if output["output_type"] == "error"]
    text = json.dumps(outputs)
    assert len(text) < 200_000, f"{len(text)} characters"
    assert not re.findall(r"(?:/tmp|/home|/root|/opt)/\S*|\b(?:\d{1,3}\.){3}\d{1,3}\b", text)
