"""Predictions for a whole source: `raytrain predict`.

1. check     the model's card, the source's files and columns, the target
2. predict   (piece of a read task) -> part in OUT.work/<fingerprint>/, by actors with a model each  pieces.py, pool.py
3. assemble  (all parts, in order)  -> OUT, and the rows that have no prediction beside it           output.py

Commands with the same OUT that are to predict something else have other fingerprints, so neither takes the parts of the
other one; those with the same fingerprint write the same parts.
"""

import hashlib
import json
import math
import os
import re
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

import pyarrow as pa

from raytrain.config import RunConfig, SourceFormat
from raytrain.data import cutting, sources, work_folder
from raytrain.data.bad_rows import Tally
from raytrain.data.encode import cannot_prepare
from raytrain.data.parallel import in_threads
from raytrain.data.passes import in_parallel
from raytrain.data.readers.base import GROUPED, BadRow, ReadTask, SourceFile
from raytrain.data.sources import count_rows, read_tasks
from raytrain.errors import ConfigError, DataError, FailureCode, TrainingError
from raytrain.inference import pieces
from raytrain.inference.card import SOURCE, ModelCard, find_model, read_card
from raytrain.inference.judging import Judging
from raytrain.inference.output import ASSEMBLING, Target, assemble, target_of
from raytrain.inference.pieces import END, PART, REFUSED, Done, WorkSpec, part_name, read_judged
from raytrain.inference.pool import Backlog, Pool
from raytrain.inference.predictor import new_tokens, output_columns, predicting_task
from raytrain.inference.source import absolute, check_source, check_target
from raytrain.ray_core.connect import RaySession, ray_session
from raytrain.runs.observer import Observer
from raytrain.storage import Storage
from raytrain.tasks.base import RowError
from raytrain.tasks.predicting import PLAIN, Decoding, room_for_prompt

WORK = "work.json"
LAYOUT = 2  # of the work folder; parts of another one are not used
FINGERPRINT = re.compile(r"[0-9a-f]{20}")


@dataclass(frozen=True)
class Predictions:
    """What a prediction of a source has given."""

    path: str
    """The file, or the folder, of the predictions."""
    num_rows: int
    """Rows with a prediction."""
    num_refused: int
    """Rows without one; they are in `refused_path` with file, row and reason."""
    num_truncated: int
    """Rows of which the model did not see the end."""
    duration_s: float
    rows_per_s: float
    """From the moment that a model was in memory; those that an earlier command has predicted are not counted."""
    refused_path: str | None = None
    reasons: list[str] = field(default_factory=list)
    """A line for each kind of reason why rows were refused."""


@dataclass(frozen=True)
class Request:
    """What to predict, and how it is told."""

    source: str
    out: str
    """"": nothing is written."""
    overrides: tuple[str, ...] = ()
    columns: tuple[str, ...] | None = None
    """Columns of the source that are passed through; None: all."""
    decoding: Decoding = PLAIN
    embeddings: bool = False
    overwrite: bool = False
    judging: Judging | None = None
    """How the answers are compared with the targets, for an evaluation; None: there are no targets."""


def predict_source(model: str, request: Request, observer: Observer | None = None) -> Predictions:
    """Predict all rows of a source, and write them with their predictions. A command that was killed continues with
    what is not done.

    Args:
        model: A run's folder or name, a sweep's folder, or a best/.

    Raises:
        ConfigError: The model, an option or the target can't be used; nothing was started.
        DataError: The source can't be read, or none of its rows can be used.
        TrainingError: Workers died, or there was no room for one.
    """
    observer, began_s = observer or Observer(), time.monotonic()
    observer.phase("checking")
    target = target_of(request.out)
    card = read_card(find_model(model))
    config = card.config(request.overrides, absolute(request.source))
    task = predicting_task(config)
    request = replace(request, decoding=card.decoding(request.decoding, task))
    added = output_columns(task, card, request.decoding, embeddings=request.embeddings)
    if (most := new_tokens(task, request.decoding)) and not request.embeddings:
        shape = Storage(card.folder).read_json("config.json")
        positions = shape.get("max_position_embeddings", shape.get("n_positions"))  # GPT-2's name
        room_for_prompt(positions, most)
    files = check_source(config, task, request.columns, added, observer.checked)
    check_target(target, files, overwrite=request.overwrite)
    try:
        found = predict_pieces(card, config, request, target, files, observer)
        observer.phase("writing")
        return finish(target, found, began_s)
    except OSError as error:
        raise cannot_prepare(f"can't write {target.parent.path_of(target.name)}", error) from error


