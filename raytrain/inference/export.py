"""`raytrain export`: a trained model in another form, compared with the trained one on rows of its own data."""

import copy
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from raytrain.config.from_python import words_of
from raytrain.data.readers import read_chunks
from raytrain.data.sources import read_tasks
from raytrain.errors import ConfigError, DataError, TrainingError
from raytrain.inference import hub
from raytrain.inference.card import OF_THE_BASE, READING, SOURCE, ModelCard, find_model, read_card
from raytrain.inference.formats import DType, Format
from raytrain.inference.gguf_model import FILE, check_gguf, write_gguf
from raytrain.inference.gguf_tokenizer import check_same_tokens
from raytrain.inference.onnx_model import GRAPH, quantize, write_graph
from raytrain.inference.predictor import Predictor
from raytrain.inference.source import absolute, check_source
from raytrain.models.adapter import merged
from raytrain.models.build import quiet_transformers
from raytrain.models.card import BEST, CARD, FACTS, FACTS_VERSION, PLAIN_VERSION, model_card
from raytrain.models.files import ADAPTER_CONFIG, ADAPTER_WEIGHTS
from raytrain.retries import retrying
from raytrain.storage import Storage
from raytrain.tasks.text import PretrainedTask
from raytrain.training.export import results_of
from raytrain.training.run_log import EVALS

LICENSE, LANGUAGE = re.compile(r"[a-z0-9][a-z0-9.+-]{0,60}"), re.compile(r"[a-z]{2,3}")
WEIGHTS = ("model.safetensors", "pytorch_model.bin", ADAPTER_CONFIG, ADAPTER_WEIGHTS)
DTYPES = {DType.FP32: "float32", DType.BF16: "bfloat16", DType.FP16: "float16"}
"""Names of torch."""
TOLERANCES = {DType.FP32: 1e-4, DType.FP16: 0.02, DType.BF16: 0.15, DType.INT8: 0.02}
"""Largest allowed difference of an output (a logit). With fp16 and bf16 weights are rounded to 11 and 8 bits. int8 is
an approximation: the largest allowed share of the outputs with another label."""


@dataclass(frozen=True)
class ExportRequest:
    """What to export, and how."""

    out: str
    format: Format = Format.HF
    dtype: DType = DType.FP32
    source: str | None = None
    """Rows to compare on; None: those of the model's own validation data."""
    num_rows: int = 256
    """Of them."""
    overrides: tuple[str, ...] = ()
    overwrite: bool = False
    tolerance: float | None = None
    """What is allowed instead of TOLERANCES."""
    license: str | None = None
    """As the model card names it, such as apache-2.0."""
    language: str | None = None
    """Of the texts, such as en."""
    push: str | None = None
    """OWNER/NAME on the Hub of Hugging Face, to which the folder is uploaded."""
    is_public: bool = False
    """Whether a repository that is made there can be read by everybody."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how it compares."""

    path: str
    num_rows: int
    num_outputs: int
    """Numbers that were compared, such as logits."""
    largest_difference: float
    agreement: float
    """Share of the rows, or words, with the same label."""
    num_bytes: int
    url: str = ""
    """Of the repository on the Hub, with `push`."""


