"""TensorBoard's HParams tab of a folder: what its server tells the browser."""

import json
from pathlib import Path
from typing import Any

from tensorboard import default
from tensorboard.backend.application import TensorBoardWSGIApp
from tensorboard.backend.event_processing.data_ingester import LocalDataIngester
from tensorboard.program import TensorBoard
from werkzeug.test import Client


def hparams_tab(logdir: Path) -> dict[str, dict[str, Any]]:
    """Row of the tab -> its values, metrics by tag, and status: what the browser is given by TensorBoard's server."""
    server = TensorBoard(plugins=default.get_plugins())
    server.configure(logdir=str(logdir), load_fast="false", reload_interval=0, reload_task="blocking")
    ingester = LocalDataIngester(server.flags)
    ingester.start()
    client = Client(TensorBoardWSGIApp(server.flags, server.plugin_loaders, ingester.data_provider))
    experiment = json.loads(client.post("/data/plugin/hparams/experiment", json={}).data)
    names = [info["name"] for info in experiment["metricInfos"]]
    asked = {
        "allowedStatuses": ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"],
        "colParams": [{"metric": name} for name in names],
        "startIndex": 0,
        "sliceSize": 100,
    }
    groups = json.loads(client.post("/data/plugin/hparams/session_groups", json=asked).data)["sessionGroups"]
    return {
        group["name"]: {
            "values": group["hparams"],
            "metrics": {value["name"]["tag"]: value["value"] for value in group.get("metricValues", [])},
            "status": group["sessions"][0]["status"],
        }
        for group in groups
    }
