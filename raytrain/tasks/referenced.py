"""What a task has whose loss compares with the model that training starts from."""

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Referenced(ABC):
    """A task class inherits from this beside `Task`. What the reference says of a sample does not change in a training,
    so it is computed once, when the data is prepared, and stored in a column."""

    reference_column = "reference"

    @property
    @abstractmethod
    def has_reference(self) -> bool:
        """Whether its loss needs the column."""

    @abstractmethod
    def refer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> np.ndarray:
        """What the reference says of each sample of a batch, fp32, of shape (num_samples, ...).

        Args:
            model: The model that training starts from, without an adapter.
        """


def refuse_without_reference(task: Any) -> None:
    """Raises ConfigError when the loss of a task needs what its reference says, which is only known of prepared
    data."""
    if isinstance(task, Referenced) and task.has_reference:
        raise ConfigError(
            "the loss and the rewards of this model compare with the model that its training began with, which is not "
            "part of the trained one: for other rows give raytrain eval RUN data.test.path=FILE"
        )
