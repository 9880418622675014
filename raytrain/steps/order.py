"""Which samples a step trains on: a pure function of (prepared data, seed, epoch, step). No Ray, no torch.

The order of an epoch is built in three stages.

1. The row groups of the prepared store are permuted, which yields a sequence of all samples. Row groups stay whole
   because they are the unit of reading.
2. The sequence is cut into lanes of equal length (to within one sample), and every training step takes the same number
   of samples from each lane. Small data has fewer lanes than `canonical_shards`, because a shorter lane would have too
   few samples to match its lengths with those of the other lanes. (The idea comes from the canonical nodes of MosaicML
   Streaming.)
3. Each lane is shuffled within windows. The samples of a window are sorted by length (with a little noise, so that
   epochs differ) and cut into steps; the steps are then permuted, with the same permutation in every lane. All lanes
   therefore contribute samples of similar length to a step: padding is small, and workers finish together.

A step is then cut into micro-batches, which consist of whole lanes where there are enough, so that a worker reads only
the row groups of its own lanes. A resize only changes which worker computes which micro-batch.

Seeking to any step costs one window, and reads the lengths of its samples only.

With `data.balance`, weights of sources or `data.epoch_samples`, samples have several copies in an epoch, or none: then
the sequence of stage 1 is that of `steps.copies`. What comes in the order is an *entry*, a sample and its copy in one
integer; without copies an entry is the sample's id.
"""

import functools
import hashlib
import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from raytrain.steps.copies import Copies, CopiesLayout, ids_of

# Identifies the algorithm below in state.json. Raise it with every change that gives any run other samples in a step,
# or other micro-batches: resuming across such a change would drop and repeat samples, or draw other dropout masks.
ORDER_VERSION = 2
# First in the seed of each random stream. numpy pads seeds with zeros, so that without it (seed, epoch) and
# (seed, epoch, 0) would be the same stream.
_ROW_GROUPS, _STEPS, _LANE = 1, 2, 3
# Relative noise added to lengths before sorting: small enough to keep padding low, large enough that epochs differ.
LENGTH_NOISE = 0.05


class Lengths(Protocol):
    """Tokens per sample: an array, or something that reads only what it is asked for."""

    def __len__(self) -> int:
        """The number of samples."""

    def __getitem__(self, ids: np.ndarray, /) -> np.ndarray:
        """The lengths of these samples, in this order. `ids`: shape (n,); the result too."""


