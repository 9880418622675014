"""Rules for Kubernetes manifests that no schema checks: network access, Ray's version, and time to save before an end.

Pure: no Ray. Each rule yields problems with their place in the file and what to do.
"""

from collections.abc import Iterator
from importlib.metadata import version
from typing import Any

from raytrain.launch.cluster_rules import Problem, Raw, image_problems, is_world, name_problem

SAVE_S = 60  # minimum grace period of a pod: our saves take seconds, those of large models a minute
KUBE_GRACE_S = 30  # Kubernetes' default
RAY_DRAIN_S = 30  # default of Ray's RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S
QUEUE = "kueue.x-k8s.io/queue-name"
ELASTIC = "kueue.x-k8s.io/elastic-job"


def kubernetes_problems(documents: list[dict[str, Any]]) -> Iterator[Problem]:
    """Problems in Kubernetes manifests that are valid according to their schemas."""
    for document in documents:
        kind, spec = document["kind"], document.get("spec") or {}
        metadata = document.get("metadata")
        name = metadata.get("name") if isinstance(metadata, dict) else None
        if kind in ("RayCluster", "RayJob") and name and (wrong := name_problem(kind, str(name))):
            yield Problem("metadata.name", wrong)
        if kind == "RayCluster":
            yield from _ray_cluster(spec, "spec")
        elif kind == "RayJob":
            yield from _ray_job(document, spec)
            yield from _ray_cluster(spec.get("rayClusterSpec") or {}, "spec.rayClusterSpec")
        elif kind == "Service":
            yield from _service_type(spec.get("type"), "spec.type")
        elif kind == "Ingress":
            yield Problem("kind", "an Ingress brings traffic from outside to the cluster; use `kubectl port-forward`")
        elif kind == "NetworkPolicy":
            yield from _network_policy(spec)
        elif kind == "Secret" and (document.get("stringData") or document.get("data")):
            yield Problem("stringData", "a secret in a file: make it with `kubectl create secret`")


def _service_type(service: Any, place: str) -> Iterator[Problem]:
    if service in ("LoadBalancer", "NodePort"):
        yield Problem(place, f"{service} opens Ray's ports to outside; use ClusterIP, and `kubectl port-forward`")


def _network_policy(spec: Raw) -> Iterator[Problem]:
    for i, rule in enumerate(spec.get("ingress") or []):
        sources = (rule or {}).get("from")
        if not sources:
            yield Problem(f"spec.ingress.{i}.from", "missing: lets everybody in")
        for j, source in enumerate(sources or []):
            if is_world(str((source.get("ipBlock") or {}).get("cidr", ""))):
                yield Problem(f"spec.ingress.{i}.from.{j}.ipBlock", "lets the world in")
    if "Ingress" not in (spec.get("policyTypes") or ["Ingress"]):
        yield Problem("spec.policyTypes", "without Ingress: everybody is let in")


def _ray_job(document: Raw, spec: Raw) -> Iterator[Problem]:
    metadata = document.get("metadata") or {}
    if not spec.get("backoffLimit"):
        yield Problem("spec.backoffLimit", "0: a lost head or driver would end the run; with 1 or more it resumes")
    if QUEUE in (metadata.get("labels") or {}):
        if not spec.get("shutdownAfterJobFinishes"):
            yield Problem("spec.shutdownAfterJobFinishes", f"must be true for a job with the label {QUEUE} (Kueue)")
        is_autoscaled = (spec.get("rayClusterSpec") or {}).get("enableInTreeAutoscaling")
        if is_autoscaled and (metadata.get("annotations") or {}).get(ELASTIC) != "true":
            yield Problem(f"metadata.annotations.{ELASTIC}", 'must be "true", or Kueue refuses an autoscaled job')


def _ray_cluster(spec: Raw, above: str) -> Iterator[Problem]:
    if (spec.get("authOptions") or {}).get("mode") != "token":
        yield Problem(f"{above}.authOptions.mode", "must be token: else whoever reaches a pod could run code on it")
    if str(spec.get("rayVersion")) != version("ray"):
        yield Problem(
            f"{above}.rayVersion", f"{spec.get('rayVersion')}, and raytrain runs with Ray {version('ray')} here"
        )
    if not spec.get("enableInTreeAutoscaling"):
        yield Problem(f"{above}.enableInTreeAutoscaling", "must be true, or no GPU pod is ever started")
    head = spec.get("headGroupSpec") or {}
    yield from _service_type(head.get("serviceType"), f"{above}.headGroupSpec.serviceType")
    if head.get("enableIngress"):
        yield Problem(f"{above}.headGroupSpec.enableIngress", "opens the dashboard to outside; `kubectl port-forward`")
    workers = spec.get("workerGroupSpecs") or []
    yield from _pods(head, f"{above}.headGroupSpec")
    for i, group in enumerate(workers):
        yield from _pods(group, f"{above}.workerGroupSpecs.{i}")
        yield from _leaving(group, f"{above}.workerGroupSpecs.{i}")
        yield from _holds(group, f"{above}.workerGroupSpecs.{i}")
    has_priority = any(group.get("priority") for group in workers)
    if has_priority and (spec.get("autoscalerOptions") or {}).get("version") == "v1":
        yield Problem(f"{above}.autoscalerOptions.version", "v1 does not know the groups' priority; use v2")