def export_model(model: str, request: ExportRequest) -> Exported:
    """Write a model and compare it with the trained one. Nothing is left when they differ too much.

    Args:
        model: A run's folder or name, a sweep's folder (its best trial), or a best/ folder.

    Raises:
        ConfigError: The model, an option or the folder can't be used; or no row to compare on could be read.
        TrainingError: The exported model differs from the trained one by more than the tolerance.
        CheckpointError: A file of the model is missing or was changed.
    """
    if request.tolerance is not None and not 0 < request.tolerance < math.inf:
        raise ConfigError(
            f"--tolerance {request.tolerance:g}: give a number above 0, such as {TOLERANCES[request.dtype]:g}"
        )
    if request.dtype == DType.INT8 and request.format != Format.ONNX:
        raise ConfigError("--dtype int8 is for --format onnx")
    if request.format == Format.ONNX and request.dtype not in (DType.FP32, DType.INT8):
        raise ConfigError(
            f"--dtype {request.dtype} is for --format hf and gguf; an ONNX graph is written in fp32 or int8"
        )
    if request.format == Format.ADAPTER and request.dtype != DType.FP32:
        raise ConfigError(f"--dtype {request.dtype} is for a whole model: an adapter is copied as it is, in fp32")
    for option, value, form, example in (
        ("--license", request.license, LICENSE, "apache-2.0"),
        ("--language", request.language, LANGUAGE, "en"),
    ):
        if value is not None and not form.fullmatch(value):
            raise ConfigError(f"{option} {value!r}: give the identifier that the Hub has for it, such as {example}")
    out = _checked_folder(request)
    api = hub.check(request.push) if request.push is not None else None
    stored = find_model(model)
    card, facts = read_card(stored), stored.read_json(FACTS)
    if request.format == Format.ADAPTER and not card.is_adapter:
        raise ConfigError(f"--format adapter: {card.folder} was trained without model.adapter; leave --format out")
    if card.format != Format.HF:
        raise ConfigError(f"{card.folder} is an export in the format {card.format}: give the run that it was made of")
    best = retrying(lambda: stored.local_copy(""), f"reading {card.folder}")
    try:
        trained = Predictor.load(card, request.overrides, device="cpu", copied=best)
        if not isinstance(trained.task, PretrainedTask) or not hasattr(trained.model, "config"):
            raise ConfigError(
                f"{card.folder}: a model that is not of Transformers can't be exported; its best/ has it all"
            )
        if request.format == Format.GGUF:
            check_gguf(trained.model)
        rows, where = _rows_of(card, facts, trained, request)
        found = _exported(trained, best, rows, (_with_results(facts, stored), where), request, out)
    finally:
        if stored.local_path() is None:
            shutil.rmtree(best, ignore_errors=True)
    if api is None or request.push is None:
        return found
    return replace(found, url=hub.push(api, out, request.push, is_public=request.is_public))


def _with_results(facts: Any, stored: Storage) -> Any:
    """The facts with the metrics of this model: those of its run, or those that an export has kept."""
    parent, name = stored.place()
    run = Storage(parent or "/")
    found = results_of(run, facts["step"]) if name == BEST and run.exists(EVALS) else {}
    base = facts["base_model"]
    if base is not None and base["is_folder"] and "sha256" not in base:
        files = [file for file in WEIGHTS if os.path.isfile(f"{base['path']}/{file}")]
        base = {**base, "sha256": Storage(base["path"]).sha256(files[0])} if files else base
    return {**facts, "base_model": base, "results": found or facts.get("results", {})}


