"""Translates raytrain's options to DeepSpeed's config. Pure, without torch, so that mistakes are found early."""

import copy
import difflib
from typing import Any

from raytrain.config import CommunicationConfig, Exactness, Precision, TrainingConfig
from raytrain.errors import ConfigError

# Dotted key in training.deepspeed -> what to do instead. Applies to everything below the key too.
_REFUSED: dict[str, str] = {
    "train_batch_size": "set training.global_batch_size",
    "train_micro_batch_size_per_gpu": "set training.micro_batch_size",
    "gradient_accumulation_steps": "it follows from training.global_batch_size, training.micro_batch_size and the "
    "number of workers",
    "managed_gradient_accumulation": "raytrain decides where a step ends",
    "gradient_clipping": "set training.gradient_clipping",
    "optimizer": "set training.optimizer",
    "scheduler": "set training.schedule",
    "zero_optimization.stage": "set training.zero_stage",
    "fp16.enabled": "set training.precision",
    "fp16.loss_scale": "set training.loss_scale",
    "fp16.initial_scale_power": "set training.loss_scale.initial_power",
    "fp16.loss_scale_window": "set training.loss_scale.window",
    "fp16.hysteresis": "set training.loss_scale.hysteresis",
    "fp16.min_loss_scale": "set training.loss_scale.minimum",
    "fp16.auto_cast": "set training.precision",
    "fp16.fp16_master_weights_and_grads": "master weights are always fp32",
    "bf16.enabled": "set training.precision",
    "bf16.check_grad_overflow": "raytrain always checks",
    "bf16.bf16_master_weights_and_grads": "master weights are always fp32",
    "bf16.bf16_optimizer_states": "optimizer state is always fp32",
    "bfloat16": "write bf16",
    "amp": "set training.precision",
    "torch_autocast": "set training.precision",
    "data_types": "master weights and accumulated gradients are always fp32",
    "prescale_gradients": "raytrain weights the loss by target counts itself",
    "gradient_predivide_factor": "raytrain weights the loss by target counts itself",
    "gradient_allreduce_op": "raytrain weights the loss by target counts itself",
    # The following change the layout of the optimizer state into one that can't be checkpointed.
    "zero_optimization.elastic_checkpoint": "leave it out: raytrain's checkpoints load at any number of workers",
    "zero_optimization.round_robin_gradients": "leave it out: raytrain can't checkpoint that layout",
    "zero_optimization.parameter_alignment": "leave it out: raytrain can't checkpoint that layout",
    "zero_optimization.zenflow": "leave it out: raytrain can't checkpoint that layout",
    "zero_optimization.offload_param": "leave it out: raytrain can't checkpoint that layout",
    "zero_optimization.zero_hpz_partition_size": "leave it out: raytrain can't checkpoint that layout",
    "zero_optimization.mics_shard_size": "leave it out: raytrain can't checkpoint that layout",
    "zero_optimization.load_from_fp32_weights": "leave it out: DeepSpeed's own checkpoints are not used",
    "tensor_parallel": "leave it out: workers are data-parallel",
    "sequence_parallel_size": "leave it out: workers are data-parallel",
    "data_parallel_size": "leave it out: workers are data-parallel",
    "elasticity": "leave it out: raytrain resizes the run itself",
    "checkpoint": "leave it out: DeepSpeed's own checkpoints are not used",
    "data_efficiency": "leave it out: raytrain decides which samples a step has",
    "curriculum_learning": "leave it out: raytrain decides which samples a step has",
    "communication_data_type": "set training.communication.dtype",
    "zero_force_ds_cpu_optimizer": "raytrain brings its own AdamW, also for an optimizer state on the CPU",
    "zero_optimization.compute_grad_norm": "raytrain reads the gradient's norm in each step, and skips a step by it",
    # Each worker group would start its own record, and record the steps that it redoes a second time.
    "tensorboard": "set tracking.tensorboard",
    "wandb": "set tracking.wandb",
    "csv_monitor": "metrics.jsonl in the run's folder has the metrics of each step",
    "comet": "set one of the trackers in tracking instead",
}
# The same for keys that DeepSpeed reads and that change nothing in a run of raytrain.
_WITHOUT_EFFECT: dict[str, str] = {
    "compile": "set training.compile",
    "activation_checkpointing": "set training.gradient_checkpointing",
    "aio": "nothing is offloaded to disks",
    "nebula": "DeepSpeed's own checkpoints are not used",
    "disable_allgather": "DeepSpeed itself does not use it any more",
    "zero_allow_untested_optimizer": "raytrain tries training.optimizer.target itself",
    "zero_optimization.stage3_gather_16bit_weights_on_model_save": "best/ has the whole model at every stage",
    "sparse_gradients": "gradients are dense",
    "hybrid_engine": "it is for generating while training, which raytrain does not do",
    "autotuning": "it belongs to DeepSpeed's own launcher; `raytrain plan` finds what fits",
}
# Allowed keys; a test compares the second list with DeepSpeed's own. Any other key is a typo, which DeepSpeed ignores
# at the top level and reports from the workers below it.
_KNOWN = (
    *("dump_state", "disable_python_gc", "steps_per_print", "wall_clock_breakdown", "memory_breakdown"),
    *("zero_optimization", "comms_logger", "flops_profiler", "fp16", "bf16", "timers", "log_level"),
)
KNOWN_OF_ZERO = (
    *("contiguous_gradients", "reduce_scatter", "reduce_bucket_size", "use_multi_rank_bucket_allreduce"),
    *("allgather_partitions", "allgather_bucket_size", "overlap_comm", "offload_optimizer"),
    *("sub_group_size", "stage3_prefetch_bucket_size", "stage3_param_persistence_threshold"),
    *("stage3_model_persistence_threshold", "stage3_max_live_parameters", "stage3_max_reuse_distance"),
    *(
        "stage3_module_granularity_threshold",
        "stage3_use_all_reduce_for_fetch_params",
        "stage3_allgather_sequential",
        "ignore_unused_parameters",
    ),
    *("zero_quantized_weights", "zero_quantized_nontrainable_weights", "zero_quantized_gradients"),
    *("memory_efficient_linear", "override_module_apply", "log_trace_cache_warnings", "enable_sanity_checks"),
    *("leaf_module",),
)