class _Progress:
    """Counts the rows, and estimates how many there are."""

    def __init__(self, observer: Observer, files: Sequence[SourceFile]):
        self._observer, self.done = observer, list[Done]()
        self._num_bytes = sum(file.num_bytes for file in files)
        is_counted = all(file.format in GROUPED for file in files)
        self.total = count_rows(files) if is_counted else None
        self._rows = self._bytes = 0
        self.began_s = math.inf
        self.num_new = 0
        self.num_tasks = 0
        self.folder = ""
        """Name of the folder of the parts in OUT.work/."""

    def add(self, done: Done, *, is_new: bool = True) -> None:
        """Count a piece. `is_new`: whether this command has done it."""
        self.done.append(done)
        self._rows += done.num_rows + done.num_refused
        self._bytes += done.num_bytes
        if not is_new:
            return
        self.num_new += done.num_rows + done.num_refused
        total = self.total or max(self._rows, round(self._num_bytes * self._rows / max(1, self._bytes)))
        self._observer.prepared(self._rows, total, self.rate())

    def rate(self) -> float:
        """Rows a second."""
        seconds = time.monotonic() - self.began_s
        return self.num_new / seconds if seconds > 0 else 0.0


def predict_pieces(
    card: ModelCard,
    config: RunConfig,
    request: Request,
    target: Target | None,
    files: list[SourceFile],
    observer: Observer,
    take: Callable[[ReadTask, Done], None] = lambda task, done: None,
) -> _Progress:
    """Make all parts that are not there, or without a target no parts.

    `take`: called with each piece, also those of an earlier command, in any order.
    """
    progress = _Progress(observer, files)
    progress.folder = _fingerprint(card, request, config, files)
    work, done, ends = None, list[Done](), dict[int, int]()
    if target is not None:
        work = target.work.at(progress.folder)
        done, ends = _begin(target.work, progress.folder, observer)
    observer.phase("starting Ray")
    num_cpus = max(os.cpu_count() or 1, config.workers.cpus)
    with ray_session(config, num_cpus) as session:
        use_gpu = _use_gpu(config, session)
        observer.phase("dividing the input")
        tasks = read_tasks({"test": files}, in_parallel)
        progress.num_tasks = len(tasks)
        for one in done:
            progress.add(one, is_new=False)
            if request.judging is not None and work is not None:
                take(tasks[one.task], read_judged(work, one))
        if _is_complete(len(tasks), _by_task(done), ends):
            return progress
        backlog = Backlog(len(tasks), _by_task(done), ends, _unshared(tasks))
        spec = WorkSpec(
            card,
            request.overrides,
            request.columns,
            request.decoding,
            request.embeddings,
            "" if work is None else work.root,
            config.workers.cpus,
            use_gpu,
            request.judging,
        )
        num_pieces = _estimated_pieces(tasks, progress.total)
        num_actors, most = _num_actors(config, session, num_pieces, use_gpu=use_gpu)
        observer.phase(f"loading the model in {num_actors} worker{'s' * (num_actors > 1)}")
        texts, is_first = [json.dumps(asdict(one)) for one in tasks], True
        pool = Pool(spec, texts, config.workers, num_actors, most)
        for event in pool.run(backlog):
            if event is None:
                if is_first:
                    progress.began_s, is_first = time.monotonic(), False
                    observer.phase("predicting")
                continue
            take(tasks[event.task], event)
            progress.add(replace(event, judged=None, tally=[]))
    return progress


def _begin(works: Storage, folder: str, observer: Observer) -> tuple[list[Done], dict[int, int]]:
    """(pieces whose parts are there, number of pieces of the read tasks where it is known), of commands that were to do
    the same. `works`: OUT.work/, with a folder for each fingerprint."""
    work, names = works.at(folder), [name for name in works.list_names() if name != ASSEMBLING]
    # WORK itself is there where a raytrain without folders for the fingerprints was killed.
    if any(not FINGERPRINT.fullmatch(name) for name in names) and WORK not in names:
        raise ConfigError(f"{works.path_of()} is in the way: it is not the work folder of a prediction; rename it")
    own = work.list_names()
    done = in_threads(lambda name: _done_of(work, name), [name for name in own if name.endswith(PART)])
    if done:
        observer.note(f"continuing: {sum(one.num_rows for one in done):,} rows are predicted already")
    elif any(name != folder for name in names):
        observer.note(f"{works.path_of()} has parts of another prediction too, which are not used")
    work.commit_bytes(WORK, b"{}")  # tells early that parts can't be written
    return done, _ends(work, own)


def _done_of(work: Storage, part: str) -> Done:
    with work.open_input(part) as opened:
        counts = json.loads(pa.ipc.open_file(opened).schema.metadata[b"counts"])
    task, piece = part.removesuffix(PART).split("-")
    return Done(int(task), int(piece), counts["rows"], counts["refused"], counts["truncated"], counts["bytes"])


def _by_task(done: Sequence[Done]) -> dict[int, set[int]]:
    """Read task -> its pieces."""
    found: dict[int, set[int]] = {}
    for one in done:
        found.setdefault(one.task, set()).add(one.piece)
    return found


def _ends(work: Storage, names: Sequence[str]) -> dict[int, int]:
    """Read task -> the number of its pieces, where a worker has met its end."""
    return {int(name.removesuffix(END)): int(work.read_bytes(name)) for name in names if name.endswith(END)}


