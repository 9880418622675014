"""How the rows of the training data hold conversations, by the columns of its first file."""

import functools
import logging

from raytrain.config import DataConfig
from raytrain.config.chat import ChatConfig, ChatFormat
from raytrain.data.listing import list_split
from raytrain.data.readers import NoRowsError, column_names
from raytrain.errors import ConfigError
from raytrain.tasks.conversations import input_columns, target_columns

logger = logging.getLogger(__name__)


def chat_format(task: ChatConfig, data: DataConfig) -> ChatFormat:
    """The format whose columns the first file of data.train has. Raises ConfigError when that is not exactly one."""
    file = list_split(data.train, "data.train")[0]
    try:
        found = column_names(file)
    except (OSError, ValueError, NoRowsError):
        return ChatFormat.MESSAGES  # what is wrong with the file is said where it is checked
    needed = {one: _columns(task, one) for one in ChatFormat}
    fitting = [one for one, columns in needed.items() if set(columns) <= set(found)]
    if len(fitting) == 1:
        _tell(f"task.format={fitting[0]}, as {file.path} has {', '.join(map(repr, needed[fitting[0]]))}")
        return fitting[0]
    which = "; ".join(f"{one}: {', '.join(columns)}" for one, columns in needed.items())
    how = f"fits {' and '.join(fitting)}" if fitting else "fits none of them"
    raise ConfigError(
        f"task.format: {file.path} has the columns {', '.join(map(repr, found))}, which {how} ({which}). Set "
        "task.format, and the names of its columns where they differ (task.*_column)"
    )


def _columns(task: ChatConfig, which: ChatFormat) -> list[str]:
    """Those that a file has to have; the second column of a question and that of tools may be other options' matter."""
    config = task.model_copy(update={"format": which, "input_column": None, "tools_column": None})
    return [*input_columns(config), *target_columns(config)]


@functools.cache
def _tell(said: str) -> None:
    """A command may ask several times."""
    logger.warning("%s", said)
