"""Environment variables that keep Ray's own messages off the terminal, where raytrain reports the same in a line."""

import os

QUIET = {
    "RAY_DEDUP_LOGS": "1",
    # A sweep starts and ends many processes on purpose, so messages about them are noise. The run itself reports
    # failures and lost nodes, and where JSON is printed, nothing else may be.
    "RAY_DEDUP_LOGS_SKIP_REGEX": "|".join(
        (
            "PYTHON worker processes have been started",
            "A worker died or was killed",
            "The node with node id",
            "Raylet is terminated",  # with the last twenty lines of its log
            "There are infinite retries remaining",  # of tasks of Ray Data's actors that have left with a node
        )
    ),
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
    "TOKENIZERS_PARALLELISM": "false",
}


def quieten() -> None:
    """Set them, unless the user has. Ray reads some when it is imported: a command calls this first."""
    for name, value in QUIET.items():
        os.environ.setdefault(name, value)
