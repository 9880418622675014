"""raytrain from Python: one function per command, with the arguments and the meaning of the command.

Importing this module is cheap: Ray, torch and pydantic are imported when a function is called.
"""

import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any, Unpack

from raytrain.errors import ConfigError, TrainingError

if TYPE_CHECKING:
    from raytrain.config import RunConfig
    from raytrain.data.given import Given
    from raytrain.planning.forecast import Forecast
    from raytrain.runs.result import RunResult
    from raytrain.runs.verification import Verification
    from raytrain.tuning.space.space import Space
    from raytrain.tuning.state import SweepResult

AnyPath = str | os.PathLike[str]
Override = str | Mapping[str, Any]
MIB = 2**20


def train(
    config: "AnyPath | Mapping[str, Any] | RunConfig | None" = None,
    *overrides: Override,
    from_sweep: AnyPath | None = None,
    all_data: bool = False,
    trial: str | None = None,
    overwrite: bool = False,
    progress: bool = False,
    callbacks: Sequence[Any] = (),
    **data: "Unpack[Given]",
) -> "RunResult":
    """Train a run to its end and return its result, as `raytrain train` does. The same call again resumes the run.

    Args:
        config: A path, the bare name of a shipped config, a mapping, or a RunConfig.
        overrides: `"dotted.key=value"` strings, whose values are read as YAML, and mappings of dotted keys, whose
            values are taken as they are: `{"training.epochs": 1}`. The last one wins.
        from_sweep: Instead of `config`: the folder of a sweep, whose best trial is trained.
        all_data: With `from_sweep`: train on the validation split too.
        trial: With `from_sweep`: train this trial instead of the best.
        overwrite: Delete what the run has written to its folder first, and start over. Other files stay.
        progress: True: show the run on the terminal, as `raytrain train` does; False: print nothing.
        callbacks: `raytrain.Callback` objects, which are called in this process, and callbacks of Ray Train, as for
            `ray.train.RunConfig(callbacks=...)`, which are called in the process of its controller. If one raises, the
            run saves and ends.
        data: `train`, `validation` and `test`: the data of these splits, instead of the files in the config. Each is a
            Ray Dataset, a pandas DataFrame, a `datasets.Dataset`, an Arrow table or a list of dicts. The rows are
            written to the folder of the prepared data, and the config of the run names their files.

    Returns:
        The result, whose status is finished, stopped_early, or stopped (by Ctrl-C or a callback; the same call resumes
        the run).

    Raises:
        ConfigError: The config is wrong; nothing was started.
        DataError: The data can't be used; nothing was trained.
        TrainingError: The run failed; the message says how.
    """
    if from_sweep is None:
        if config is None:
            raise ConfigError("train() needs a config: a path, the name of a shipped config, a mapping or a RunConfig")
        if all_data or trial is not None:
            raise ConfigError("all_data and trial need from_sweep, the folder of the sweep whose trial is trained")
        return _train(_parse(config, overrides, data), progress, overwrite=overwrite, callbacks=callbacks)
    if config is not None:
        raise ConfigError("train() takes a config or from_sweep, not both: the sweep has its config")
    if data:
        raise ConfigError(f"{', '.join(data)}: with from_sweep, the data is the sweep's")
    from raytrain.storage import Storage
    from raytrain.tuning.best_trial import train_winner

    winner = train_winner(Storage(os.fspath(from_sweep)), _words(overrides), all_data=all_data, trial=trial)
    return _train(winner, progress, overwrite=overwrite, callbacks=callbacks)


def resume(run: AnyPath, *overrides: Override, progress: bool = False, callbacks: Sequence[Any] = ()) -> "RunResult":
    """Resume a run from its newest valid checkpoint, as `raytrain resume` does.

    Args:
        run: The folder of the run, `<storage_path>/<name>`.
        overrides: As for `train`. They must not change the experiment.
        progress, callbacks: As for `train`.

    Raises:
        ConfigError: The folder is not a run's, or an override changes the experiment.
        DataError, TrainingError: As for `train`.
    """
    from raytrain.runs.folder import read_run_config
    from raytrain.storage import Storage

    config = read_run_config(Storage(os.fspath(run)), _words(overrides))
    return _train(config, progress, overwrite=False, callbacks=callbacks)


