"""Ray Train's list of reported checkpoints, which is only a mirror here: an error in it must not end a run. Private
names: see `ray_train.py`."""

import json
import logging
from typing import Any

from ray.train.v2._internal.exceptions import CheckpointManagerInitializationError
from ray.train.v2._internal.execution.checkpoint.checkpoint_manager import CheckpointManager

logger = logging.getLogger(__name__)


class MirroredCheckpoints(CheckpointManager):
    """Like Ray Train's, but storage may fail: runs are resumed from raytrain's own checkpoints."""

    def _maybe_load_state_from_storage(self) -> None:
        try:
            super()._maybe_load_state_from_storage()
        except (OSError, ValueError, AssertionError, CheckpointManagerInitializationError, json.JSONDecodeError):
            logger.warning("the list of reported checkpoints can't be read; a new one is started", exc_info=True)
            for held in (self._checkpoint_results, self._checkpoint_to_report_index, self._pending_training_results):
                held.clear()
            self._latest_checkpoint_result, self._current_report_index = None, 0

    def _save_state_and_delete_old_checkpoints(self) -> None:
        try:
            super()._save_state_and_delete_old_checkpoints()
        except OSError:
            logger.warning("the list of reported checkpoints can't be written", exc_info=True)

    def _write_state_to_storage(self) -> None:
        """Like Ray Train's, but on a file system a reader sees either the old list or the new one."""
        storage: Any = self._storage_context
        filesystem, path = storage.storage_filesystem, storage.checkpoint_manager_snapshot_path
        is_local = filesystem.type_name == "local"
        with filesystem.open_output_stream(f"{path}.new" if is_local else path) as file:
            file.write(self._save_state().encode())
        if is_local:
            filesystem.move(f"{path}.new", path)