def _is_complete(num_tasks: int, pieces: dict[int, set[int]], ends: dict[int, int]) -> bool:
    return all(task in ends and len(pieces.get(task, ())) >= ends[task] for task in range(num_tasks))


def finish(target: Target, progress: _Progress, began_s: float) -> Predictions:
    """Write the predictions and remove the parts. Raises DataError when no row could be used."""
    work = target.work.at(progress.folder)
    names = set(work.list_names())
    made = {(one.task, one.piece): one for one in progress.done}
    pieces = sorted(made)
    parts = [f"{part_name(*piece)}{PART}" for piece in pieces]
    is_whole = _is_complete(progress.num_tasks, _by_task(progress.done), _ends(work, sorted(names)))
    if not is_whole or not set(parts) <= names:
        raise TrainingError(
            f"{work.path_of()} lacks parts that were written: has another command with the same --out ended before "
            "this one? Give another name, or the command again",
            FailureCode.STORAGE,
        )
    refused = [name for piece in pieces if (name := f"{part_name(*piece)}{REFUSED}") in names]
    num_rows = sum(one.num_rows for one in made.values())
    num_refused = sum(one.num_refused for one in made.values())
    reasons = _reasons(work, refused)
    if not num_rows:
        work.delete("")
        if not target.work.list_names():
            target.work.delete("")
        raise DataError(
            f"none of the {num_refused:,} rows can be used, so the column or the format is likely wrong: check "
            f"task.*_column and {SOURCE}.format. {' '.join(reasons[:1])}",
            FailureCode.BAD_ROW,
        )
    rate = progress.rate()
    assemble(target, parts, refused, progress.folder)
    work_folder.remove(target.work)  # with what other predictions have left
    return Predictions(
        target.parent.path_of(target.name),
        num_rows,
        num_refused,
        sum(one.num_truncated for one in made.values()),
        time.monotonic() - began_s,
        rate,
        target.parent.path_of(target.refused) if refused else None,
        reasons,
    )


def _reasons(work: Storage, refused: Sequence[str]) -> list[str]:
    tally = Tally()
    for name in refused:
        for line in work.read_bytes(name).decode().splitlines():
            row = json.loads(line)
            tally.add("test", BadRow(row["file"], row["row"], row["reason"], RowError(row["code"])))
    return tally.summary()


def _fingerprint(card: ModelCard, request: Request, config: RunConfig, files: list[SourceFile]) -> str:
    """Of all that decides the parts. How the files are cut follows from them, see `data.cutting`."""
    section = {"task": config.task.model_dump(mode="json"), "model": card.files, "step": card.step}
    how = [
        LAYOUT,
        pieces.PIECE_ROWS,
        pieces.PIECE_BYTES,
        request.columns,
        asdict(request.decoding),
        request.embeddings,
        card.raw["data"],
        [cutting.LEAST_BYTES, cutting.MOST_BYTES, cutting.MOST_TASKS, sources.TASK_ROWS],
        work_folder.deciding_versions(),
        *([] if request.judging is None else [request.judging.fingerprint(), card.class_weights]),
    ]
    given = [asdict(file) for file in files]
    return hashlib.sha256(json.dumps([section, how, given], sort_keys=True).encode()).hexdigest()[:20]


def _use_gpu(config: RunConfig, session: RaySession) -> bool:
    """Whether the workers have GPUs. Raises ConfigError when they shall and there is none."""
    if config.workers.gpu is True and not session.num_gpus:
        raise ConfigError("workers.gpu=true: Ray has no GPU; leave it out, or join a cluster that has some")
    return bool(session.num_gpus) if config.workers.gpu == "auto" else config.workers.gpu


def _unshared(tasks: Sequence[ReadTask]) -> set[int]:
    """Read tasks of which one worker at a time reads the pieces."""
    return {number for number, task in enumerate(tasks) if task.file.format == SourceFormat.SQL}


def _estimated_pieces(tasks: Sequence[ReadTask], num_rows: int | None) -> int:
    """How many pieces there are, about, of which workers can do some each."""
    unshared = _unshared(tasks)
    shared = [task for number, task in enumerate(tasks) if number not in unshared]
    num_bytes = sum({task.file.path: task.file.num_bytes for task in shared}.values())
    return len(unshared) + max(len(shared), (num_rows or 0) // pieces.PIECE_ROWS, -(-num_bytes // pieces.PIECE_BYTES))


def _num_actors(config: RunConfig, session: RaySession, num_pieces: int, *, use_gpu: bool) -> tuple[int, int]:
    """(actors to ask for at once, the most when nodes join); not more than there are pieces. With workers.max all of
    them are asked for, so that an autoscaler adds nodes; without it as many as fit, workers.min at least."""
    workers = config.workers
    first = most = workers.max
    if "max" not in workers.model_fields_set:
        fitting = session.num_gpus if use_gpu else session.num_cpus // workers.cpus
        first, most = max(workers.min, int(fitting)), num_pieces
    return max(1, min(first, num_pieces)), max(1, min(most, num_pieces))
