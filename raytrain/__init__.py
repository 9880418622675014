"""raytrain: an elastic cluster trainer on Ray. The size of the cluster is not part of the experiment."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from raytrain.errors import CheckpointError, ConfigError, DataError, RaytrainError, TrainingError

if TYPE_CHECKING:
    from raytrain.config import RunConfig
    from raytrain.elastic.run import RunResult

__version__ = "0.1.0"
__all__ = ["CheckpointError", "ConfigError", "DataError", "RaytrainError", "RunResult", "TrainingError", "train"]


def train(
    config: "str | dict[str, Any] | RunConfig",
    *overrides: str,
    progress: bool = False,
    callbacks: Sequence[Any] = (),
) -> "RunResult":
    """Train a run to its end and return its result, as `raytrain train` does.

    Args:
        config: A path, the bare name of a shipped config, a mapping, or a RunConfig.
        overrides: `dotted.key=value` words.
        progress: True: show the run on the terminal, as `raytrain train` does; False: print nothing.
        callbacks: Of Ray Train, as for `ray.train.RunConfig(callbacks=...)`; they are called in the process of its
            controller. One that raises ends the run, after it has saved.

    Returns:
        The result, whose status is finished, stopped_early, or stopped (by Ctrl-C; the same call goes on from there).

    Raises:
        ConfigError: The config is wrong; nothing was started.
        DataError: The data can't be used; nothing was trained.
        TrainingError: The run failed; the message says how.
    """
    # Imported late: `import raytrain` must not cost what Ray and torch cost.
    from raytrain.elastic.run import run_training

    parsed = _parse(config, list(overrides))
    with _observer(progress) as observer:
        result = run_training(parsed, observer, callbacks=callbacks)
    if result.status == "failed":
        raise TrainingError(f"{result.run_path} failed at step {result.step}: {result.message}")
    return result


def _parse(config: "str | dict[str, Any] | RunConfig", overrides: list[str]) -> "RunConfig":
    from raytrain.config import RunConfig
    from raytrain.config_io import load_config, parse_config

    if isinstance(config, RunConfig):
        config = config.model_dump(mode="python", exclude_unset=True)
    return parse_config(config, overrides) if isinstance(config, dict) else load_config(config, overrides)


def _observer(progress: bool) -> Any:
    """A context that gives the observer of a run."""
    if not progress:
        return nullcontext()
    from raytrain.console import RunDisplay

    return RunDisplay()


def __getattr__(name: str) -> Any:
    """`raytrain.RunResult`, whose module takes seconds to import, once someone asks for it."""
    if name == "RunResult":
        from raytrain.elastic.run import RunResult

        return RunResult
    raise AttributeError(f"module 'raytrain' has no attribute {name!r}")
