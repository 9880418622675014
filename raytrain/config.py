"""The run's configuration: what a user may write, what each field means, and its unit.

The docstring under a field is its help text; `raytrain configs show --fields` prints them. Reading YAML,
merging overrides and turning pydantic's errors into sentences is `config_io`'s work. This module imports neither
Ray nor torch, so that a mistake is found in milliseconds.
"""

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

PositiveInt = Annotated[int, Field(ge=1)]
NonNegativeInt = Annotated[int, Field(ge=0)]
Fraction = Annotated[float, Field(gt=0.0, lt=1.0)]


def _label(value: Any) -> Any:
    """A label that YAML reads as an integer is meant as its digits; a text file has no other."""
    if isinstance(value, bool):
        raise ValueError(f"task.labels: YAML reads this as {str(value).lower()}; put the label in quotes, like 'no'")
    return str(value) if isinstance(value, int) else value


def _labels(value: list[str]) -> list[str]:
    if not value:
        raise ValueError("task.labels is empty: name the labels, or leave it out to take those of the training data")
    if len(set(value)) < len(value):
        raise ValueError(f"task.labels names {max(value, key=value.count)!r} twice; each label is one class")
    return value


Label = Annotated[str, BeforeValidator(_label)]
Labels = Annotated[list[Label], AfterValidator(_labels)]


class Section(BaseModel):
    """Base of every part of the config: frozen, and unknown keys are refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True, protected_namespaces=())


class Precision(StrEnum):
    """Number format of forward and backward; the optimizer's master weights are always fp32."""

    AUTO = "auto"  # bf16 on a GPU that has it, else fp16 on a GPU, else fp32
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"


class SourceFormat(StrEnum):
    """File format of a source; `auto` goes by the file name's ending."""

    AUTO = "auto"
    PARQUET = "parquet"
    JSONL = "jsonl"
    CSV = "csv"
    TSV = "tsv"
    TXT = "txt"
    CONLL = "conll"
    CONLLU = "conllu"


class BadRowPolicy(StrEnum):
    """What happens to a row that can't be used (unparsable, empty text)."""

    REFUSE = "refuse"  # stop before training and name the file and the row
    SET_ASIDE = "set_aside"  # write it to rejected.jsonl beside the prepared data, count it, go on


class SequenceClassificationConfig(Section):
    """One label for a text, or with `multi_label` any number of them."""

    kind: Literal["sequence_classification"]
    text_column: str = "text"
    """Column with the text."""
    text_pair_column: str | None = None
    """Column with a second text, for sentence-pair tasks; null: one text."""
    label_column: str = "label"
    """Column with the label: a string or integer; with `multi_label` a list of them."""
    labels: Labels | None = None
    """The declared labels, in id order; null: those found in the training data, sorted."""
    multi_label: bool = False
    """True: every label is decided by itself (sigmoid), and a sample may have none or several."""


class TokenClassificationConfig(Section):
    """A tag for each word (named entities, parts of speech)."""

    kind: Literal["token_classification"]
    tokens_column: str = "tokens"
    """Column with the list of words; CoNLL files call it `tokens`."""
    tags_column: str = "tags"
    """Column with the list of tags, one a word; CoNLL files call it `tags` (their last column; UPOS in CoNLL-U)."""
    labels: Labels | None = None
    """The declared tags, in id order; null: those found in the training data, `O` first, then sorted."""
    case_feature: bool = False
    """True: tells the model each word's letter case (lower, Title, UPPER, miXed) through `token_type_ids`, which
    gives an uncased encoder back what its tokenizer throws away. Needs a model with token-type embeddings."""
    document_context: bool = False
    """True: joins neighbouring sentences of a document to samples of up to `data.max_length` tokens, so that a word
    is tagged with its document in view. Documents are told apart by CoNLL's -DOCSTART- lines or a `document` column."""


TaskConfig = Annotated[SequenceClassificationConfig | TokenClassificationConfig, Field(discriminator="kind")]


