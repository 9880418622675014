"""A replica: a copy of the model in a process of Ray Serve, which answers for one group of rows at a time."""

import asyncio
import json
import logging
import time
from collections.abc import AsyncGenerator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pyarrow as pa

from raytrain.data.readers.base import as_column
from raytrain.errors import RaytrainError
from raytrain.inference.card import ModelCard
from raytrain.inference.completing import Asked, Piece, complete
from raytrain.inference.output import json_value
from raytrain.tasks.predicting import ASKED, PLAIN, Decoding, Generating, Predicting

if TYPE_CHECKING:
    from raytrain.inference.predictor import Predictor

HANG_S = 300.0
"""A group that takes longer hangs: Serve replaces the replica."""
Row = dict[str, Any]


@dataclass(frozen=True)
class How:
    """How rows are answered. Those of equal values can be answered together."""

    decoding: Decoding = PLAIN
    embeddings: bool = False


@dataclass(frozen=True)
class Answer:
    """Of one row."""

    text: str
    """JSON: the columns that the prediction adds, or what is wrong with the row."""
    is_refused: bool = False


@dataclass(frozen=True)
class ReplicaSpec:
    """What a replica is started with."""

    card: ModelCard
    overrides: tuple[str, ...]
    num_threads: int
    use_gpu: bool


def answer_rows(predictor: "Predictor", rows: list[Row], how: How) -> list[Answer]:
    """The answers, in the order of the rows, which have the columns that the task reads.

    Raises what the model or the code of a task raises.
    """
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = pa.table({name: as_column([row.get(name) for row in rows]) for name in names})
    found = predictor.predict_rows(table, how.decoding, embeddings=how.embeddings)
    refused = {one.place: one for one in found.refused}
    good = iter(found.table.to_pylist())
    return [
        refusal(one.code, one.reason)
        if (one := refused.get(place))
        else Answer(json.dumps(json_value(next(good)), ensure_ascii=False))
        for place in range(len(rows))
    ]


def refusal(code: str, reason: str) -> Answer:
    """The answer for a row that can't be used."""
    return Answer(json.dumps({"error": {"code": code, "message": reason}}, ensure_ascii=False), is_refused=True)


class Replica:
    """The class that Ray Serve starts. The model runs in a thread, so that the process answers Serve meanwhile."""

    def __init__(self, spec: ReplicaSpec):
        import torch

        from raytrain.inference.predictor import Predictor

        if not spec.use_gpu:
            torch.set_num_threads(spec.num_threads)
        self._predictor = Predictor.load(spec.card, spec.overrides, "cuda" if spec.use_gpu else "cpu")
        self._thread = ThreadPoolExecutor(1)
        self._busy_since_s: float | None = None
        self._warm_up()

    def _warm_up(self) -> None:
        """The first call of a model is slow: let it be none of a user's."""
        task = self._predictor.task
        words = task.word_columns()
        row: Row = {name: ["a"] if name in words else "a" for name in task.input_columns()}
        if isinstance(task, Predicting) and task.stand_ins():
            row = {ASKED: "a"}
        if isinstance(task, Predicting) and (example := task.example_row()) is not None:
            row = example
        try:
            answer_rows(self._predictor, [row], How(Decoding(max_new_tokens=int(isinstance(task, Generating)))))
        except Exception as error:  # a task of the user's may read something else; it is told at the first request
            logging.getLogger(__name__).info("no warm-up: %s", error)

    async def answer(self, rows: list[Row], how: How) -> list[Answer]:
        """The answers, in the order of the rows."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._answer, rows, how)

    async def speak(self, asked: Asked) -> AsyncGenerator[Piece]:
        """The pieces of a generated text. The thread makes one after the other, so that several texts and groups of
        rows take turns."""
        pieces, loop = complete(self._predictor, asked), asyncio.get_running_loop()
        while (piece := await loop.run_in_executor(self._thread, next, pieces, None)) is not None:
            yield piece

    def _answer(self, rows: list[Row], how: How) -> list[Answer]:
        self._busy_since_s = time.monotonic()
        try:
            return answer_rows(self._predictor, rows, how)
        finally:
            self._busy_since_s = None

    def check_health(self) -> None:
        """Called by Serve every few seconds; a replica that raises is replaced."""
        since_s = self._busy_since_s
        if since_s is not None and time.monotonic() - since_s > HANG_S:
            raise RaytrainError(f"the model has been busy with one batch for more than {HANG_S:g} s")
