"""One loop on one shape, for gpu_peers.py; prints its speed as JSON. Each has a process of its own, since ZeRO-3 and
compilers change what comes after them.

    python benchmarks/gpu_contestant.py gpt2 raytrain
"""

import argparse
import contextlib
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

RATE, CLIP, BATCHES, LOSSES = 1e-4, 1.0, 4, 5
Batch = dict[str, Tensor]
Step = Callable[[], Any]
"""Trains a step; returns its loss, on the device or as a number."""


@dataclass(frozen=True)
class Shape:
    """A model and the batch of a step."""

    model: str
    rows: int
    """Of a micro-batch."""
    width: int
    """Tokens of a row."""
    micro_batches: int = 1

    @property
    def num_targets(self) -> int:
        """Of a step, as raytrain counts them."""
        per_row = 1 if self.model == "bert" else self.width - 1
        return self.rows * per_row * self.micro_batches


SHAPES = {
    "gpt2": Shape("gpt2", 32, 1024),
    "gpt2_accumulated": Shape("gpt2", 8, 1024, 4),
    "minilm": Shape("bert", 32, 40),
    "llama_1b": Shape("llama", 8, 2048),
}


def make_model(shape: Shape, *, is_tiny: bool) -> Any:
    """New weights in fp32, without dropout: GPT-2 124M, MiniLM's BERT, or the shape of Llama 3.2 1B."""
    from transformers import (
        BertConfig,
        BertForSequenceClassification,
        GPT2Config,
        GPT2LMHeadModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    torch.manual_seed(0)
    if shape.model == "gpt2":
        sizes = {"n_layer": 2, "n_embd": 32, "n_head": 2, "vocab_size": 300} if is_tiny else {}
        return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    if shape.model == "bert":
        sizes = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 12, "intermediate_size": 1536}
        if is_tiny:
            sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 64}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForSequenceClassification(BertConfig(**sizes, **dropout))
    sizes = {"hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16, "num_attention_heads": 32}
    sizes |= {"num_key_value_heads": 8, "vocab_size": 128_256}
    if is_tiny:
        sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
        sizes |= {"num_key_value_heads": 2, "vocab_size": 300}
    return LlamaForCausalLM(LlamaConfig(**sizes, tie_word_embeddings=True))


def make_batches(shape: Shape, vocabulary: int) -> list[Batch]:
    """Micro-batches of random tokens, on the CPU, the same for each loop."""
    generator = torch.Generator().manual_seed(0)
    batches = []
    for _ in range(BATCHES * shape.micro_batches):
        ids = torch.randint(5, min(vocabulary, 30_000), (shape.rows, shape.width), generator=generator)
        classes = torch.randint(0, 2, (shape.rows,), generator=generator)
        if shape.model == "bert":
            batches.append({"input_ids": ids, "labels": classes})
        else:  # Transformers moves them by one; HF Trainer counts them before
            batches.append({"input_ids": ids, "labels": torch.cat([torch.full_like(ids[:, :1], -100), ids[:, 1:]], 1)})
    return batches


def in_turn(shape: Shape, batches: list[Batch], device: torch.device) -> Iterator[list[Batch]]:
    """The micro-batches of one step after the other, on the device."""
    there = [{name: value.to(device) for name, value in batch.items()} for batch in batches]
    count = shape.micro_batches
    return itertools.cycle([there[begin : begin + count] for begin in range(0, len(there), count)])


def plain(shape: Shape, model: Any, batches: list[Batch], device: torch.device, *, compiles: bool) -> Step:
    """The loop that one would write by hand: torch.autocast, fused AdamW."""
    model = model.to(device).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    called = torch.compile(model) if compiles else model
    return _loop(shape, called, optimizer, in_turn(shape, batches, device), autocasts=True)


def fsdp2(shape: Shape, model: Any, batches: list[Batch], device: torch.device, *, compiles: bool) -> Step:
    """`fully_shard` of each layer and of the model, bf16 with fp32 shards, as torchtitan does it."""
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    from raytrain.models.compiled import layers_of

    model = model.to(device).train()
    mesh = init_device_mesh(device.type, (1,))
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    for layer in layers_of(model):
        if compiles:
            layer.compile()
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, fused=True)
    return _loop(shape, model, optimizer, in_turn(shape, batches, device), autocasts=False)


