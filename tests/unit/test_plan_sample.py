"""The sample in docs/planning.md is what the command prints."""

import io
import re
from pathlib import Path

from rich.console import Console
from running import tiny_run

import raytrain
from raytrain.terminal.plan import print_forecast

PAGE = Path(__file__).parents[2] / "docs" / "planning.md"
MISTRAL = {
    "model_type": "mistral",
    "vocab_size": 30522,
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "num_hidden_layers": 32,
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
}


def test_the_sample_of_the_page(tmp_path: Path) -> None:
    tiny_run(tmp_path, "tiny", num_rows=8512)
    config = {
        "name": "large",
        "storage_path": str(tmp_path / "runs"),
        "task": {"kind": "sequence_classification"},
        "model": {"config": MISTRAL, "tokenizer": str(tmp_path / "tokenizer")},
        "data": {"train": {"path": str(tmp_path / "data" / "train.parquet")}, "max_length": 1024},
        "training": {"global_batch_size": 64, "micro_batch_size": 8, "zero_stage": 3, "precision": "bf16"},
        "workers": {"min": 4, "max": 8},
    }
    out = io.StringIO()
    print_forecast(raytrain.plan(config, gpu="a100-80", nodes=8), console=Console(file=out, width=100, highlight=False))
    printed = [line.rstrip() for line in out.getvalue().splitlines() if not line.startswith("note: ")]
    (sample,) = re.findall(r"```text\n(large: .*?)```", PAGE.read_text(), re.DOTALL)
    assert sample.splitlines() == printed
