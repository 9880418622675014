"""Where a run trains, what it keeps, and who is told of it."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raytrain.config.base import Affects, Mark, NonNegativeInt, PositiveInt, Section


class WorkersConfig(Section):
    """How many workers, and what each one gets."""

    min: Annotated[PositiveInt, Affects.NOTHING, Mark.SHARED] = 1
    """Fewest workers that the run trains with; with fewer it waits for nodes."""
    max: Annotated[PositiveInt, Affects.NOTHING, Mark.SHARED] = 1
    """Most workers that the run uses. Between min and max it takes what there is, and follows as nodes come and go."""
    gpu: Annotated[Literal["auto"] | bool, Affects.NOTHING, Mark.SHARED] = "auto"
    """Whether each worker holds a GPU; auto: when the cluster has any."""
    cpus: Annotated[PositiveInt, Affects.SPEED, Mark.SHARED] = 1
    """CPUs of each worker; on a CPU worker also its compute threads."""
    data_cpus: Annotated[float, Field(gt=0.0), Affects.SPEED, Mark.SHARED] = 0.5
    """CPUs of each worker's Ray Data pipeline."""
    max_failures: Annotated[NonNegativeInt, Affects.NOTHING, Mark.SHARED] = 3
    """Crashes within an hour that the run recovers from before it gives up. Nodes that are reclaimed or lost do not
    count."""
    grow_delay_s: Annotated[float, Field(ge=0.0), Affects.NOTHING, Mark.SHARED] = 10.0
    """Seconds that room for more workers must be there, unchanged, before the run grows: nodes come one by one."""
    grow_payback: Annotated[float, Field(ge=0.0), Affects.NOTHING, Mark.SHARED] = 2.0
    """The run grows only when that saves at least this many times the seconds that a resize costs, which the run
    measures on itself."""
    reclaim_watch: Annotated[Literal["off", "auto", "aws", "gcp", "azure"], Affects.NOTHING, Mark.SHARED] = "off"
    """Cloud whose reclaim notices the run itself reads, by an actor on each node; auto: found out on each node. off:
    the cluster's `raytrain reclaim-watch` does it, or nobody. An actor keeps an idle node from being scaled down."""
    stall_timeout_s: Annotated[float | None, Field(gt=0.0), Affects.NOTHING, Mark.SHARED] = 1800.0
    """Seconds without a step, a batch of an evaluation, or a save, after which the workers are taken to hang: they are
    ended, which counts as a failure, and others continue from the newest state. Half an hour at least until their state
    is loaded. null: never."""
    wait_timeout_s: Annotated[float | None, Field(gt=0.0), Affects.NOTHING, Mark.SHARED] = 1800.0
    """Seconds to wait for nodes until workers.min fit; null: without a limit."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.min > self.max:
            raise ValueError(f"workers.min {self.min} is more than workers.max {self.max}; lower min or raise max")
        return self


class CheckpointConfig(Section):
    """What is saved and what is kept. A save runs in the background of training."""

    save_every_steps: Annotated[PositiveInt, Affects.NOTHING, Mark.SHARED] = 500
    """Steps between checkpoints in storage; the loss of the driver or of all nodes costs at most this many steps."""
    snapshot_every_steps: Annotated[PositiveInt | None, Affects.NOTHING, Mark.SHARED] = 20
    """Steps between snapshots in the memory of two nodes each; the loss of a worker or a node costs at most this many
    steps, and those that were done while the newest snapshot was on its way; storage is not read. null: none, and a
    crash goes back to the last checkpoint."""
    keep_last: Annotated[PositiveInt, Affects.NOTHING, Mark.SHARED] = 2
    """Newest checkpoints that are kept."""
    keep_best: Annotated[bool, Affects.NOTHING, Mark.SHARED] = True
    """True: `best/` keeps the best model on the validation split; false: the last one. Ready for `from_pretrained`."""


class WandbConfig(Section):
    """Weights & Biases. Its key is read from WANDB_API_KEY or ~/.netrc of the nodes, never from here."""

    project: Annotated[str, Affects.NOTHING, Mark.SHARED] = "raytrain"
    """W&B project."""
    entity: Annotated[str | None, Affects.NOTHING, Mark.SHARED] = None
    """User or team that the project belongs to; null: the key's own."""
    mode: Annotated[Literal["online", "offline"], Affects.NOTHING, Mark.SHARED] = "online"
    """offline: write to `wandb/` in the run's folder, for `wandb sync`."""
    group: Annotated[str | None, Affects.NOTHING, Mark.SHARED] = None
    """Runs that W&B shows together; null: none, and in a sweep the sweep's name."""
    tags: Annotated[list[str], Affects.NOTHING, Mark.SHARED] = []
    """Tags of the run."""


class MlflowConfig(Section):
    """MLflow. A password is read from MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD of the nodes."""

    tracking_uri: Annotated[str, Affects.NOTHING, Mark.SHARED, Mark.DATABASE]
    """Server or database that every node reaches, such as http://host:5000 or sqlite:///mlflow.db."""
    experiment: Annotated[str, Affects.NOTHING, Mark.SHARED] = "raytrain"
    """Name of the experiment; it is made when it is not there."""
    group: Annotated[str | None, Affects.NOTHING, Mark.SHARED] = None
    """The run's tag `raytrain.group`; null: none, and in a sweep the sweep's name."""


class TrackingConfig(Section):
    """Where else the metrics go. A tracker that fails is said once, and the training goes on."""

    tensorboard: Annotated[bool, Affects.NOTHING, Mark.SHARED] = True
    """True: write TensorBoard events to `tensorboard/`."""
    wandb: Annotated[WandbConfig | None, Affects.NOTHING, Mark.SHARED] = None
    """Weights & Biases, `pip install 'raytrain[wandb]'`; null: off, `{}`: on."""
    mlflow: Annotated[MlflowConfig | None, Affects.NOTHING, Mark.SHARED] = None
    """MLflow, `pip install 'raytrain[mlflow]'`; null: off."""
    prometheus: Annotated[bool, Affects.NOTHING, Mark.SHARED] = True
    """True: export metrics through Ray, beside its own; see `cluster/grafana/`."""


class RayConfig(Section):
    """Which Ray to use."""

    address: Annotated[str | None, Affects.NOTHING, Mark.SHARED] = None
    """Cluster to join; null: RAY_ADDRESS, else a private Ray on this machine."""
    num_cpus: Annotated[PositiveInt | None, Affects.NOTHING, Mark.SHARED] = None
    """Logical CPUs of the private Ray; null: this machine's cores plus what Ray Data needs."""