def _loop(shape: Shape, model: Any, optimizer: Any, steps: Iterator[list[Batch]], *, autocasts: bool) -> Step:
    parameters = list(model.parameters())
    kind = parameters[0].device.type

    def step() -> Tensor:
        total = torch.zeros((), device=kind)
        for batch in next(steps):
            with torch.autocast(kind, torch.bfloat16, enabled=autocasts):
                loss = model(**batch).loss / shape.micro_batches
            loss.backward()
            total += loss.detach()
        nn.utils.clip_grad_norm_(parameters, CLIP)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step


def raytrain(
    shape: Shape, model: Any, batches: list[Batch], device: torch.device, *, stage: int = 1, compiles: bool = False
) -> Step:
    """raytrain's engine and loss."""
    from raytrain.config import Precision, TrainingConfig
    from raytrain.engine.engine import Engine
    from raytrain.models.compiled import compile_layers
    from raytrain.models.token_losses import loss_sum_at_targets
    from raytrain.tasks.base import IGNORED

    own = batches
    if shape.model != "bert":  # a label is the token to be predicted at its position
        last = torch.full((shape.rows, 1), IGNORED)
        own = [{**one, "labels": torch.cat([one["input_ids"][:, 1:], last], 1)} for one in batches]
    size = shape.rows * shape.micro_batches
    options = {"global_batch_size": size, "micro_batch_size": shape.rows, "zero_stage": stage}
    engine = Engine(
        model,
        TrainingConfig(**options, gradient_clipping=CLIP),
        precision=Precision.BF16,
        device=device,
        num_micro_steps=shape.micro_batches,
    )
    if compiles:
        compile_layers(engine.module)
    steps = in_turn(shape, own, device)

    def loss_sum(called: Any, batch: Batch) -> Tensor:
        if shape.model == "bert":
            return called(**batch).loss.float() * shape.rows
        return loss_sum_at_targets(called, {"input_ids": batch["input_ids"]}, batch["labels"])

    return lambda: engine.train_step(next(steps), loss_sum, shape.num_targets, RATE).loss_sum / shape.num_targets


LOOPS: dict[str, Callable[..., Step]] = {"plain": plain, "fsdp2": fsdp2, "raytrain": raytrain}
CONTESTANTS: dict[str, tuple[str, dict[str, Any]]] = {
    "plain": ("plain", {"compiles": False}),
    "plain_compile": ("plain", {"compiles": True}),
    "fsdp2": ("fsdp2", {"compiles": False}),
    "fsdp2_compile": ("fsdp2", {"compiles": True}),
    "raytrain": ("raytrain", {}),
    "raytrain_compile": ("raytrain", {"compiles": True}),
    "raytrain_stage2": ("raytrain", {"stage": 2}),
}
TRAINERS = {"hf_trainer": None, "hf_trainer_zero2": 2}
"""Name -> ZeRO stage of DeepSpeed."""


