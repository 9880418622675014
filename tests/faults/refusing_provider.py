"""Ray's fake provider, out of spot: the head's autoscaler loads it by name."""

from typing import Any

from ray.autoscaler._private.fake_multi_node.node_provider import FakeMultiNodeProvider
from ray.autoscaler.node_launch_exception import NodeLaunchException
from ray.autoscaler.tags import TAG_RAY_USER_NODE_TYPE


class RefusingProvider(FakeMultiNodeProvider):
    def create_node_with_resources_and_labels(
        self, node_config: Any, tags: dict[str, str], count: int, resources: Any, labels: Any
    ) -> Any:
        if tags[TAG_RAY_USER_NODE_TYPE] == "gpu_spot":
            raise NodeLaunchException("InsufficientInstanceCapacity", "no spot", None)
        return super().create_node_with_resources_and_labels(node_config, tags, count, resources, labels)