class ModelConfig(Section):
    """Where the model comes from."""

    path: str | None = None
    """A hub id or a local folder with pretrained weights."""
    config: dict[str, Any] | None = None
    """A Transformers config (with `model_type`): trains a new model with random weights instead of `path`."""
    tokenizer: str | None = None
    """A hub id or local folder of the tokenizer; null: the one in `model.path`."""
    revision: str | None = None
    """Branch, tag or commit on the hub; null: its main branch."""
    trust_remote_code: bool = False
    """True runs Python code that comes with the model. Only for a source that you trust."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.config is None):
            raise ValueError("give exactly one of model.path (pretrained) and model.config (a new model)")
        if self.config is not None and self.tokenizer is None:
            raise ValueError("model.config needs model.tokenizer: a new model brings no tokenizer of its own")
        if self.config is not None and "model_type" not in self.config:
            raise ValueError("model.config needs model_type, for instance bert")
        return self

    @property
    def tokenizer_path(self) -> str:
        """Hub id or folder that the tokenizer is loaded from."""
        return self.tokenizer or self.path or ""


class SourceConfig(Section):
    """Files of one split."""

    path: str | list[str]
    """A file, a folder, a glob, or a list of these; local, or s3://, gs://, abfs://."""
    format: SourceFormat = SourceFormat.AUTO
    """File format; auto goes by the ending."""


class ValidationConfig(Section):
    """The validation split: files of its own, or a fraction of the training data."""

    path: str | list[str] | None = None
    """A file, a folder, a glob, or a list of these."""
    format: SourceFormat = SourceFormat.AUTO
    """File format; auto goes by the ending."""
    fraction: Fraction | None = None
    """Share of the training rows to hold out, chosen by a hash of the row's place and the seed."""

    @model_validator(mode="after")
    def _one_origin(self) -> Self:
        if (self.path is None) == (self.fraction is None):
            raise ValueError("give exactly one of data.validation.path and data.validation.fraction")
        return self


class DataConfig(Section):
    """What is read, and how it is dealt to the steps."""

    train: SourceConfig
    """Training files."""
    validation: ValidationConfig | None = None
    """Validation files or a fraction; null: no evaluation while training."""
    test: SourceConfig | None = None
    """Test files, evaluated once at the end with the best model."""
    max_length: PositiveInt = 128
    """Longest sample in tokens, special tokens included; longer ones are truncated and counted."""
    bad_rows: BadRowPolicy = BadRowPolicy.REFUSE
    """What to do with a row that can't be used."""
    drop_last: bool = False
    """True: leave out the last, smaller step of each epoch."""
    group_by_length: bool = True
    """True: a step takes samples of like length, so that little is computed on padding."""
    shuffle_window_samples: PositiveInt = 32768
    """Samples that are shuffled together, over all workers. Larger mixes better and needs more memory."""
    canonical_shards: PositiveInt | None = None
    """Number of ordered streams an epoch is dealt to; it divides `training.global_batch_size` and bounds the number of
    workers. Fixed for a run's life. null: the smallest divisor that is at least min(global_batch_size, 256)."""
    record_samples: bool = False
    """True: write the sample ids of every step to `samples/`."""
    prepared_path: str | None = None
    """Folder of the prepared data's cache; null: `<storage_path>/_prepared`."""


class OptimizerConfig(Section):
    """AdamW. Biases and normalization weights are not decayed."""

    learning_rate: Annotated[float, Field(gt=0.0)] = 5.0e-5
    """Peak learning rate."""
    weight_decay: Annotated[float, Field(ge=0.0)] = 0.01
    """Decoupled weight decay."""
    beta1: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.9
    """Decay of the first moment."""
    beta2: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.999
    """Decay of the second moment."""
    epsilon: Annotated[float, Field(gt=0.0)] = 1.0e-8
    """Added to the denominator."""


class ScheduleKind(StrEnum):
    """Course of the learning rate after warm-up."""

    LINEAR = "linear"  # straight down to min_ratio
    COSINE = "cosine"  # half a cosine down to min_ratio
    CONSTANT = "constant"  # stays at the peak


class ScheduleConfig(Section):
    """Learning rate over *applied* updates: an fp16 overflow does not advance it."""

    kind: ScheduleKind = ScheduleKind.LINEAR
    """Course after warm-up."""
    warmup_ratio: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.06
    """Share of all updates in which the rate climbs from 0 to its peak."""
    warmup_steps: NonNegativeInt | None = None
    """The same in updates; overrides warmup_ratio."""
    min_ratio: Annotated[float, Field(ge=0.0, le=1.0)] = 0.0
    """Final rate as a share of the peak."""


class LossScaleConfig(Section):
    """Dynamic loss scaling; used with fp16 only."""

    initial_power: Annotated[int, Field(ge=0, le=32)] = 16
    """The first scale is 2 to this power."""
    window: PositiveInt = 1000
    """Updates without an overflow after which the scale doubles."""
    hysteresis: PositiveInt = 2
    """Overflows before the scale is halved."""
    minimum: Annotated[float, Field(gt=0.0)] = 1.0
    """The scale is not lowered below this."""
    max_consecutive_skips: PositiveInt = 40
    """Steps skipped in a row after which the run stops: it would not recover."""


