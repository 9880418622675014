"""Starting Ray actors where they belong: each of ours is bound to one node, since what it does is about that node."""

from typing import Any


def start_actor(actor_class: type, *args: Any, node_id: str | None = None, **options: Any) -> Any:
    """A handle to a new actor; returns at once.

    Args:
        args: Of its constructor.
        node_id: Hex id of its node. With that node gone it can be placed nowhere, and is dead. None: this process's.
        options: Of `ray.remote`. Without num_cpus it holds none.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    place = NodeAffinitySchedulingStrategy(node_id or ray.get_runtime_context().get_node_id(), soft=False)
    held: dict[str, Any] = {"num_cpus": 0, **options, "scheduling_strategy": place}
    actor: Any = ray.remote(**held)(actor_class)
    return actor.remote(*args)
