"""The plan (P16): what can't run is refused in numbers, and a private Ray always has CPUs left for Ray Data."""

import json
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from raytrain.config import RunConfig
from raytrain.errors import ConfigError
from raytrain.runs.plan import Plan, cpus_needed, logical_cpus, make_plan


def config_with(**sections) -> RunConfig:
    """A small valid config; sections are merged over it."""
    base = {
        "name": "test",
        "task": {"kind": "sequence_classification"},
        "model": {"path": "some/model"},
        "data": {"train": {"path": "train.parquet"}},
        "training": {"global_batch_size": 32, "micro_batch_size": 4},
    }
    for name, section in sections.items():
        base[name] = {**base.get(name, {}), **section}
    return RunConfig.model_validate(base)


def plan_for(config: RunConfig, num_cpus: float = 100, num_gpus: float | None = 0, **counts) -> Plan:
    return make_plan(config, num_cpus=num_cpus, num_gpus=num_gpus, **counts)


class TestBatches:
    def test_each_world_size_of_the_range_is_planned(self):
        plan = plan_for(config_with(workers={"min": 2, "max": 5}))
        assert [world.world_size for world in plan.worlds] == [2, 3, 4, 5]
        assert [world.max_samples_per_worker for world in plan.worlds] == [16, 12, 8, 8]
        assert [world.min_samples_per_worker for world in plan.worlds] == [16, 8, 8, 4]
        assert [world.micro_steps for world in plan.worlds] == [4, 3, 2, 2]
        assert plan.world_size == 5

    def test_steps(self):
        config = config_with(training={"epochs": 3})
        assert plan_for(config).steps_per_epoch is None and plan_for(config).total_steps is None
        plan = plan_for(config, num_samples=65)
        assert (plan.steps_per_epoch, plan.total_steps) == (3, 9)
        plan = plan_for(config_with(training={"epochs": 3}, data={"drop_last": True}), num_samples=65)
        assert (plan.steps_per_epoch, plan.total_steps) == (2, 6)
        plan = plan_for(config_with(training={"max_steps": 7}), num_samples=65)
        assert (plan.steps_per_epoch, plan.total_steps) == (3, 7)
        assert plan_for(config_with(training={"max_steps": 7})).total_steps == 7

    def test_fewer_samples_than_a_batch(self):
        plan = plan_for(config_with(), num_samples=5)
        assert plan.steps_per_epoch == 1
        assert any("fewer samples (5)" in note for note in plan.notes)
        with pytest.raises(ConfigError, match=r"5 samples.*global_batch_size is 32.*drop_last"):
            plan_for(config_with(data={"drop_last": True}), num_samples=5)

    def test_no_samples_at_all(self):
        with pytest.raises(ConfigError, match=r"data.train"):
            plan_for(config_with(), num_samples=0)

    def test_checkpoint_bytes(self):
        assert plan_for(config_with(), num_trained=1000).checkpoint_bytes == 12_000


class TestRoom:
    def test_workers_that_leave_ray_data_nothing_are_refused_in_numbers(self):
        config = config_with(workers={"min": 2, "max": 2})
        with pytest.raises(ConfigError) as error:
            plan_for(config, num_cpus=2)
        for word in ("workers.min 2", "make 3", "has 2", "workers.cpus", "ray.num_cpus to at least 3", "add nodes"):
            assert word in str(error.value)
        assert plan_for(config, num_cpus=3).world_size == 2

    def test_ray_data_needs_a_whole_cpu_to_prepare(self):
        config = config_with(workers={"data_cpus": 0.1})
        assert cpus_needed(config, 1) == 2
        with pytest.raises(ConfigError, match=r"no room"):
            plan_for(config, num_cpus=1)

    def test_as_many_workers_as_fit_now(self):
        plan = plan_for(config_with(workers={"min": 1, "max": 8, "cpus": 2}), num_cpus=9)
        assert plan.world_size == 3  # 3 x 2 + 1.5
        assert [world.fits for world in plan.worlds] == [True] * 3 + [False] * 5
        assert any("workers.max 8 does not fit now (it needs 20 CPUs); the run starts with 3" in n for n in plan.notes)

    def test_gpus(self):
        config = config_with(workers={"min": 1, "max": 4, "gpu": True})
        with pytest.raises(ConfigError, match=r"workers.gpu is true, and this Ray has no GPU"):
            plan_for(config)
        plan = plan_for(config, num_gpus=2)
        assert plan.use_gpu and plan.world_size == 2
        assert plan_for(config, num_gpus=None).world_size == 4

    def test_gpu_auto(self):
        config = config_with(workers={"min": 2, "max": 4})
        assert not plan_for(config, num_gpus=0).use_gpu
        assert plan_for(config, num_gpus=3).world_size == 3
        with pytest.raises(ConfigError, match=r"needs 2 GPUs, and this Ray has 1.*workers.gpu to false"):
            plan_for(config, num_gpus=1)

    def test_gpu_false(self):
        assert not plan_for(config_with(workers={"gpu": False}), num_gpus=8).use_gpu


