"""`raytrain eval --tune-threshold`: chooses a model's threshold on its validation split, or on data that is named."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from raytrain.data.encode import cannot_prepare
from raytrain.errors import ConfigError
from raytrain.inference.card import ModelCard, find_model, read_card
from raytrain.inference.evaluation import IN_MEMORY, EvaluationRequest, evaluate_data, run_of, uses_threshold
from raytrain.inference.formats import TunedFor
from raytrain.inference.predictor import Predictor, predicting_task
from raytrain.inference.thresholds import ThresholdCounts, Tuned, keep_threshold
from raytrain.models.card import BEST
from raytrain.runs.folder import read_run_config
from raytrain.runs.observer import Observer
from raytrain.runs.run import prepare_data
from raytrain.storage import Storage
from raytrain.tasks.predicting import PLAIN, Predicting
from raytrain.training.export import update_card

VALIDATION = "validation"


def tune_threshold(
    model: str,
    tuned_for: TunedFor = TunedFor.MACRO_F1,
    observer: Observer | None = None,
    overrides: Sequence[str] = (),
    data: Any = None,
) -> Tuned:
    """Choose the threshold from which on a label is given, and keep it in the model's card.

    Args:
        model: As for `evaluate_data`.
        data: A path, or rows in memory; None: the validation split of the model's run, as it was prepared.

    Raises:
        ConfigError: The model gives one label per row, or has no run whose validation data could be read.
        DataError, TrainingError: As `evaluate_data` does.
    """
    observer = observer or Observer()
    card = read_card(find_model(model))
    config = card.config(overrides)
    if not (uses_threshold(predicting_task(config)) and getattr(config.task, "multi_label", False)):
        raise ConfigError(
            f"{card.folder} has no threshold to choose: that is for models that give several labels per row "
            "(task.multi_label)"
        )
    counts = ThresholdCounts(card.state["labels"])
    if data is None:
        _count_validation(card, overrides, counts, observer)
        where = VALIDATION
    else:
        evaluate_data(model, EvaluationRequest(data, tuple(overrides)), observer, counts)
        where = data if isinstance(data, str) else IN_MEMORY
    tuned, folder = counts.tuned(tuned_for), Storage(card.folder)
    try:
        keep_threshold(folder, tuned, where)
        if (run := run_of(card)) is not None:
            update_card(run, BEST)
    except OSError as error:
        raise cannot_prepare(f"can't write the card of {card.folder}", error) from error
    return tuned


def _count_validation(card: ModelCard, overrides: Sequence[str], counts: ThresholdCounts, observer: Observer) -> None:
    """Count the probabilities of the prepared validation samples, in this process."""
    run = run_of(card)
    if run is None:
        raise ConfigError(
            f"{card.folder} is not the best/ of a run, so there is no validation split: name rows with --data FILE"
        )
    store = prepare_data(read_run_config(run), observer)
    if not store.has_split(VALIDATION):
        raise ConfigError(f"{run.path_of()} has no validation split: name rows with --data FILE")
    predictor = Predictor.load(card, overrides)
    assert isinstance(predictor.task, Predicting)
    observer.phase("choosing the threshold")
    for number in range(len(store.row_group_starts(VALIDATION)) - 1):
        samples = store.read_row_group(VALIDATION, number)
        decoding = card.decoding(PLAIN, predictor.task)
        judged = predictor.task.judge(predictor.outputs(samples), samples, card.judging_state, decoding)
        assert judged is not None and judged.probabilities is not None, "it gives several labels per row"
        counts.add_rows(judged.probabilities, np.array(judged.targets))