def _pods(group: Raw, above: str) -> Iterator[Problem]:
    pod = _pod(group)
    place = f"{above}.template.spec"
    if pod.get("hostNetwork"):
        yield Problem(f"{place}.hostNetwork", "puts Ray's ports on the machine's own addresses, past network policies")
    for key in ("initContainers", "containers"):
        for i, container in enumerate(pod.get(key) or []):
            here = f"{place}.{key}.{i}"
            yield from image_problems(f"{here}.image", str(container.get("image", "")))
            if any("hostPort" in port for port in container.get("ports") or []):
                yield Problem(f"{here}.ports", "a hostPort opens this port on the machine")
            values = {variable.get("name"): variable.get("value") for variable in container.get("env") or []}
            if values.get("RAY_AUTH_MODE", "token") != "token":
                yield Problem(f"{here}.env", f"RAY_AUTH_MODE={values['RAY_AUTH_MODE']}: must be token")
            if values.get("RAY_AUTH_TOKEN"):
                yield Problem(f"{here}.env", "RAY_AUTH_TOKEN stands in the file: take it from a Secret (valueFrom)")


def _holds(group: Raw, above: str) -> Iterator[Problem]:
    """Check that a pod has the resources that its Ray node offers. Ray reads the rest from the pod itself."""
    containers = _pod(group).get("containers") or [{}]
    resources = containers[0].get("resources") or {}
    has = {**(resources.get("requests") or {}), **(resources.get("limits") or {})}
    for name, key in (("GPU", "nvidia.com/gpu"), ("CPU", "cpu")):
        offered, there = _amount((group.get("resources") or {}).get(name)), _amount(has.get(key, 0))
        is_short = offered and there is not None and (offered != there if name == "GPU" else offered > there > 0)
        if is_short:
            yield Problem(
                f"{above}.resources.{name}",
                f"{offered:g}, and the pod's {key} is {there:g} (template.spec.containers.0.resources): change one",
            )


def _amount(quantity: Any) -> float | None:
    """A Kubernetes quantity such as 4, "4" or "500m" as a number. None: any other form."""
    text = str(quantity)
    try:
        return float(text[:-1]) / 1000 if text.endswith("m") else float(text)
    except ValueError:
        return None


def _leaving(group: Raw, above: str) -> Iterator[Problem]:
    """Check that a pod that is asked to stop has time to save."""
    pod = _pod(group)
    grace_s = pod.get("terminationGracePeriodSeconds", KUBE_GRACE_S)
    variables = [variable for container in pod.get("containers") or [] for variable in container.get("env") or []]
    drain = [v.get("value") for v in variables if v.get("name") == "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]
    drain_s = float(drain[0]) if drain else RAY_DRAIN_S
    if grace_s < SAVE_S:
        yield Problem(
            f"{above}.template.spec.terminationGracePeriodSeconds",
            f"{grace_s} s may be less than a save takes; give it {SAVE_S} or more",
        )
    if drain_s >= grace_s:
        yield Problem(
            f"{above}.template.spec.containers.0.env",
            f"RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S {drain_s:g} s is not less than the pod's grace of {grace_s} s",
        )
    if (group.get("labels") or {}).get("ray.io/market-type") == "spot":
        beside = [*(pod.get("initContainers") or []), *(pod.get("containers") or [])]
        if not any("reclaim-watch" in f"{one.get('command')} {one.get('args')}" for one in beside):
            yield Problem(f"{above}.template.spec.initContainers", "no `raytrain reclaim-watch` on these spot nodes")
        if not pod.get("tolerations"):
            yield Problem(f"{above}.template.spec.tolerations", "missing: clouds keep pods off spot nodes by a taint")


def _pod(group: Raw) -> Raw:
    return (group.get("template") or {}).get("spec") or {}
