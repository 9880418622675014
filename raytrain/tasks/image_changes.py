"""Random changes of training images: mirrored, and cropped as in Szegedy et al. (2015)."""

import math

import numpy as np

from raytrain.config import ImageClassificationConfig

ASPECTS = (3 / 4, 4 / 3)
"""Of the width to the height of a crop, against that of the image."""


def changed(pixels: np.ndarray, config: ImageClassificationConfig, random: np.random.Generator) -> np.ndarray:
    """An image after the changes of the config. `pixels`: shape (channels, height, width), uint8."""
    if config.random_crop is not None:
        pixels = _cropped(pixels, config.random_crop, random)
    if config.random_flip and random.random() < 0.5:
        pixels = pixels[:, :, ::-1]
    return pixels


def _cropped(pixels: np.ndarray, least_area: float, random: np.random.Generator) -> np.ndarray:
    """A part of the image, resized to the whole."""
    from PIL import Image

    height, width = pixels.shape[1:]
    area, aspect = random.uniform(least_area, 1.0), math.exp(random.uniform(math.log(ASPECTS[0]), math.log(ASPECTS[1])))
    tall = min(height, max(1, round(height * math.sqrt(area / aspect))))
    wide = min(width, max(1, round(width * math.sqrt(area * aspect))))
    top, left = int(random.integers(0, height - tall + 1)), int(random.integers(0, width - wide + 1))
    part = pixels[:, top : top + tall, left : left + wide]
    return np.stack(
        [np.asarray(Image.fromarray(one).resize((width, height), Image.Resampling.BILINEAR)) for one in part]
    )
