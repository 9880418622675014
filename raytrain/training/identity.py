"""What a saved state belongs to: the prepared data, the order of its samples, the frozen weights, and the environment.

Resuming with another of them would drop and repeat samples, or combine weights that don't belong together.
"""

from typing import Any

from raytrain.errors import ConfigError
from raytrain.steps.copies import COPIES_VERSION
from raytrain.steps.order import ORDER_VERSION, Order
from raytrain.training.environment import ENVIRONMENT
from raytrain.training.frozen import check_frozen

# Fields of state.json.
DATA_CONTENT, FROZEN_WEIGHTS, SAMPLE_ORDER = "data_content", "frozen_weights", "sample_order"


class Identity:
    """The identity of a run's states, as one worker knows it."""

    def __init__(
        self,
        data_content: str,
        frozen: str | None,
        order: Order | None,
        environment: dict[str, str | int] | None = None,
    ):
        """Args:
        data_content: Hash of the prepared data.
        frozen: Hash of the frozen weights; None: there are none.
        order: On rank 0, which writes the state; None on other workers.
        environment: Of this worker; None: not recorded.
        """
        self._data_content, self._frozen, self._order = data_content, frozen, order
        self._environment = environment

    def of(self, step: int) -> dict[str, Any]:
        """Part of the state.json of a step."""
        order = None if self._order is None else order_identity(self._order, step)
        return {
            DATA_CONTENT: self._data_content,
            FROZEN_WEIGHTS: self._frozen,
            SAMPLE_ORDER: order,
            ENVIRONMENT: self._environment,
        }

    def check(self, state: dict[str, Any], step: int) -> None:
        """Raises ConfigError when the state of a step can't be resumed from, on one worker at least."""
        check_frozen(self._frozen, state.get(FROZEN_WEIGHTS), step)
        if self._order is not None:
            check_order(self._order, state, step)


def check_data(content: str, state: dict[str, Any], step: int) -> None:
    """Raises ConfigError when a checkpoint was made with other data. `content`: hash of the prepared data."""
    if state.get(DATA_CONTENT) != content:
        raise ConfigError(
            f"the source files or the tokenizer have changed since this run's checkpoint of step {step} was made, so "
            "its samples would come in another order. Restore them, give the run another name, or start over with "
            "--overwrite"
        )


def order_identity(order: Order, step: int) -> dict[str, Any]:
    """Identifies the order of the samples from `step` (steps done) on."""
    epoch, step_in_epoch = divmod(step, max(1, order.steps_per_epoch))
    window = order.window_hash(epoch, step_in_epoch) if order.steps_per_epoch else None
    with_copies = {} if order.copies is None else {"copies_version": COPIES_VERSION}
    return {"version": ORDER_VERSION, **with_copies, "window_sha256": window}


def check_order(order: Order, state: dict[str, Any], step: int) -> None:
    """Raises ConfigError when the samples after `step` would come in another order than the one in which the state's
    run has seen the samples before it."""
    saved, found = state.get(SAMPLE_ORDER), order_identity(order, step)
    if saved == found:
        return
    import numpy

    version, copies = (saved.get("version"), saved.get("copies_version")) if isinstance(saved, dict) else (None, None)
    if version == ORDER_VERSION and copies == found.get("copies_version"):
        cause = f"probably by another version of numpy, which is {numpy.__version__} here"
    else:
        versions = [f"version {version}, this one's {ORDER_VERSION}"]
        if order.copies is not None:
            versions.append(f"copies of samples version {copies}, this one's {COPIES_VERSION}")
        cause = f"by another version of raytrain (its order has {'; '.join(versions)})"
    raise ConfigError(
        f"the state of step {step} was saved with another order of the samples, {cause}: some samples would be dropped "
        "and others repeated. Install the version that the run began with (its commands.jsonl names it), give the run "
        "another name, or start over with --overwrite"
    )