# Options that make gradients or weights depend on how they are divided among the workers.
_NOT_BITWISE = (
    "offload_optimizer",
    "zero_quantized_weights",
    "zero_quantized_nontrainable_weights",
    "zero_quantized_gradients",
    "memory_efficient_linear",
)
# The unit of the sums is a thousandth of epsilon, and they have 62 bits: with a smaller one, gradients of usual sizes
# would not fit.
_LEAST_EPSILON = 1e-12


def check_bitwise(training: TrainingConfig) -> None:
    """Raises ConfigError for an option that training.exactness=bitwise does not work with."""
    if training.exactness is not Exactness.BITWISE:
        return
    if training.optimizer.target is not None:
        raise ConfigError(
            f"training.optimizer.target {training.optimizer.target} does not work with training.exactness=bitwise, "
            "which needs an update whose bits do not depend on how parameters are cut, as raytrain's AdamW has: leave "
            "out one of both"
        )
    zero = training.deepspeed.get("zero_optimization", {})
    given = [name for name in _NOT_BITWISE if zero.get(name) and zero[name] != {"device": "none"}]
    names = [f"training.deepspeed.zero_optimization.{name}" for name in given]
    if training.communication.dtype is not None:
        names.append("training.communication.dtype")
    if training.optimizer.epsilon < _LEAST_EPSILON:
        raise ConfigError(
            f"training.optimizer.epsilon {training.optimizer.epsilon:g} is too small for training.exactness=bitwise, "
            f"whose sums have a resolution of a thousandth of it: give at least {_LEAST_EPSILON:g}"
        )
    if training.compile:  # how a kernel adds may depend on the batch for which it was compiled
        raise ConfigError("training.compile does not work with training.exactness=bitwise: leave out one of both")
    if names:
        raise ConfigError(
            f"{names[0]} does not work with training.exactness=bitwise, whose sums of gradients are exact: leave out "
            "one of both"
        )


