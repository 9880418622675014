"""Tiny images that tests share, with a vision transformer for them: dark and bright ones, with noise."""

import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from raytrain.config import RunConfig
from raytrain.config.io import parse_config

TINY_VIT: dict[str, Any] = {
    "model_type": "vit",
    "image_size": 8,
    "patch_size": 4,
    "num_channels": 3,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "initializer_range": 0.2,
}
LABELS = ["bright", "dark"]


def make_image(number: int, *, mode: str = "RGB", size: tuple[int, int] = (13, 9)) -> Image.Image:
    """Even numbers are dark, odd ones bright. `size`: width and height."""
    values = np.random.default_rng(number).integers(0, 100, (size[1], size[0], 3)) + (150 if number % 2 else 0)
    return Image.fromarray(values.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str = "PNG") -> bytes:
    """The bytes of its file."""
    out = io.BytesIO()
    image.save(out, kind)
    return out.getvalue()


def write_folder(folder: Path, count: int) -> Path:
    """A folder of images with a sub-folder for each label."""
    for number in range(count):
        path = folder / LABELS[1 - number % 2] / f"{number:03d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        make_image(number).save(path)
    return folder


def image_config(folder: Path, *overrides: str, **task: Any) -> RunConfig:
    """The config of a tiny model on images of `folder`/train."""
    raw = {
        "name": "images",
        "storage_path": str(folder / "runs"),
        "task": {"kind": "image_classification", **task},
        "model": {"config": TINY_VIT, "image": {"size": 8}},
        "data": {"train": {"path": str(folder / "train")}},
        "training": {"max_steps": 4, "global_batch_size": 8, "micro_batch_size": 2, "precision": "fp32"},
        "workers": {"min": 1, "max": 2, "gpu": False},
        "tracking": {"tensorboard": False},
    }
    return parse_config(raw, overrides=list(overrides))