class EarlyStoppingConfig(Section):
    """Stop when the metric has not improved for a while; the best model is kept either way."""

    metric: str
    """A validation metric of the task, such as accuracy, macro_f1 or loss."""
    mode: Literal["min", "max"] | None = None
    """Whether smaller or larger is better; null: min for loss, max for everything else."""
    patience: PositiveInt = 3
    """Evaluations without an improvement before the run stops."""
    min_delta: Annotated[float, Field(ge=0.0)] = 0.0
    """Smallest change that counts as an improvement."""

    @property
    def better(self) -> str:
        """`mode`, with null decided."""
        return self.mode or ("min" if self.metric == "loss" else "max")

    @model_validator(mode="after")
    def _sensible_mode(self) -> Self:
        if self.metric == "loss" and self.mode == "max":
            raise ValueError("training.early_stopping.mode is max, but a larger loss is worse; leave mode out")
        return self


class TrainingConfig(Section):
    """Steps, batches, optimizer, precision."""

    epochs: PositiveInt = 3
    """Passes over the training data."""
    max_steps: PositiveInt | None = None
    """Optimizer steps; instead of epochs."""
    global_batch_size: PositiveInt = 32
    """Samples per optimizer step, all workers together. It stays the same whatever the number of workers."""
    micro_batch_size: PositiveInt = 16
    """Samples per worker per forward/backward: bounds the memory, does not change the result."""
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    gradient_clipping: Annotated[float, Field(ge=0.0)] = 1.0
    """Largest norm of the gradient; 0 turns clipping off."""
    precision: Precision = Precision.AUTO
    """Number format: auto, fp32, bf16 or fp16."""
    loss_scale: LossScaleConfig = LossScaleConfig()
    zero_stage: Literal[0, 1, 2, 3] = 2
    """What DeepSpeed ZeRO shards: 0 nothing, 1 optimizer state, 2 also gradients, 3 also parameters."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Overrides every dropout of the model; null: as the model says."""
    deepspeed: dict[str, Any] = {}
    """Anything else that DeepSpeed knows, merged last; keys that raytrain owns are refused."""
    eval_every_steps: PositiveInt | None = None
    """Steps between evaluations; null: at the end of each epoch."""
    early_stopping: EarlyStoppingConfig | None = None
    """null: train to the end."""
    best_metric: str | None = None
    """Metric that picks the best model; null: early_stopping.metric, else the task's own."""

    @model_validator(mode="after")
    def _one_length(self) -> Self:
        if self.max_steps is not None and "epochs" in self.model_fields_set:
            raise ValueError("give training.epochs or training.max_steps, not both")
        if self.micro_batch_size > self.global_batch_size:
            raise ValueError(
                f"training.micro_batch_size {self.micro_batch_size} is more than training.global_batch_size "
                f"{self.global_batch_size}; lower it to at most {self.global_batch_size}"
            )
        return self


class WorkersConfig(Section):
    """How many workers, and what each one gets."""

    min: PositiveInt = 1
    """Fewest workers that the run trains with; with fewer it waits for nodes."""
    max: PositiveInt = 1
    """Most workers that the run uses. Between min and max it takes what there is, and follows as nodes come and go."""
    gpu: Literal["auto"] | bool = "auto"
    """Whether each worker holds a GPU; auto: when the cluster has any."""
    cpus: PositiveInt = 1
    """CPUs of each worker; on a CPU worker also its compute threads."""
    data_cpus: Annotated[float, Field(gt=0.0)] = 0.5
    """CPUs of each worker's Ray Data pipeline."""
    max_failures: NonNegativeInt = 3
    """Crashes that the run recovers from before it gives up. Nodes that are reclaimed or lost do not count."""
    grow_delay_s: Annotated[float, Field(ge=0.0)] = 10.0
    """Seconds that room for more workers must be there, unchanged, before the run grows: nodes come one by one."""
    grow_payback: Annotated[float, Field(ge=0.0)] = 2.0
    """The run grows only when that saves at least so many times the seconds that a resize has cost this run."""
    reclaim_watch: Literal["off", "auto", "aws", "gcp", "azure"] = "off"
    """Cloud whose reclaim notices the run itself reads, by an actor on each node; auto: found out on each node. off:
    the cluster's `raytrain reclaim-watch` does it, or nobody. An actor keeps an idle node from being scaled down."""
    wait_timeout_s: Annotated[float, Field(gt=0.0)] | None = 1800.0
    """Seconds to wait for nodes until workers.min fit; null: for ever."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"workers.min {self.min} is more than workers.max {self.max}; lower min or raise max")
        return self


class CheckpointConfig(Section):
    """What is saved and what is kept. A save runs in the background of training."""

    save_every_steps: PositiveInt = 500
    """Steps between checkpoints in storage; the loss of the driver or of all nodes costs at most this many steps."""
    snapshot_every_steps: PositiveInt | None = 20
    """Steps between snapshots in the memory of two nodes each; the loss of a worker or a node costs at most this many
    steps, and storage is not read. null: none, and a crash goes back to the last checkpoint."""
    keep_last: PositiveInt = 2
    """Newest checkpoints that are kept."""
    keep_best: bool = True
    """True: `best/` keeps the best model on the validation split; false: the last one. Ready for `from_pretrained`."""


class WandbConfig(Section):
    """Weights & Biases. Its key is read from WANDB_API_KEY or ~/.netrc of the nodes, never from here."""

    project: str = "raytrain"
    """W&B project."""
    entity: str | None = None
    """User or team that the project belongs to; null: the key's own."""
    mode: Literal["online", "offline"] = "online"
    """offline: write to `wandb/` in the run's folder, for `wandb sync`."""
    group: str | None = None
    """Runs that W&B shows together; null: none, and in a sweep the sweep's name."""
    tags: list[str] = []
    """Tags of the run."""


