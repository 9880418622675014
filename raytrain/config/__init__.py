"""The configuration of a run: all fields, their meaning and their units.

The docstring below a field is its help text; `raytrain configs show --fields` prints them all. `io` reads YAML and
merges overrides, and `mistakes` turns pydantic's errors into sentences. Nothing here imports Ray or torch, so that a
mistake is found in milliseconds.
"""

from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from raytrain.config.adapter import AdapterConfig
from raytrain.config.base import Affects, Fraction, Mark, NonNegativeInt, PositiveInt, Section
from raytrain.config.chat import ChatConfig
from raytrain.config.cleaning import CleanConfig, CleanPreset, Placeholder
from raytrain.config.cluster import (
    CheckpointConfig,
    MlflowConfig,
    RayConfig,
    TrackingConfig,
    WandbConfig,
    WorkersConfig,
)
from raytrain.config.data import (
    SPLITS,
    AugmentConfig,
    BalanceConfig,
    DataConfig,
    DedupConfig,
    LeakagePolicy,
    OnError,
    SourceConfig,
    SourceFormat,
    TrainConfig,
    ValidationConfig,
    WeightedSource,
)
from raytrain.config.image import ImageClassificationConfig, ImageInputConfig
from raytrain.config.labels import Labels
from raytrain.config.preference import PairsConfig, PreferenceConfig, PreferenceLoss, RewardConfig
from raytrain.config.task import (
    CausalLmConfig,
    Cut,
    MaskedLmConfig,
    ModelConfig,
    PythonTaskConfig,
    RegressionConfig,
    SequenceClassificationConfig,
    TaskConfig,
    TokenClassificationConfig,
    check_keys,
)
from raytrain.config.training import (
    CommunicationConfig,
    EarlyStoppingConfig,
    Exactness,
    LossScaleConfig,
    OptimizerConfig,
    Packing,
    Precision,
    ScheduleConfig,
    ScheduleKind,
    TrainingConfig,
)

__all__ = [
    "SPLITS",
    "AdapterConfig",
    "Affects",
    "AugmentConfig",
    "BalanceConfig",
    "CausalLmConfig",
    "ChatConfig",
    "CheckpointConfig",
    "CleanConfig",
    "CleanPreset",
    "CommunicationConfig",
    "Cut",
    "DataConfig",
    "DedupConfig",
    "EarlyStoppingConfig",
    "Exactness",
    "Fraction",
    "ImageClassificationConfig",
    "ImageInputConfig",
    "Labels",
    "LeakagePolicy",
    "LossScaleConfig",
    "Mark",
    "MaskedLmConfig",
    "MlflowConfig",
    "ModelConfig",
    "NonNegativeInt",
    "OnError",
    "OptimizerConfig",
    "Packing",
    "PairsConfig",
    "Placeholder",
    "PositiveInt",
    "Precision",
    "PreferenceConfig",
    "PreferenceLoss",
    "PythonTaskConfig",
    "RayConfig",
    "RegressionConfig",
    "RewardConfig",
    "RunConfig",
    "ScheduleConfig",
    "ScheduleKind",
    "Section",
    "SequenceClassificationConfig",
    "SourceConfig",
    "SourceFormat",
    "TaskConfig",
    "TokenClassificationConfig",
    "TrackingConfig",
    "TrainConfig",
    "TrainingConfig",
    "ValidationConfig",
    "WandbConfig",
    "WeightedSource",
    "WorkersConfig",
]

_UNCHANGED_TEXTS = (CausalLmConfig, MaskedLmConfig, ChatConfig, PairsConfig)


