"""Images in requests: base64 in JSON. Paths are never read: they would be those of the server."""

from typing import Any

from raytrain.models.images import BadImageError, num_pixels, of_base64
from raytrain.serving.limits import MOST_IMAGE_PIXELS
from raytrain.serving.replica import Row
from raytrain.tasks.base import Task
from raytrain.tasks.image_classification import ImageClassification

IMAGE_INPUTS = ("image", "images", "rows")
"""Keys of a request in place of `text`, `texts` and `rows`."""


def takes_images(task: Task) -> bool:
    """Whether rows are images."""
    return isinstance(task, ImageClassification)


def row_of_image(value: Any, name: str, task: Task) -> Row | str:
    """The row of an image, or what is wrong with it. `name`: what the request calls it."""
    if not isinstance(value, str):
        return f"{name} is the base64 of an image file, as a string"
    try:
        data = of_base64(value)
    except BadImageError as error:
        return f"{name} {error}: send what `base64 -w0 FILE` gives; paths are not read here"
    try:
        pixels = num_pixels(data)
    except BadImageError as error:
        return f"{name} {error}"
    if pixels > MOST_IMAGE_PIXELS:
        return (
            f"{name} has {pixels:,} pixels, and this server takes at most {MOST_IMAGE_PIXELS:,}: send a smaller image"
        )
    return {task.input_columns()[0]: data}
