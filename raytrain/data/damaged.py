"""The error of a prepared store whose files are not what was written."""

from raytrain.errors import DataError, FailureCode


class DamagedError(DataError):
    """A file of a prepared store is not what was written."""

    code = FailureCode.STORAGE

    def __init__(self, root: str, name: str):
        super().__init__(
            f"the prepared data is damaged: {root}/{name} is not what was written; delete the folder {root}, and it "
            "will be prepared again"
        )
        self.path = f"{root}/{name}"
