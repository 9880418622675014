"""`raytrain doctor` without a cluster: this machine, through a private Ray."""

from pathlib import Path

import pytest
from running import run_cli, tiny_run, write_config


@pytest.mark.slow
def test_this_machine_for_a_run(tmp_path: Path) -> None:
    """Whatever is said of the machine, what the run needs of it works; and no folder is left."""
    run = tiny_run(tmp_path, "reviews", "workers={max: 2}", "checkpoint.snapshot_every_steps=null")
    config = write_config(run, tmp_path)
    code, output = run_cli("doctor", config)
    assert code in (0, 1), output
    lines = {line.split("  ")[0]: line for line in output.splitlines()}
    for check in ("nodes", "versions", "clock", "storage", "all-reduce", "workers"):
        assert lines[check].removeprefix(check).split()[0] == "ok", output
    assert "2 processes" in lines["all-reduce"]
    assert "room for 2 now" in lines["workers"]
    assert not (tmp_path / "runs").exists()
