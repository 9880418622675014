"""What a run needs: memory as pure arithmetic, the first choice that fits, time from a run, and what is printed."""

import io
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from running import ENV, tiny_run, write_config

from raytrain.config import Precision, RunConfig, TrainingConfig
from raytrain.config.io import dump_config
from raytrain.engine.deepspeed_config import build_deepspeed_config
from raytrain.errors import ConfigError
from raytrain.planning.calibration import find_calibration
from raytrain.planning.fitting import first_that_fits
from raytrain.planning.forecast import Hardware, make_forecast
from raytrain.planning.gpus import GIB, GPUS, Gpu, find_gpu
from raytrain.runs.preflight import resolve
from raytrain.sizing.memory import Memory, activation_bytes, estimate_memory
from raytrain.sizing.shape import Layers, ModelShape
from raytrain.terminal.plan import in_hours, print_forecast, some

# A model of a thousand million parameters, in 1,000 matrices.
BILLION = ModelShape(trained=(1_000_000,) * 1000)
P = 1_000_000_000
GPT = Layers(count=24, hidden=1024, heads=16, intermediate=4096, stores_scores=True)


def memory(
    zero_stage: int,
    world_size: int,
    precision: Precision = Precision.BF16,
    shape: ModelShape = BILLION,
    use_gpu: bool = True,
    **zero: Any,
) -> Memory:
    training = TrainingConfig(zero_stage=zero_stage, deepspeed={"zero_optimization": zero} if zero else {})
    deepspeed = build_deepspeed_config(training, precision=precision, num_micro_steps=2, can_overlap=use_gpu)
    return estimate_memory(
        shape,
        deepspeed,
        precision=precision,
        world_size=world_size,
        micro_batch_size=4,
        max_length=128,
        use_gpu=use_gpu,
    )


