"""Steps, batches, optimizer, precision."""

import re
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BeforeValidator, Field, PositiveFloat, model_validator

from raytrain.config.base import Affects, Mark, NonNegativeInt, PositiveInt, Section
from raytrain.config.labels import Label

# training.micro_batch_size=auto: enough samples to keep a worker busy. It depends on nothing that says how many workers
# there are, which is not part of the experiment.
AUTOMATIC_SAMPLES = 16


class Precision(StrEnum):
    """Number format of forward and backward; the optimizer's master weights are always fp32."""

    AUTO = "auto"  # bf16 on a GPU that has it, else fp16 on a GPU, else fp32
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class Exactness(StrEnum):
    """How equal the weights are at other numbers of workers."""

    ROUNDING = "rounding"  # gradients are added in the order that the workers' number gives: equal but for rounding
    BITWISE = "bitwise"  # gradients are added exactly: equal to the last bit


class Packing(StrEnum):
    """Whether the samples of a micro-batch share rows, instead of a padded row for each."""

    AUTO = "auto"  # where it saves time and changes the result by no more than rounding
    ON = "on"  # always; refused for a model that does not keep samples apart
    OFF = "off"  # never


class OptimizerConfig(Section):
    """AdamW, or a class of your own. Biases and normalization weights are not decayed."""

    learning_rate: Annotated[float, Field(gt=0.0), Affects.RESULT, Mark.MID_RUN] = 5.0e-5
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0), Affects.RESULT, Mark.MID_RUN] = 0.01
    """Decoupled weight decay."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0), Affects.RESULT, Mark.MID_RUN] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0), Affects.RESULT, Mark.MID_RUN] = 0.999
    """Decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0.0), Affects.RESULT, Mark.MID_RUN] = 1.0e-8
    """Added to the denominator."""
    target: Annotated[str | None, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"), Affects.RESULT | Affects.SPEED] = (
        None
    )
    """package.module:Class, a subclass of torch.optim.Optimizer that treats each element alone, such as
    torch.optim:RAdam; null: AdamW. It is found as `task.target` is."""
    args: Annotated[dict[str, Any], Affects.RESULT | Affects.SPEED] = {}
    """Keyword arguments of `target`, besides `lr` and `weight_decay`, which are the above."""
    source: Annotated[str | None, Affects.RESULT | Affects.SPEED] = None
    """SHA-256 of the Python files of its top-level package. raytrain fills it in, except for torch's own. A run that
    was started with other files is not resumed."""

    @model_validator(mode="after")
    def _of_one_class(self) -> Self:
        if self.target is None and self.args:
            raise ValueError(
                "training.optimizer.args are those of training.optimizer.target: give it, or leave them out"
            )
        if self.target is None:
            return self
        for name in ("beta1", "beta2", "epsilon"):
            if getattr(self, name) != type(self).model_fields[name].default:  # a run's config.yaml has all fields
                raise ValueError(
                    f"training.optimizer.{name} is AdamW's and has no effect on {self.target}: leave it out, and give "
                    f"what that takes in training.optimizer.args"
                )
        for name, option in (("lr", "learning_rate"), ("weight_decay", "weight_decay"), ("params", None)):
            if name in self.args:
                instead = f"set training.optimizer.{option}" if option else "raytrain gives it"
                raise ValueError(f"training.optimizer.args.{name}: leave it out; {instead}")
        return self


class ScheduleKind(StrEnum):
    """The learning rate after warm-up."""

    LINEAR = "linear"  # straight down to min_ratio
    COSINE = "cosine"  # half a cosine down to min_ratio
    CONSTANT = "constant"  # stays at the peak