def _exported(
    trained: Predictor, best: str, rows: pa.Table, about: tuple[Any, str], request: ExportRequest, out: str
) -> Exported:
    """Write the folder `out` at once, or nothing.

    Args:
        best: The folder with the files of the trained model.
        about: (its raytrain.json, where the rows are from).
    """
    parent = os.path.dirname(out)
    os.makedirs(parent, exist_ok=True)
    work = tempfile.mkdtemp(prefix=f".{os.path.basename(out)}.", dir=parent)
    try:
        _write(trained, best, rows, request, work)
        found = _compared(trained, rows, request, work)
        _describe(about[0], found, request, about[1], work)
        if os.path.exists(out):
            shutil.rmtree(out)
        _let_others_read(work)
        os.rename(work, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return replace(found, path=out)


def _let_others_read(folder: str) -> None:
    """Give a folder and its files the permissions of new ones: those of temporary files are for their owner alone."""
    mask = os.umask(0)
    os.umask(mask)
    os.chmod(folder, 0o777 & ~mask)
    for name in os.listdir(folder):
        os.chmod(f"{folder}/{name}", 0o666 & ~mask)


def _checked_folder(request: ExportRequest) -> str:
    """The folder to write, absolute. Raises ConfigError."""
    if Storage(request.out).local_path() is None:
        raise ConfigError(f"{request.out}: an export is written to a local folder; copy it from there")
    out = os.path.abspath(os.path.expanduser(request.out.removeprefix("file://")))
    if not os.path.exists(out):
        return out
    if not os.path.isdir(out):
        raise ConfigError(f"{out} is a file: give the name of a folder")
    if os.listdir(out) and not request.overwrite:
        raise ConfigError(f"{out} is there already: give another name, or --overwrite")
    if os.listdir(out) and not os.path.exists(f"{out}/{FACTS}"):
        raise ConfigError(f"{out} holds something that is not an export of raytrain: give another name")
    if os.path.exists(f"{out}/{FACTS}") and "export" not in Storage(out).read_json(FACTS):
        raise ConfigError(f"{out} holds a trained model that is not an export: give another name")
    return out


def _rows_of(card: ModelCard, facts: Any, trained: Predictor, request: ExportRequest) -> tuple[pa.Table, str]:
    """(rows to compare on, where they are from). Raises ConfigError when none can be read."""
    data = facts["config"]["data"]
    section = data.get("validation") or {}
    if not section.get("path"):
        section = data["train"]
    if not section.get("path") and section.get("sources"):
        section = section["sources"][0]
    reading = {f"{SOURCE}.{name}": section[name] for name in READING if section.get(name) is not None}
    source: Any = section.get("path")
    if request.source is not None:
        reading, source = {}, absolute(request.source)
    words = [*words_of([reading] if reading else []), *request.overrides]
    try:
        config = card.config(words, source)
        files = check_source(config, trained.task, (), (), lambda *_: None)
        chunks = (chunk.table for task in read_tasks({"test": files}) for chunk in read_chunks(task))
        rows = pa.concat_tables(_first(chunks, request.num_rows))
    except (OSError, pa.ArrowInvalid, DataError) as error:
        raise ConfigError(_no_rows(source, request, str(error))) from error
    return rows, source if isinstance(source, str) else ", ".join(source)


def _no_rows(source: Any, request: ExportRequest, reason: str) -> str:
    advice = "" if request.source is not None else ". Name other rows of its kind with --data FILE"
    return f"the export is compared with the trained model on rows of {source}, which can't be read: {reason}{advice}"


def _first(tables: Iterator[pa.Table], count: int) -> Iterator[pa.Table]:
    """The first rows."""
    for table in tables:
        yield table.slice(0, count)
        count -= len(table)
        if count <= 0:
            return


def _write(trained: Predictor, best: str, rows: pa.Table, request: ExportRequest, work: str) -> None:
    """Write the model, and the files beside the weights as they are in best/."""
    import torch

    is_copy = request.format == Format.ADAPTER
    for name in sorted(os.listdir(best)):
        if name not in (*(() if is_copy else WEIGHTS), FACTS, CARD) and os.path.isfile(f"{best}/{name}"):
            shutil.copyfile(f"{best}/{name}", f"{work}/{name}")
    if is_copy:
        return
    model: Any = merged(trained.model) if trained.card.is_adapter else copy.deepcopy(trained.model)
    if request.format == Format.HF:
        with quiet_transformers():
            model.to(getattr(torch, DTYPES[request.dtype])).save_pretrained(work)
        return
    if request.format == Format.GGUF:
        model.config.save_pretrained(work)
        write_gguf(model, trained.tokenizer, trained.card.name, request.dtype, f"{work}/{FILE}")
        return
    samples = trained.samples_of(rows.slice(0, 8))
    inputs = {name: torch.from_numpy(value) for name, value in trained.batch_of(samples).items()}
    graph = f"{work}/{GRAPH}"
    assert isinstance(trained.task, PretrainedTask)
    write_graph(model, trained.task.model_inputs(inputs), graph)
    if request.dtype == DType.INT8:
        with tempfile.TemporaryDirectory() as folder:
            shutil.move(graph, f"{folder}/{GRAPH}")
            quantize(f"{folder}/{GRAPH}", graph)


def _compared(trained: Predictor, rows: pa.Table, request: ExportRequest, work: str) -> Exported:
    """The differences of the outputs. Raises TrainingError when they are larger than is allowed."""
    card, overrides = trained.card, request.overrides
    kind = Format.HF if request.format == Format.ADAPTER else request.format
    written = replace(card, folder=work, files={}, format=kind)
    if card.is_adapter and request.format != Format.ADAPTER:
        model = {**card.raw["model"], "path": work, "revision": None, "tokenizer": None, "adapter": None}
        written = replace(written, raw={**card.raw, "model": model}, is_adapter=False)
        overrides = tuple(word for word in overrides if word.partition("=")[0] not in OF_THE_BASE)
    exported = Predictor.load(written, overrides, "cpu")
    samples = trained.samples_of(rows)
    if request.format == Format.GGUF:
        with tempfile.TemporaryDirectory(dir=work) as alone, quiet_transformers():
            os.symlink(f"{work}/{FILE}", f"{alone}/{FILE}")
            check_same_tokens(trained, rows, samples, alone, FILE)
    pairs = list(zip(trained.outputs(samples), exported.outputs(samples), strict=True))
    if not pairs:
        raise ConfigError("none of the rows to compare on can be used: name others with --data FILE")
    ours, theirs = (np.concatenate([np.atleast_2d(one) for one in side]) for side in zip(*pairs, strict=True))
    largest = float(np.abs(ours - theirs).max())
    multi_label = getattr(trained.config.task, "multi_label", False)
    same = (ours > 0) == (theirs > 0) if multi_label else ours.argmax(-1) == theirs.argmax(-1)
    num_bytes = sum(os.path.getsize(f"{work}/{name}") for name in os.listdir(work))
    found = Exported(work, len(samples), ours.size, largest, float(same.mean()), num_bytes)
    limit = TOLERANCES[request.dtype] if request.tolerance is None else request.tolerance
    if request.dtype == DType.INT8:
        is_near = 1 - found.agreement <= limit
        allowed = f"another label for {limit:.2%} at most"
    else:
        is_near = largest <= limit  # False for NaN
        allowed = f"{limit:g} at most"
    if not is_near:
        raise TrainingError(
            f"the exported model differs from the trained one on {found.num_rows} rows: by {largest:.2g} in a logit, "
            f"and it gives another label for {1 - found.agreement:.2%}; allowed: {allowed}. Nothing was written. "
            "Another --dtype, such as fp32, keeps more; --tolerance allows more, and --rows compares on more rows"
        )
    return found


def _describe(facts: Any, found: Exported, request: ExportRequest, where: str, work: str) -> None:
    """Write raytrain.json and the model card."""
    about = {
        "format": str(request.format),
        "dtype": str(request.dtype),
        "rows": found.num_rows,
        "rows_of": where,
        "largest_difference": found.largest_difference,
        "agreement": found.agreement,
    }
    before = facts.get("export", {})
    for name, value in (("license", request.license), ("language", request.language)):
        if chosen := value or before.get(name):
            about[name] = chosen
    files = {name: Storage(work).sha256(name) for name in sorted(os.listdir(work))}
    facts = {**facts, "export": about, "files": files}
    if request.format != Format.ADAPTER and "adapter" in facts:  # merged: a whole model
        del facts["adapter"]
        facts["version"] = FACTS_VERSION if "threshold" in facts else PLAIN_VERSION
    with open(f"{work}/{FACTS}", "w", encoding="utf-8") as file:
        json.dump(facts, file, indent=1)
    with open(f"{work}/{CARD}", "w", encoding="utf-8") as file:
        file.write(model_card(facts, facts["results"]))
