"""Runs the notebooks of examples/notebooks/ in a copy of examples/, and keeps their outputs without its paths.

python tools/notebooks.py                  # all of them: about two minutes on two cores
python tools/notebooks.py first_run sweep
"""

import os
import re
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "examples" / "notebooks"
TIMEOUT_S = 400
MIME_TYPES = ("text/plain", "text/html", "image/png")


def execute(name: str, folder: Path) -> Any:
    """Run a notebook in `folder`, a copy of examples/, and return it. Raises CellExecutionError if a cell fails."""
    notebook = nbformat.read(folder / "notebooks" / f"{name}.ipynb", as_version=4)
    os.environ["PYTHONPATH"] = str(ROOT)  # of the kernel, where raytrain is not installed
    os.environ["JUPYTER_PLATFORM_DIRS"] = "1"
    resources = {"metadata": {"path": str(folder / "notebooks")}}
    NotebookClient(notebook, timeout=TIMEOUT_S, kernel_name="python3", resources=resources).execute()
    return notebook


def clean(notebook: Any, folder: Path) -> None:
    """Remove from the outputs what belongs to this machine or to this time."""
    notebook.metadata = {"kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"}}
    for number, cell in enumerate(notebook.cells):
        cell.id = f"cell-{number}"
        if cell.cell_type != "code":
            continue
        cell.metadata = {}
        cell.outputs = [output for output in cell.outputs if not _is_empty(output)]
        for output in cell.outputs:
            output.pop("metadata", None)
            if output.output_type == "stream":
                output.text = _without_paths(output.text, folder)
                continue
            output.metadata = {}
            output.data = {
                kind: _without_paths(value, folder) if kind.startswith("text/") else value
                for kind, value in output.data.items()
                if kind in MIME_TYPES
            }


def _is_empty(output: Any) -> bool:
    """Whether it is what is left of a live display, or a warning about this machine's packages."""
    if output.output_type == "stream" and output.name == "stderr":
        return True
    return output.output_type == "display_data" and output.data.get("text/html") == ""


def _without_paths(text: str, folder: Path) -> str:
    return re.sub(r"\x1b\[[0-9;]*m", "", text.replace(f"{folder}/notebooks", "examples/notebooks"))


def main() -> None:
    """Run those that are named, or all."""
    for name in sys.argv[1:] or sorted(path.stem for path in NOTEBOOKS.glob("*.ipynb")):
        with tempfile.TemporaryDirectory() as temporary:
            folder = Path(temporary).resolve() / "examples"
            shutil.copytree(NOTEBOOKS.parent, folder)
            notebook = execute(name, folder)
            clean(notebook, folder)
        nbformat.write(notebook, NOTEBOOKS / f"{name}.ipynb")
        print(f"{name}: {sum(cell.cell_type == 'code' for cell in notebook.cells)} cells")


if __name__ == "__main__":
    main()
