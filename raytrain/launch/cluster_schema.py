"""Validates cluster files by schema: Ray's for `ray up`, our own for the KubeRay fields that we use."""

from collections.abc import Callable
from importlib import resources
from typing import Any

import yaml

from raytrain.launch.cluster_rules import Problem


def ray_schema_problem(read: Callable[[], dict[str, Any]]) -> tuple[dict[str, Any], Problem | None]:
    """The config that Ray reads from a file, or Ray's complaint about it.

    Args:
        read: Function that makes Ray read it.
    """
    from click import ClickException
    from jsonschema import ValidationError

    try:
        return read(), None
    except ValidationError as error:
        return {}, Problem(_place(error), f"Ray refuses it: {error.message}")
    except KeyError as error:
        return {}, Problem(str(error.args[0]), "missing, and required by Ray")
    except (ValueError, AssertionError, TypeError, AttributeError, RuntimeError, ImportError, ClickException) as error:
        return {}, Problem("", f"Ray can't read this file: {str(error) or type(error).__name__}")


def kuberay_schema_problems(document: dict[str, Any]) -> list[Problem]:
    """Mistakes in the fields of a RayCluster or RayJob, with their places."""
    from jsonschema import Draft7Validator

    schema = yaml.safe_load((resources.files("raytrain.launch") / "kuberay_schema.yaml").read_text(encoding="utf-8"))
    errors = sorted(
        Draft7Validator(schema).iter_errors(document), key=lambda error: list(map(str, error.absolute_path))
    )
    return [Problem(_place(error), error.message) for error in errors]


def _place(error: Any) -> str:
    return ".".join(str(part) for part in error.absolute_path)
