"""A DeepSpeed engine whose gradient is the mean over all targets of the global batch, however it is split.

No Ray: the engine runs in any process group of torch.distributed.
"""

import contextlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn

from raytrain.config import Exactness, Precision, TrainingConfig
from raytrain.engine.average import Average
from raytrain.engine.bitwise import ExactGradients, exact_gradients
from raytrain.engine.deepspeed_config import build_deepspeed_config, effective_zero_stage, resolve_precision
from raytrain.engine.determinism import BufferWatch, mark_boundaries, require_deterministic_kernels
from raytrain.engine.flat_update import FlatUpdate
from raytrain.engine.generators import seed_generators
from raytrain.engine.optimizer import LR_SCALE, make_optimizer
from raytrain.engine.own_optimizer import layout_of
from raytrain.engine.ranks import AdaptiveRanks
from raytrain.engine.shards import set_masters, weights_to_be_rounded
from raytrain.engine.start import choose_accelerator, start_deepspeed
from raytrain.models.rank_schedule import RankSchedule

# Losses of micro-batches are rounded to multiples of this. In float64, sums of them up to 2**29 are then exact, and do
# not depend on the workers' number.
LOSS_UNIT = 2.0**-24

LossSumFn = Callable[[nn.Module, dict[str, Tensor]], Tensor]
Admits = Callable[[float], bool]
"""Maps this worker's sum of losses to whether the update is applied; the same answer on all workers. Collective."""


@dataclass(frozen=True)
class StepResult:
    """The result of one step. All fields but `loss_sum` are the same on every worker."""

    grad_norm: float
    """L2 norm of the whole gradient before clipping; inf or nan if a gradient was not finite."""
    is_skipped: bool
    """True: a gradient was not finite, so the update was skipped. In fp16 this is normal and lowers the loss scale; in
    bf16 and fp32 (`loss_scale` is None) the run has diverged."""
    loss_scale: float | None
    """Loss scale of this step. None without fp16."""
    loss_sum: float
    """Sum of this worker's losses over its own targets, unscaled, a multiple of LOSS_UNIT: sums of these are exact."""
    is_refused: bool = False
    """True: `admits` has refused the update; the norm is not known then, and nan."""


