"""Prepares a command to run on a cluster: validates it on the user's machine and turns its config into data.

The job's command line is the one that was typed, with the files that it names replaced by files that are sent with it.
What each parameter is, the command itself declares (see `arguments`).
"""

import os
from collections.abc import Sequence
from dataclasses import dataclass, field

from raytrain.config import RunConfig
from raytrain.config.io import IN_ENVIRONMENT, load_config, read_config
from raytrain.config.yaml import to_yaml
from raytrain.errors import ConfigError
from raytrain.launch.arguments import Argument, Sent
from raytrain.redaction import redact
from raytrain.runs.folder import read_run_config
from raytrain.runs.preflight import check_elsewhere, local_paths
from raytrain.storage import Storage
from raytrain.tuning.best_trial import winner_suffix
from raytrain.tuning.space.space import check_space, load_space, space_name
from raytrain.tuning.sweep import metric_of

FOLDER = "raytrain_job"  # holds the files that are sent, inside the job's working directory
# The job is told on the cluster which Ray to join, whatever address the run's own config has.
JOIN_THIS_CLUSTER = "ray.address=null"
OVERRIDING = (Sent.CONFIG, Sent.OVERRIDES)  # where the config is the one of a run or sweep, both are overrides
PLACES = (Sent.RUN, Sent.SWEEP, Sent.FOLDER)


@dataclass(frozen=True)
class Request:
    """A job's command, and the files that it needs."""

    words: list[str]
    """The job's command line, after `raytrain`."""
    run: str
    """Folder of the run or sweep; empty: none."""
    needs_folder_alone: bool = True
    """Whether the job trains in that folder: the driver of a second such job would refuse to start."""
    files: dict[str, bytes] = field(default_factory=dict)
    """Name -> contents."""
    data_paths: list[str] = field(default_factory=list)
    """Paths on file systems that the config names."""


def make_request(command: str, arguments: Sequence[Argument], *, needs_folder_alone: bool) -> Request:
    """Validate a command as far as this machine can, and prepare it for sending.

    Args:
        command: Its name.
        arguments: Those that were typed, and of the others those that are not sent as typed and have a default.

    Raises:
        ConfigError: It can't run on a cluster, or its config has mistakes.
    """
    _check_places(command, arguments)
    by_kind = {argument.sent: argument for argument in arguments}
    if Sent.RUN in by_kind or Sent.SWEEP in by_kind:
        return _with_run(command, arguments, by_kind, needs_folder_alone)
    if Sent.CONFIG in by_kind:
        return _with_config(command, arguments, by_kind, needs_folder_alone)
    return Request(_words(command, arguments, {}), "", needs_folder_alone)


def _with_run(
    command: str, arguments: Sequence[Argument], by_kind: dict[Sent, Argument], needs_folder_alone: bool
) -> Request:
    """The request of a command on an existing run or sweep, whose config is read on the cluster."""
    overrides = [word for argument in arguments if argument.sent in OVERRIDING for word in argument.words]
    if Sent.SWEEP in by_kind:
        options = {argument.name: argument.value for argument in arguments}
        suffix = winner_suffix(options.get("trial"), all_data=options.get("all_data", False))
        folder = f"{_place(by_kind[Sent.SWEEP].value)}-{suffix}"
    else:
        folder = _place(by_kind[Sent.RUN].value)
        if needs_folder_alone and os.path.isabs(folder) and os.path.isdir(folder):  # this machine mounts it too
            check_elsewhere(read_run_config(Storage(folder), overrides))
    return Request(_words(command, arguments, {}, [*overrides, JOIN_THIS_CLUSTER]), folder, needs_folder_alone)


def _with_config(
    command: str, arguments: Sequence[Argument], by_kind: dict[Sent, Argument], needs_folder_alone: bool
) -> Request:
    """The request of a command whose config is sent along, with the overrides in it, and with its search space."""
    given = by_kind[Sent.CONFIG].value
    overrides = by_kind[Sent.OVERRIDES].words if Sent.OVERRIDES in by_kind else []
    name = f"{FOLDER}/config.yaml"
    replaced, files, suffix = {Sent.CONFIG: name}, {}, ""
    if (space := by_kind.get(Sent.SPACE)) is not None:
        config, content = _checked_space(space.value, given, overrides)
        suffix = f"-{space_name(space.value)}"
        replaced[Sent.SPACE] = f"{FOLDER}/space/{space_name(space.value)}.yaml"
        files[replaced[Sent.SPACE]] = content
    else:
        config = load_config(given, overrides)
    check_elsewhere(config)
    raw = config.model_dump(mode="json", exclude_unset=True)
    raw.pop("ray", None)  # see JOIN_THIS_CLUSTER
    return Request(
        words=_words(command, arguments, replaced),
        run=f"{config.storage_path.rstrip('/')}/{config.name}{suffix}",
        needs_folder_alone=needs_folder_alone,
        files={name: to_yaml(raw).encode(), **files},
        data_paths=[path for _, path in local_paths(config)],
    )


def _checked_space(given: str, config: str, overrides: list[str]) -> tuple[RunConfig, bytes]:
    """(config without the space's values, contents of the space's file)."""
    space = load_space(given)
    checked = check_space(space, read_config(config), overrides)
    metric_of(space, checked)
    return checked, to_yaml(space.model_dump(mode="json", exclude_unset=True)).encode()


def _words(
    command: str, arguments: Sequence[Argument], replaced: dict[Sent, str], overrides: Sequence[str] = ()
) -> list[str]:
    """The job's command line.

    Args:
        replaced: The name of the sent file for each kind of parameter that names one.
        overrides: Sent instead of the arguments that are overrides.
    """
    words: list[str] = []
    options: list[str] = []
    for argument in arguments:
        sent = argument.sent
        if sent is Sent.OVERRIDES or (sent is Sent.CONFIG and sent not in replaced):
            continue
        values = [replaced[sent]] if sent in replaced else argument.words
        if sent in PLACES:
            values = [_place(value) for value in values]
        if not argument.option:
            words += values
        elif isinstance(argument.value, bool):  # a flag: its name is all of it
            options.append(argument.option)
        else:
            options += [word for value in values for word in (argument.option, value)]
    return [command, *words, *overrides, *options]


def _check_places(command: str, arguments: Sequence[Argument]) -> None:
    """Raises ConfigError for a parameter that means nothing on the cluster, or holds a credential."""
    for argument in arguments:
        what = argument.option or argument.name.upper()
        for word in argument.words:
            if redact(word) != word:  # Ray's dashboard shows a job's command line
                raise ConfigError(f"{what}: {IN_ENVIRONMENT['url' if '://' in word else 'name']}")
        if argument.sent is Sent.NEVER:
            raise ConfigError(f"a submitted {command} works on the cluster that it is sent to; omit its own {what}")
        if argument.sent in PLACES and "://" not in argument.value and not os.path.isabs(argument.value):
            raise ConfigError(
                f"{what} {argument.value}: a path relative to a folder of this machine; give the absolute path of a "
                "folder that all nodes share, or a URI. If they share this one: "
                f"{os.path.abspath(os.path.expanduser(argument.value))}"
            )


def _place(path: str) -> str:
    """A folder in one spelling: two submissions of one run are recognized by it."""
    return path.rstrip("/")
