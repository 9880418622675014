"""What is printed for the lines of a run's events.jsonl."""

from typing import Any

_PHASES = (
    "({detect_s} s to notice, {save_s} s to save, {wait_s} s for room, {regroup_s} s to regroup, {load_s} s to load, "
    "{first_step_s} s for the first step)"
)
_CHANGE = "{cause}: {world_size_before} -> {world_size} worker(s), {steps_redone} steps redone, {seconds} s " + _PHASES
EVENT_TEXTS = {
    "resize": _CHANGE.replace("to notice", "until new workers were ready"),
    "reclaim": _CHANGE,
    "failure": _CHANGE,
    "begin": "redoing {steps_redone} step(s) that the last command did after that checkpoint",
    "start": "attempt {attempt}: {world_size} worker(s)",
    "zero_stage": "ZeRO stage {stage}, the lowest that fits into {usable_mib} MiB per worker",
    "packing": "samples are padded, not packed: {reason}",
    "compile": "training.compile: layers are not compiled: {reason}",
    "restore": "resuming from the {source} of step {step}",
    "damaged_snapshot": "[yellow]the snapshot of step {step} was skipped: {reason}",
    "no_snapshots": "[yellow]no snapshots: they need {needed_mib} MiB of a node's object store and may use half of it, "
    "{half_mib} MiB; after a crash the run resumes from a checkpoint",
    "late_snapshot": "[yellow]the snapshot that was due at step {since} has not been taken by step {step}, since "
    "the one before, or best/, is still being written",
    "damaged_checkpoint": "[yellow]the checkpoint of step {step} is damaged and was skipped: {reason}",
    "other_environment": "[yellow]training.exactness=bitwise: {difference}; from here on the weights may differ "
    "from an undisturbed run's in their last bits",
    "loss_spike": "[yellow]step {step} was left out: its loss {loss} is a spike, above {limit}",
    "tracker": "[yellow]{tracker}: {reason}; training continues",
    "early_stop": "stopping early at step {step}: the best model is that of step {best_step}",
    "ranks": "AdaLoRA has kept {kept} of {first} ranks",
}
TIGHT = "[yellow]ZeRO stage {stage} needs the least memory, about {needed_mib} MiB, and a worker has {usable_mib}"
_OPTIONAL = ("packing", "compile")


def event_text(row: dict[str, Any]) -> str | None:
    """The text for an event; None if nothing is printed for it."""
    if row["kind"] == "failure" and "seconds" not in row:  # it ended the run, which says so
        return None
    if row["kind"] == "begin" and not row.get("steps_redone"):
        return None
    if (row["kind"] == "zero_stage" and not row["is_chosen"]) or (row["kind"] in _OPTIONAL and row["is_used"]):
        return None
    if row["kind"] == "zero_stage" and row["needed_mib"] > row["usable_mib"]:
        return TIGHT
    return EVENT_TEXTS.get(row["kind"])