class Engine:
    """One worker's model, optimizer and ZeRO state.

    Every method is collective unless it says otherwise: all workers must call it in the same order.
    """

    module: nn.Module
    """The model. Under ZeRO-3 its parameters are empty outside a forward pass."""
    copy_stream: "torch.cuda.Stream | None"
    """The stream on which a GPU's state is read during training. None on a CPU."""
    update_after: "torch.cuda.Event | None" = None
    """Event recorded there, which the next update of that state waits for on the GPU."""

    def __init__(
        self,
        model: nn.Module,
        training: TrainingConfig,
        *,
        precision: Precision,
        device: torch.device,
        num_micro_steps: int,
        ranks: RankSchedule | None = None,
    ):
        """Args:
        model: fp32, on the CPU, with the same weights on every worker. Parameters without requires_grad are frozen.
        training: The options.
        precision: Resolved (see `detect_precision`).
        device: This worker's device.
        num_micro_steps: Micro-batches of a full step.
        ranks: When AdaLoRA removes ranks. None: the model has no such adapter.
        """
        self.precision = precision
        self.zero_stage = effective_zero_stage(training.zero_stage, precision)
        self.device = device
        self.world_size, self.world_rank = dist.get_world_size(), dist.get_rank()
        self.copy_stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._clip = training.gradient_clipping
        self.state_layout = layout_of(training.optimizer)
        """What the optimizer keeps for each parameter."""
        config = build_deepspeed_config(
            training,
            precision=precision,
            num_micro_steps=num_micro_steps,
            can_overlap=device.type == "cuda" and self.world_size > 1,
        )
        is_bitwise = training.exactness is Exactness.BITWISE
        # The fused kernel of GPUs computes all elements alike.
        optimizer = make_optimizer(model, training, is_elementwise=is_bitwise and device.type == "cpu")
        self._closing = contextlib.ExitStack()
        self._closing.callback(setattr, nn.functional, "linear", nn.functional.linear)
        if is_bitwise:
            self._closing.callback(require_deterministic_kernels())
        if is_bitwise and self.zero_stage < 3:
            self._closing.callback(mark_boundaries(model))
        self._exact, self._buffers = None, None
        weights = weights_to_be_rounded(model, precision)
        try:
            self.deepspeed = start_deepspeed(model, optimizer, config, device)
            self._closing.callback(self.deepspeed.destroy)
            self.optimizer: Any = self.deepspeed.optimizer
            self.module = self.deepspeed.module
            if is_bitwise:
                # AdaLoRA's penalty is one more gradient that is added.
                epsilon, num_micro_batches = training.optimizer.epsilon, training.num_micro_batches + bool(ranks)
                self._exact = exact_gradients(self.deepspeed, self.zero_stage, epsilon, num_micro_batches)
                self._buffers = BufferWatch(self.module)
            self._configure_optimizer(training)
            set_masters(self, weights)
            self.average = None if training.ema_decay is None else Average(self, training.ema_decay)
            self.ranks = None if ranks is None else AdaptiveRanks(self, ranks)
        except BaseException:
            self._closing.close()
            raise

    def _configure_optimizer(self, training: TrainingConfig) -> None:
        if self.world_size == 1:
            # Stage 0 and bf16 in stage 1 would flatten the gradients, reduce them alone, and copy them back.
            self.deepspeed.allreduce_no_retain = lambda *_, **__: None
        if self.zero_stage in (1, 2) and not getattr(self.optimizer, "cpu_offload", False):
            # DeepSpeed's overflow check looks at one gradient after the other, which takes a fifth of a small model's
            # step on an H200 (profiled). The norm is computed next anyway, and is not finite exactly if a gradient
            # is not.
            self.optimizer.check_overflow = lambda *_, **__: None
        if hasattr(self.optimizer, "clear_hp_grads") and self._exact is None:  # bf16 at stage 1
            FlatUpdate(self.optimizer, self._clip)
        if self.precision is Precision.FP16:
            scaler = self.optimizer.loss_scaler
            # At the minimum loss scale DeepSpeed raises; raytrain counts skipped steps and stops with its own message.
            scaler.raise_error_at_min_scale = False
            scaler.min_scale = training.loss_scale.minimum

    @property
    def loss_scale(self) -> float | None:
        """The loss scale of the next step. None without fp16. Not collective."""
        return float(self.optimizer.loss_scaler.cur_scale) if self.precision is Precision.FP16 else None

    def train_step(
        self,
        micro_batches: list[dict[str, Tensor]],
        loss_sum_fn: LossSumFn,
        target_weight: float,
        learning_rate: float,
        seeds: Sequence[int] | None = None,
        admits: Admits | None = None,
    ) -> StepResult:
        """Apply the gradient of (sum of the loss over all targets of the global batch) / target_weight.

        Args:
            micro_batches: This worker's micro-batches, on its device. At least one, and equally many on every worker. A
                micro-batch without targets is allowed if its loss is 0 and still depends on the model's output.
            loss_sum_fn: Maps (callable model, micro-batch) to the sum of the loss over its targets, in fp32.
            target_weight: Sum of the weights of the targets of the global batch, over all workers. Without weights,
                their number.
            learning_rate: Learning rate of this update.
            seeds: Of everything random in the forward pass of each micro-batch, see `seed_generators`; None: the
                generators go on as they are.
            admits: Decides whether the update is applied, before it is; None: it is.
        """
        if not self.module.training:  # from_pretrained returns models in eval mode, and so does an evaluation
            self.train_mode()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate * group[LR_SCALE]
        loss_scale = self.loss_scale
        losses = self._accumulate(micro_batches, loss_sum_fn, target_weight or 1.0, seeds)
        loss_sum = float(torch.stack(losses).double().div(LOSS_UNIT).round().sum().mul(LOSS_UNIT))
        if admits is not None and not admits(loss_sum):
            self._discard_gradients()
            return StepResult(math.nan, False, loss_scale, loss_sum, is_refused=True)
        if self.ranks is not None:
            self.ranks.add_penalty(self._exact, loss_scale or 1.0)
        self._let_copies_finish()
        grad_norm, is_skipped = self._update_unsharded() if self.zero_stage == 0 else self._update_sharded()
        if self.ranks is not None and not is_skipped:
            self.ranks.updated(self._gradient_factor(grad_norm, loss_scale))
        if self.average is not None and not is_skipped:
            self.average.update()
        return StepResult(grad_norm, is_skipped, loss_scale, loss_sum)

    def _accumulate(
        self,
        micro_batches: list[dict[str, Tensor]],
        loss_sum_fn: LossSumFn,
        target_weight: float,
        seeds: Sequence[int] | None,
    ) -> list[Tensor]:
        """Forward and backward passes. Returns the sums of the losses of each micro-batch, on the device."""
        # DeepSpeed averages over workers and would divide by the accumulation steps of its config. The factor undoes
        # the first; the second is turned off, because a ragged last step has fewer micro-batches.
        factor = (self.world_size if self._exact is None else 1) / target_weight
        if self._exact is not None:
            self._exact.begin(self.loss_scale or 1.0)
        losses = []
        for index, batch in enumerate(micro_batches):
            self.deepspeed.set_gradient_accumulation_boundary(index == len(micro_batches) - 1)
            if seeds is not None:
                seed_generators(seeds[index])
            loss = loss_sum_fn(self.deepspeed, batch)
            self.deepspeed.backward(loss * factor, scale_wrt_gas=False)
            losses.append(loss.detach())
            if self._exact is not None:
                self._exact.add_micro_batch()
        return losses

    def averaged(self) -> contextlib.AbstractContextManager[None]:
        """Context in which the weights are those to evaluate and to keep: with `training.ema_decay` their average."""
        return contextlib.nullcontext() if self.average is None else self.average.in_use()

    def train_mode(self) -> None:
        """Turn dropout on. Not collective."""
        self.deepspeed.train()

    def eval_mode(self) -> None:
        """Turn dropout off. Not collective."""
        self.deepspeed.eval()

    def full_state_dict(self, *, only_trained: bool = False) -> dict[str, Tensor] | None:
        """The fp32 master weights under the names of `module.state_dict()`, on the CPU of rank 0; None on other ranks.
        `only_trained`: without frozen weights and buffers.

        Tied weights share one tensor under each of their names; floating-point buffers are fp32 too. Parameters are
        gathered one at a time, so a worker's device holds one complete fp32 parameter at a time.
        """
        is_first = self.world_rank == 0
        gathered: dict[int, Tensor] = {}
        for parameter in self.module.parameters():
            if only_trained and not parameter.requires_grad:
                continue
            full = self._full_parameter(parameter)
            if is_first:
                gathered[id(parameter)] = full.detach().to("cpu", torch.float32, copy=True)
        if not is_first:
            return None
        return {
            name: gathered[id(value)] if id(value) in gathered else _buffer_copy(value)
            for name, value in self.module.state_dict(keep_vars=True).items()
            if id(value) in gathered or not only_trained
        }

    def close(self) -> None:
        """Remove DeepSpeed's hooks from the model, so that another engine can be built in this process.

        ZeRO-3 replaces `torch.nn.functional.linear` by a slower function that saves memory. It is put back here: plain
        models and later engines of the process would otherwise compute with it.
        """
        self._let_copies_finish()
        self._closing.close()

    def _let_copies_finish(self) -> None:
        """Make further GPU work wait for what is being read on `copy_stream`."""
        if self.update_after is not None:
            torch.cuda.current_stream(self.device).wait_event(self.update_after)
            self.update_after = None

    def _finish_exact(self, exact: ExactGradients) -> float:
        return exact.finish(self._clip, None if self._buffers is None else self._buffers.changed())

    def _update_sharded(self) -> tuple[float, bool]:
        norm = None if self._exact is None else self._finish_exact(self._exact)
        if self.ranks is not None and (norm is None or math.isfinite(norm)):
            self.ranks.note_gradients(is_exact=norm is not None)
        self.deepspeed.step()
        is_skipped = bool(self.optimizer.overflow)
        if norm is None:
            norm = math.inf if is_skipped else float(self.optimizer._global_grad_norm)
        return norm, is_skipped

    def _update_unsharded(self) -> tuple[float, bool]:
        """fp32 without ZeRO: DeepSpeed would neither report the norm nor skip the update if it is not finite."""
        if self._exact is None:
            trained = [p for p in self.module.parameters() if p.requires_grad]
            norm = float(nn.utils.clip_grad_norm_(trained, self._clip or math.inf))
        else:
            norm = self._finish_exact(self._exact)
        if not math.isfinite(norm):
            self.deepspeed.zero_grad()
            return norm, True
        if self.ranks is not None:
            self.ranks.note_gradients(is_exact=self._exact is not None)
        self.deepspeed.step()
        return norm, False

    def _gradient_factor(self, norm: float, loss_scale: float | None) -> float:
        """What DeepSpeed multiplies the gradients by that `note_gradients` has seen: unscaling and clipping."""
        if self._exact is not None or self.zero_stage == 0:  # they were clipped before
            return 1.0
        clipping = max(1.0, (norm + 1e-6) / self._clip) if self._clip else 1.0
        return 1.0 / (clipping * (loss_scale or 1.0))

    def _discard_gradients(self) -> None:
        """Leave out the update. DeepSpeed does for it what it does for an overflow, but for the loss scale."""
        if self.zero_stage == 0:
            self.deepspeed.zero_grad()
            return
        optimizer, inf = self.optimizer, torch.tensor(math.inf, device=self.device)
        if hasattr(optimizer, "clear_hp_grads"):  # bf16 at stage 1
            optimizer.zero_grad()
            return
        name, norm = ("_get_norm_groups", [inf]) if self.zero_stage == 3 else ("scaled_global_norm", inf)
        held, scaler = optimizer.__dict__.get(name), dict(vars(optimizer.loss_scaler))
        setattr(optimizer, name, lambda *_, **__: norm)
        try:
            self.deepspeed.step()
        finally:
            delattr(optimizer, name)
            if held is not None:
                setattr(optimizer, name, held)
            vars(optimizer.loss_scaler).update(scaler)

    def _full_parameter(self, parameter: nn.Parameter) -> Tensor:
        """The complete fp32 value of one parameter, in its own shape. Collective under ZeRO."""
        from deepspeed.utils import safe_get_full_fp32_param

        if self.zero_stage == 3 and not parameter.requires_grad:
            import deepspeed

            with deepspeed.zero.GatheredParameters([parameter]):
                return parameter.detach().clone()
        if self.zero_stage == 0 or not parameter.requires_grad:
            return parameter.detach()
        return safe_get_full_fp32_param(parameter)


def detect_precision(precision: Precision, device: torch.device) -> Precision:
    """`resolve_precision` for this worker's device. Raises ConfigError. Not collective."""
    if device.type == "cuda":
        # Emulated bf16 is many times slower than fp16: T4, V100.
        has_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return resolve_precision(precision, has_gpu=True, gpu_has_bf16=has_bf16)
    if precision is not Precision.FP16:
        return resolve_precision(precision, has_gpu=False, gpu_has_bf16=False)
    choose_accelerator(device)
    from deepspeed.accelerator import get_accelerator

    has_fp16 = bool(get_accelerator().is_fp16_supported())
    return resolve_precision(precision, has_gpu=False, gpu_has_bf16=False, cpu_has_fp16=has_fp16)


def _buffer_copy(value: Any) -> Any:
    if not isinstance(value, Tensor):
        return value
    return value.detach().to("cpu", torch.float32 if value.is_floating_point() else value.dtype, copy=True)
