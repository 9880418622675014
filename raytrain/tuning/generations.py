"""Runs population-based training from one generation to the next: waits, decides, and exchanges models.

All trials train up to the same step, save, and release their workers. When the last one has arrived, the driver makes
its decisions once, copies the best trials' checkpoints to the worst ones, and lets all continue:

    population/0000.json   decisions after the first generation: every trial's value, source and values
    population/0000.done   marks the exchange as complete

A sweep that was interrupted between the two repeats the copies, which changes nothing. If it was interrupted before the
first, the trials reach the same step again with the same values.
"""

import functools
import itertools
import json
import math
import time
from collections.abc import Mapping
from typing import Any

from raytrain.checkpoint.folder import delete_folder
from raytrain.checkpoint.store import CheckpointStore, Saved
from raytrain.retries import retrying
from raytrain.training.records import JsonlWriter
from raytrain.tuning.generation_end import decided_after, decision_name, done_name, num_done
from raytrain.tuning.pool.broker import Broker
from raytrain.tuning.population.explore import Member, exchange
from raytrain.tuning.population.pb2 import Gain
from raytrain.tuning.space.space import in_words
from raytrain.tuning.state import Sweep
from raytrain.tuning.trials import BEST, TRIALS


class Generations:
    """The driver's side of population-based training."""

    def __init__(self, sweep: Sweep, broker: Broker, every_steps: int):
        """Completes an exchange that an earlier command left unfinished."""
        self._sweep, self._broker, self._every_steps = sweep, broker, every_steps
        self._number = num_done(sweep.root)
        if (unfinished := decided_after(sweep.root, self._number)) is not None:
            self._hand_over(unfinished)
        elif self._number:
            self._note(decided_after(sweep.root, self._number - 1))
        broker.release(self._number)

    def advance(self) -> int:
        """Exchange models and let the trials continue, once all have arrived. Returns how many trials wait now."""
        trial_table = self._sweep.trial_table
        live = [row for row in trial_table.rows.values() if not row.is_over]
        arrived = self._broker.arrived()
        num_waiting = sum(arrived.get(row.name, (-1, 0.0))[0] == self._number for row in live)
        may_more_come = len(trial_table.rows) < self._sweep.space.num_trials and self._sweep.may_start()
        if num_waiting < len(live) or may_more_come or not live:
            return num_waiting
        members = {row.name: Member(arrived[row.name][1], row.values) for row in live}
        decided = self._decide(members)
        self._sweep.root.commit_bytes(decision_name(self._number), json.dumps(decided, indent=1).encode())
        self._hand_over(decided)
        self._broker.release(self._number)
        return 0

    def _decide(self, members: Mapping[str, Member]) -> dict[str, Any]:
        changes = exchange(self._sweep.space, self._number, members, self._gains(members))
        trial_table = self._sweep.trial_table
        rows: dict[str, Any] = {}
        for name, member in members.items():
            change = changes.get(name)
            rows[name] = {
                "value": member.value if math.isfinite(member.value) else None,
                "trained_with": member.values,
                "source": change.source if change else None,
                "values": change.values if change else member.values,
                "best": {key: getattr(trial_table.rows[change.source if change else name], key) for key in BEST},
            }
        return {"generation": self._number, "step": (self._number + 1) * self._every_steps, "members": rows}

    def _gains(self, members: Mapping[str, Member]) -> list[Gain]:
        """The gain of each trial in each generation, where it is a number."""
        past = [decided_after(self._sweep.root, number)["members"] for number in range(self._number)]
        now = {name: {"value": member.value, "trained_with": member.values} for name, member in members.items()}
        gains = []
        for number, (before, after) in enumerate(itertools.pairwise([*past, now]), start=1):
            for name, row in after.items():
                begun = before.get(before[name]["source"] or name, {}).get("value") if name in before else None
                if begun is not None and row["value"] is not None and math.isfinite(row["value"]):
                    gains.append(Gain(number, row["trained_with"], row["value"] - begun))
        return gains

    def _hand_over(self, decided: dict[str, Any]) -> None:
        """Copy the state and the best model of its source to each replaced trial. May be repeated."""
        for name, member in decided["members"].items():
            if member["source"] is not None:
                work = functools.partial(self._replace, name, member, decided["step"])
                retrying(work, f"copying {member['source']} to {name}")
        self._sweep.root.commit_bytes(done_name(decided["generation"]), b"")
        self._number = decided["generation"] + 1
        self._note(decided)

    def _replace(self, name: str, member: dict[str, Any], step: int) -> None:
        """Replace a trial's state and best model by copies of its source's. May be repeated."""
        root, source, own = self._sweep.root, f"{TRIALS}/{member['source']}", f"{TRIALS}/{name}"
        # The old ones belong to another lineage and must never be resumed.
        root.delete(f"{own}/checkpoints")
        delete_folder(root, f"{own}/best")
        saved = CheckpointStore(root.at(source, "checkpoints")).candidates()
        copied = next(checkpoint for checkpoint in saved if checkpoint.step == step)
        first = Saved(0, step)  # the two trials' fencing tokens are not comparable: any own one is newer than this
        root.copy(f"{source}/checkpoints/{copied.folder}", f"{own}/checkpoints/{first.folder}")
        if root.exists(f"{source}/best"):
            root.copy(f"{source}/best", f"{own}/best")
        events = JsonlWriter(root.at(own), "events.jsonl")
        fields = {key: member[key] for key in ("source", "value", "values")}
        events.write({"time": time.time(), "kind": "exchange", "step": step, **fields})
        events.close()

    def _note(self, decided: dict[str, Any]) -> None:
        """Record the decisions in the trial table."""
        trial_table = self._sweep.trial_table
        for name, member in decided["members"].items():
            step, source = decided["step"], member["source"]
            if source is None or name not in trial_table.rows or (step, source) in trial_table.rows[name].sources:
                continue
            row = trial_table.exchanged(name, member["values"], step, source, member["best"])
            self._sweep.tell(row, _words(decided, name))


def _words(decided: dict[str, Any], name: str) -> str:
    """A description of what was decided for a trial."""
    source = decided["members"][name]["source"]
    before = in_words(decided["members"][source]["trained_with"])
    return f"continues from {source} at step {decided['step']}, which had {before}, with"
