"""Training of language models by raytrain against HF `Trainer` and TRL's `SFTTrainer`, on texts from Python's library.

    python benchmarks/lm_training.py

A new Llama learns docstrings (`causal_lm`), and one with LoRA the answers of conversations made of them (`chat`): the
same rows, model, batch, precision and threads. Each round runs all of them in turns; ratios are taken within a round.
The measure is target tokens per second after a warm-up, by the clock: the targets are the tokens that a loss is
computed for. TRL needs `pip install trl`, preferably outside raytrain's environment (`--trl-path FOLDER`).
"""

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import pyarrow as pa
import yaml
from baseline_lm import docstrings, make_model, make_tokenizer
from common import (
    NEVER_SAVE,
    middle,
    one_worker,
    padding_of,
    publish,
    rounds_of,
    run_raytrain,
    run_script,
    spread,
    table,
    temporary_storage,
)

WIDTH, LAYERS, VOCABULARY, MAX_LENGTH = 128, 4, 2048, 512
RAYTRAIN = {
    "raytrain": [],
    "raytrain, random order": ["data.group_by_length=false"],
    "raytrain, never packed": ["training.packing=off"],
}
OTHERS = {"random": "HF Trainer, random", "grouped": "HF Trainer, grouped by length", "trl": "TRL, packed"}
TARGETS = {"random": 2.5, "grouped": 1.0, "trl": 1.6}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sizes = {"rounds": 3, "steps": 60, "warmup": 10, "threads": 2, "batch_size": 32, "micro_batch_size": 8}
    for name, default in sizes.items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=int, default=default, help=f"({default})")
    parser.add_argument("--kinds", nargs="+", default=["causal_lm", "chat"], choices=["causal_lm", "chat"])
    loops = [*RAYTRAIN, *OTHERS]
    parser.add_argument(
        "--loops", nargs="+", default=loops, choices=loops, help="raytrain, and what it is compared with"
    )
    parser.add_argument("--trl-path", help="a folder made by `pip install --target FOLDER trl`")
    parser.add_argument("--no-write", action="store_true", help="print the table, leave RESULTS.md alone")
    arguments = parser.parse_args()
    lines: list[list[str]] = []
    with temporary_storage() as storage:
        for kind in arguments.kinds:
            lines += measure(kind, arguments, storage)
    text = f"New Llama of {LAYERS} x {WIDTH}, fp32, {arguments.threads} threads, batch {arguments.batch_size} in "
    text += f"micro-batches of {arguments.micro_batch_size}, samples of up to {MAX_LENGTH} tokens; "
    text += f"{rounds_of(arguments)}.\n\n"
    header = ["task", "loop", "target tokens/s", "padding", "last loss", "raytrain is faster by", "target", "met"]
    publish("Training of language models", text + table(header, lines), arguments)


def measure(kind: str, arguments: argparse.Namespace, storage: Path) -> list[list[str]]:
    """The lines of the table for one task."""
    folder = storage / kind
    config, targets_per_token = prepare(kind, arguments, folder)
    found: dict[str, list[dict[str, float]]] = {}
    others = [name for name in OTHERS if name in arguments.loops and (name != "trl" or arguments.trl_path)]
    own = {name: overrides for name, overrides in RAYTRAIN.items() if name in ("raytrain", *arguments.loops)}
    for round_ in range(arguments.rounds):
        for name, overrides in own.items():
            found.setdefault(name, []).append(ours(config, [*overrides, f"seed={round_}"], arguments, storage))
            found[name][-1]["rate"] *= targets_per_token
        for name in others:
            options = {"folder": folder, "seed": round_, "threads": arguments.threads, "trl-path": arguments.trl_path}
            options |= {"warmup": arguments.warmup, "batch-size": arguments.batch_size}
            options |= {"micro-batch-size": arguments.micro_batch_size, "max-length": MAX_LENGTH}
            words = [f"--{option}={value}" for option, value in options.items() if value is not None]
            found.setdefault(name, []).append(run_script("baseline_lm.py", kind, name, *words))
        rates = ", ".join(f"{name} {results[-1]['rate']:.0f}" for name, results in found.items())
        print(f"{kind}, round {round_}: {rates}", flush=True)
    lines = []
    for name, results in found.items():
        ratios = [our["rate"] / one["rate"] for our, one in zip(found["raytrain"], results, strict=True)]
        target = TARGETS.get(name)
        values = [middle([one[key] for one in results]) for key in ("rate", "padding", "loss")]
        is_met = "" if target is None else "yes" if middle(ratios) >= target else "no"
        line = [kind, OTHERS.get(name, name), f"{values[0]:.0f}", f"{values[1]:.1%}", f"{values[2]:.3f}"]
        lines.append([*line, f"{middle(ratios):.2f} ({spread(ratios)})", f">= {target}" if target else "", is_met])
    return lines


