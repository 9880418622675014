"""Large stores and checkpoints, simulated with sparse files: each reader opens what it needs. No Ray."""

import json
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import raytrain

SCALE = Path(raytrain.__file__).parent.parent / "benchmarks" / "scale.py"


def test_a_window_of_a_billion_samples(tmp_path):
    """In a process of its own, whose peak memory is measured: an index that is read whole takes more than 4 GB."""
    write = f"import sys; sys.path.insert(0, {str(SCALE.parent)!r}); import pathlib, scale; "
    write += f"scale.write_sparse_store(pathlib.Path({str(tmp_path)!r}), 10**9)"
    subprocess.run([sys.executable, "-c", write], check=True)
    run = subprocess.run([sys.executable, str(SCALE), str(tmp_path)], check=True, capture_output=True, text=True)
    found = json.loads(run.stdout)
    assert found["peak memory of the process, GB"] < 1.0


def test_a_worker_of_many_restores_its_part_with_few_requests(tmp_path, monkeypatch):
    """The simulation of benchmarks/scale.py with 64 workers in place of 512, and a small part of the model."""
    monkeypatch.syspath_prepend(str(SCALE.parent))
    simulation = import_module("scale_restore")
    monkeypatch.setattr(simulation, "WRITERS", 64)
    monkeypatch.setattr(simulation, "READERS", (64, 56, 32))
    monkeypatch.setattr(simulation, "LAYERS", 2)
    monkeypatch.setattr(simulation, "WORDS", 1000)
    found = simulation.restores(str(tmp_path))
    assert [found[f"one of {size} workers: files opened"] for size in (64, 56, 32)] == [1, 2, 2]
    assert found["one of 64 workers: bytes read / bytes owned"] == 1.0
    assert found["without the index, one of 64: requests"] > 4 * found["one of 64 workers: requests"]
