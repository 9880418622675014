"""Sections on the workers, checkpoints, trackers and Ray."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raytrain.config.base import Affects, Mark, NonNegativeInt, PositiveInt, Section


class WorkersConfig(Section):
    """The number of workers, and the resources of each."""

    min: Annotated[PositiveInt, Affects.NOTHING, Mark.SHARED] = 1
    """Minimum number of workers; if fewer fit, the run waits for nodes."""
    max: Annotated[PositiveInt, Affects.NOTHING, Mark.SHARED] = 1
    """Maximum number of workers. Between min and max the run uses what fits, and resizes as nodes come and go."""
    gpu: Annotated[Literal["auto"] | bool, Affects.NOTHING, Mark.SHARED] = "auto"
    """Whether each worker has a GPU; auto: if the cluster has any."""
    cpus: Annotated[PositiveInt, Affects.SPEED, Mark.SHARED] = 1
    """CPUs per worker. Without a GPU it is also the number of compute threads."""
    data_cpus: Annotated[float, Field(gt=0.0), Affects.SPEED, Mark.SHARED] = 0.5
    """CPUs for the Ray Data pipeline of each worker."""
    max_failures: Annotated[NonNegativeInt, Affects.NOTHING, Mark.SHARED] = 3
    """Number of crashes within an hour, or without a new step in between, that the run recovers from. Nodes that are
    reclaimed or lost do not count."""
    grow_delay_s: Annotated[float, Field(ge=0.0), Affects.NOTHING, Mark.SHARED] = 10.0
    """Seconds for which room for more workers must exist, unchanged, before the run grows, since nodes often join one
    after the other."""
    grow_payback: Annotated[float, Field(ge=0.0), Affects.NOTHING, Mark.SHARED] = 2.0
    """The run grows only if that saves at least this many times the duration of a resize, as measured in this run."""
    reclaim_watch: Annotated[Literal["off", "auto", "aws", "gcp", "azure"], Affects.NOTHING, Mark.SHARED] = "off"
    """Cloud whose reclaim notices the run reads, with an actor on each node; auto: each node detects its cloud; off:
    the cluster runs `raytrain reclaim-watch`, or notices are not read. The actors keep idle nodes from being scaled
    down."""
    stall_timeout_s: Annotated[float | None, Field(gt=0.0), Affects.NOTHING, Mark.SHARED] = 1800.0
    """Seconds without a step, an evaluated batch or a save after which the workers count as hanging. They are killed,
    which counts as a failure, and new ones continue from the newest state. At least half an hour until the state is
    loaded. null: never."""
    wait_timeout_s: Annotated[float | None, Field(gt=0.0), Affects.NOTHING, Mark.SHARED] = 1800.0
    """Seconds to wait for nodes until workers.min fit; null: no limit."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"workers.min {self.min} is more than workers.max {self.max}; lower min or raise max")
        return self


class CheckpointConfig(Section):
    """What is saved and kept. Saving runs in the background of training."""

    save_every_steps: Annotated[PositiveInt, Affects.NOTHING, Mark.SHARED] = 500
    """Steps between checkpoints in storage. After the loss of the driver or of all nodes, at most this many steps are
    redone."""
    snapshot_every_steps: Annotated[PositiveInt | None, Affects.NOTHING, Mark.SHARED] = 20
    """Steps between snapshots, each in the memory of two nodes. After the loss of a worker or a node, at most this many
    steps are redone, plus those done while the newest snapshot was being copied; storage is not read. null: no
    snapshots, and a crash resumes from the last checkpoint."""
    keep_last: Annotated[PositiveInt, Affects.NOTHING, Mark.SHARED] = 2
    """Number of checkpoints that are kept, the newest ones."""
    keep_best: Annotated[bool, Affects.NOTHING, Mark.SHARED] = True
    """True: `best/` has the best model on the validation split; false: the last model. `from_pretrained` loads it."""


class WandbConfig(Section):
    """Weights & Biases. Its key is read from WANDB_API_KEY or ~/.netrc of the nodes, never from here."""

    project: Annotated[str, Affects.NOTHING, Mark.SHARED] = "raytrain"
    """Project in W&B."""
    entity: Annotated[str | None, Affects.NOTHING, Mark.SHARED] = None
    """User or team that owns the project; null: the owner of the key."""
    mode: Annotated[Literal["online", "offline"], Affects.NOTHING, Mark.SHARED] = "online"
    """offline: write to `wandb/` in the run's folder, for `wandb sync`."""
    group: Annotated[str | None, Affects.NOTHING, Mark.SHARED] = None
    """Group of runs that W&B shows together; null: none, or in a sweep the sweep's name."""
    tags: Annotated[list[str], Affects.NOTHING, Mark.SHARED] = []
    """Tags of the run."""


class MlflowConfig(Section):
    """MLflow. A password is read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the nodes."""

    tracking_uri: Annotated[str, Affects.NOTHING, Mark.SHARED, Mark.DATABASE]
    """Server or database that every node reaches, such as http://host:5000 or sqlite:///mlflow.db."""
    experiment: Annotated[str, Affects.NOTHING, Mark.SHARED] = "raytrain"
    """Name of the experiment, which is created if it does not exist."""
    group: Annotated[str | None, Affects.NOTHING, Mark.SHARED] = None
    """The run's tag `raytrain.group`; null: none, or in a sweep the sweep's name."""


class TrackingConfig(Section):
    """Where the metrics are sent. If a tracker fails, it is reported once and training continues."""

    tensorboard: Annotated[bool, Affects.NOTHING, Mark.SHARED] = True
    """True: write TensorBoard events to `tensorboard/`."""
    wandb: Annotated[WandbConfig | None, Affects.NOTHING, Mark.SHARED] = None
    """Weights & Biases, `pip install 'raytrain[wandb]'`; null: off, `{}`: on."""
    mlflow: Annotated[MlflowConfig | None, Affects.NOTHING, Mark.SHARED] = None
    """MLflow, `pip install 'raytrain[mlflow]'`; null: off."""
    prometheus: Annotated[bool, Affects.NOTHING, Mark.SHARED] = True
    """True: export metrics through Ray, beside its own; see `cluster/grafana/`."""


class RayConfig(Section):
    """The Ray cluster that is used."""

    address: Annotated[str | None, Affects.NOTHING, Mark.SHARED] = None
    """Cluster to join; null: RAY_ADDRESS, else a private Ray on this machine."""
    num_cpus: Annotated[PositiveInt | None, Affects.NOTHING, Mark.SHARED] = None
    """Logical CPUs of the private Ray; null: the cores of this machine plus what Ray Data needs."""
