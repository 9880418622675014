"""Near duplicates among texts: shingles, MinHash in bands, and an exact check of each pair. No Ray, no torch.

Two texts are near duplicates if the sets of their shingles (5 characters each) have a Jaccard similarity of at least
0.8. MinHash in 20 bands of 6 rows (Broder, 1997; Leskovec et al., Mining of Massive Datasets, chapter 3) finds the
pairs that may be: in measurements all of those at 0.8 and above, and as many below it. So each pair is checked by its
shingles. Which rows go is decided greedily, in order of priority: a row goes only if a row that is kept is near it.
Chains of pairs are not followed, since two texts at the ends of a chain need not be alike.

Everything is a function of the texts and their order, and does not depend on how they are divided among tasks.
"""

import functools
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from typing import Any

import numpy as np

from raytrain.steps.hashes import GOLDEN, mixed

SHINGLE_CHARACTERS = 5
# Words in fives see few near duplicates among sentences: one changed word of 18 leaves a similarity of 0.47.
NUM_BANDS, ROWS_PER_BAND = 20, 6
THRESHOLD = 0.8
# A bucket may have very many members, and the number of its pairs grows with their square.
MOST_OTHERS = 4
SEED = 1
CHUNK_TEXTS = 4096  # hashed at once, by `near_duplicates`


@dataclass(frozen=True)
class Match:
    """A text that is near one of higher priority."""

    index: int
    partner: int
    jaccard: float


def algorithm() -> str:
    """What decides, beside the texts, which rows are near duplicates: part of the prepared data's fingerprint."""
    rensa = metadata.version("rensa")  # 0.5 changed its signatures
    shape = f"{SHINGLE_CHARACTERS} {NUM_BANDS}x{ROWS_PER_BAND} {THRESHOLD} {MOST_OTHERS} {SEED}"
    return f"{shape} rensa {rensa} unicode {unicodedata.unidata_version}"


def normalized(text: str) -> str:
    """The form in which texts are compared: NFKC, casefolded, words joined by a blank."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split())


def shingles(texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Hashes of the shingles of normalized texts, in their order, with repetitions.

    A text of fewer than 5 characters is one shingle; an empty one has none.

    Returns:
        (hashes, offsets): uint64 of shape (num_shingles,), and int64 of shape (num_texts + 1,): those of text i are
        hashes[offsets[i] : offsets[i + 1]].
    """
    padded = [text.ljust(SHINGLE_CHARACTERS, "\0") if text else "" for text in texts]
    sizes = np.array([len(text) for text in padded], dtype=np.int64)
    num_shingles = np.maximum(sizes - SHINGLE_CHARACTERS + 1, 0)
    offsets = np.concatenate([[0], np.cumsum(num_shingles)])
    codes = np.frombuffer("".join(padded).encode("utf-32-le", "surrogatepass"), dtype="<u4").astype(np.uint64)
    if not len(codes):
        return np.array([], dtype=np.uint64), offsets
    count = len(codes) - SHINGLE_CHARACTERS + 1
    c = [codes[i : count + i] for i in range(SHINGLE_CHARACTERS)]
    # A code point has 21 bits, so three fill a word of 64.
    hashes = mixed(c[0] | c[1] << np.uint64(21) | c[2] << np.uint64(42))
    hashes = mixed(hashes + (c[3] | c[4] << np.uint64(21)) * GOLDEN)
    is_inside = np.ones(len(codes), dtype=bool)  # the last 4 characters of a text begin no shingle
    ends = np.cumsum(sizes)[sizes > 0]
    is_inside[(ends[:, None] - np.arange(1, SHINGLE_CHARACTERS)).ravel()] = False
    return hashes[is_inside[:count]], offsets


def shingle_set(text: str) -> np.ndarray:
    """The different shingles of a normalized text, sorted: uint64 of shape (num_different,)."""
    return np.unique(shingles([text])[0])


def jaccard(one: np.ndarray, other: np.ndarray) -> float:
    """Shared shingles of two sets over all of theirs; 0 if both are empty."""
    common = len(np.intersect1d(one, other, assume_unique=True))
    return common / max(1, len(one) + len(other) - common)


