"""Storage that fails at one of its operations."""

from pathlib import Path
from typing import Any

from raytrain.storage import Storage

OPERATIONS = (
    "exists",
    "size_bytes",
    "list_names",
    "read_bytes",
    "write_bytes",
    "commit_bytes",
    "open_input",
    "open_output",
    "create",
    "delete",
    "move",
    "copy",
)


class Failing(Storage):
    """Counts the operations on a folder and all below it; the `fails_at`-th raises an OSError once, before or after
    (`is_done`) it takes effect."""

    def __init__(self, root: str, count: dict[str, int] | None = None):
        super().__init__(root)
        self.count = count if count is not None else {"done": 0, "fails_at": 0, "is_done": 0}

    def at(self, *parts: str) -> "Failing":
        folder = type(self)("/".join([self.root, *parts]), self.count)
        folder.check = self.check
        return folder

    def guarded(self, check: Any) -> "Failing":
        guarded = type(self)(self.root, self.count)
        guarded.check = check
        return guarded


class FailingObjectStore(Failing):
    """The same, as an object store behaves: no local paths, no rename, no exclusive creation."""

    def __init__(self, root: str, count: dict[str, int] | None = None):
        super().__init__(root, count)
        self._is_local = False
        Path(self._base).mkdir(parents=True, exist_ok=True)

    def local_path(self, name: str = "") -> None:
        return None

    def move(self, source: str, target: str) -> None:
        raise AssertionError("an object store has no rename")

    def open_output(self, name: str) -> Any:
        Path(self._base, name).parent.mkdir(parents=True, exist_ok=True)
        return super().open_output(name)


def _counted(name: str) -> Any:
    operation = getattr(Storage, name)

    def counted(self: Failing, *args: Any, **kwargs: Any) -> Any:
        self.count["done"] += 1
        is_failing = self.count["done"] == self.count["fails_at"]
        # An exclusive creation that fails undoes itself; the operations that it consists of are counted too.
        if is_failing and (not self.count["is_done"] or name == "create"):
            raise OSError(5, "503 Slow Down")
        result = operation(self, *args, **kwargs)
        if is_failing:
            raise OSError(5, "503 after all")
        return result

    return counted


for _name in OPERATIONS:
    setattr(Failing, _name, _counted(_name))
