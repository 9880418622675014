"""`raytrain watch`: predicts texts as they arrive, and tells when the share of a label passes a limit."""

import contextlib
import datetime
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from raytrain.config import SequenceClassificationConfig
from raytrain.data.readers.base import ROW, Rows, Unreadable, in_chunks
from raytrain.data.readers.json_files import object_in
from raytrain.data.readers.text import is_valid
from raytrain.errors import ConfigError
from raytrain.inference.card import ModelCard, find_model, read_card
from raytrain.inference.predictor import Predictor, predicting_task
from raytrain.runs.signals import StopSignals
from raytrain.tasks.base import RowError
from raytrain.tasks.predicting import Decoding
from raytrain.watching.files import Files, Line
from raytrain.watching.journal import ALERTS, QUARANTINED, Journal
from raytrain.watching.receiver import NAME, Received, listening_at
from raytrain.watching.request import Source, WatchRequest, check_request, checked_path
from raytrain.watching.rules import Alarm, Change, parse_rule
from raytrain.watching.shares import Shares
from raytrain.watching.spool import FOLDER
from raytrain.watching.status import PAGE_EVERY_S, Watched, WatchObserver
from raytrain.watching.webhook import MOST_WAITING, Webhook

BATCH_LINES = 256
"""That are predicted and committed at once: few, so that an alert comes early."""
RECENT_EVENTS = 50  # that the page shows
WEBHOOK_AT_END_S = 5.0


def watch_source(
    model: str, request: WatchRequest, observer: WatchObserver | None = None, ends: threading.Event | None = None
) -> Watched:
    """Predict the texts of a source as they arrive, until Ctrl-C or SIGTERM. The same call continues where one that was
    killed has ended.

    Args:
        model: A run's folder or name, a sweep's folder, a best/ folder or an export.
        ends: Set by another thread, it ends the watch too.

    Raises:
        ConfigError: The model, the source, a rule or an option can't be used; nothing was started.
        TrainingError: The folder can't be written any more.
    """
    observer = observer or WatchObserver()
    observer.phase("checking")
    card = read_card(find_model(model))
    config = card.config(request.overrides)
    if not isinstance(config.task, SequenceClassificationConfig):
        raise ConfigError(f"{card.folder}: watch counts the labels of texts; a model of {config.task.kind} has none")
    task = predicting_task(config)
    card.decoding(Decoding(threshold=request.threshold), task)
    labels = list(card.state["labels"])
    rules = list(dict.fromkeys(parse_rule(text, labels) for text in request.alerts))
    check_request(request)
    with contextlib.ExitStack() as stack:
        address = stack.enter_context(listening_at(request.source, request.token_file))
        name = NAME if address is not None else checked_path(request)
        journal = stack.enter_context(Journal(request.out))
        _check_same(journal, card, name, labels, observer)
        observer.phase("loading the model")
        predictor = Predictor.load(card, request.overrides)
        signals = stack.enter_context(StopSignals())
        signals.catch()
        places = journal.state.get("files")
        source: Source = (
            Files(name, places)
            if address is None
            else stack.enter_context(Received(address, f"{journal.folder}/{FOLDER}", task, places))
        )
        if address is not None:
            observer.receiving(address.url, address.token)
        watch = _Watch(request, predictor, journal, source, [Alarm(rule) for rule in rules])
        observer.phase("watching")
        return watch.run(lambda: signals.is_asked or (ends is not None and ends.is_set()), observer)


def _check_same(journal: Journal, card: ModelCard, source: str, labels: list[str], observer: WatchObserver) -> None:
    """Raises ConfigError when the folder is of another source, or of a model with other labels."""
    state = journal.state
    if not state:
        return
    if state["source"] != source:
        raise ConfigError(f"--out {journal.folder} is of the source {state['source']}: give another name")
    if state["labels"] != labels:
        theirs = ", ".join(map(repr, state["labels"][:20]))
        raise ConfigError(f"--out {journal.folder} is of a model with the labels {theirs}: give another name")
    if state["model"] != card.hash:
        observer.note(
            "the model, or its threshold, is another one than before; its labels are the same, and are counted together"
        )
    observer.note(f"continuing: {state['shares']['texts']:,} texts are counted already")


