"""Retries after a failure of storage, which is rarely final."""

import errno
import logging
import threading
from collections.abc import Callable
from typing import TypeVar

# Delays before each retry: a failure of two minutes costs nothing but the wait.
RETRY_DELAYS_S = (1.0, 5.0, 15.0, 30.0, 60.0)
# Errors that rarely go away by themselves are retried this often.
LASTING = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EACCES, errno.EPERM, errno.EROFS}
LASTING_RETRIES = 2

T = TypeVar("T")

logger = logging.getLogger(__name__)


def advice_for(error: OSError) -> str:
    """What to do about a failure of storage, as the beginning of a sentence."""
    match error.errno:
        case errno.ENOSPC | errno.EDQUOT | errno.EFBIG:
            return "Free space there, or lower checkpoint.keep_last"
        case errno.EACCES | errno.EPERM | errno.EROFS:
            return "Give this user permission to write there, or choose another storage_path"
        case _:
            return "Check that every worker reaches the storage"


def retrying(work: Callable[[], T], what: str, is_over: threading.Event | None = None) -> T:
    """Run `work`, retrying after storage errors until `is_over`. Raises the last OSError."""
    is_over = is_over or threading.Event()
    for number, delay_s in enumerate((*RETRY_DELAYS_S, None), start=1):
        try:
            return work()
        except OSError as error:
            is_lasting = error.errno in LASTING and number > LASTING_RETRIES
            if delay_s is None or is_lasting or is_over.is_set():
                raise
            logger.warning("%s failed (%s); retrying in %g s", what, error, delay_s)
        _pause(is_over, delay_s)
    raise AssertionError("the last attempt returns or raises")


def _pause(is_over: threading.Event, seconds: float) -> None:
    is_over.wait(seconds)