class TestLogicalCpus:
    def test_more_than_the_workers_hold(self):
        assert logical_cpus(config_with(workers={"min": 2, "max": 2}), machine_cores=2) == 3
        assert logical_cpus(config_with(workers={"max": 8}), machine_cores=16) == 20
        assert logical_cpus(config_with(workers={"max": 8}), machine_cores=2) == 3
        assert logical_cpus(config_with(), machine_cores=1) == 2

    def test_more_workers_than_cores_are_refused(self):
        with pytest.raises(ConfigError) as error:
            logical_cpus(config_with(workers={"min": 3, "max": 3, "cpus": 2}), machine_cores=4)
        for word in ("workers.min 3", "workers.cpus 2", "= 6 CPUs", "has 4", "ray.num_cpus to at least 8"):
            assert word in str(error.value)

    def test_unless_the_user_asks_for_it(self):
        config = config_with(workers={"min": 3, "max": 3, "cpus": 2}, ray={"num_cpus": 8})
        assert logical_cpus(config, machine_cores=4) == 8
        assert plan_for(config, num_cpus=8).world_size == 3

    def test_what_the_user_asks_for_can_be_too_little(self):
        config = config_with(workers={"min": 2, "max": 2}, ray={"num_cpus": 2})
        with pytest.raises(ConfigError, match=r"ray.num_cpus to at least 3"):
            plan_for(config, num_cpus=logical_cpus(config, machine_cores=8))

    @given(
        cores=st.integers(1, 64),
        lowest=st.integers(1, 8),
        extra=st.integers(0, 8),
        cpus=st.integers(1, 4),
        data_cpus=st.floats(0.1, 2.0),
    )
    def test_what_is_given_is_always_enough(self, cores, lowest, extra, cpus, data_cpus):
        """Whatever is not refused runs at once, with as many workers as the cores allow, and Ray Data has its share."""
        workers = {"min": lowest, "max": lowest + extra, "cpus": cpus, "data_cpus": data_cpus}
        config = config_with(workers=workers, training={"micro_batch_size": 1})
        if lowest * cpus > cores:
            with pytest.raises(ConfigError):
                logical_cpus(config, cores)
            return
        num_cpus = logical_cpus(config, cores)
        plan = plan_for(config, num_cpus=num_cpus)
        assert plan.world_size == min(lowest + extra, cores // cpus)
        assert plan.world_size * cpus + max(1, plan.world_size * data_cpus) <= num_cpus
        assert cpus_needed(config, plan.world_size) <= num_cpus


class TestOutput:
    def test_json(self):
        raw = json.loads(json.dumps(plan_for(config_with(workers={"max": 3}), num_samples=100).to_json()))
        assert raw["world_size"] == 3 and raw["total_steps"] == 12 and len(raw["worlds"]) == 3

    def test_a_warmup_that_never_ends_is_said(self):
        config = config_with(training={"schedule": {"warmup_steps": 12}})
        assert any("warmup_steps 12" in note for note in plan_for(config, num_samples=100).notes)
        assert not any("warmup_steps" in note for note in plan_for(config, num_samples=200).notes)


def test_import_is_light():
    source = "import sys, raytrain.runs.plan; assert not {'torch', 'ray', 'pyarrow'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", source], check=True)
