"""Terminal output of `raytrain plan`."""

import json
import os
from collections.abc import Sequence
from typing import TypeVar

from rich.console import Console
from rich.table import Table
from rich.text import Text

from raytrain.errors import counted
from raytrain.planning.forecast import Forecast, WorldForecast
from raytrain.runs.plan import WorldPlan
from raytrain.sizing.memory import Memory
from raytrain.terminal.output import make_console
from raytrain.terminal.run import in_minutes

# Rows in the table of world sizes; --json lists all.
MAX_ROWS = 8
FILE_WIDTH = 100  # columns if the output is not a terminal
AT_LEAST = ">="  # before a total that lacks a part
LEGEND = (
    "> as configured   * an estimate (Korthikanti et al. 2022) for texts of data.max_length tokens, or images; the "
    "rest is what DeepSpeed allocates"
)
UNKNOWN_LEGEND = (
    "> as configured   * not known for this model, and not in the totals, which are lower bounds (>=); the rest is "
    "what DeepSpeed allocates"
)
Row = TypeVar("Row")


def print_forecast(forecast: Forecast, *, as_json: bool = False, console: Console | None = None) -> None:
    """Print the forecast as tables and sentences, or as JSON."""
    console = console or make_console()
    if not console.is_terminal and "COLUMNS" not in os.environ:
        console.width = FILE_WIDTH
    if as_json:
        print(json.dumps(forecast.to_json(), indent=1))
        return
    for line in _facts(forecast):
        console.print(line, soft_wrap=True)
    console.print()
    console.print(_world_table(forecast))
    console.print()
    size = _workers(forecast.plan.world_size)
    title = f"peak memory per worker, with {size}, {_unit(forecast)[1]}"
    console.print(title, style="italic", soft_wrap=True)
    console.print(_memory_table(forecast))
    console.print(UNKNOWN_LEGEND if _is_lower_bound(forecast) else LEGEND, style="dim", soft_wrap=True)
    console.print()
    for note in forecast.notes:
        console.print(f"note: {note}", soft_wrap=True)
    text, color = _verdict(forecast)
    console.print(text, style=color, soft_wrap=True)


def _facts(forecast: Forecast) -> list[str]:
    plan = forecast.plan
    device = f"{plan.num_gpus:g} GPUs, " if plan.use_gpu and plan.num_gpus is not None else ""
    steps = "unknown: the data has not been counted"
    if plan.total_steps is not None:
        per_epoch = f", {plan.steps_per_epoch:,} per epoch" if plan.steps_per_epoch is not None else ""
        steps = f"{plan.total_steps:,}{per_epoch}, {counted(plan.global_batch_size, 'sample')} each"
    assert plan.checkpoint_bytes is not None
    shape = forecast.shape
    trained = f", {shape.num_trained:,} of them trained" if shape.frozen else ""
    lines = [
        f"{plan.name}: {device}{plan.num_cpus:g} logical CPUs, up to {_workers(plan.world_size)} now",
        f"model       {shape.num_parameters:,} parameters{trained}, {forecast.precision.value}",
        f"steps       {steps}",
        f"checkpoint  {in_bytes(plan.checkpoint_bytes)}, {plan.checkpoints_kept} kept and one being written; "
        f"{forecast.upload_s:,.1f} s to upload at {in_bytes(forecast.bandwidth_bytes)}/s per worker",
        f"CPUs        {forecast.cpus_per_worker} per worker and {forecast.data_cpus:g} for its Ray Data pipeline, "
        "at least 1 for all pipelines",
    ]
    if plan.snapshot_bytes is not None:
        lines.append(f"snapshots   {in_bytes(plan.snapshot_bytes)} in the object stores of all nodes together, evenly")
    return lines


def _world_table(forecast: Forecast) -> Table:
    table = Table(box=None, pad_edge=False)
    table.add_column("workers", justify="right")
    for column in ("samples each", "micro steps", "CPUs", "ZeRO", "memory each", "step time", "run time", "cost"):
        table.add_column(column, justify="right")
    table.add_column("fits")
    for world, needs in some(list(zip(forecast.plan.worlds, forecast.worlds, strict=True))):
        low, high = world.min_samples_per_worker, world.max_samples_per_worker
        table.add_row(
            str(world.world_size),
            str(high) if low == high else f"{low}-{high}",
            str(world.micro_steps),
            f"{world.cpus:g}",
            str(needs.zero_stage),
            f"{AT_LEAST * needs.memory.is_lower_bound}{in_bytes(needs.memory.total)}",
            "?" if needs.step_s is None else f"{needs.step_s:.3g} s",
            "?" if needs.run_s is None else in_hours(needs.run_s),
            "?" if needs.cost is None else f"${needs.cost:,.2f}",
            _fits(world, needs),
        )
    return table


