"""Large stores, simulated with a sparse file: each reader opens what it needs of 10^9 samples. No Ray."""

import json
import subprocess
import sys
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
