"""Data tasks keep away from nodes with GPUs as long as there are others, and use them where there are none."""

import time
from typing import Any

import pytest
import ray
import ray.data
from cluster import node_pool

from raytrain.data.quiet import AWAY_FROM_GPUS, quiet_ray_data


def roles(**compute: Any) -> set[str | None]:
    """The roles of the nodes on which an operator runs."""

    class WhereAmI:
        def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
            return {"node": [ray.get_runtime_context().get_node_id()]}

    items = ray.data.from_items([{"i": i} for i in range(8)], override_num_blocks=8)
    rows = items.map_batches(WhereAmI, batch_size=1, num_cpus=0.5, **compute, **AWAY_FROM_GPUS).take_all()
    labels = {node["NodeID"]: node["Labels"].get("raytrain/role") for node in ray.nodes()}
    return {labels[row["node"]] for row in rows}


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_data_nodes_are_used_while_there_are_any() -> None:
    with node_pool(0, head_cpus=0) as pool:
        pool.add(num_gpus=1, role="gpu")
        ray.init(address=pool.address, log_to_driver=False)
        try:
            quiet_ray_data()
            one_actor = {"compute": ray.data.ActorPoolStrategy(size=1)}
            wait_for_nodes(2)
            assert roles(**one_actor) == {"gpu"}
            data_node = pool.add(role="data")
            wait_for_nodes(3)
            assert roles(**one_actor) == {"data"} == roles()
            pool.kill(data_node)
            wait_for_nodes(2)
            assert roles(**one_actor) == {"gpu"}
        finally:
            ray.shutdown()


def wait_for_nodes(count: int) -> None:
    deadline_s = time.monotonic() + 60
    while sum(node["Alive"] for node in ray.nodes()) != count:
        assert time.monotonic() < deadline_s
        time.sleep(0.5)