class ScheduleConfig(Section):
    """Learning rate over *applied* updates: an fp16 overflow does not advance it."""

    kind: Annotated[ScheduleKind, Affects.RESULT, Mark.MID_RUN] = ScheduleKind.LINEAR
    """Shape of the schedule after warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0), Affects.RESULT, Mark.MID_RUN] = 0.06
    """Fraction of all updates in which the rate rises to its peak."""
    warmup_steps: Annotated[NonNegativeInt | None, Affects.RESULT, Mark.MID_RUN] = None
    """The same in updates; overrides warmup_ratio."""
    min_ratio: Annotated[float, Field(ge=0.0, le=1.0), Affects.RESULT, Mark.MID_RUN] = 0.0
    """Final rate as a fraction of the peak."""
    target: Annotated[str | None, Field(pattern=r"^[A-Za-z_][\w.]*:[A-Za-z_]\w*$"), Affects.RESULT] = None
    """package.module:function instead of `kind`: from the share of the updates after warm-up, 0 to below 1, to the
    fraction of the peak. It is found as `task.target` is."""
    source: Annotated[str | None, Affects.RESULT] = None
    """SHA-256 of the Python files of its package. raytrain fills it in. A run that was started with other files is not
    resumed."""

    @model_validator(mode="after")
    def _of_one_shape(self) -> Self:
        for name in ("kind", "min_ratio"):
            if self.target is not None and getattr(self, name) != type(self).model_fields[name].default:
                raise ValueError(
                    f"training.schedule.{name} has no effect beside training.schedule.target: leave one of them out"
                )
        return self


class LossScaleConfig(Section):
    """Dynamic loss scaling; used with fp16 only."""

    initial_power: Annotated[int, Field(ge=0, le=32), Affects.RESULT] = 16
    """The first scale is 2 to this power."""
    window: Annotated[PositiveInt, Affects.RESULT] = 1000
    """Updates without an overflow after which the scale doubles."""
    hysteresis: Annotated[PositiveInt, Affects.RESULT] = 2
    """Overflows before the scale is halved."""
    minimum: Annotated[float, Field(gt=0.0), Affects.RESULT] = 1.0
    """The scale is not lowered below this."""
    max_consecutive_skips: Annotated[PositiveInt, Affects.RESULT] = 40
    """Number of consecutive skipped steps after which the run stops, since it would not recover."""


class LossSpikesConfig(Section):
    """Steps whose loss is far above that of the steps before are not applied: as rows of another kind or broken ones
    among the data make them. All workers decide alike, by the loss of the global batch."""

    sigmas: Annotated[float, Field(gt=0.0), Affects.RESULT, Mark.MID_RUN] = 6.0
    """Standard deviations above the mean of the window from which on a loss is a spike."""
    window: Annotated[int, Field(ge=8), Affects.RESULT, Mark.MID_RUN] = 128
    """Applied steps that mean and deviation are over. Nothing is skipped before half of it is full."""
    max_consecutive: Annotated[PositiveInt, Affects.RESULT, Mark.MID_RUN] = 10
    """Number of consecutive spikes after which the run stops: the data or the model has changed for good."""


class EarlyStoppingConfig(Section):
    """Stop if the metric has not improved for a while. The best model is kept in any case."""

    metric: Annotated[str, Affects.EVALUATION]
    """A validation metric of the task, such as accuracy, macro_f1 or loss."""
    mode: Annotated[Literal["min", "max"] | None, Affects.EVALUATION] = None
    """Whether smaller or larger is better; null: as the task defines it, min for loss."""
    patience: Annotated[PositiveInt, Affects.EVALUATION] = 3
    """Evaluations without an improvement before the run stops."""
    min_delta: Annotated[float, Field(ge=0.0), Affects.EVALUATION] = 0.0
    """Smallest change that counts as an improvement."""


def _environment(value: dict[str, str]) -> dict[str, str]:
    for name in value:
        if not (name.startswith(NETWORK_VARIABLES) and re.fullmatch("[A-Z0-9_]+", name)):
            raise ValueError(
                f"training.communication.environment.{name}: only variables of the network libraries are set here: "
                f"{', '.join(f'{prefix}...' for prefix in NETWORK_VARIABLES)}; set others where the nodes start Ray"
            )
    return value


NETWORK_VARIABLES = (
    "NCCL_",
    "TORCH_NCCL_",
    "GLOO_",
    "FI_",
    "UCX_",
    "RDMAV_",
    "OFI_NCCL_",
    "CUDA_DEVICE_MAX_CONNECTIONS",
)
# From YAML a value is the text that is written; from Python 1 is a number, and the libraries read text.
Text = Annotated[str, BeforeValidator(lambda value: str(int(value)) if isinstance(value, int) else value)]
Environment = Annotated[dict[str, Text], AfterValidator(_environment)]


class CommunicationConfig(Section):
    """Communication of gradients and parameters. It affects the speed; `dtype` also affects the rounding."""

    bucket_elements: Annotated[PositiveInt, Affects.SPEED, Mark.SHARED] = 50_000_000
    """Number of elements per reduction of gradients and per gather of parameters. Larger buckets need fewer calls and
    more memory: a few copies of this many elements on each worker."""
    overlap: Annotated[Literal["auto"] | bool, Affects.SPEED, Mark.SHARED] = "auto"
    """Whether gradients are reduced during the backward pass; auto: on GPUs, at ZeRO stages 2 and 3."""
    dtype: Annotated[Literal["fp32", "bf16", "fp16"] | None, Affects.RESULT | Affects.SPEED, Mark.SHARED] = None
    """Number format in which gradients are sent; null: that of training.precision. They are accumulated in fp32 in any
    case."""
    network: Annotated[str | None, Affects.SPEED, Mark.SHARED] = None
    """Network between the nodes, the name of a shipped file of variables: efa, infiniband, roce or ethernet; null: NCCL
    and gloo detect it. `raytrain cluster show efa` prints such a file."""
    environment: Annotated[Environment, Affects.SPEED, Mark.SHARED] = {}
    """Further variables, such as NCCL_SOCKET_IFNAME, which override those of `network` and are set in each worker
    before it connects. Values are passed on as text; NCCL expects numbers: 1, not yes."""


class TrainingConfig(Section):
    """Steps, batches, optimizer, precision."""

    epochs: Annotated[PositiveInt, Affects.RESULT] = 3
    """Passes over the training data."""
    max_steps: Annotated[PositiveInt | None, Affects.RESULT] = None
    """Optimizer steps; instead of epochs."""
    global_batch_size: Annotated[PositiveInt, Affects.RESULT | Affects.SPEED] = 32
    """Samples per optimizer step over all workers, whatever their number."""
    micro_batch_size: Annotated[PositiveInt | Literal["auto"], Affects.RESULT | Affects.SPEED] = "auto"
    """Samples per forward/backward pass, at most. A step consists of global_batch_size / micro_batch_size
    micro-batches, the same at any number of workers, and each has its own dropout masks. There can be at most as many
    workers. auto: 16, or half of a smaller global batch."""
    packing: Annotated[Packing, Affects.RESULT | Affects.SPEED] = Packing.AUTO
    """Whether samples of a micro-batch share rows, for causal_lm and chat. Each is computed as if it were alone, so the
    result is the same but for rounding, unless there is dropout or `neftune_alpha`, which are then drawn otherwise.
    auto: where it saves computation and the model draws no random numbers; on: always; off: a row for each sample,
    padded."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    gradient_clipping: Annotated[float, Field(ge=0.0), Affects.RESULT, Mark.MID_RUN] = 1.0
    """Maximum norm of the gradient; 0 turns clipping off."""
    precision: Annotated[Precision, Affects.RESULT | Affects.SPEED] = Precision.AUTO
    """Number format: auto, fp32, bf16 or fp16."""
    loss_scale: LossScaleConfig = LossScaleConfig()
    skip_loss_spikes: LossSpikesConfig | None = None
    """A guard for spikes of the loss; {} turns it on with its defaults. null: every step is applied."""
    exactness: Annotated[Exactness, Affects.RESULT | Affects.SPEED, Mark.SHARED] = Exactness.ROUNDING
    """How equal the weights are at other numbers of workers: rounding, or bitwise for the same bits, on the same kind
    of hardware and the same versions of the libraries. bitwise adds gradients as integers, and takes a little more time
    and 8 bytes of memory a parameter."""
    class_weights: Annotated[Literal["auto"] | dict[Label, PositiveFloat] | None, Affects.RESULT] = None
    """Weight of the loss by label, for tasks with one label per sample. auto: inversely proportional to the label's
    frequency in the training data; null: equal weights. The loss is the weighted mean. `data.balance` changes how often
    samples are seen instead."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0), Affects.RESULT] = 0.0
    """Share of a target's probability that is spread evenly over all labels, or all tokens, in training. The loss of an
    evaluation is the plain one."""
    neftune_alpha: Annotated[float, Field(ge=0.0), Affects.RESULT] = 0.0
    """Uniform noise on the embeddings of tokens in training (NEFTune), at most alpha / sqrt(tokens * width); 0 turns it
    off, and 5 to 15 are usual."""
    ema_decay: Annotated[float | None, Field(gt=0.0, lt=1.0), Affects.RESULT | Affects.SPEED] = None
    """Decay of an exponential moving average of the weights, such as 0.999, taken after each update. The average is
    what is evaluated and kept in best/; null: the weights themselves."""
    layerwise_lr_decay: Annotated[float, Field(gt=0.0, le=1.0), Affects.RESULT] = 1.0
    """The learning rate of each layer is this times that of the layer above it. The head has
    `optimizer.learning_rate`, and the embeddings have the lowest rate."""
    zero_stage: Annotated[Literal["auto", 0, 1, 2, 3], Affects.SPEED] = "auto"
    """What DeepSpeed ZeRO shards: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters; auto: the lowest
    stage that fits into the workers' memory by the plan's estimate, at each number of workers. It does not change the
    result."""
    dropout: Annotated[float | None, Field(ge=0.0, lt=1.0), Affects.RESULT, Mark.MID_RUN] = None
    """Overrides every dropout of the model; null: the model's own values."""
    gradient_checkpointing: Annotated[bool, Affects.SPEED] = False
    """Recompute activations in the backward pass instead of storing them: much less memory for long samples or large
    micro-batches, and about a third more time. It does not change the result."""
    compile: Annotated[bool, Affects.SPEED] = False
    """Compile each layer with torch.compile, at ZeRO stages 0 to 2. It takes some 10 to 60 s at a worker's first step,
    and pays in long runs, above all on GPUs. It does not change the result."""
    communication: CommunicationConfig = CommunicationConfig()
    deepspeed: Annotated[dict[str, Any], Affects.RESULT | Affects.SPEED] = {}
    """Other options of DeepSpeed, merged last. Those that raytrain sets itself and those without effect are refused."""
    eval_every_steps: Annotated[PositiveInt | None, Affects.EVALUATION] = None
    """Steps between evaluations; null: see eval_every_epochs."""
    eval_every_epochs: Annotated[float | None, Field(gt=0.0), Affects.EVALUATION] = None
    """The same in passes over the training data, such as 0.25, which does not depend on the batch size. null: 1, unless
    eval_every_steps is given."""
    early_stopping: Annotated[EarlyStoppingConfig | None, Affects.EVALUATION] = None
    """null: train to the end."""
    best_metric: Annotated[str | None, Affects.EVALUATION] = None
    """Metric that picks the best model; null: early_stopping.metric, else the task's own."""

    @property
    def samples_per_micro_batch(self) -> int:
        """micro_batch_size, or the number that auto stands for."""
        if self.micro_batch_size != "auto":
            return self.micro_batch_size
        return max(1, min(AUTOMATIC_SAMPLES, self.global_batch_size // 2))

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches of a step, over all workers: the largest number of workers."""
        return -(-self.global_batch_size // self.samples_per_micro_batch)

    def batches_for(self, workers: int) -> str:
        """In words, the options of a run that can have this many workers: as many micro-batches in a step."""
        if self.global_batch_size < workers:
            return f"training.global_batch_size of at least {workers} and training.micro_batch_size=1"
        return f"training.micro_batch_size of at most {self.global_batch_size // workers}"

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_steps is not None and "epochs" in self.model_fields_set:
            raise ValueError(
                "training.epochs and training.max_steps are both given: leave one out, or override it with null"
            )
        if self.eval_every_steps is not None and self.eval_every_epochs is not None:
            raise ValueError(
                "training.eval_every_steps and training.eval_every_epochs are both given: leave one out, or override "
                "it with null"
            )
        if self.samples_per_micro_batch > self.global_batch_size:
            raise ValueError(
                f"training.micro_batch_size {self.micro_batch_size} is more than training.global_batch_size "
                f"{self.global_batch_size}; lower it to at most {self.global_batch_size}"
            )
        return self