class _Watch:
    """The loop, and what it counts."""

    def __init__(
        self, request: WatchRequest, predictor: Predictor, journal: Journal, source: Source, alarms: list[Alarm]
    ):
        state = journal.state
        self._request, self._predictor, self._journal = request, predictor, journal
        kept = max([request.window, *(alarm.rule.num_texts or 0 for alarm in alarms)])
        self._shares = Shares(kept, state.get("shares"))
        before = state.get("alarms", {})
        self._alarms = [Alarm(one.rule, before.get(one.rule.text)) for one in alarms]
        for alarm in self._alarms:
            alarm.refill(list(self._shares.last))
        self._source = source
        self._num_quarantined: int = state.get("quarantined", 0)
        self._num_events: int = state.get("events", 0)
        self._recent: list[dict[str, Any]] = state.get("recent", [])
        self._waiting: list[dict[str, Any]] = state.get("waiting", [])
        self._num_undelivered: int = state.get("undelivered", 0)
        self._webhook = Webhook(request.webhook, self._waiting) if request.webhook is not None else None
        self._next_page_s, self._is_page_old = 0.0, True

    def run(self, is_over: Callable[[], bool], observer: WatchObserver) -> Watched:
        """Until it is over; with `is_once` until nothing is left."""
        while not is_over():
            lines = self._source.lines(BATCH_LINES, is_last=self._request.is_once)
            self._step(lines, observer)
            if lines:
                observer.watched(self.status())
            self._write_page(is_due=False)
            if not lines:
                if self._request.is_once:
                    break
                observer.watched(self.status())
                self._wait(is_over)
        if self._webhook is not None:
            self._webhook.close(WEBHOOK_AT_END_S)
        self._step([], observer)
        self._write_page(is_due=True)
        return self.status()

    def status(self) -> Watched:
        """The state of now."""
        num_last, counts = self._shares.of_last(self._request.window)
        labels = list(self._predictor.card.state["labels"])
        problem = self._webhook.problem if self._webhook is not None and self._waiting else ""
        told = f"{len(self._waiting)} alerts wait for {self._webhook.host}, which {problem}" if self._webhook else ""
        return Watched(
            self._journal.folder,
            self._shares.num_texts,
            self._num_quarantined,
            num_last,
            {label: counts[label] / num_last if num_last else 0.0 for label in labels},
            [alarm.rule.text for alarm in self._alarms if alarm.holds],
            self._num_events,
            told if problem else "",
        )

    def _wait(self, is_over: Callable[[], bool]) -> None:
        end_s = time.monotonic() + self._request.interval_s
        while not is_over() and (left_s := end_s - time.monotonic()) > 0:
            time.sleep(min(0.2, left_s))

    def _step(self, lines: Sequence[Line], observer: WatchObserver) -> None:
        """Predict lines, count them, and commit all at once."""
        now, events = time.time(), list[dict[str, Any]]()
        predictions, quarantined = self._predict(lines, now)
        for _, labels in predictions:
            self._shares.add(labels, now)
            events += self._events([(alarm, alarm.add(labels, now)) for alarm in self._alarms], now)
        events += self._events([(alarm, alarm.pass_time(now)) for alarm in self._alarms], now)
        arrived = self._webhook.arrived() if self._webhook is not None else set()
        self._waiting = [event for event in self._waiting if event["id"] not in arrived]
        for note in self._source.notes:
            observer.note(note)
        self._source.notes.clear()
        if not (lines or events or arrived or not self._journal.state):
            return
        self._num_quarantined += len(quarantined)
        self._recent = [*self._recent, *events][-RECENT_EVENTS:]
        if self._webhook is not None:
            self._waiting += events
            self._num_undelivered += max(0, len(self._waiting) - MOST_WAITING)
            self._waiting = self._waiting[-MOST_WAITING:]
        self._journal.predictions(row for row, _ in predictions)
        self._journal.append(QUARANTINED, quarantined)
        self._journal.append(ALERTS, events)
        self._journal.commit(self._state())
        self._source.committed()
        self._is_page_old = True
        for event in events:
            observer.alert(event)
            if self._webhook is not None:
                self._webhook.send(event)

    def _state(self) -> dict[str, Any]:
        card = self._predictor.card
        return {
            "source": self._source.name,
            "model": card.hash,
            "labels": list(card.state["labels"]),
            "files": self._source.to_json(),
            "shares": self._shares.to_json(),
            "alarms": {alarm.rule.text: alarm.to_json() for alarm in self._alarms},
            "quarantined": self._num_quarantined,
            "events": self._num_events,
            "recent": self._recent,
            "waiting": self._waiting,
            "undelivered": self._num_undelivered,
        }

    def _predict(
        self, lines: Sequence[Line], now: float
    ) -> tuple[list[tuple[dict[str, Any], list[str]]], list[dict[str, Any]]]:
        """((line of the predictions, labels) of each text, lines of those that can't be used)."""
        if not lines:
            return [], []
        columns = self._predictor.task.input_columns()
        rows = dict(self._rows(lines, columns[0]))
        bad = {i: (RowError.UNREADABLE, one.reason) for i, one in rows.items() if isinstance(one, Unreadable)}
        found: dict[int, dict[str, Any]] = {}
        for chunk in in_chunks(iter(rows.items()), "", columns):
            bad |= {one.row: (one.code, one.reason) for one in chunk.bad_rows}
            if not len(chunk.table):
                continue
            numbers = chunk.table[ROW].to_pylist()
            predicted = self._predictor.predict_rows(chunk.table, Decoding(False, self._request.threshold))
            bad |= {numbers[one.place]: (one.code, one.reason) for one in predicted.refused}
            good = [number for number in numbers if number not in bad]
            found |= dict(zip(good, predicted.table.to_pylist(), strict=True))
        moment = _iso(now)
        places = [{"file": line.path, "row": line.row} for line in lines]
        predictions = [
            ({**places[i], "time": moment, **answer, "data": rows[i]}, _labels_of(answer))
            for i, answer in sorted(found.items())
        ]
        refused = [
            {**places[i], "code": code, "reason": reason, "data": one.text if isinstance(one, Unreadable) else one}
            for i, (code, reason) in sorted(bad.items())
            for one in (rows[i],)
        ]
        return predictions, refused

    def _rows(self, lines: Sequence[Line], column: str) -> Rows:
        """(place in `lines`, the columns of a line or why it has none)."""
        for i, line in enumerate(lines):
            text = line.data.decode("utf-8", "surrogateescape")
            text = text.removeprefix("\ufeff").rstrip("\r") if line.row == 1 else text.rstrip("\r")
            if line.refused:
                yield i, Unreadable(line.refused, text)
            elif not line.is_text:
                yield i, object_in(text, "invalid UTF-8")
            else:
                yield i, {column: text} if is_valid(text) else Unreadable("invalid UTF-8", text)

    def _events(self, changes: Sequence[tuple[Alarm, Change | None]], now: float) -> Iterator[dict[str, Any]]:
        for alarm, change in changes:
            if change is None:
                continue
            self._num_events += 1
            yield {
                "id": self._num_events,
                "time": _iso(now),
                "event": str(change),
                "rule": alarm.rule.text,
                "label": alarm.rule.label,
                "share": round(alarm.share, 6),
                "window_texts": alarm.num_texts,
                "texts": self._shares.num_texts,
                "model": self._predictor.card.name,
                "source": os.path.basename(self._source.name),
            }

    def _write_page(self, *, is_due: bool) -> None:
        if not self._is_page_old or (not is_due and time.monotonic() < self._next_page_s):
            return
        from raytrain.watching.page import draw_page

        page = draw_page(self._predictor.card, self.status(), self._shares, self._alarms, self._recent)
        self._journal.write_page(page)
        self._is_page_old, self._next_page_s = False, time.monotonic() + PAGE_EVERY_S


def _labels_of(answer: dict[str, Any]) -> list[str]:
    """The labels of a text."""
    one = answer.get("predicted_label")
    return [one] if one is not None else list(answer.get("predicted_labels") or ())


def _iso(now: float) -> str:
    return datetime.datetime.fromtimestamp(now, tz=datetime.UTC).isoformat(timespec="milliseconds")