class TestMemory:
    @pytest.mark.parametrize(
        ("zero_stage", "precision", "weights", "master", "moments", "gradients"),
        [
            (0, Precision.FP32, 4 * P, 0, 8 * P, 4 * P),
            (1, Precision.BF16, 2 * P, 4 * P // 8, 8 * P // 8, 6 * P),  # fp32 and bf16 gradients of everything
            (2, Precision.BF16, 2 * P, 4 * P // 8, 8 * P // 8, 4 * P // 8),
            (2, Precision.FP16, 2 * P, 4 * P // 8, 8 * P // 8, 4 * P // 8),
            (3, Precision.BF16, 2 * P // 8, 4 * P // 8, 8 * P // 8, 4 * P // 8),
        ],
    )
    def test_the_parts(self, zero_stage, precision, weights, master, moments, gradients):
        found = memory(zero_stage, 8, precision)
        assert (found.weights, found.master, found.moments, found.gradients) == (weights, master, moments, gradients)

    def test_no_parameter_is_too_large_for_its_partition(self):
        """In fp32 a worker keeps whole a gradient that lies in its partition in part, such as a large embedding's."""
        shape = ModelShape(trained=(500, *([1] * 500)))
        assert memory(2, 4, Precision.FP32, shape).gradients == 4 * 500
        assert memory(2, 4, Precision.BF16, shape).gradients == 4 * 250

    def test_small_weights_are_kept_whole_by_zero_3(self):
        shape = ModelShape(trained=(1_000_000, 1000))
        assert memory(3, 2, shape=shape).weights == 2 * (1_001_000 // 2 + 1000)
        assert memory(3, 2, shape=shape, stage3_param_persistence_threshold=10).weights == 2 * 1_001_000 // 2

    def test_buckets_are_those_of_the_config(self):
        less = memory(2, 2, reduce_bucket_size=1_000_000)
        more = memory(2, 2, reduce_bucket_size=3_000_000)
        assert more.buffers - less.buffers == 2 * 2 * 2_000_000  # two buckets in bf16: communication overlaps

    def test_offloading_moves_the_optimizer_to_the_host(self):
        here, there = memory(2, 4), memory(2, 4, offload_optimizer={"device": "cpu"})
        assert (there.master, there.moments) == (0, 0)
        assert there.gradients == 4 * 1_000_000  # the largest one waits for the next backward pass
        all_of_them = memory(1, 4, offload_optimizer={"device": "cpu"}).gradients
        assert all_of_them > 4 * P  # in 16 bits, stage 1 adds them up where they come
        assert there.host == here.master + here.moments + here.gradients
        assert there.weights == here.weights and there.total < here.total
        on_cpu = memory(2, 4, use_gpu=False, offload_optimizer={"device": "cpu"})
        assert on_cpu.host == 0 and on_cpu.moments == here.moments

    @given(
        sizes=st.lists(st.integers(1, 10**7), min_size=1, max_size=20),
        zero_stage=st.integers(1, 3),
        world_size=st.integers(1, 16),
        precision=st.sampled_from([Precision.BF16, Precision.FP16]),
    )
    def test_more_workers_and_higher_stages_never_hold_more(self, sizes, zero_stage, world_size, precision):
        shape = ModelShape(trained=tuple(sizes))
        now, grown = (memory(zero_stage, size, precision, shape).state for size in (world_size, world_size + 1))
        assert grown <= now
        if zero_stage == 1:
            assert memory(2, world_size, precision, shape).state <= now


class TestActivations:
    def test_it_is_the_formula_of_the_paper(self):
        s, b, h, a = 2048, 4, 1024, 16
        assert activation_bytes(GPT, b, s, Precision.BF16, use_gpu=True) == 24 * s * b * h * (34 + 5 * a * s // h)

    def test_fused_attention_keeps_no_scores(self):
        fused = replace(GPT, stores_scores=False)
        assert activation_bytes(fused, 4, 2048, Precision.BF16, use_gpu=True) == 24 * 2048 * 4 * 1024 * 34

    def test_fp32_doubles_all_but_the_masks(self):
        fused = replace(GPT, stores_scores=False)
        assert activation_bytes(fused, 4, 2048, Precision.FP32, use_gpu=True) == 24 * 2048 * 4 * 1024 * (2 * 32 + 2)

    def test_unknown_layers_are_not_guessed(self):
        assert memory(2, 2).activations is None
        assert memory(2, 2, shape=replace(BILLION, layers=GPT)).activations


class TestGpus:
    def test_names_and_sizes(self):
        assert find_gpu("H100").name == "h100" and find_gpu("A10").name == "a10g"
        with pytest.raises(ConfigError, match=r"--gpu a100: there are a100-40 and a100-80; say which"):
            find_gpu("a100")
        assert find_gpu("24GiB").memory_bytes == find_gpu("24").memory_bytes == 24 * GIB
        assert find_gpu("24GB").memory_bytes == 24 * 10**9
        assert not find_gpu("v100").has_bf16
        assert all(0.8 * gpu.memory_bytes < gpu.usable_bytes < gpu.memory_bytes for gpu in GPUS.values())

    @pytest.mark.parametrize("text", ["a10gg", "0GiB", "24MB", ""])
    def test_what_is_none_is_refused(self, text):
        with pytest.raises(ConfigError, match=r"--gpu .* is not known; allowed: t4, .*24GiB"):
            find_gpu(text)


class TestFirstFit:
    def first(self, usable: float, **sections: dict) -> list[str] | None:
        """The changes of a model of 1e9 parameters for so many bytes a parameter."""
        raw = {
            "name": "a",
            "task": {"kind": "sequence_classification"},
            "model": {"path": "m"},
            "data": {"train": {"path": "x.parquet"}},
            "training": {"zero_stage": 2, "precision": "bf16", "micro_batch_size": 4, **sections.get("training", {})},
            "workers": {"min": 4, "max": 8, "gpu": True, **sections.get("workers", {})},
        }
        shape = replace(BILLION, layers=GPT)
        found = first_that_fits(
            RunConfig.model_validate(raw), shape, int(usable * P), use_gpu=True, gpu=find_gpu("h100")
        )
        return None if found is None else found.overrides()

    def test_the_least_change_comes_first(self):
        assert self.first(20) == []
        assert self.first(20, training={"zero_stage": 1}) == []
        assert self.first(14, training={"zero_stage": 1}) == ["training.zero_stage=2"]
        assert self.first(6.5) == ["training.micro_batch_size=2"]
        assert self.first(5) == ["workers.min=8"]
        assert self.first(4) == ["training.deepspeed.zero_optimization.offload_optimizer.device=cpu"]
        assert self.first(1) is None

    def test_long_samples_need_gradient_checkpointing(self):
        layers = replace(GPT, count=200)
        shape = replace(BILLION, layers=layers)
        config = RunConfig.model_validate(
            {
                "name": "x",
                "task": {"kind": "sequence_classification"},
                "model": {"path": "m"},
                "data": {"train": {"path": "x.parquet"}, "max_length": 4096},
                "training": {"zero_stage": 3, "precision": "bf16", "micro_batch_size": 1},
                "workers": {"min": 4, "max": 4, "gpu": True},
            }
        )
        gpu = find_gpu("h100")
        found = first_that_fits(config, shape, 40 * P, use_gpu=True, gpu=gpu)
        assert found is not None
        assert found.overrides() == ["training.gradient_checkpointing=true"]
        without = replace(shape, can_checkpoint=False)
        assert first_that_fits(config, without, 40 * P, use_gpu=True, gpu=gpu) is None

    def test_gradient_checkpointing_comes_before_micro_batches_of_a_few_samples(self):
        shape = replace(BILLION, layers=replace(GPT, count=100))
        raw = {"training": {"zero_stage": 3, "precision": "bf16", "micro_batch_size": 32, "global_batch_size": 256}}
        raw |= {"name": "x", "task": {"kind": "sequence_classification"}, "model": {"path": "m"}}
        raw |= {"data": {"train": {"path": "x.parquet"}, "max_length": 1024}, "workers": {"min": 4, "max": 4}}
        found = first_that_fits(RunConfig.model_validate(raw), shape, 40 * P, use_gpu=True, gpu=find_gpu("h100"))
        assert found is not None
        assert found.overrides() == ["training.gradient_checkpointing=true"]

    def test_no_more_workers_than_there_are_gpus(self):
        training = {"zero_stage": 2, "precision": "bf16", "micro_batch_size": 4}
        raw = {"training": training, "workers": {"min": 2, "max": 8, "gpu": True}}
        raw |= {"name": "x", "task": {"kind": "sequence_classification"}, "model": {"path": "m"}}
        config = RunConfig.model_validate({**raw, "data": {"train": {"path": "x.parquet"}}})
        shape, gpu = replace(BILLION, layers=None), find_gpu("h100")
        free = first_that_fits(config, shape, 6 * P, use_gpu=True, gpu=gpu)
        assert free is not None
        assert free.min_workers > 2
        bound = first_that_fits(config, shape, 6 * P, use_gpu=True, gpu=gpu, most_workers=2)
        assert bound is None or bound.min_workers == 2

    def test_an_fp32_run_becomes_a_16_bit_one_only_when_it_must(self):
        assert self.first(20, training={"precision": "fp32"}) == []
        assert self.first(8, training={"precision": "fp32"}) == ["workers.min=8"]
        assert self.first(5, training={"precision": "fp32"}) == ["workers.min=8", "training.precision=bf16"]


@pytest.fixture
def run(tmp_path: Path) -> RunConfig:
    """A config whose run has trained 20 steps with two workers, and 10 with one."""
    config = resolve(tiny_run(tmp_path, "a", "workers.max=4"))
    folder = tmp_path / "runs" / "a"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(dump_config(config))
    (folder / "plan.json").write_text(json.dumps({"use_gpu": False}))
    rows = [(step, 0, 2, 9.0 if step < 4 else 0.5) for step in range(1, 21)]
    rows += [(step, 1, 1, 9.0 if step < 24 else 1.2) for step in range(21, 31)]
    keys = ("step", "attempt", "world_size", "step_s")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(dict(zip(keys, row, strict=True))) + "\n" for row in rows))
    return config


class TestCalibration:
    def test_medians_without_the_first_steps(self, run: RunConfig):
        found, said = find_calibration(run, use_gpu=False)
        assert found is not None and found.step_s == {1: 1.2, 2: 0.5}
        assert "24 steps" in said

    def test_other_sizes_are_scaled_by_their_samples(self, run: RunConfig):
        found, _ = find_calibration(run, use_gpu=False)
        assert found is not None
        assert found.step_s_at(run, 2) == 0.5
        assert found.step_s_at(run, 4) == pytest.approx(0.5 * 2 / 4)

    def test_a_run_with_other_settings_does_not_count(self, run: RunConfig, tmp_path: Path):
        other = resolve(tiny_run(tmp_path, "a", "training.micro_batch_size=1", "seed=5"))
        found, said = find_calibration(other, use_gpu=False)
        assert found is None and "another training.micro_batch_size" in said and "seed" not in said
        found, said = find_calibration(run, use_gpu=True)
        assert found is None and "another device" in said

    def test_a_folder_without_steps(self, run: RunConfig, tmp_path: Path):
        found, said = find_calibration(tiny_run(tmp_path, "nothing"), use_gpu=False)
        assert found is None and "nothing has no steps yet" in said
        with pytest.raises(ConfigError, match="--calibrate .*nothing: no run with steps is there"):
            find_calibration(run, str(tmp_path / "nothing"), use_gpu=False)


NO_PARTS = ("total", "host", "is_lower_bound")


class TestForecast:
    def test_time_and_cost(self, run: RunConfig):
        forecast = make_forecast(run, Hardware(price_per_hour=3.6))
        world = forecast.worlds[1]
        assert (world.world_size, world.step_s, forecast.plan.total_steps) == (2, 0.5, 153)
        assert world.run_s == pytest.approx(76.5)
        assert world.cost == pytest.approx(76.5 * 2 * 0.001)

    def test_the_parts_of_the_json(self, run: RunConfig):
        raw = json.loads(json.dumps(make_forecast(run, Hardware(gpu=find_gpu("a10g"), num_nodes=2)).to_json()))
        assert raw["fits"] and raw["first_fit_overrides"] == [] and raw["parameters"] == 7890
        assert raw["plan"]["num_gpus"] == 2 and raw["plan"]["world_size"] == 2
        assert [world["world_size"] for world in raw["worlds"]] == [1, 2, 3, 4]
        for world in raw["worlds"]:
            parts = {name: value for name, value in world["memory"].items() if name not in NO_PARTS}
            assert not world["memory"]["is_lower_bound"]
            assert sum(parts.values()) == world["memory"]["total"]

    def test_a_gpu_that_is_too_small(self, run: RunConfig):
        tiny = replace(find_gpu("24GiB"), memory_bytes=int(1.1 * GIB))  # 45 MiB for tensors
        model = {"config": {**run.model.config, "hidden_size": 512, "intermediate_size": 2048}}
        large = run.model_copy(update={"model": run.model.model_copy(update=model)})
        forecast = make_forecast(large, Hardware(gpu=tiny))
        assert not forecast.fits
        text = printed(forecast, 100)
        assert "does not fit: a worker needs up to" in text and "no: memory" in text


class TestAnUnknownPart:
    """A model without a Transformers config has no layers from which activations could be estimated."""

    def forecast(self, run: RunConfig, gpu: Gpu) -> Any:
        known = make_forecast(run, Hardware(gpu=gpu))
        worlds = [replace(world, memory=self.without(world.memory)) for world in known.worlds]
        worlds = [replace(world, fits_memory=world.memory.fits_in(known.usable_bytes)) for world in worlds]
        return replace(known, worlds=worlds, choices=[(one, self.without(memory)) for one, memory in known.choices])

    def without(self, memory: Memory) -> Memory:
        return replace(memory, activations=None)

    def test_a_total_without_it_is_a_lower_bound(self, run: RunConfig):
        forecast = self.forecast(run, find_gpu("a10g"))
        memory = forecast.worlds[0].memory
        assert memory.is_lower_bound and memory.to_json()["is_lower_bound"]
        assert (memory.fits_in(memory.total), memory.fits_in(memory.total - 1)) == (None, False)
        text = printed(forecast, 100)
        assert ">=" in text and "fits as far as is known" in text and "before the unknown activations" in text
        assert "a worker's tensors can have" not in text and "Korthikanti" not in text

    def test_what_is_too_large_already_does_not_fit(self, run: RunConfig):
        forecast = self.forecast(run, replace(find_gpu("24GiB"), memory_bytes=int(1.06 * GIB)))  # 7 MiB for tensors
        usable = forecast.usable_bytes
        worlds = [replace(world, memory=replace(world.memory, weights=usable + 1)) for world in forecast.worlds]
        worlds = [replace(world, fits_memory=world.memory.fits_in(usable)) for world in worlds]
        text = printed(replace(forecast, worlds=worlds), 100)
        assert "does not fit: a worker needs at least" in text and "no: memory" in text

    def test_the_plan_of_a_task_of_ones_own_says_so(self, tmp_path: Path):
        example = Path(__file__).parents[2] / "examples" / "own_task"
        for name in ("regression.py", "regression.yaml"):
            (tmp_path / name).write_bytes((example / name).read_bytes())
        (tmp_path / "data").mkdir()
        columns = {name: [0.5, 1.0] * 32 for name in ("a", "b", "c", "y")}
        pq.write_table(pa.table(columns), tmp_path / "data" / "train.parquet")
        done = subprocess.run(
            [sys.executable, "-m", "raytrain", "plan", "regression.yaml"],
            cwd=tmp_path,
            env=ENV,
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "note: activations are not known" in done.stdout and ">=" in done.stdout
        assert "--calibrate gives the time of a step, not its memory" in done.stdout


def printed(forecast: Any, width: int) -> str:
    out = io.StringIO()
    print_forecast(
        forecast, console=Console(file=out, force_terminal=True, no_color=True, highlight=False, width=width)
    )
    return out.getvalue()


def test_the_tables_fit_into_a_terminal(run: RunConfig) -> None:
    text = printed(make_forecast(run, Hardware(gpu=find_gpu("h100"), num_nodes=4)), 100)
    assert "…" not in text
    assert "\x1b[1m>" in text, "the row of the config is bold"
    assert "a step" in text and "fits: a worker's tensors can have 74.1 GiB" in text


def test_a_long_range_is_a_short_table() -> None:
    assert some(range(1, 9)) == list(range(1, 9))
    rows = some(range(1, 33))
    assert len(rows) == 8 and (rows[0], rows[-1]) == (1, 32)


def test_durations() -> None:
    assert [in_hours(seconds) for seconds in (59, 3661, 200_000)] == ["0m59s", "1h01m", "2.3 days"]


def test_the_command_needs_no_ray(tmp_path: Path) -> None:
    path = write_config(tiny_run(tmp_path, "a"), tmp_path)
    code = (
        "import sys; from raytrain.cli.main import app\n"
        f"code = app(['plan', {path!r}, '--json'], standalone_mode=False)\n"
        "sys.exit(code or any(name.split('.')[0] == 'ray' for name in sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["plan"]["name"] == "a"
