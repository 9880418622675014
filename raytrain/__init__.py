"""raytrain: an elastic cluster trainer on Ray. The size of the cluster is not part of the experiment."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from raytrain.config import RunConfig
    from raytrain.elastic.run import RunResult

__version__ = "0.1.0"


def train(config: "str | dict[str, Any] | RunConfig", *overrides: str) -> "RunResult":
    """Train a run to its end and return its result, as `raytrain train` does.

    Args:
        config: A path, the bare name of a shipped config, a mapping, or a RunConfig.
        overrides: `dotted.key=value` words.

    Raises:
        ConfigError: The config is wrong; nothing was started.
        DataError: The data can't be used; nothing was trained.
        TrainingError: The run failed.
    """
    # Imported late: `import raytrain` must not cost what Ray and torch cost.
    from raytrain.config import RunConfig
    from raytrain.config_io import load_config, parse_config
    from raytrain.elastic.run import run_training

    if isinstance(config, RunConfig):
        config = config.model_dump(mode="python", exclude_unset=True)
    parsed = parse_config(config, list(overrides)) if isinstance(config, dict) else load_config(config, list(overrides))
    return run_training(parsed)
