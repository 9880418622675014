"""Starts Ray actors. Each of ours is pinned to one node, because its task concerns that node."""

from typing import Any


def start_actor(actor_class: type, *args: Any, node_id: str | None = None, **options: Any) -> Any:
    """Start an actor and return its handle, without waiting for it.

    Args:
        args: Arguments of its constructor.
        node_id: Hex id of its node. If that node is gone, the actor is dead. None: this process's node.
        options: Options of `ray.remote`. By default the actor holds no CPU.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node_id or ray.get_runtime_context().get_node_id(), soft=False)
    held: dict[str, Any] = {"num_cpus": 0, **options, "scheduling_strategy": place}
    actor: Any = ray.remote(**held)(actor_class)
    return actor.remote(*args)