def prepare(kind: str, arguments: argparse.Namespace, folder: Path) -> tuple[str, float]:
    """Write rows, tokenizer, model and config. Returns the config's path, and targets per token of the rows."""
    folder.mkdir()
    rows = docstrings(arguments.batch_size * (arguments.warmup + arguments.steps))
    tokenizer = make_tokenizer(rows, VOCABULARY)
    rows = [row for row in rows if len(tokenizer("".join(row))["input_ids"]) < MAX_LENGTH - 8]
    tokenizer.save_pretrained(folder / "model")
    make_model(tokenizer, WIDTH, LAYERS, MAX_LENGTH).save_pretrained(folder / "model")
    with open(folder / "rows.jsonl", "w") as file:
        for name, text in rows:
            row = {"text": text} if kind == "causal_lm" else {"prompt": name, "completion": text}
            file.write(json.dumps(row) + "\n")
    task: dict[str, Any] = {"kind": kind}
    if kind == "chat":
        task |= {"format": "prompt_completion", "too_long": "set_aside"}
    sizes = {"global_batch_size": arguments.batch_size, "micro_batch_size": arguments.micro_batch_size}
    raw: dict[str, Any] = {
        "name": "unused",
        "task": task,
        "model": {"path": str(folder / "model")},
        "data": {"train": {"path": str(folder / "rows.jsonl")}, "max_length": MAX_LENGTH},
        "training": {"epochs": 1, "precision": "fp32", **sizes},
        "tracking": {"tensorboard": False},
    }
    raw["training"]["optimizer"] = {"learning_rate": 1.0e-3}
    if kind == "chat":
        raw["model"]["adapter"] = {"kind": "lora", "rank": 8}
    path = folder / "run.yaml"
    path.write_text(yaml.safe_dump(raw))
    return str(path), _targets_per_token(raw, folder / "rows.jsonl")


def _targets_per_token(raw: dict[str, Any], rows: Path) -> float:
    from raytrain.config.io import parse_config
    from raytrain.models.tokenizer import load_tokenizer
    from raytrain.tasks import make_task

    config = parse_config(raw)
    task = make_task(config.task, MAX_LENGTH)
    table_of_rows = pa.Table.from_pylist([json.loads(line) for line in rows.read_text().splitlines()])
    samples = task.encode(table_of_rows, load_tokenizer(config.model), {}).table
    tokens = int(task.sizes(samples).sum())
    if "answers" not in samples.column_names:
        return 1 - len(samples) / tokens
    return sum(sum(places[1::2]) - sum(places[::2]) for places in samples["answers"].to_pylist()) / tokens


def ours(config: str, overrides: list[str], arguments: argparse.Namespace, storage: Path) -> dict[str, float]:
    """Tokens per second, padding and loss of one run of raytrain."""
    run = run_raytrain(config, [*one_worker(arguments.threads), NEVER_SAVE, *overrides], storage)
    rate = run.rate("tokens_seen", arguments.warmup)
    last = [row["loss"] for row in run.rows[-10:]]
    return {"rate": rate, "padding": padding_of(run.rows), "loss": sum(last) / len(last)}


if __name__ == "__main__":
    sys.exit(main())
