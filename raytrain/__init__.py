"""raytrain: an elastic cluster trainer on Ray. The size of the cluster is not part of the experiment."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from raytrain.api import plan, ray_train_loop, report, resume, train, tune, verify
from raytrain.errors import CheckpointError, ConfigError, DataError, RaytrainError, TrainingError
from raytrain.evaluating import evaluate, tune_threshold
from raytrain.inference.loaded import load
from raytrain.prediction import export, predict, predict_files, watch

if TYPE_CHECKING:
    from raytrain.config import RunConfig
    from raytrain.inference.batch import Predictions
    from raytrain.inference.evaluation import DataEvaluation
    from raytrain.inference.export import Exported
    from raytrain.inference.loaded import LoadedModel
    from raytrain.planning.forecast import Forecast
    from raytrain.runs.callbacks import (
        Callback,
        CheckpointInfo,
        EvaluationInfo,
        ResizeInfo,
        StartInfo,
        StepInfo,
        StopTraining,
    )
    from raytrain.runs.evaluation import Evaluation
    from raytrain.runs.ray_train_resize import GracefulResize
    from raytrain.runs.result import RunResult
    from raytrain.runs.verification import Verification
    from raytrain.tuning.space.space import Space
    from raytrain.tuning.state import SweepResult
    from raytrain.watching.status import Watched

__version__ = "0.1.0"
__all__ = [
    "Callback",
    "CheckpointError",
    "CheckpointInfo",
    "ConfigError",
    "DataError",
    "DataEvaluation",
    "Evaluation",
    "EvaluationInfo",
    "Exported",
    "Forecast",
    "GracefulResize",
    "LoadedModel",
    "Predictions",
    "RaytrainError",
    "ResizeInfo",
    "RunConfig",
    "RunResult",
    "Space",
    "StartInfo",
    "StepInfo",
    "StopTraining",
    "SweepResult",
    "TrainingError",
    "Verification",
    "Watched",
    "evaluate",
    "export",
    "load",
    "plan",
    "predict",
    "predict_files",
    "ray_train_loop",
    "report",
    "resume",
    "train",
    "tune",
    "tune_threshold",
    "verify",
    "watch",
]
# Their modules take up to seconds to import, so they are imported when someone asks for the name.
LATE = {
    "Callback": "raytrain.runs.callbacks",
    "CheckpointInfo": "raytrain.runs.callbacks",
    "EvaluationInfo": "raytrain.runs.callbacks",
    "ResizeInfo": "raytrain.runs.callbacks",
    "StartInfo": "raytrain.runs.callbacks",
    "StepInfo": "raytrain.runs.callbacks",
    "StopTraining": "raytrain.runs.callbacks",
    "DataEvaluation": "raytrain.inference.evaluation",
    "Evaluation": "raytrain.runs.evaluation",
    "Exported": "raytrain.inference.export",
    "Forecast": "raytrain.planning.forecast",
    "GracefulResize": "raytrain.runs.ray_train_resize",
    "LoadedModel": "raytrain.inference.loaded",
    "Predictions": "raytrain.inference.batch",
    "RunConfig": "raytrain.config",
    "RunResult": "raytrain.runs.result",
    "Space": "raytrain.tuning.space.space",
    "SweepResult": "raytrain.tuning.state",
    "Verification": "raytrain.runs.verification",
    "Watched": "raytrain.watching.status",
}


def __getattr__(name: str) -> Any:
    """Import a name of LATE."""
    if name not in LATE:
        raise AttributeError(f"module 'raytrain' has no attribute {name!r}")
    return getattr(import_module(LATE[name]), name)
