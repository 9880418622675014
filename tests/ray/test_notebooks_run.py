"""The notebooks of examples/ run to their end in a kernel, and an interrupt of the kernel saves the run."""

import shutil
import sys
import threading
import time
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
NAMES = sorted(path.stem for path in (ROOT / "examples" / "notebooks").glob("*.ipynb"))
INTERRUPTED = """
import sys
sys.path.append("..")
from tiny_reviews import make_reviews, tiny_config
import raytrain

class Ready(raytrain.Callback):
    def on_step(self, info):
        if info.step == 5:
            open("ready", "w").close()

words = {"training.epochs": 500, "workers.max": 1}
config = tiny_config("a", "output")
result = raytrain.train(config, words, train=make_reviews(400, 0), callbacks=[Ready()], progress=True)
print("then", result.status, result.stop_reason, result.step > 4)
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.delenv("RAY_AUTH_MODE", raising=False)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    return tmp_path / "examples"


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_runs(folder: Path, name: str) -> None:
    from notebooks import execute

    done = execute(name, folder)
    assert all(cell.execution_count for cell in done.cells if cell.cell_type == "code")


@pytest.mark.slow
def test_an_interrupt_of_the_kernel_saves_and_the_display_is_replaced(folder: Path) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell(INTERRUPTED)])
    resources = {"metadata": {"path": str(folder / "notebooks")}}
    client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=resources)
    updates = []
    seen = client.process_message
    client.process_message = lambda message, *given: (updates.append(message["msg_type"]), seen(message, *given))[1]

    def interrupt() -> None:
        while not (folder / "notebooks" / "ready").exists():
            time.sleep(0.2)
        client.km.provisioner.process.send_signal(2)

    thread = threading.Thread(target=interrupt, daemon=True)
    thread.start()
    client.execute()
    outputs = notebook.cells[0].outputs
    text = "".join(output.text for output in outputs if output.output_type == "stream")
    assert "then stopped requested True" in text, outputs
    assert updates.count("update_display_data") > 2, updates
    lines = [output for output in outputs if "training" in output.get("data", {}).get("text/html", "")]
    assert not lines, "the display is gone"
    assert sys.version_info  # the kernel is this Python
