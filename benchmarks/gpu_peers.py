"""Training on one GPU: raytrain's engine beside the loops that one would use instead, on the same shapes.

    python benchmarks/gpu_peers.py                # some ten minutes on one GPU; writes RESULTS.md
    python benchmarks/gpu_peers.py --tiny         # does it work? on a CPU too, with small models

bf16 with fp32 masters, fused AdamW, clipping at 1.0, no dropout, data on the GPU. Contestants are processes one after
the other, in the order of what matters most; when the time is up the rest is left out. What counts are steps that
nothing waits for between; their first losses must agree to 2e-2. Each contestant's line of JSON is printed at once.
"""

import argparse
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from common import PROJECT, publish, table

ORDER = [
    *(("gpt2", name) for name in ("plain", "raytrain", "plain_compile", "raytrain_compile", "fsdp2")),
    *(("gpt2", name) for name in ("raytrain_stage2", "fsdp2_compile", "hf_trainer", "hf_trainer_zero2")),
    *(("minilm", name) for name in ("plain", "raytrain")),
    *(("gpt2_accumulated", name) for name in ("plain", "raytrain")),
    *(("llama_1b", name) for name in ("plain", "raytrain", "fsdp2")),
]
SAME_LOSS = 2e-2
LEAST_S = 25.0
"""What a contestant takes at least."""
TARGETS = {
    ("raytrain", "plain"): 1.0,
    ("raytrain_compile", "plain_compile"): 0.97,
    ("raytrain_compile", "fsdp2_compile"): 1.0,
    ("raytrain", "hf_trainer_zero2"): 1.3,
    ("raytrain_stage2", "plain"): 0.95,
}
"""(ours, theirs) -> tokens/s at least, as a ratio."""
Found = dict[tuple[str, str], dict[str, Any]]


def main() -> None:
    """Measure, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10.0, help="the rest is left out after these (10)")
    parser.add_argument("--tiny", action="store_true", help="small models, few steps; writes nothing")
    parser.add_argument("--shapes", nargs="+", default=list(dict(ORDER)), help="(all)")
    parser.add_argument("--no-write", action="store_true", help="print the table, leave RESULTS.md alone")
    arguments = parser.parse_args()
    arguments.no_write |= arguments.tiny
    deadline_s = time.monotonic() + 60 * arguments.minutes
    found: Found = {}
    for shape, name in ORDER:
        left_s = deadline_s - time.monotonic()
        if shape in arguments.shapes and left_s > LEAST_S:
            one = contestant(shape, name, left_s, is_tiny=arguments.tiny)
            print(json.dumps(one), flush=True)
            if "ms" in one:
                found[shape, name] = one
    text = f"{device_name()}, one process.\n\n{rows_of(found)}\n\n{ratios_of(found)}"
    publish("Training on one GPU", text, arguments)


def contestant(shape: str, name: str, left_s: float, *, is_tiny: bool) -> dict[str, Any]:
    """What one gives; `error` where it failed or took too long."""
    script = str(Path(__file__).resolve().parent / "gpu_contestant.py")
    command = [sys.executable, script, shape, name]
    if is_tiny:
        command += ["--tiny", "--warmup", "1", "--timed", "3", "--free", "3"]
    try:
        done = subprocess.run(command, cwd=PROJECT, capture_output=True, text=True, timeout=left_s)
    except subprocess.TimeoutExpired:
        return {"shape": shape, "contestant": name, "error": f"not done after {left_s:.0f} s"}
    if done.returncode:
        return {"shape": shape, "contestant": name, "error": done.stderr.strip()[-500:]}
    return dict(json.loads(done.stdout.strip().splitlines()[-1]))


def device_name() -> str:
    """Of the GPU, or the CPU."""
    import torch

    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "CPU"


def rows_of(found: Found) -> str:
    """The table of all."""
    header = [
        "shape",
        "loop",
        "tokens/s",
        "ms a step",
        "each waited for",
        "kernels",
        "waits",
        "busy",
        "peak, GB",
        "loss",
    ]
    lines = []
    for (shape, name), one in found.items():
        cells = [f"{one['tokens_s']:.0f}", f"{one['ms']:.1f}"]
        for key, form in (
            ("waited_ms", ".1f"),
            ("kernels", "d"),
            ("waits", ".1f"),
            ("busy", ".0%"),
            ("peak_gb", ".1f"),
        ):
            cells.append("" if one.get(key) is None else format(one[key], form))
        lines.append([shape, name, *cells, "same" if agrees(found, shape, name) else f"{one['losses']}"])
    return table(header, lines)


def agrees(found: Found, shape: str, name: str) -> bool:
    """Whether a loop has the first losses of the plain one."""
    plain = found.get((shape, "plain"))
    pairs = zip(plain["losses"], found[shape, name]["losses"], strict=False) if plain else ()
    return all(abs(one - other) < SAME_LOSS for one, other in pairs)


def ratios_of(found: Found) -> str:
    """raytrain against each, beside the target."""
    lines = []
    for (ours, theirs), target in TARGETS.items():
        for shape in dict(ORDER):
            if (shape, ours) in found and (shape, theirs) in found:
                ratio = found[shape, ours]["tokens_s"] / found[shape, theirs]["tokens_s"]
                lines.append([shape, ours, theirs, f"{ratio:.2f}", f">= {target}", "yes" if ratio >= target else "no"])
    return table(["shape", "raytrain", "against", "tokens/s, ratio", "target", "met"], lines)


if __name__ == "__main__":
    main()