def check_deepspeed_overrides(overrides: dict[str, Any]) -> None:
    """Reject keys that raytrain owns and keys without effect. Raises ConfigError with `training.deepspeed.<key>` and
    the option to set instead."""
    for dotted in _dotted_keys(overrides):
        if (instead := _reason(dotted, _REFUSED)) is not None:
            raise ConfigError(f"training.deepspeed.{dotted} is set by raytrain: {instead}")
        if (reason := _reason(dotted, _WITHOUT_EFFECT)) is not None:
            raise ConfigError(f"training.deepspeed.{dotted} has no effect in raytrain, so leave it out: {reason}")
    zero = overrides.get("zero_optimization", {})
    if not isinstance(zero, dict):
        raise ConfigError(
            "training.deepspeed.zero_optimization must be a mapping; set training.zero_stage for the stage"
        )
    _check_known(overrides, "training.deepspeed", _KNOWN)
    _check_known(zero, "training.deepspeed.zero_optimization", KNOWN_OF_ZERO)
    offload = zero.get("offload_optimizer", {})
    if isinstance(offload, dict) and offload.get("device") not in (None, "none", "cpu"):
        raise ConfigError(
            f"training.deepspeed.zero_optimization.offload_optimizer.device {offload['device']!r} can't be "
            "checkpointed; allowed: none, cpu"
        )


def _reason(dotted: str, refused: dict[str, str]) -> str | None:
    """What is said of a key, or of a section that it is in."""
    return next((text for key, text in refused.items() if f"{dotted}.".startswith(f"{key}.")), None)


def _check_known(section: dict[str, Any], path: str, known: tuple[str, ...]) -> None:
    """Raises ConfigError for an unknown key."""
    for key in section:
        if key not in known:
            close = difflib.get_close_matches(str(key), known, 1)
            hint = f"; did you mean {path}.{close[0]}?" if close else f"; allowed: {', '.join(known)}"
            raise ConfigError(f"{path}.{key} is not a DeepSpeed option that raytrain passes on{hint}")


def resolve_precision(
    precision: Precision, *, has_gpu: bool, gpu_has_bf16: bool, cpu_has_fp16: bool = False
) -> Precision:
    """The precision that the workers use.

    AUTO becomes bf16 on a GPU that supports it, else fp16 on a GPU, else fp32. Raises ConfigError if it is unsupported.

    Args:
        precision: As configured.
        has_gpu: Whether the workers use GPUs.
        gpu_has_bf16: Whether those GPUs support bf16.
        cpu_has_fp16: Result of DeepSpeed's `get_accelerator().is_fp16_supported()` on a CPU; queried by the engine.
    """
    if precision is Precision.AUTO:
        if not has_gpu:
            return Precision.FP32
        return Precision.BF16 if gpu_has_bf16 else Precision.FP16
    if precision is Precision.FP16 and not has_gpu and not cpu_has_fp16:
        raise ConfigError("training.precision fp16 needs a GPU, and the workers have none; use bf16 or fp32")
    if precision is Precision.BF16 and has_gpu and not gpu_has_bf16:
        raise ConfigError("training.precision bf16 is not supported by this GPU; use fp16, fp32 or auto")
    return precision


def effective_zero_stage(zero_stage: int | str, precision: Precision) -> int:
    """The ZeRO stage that DeepSpeed is given. `zero_stage`: not auto, which `zero_stage.settle` has resolved.

    Stage 0 in a 16-bit format becomes stage 1, which computes the same. In stage 0, DeepSpeed 0.19.8 would accumulate
    micro-batches in 16 bits, ignore the hysteresis, and divide fp16 gradients by a loss scale that `engine.backward`
    never multiplied into the loss.
    """
    assert isinstance(zero_stage, int), "settle comes first"
    return 1 if zero_stage == 0 and precision is not Precision.FP32 else zero_stage