def verify(
    run: AnyPath, *overrides: Override, steps: int = 20, workers: int | None = None, progress: bool = False
) -> "Verification":
    """Train the first steps of a run again at another number of workers and compare, as `raytrain verify` does.

    Args:
        run: The folder of the run.
        overrides: As for `train`: those of workers.*, ray.* and data.prepared_path.
        steps: Steps to compare, from the first.
        workers: Number of workers; None: 1 if the run had more, else 2.
        progress: As for `train`.

    Raises: as `verify_run` of raytrain.runs.verification.
    """
    from raytrain.runs.verification import verify_run

    with _run_display(progress) as observer:
        return verify_run(os.fspath(run), steps, workers, observer, _words(overrides))


def plan(
    config: "AnyPath | Mapping[str, Any] | RunConfig",
    *overrides: Override,
    gpu: str | None = None,
    nodes: int | None = None,
    gpus_per_node: int | None = None,
    cpus_per_node: int | None = None,
    price: float | None = None,
    bandwidth: float = 100.0,
    calibrate: AnyPath | None = None,
    **data: "Unpack[Given]",
) -> "Forecast":
    """Check a config and estimate what a run needs, as `raytrain plan` does. Starts nothing.

    Args:
        config, overrides: As for `train`.
        gpu: The GPU of each worker: a10g, a100-80, h100, ... or a memory, 24GiB; None: CPU workers.
        nodes, gpus_per_node, cpus_per_node: None: one GPU per node, and as many of the others as needed.
        price: Price of a worker in dollars per hour.
        bandwidth: Upload rate of a worker to storage, in MiB/s.
        calibrate: The folder of a run whose step times are used; None: this config's own.
        data: As for `train`.

    Raises:
        ConfigError, DataError: The config, the data or the model is wrong.
    """
    from raytrain.planning.forecast import Hardware, make_forecast
    from raytrain.planning.gpus import find_gpu

    hardware = Hardware(
        gpu=find_gpu(gpu) if gpu is not None else None,
        num_nodes=nodes,
        gpus_per_node=gpus_per_node,
        cpus_per_node=cpus_per_node,
        price_per_hour=price,
        bandwidth_bytes=bandwidth * MIB,
    )
    return make_forecast(_parse(config, overrides, data), hardware, None if calibrate is None else os.fspath(calibrate))


def tune(
    config: "AnyPath | Mapping[str, Any] | RunConfig",
    *overrides: Override,
    space: "AnyPath | Mapping[str, Any] | Space" = "lr_asha",
    trials: int | None = None,
    max_concurrent: int | None = None,
    progress: bool = False,
    **data: "Unpack[Given]",
) -> "SweepResult":
    """Try many configurations, as `raytrain tune` does. The same call again resumes the sweep.

    Args:
        config, overrides: As for `train`.
        space: The search space: a path, the name of a shipped space, a mapping, or a Space. The folder of the sweep is
            `<storage_path>/<name>-<name of the space>`; a mapping's name is `space`.
        trials: Configurations to try, instead of the space's.
        max_concurrent: Maximum number of trials at a time.
        progress: True: show the sweep on the terminal; False: print nothing.
        data: As for `train`.

    Raises:
        ConfigError, DataError: Nothing was started.
        TrainingError: Every trial failed, or more than the space's `max_failed`. Its code is the one of most trials.
    """
    from raytrain.config.from_python import raw_of, words_of
    from raytrain.data.given import with_given
    from raytrain.tuning.sweep import run_sweep

    for option, number in (("trials", trials), ("max_concurrent", max_concurrent)):
        if number is not None and number < 1:
            raise ConfigError(f"{option} {number} is less than 1")
    name, chosen = _space(space)
    raw, words = raw_of(config), words_of(with_given(config, overrides, data) if data else overrides)
    with _sweep_display(progress) as observer:
        result = run_sweep(raw, words, chosen.with_trials(trials), name, observer, max_concurrent=max_concurrent)
    if result.status == "failed":
        reason = result.message or "every trial failed"
        raise TrainingError(
            f"{result.path}: {reason}; `raytrain report {result.path}` lists the reasons", result.failure_code
        )
    return result