class MlflowConfig(Section):
    """MLflow. A password is read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the nodes."""

    tracking_uri: str
    """Server or database that every node reaches, such as http://host:5000 or sqlite:///mlflow.db."""
    experiment: str = "raytrain"
    """Name of the experiment; it is made when it is not there."""
    group: str | None = None
    """The run's tag `raytrain.group`; null: none, and in a sweep the sweep's name."""


class TrackingConfig(Section):
    """Where else the metrics go. A tracker that fails is said once, and the training goes on."""

    tensorboard: bool = True
    """True: write TensorBoard events to `tensorboard/`."""
    wandb: WandbConfig | None = None
    """Weights & Biases, `pip install 'raytrain[wandb]'`; null: off, `{}`: on."""
    mlflow: MlflowConfig | None = None
    """MLflow, `pip install 'raytrain[mlflow]'`; null: off."""
    prometheus: bool = True
    """True: export metrics through Ray, beside its own; see `cluster/grafana/`."""


class RayConfig(Section):
    """Which Ray to use."""

    address: str | None = None
    """Cluster to join; null: RAY_ADDRESS, else a private Ray on this machine."""
    num_cpus: PositiveInt | None = None
    """Logical CPUs of the private Ray; null: this machine's cores plus what Ray Data needs."""


class RunConfig(Section):
    """One training run, from data to model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
    """Name of the run and of its folder: letters, digits, dot, dash, underscore."""
    storage_path: str = "runs"
    """Folder that all workers reach: local, shared, or s3://, gs://, abfs://."""
    seed: NonNegativeInt = 0
    """Seed of the sample order, the new weights and dropout."""
    task: TaskConfig
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="after")
    def _across_sections(self) -> Self:
        shards, batch = self.data.canonical_shards, self.training.global_batch_size
        if shards is not None and batch % shards:
            raise ValueError(
                f"data.canonical_shards {shards} does not divide training.global_batch_size {batch}; "
                f"allowed: {', '.join(str(d) for d in range(1, batch + 1) if batch % d == 0)}"
            )
        if self.training.early_stopping is not None and self.data.validation is None:
            raise ValueError("training.early_stopping needs data.validation, whose metric it watches")
        if self.training.best_metric is not None and self.data.validation is None:
            raise ValueError("training.best_metric needs data.validation, on which it is measured")
        if self.training.eval_every_steps is not None and self.data.validation is None:
            raise ValueError("training.eval_every_steps needs data.validation, which it evaluates")
        if self.workers.max > self.canonical_shards:
            raise ValueError(
                f"workers.max {self.workers.max} is more than the {self.canonical_shards} canonical shards that a "
                f"global batch of {batch} is dealt from; lower workers.max or raise training.global_batch_size"
            )
        return self

    @property
    def canonical_shards(self) -> int:
        """Number of canonical shards: data.canonical_shards, or its default for this global batch."""
        if self.data.canonical_shards is not None:
            return self.data.canonical_shards
        batch = self.training.global_batch_size
        return next(d for d in range(min(batch, 256), batch + 1) if batch % d == 0)
