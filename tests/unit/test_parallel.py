"""Requests that are made ahead: in order, few at a time, and with the error of the first that fails."""

import threading
import time

import pytest

from raytrain.data.parallel import ahead


@pytest.mark.parametrize("num_items", [0, 1, 3, 4, 20])
def test_results_come_in_order_and_few_are_held(num_items: int) -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        time.sleep(0.002 * (item % 3))
        return item * item

    found = []
    for place, result in enumerate(ahead(work, range(num_items), 4)):
        found.append(result)
        assert len(begun) <= place + 1 + 4
    assert found == [item * item for item in range(num_items)]


def test_the_error_of_the_first_that_fails_is_raised_and_nothing_is_left_running() -> None:
    def work(item: int) -> int:
        if item >= 2:
            raise ValueError(item)
        return item

    results = ahead(work, range(10), 4)
    assert [next(results), next(results)] == [0, 1]
    with pytest.raises(ValueError, match="2"):
        next(results)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("files")]