def _fits(world: WorldPlan, needs: WorldForecast) -> str | Text:
    if needs.fits_memory is False:
        return Text("no: memory", style="red")
    if not world.fits:
        return Text("not now", style="yellow")
    if needs.fits_memory:
        return "yes"
    return "?" if needs.memory.is_lower_bound else "yes, memory unknown"


def _yes_or_no(fits: bool | None) -> str | Text:
    if fits is None:
        return "?"
    return "yes" if fits else Text("no", style="red")


def _memory_table(forecast: Forecast) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in ("", "precision", "ZeRO"):
        table.add_column(column)
    has_host = any(memory.host for _, memory in forecast.choices)
    columns = ("weights", "masters", "moments", "gradients", "buffers", "activations*", "total")
    for column in (*columns, "host") if has_host else columns:
        table.add_column(column, justify="right")
    table.add_column("fits")
    world = next(world for world in forecast.worlds if world.world_size == forecast.plan.world_size)
    unit_bytes, _ = _unit(forecast)
    for choice, memory in forecast.choices:
        is_own = choice.precision is forecast.precision and choice.zero_stage == world.zero_stage
        parts = (*_parts(memory), memory.host) if has_host else _parts(memory)
        decimals = 0 if unit_bytes < 2**30 else 1
        numbers = ["?" if part is None else f"{part / unit_bytes:,.{decimals}f}" for part in parts]
        total = columns.index("total")
        numbers[total] = f"{AT_LEAST * memory.is_lower_bound}{numbers[total]}"
        fits = _yes_or_no(memory.fits_in(forecast.usable_bytes))
        cells = (">" if is_own else "", choice.precision.value, str(choice.zero_stage), *numbers, fits)
        table.add_row(*cells, style="bold" if is_own else "")
    return table


def _parts(memory: Memory) -> tuple[int | None, ...]:
    state = (memory.weights, memory.master, memory.moments, memory.gradients)
    return (*state, memory.buffers, memory.activations, memory.total)


def _is_lower_bound(forecast: Forecast) -> bool:
    """Whether a part of the memory is not known, which is so for all choices or for none."""
    return any(world.memory.is_lower_bound for world in forecast.worlds)


def _unit(forecast: Forecast) -> tuple[int, str]:
    """(bytes per unit, name) of the unit of the memory table."""
    most = max(memory.total for _, memory in forecast.choices)
    units = ((2**30, "GiB"), (2**20, "MiB"))
    return next((unit for unit in units if most >= 10 * unit[0]), (2**10, "KiB"))


def _verdict(forecast: Forecast) -> tuple[str, str]:
    """(last line, its color)."""
    if forecast.fits:
        if forecast.usable_bytes is None:
            return "nothing is wrong with it; the memory of the workers is unknown", "green"
        if _is_lower_bound(forecast):
            most = in_bytes(max(world.memory.total for world in forecast.worlds))
            usable = in_bytes(forecast.usable_bytes)
            return f"fits as far as is known: {most} of {usable} are taken before the unknown activations", "green"
        return f"fits: a worker's tensors can have {in_bytes(forecast.usable_bytes)}", "green"
    worst = max(world.memory.total for world in forecast.worlds)
    assert forecast.usable_bytes is not None
    needed = f"{'at least' if _is_lower_bound(forecast) else 'up to'} {in_bytes(worst)}"
    text = f"does not fit: a worker needs {needed} and can have {in_bytes(forecast.usable_bytes)}. "
    if forecast.first_fit is None:
        text += "No ZeRO stage, precision, micro-batch, checkpointing or offload fits: "
        larger = "a larger GPU or more workers" if forecast.plan.use_gpu else "a larger machine, or plan with --gpu"
        return text + f"take {larger}", "red"
    first = "The first that fits, as far as is known" if _is_lower_bound(forecast) else "The first that fits"
    return f"{text}{first}: {' '.join(forecast.first_fit.overrides())}", "red"


def _workers(count: int) -> str:
    return f"{count} worker{'s' * (count > 1)}"


def in_bytes(count: float) -> str:
    """Such as 470 MiB or 12.3 GiB."""
    if count >= 10 * 2**30:
        return f"{count / 2**30:,.1f} GiB"
    return f"{count / 2**20:,.0f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB" if count else "0"


def in_hours(seconds: float) -> str:
    """Such as 4m07s, 3h20m or 12.5 days."""
    if seconds < 3600:
        return in_minutes(seconds)
    hours, rest = divmod(int(seconds) // 60, 60)
    return f"{hours}h{rest:02d}m" if hours < 48 else f"{seconds / 86400:.1f} days"


def some(rows: Sequence[Row]) -> list[Row]:
    """At most MAX_ROWS rows, evenly spaced, including the first and the last."""
    if len(rows) <= MAX_ROWS:
        return list(rows)
    last = len(rows) - 1
    return [rows[round(row * last / (MAX_ROWS - 1))] for row in range(MAX_ROWS)]
