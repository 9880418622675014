"""Which samples a step trains on: a pure function of (prepared data, seed, epoch, step). No Ray, no torch.

An epoch is laid out in three moves.

1. The row groups of the prepared store are permuted, which gives a sequence of all samples. Reading stays in whole
   row groups.
2. The sequence is cut into runs of equal length (give or take one sample), and a step takes the same number of samples
   from each. On large data a run is a canonical shard; on small data several canonical shards share a run, or its
   lengths would be too few to line up with those of the others. A resize only changes who serves which shard.
   (MosaicML Streaming's canonical nodes are the source of the idea.)
3. A run is shuffled in windows. Inside a window its samples are sorted by length (with a little noise, so that no two
   epochs are alike) and cut into steps; the steps are then permuted, the same way in every run. So all runs give
   samples of like length to the same step: padding is small and workers finish together.

Everything is found from the index in memory: seeking to any step costs one window.
"""

import functools
from dataclasses import dataclass, field

import numpy as np

# Relative noise on lengths before they are sorted; keeps the padding low and the epochs different.
LENGTH_NOISE = 0.05


@dataclass(frozen=True)
class Order:
    """The sample order of one split."""

    row_group_starts: np.ndarray
    """First sample id of each row group, number of samples last. Shape (num_row_groups + 1,)."""
    lengths: np.ndarray
    """Tokens of each sample. Shape (num_samples,)."""
    seed: int
    global_batch_size: int
    canonical_shards: int
    window_samples: int = 32768
    """Samples shuffled together, over all shards."""
    samples_per_run: int = 1024
    """Least samples of a run. Workers that share one read the same row groups, so on larger data, where that would
    cost something, each shard has a run of its own."""
    group_by_length: bool = True
    drop_last: bool = False
    _layouts: dict[int, "_EpochLayout"] = field(default_factory=dict, repr=False, compare=False)
    _windows: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return int(self.row_group_starts[-1])

    @property
    def full_steps(self) -> int:
        """Steps of an epoch that have a whole global batch."""
        return self.num_samples // self.global_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch, the smaller last one included unless it is dropped."""
        return self.full_steps if self.drop_last else -(-self.num_samples // self.global_batch_size)

    @property
    def steps_per_window(self) -> int:
        """Steps whose samples are shuffled together."""
        return max(1, self.window_samples // self.global_batch_size)

    @functools.cached_property
    def runs(self) -> int:
        """Runs that an epoch's sequence is cut into: a divisor of `canonical_shards`."""
        most = max(1, self.num_samples // self.samples_per_run)
        shards = self.canonical_shards
        return max(divisor for divisor in range(1, min(most, shards) + 1) if shards % divisor == 0)

    def step_samples(self, epoch: int, step_in_epoch: int, shards: range | None = None) -> np.ndarray:
        """Sample ids of one step that come from the given canonical shards (all of them by default).

        The ids of all shards together are the step's global batch, whatever the shards are divided into.
        Raises IndexError when the step lies outside the epoch.
        """
        if not 0 <= step_in_epoch < self.steps_per_epoch:
            raise IndexError(f"step {step_in_epoch} is outside the epoch's {self.steps_per_epoch} steps")
        shards = range(self.canonical_shards) if shards is None else shards
        # The smaller last step belongs to the window before it, whose samples it is drawn from.
        window = min(step_in_epoch, max(0, self.full_steps - 1)) // self.steps_per_window
        step_of_window = step_in_epoch - window * self.steps_per_window
        return np.concatenate([self._shard_step(epoch, window, step_of_window, shard) for shard in shards])

    def _shard_step(self, epoch: int, window: int, step_of_window: int, shard: int) -> np.ndarray:
        """This shard's samples of a step: its part of row `step_of_window` of its run's window."""
        key = (epoch, window)
        if key not in self._windows:
            self._windows.clear()  # steps are asked for in order: one window is all the memory that is needed
            self._windows[key] = self._layout(epoch).window(window)
        shards_per_run = self.canonical_shards // self.runs
        run, place = divmod(shard, shards_per_run)
        per_step = self.global_batch_size // self.runs
        row = self._windows[key][run][step_of_window * per_step : (step_of_window + 1) * per_step]
        return row[place::shards_per_run]  # sorted by length: dealt in turn, all get short and long ones

    def _layout(self, epoch: int) -> "_EpochLayout":
        if epoch not in self._layouts:
            self._layouts.clear()
            self._layouts[epoch] = _EpochLayout(self, epoch)
        return self._layouts[epoch]


class _EpochLayout:
    """The permuted row groups of one epoch, and the windows cut from them."""

    def __init__(self, order: Order, epoch: int):
        self._order, self._epoch = order, epoch
        starts = order.row_group_starts
        permutation = np.random.default_rng((order.seed, epoch)).permutation(len(starts) - 1)
        self._group_starts = starts[permutation]  # (num_row_groups,): first sample id of the i-th group in the epoch
        rows = np.diff(starts)[permutation]
        self._group_ends = np.cumsum(rows)  # (num_row_groups,): position in the epoch where the i-th group ends
        self._group_rows = rows

    def window(self, window: int) -> list[np.ndarray]:
        """Sample ids of a window, one array a run, in step order: the first `per_step` of an array are the window's
        first step. In the epoch's last window the arrays end with what is left for the smaller last step."""
        order = self._order
        per_step = order.global_batch_size // order.runs
        first = window * order.steps_per_window
        steps = min(order.steps_per_window, order.full_steps - first)
        is_last = first + steps >= order.full_steps
        # The steps of a window are permuted alike in all runs, so that a step has samples of like length.
        step_order = np.random.default_rng((order.seed, self._epoch, window)).permutation(steps)
        ids = []
        for run in range(order.runs):
            start, stop = self._run_bounds(run)
            begin = start + first * per_step
            end = stop if is_last else begin + steps * per_step
            random = np.random.default_rng((order.seed, self._epoch, window, run))
            samples = random.permutation(self._samples(begin, end))
            head, tail = samples[: steps * per_step], samples[steps * per_step :]
            if order.group_by_length:
                noise = 1.0 + LENGTH_NOISE * random.random(len(head))
                head = head[np.argsort(order.lengths[head] * noise, kind="stable")]
            ids.append(np.concatenate([head.reshape(steps, per_step)[step_order].ravel(), tail]))
        return ids

    def _run_bounds(self, run: int) -> tuple[int, int]:
        """Positions in the epoch's sequence where a run starts and ends."""
        base, extra = divmod(self._order.num_samples, self._order.runs)
        start = run * base + min(run, extra)
        return start, start + base + (run < extra)

    def _samples(self, begin: int, end: int) -> np.ndarray:
        """Sample ids at positions [begin, end) of the epoch's sequence."""
        positions = np.arange(begin, end)
        group = np.searchsorted(self._group_ends, positions, side="right")
        inside = positions - (self._group_ends[group] - self._group_rows[group])
        return self._group_starts[group] + inside


def evaluation_batches(
    lengths: np.ndarray, batch_size: int, world_rank: int, world_size: int, window_batches: int = 256
) -> list[np.ndarray]:
    """This worker's evaluation micro-batches: over all workers, every sample exactly once.

    A worker measures a run of neighbouring samples, and so reads row groups that no other one reads (P5). Inside
    windows of its run they are sorted by length, longest first, and cut into batches. Workers' numbers of batches
    differ by at most one; the caller pads the count where collectives need it.

    Args:
        lengths: Tokens of each sample, shape (num_samples,).
        window_batches: Batches whose samples are sorted together.

    Returns:
        Arrays of sample ids.
    """
    num_batches = -(-len(lengths) // batch_size)
    begin = world_rank * num_batches // world_size * batch_size
    end = min(len(lengths), (world_rank + 1) * num_batches // world_size * batch_size)
    batches = []
    for start in range(begin, end, window_batches * batch_size):
        ids = np.arange(start, min(end, start + window_batches * batch_size))
        by_length = ids[np.argsort(-lengths[ids], kind="stable")]
        batches += [by_length[i : i + batch_size] for i in range(0, len(by_length), batch_size)]
    return batches