@dataclass(frozen=True)
class Order:
    """The order in which the samples of one split are visited."""

    row_group_starts: np.ndarray
    """First sample id of each row group, followed by the number of samples. Shape (num_row_groups + 1,)."""
    lengths: Lengths
    """Tokens of each sample."""
    seed: int
    global_batch_size: int
    canonical_shards: int
    window_samples: int = 32768
    """Samples shuffled together, over all shards."""
    samples_per_lane: int = 1024
    """Minimum samples per lane. Workers that share a lane read the same row groups; data that is large enough for
    this to cost time has `canonical_shards` lanes."""
    group_by_length: bool = True
    drop_last: bool = False
    copies: Copies | None = None
    """How often each sample occurs in an epoch; None: once."""
    _layouts: dict[int, "_EpochLayout"] = field(default_factory=dict, repr=False, compare=False)
    _windows: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict, repr=False, compare=False)

    @property
    def num_samples(self) -> int:
        """Samples per epoch, copies counted."""
        return int(self.row_group_starts[-1]) if self.copies is None else self.copies.num_samples

    @functools.cached_property
    def samples_per_visit(self) -> int:
        """Samples that a row group contributes when it is visited, on average."""
        return max(1, self.num_samples // max(1, self._layout(0).num_visits))

    @property
    def full_steps(self) -> int:
        """Steps per epoch with a full global batch."""
        return self.num_samples // self.global_batch_size

    @property
    def steps_per_epoch(self) -> int:
        """Steps per epoch, including the smaller last one unless it is dropped."""
        return self.full_steps if self.drop_last else -(-self.num_samples // self.global_batch_size)

    @property
    def steps_per_window(self) -> int:
        """Steps whose samples are shuffled together."""
        return max(1, self.window_samples // self.global_batch_size)

    @functools.cached_property
    def lanes(self) -> int:
        """Number of lanes that an epoch is cut into, a divisor of `canonical_shards`."""
        most = max(1, self.num_samples // self.samples_per_lane)
        shards = self.canonical_shards
        return max(divisor for divisor in range(1, min(most, shards) + 1) if shards % divisor == 0)

    def step_samples(self, epoch: int, step_in_epoch: int) -> np.ndarray:
        """Sample ids of one step, one lane after the other. Shape (global_batch_size,), or less in the last step.

        Raises IndexError when the step is outside the epoch.
        """
        return ids_of(self._step_entries(epoch, step_in_epoch))

    def _step_entries(self, epoch: int, step_in_epoch: int) -> np.ndarray:
        """The same as entries."""
        if not 0 <= step_in_epoch < self.steps_per_epoch:
            raise IndexError(f"step {step_in_epoch} is outside the epoch's {self.steps_per_epoch} steps")
        window = self._window_of(step_in_epoch)
        per_step = self.global_batch_size // self.lanes
        start = (step_in_epoch - window * self.steps_per_window) * per_step
        return np.concatenate([lane[start : start + per_step] for lane in self._window(epoch, window)])

    def micro_batches(self, epoch: int, step_in_epoch: int, num: int, wanted: Iterable[int]) -> list[np.ndarray]:
        """Entries of some micro-batches of a step; `ids_of` and `copies_of` tell what is in them.

        The step is cut into groups of whole lanes, and each group, sorted by length, into micro-batches, longest
        samples first, so that memory peaks in a worker's first one. Micro-batch `i * groups + g` is the i-th of group
        g: those of consecutive numbers have samples of similar length.

        Args:
            num: Micro-batches of the step, over all workers.
            wanted: Numbers of those to return, each in [0, num).

        Returns:
            One array per number, each of shape (global_batch_size / num,), rounded up or down. In the smaller last step
            of an epoch they are smaller, and some may be empty.

        Raises IndexError when the step is outside the epoch.
        """
        groups, wanted = self.num_groups(num), list(wanted)
        entries = np.array_split(self._step_entries(epoch, step_in_epoch), groups)
        parts = {group: self._slices(entries[group], num // groups) for group in {which % groups for which in wanted}}
        return [parts[which % groups][which // groups] for which in wanted]

    def num_groups(self, num_micro_batches: int) -> int:
        """Groups of lanes that a step is cut into, a divisor of the number of its micro-batches."""
        return num_micro_batches if num_micro_batches <= self.lanes else math.gcd(num_micro_batches, self.lanes)

    def _slices(self, entries: np.ndarray, num: int) -> list[np.ndarray]:
        """Sort samples by length, longest first, and cut them into parts whose sizes differ by at most one."""
        if num == 1:
            return [entries]
        return np.array_split(entries[np.argsort(-self.lengths[ids_of(entries)], kind="stable")], num)

    def window_hash(self, epoch: int, step_in_epoch: int) -> str:
        """SHA-256 (hex) of the entries of the window that a step is in, in order. It differs where anything that the
        order depends on differs, numpy's random streams included, which may change between its versions."""
        digest = hashlib.sha256()
        for entries in self._window(epoch, self._window_of(step_in_epoch)):
            digest.update(entries.astype("<i8").tobytes())
        return digest.hexdigest()

    def _window_of(self, step_in_epoch: int) -> int:
        # The smaller last step is part of the window before it: it is drawn from the same samples.
        return min(step_in_epoch, max(0, self.full_steps - 1)) // self.steps_per_window

    def _window(self, epoch: int, window: int) -> list[np.ndarray]:
        """See `_EpochLayout.window`."""
        key = (epoch, window)
        if key not in self._windows:
            self._windows.clear()  # steps are requested in order, so one window is enough
            self._windows[key] = self._layout(epoch).window(window)
        return self._windows[key]

    def _layout(self, epoch: int) -> "_EpochLayout":
        if epoch not in self._layouts:
            self._layouts.clear()
            self._layouts[epoch] = _EpochLayout(self, epoch)
        return self._layouts[epoch]


class _EpochLayout:
    """The sequence of one epoch, and the windows cut from it."""

    def __init__(self, order: Order, epoch: int):
        self._order, self._epoch = order, epoch
        self._sequence: _RowGroups | CopiesLayout = (
            _RowGroups(order, epoch) if order.copies is None else CopiesLayout(order.copies, epoch)
        )

    @property
    def num_visits(self) -> int:
        """Reads of a row group in the epoch."""
        return self._sequence.num_visits

    def window(self, window: int) -> list[np.ndarray]:
        """Entries of a window in step order, one array per lane.

        Returns:
            `lanes` arrays of shape (steps * per_step,): the first `per_step` ids of each belong to the first step of
            the window. In the last window of the epoch, each array also ends with its ids of the smaller last step.
        """
        order = self._order
        per_step = order.global_batch_size // order.lanes
        first = window * order.steps_per_window
        steps = min(order.steps_per_window, order.full_steps - first)
        is_last = first + steps >= order.full_steps
        # (steps,): the same permutation in all lanes, so that a step has samples of similar length
        step_order = np.random.default_rng((_STEPS, order.seed, self._epoch, window)).permutation(steps)
        randoms, heads, tails = [], [], []
        for lane in range(order.lanes):
            start, stop = self._lane_bounds(lane)
            begin = start + first * per_step
            end = stop if is_last else begin + steps * per_step
            random = np.random.default_rng((_LANE, order.seed, self._epoch, window, lane))
            # (end - begin,)
            samples = random.permutation(self._sequence.entries(begin, end))
            randoms.append(random)
            # (steps * per_step,) for the full steps, (end - begin - steps * per_step,) for the smaller last step
            heads.append(samples[: steps * per_step])
            tails.append(samples[steps * per_step :])
        if order.group_by_length:
            # (lanes * steps * per_step,) -> (lanes, steps * per_step): read together, since they may be far away
            lengths = order.lengths[ids_of(np.concatenate(heads))].reshape(order.lanes, steps * per_step)
            for lane, (random, head) in enumerate(zip(randoms, heads, strict=True)):
                noise = 1.0 + LENGTH_NOISE * random.random(len(head))
                heads[lane] = head[np.argsort(lengths[lane] * noise, kind="stable")]
        # (steps * per_step,) -> (steps, per_step), rows permuted -> (steps * per_step,), and the smaller last step
        return [
            np.concatenate([head.reshape(steps, per_step)[step_order].ravel(), tail])
            for head, tail in zip(heads, tails, strict=True)
        ]

    def _lane_bounds(self, lane: int) -> tuple[int, int]:
        """Start and end positions of a lane in the sequence of the epoch."""
        base, extra = divmod(self._order.num_samples, self._order.lanes)
        start = lane * base + min(lane, extra)
        return start, start + base + (lane < extra)


class _RowGroups:
    """The permuted row groups of one epoch."""

    def __init__(self, order: Order, epoch: int):
        starts = order.row_group_starts
        permutation = np.random.default_rng((_ROW_GROUPS, order.seed, epoch)).permutation(len(starts) - 1)
        # (num_row_groups,): first sample id of the i-th group in the epoch
        self._group_starts = starts[permutation]
        # (num_row_groups,): samples in the i-th group in the epoch
        self._group_rows = np.diff(starts)[permutation]
        # (num_row_groups,): position in the epoch where the i-th group ends
        self._group_ends = np.cumsum(self._group_rows)

    @property
    def num_visits(self) -> int:
        """Row groups: each is read once."""
        return len(self._group_starts)

    def entries(self, begin: int, end: int) -> np.ndarray:
        """Sample ids at positions [begin, end) of the epoch's sequence. Shape (end - begin,)."""
        # (end - begin,), and so are all arrays below
        positions = np.arange(begin, end)
        group = np.searchsorted(self._group_ends, positions, side="right")
        inside = positions - (self._group_ends[group] - self._group_rows[group])
        return self._group_starts[group] + inside


def evaluation_batches(
    lengths: Lengths, batch_size: int, world_rank: int, world_size: int, window_batches: int = 256
) -> list[np.ndarray]:
    """Evaluation micro-batches of one worker. Over all workers, every sample occurs exactly once.

    The batches are the same at any number of workers, and a worker evaluates consecutive ones. Within windows of
    consecutive samples, these are sorted by length, longest first, and cut into batches: only workers that share a
    window read the same row groups (P5).

    Args:
        lengths: Tokens of each sample.
        window_batches: Batches whose samples are sorted together.

    Returns:
        Arrays of sample ids, each of shape (batch_size,); the very last one may be shorter. Their number differs by at
        most one between workers; the caller pads it where collectives need it.
    """
    num_batches = -(-len(lengths) // batch_size)
    first, stop = world_rank * num_batches // world_size, (world_rank + 1) * num_batches // world_size
    batches = []
    for window in range(first // window_batches, -(-stop // window_batches)):
        begin = window * window_batches
        # (window_batches * batch_size,), fewer in the last window
        ids = np.arange(begin * batch_size, min(len(lengths), (begin + window_batches) * batch_size))
        # The same shape, longest first
        by_length = ids[np.argsort(-lengths[ids], kind="stable")]
        mine = range(max(first, begin) - begin, min(stop, begin + window_batches) - begin)
        batches += [by_length[i * batch_size : (i + 1) * batch_size] for i in mine]
    return batches