class RunConfig(Section):
    """A training run, from data to model."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$"), Affects.NOTHING, Mark.SHARED]
    """Name of the run and of its folder: letters, digits, dots, dashes and underscores."""
    storage_path: Annotated[str, Affects.NOTHING, Mark.SHARED, Mark.PATH] = "runs"
    """Folder of the runs, which all workers can reach: local, shared, or s3://, gs://, abfs://."""
    seed: Annotated[NonNegativeInt, Affects.RESULT] = 0
    """Seed of the sample order, the new weights and dropout."""
    task: TaskConfig
    model: ModelConfig
    data: DataConfig
    training: TrainingConfig = TrainingConfig()
    workers: WorkersConfig = WorkersConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    tracking: TrackingConfig = TrackingConfig()
    ray: RayConfig = RayConfig()

    @model_validator(mode="before")
    @classmethod
    def _with_images(cls, raw: Any) -> Any:
        """A model on images has `model.image`, by which it is told from one on texts wherever only the model is
        known."""
        task, model = (raw.get(name) if isinstance(raw, dict) else None for name in ("task", "model"))
        kind = task.get("kind") if isinstance(task, dict) else getattr(task, "kind", None)
        if kind != "image_classification":
            return raw
        if isinstance(model, ModelConfig) and model.image is None:
            return {**raw, "model": model.model_copy(update={"image": ImageInputConfig()})}
        if isinstance(model, dict) and model.get("image") is None:
            return {**raw, "model": {**model, "image": {}}}
        return raw

    @model_validator(mode="after")
    def _across_sections(self) -> Self:
        if not isinstance(self.task, PythonTaskConfig):
            self.model.check_for_transformers()
        self._check_images()
        self._check_single_labels()
        self._check_training_options()
        self._check_language()
        if self.data.augment is not None and isinstance(self.task, PythonTaskConfig):
            raise ValueError(
                "data.augment is for the tasks on texts that raytrain has, and task.kind is python: leave it out, and "
                "change samples in the task's own collate, with the random numbers of context.generator"
            )
        if self.data.augment is not None and isinstance(self.task, _UNCHANGED_TEXTS):
            raise ValueError(
                f"data.augment would change the tokens that task.kind={self.task.kind} has to predict or to compare: "
                "leave it out"
            )
        if isinstance(self.task, PreferenceConfig) and self.task.loss.has_reference and self.model.path is None:
            raise ValueError(
                f"task.loss={self.task.loss} compares with the pretrained model of model.path, and model.config is a "
                "new model with random weights: give model.path, or train without a reference with task.loss=orpo"
            )
        shards, batch = self.data.canonical_shards, self.training.global_batch_size
        if shards is not None and batch % shards:
            raise ValueError(
                f"data.canonical_shards {shards} does not divide training.global_batch_size {batch}; "
                f"allowed: {', '.join(str(d) for d in range(1, batch + 1) if batch % d == 0)}"
            )
        fields = TrainingConfig.model_fields.items()
        evaluating = [name for name, field in fields if Affects.EVALUATION in field.metadata]
        given = [name for name in evaluating if getattr(self.training, name) is not None]
        if given and self.data.validation is None:
            raise ValueError(
                f"training.{given[0]} needs data.validation: give data.validation.path=FILE or "
                "data.validation.fraction=0.1, or turn off what needs it: "
                f"{' '.join(f'training.{name}=null' for name in given)}"
            )
        most = self.training.num_micro_batches
        if self.workers.max > most:
            raise ValueError(
                f"workers.max {self.workers.max} is more than the {most} micro-batches of a step "
                f"(training.global_batch_size {batch}, training.micro_batch_size "
                f"{self.training.samples_per_micro_batch}): lower workers.max to at most {most}, or begin a new run "
                f"with a {self.training.batches_for(self.workers.max)}, since that changes the result"
            )
        return self

    def _check_training_options(self) -> None:
        """Raises ValueError for options of `training` and `model` that the task does not have, or that exclude each
        other."""
        task = self.task
        if self.training.label_smoothing:
            is_multi = bool(getattr(task, "multi_label", False))
            if isinstance(task, RegressionConfig | PairsConfig | PythonTaskConfig) or is_multi:
                what = "task.multi_label=true" if is_multi else f"task.kind={task.kind}"
                raise ValueError(
                    f"training.label_smoothing is for a cross-entropy over labels or tokens, and {what} has another "
                    "loss: leave it out"
                )
            if getattr(task, "loss", None) is not None:
                raise ValueError("training.label_smoothing has no effect on task.loss: leave one of them out")
        if self.model.add_tokens and isinstance(task, PythonTaskConfig | ImageClassificationConfig):
            raise ValueError(f"model.add_tokens is for tasks on texts, and task.kind is {task.kind}: leave it out")
        if self.training.neftune_alpha and isinstance(task, ImageClassificationConfig):
            raise ValueError(
                "training.neftune_alpha adds noise to the embeddings of tokens, and task.kind is image_classification: "
                "leave it out"
            )
        if self.training.neftune_alpha and isinstance(task, PythonTaskConfig):
            raise ValueError(
                "training.neftune_alpha is for the tasks that raytrain has, and task.kind is python: leave it out, and "
                "add the noise in the model's own forward"
            )
        if self.model.attention == "flash_attention_2" and (
            self.training.precision is Precision.FP32 or self.workers.gpu is False
        ):
            raise ValueError(
                "model.attention=flash_attention_2 computes on GPUs in 16 bits alone: set training.precision=bf16 "
                "and give the workers GPUs, or set model.attention=sdpa"
            )

    def _check_images(self) -> None:
        """Raises ValueError for options on texts in a run on images, and the other way round."""
        if not isinstance(self.task, ImageClassificationConfig):
            if self.model.image is not None:
                raise ValueError(
                    f"model.image is for task.kind=image_classification, and not for {self.task.kind}: leave it out"
                )
            return
        if self.model.tokenizer is not None:
            raise ValueError("model.tokenizer: a model on images has no tokenizer; leave it out")
        if self.model.config is not None and (self.model.image is None or self.model.image.size is None):
            raise ValueError(
                "model.config needs model.image.size, the width and height in pixels that images are resized to: a new "
                "model brings no preprocessor_config.json"
            )
        if self.data.dedup.near:
            raise ValueError(
                "data.dedup.near compares texts, and images are duplicates when their files have equal bytes: leave it "
                "out, or set data.dedup.exact=true"
            )
        if self.data.max_length != type(self.data).model_fields["max_length"].default:  # a run's config.yaml has it
            raise ValueError(
                "data.max_length is a number of tokens, which images don't have: leave it out; the size of images is "
                "model.image.size"
            )
        for option, value in (("data.augment", self.data.augment), ("data.clean", self.data.clean)):
            if value is not None:
                instead = "; task.random_flip and task.random_crop change images" if option == "data.augment" else ""
                raise ValueError(
                    f"{option} changes texts, and task.kind is image_classification: leave it out{instead}"
                )

    def _check_language(self) -> None:
        """Raises ValueError for options that only some language models have."""
        task = self.task
        packs = isinstance(task, CausalLmConfig | ChatConfig)
        if self.training.packing is Packing.ON and not packs:
            raise ValueError(
                f"training.packing=on is for task.kind=causal_lm and chat, and task.kind is {task.kind}: leave it out"
            )
        if self.data.balance is not None and isinstance(task, CausalLmConfig) and task.cut is Cut.STREAM:
            raise ValueError(
                "data.balance goes by the rows that samples are made of, and with task.cut=stream a sample holds parts "
                "of several: leave one of them out"
            )

    def _check_single_labels(self) -> None:
        """Raises ValueError when samples have no single label to balance or to weigh, or the keys of counts or
        weights are not the labels."""
        task, weights = self.task, self.training.class_weights
        validation = self.data.validation
        stratify = True if validation is not None and validation.stratify else None
        given = {
            "data.balance": self._balances_labels or None,
            "training.class_weights": weights,
            "data.validation.stratify": stratify,
        }
        options = [name for name, value in given.items() if value is not None]
        if not options:
            return
        if not isinstance(task, SequenceClassificationConfig | ImageClassificationConfig) or task.multi_label:
            has_labels = isinstance(task, SequenceClassificationConfig | ImageClassificationConfig)
            kind = "task.multi_label=true" if has_labels else task.kind
            raise ValueError(
                f"{options[0]} needs one label per sample, which task.kind=sequence_classification and "
                f"image_classification have and {kind} does not: leave it out"
            )
        if task.labels is not None and isinstance(weights, dict):
            check_keys("training.class_weights", "weight", weights, task.labels)
        if task.labels is not None and self.data.balance is not None and self._balances_labels:
            self.data.balance.check_labels(task.labels)

    @property
    def _balances_labels(self) -> bool:
        return self.data.balance is not None and self.data.balance.column is None

    @property
    def canonical_shards(self) -> int:
        """Number of canonical shards: data.canonical_shards, or its default for this global batch."""
        if self.data.canonical_shards is not None:
            return self.data.canonical_shards
        batch = self.training.global_batch_size
        return next(d for d in range(min(batch, 256), batch + 1) if batch % d == 0)
