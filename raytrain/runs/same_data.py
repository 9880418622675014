"""The data that a run was begun with, kept in its folder, so that a change is refused before Ray starts (P2)."""

import contextlib
import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from pydantic import TypeAdapter, ValidationError

from raytrain.checkpoint.store import CheckpointStore
from raytrain.config import RunConfig
from raytrain.data.summary import SUMMARY_NAME, summarize
from raytrain.errors import ConfigError, RaytrainError, counted
from raytrain.storage import Storage

if TYPE_CHECKING:
    from raytrain.data.prepared import PreparedStore

DATA = "data.json"


@dataclass(frozen=True, kw_only=True)
class _Sources:
    """What prepared data is made of."""

    paths: dict[str, list[str]]
    contents: dict[str, list[str]]
    """Of each file of a split a hash or an ETag; "" where neither is known."""
    tokenizer: str
    reference: str = ""
    """The weights that a loss compares with; "" where it needs none, or an earlier raytrain has noted nothing."""


@dataclass(frozen=True, kw_only=True)
class _Recorded(_Sources):
    """The contents of data.json."""

    content: str
    """Hash of the prepared data."""


_RECORDED = TypeAdapter(_Recorded)


def check_same_data(run: Storage, config: RunConfig) -> None:
    """Compare the source files with those that the run's checkpoints belong to. Needs no Ray.

    Files with other bytes may hold the same rows. That is known only when they are prepared; until then they are
    refused.

    Raises:
        ConfigError: The run has checkpoints, and the files, the tokenizer or the reference of its loss have changed.
    """
    from raytrain.data.prepare import find_prepared

    step, recorded = _newest_step(run), _read(run)
    if step is None or recorded is None:
        return
    now = _sources_of(config)
    if recorded.reference and now.reference != recorded.reference:
        raise ConfigError(
            f"model.path {config.model.path} holds other weights than when this run's checkpoint of step {step} was "
            "made, and the loss compares with them. Restore them, give the run another name, or start over with "
            "--overwrite"
        )
    changed = _changed(recorded, now)
    if not changed:
        return
    store = find_prepared(config)
    if store is None or store.manifest.content != recorded.content:
        raise _refusal(run, step, changed, is_known=store is not None)


def record_data(run: Storage, config: RunConfig, store: "PreparedStore") -> None:
    """Note what the run is trained on. Raises ConfigError when its checkpoints belong to other data."""
    step, recorded = _newest_step(run), _read(run)
    now = _sources_of(config)
    if step is not None and recorded is not None and recorded.content != store.manifest.content:
        raise _refusal(run, step, _changed(recorded, now) or ["their prepared rows"], is_known=True)
    noted = _Recorded(**asdict(now), content=store.manifest.content)
    run.commit_bytes(DATA, _RECORDED.dump_json(noted, indent=1))


def record_summary(run: Storage, config: RunConfig, store: "PreparedStore") -> None:
    """Note what became of the source rows, for the report, which has no section on data where that fails."""
    with contextlib.suppress(OSError, RaytrainError):
        run.commit_bytes(SUMMARY_NAME, json.dumps(summarize(config, store).to_json()).encode())


def _newest_step(run: Storage) -> int | None:
    newest = next(iter(CheckpointStore(run.at("checkpoints")).candidates()), None)
    return newest.step if newest is not None else None


def _read(run: Storage) -> _Recorded | None:
    """What was noted; None if there is nothing, or it can't be read: the workers compare the prepared data too."""
    try:
        return _RECORDED.validate_json(run.read_bytes(DATA))
    except (FileNotFoundError, ValidationError):
        return None


def _sources_of(config: RunConfig) -> _Sources:
    from raytrain.data.reference import identity_of_reference
    from raytrain.data.sources import check_sources
    from raytrain.models.tokenizer import tokenizer_identity
    from raytrain.tasks import make_task

    splits = check_sources(config.data, make_task(config.task, config.data.max_length))
    paths = {split: [file.path for file in files] for split, files in splits.items()}
    contents = {split: [file.content for file in files] for split, files in splits.items()}
    return _Sources(
        paths=paths,
        contents=contents,
        tokenizer=tokenizer_identity(config.model),
        reference=identity_of_reference(config),
    )


def _changed(recorded: _Recorded, now: _Sources) -> list[str]:
    """What has changed, for people. Where files are may change; what is not known is taken as unchanged."""
    changed = [] if recorded.tokenizer == now.tokenizer else ["the tokenizer"]
    for split, contents in now.contents.items():
        before = recorded.contents.get(split, [])
        if len(before) != len(contents):
            changed.append(f"data.{split}: {counted(len(contents), 'file')}, and not {len(before)}")
            continue
        pairs = zip(before, contents, now.paths[split], strict=True)
        changed += [f"data.{split}: {path}" for old, new, path in pairs if old and new and old != new]
    return changed


def _refusal(run: Storage, step: int, changed: list[str], *, is_known: bool) -> ConfigError:
    shown = ", ".join(changed[:3]) + (", ..." if len(changed) > 3 else "")
    hint = (
        "" if is_known else " If they hold the same rows, `raytrain data prepare CONFIG` finds that out: run it first."
    )
    return ConfigError(
        f"the source files or the tokenizer have changed since this run's checkpoint of step {step} was made, so its "
        f"samples would come in another order ({shown}). Restore them, give the run another name, or start over with "
        f"--overwrite.{hint}"
    )