def measured(step: Step, device: torch.device, sizes: dict[str, int]) -> dict[str, Any]:
    """Times, counts and memory of a loop."""
    losses = [float(step()) for _ in range(LOSSES)]
    for _ in range(sizes["warmup"]):
        step()
    waited = sorted(seconds_of(step, 1, device) for _ in range(sizes["timed"]))
    free = seconds_of(step, sizes["free"], device) / sizes["free"]
    found = {"losses": losses, "waited_ms": 1e3 * waited[len(waited) // 2], "ms": 1e3 * free}
    return {**found, **profiled(step, device)}


def seconds_of(step: Step, count: int, device: torch.device) -> float:
    """Until the device has done what it was given."""
    synchronize(device)
    began_s = time.perf_counter()
    for _ in range(count):
        step()
    synchronize(device)
    return time.perf_counter() - began_s


def profiled(step: Step, device: torch.device) -> dict[str, Any]:
    """Of two steps: kernels and calls that wait for the GPU a step, and the share of the time in which it computes."""
    if device.type != "cuda":
        return {}
    from torch.profiler import ProfilerActivity, profile

    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as record:
        began_s = time.perf_counter()
        step(), step()
        torch.cuda.synchronize()
        wall_s = time.perf_counter() - began_s
    events = record.events() or []
    kernels = [one for one in events if one.device_type == torch.autograd.DeviceType.CUDA]
    waits = [one for one in events if "Synchronize" in one.name]
    busy_s = sum(one.device_time_total for one in kernels) / 1e6
    return {"kernels": len(kernels) // 2, "waits": len(waits) / 2, "busy": busy_s / wall_s}


def trained(shape: Shape, model: Any, batches: list[Batch], stage: int | None, sizes: dict[str, int]) -> dict[str, Any]:
    """The same of HF `Trainer`, which has no step to call: between two of its steps, without logging."""
    from torch.utils.data import DataLoader
    from transformers import Trainer, TrainerCallback, TrainingArguments

    first, count = LOSSES + sizes["warmup"], sizes["free"]
    times: list[float] = []
    losses: list[float] = []

    class Watch(TrainerCallback):  # type: ignore[misc]
        def on_log(self, _: Any, state: Any, __: Any, logs: dict[str, float], **more: Any) -> None:
            losses.extend([logs["loss"]] if "loss" in logs else [])

        def on_step_end(self, _: Any, state: Any, control: Any, **more: Any) -> None:
            if state.global_step >= LOSSES:
                state.logging_steps = 10**9  # the loss is read no more
            if state.global_step in (first, first + count):
                synchronize(model.device)
                times.append(time.perf_counter())

    class Given(Trainer):  # type: ignore[misc]
        def get_train_dataloader(self) -> Any:
            return DataLoader(batches * (1 + (first + count) // BATCHES), batch_size=None)

    options: dict[str, Any] = {"per_device_train_batch_size": shape.rows}
    options["gradient_accumulation_steps"] = shape.micro_batches
    options |= {"max_steps": first + count, "learning_rate": RATE, "lr_scheduler_type": "constant", "bf16": True}
    options |= {"max_grad_norm": CLIP, "optim": "adamw_torch_fused", "logging_steps": 1, "report_to": "none"}
    options |= {"save_strategy": "no", "disable_tqdm": True, "use_cpu": not torch.cuda.is_available()}
    if stage is not None:
        batch = {"train_micro_batch_size_per_gpu": "auto", "gradient_accumulation_steps": "auto"}
        options["deepspeed"] = {**batch, "bf16": {"enabled": True}, "zero_optimization": {"stage": stage}}
        options["deepspeed"] |= {"gradient_clipping": CLIP, "optimizer": {"type": "AdamW", "params": {"lr": RATE}}}
    with tempfile.TemporaryDirectory() as folder:
        Given(model, TrainingArguments(folder, **options), train_dataset=batches, callbacks=[Watch()]).train()
    return {"losses": losses[:LOSSES], "ms": 1e3 * (times[1] - times[0]) / count}


def synchronize(device: torch.device) -> None:
    """Wait for a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def main() -> None:
    """Measure one, and print a line of JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=list(SHAPES))
    parser.add_argument("contestant", choices=[*CONTESTANTS, *TRAINERS])
    parser.add_argument("--tiny", action="store_true", help="a small model and few steps: does the script work?")
    for name, default in (("warmup", 5), ("timed", 25), ("free", 10)):
        parser.add_argument(f"--{name}", type=int, default=default, help=f"steps ({default})")
    arguments = parser.parse_args()
    shape = SHAPES[arguments.shape]
    if arguments.tiny:
        shape = Shape(shape.model, 2, 16, shape.micro_batches)
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    sizes = {name: getattr(arguments, name) for name in ("warmup", "timed", "free")}
    model = make_model(shape, is_tiny=arguments.tiny)
    batches = make_batches(shape, model.config.vocab_size)
    shown, sys.stdout = sys.stdout, sys.stderr  # trainers print their logs
    with process_group(device), contextlib.redirect_stdout(sys.stderr):
        if arguments.contestant in TRAINERS:
            found = trained(shape, model, batches, TRAINERS[arguments.contestant], sizes)
        else:
            loop, options = CONTESTANTS[arguments.contestant]
            found = measured(LOOPS[loop](shape, model, batches, device, **options), device, sizes)
    tokens = shape.rows * shape.width * shape.micro_batches
    memory = torch.cuda.max_memory_allocated() / 1e9 if device.type == "cuda" else None
    line = {"shape": arguments.shape, "contestant": arguments.contestant, "tokens_s": tokens / found["ms"] * 1e3}
    print(json.dumps({**line, **found, "peak_gb": memory}), file=shown)


@contextlib.contextmanager
def process_group(device: torch.device) -> Iterator[None]:
    """Of one process, as torchrun would set it up."""
    places = {"LOCAL_RANK": "0", "RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    os.environ.update(places)
    os.environ["DS_ACCELERATOR"] = device.type
    with tempfile.TemporaryDirectory() as folder:
        backend = "nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(backend, init_method=f"file://{Path(folder)}/meet", rank=0, world_size=1)
        yield
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
