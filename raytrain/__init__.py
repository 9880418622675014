"""raytrain: an elastic cluster trainer on Ray. The size of the cluster is not part of the experiment."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

from raytrain.errors import CheckpointError, ConfigError, DataError, RaytrainError, TrainingError

if TYPE_CHECKING:
    from collections.abc import Callable

    from raytrain.config import RunConfig
    from raytrain.runs.ray_train_resize import GracefulResize
    from raytrain.runs.run import RunResult

__version__ = "0.1.0"
__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "GracefulResize",
    "RaytrainError",
    "RunResult",
    "TrainingError",
    "ray_train_loop",
    "train",
]


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
    from raytrain.runs.run import run_training
    from raytrain.training.outcome import RunStatus

    parsed = _parse(config, list(overrides))
    with _observer(progress) as observer:
        result = run_training(parsed, observer, callbacks=callbacks)
    if result.status is RunStatus.FAILED:
        raise TrainingError(f"{result.run_path} failed at step {result.step}: {result.message}", result.failure_code)
    return result


def ray_train_loop(config: "str | dict[str, Any] | RunConfig", *overrides: str) -> "Callable[[], dict[str, Any]]":
    """A `train_loop_per_worker` for a `ray.train.torch.TorchTrainer` of your own, with fixed or elastic workers.

    Checks the config, prepares the data when it is not prepared yet, and begins the run's folder. The trainer's
    ScalingConfig says how many workers there are and what each holds; `workers.data_cpus` is the config's.

    Args:
        config: A path, the bare name of a shipped config, a mapping, or a RunConfig.
        overrides: `dotted.key=value` words.

    Returns:
        A callable without arguments. On each worker it trains the run from where it stands to its end, reports with
        `ray.train.report`, and returns a mapping with status, step and final_metrics.

    Raises:
        ConfigError: The config is wrong; nothing was started.
        DataError: The data can't be used.
    """
    from raytrain.runs.ray_train_loop import prepare_loop

    return prepare_loop(_parse(config, list(overrides)))


def _parse(config: "str | dict[str, Any] | RunConfig", overrides: list[str]) -> "RunConfig":
    from raytrain.config import RunConfig
    from raytrain.config.io import load_config, parse_config

    if isinstance(config, RunConfig):
        config = config.model_dump(mode="python", exclude_unset=True)
    return parse_config(config, overrides) if isinstance(config, dict) else load_config(config, overrides)


def _observer(progress: bool) -> Any:
    """A context that gives the observer of a run."""
    if not progress:
        return nullcontext()
    from raytrain.terminal.run import RunDisplay

    return RunDisplay()


def __getattr__(name: str) -> Any:
    """What takes seconds to import, once someone asks for it."""
    if name == "RunResult":
        from raytrain.runs.run import RunResult

        return RunResult
    if name == "GracefulResize":
        from raytrain.runs.ray_train_resize import GracefulResize

        return GracefulResize
    raise AttributeError(f"module 'raytrain' has no attribute {name!r}")
