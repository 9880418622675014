"""MLflow."""

import json
import os
from collections.abc import Iterator
from itertools import islice
from typing import Any

from raytrain.config import MlflowConfig
from raytrain.tracking.base import RefusedError, Row, TrackedRun, first_tellings

ID, GROUP = "raytrain.id", "raytrain.group"
STATUS = {"finished": "FINISHED", "stopped_early": "FINISHED", "failed": "FAILED", "killed": "KILLED"}
# Limits of one request, set by MLflow.
MOST_METRICS, MOST_PARAMS, MOST_CHARACTERS = 1000, 100, 6000
# MLflow's defaults are two minutes and seven retries, which would apply to each step while the server is down.
REQUESTS = {"MLFLOW_HTTP_REQUEST_TIMEOUT": "30", "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "2"}
WHERE = (
    "MLflow reads MLFLOW_TRACKING_TOKEN, or MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, of the node: set "
    "them on every node before Ray is started there, or without a cluster for the command"
)
UNAUTHORIZED, FORBIDDEN = 401, 403


class Mlflow:
    """One MLflow run across all worker groups. It is found again by the run's id."""

    def __init__(self, run: TrackedRun, section: MlflowConfig, first: Row):
        for name, value in REQUESTS.items():
            os.environ.setdefault(name, value)
        from mlflow.exceptions import MlflowException

        try:
            self._start(run, section)
        except MlflowException as error:
            if error.get_http_status_code() not in (UNAUTHORIZED, FORBIDDEN):
                raise
            raise RefusedError(error, WHERE) from error

    def _start(self, run: TrackedRun, section: MlflowConfig) -> None:
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=section.tracking_uri)
        experiment = self._client.get_experiment_by_name(section.experiment)
        place = experiment.experiment_id if experiment else self._client.create_experiment(section.experiment)
        known = self._client.search_runs([place], filter_string=f"tags.`{ID}` = '{run.read_id()}'", max_results=1)
        if known:
            self._run_id = known[0].info.run_id
            self._client.update_run(self._run_id, status="RUNNING")
            return
        tags = {ID: run.read_id(), **({GROUP: section.group} if section.group else {})}
        self._run_id = self._client.create_run(place, tags=tags, run_name=run.config.name).info.run_id
        self._log_params(run.settings())  # once: MLflow refuses changed values, and a run may be resumed with some

    def _log_params(self, settings: dict[str, Any]) -> None:
        from mlflow.entities import Param

        params = (Param(key, _text(value)[:MOST_CHARACTERS]) for key, value in settings.items())
        for some in _chunks(params, MOST_PARAMS):
            self._client.log_batch(self._run_id, params=some)

    def log(self, rows: list[Row]) -> None:
        """Log rows."""
        from mlflow.entities import Metric

        metrics = (
            Metric(name, value, round(row.time_s * 1000), row.step)
            for row in first_tellings(rows)
            for name, value in row.values.items()
        )
        for some in _chunks(metrics, MOST_METRICS):
            self._client.log_batch(self._run_id, metrics=some)

    def close(self, status: str) -> None:
        """Set the final status."""
        if status in STATUS:
            self._client.set_terminated(self._run_id, STATUS[status])


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _chunks(items: Iterator[Any], size: int) -> Iterator[list[Any]]:
    while some := list(islice(items, size)):
        yield some
