"""Selects and arranges the metrics that the report shows: of the test split, and of the best and the last model."""

from dataclasses import dataclass
from typing import Any

from raytrain.reports.curves import RunRecord
from raytrain.training.records import NOTES, SAMPLES, scores_of

# Shown beside the metric that selects the best model: the first of these that the task has.
HEADLINES = ("entity_f1", "accuracy", "subset_accuracy", "token_micro_f1")
MAX_TABLE_LABELS = 30  # a larger confusion matrix is drawn as a figure


@dataclass(frozen=True)
class Scored:
    """An evaluation that gets a column in the report."""

    title: str
    row: dict[str, Any]
    """Its line of evals.jsonl."""

    @property
    def tables(self) -> dict[str, dict[str, Any]]:
        """The tables of the evaluation that have columns and rows."""
        tables: dict[str, dict[str, Any]] = self.row.get("tables") or {}  # an older file may have none
        return {name.replace("_", " "): table for name, table in tables.items() if "columns" in table}

    @property
    def notes(self) -> list[str]:
        """The task's remarks on the metrics."""
        return list(self.row.get(NOTES) or ())


def scored(record: RunRecord) -> list[Scored]:
    """The evaluation on the test split, and the best and the last one on the validation split."""
    test, last, best = record.last_evaluation("test"), record.last_evaluation("validation"), record.best_evaluation
    found = [] if test is None else [Scored(f"test, best model (step {test['step']})", test)]
    if best is not None:
        is_last = last is not None and best["step"] == last["step"]
        found.append(Scored(f"validation, best{' and last' * is_last} (step {best['step']})", best))
    if last is not None and (best is None or best["step"] != last["step"]):
        found.append(Scored(f"validation, last (step {last['step']})", last))
    return found


def headline(record: RunRecord) -> list[tuple[str, str, float]]:
    """(split, metric, value) of the metric that selects the best model and of the first of HEADLINES, both on the test
    split; before that is evaluated, of the best model on the validation split."""
    best_metric = record.best.get("metric", "loss")
    found = []
    if isinstance(record.best.get("value"), float):
        found.append(("best validation", best_metric, record.best["value"]))
    row = record.last_evaluation("test")
    split, row = ("test", row) if row is not None else ("best validation", record.best_evaluation or {})
    others = [name for name in HEADLINES if name != best_metric and isinstance(row.get(name), float)]
    names = [best_metric, *others[:1]] if split == "test" else others[:1]
    return found + [(split, name, row[name]) for name in names if isinstance(row.get(name), float)]


def metric_names(record: RunRecord) -> list[str]:
    """Names of all metrics, in the task's order."""
    return list({name: None for row in record.evaluations for name in scores_of(row)})


def newest_confusion(record: RunRecord) -> dict[str, Any] | None:
    """The confusion matrix of the test split, or else of the newest validation."""
    for split in ("test", "validation"):
        row = record.last_evaluation(split)
        if row is not None and row.get("tables", {}).get("confusion", {}).get("labels"):
            return dict(row["tables"]["confusion"])
    return None


def confusion_rows(record: RunRecord) -> list[tuple[str, list[tuple[int, float]]]] | None:
    """The shaded rows of the newest confusion matrix."""
    return shaded(newest_confusion(record))


def shaded(table: dict[str, Any] | None) -> list[tuple[str, list[tuple[int, float]]]] | None:
    """(true label, (count, shade from 0 to 1) for each predicted label); None if there is no matrix or it is too large.

    The shade is the square root of the fraction of the row; otherwise rare mistakes would be invisible.
    """
    if table is None or len(table["labels"]) > MAX_TABLE_LABELS:
        return None
    rows = zip(table["labels"], table["counts"], strict=True)
    return [(label, [(count, (count / max(1, sum(counts))) ** 0.5) for count in counts]) for label, counts in rows]


def label_splits(record: RunRecord) -> list[str]:
    """The splits for which the last command recorded label counts."""
    counts = _label_counts(record)
    return list(next(iter(counts.values()), {}))


def label_rows(record: RunRecord) -> list[tuple[str, list[tuple[int, float]]]]:
    """(label, [(count, fraction of all listed labels) for each split]); see runs.provenance."""
    counts, splits = _label_counts(record), label_splits(record)
    totals = {split: sum(row.get(split, 0) for row in counts.values()) for split in splits}
    return [
        (label, [(row.get(split, 0), row.get(split, 0) / max(1, totals[split])) for split in splits])
        for label, row in counts.items()
    ]


def _label_counts(record: RunRecord) -> dict[str, dict[str, int]]:
    """Label -> split -> count; empty if the targets are not labels."""
    return dict(record.commands[-1].get("labels") or {}) if record.commands else {}


def samples_by_prompt(record: RunRecord) -> list[tuple[str, list[tuple[int, str]]]]:
    """For each prompt of a language model what it said after each step, the newest first."""
    found: dict[tuple[int, str], list[tuple[int, str]]] = {}
    for row in reversed(record.evaluations_of("validation")):
        for place, one in enumerate(row.get(SAMPLES) or ()):
            found.setdefault((place, one["prompt"]), []).append((row["step"], one["text"]))
    return [(prompt, rows) for (_, prompt), rows in sorted(found.items(), key=lambda item: item[0])]