def build_deepspeed_config(
    training: TrainingConfig, *, precision: Precision, num_micro_steps: int, can_overlap: bool
) -> dict[str, Any]:
    """The DeepSpeed config of a worker.

    Args:
        training: The user's options. `training.deepspeed` is merged into the result; ConfigError is raised for keys in
            it that raytrain owns.
        precision: Resolved, not AUTO.
        num_micro_steps: Micro-batches of a full step on each worker. Steps may have fewer or more: the engine tells
            DeepSpeed where a step ends, and never divides by this number.
        can_overlap: Whether communication can overlap with computation: on GPUs, with more than one worker.
    """
    assert precision is not Precision.AUTO, "resolve_precision comes first"
    check_deepspeed_overrides(training.deepspeed)
    check_bitwise(training)
    is_bitwise = training.exactness is Exactness.BITWISE
    stage = effective_zero_stage(training.zero_stage, precision)
    config: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": training.samples_per_micro_batch,
        "gradient_accumulation_steps": num_micro_steps,
        # Stage 0 is clipped by the engine, which needs the norm before the update.
        "gradient_clipping": training.gradient_clipping if stage else 0.0,
        "zero_optimization": _zero_section(stage, training.communication, can_overlap=can_overlap),
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": None,
        "wall_clock_breakdown": False,
        # It would wait for the GPU before and after each micro-batch, and nothing reads it.
        "timers": {"throughput": {"enabled": False}},
    }
    if training.optimizer.target is not None:  # `own_optimizer` has tried it
        config["zero_allow_untested_optimizer"] = True
    if training.communication.dtype is not None:
        config["communication_data_type"] = training.communication.dtype
    if is_bitwise:
        # ZeRO-3 would replace `linear` by another function, whose results differ in their last bits.
        config["zero_optimization"]["memory_efficient_linear"] = False
    if precision is not Precision.FP32 and not (is_bitwise and stage < 3):  # there the sums are held by raytrain
        config["data_types"] = {"grad_accum_dtype": "fp32"}
    if precision is Precision.FP16:
        config["fp16"] = _fp16_section(training)
    if precision is Precision.BF16:
        config["bf16"] = {"enabled": True, "check_grad_overflow": True}
    return _merged(config, training.deepspeed)


def _zero_section(stage: int, communication: CommunicationConfig, *, can_overlap: bool) -> dict[str, Any]:
    if stage == 0:
        return {"stage": 0}
    overlap = communication.overlap
    return {
        "stage": stage,
        "overlap_comm": (can_overlap and stage >= 2) if overlap == "auto" else overlap,
        "contiguous_gradients": True,
        # DeepSpeed's default of 500 million would reserve 2 GB of fp32 next to a small model.
        "reduce_bucket_size": communication.bucket_elements,
        "allgather_bucket_size": communication.bucket_elements,
    }


def _fp16_section(training: TrainingConfig) -> dict[str, Any]:
    scale = training.loss_scale
    return {
        "enabled": True,
        "loss_scale": 0,  # 0 means dynamic
        "initial_scale_power": scale.initial_power,
        "loss_scale_window": scale.window,
        "hysteresis": scale.hysteresis,
        # DeepSpeed requires an integer; the engine sets the exact minimum on the scaler.
        "min_loss_scale": max(1, int(scale.minimum)),
    }


def _dotted_keys(tree: dict[str, Any], prefix: str = "") -> list[str]:
    keys: list[str] = []
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        keys.append(dotted)
        if isinstance(value, dict):
            keys.extend(_dotted_keys(value, f"{dotted}."))
    return keys


def _merged(base: dict[str, Any], overrides: dict[str, Any]) -> dict[str, Any]:
    result = copy.deepcopy(base)
    for key, value in overrides.items():
        if isinstance(value, dict) and isinstance(result.get(key), dict):
            result[key] = _merged(result[key], value)
        else:
            result[key] = copy.deepcopy(value)
    return result
