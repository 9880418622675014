"""Finds the shipped YAML files, in an installed wheel as in a checkout."""

import contextlib
import itertools
import os
import re
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import Path

from raytrain.config import CommunicationConfig, Exactness, TrainingConfig
from raytrain.errors import ConfigError, did_you_mean


def config_names() -> list[str]:
    """Bare names of the shipped run configs."""
    folder = resources.files("raytrain") / "configs"
    return sorted(entry.name.removesuffix(".yaml") for entry in folder.iterdir() if entry.name.endswith(".yaml"))


def describe_config(name: str) -> str:
    """The first sentence of the comment at the head of a shipped config, in one line."""
    lines = Path(find_config(name)).read_text(encoding="utf-8").splitlines()
    head = itertools.takewhile(lambda line: line.startswith("# "), lines)
    comment = " ".join(line.removeprefix("# ") for line in head)
    return re.split(r"\.(?:\s|$)", comment, maxsplit=1)[0]


def space_names() -> list[str]:
    """Bare names of the shipped search spaces."""
    return sorted(entry.name.removesuffix(".yaml") for entry in _spaces().iterdir() if entry.name.endswith(".yaml"))


def cluster_names() -> list[str]:
    """Paths of the shipped cluster files, below their folder: `ray_up/aws.yaml`."""
    folders = [entry for entry in _packed("cluster").iterdir() if entry.is_dir()]
    return sorted(f"{folder.name}/{entry.name}" for folder in folders for entry in folder.iterdir() if entry.is_file())


def find_cluster_file(name: str) -> str:
    """Path of a cluster file given as a path, or as a shipped one's path or bare name (aws, rayjob_train, Dockerfile).

    Raises:
        ConfigError: There is neither; the nearest name is given.
    """
    if os.path.isfile(name):
        return name
    shipped = {path.rpartition("/")[2].partition(".")[0]: path for path in reversed(cluster_names())}
    path = shipped.get(name, name)
    if path not in cluster_names():
        raise ConfigError(_no_such(name, sorted(shipped), "cluster"))
    return str(_packed("cluster") / path)


def worker_variables(training: TrainingConfig) -> dict[str, str]:
    """The environment variables that a worker sets before it computes or connects. Raises ConfigError."""
    variables = communication_variables(training.communication)
    if training.exactness is Exactness.BITWISE and "MKL_CBWR" not in os.environ:
        # Else MKL's products of some shapes depend on where in memory a matrix begins, and so on how weights are
        # flattened. It reads the variable once, at its first product.
        variables["MKL_CBWR"] = "AUTO,STRICT"
    return variables


def communication_variables(communication: CommunicationConfig) -> dict[str, str]:
    """The environment variables that a worker sets before it connects: those of its network, and the config's own.

    Raises:
        ConfigError: There is no such network; the nearest is given.
    """
    network = communication.network
    return {**(_network_variables(network) if network else {}), **communication.environment}


def _network_variables(name: str) -> dict[str, str]:
    """The variables of a shipped file, cluster/network/<name>.env. Raises ConfigError."""
    files = {entry.name.removesuffix(".env"): entry for entry in (_packed("cluster") / "network").iterdir()}
    if name not in files:
        raise ConfigError(f"training.communication.network: {_no_such(name, sorted(files), 'network')}")
    lines = files[name].read_text(encoding="utf-8").splitlines()
    pairs = (line.partition("=") for line in lines if line and not line.startswith("#"))
    return {variable: value for variable, _, value in pairs}


def _spaces() -> Traversable:
    return _packed("tune_spaces")


def _packed(name: str) -> Traversable:
    """A folder of data files. In a wheel it is inside the package, in a checkout next to it."""
    packed = resources.files("raytrain") / "_assets" / name
    return packed if packed.is_dir() else Path(__file__).parents[2] / name


def find_space(space: str) -> str:
    """Path of a search space given as a path, or as the bare name of a shipped one. Raises ConfigError likewise."""
    return _find(space, space_names(), "search space", _spaces())


def find_config(config: str) -> str:
    """Path of a run config given as a path, or as the bare name of a shipped one.

    Raises:
        ConfigError: There is neither; the nearest name is given.
    """
    return _find(config, config_names(), "config", resources.files("raytrain") / "configs")


def _find(name: str, shipped: list[str], what: str, folder: Traversable) -> str:
    if os.path.isfile(name):
        return name
    if name in shipped:
        return str(folder / f"{name}.yaml")
    raise ConfigError(_no_such(name, shipped, what))


def _no_such(name: str, shipped: list[str], what: str) -> str:
    hint = did_you_mean(name, [*shipped, *_files_near(name)]) if what != "network" else did_you_mean(name, shipped)
    is_relative = what != "network" and not os.path.isabs(name)
    where = f" (looked for {os.path.abspath(name)})" if is_relative else ""
    return f"no {what} file {name!r}{where}, nor a shipped {what} of that name ({', '.join(shipped)}){hint}"


def _files_near(name: str) -> list[str]:
    """The YAML files of the folder in which a file was looked for, as they can be given."""
    folder = os.path.dirname(name)
    with contextlib.suppress(OSError):
        return [
            os.path.join(folder, one) for one in sorted(os.listdir(folder or ".")) if one.endswith((".yaml", ".yml"))
        ]
    return []
