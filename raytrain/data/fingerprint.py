"""The identity of prepared data: a hash of everything that determines it, and of nothing else."""

import hashlib
import json
from dataclasses import astuple

from raytrain.config import Affects, LeakagePolicy, RunConfig
from raytrain.config.fields import affecting
from raytrain.config.io import flatten
from raytrain.data.prepared import FORMAT_VERSION
from raytrain.data.readers.base import SourceFile
from raytrain.data.stages.near_duplicates import algorithm
from raytrain.data.stages.packages import versions


def fingerprint(config: RunConfig, files: dict[str, list[SourceFile]], tokenizer: str, rows_per_group: int) -> str:
    """Hex digest, 20 characters.

    Args:
        files: The source files of each split, identified by path, size, modification time and content,
            and how they are read.
        tokenizer: Fingerprint of the tokenizer's content.
        rows_per_group: Rows per row group, the unit of the sample order.
    """
    values = flatten(config.model_dump(mode="json"))
    fraction = values.get("data.validation.fraction")
    dedup = config.data.dedup
    compares = dedup.leakage != LeakagePolicy.OFF or dedup.exact or dedup.near or fraction is not None
    parts = {
        "format": FORMAT_VERSION,
        "files": {split: [astuple(file) for file in of_split] for split, of_split in files.items()},
        "fields": {key: values[key] for key in affecting(Affects.DATA) if key in values},
        "seed": config.seed if fraction is not None else None,  # determines which rows are held out
        "duplicates": algorithm() if compares else None,
        "tokenizer": tokenizer,
        "packages": versions(config.data.clean),  # those that decide what the rules of data.clean make of a text
        "rows_per_group": rows_per_group,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:20]
