"""A function of the user's own that changes training samples, and what is wrong with what it returns."""

from typing import Any

import pyarrow as pa

from raytrain.errors import ConfigError, RaytrainError
from raytrain.tasks.base import BatchContext
from raytrain.tasks.imported import check_source, file_of, import_function
from raytrain.tasks.user_code import told

CUSTOM = "data.augment.custom"
TOKENS = ("input_ids", "token_type_ids")  # with a value for each token; with tags `labels` too


class CustomAugment:
    """Calls the function for each sample, with the sample's own random numbers."""

    def __init__(self, target: str, source: str | None, max_length: int):
        """Args:
            source: `source_hash` of its package, as the run was started with.
            max_length: data.max_length, in tokens.

        Raises ConfigError when it can't be imported, is not a function, or the package's files are others.
        """
        self._target, self._max_length = target, max_length
        self._function, self._file = import_function(target, CUSTOM), file_of(target, CUSTOM)
        check_source(target, source, CUSTOM, "data.augment.custom_source")

    def __call__(self, samples: pa.Table, context: BatchContext) -> pa.Table:
        """The samples, changed. Raises ConfigError naming the sample when the function fails or returns nonsense."""
        rows = []
        for place, sample in enumerate(samples.to_pylist()):
            which = f"{CUSTOM} {self._target}: for training sample {int(context.ids[place])}"
            try:
                changed = self._function(dict(sample), context.generator(place))
            except RaytrainError:
                raise
            except Exception as error:
                raise ConfigError(f"{which} it failed: {told(error, self._file)}") from error
            if problem := self._problem(changed, sample):
                raise ConfigError(f"{which} it returned {problem}")
            try:
                rows.append(pa.Table.from_pylist([changed], schema=samples.schema))
            except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
                raise ConfigError(f"{which} it returned a value of another type: {told(error, None)}") from error
        return pa.concat_tables(rows)

    def _problem(self, changed: Any, sample: dict[str, Any]) -> str:
        """What is wrong with a changed sample, or an empty string."""
        if not isinstance(changed, dict):
            return f"a {type(changed).__name__}, and not a dict"
        if set(changed) != set(sample):
            return f"a dict of {', '.join(map(repr, changed))}, and not of {', '.join(map(repr, sample))}"
        names = (*TOKENS, "labels") if "sentence_lengths" in sample else TOKENS
        lists = {name: changed[name] for name in names if name in sample}
        if wrong := next((name for name, value in lists.items() if not isinstance(value, list)), None):
            return f"{wrong} that is not a list"
        sizes = {name: len(value) for name, value in lists.items()}
        if len(set(sizes.values())) > 1:
            return f"lists of different lengths: {', '.join(f'{name} {size}' for name, size in sizes.items())}"
        if not 1 <= sizes["input_ids"] <= self._max_length:
            return f"{sizes['input_ids']} tokens, and not 1 to {self._max_length} (data.max_length)"
        return ""
