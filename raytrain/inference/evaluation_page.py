"""The page of an evaluation on named data: one self-contained HTML file."""

import os
from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain.data.encode import cannot_prepare
from raytrain.inference.significance import RESAMPLES
from raytrain.reports.page import embedded, number, page_template
from raytrain.reports.plots import confusion_matrix
from raytrain.reports.scores import HEADLINES, shaded
from raytrain.storage import Storage

if TYPE_CHECKING:
    from raytrain.inference.evaluation import DataEvaluation

PAGE = "evaluation.html"


def write_page(found: "DataEvaluation", output: str = PAGE) -> str:
    """Write the page. `output`: path or URI. Returns its full path. Raises DataError when it can't be written."""
    confusion = found.tables.get("confusion")
    cells = shaded(confusion)
    figure = None
    if confusion is not None and cells is None:
        png = confusion_matrix(confusion["labels"], np.array(confusion["counts"]))
        figure = embedded({"confusion": png})["confusion"]
    page = page_template("raytrain.inference", "evaluation.html").render(
        name=f"Evaluation on {found.split.rstrip('/').rpartition('/')[2]}",
        path=found.run_path,
        message=_message(found),
        tiles=_tiles(found),
        notes=found.notes,
        metrics=found.metrics,
        tables_by_title={name.replace("_", " "): one for name, one in found.tables.items() if "columns" in one},
        confusion=cells,
        confusion_figure=figure,
        by=found.by,
        slices=found.slices,
        worst=found.worst,
        reasons=found.reasons,
        other=None if found.other is None else found.other.run_path,
        differences=found.differences,
        resamples=RESAMPLES,
    )
    folder, name = os.path.split(output)
    try:
        Storage(folder or ".").commit_bytes(name, page.encode(errors="replace"))  # a lone surrogate can't be encoded
    except OSError as error:
        raise cannot_prepare(f"can't write {output}", error) from error
    return Storage(folder or ".").path_of(name)


def _tiles(found: "DataEvaluation") -> list[tuple[str, str]]:
    names = [name for name in (*HEADLINES, "macro_f1", "loss") if name in found.metrics]
    tiles = [("rows", number(found.num_samples)), *((name, number(found.metrics[name])) for name in names[:3])]
    if found.num_refused:
        tiles.append(("rows that can't be used", number(found.num_refused)))
    if found.num_truncated:
        tiles.append(("rows longer than max_length", number(found.num_truncated)))
    threshold: Any = found.threshold
    if threshold is not None:
        text = f"{threshold:g}" if isinstance(threshold, float) else f"{min(threshold):g} to {max(threshold):g}"
        tiles.append(("threshold" if isinstance(threshold, float) else "thresholds of the labels", text))
    return [*tiles, ("step of the model", number(found.step))]


def _message(found: "DataEvaluation") -> str:
    return f"{found.split}" + (f"\ncompared with {found.other.run_path}" if found.other is not None else "")
