"""DeepSpeed's dictionary: what raytrain owns is refused, the rest is merged last."""

from typing import Any

import pytest

from raytrain.config import LossScaleConfig, Precision, TrainingConfig
from raytrain.engine.deepspeed_config import (
    _KNOWN,
    _REFUSED,
    _WITHOUT_EFFECT,
    KNOWN_OF_ZERO,
    build_deepspeed_config,
    check_deepspeed_overrides,
    effective_zero_stage,
    resolve_precision,
)
from raytrain.errors import ConfigError


def _build(precision: Precision = Precision.FP32, **training: Any) -> dict[str, Any]:
    config = TrainingConfig(**{"zero_stage": 2, **training})
    return build_deepspeed_config(config, precision=precision, num_micro_steps=3, can_overlap=False)


@pytest.mark.parametrize(
    ("overrides", "key", "instead"),
    [
        ({"train_batch_size": 8}, "train_batch_size", "training.global_batch_size"),
        ({"train_micro_batch_size_per_gpu": 8}, "train_micro_batch_size_per_gpu", "training.micro_batch_size"),
        ({"gradient_accumulation_steps": 2}, "gradient_accumulation_steps", "training.global_batch_size"),
        ({"gradient_clipping": 1.0}, "gradient_clipping", "training.gradient_clipping"),
        ({"optimizer": {"type": "Adam"}}, "optimizer", "training.optimizer"),
        ({"scheduler": {"type": "WarmupLR"}}, "scheduler", "training.schedule"),
        ({"zero_optimization": {"stage": 3}}, "zero_optimization.stage", "training.zero_stage"),
        ({"fp16": {"enabled": True}}, "fp16.enabled", "training.precision"),
        ({"fp16": {"initial_scale_power": 8}}, "fp16.initial_scale_power", "training.loss_scale.initial_power"),
        ({"fp16": {"hysteresis": 8}}, "fp16.hysteresis", "training.loss_scale.hysteresis"),
        ({"bf16": {"enabled": True}}, "bf16.enabled", "training.precision"),
        ({"data_types": {"grad_accum_dtype": "bf16"}}, "data_types", "fp32"),
        ({"zero_optimization": {"round_robin_gradients": True}}, "zero_optimization.round_robin_gradients", "layout"),
        ({"zero_optimization": {"compute_grad_norm": False}}, "zero_optimization.compute_grad_norm", "gradient's norm"),
        ({"communication_data_type": "fp16"}, "communication_data_type", "training.communication.dtype"),
        ({"zero_force_ds_cpu_optimizer": True}, "zero_force_ds_cpu_optimizer", "its own AdamW"),
        ({"wandb": {"enabled": True}}, "wandb", "tracking.wandb"),
        ({"tensorboard": {"enabled": True}}, "tensorboard", "tracking.tensorboard"),
        ({"comet": {"enabled": True}}, "comet", "tracking"),
        ({"csv_monitor": {"enabled": True}}, "csv_monitor", "metrics.jsonl"),
        ({"compile": {"deepcompile": True}}, "compile", "has no effect in raytrain, so leave it out"),
        ({"activation_checkpointing": {}}, "activation_checkpointing", "training.gradient_checkpointing"),
        ({"aio": {"block_size": 1}}, "aio", "no effect"),
        ({"nebula": {"enabled": True}}, "nebula", "no effect"),
        ({"disable_allgather": True}, "disable_allgather", "no effect"),
        ({"zero_allow_untested_optimizer": True}, "zero_allow_untested_optimizer", "no effect"),
        (
            {"zero_optimization": {"stage3_gather_16bit_weights_on_model_save": True}},
            "zero_optimization.stage3_gather_16bit_weights_on_model_save",
            "best/ has the whole model",
        ),
        (
            {"zero_optimization": {"offload_optimizer": {"device": "nvme"}}},
            "zero_optimization.offload_optimizer.device",
            "none, cpu",
        ),
    ],
)
def test_owned_keys_are_refused_with_what_to_set_instead(overrides: dict, key: str, instead: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_deepspeed_overrides(overrides)
    assert f"training.deepspeed.{key}" in str(error.value)
    assert instead in str(error.value)
    with pytest.raises(ConfigError):
        _build(deepspeed=overrides)


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        ({"zero_optimisation": {"overlap_comm": True}}, "did you mean training.deepspeed.zero_optimization?"),
        (
            {"zero_optimization": {"overlap_com": True}},
            "did you mean training.deepspeed.zero_optimization.overlap_comm?",
        ),
        ({"x": 1}, "training.deepspeed.x is not a DeepSpeed option"),
    ],
)
def test_unknown_keys_are_refused(overrides: dict, expected: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_deepspeed_overrides(overrides)
    assert expected in str(error.value)


def test_no_key_is_both_passed_on_and_refused() -> None:
    lists = [set(_KNOWN), {key for key in _REFUSED if "." not in key}, {k for k in _WITHOUT_EFFECT if "." not in k}]
    assert not lists[0] & lists[1] and not lists[0] & lists[2] and not lists[1] & lists[2]
    for refused in (*_REFUSED, *_WITHOUT_EFFECT):
        assert refused.removeprefix("zero_optimization.") not in KNOWN_OF_ZERO


def test_the_keys_of_zero_are_deepspeeds_own() -> None:
    from deepspeed.runtime.zero.config import DeepSpeedZeroConfig

    theirs = {field.alias or name for name, field in DeepSpeedZeroConfig.model_fields.items()}
    assert set(KNOWN_OF_ZERO) <= theirs


def test_other_keys_are_merged_last_and_deeply() -> None:
    overrides = {"zero_optimization": {"reduce_bucket_size": 1000, "sub_group_size": 7}, "wall_clock_breakdown": True}
    check_deepspeed_overrides(overrides)
    config = _build(zero_stage=2, deepspeed=overrides)
    assert config["zero_optimization"]["reduce_bucket_size"] == 1000
    assert config["zero_optimization"]["sub_group_size"] == 7
    assert config["zero_optimization"]["stage"] == 2
    assert config["wall_clock_breakdown"] is True


def test_all_three_batch_numbers_are_never_given() -> None:
    config = _build(micro_batch_size=4, global_batch_size=24)
    assert config["train_micro_batch_size_per_gpu"] == 4
    assert config["gradient_accumulation_steps"] == 3
    assert "train_batch_size" not in config


@pytest.mark.parametrize("precision", [Precision.FP16, Precision.BF16])
def test_sixteen_bits_accumulate_in_fp32_and_stage_0_becomes_1(precision: Precision) -> None:
    config = _build(precision, zero_stage=0)
    assert config["data_types"] == {"grad_accum_dtype": "fp32"}
    assert config["zero_optimization"]["stage"] == effective_zero_stage(0, precision) == 1
    assert config[str(precision)]["enabled"] is True


def test_fp32_stage_0_stays_and_is_clipped_by_the_engine() -> None:
    config = _build(zero_stage=0, gradient_clipping=0.5)
    assert config["zero_optimization"] == {"stage": 0}
    assert config["gradient_clipping"] == 0.0
    assert "fp16" not in config
    assert "bf16" not in config
    assert _build(zero_stage=1, gradient_clipping=0.5)["gradient_clipping"] == 0.5


def test_loss_scale_options_reach_deepspeed() -> None:
    scale = LossScaleConfig(initial_power=10, window=7, hysteresis=3, minimum=2.0)
    fp16 = _build(Precision.FP16, loss_scale=scale)["fp16"]
    assert fp16 == {
        "enabled": True,
        "loss_scale": 0,
        "initial_scale_power": 10,
        "loss_scale_window": 7,
        "hysteresis": 3,
        "min_loss_scale": 2,
    }


@pytest.mark.parametrize(
    ("precision", "has_gpu", "gpu_has_bf16", "expected"),
    [
        ("auto", True, True, "bf16"),
        ("auto", True, False, "fp16"),
        ("auto", False, False, "fp32"),
        ("bf16", False, False, "bf16"),
        ("fp16", True, True, "fp16"),
        ("fp32", True, True, "fp32"),
    ],
)
def test_precision_is_resolved(precision: str, has_gpu: bool, gpu_has_bf16: bool, expected: str) -> None:
    assert resolve_precision(Precision(precision), has_gpu=has_gpu, gpu_has_bf16=gpu_has_bf16) == expected


def test_precision_that_the_hardware_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"training\.precision fp16 needs a GPU.*use bf16 or fp32"):
        resolve_precision(Precision.FP16, has_gpu=False, gpu_has_bf16=False)
    assert resolve_precision(Precision.FP16, has_gpu=False, gpu_has_bf16=False, cpu_has_fp16=True) is Precision.FP16
    with pytest.raises(ConfigError, match=r"training\.precision bf16"):
        resolve_precision(Precision.BF16, has_gpu=True, gpu_has_bf16=False)


def test_how_workers_communicate() -> None:
    zero = _build(zero_stage=2, communication={"bucket_elements": 1000, "overlap": True})["zero_optimization"]
    assert (zero["reduce_bucket_size"], zero["allgather_bucket_size"], zero["overlap_comm"]) == (1000, 1000, True)
    assert "communication_data_type" not in _build()
    assert _build(communication={"dtype": "bf16"})["communication_data_type"] == "bf16"


def test_a_bucket_of_deepspeeds_own_name_comes_last() -> None:
    built = _build(communication={"bucket_elements": 1000}, deepspeed={"zero_optimization": {"reduce_bucket_size": 7}})
    assert built["zero_optimization"]["reduce_bucket_size"] == 7