def band_keys(texts: Sequence[str]) -> np.ndarray:
    """For each normalized text a key of each band: texts that share one may be near. Shape (num_texts, 20), uint64.

    The keys of empty texts are all alike: leave such texts out.
    """
    hashes, offsets = shingles(texts)
    num_perm = NUM_BANDS * ROWS_PER_BAND
    matrix = _minhash().digest_matrix_from_flat_token_hashes(hashes, offsets.astype(np.uint64), num_perm, SEED)
    signatures = np.array(matrix.to_rows(), dtype="<u4").reshape(len(texts), num_perm)
    words = signatures.view("<u8").reshape(len(texts), NUM_BANDS, ROWS_PER_BAND // 2)
    keys = np.broadcast_to(np.arange(1, NUM_BANDS + 1, dtype=np.uint64) * GOLDEN, (len(texts), NUM_BANDS))
    for i in range(words.shape[2]):
        keys = mixed(keys ^ words[:, :, i])
    return keys


class KeyIndex:
    """Finds texts that share a key with others: those given first, at most MOST_OTHERS of each bucket."""

    def __init__(self, keys: np.ndarray):
        """Args:
        keys: Of `band_keys`, in order of priority.
        """
        order = np.argsort(keys, axis=None, kind="stable")
        self._keys = keys.ravel()[order]
        self._texts = (order // NUM_BANDS).astype(np.int32)

    def candidates(self, keys: np.ndarray) -> np.ndarray:
        """Pairs (row of `keys`, text of the index), sorted, each once. Shape (num_pairs, 2), int64."""
        wanted = keys.ravel()
        begins = np.searchsorted(self._keys, wanted)
        pairs = []
        for step in range(MOST_OTHERS):
            places = np.minimum(begins + step, len(self._keys) - 1)
            found = np.flatnonzero((begins + step < len(self._keys)) & (self._keys[places] == wanted))
            pairs.append(np.stack([found // NUM_BANDS, self._texts[places[found]]], axis=1))
        return np.unique(np.concatenate(pairs), axis=0)


def candidate_pairs(keys: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Pairs (later, earlier) of ids that share a key. An id is compared with at most MOST_OTHERS before it in a bucket:
    the first two, and the two just before it.

    Args:
        keys: Shape (n,), uint64.
        ids: The text of each key, in order of priority; shape (n,), int64.

    Returns:
        Sorted, each once; shape (num_pairs, 2), int64.
    """
    order = np.lexsort((ids, keys))
    keys, ids = keys[order], ids[order]
    at = np.arange(len(keys))
    first = np.maximum.accumulate(np.where(np.concatenate([[True], keys[1:] != keys[:-1]]), at, 0)) if len(keys) else at
    pairs = [np.empty((0, 2), dtype=np.int64)]
    for others in (first, first + 1, at - 2, at - 1):
        is_pair = (others >= first) & (others < at)
        pairs.append(np.stack([ids[at[is_pair]], ids[others[is_pair]]], axis=1))
    return np.unique(np.concatenate(pairs), axis=0)


def greedy(matches: Sequence[Match]) -> list[Match]:
    """The texts that go, each with the nearest of those that are kept, by index.

    Args:
        matches: Checked pairs; a smaller index has the higher priority.
    """
    removed: dict[int, Match] = {}
    for match in sorted(matches, key=lambda one: (one.index, -one.jaccard, one.partner)):
        if match.partner not in removed and match.index not in removed:
            removed[match.index] = match
    return list(removed.values())


def near_duplicates(texts: Sequence[str]) -> list[Match]:
    """The texts that are near one of those before them which is kept, in memory: what PREPARE does with files.

    Args:
        texts: In order of priority, not normalized.
    """
    forms = [normalized(text) for text in texts]
    filled = np.flatnonzero([bool(form) for form in forms])
    parts = [filled[start : start + CHUNK_TEXTS] for start in range(0, len(filled), CHUNK_TEXTS)]
    keys = np.concatenate([np.empty((0, NUM_BANDS), np.uint64), *(band_keys([forms[i] for i in p]) for p in parts)])
    sets = functools.lru_cache(CHUNK_TEXTS)(lambda index: shingle_set(forms[index]))
    pairs = candidate_pairs(keys.ravel(), np.repeat(filled, NUM_BANDS))
    matches = [Match(later, earlier, jaccard(sets(later), sets(earlier))) for later, earlier in pairs.tolist()]
    return greedy([match for match in matches if match.jaccard >= THRESHOLD])


@functools.cache
def _minhash() -> Any:
    """rensa's RMinHash, with one thread: its pool is as large as the machine, and a task has one CPU. The variable is
    put back, since the tokenizer's pool reads it too."""
    before = os.environ.get("RAYON_NUM_THREADS")
    os.environ["RAYON_NUM_THREADS"] = "1"
    try:
        from rensa import RMinHash

        offsets = np.array([0, 1], dtype=np.uint64)
        RMinHash.digest_matrix_from_flat_token_hashes(offsets[:1], offsets, 1, SEED)
    finally:
        os.environ.pop("RAYON_NUM_THREADS")
        if before is not None:
            os.environ["RAYON_NUM_THREADS"] = before
    return RMinHash
