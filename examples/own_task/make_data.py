"""Writes data/train.parquet for regression.yaml: 2,000 rows of three numbers and a fourth that depends on them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

rng = np.random.default_rng(0)
a, b, c = rng.normal(size=(3, 2000))
y = 2.0 * a - b * c + 0.1 * rng.normal(size=2000)
Path("data").mkdir(exist_ok=True)
pq.write_table(pa.table({"a": a, "b": b, "c": c, "y": y}), "data/train.parquet")