def report(*runs: AnyPath, output: AnyPath | None = None) -> str:
    """Write the report.html and the plots of a run, the sweep.html of a sweep, or one page that compares several runs,
    as `raytrain report` does.

    Args:
        runs: Folders of runs, or the folder of one sweep.
        output: The file to write with several runs; None: comparison.html in the current folder.

    Returns the full path of the page. Raises ConfigError if a folder is neither a run's nor a sweep's.
    """
    from raytrain.runs.folder import read_run_config
    from raytrain.storage import Storage
    from raytrain.tuning.best_trial import is_sweep

    folders = [Storage(os.fspath(run)) for run in runs]
    if len(folders) == 1 and output is not None:
        raise ConfigError(
            "--output names the page that compares several runs; a single report is written to the run's own folder"
        )
    if len(folders) == 1 and is_sweep(folders[0]):
        from raytrain.tuning.report import build_sweep_report

        return build_sweep_report(folders[0])
    for folder in folders:
        if is_sweep(folder):
            raise ConfigError(
                f"{folder.path_of()} is a sweep, which has a page of its own; to compare its trials, name their "
                f"folders, {folder.path_of('trials')}/..."
            )
        read_run_config(folder)  # refuses what is not a run's folder
    # Imported late: they import matplotlib, and a mistyped folder is reported sooner without it.
    if len(folders) == 1:
        from raytrain.reports.html import build_report

        return build_report(folders[0])
    from raytrain.reports.compare import COMPARISON, build_comparison

    return build_comparison(folders, os.fspath(output or COMPARISON))


def ray_train_loop(
    config: "AnyPath | Mapping[str, Any] | RunConfig", *overrides: Override, **data: "Unpack[Given]"
) -> "Callable[[], dict[str, Any]]":
    """A `train_loop_per_worker` for a `ray.train.torch.TorchTrainer` of your own, with fixed or elastic workers.

    Checks the config, prepares the data if it is not prepared yet, and creates the run's folder. The trainer's
    ScalingConfig says how many workers there are and what each holds; `workers.data_cpus` is the config's.

    Args:
        config, overrides, data: As for `train`.

    Returns:
        A callable without arguments. On each worker it trains the run from its newest state to its end, reports with
        `ray.train.report`, and returns a mapping with status, step and final_metrics.

    Raises:
        ConfigError: The config is wrong; nothing was started.
        DataError: The data can't be used.
    """
    from raytrain.runs.ray_train_loop import prepare_loop

    return prepare_loop(_parse(config, overrides, data))


def _parse(config: Any, overrides: Sequence[Override], data: "Given") -> "RunConfig":
    from raytrain.config.from_python import parse

    if not data:
        return parse(config, overrides)
    from raytrain.data.given import with_given

    return parse(config, with_given(config, overrides, data))


def _words(overrides: Sequence[Override]) -> list[str]:
    from raytrain.config.from_python import words_of

    return words_of(overrides)


def _space(space: Any) -> "tuple[str, Space]":
    """(name, space) of what `tune` is given."""
    from raytrain.tuning.space.space import Space, load_space, parse_space, space_name

    if isinstance(space, str | os.PathLike):
        return space_name(os.fspath(space)), load_space(os.fspath(space))
    return "space", space if isinstance(space, Space) else parse_space(space, "the space")


def _train(config: "RunConfig", progress: bool, *, overwrite: bool, callbacks: Sequence[Any]) -> "RunResult":
    from raytrain.runs.run import run_training

    with _run_display(progress) as observer:
        result = run_training(config, observer, overwrite=overwrite, callbacks=callbacks)
    if result.status == "failed":
        raise TrainingError(f"{result.run_path} failed at step {result.step}: {result.message}", result.failure_code)
    return result


def _run_display(progress: bool) -> AbstractContextManager[Any]:
    """Context whose value is the observer of a run."""
    from raytrain.terminal.run import RunDisplay

    return RunDisplay() if progress else nullcontext()


def _sweep_display(progress: bool) -> AbstractContextManager[Any]:
    """Context whose value is the observer of a sweep."""
    from raytrain.terminal.sweep import SweepDisplay

    return SweepDisplay() if progress else nullcontext()
