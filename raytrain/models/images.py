"""Images as a model takes them: the model's own processor of Transformers, with Pillow and without torchvision.

What it does is divided in two. Decoding, resizing and cropping are done once, when the data is prepared, and give
bytes; scaling the bytes to numbers is done for each batch, after the random changes of a training image. Both together
are what the processor does, which is compared when it is loaded.
"""

import base64
import contextlib
import hashlib
import io
import json
import os
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from raytrain.config import ModelConfig
from raytrain.config.image import MOST_PIXELS
from raytrain.errors import ConfigError, first_line

PROCESSOR = "preprocessor_config.json"
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
"""Of image files, as Pillow calls them. Others are not opened: some of Pillow's readers start other programs."""
ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".pgm", ".ppm")
GRAY_16 = ("I;16", "I;16L", "I;16B", "I;16N")
MOST_RESIZED = 1 << 24
"""Most pixels of an image after it is resized and before it is cropped: 50 MB as RGB."""
CLOSE = 1e-5  # of numbers about 1: another order of the same float32 operations


class BadImageError(Exception):
    """An image that can't be used. The message says why, after the image's name."""


@dataclass(frozen=True)
class ImageProcessor:
    """Takes the place that a tokenizer has for texts."""

    inner: Any
    """The processor of Transformers."""
    shape: tuple[int, int, int]
    """Channels, height and width of what the model takes."""
    scale: np.ndarray
    """What bytes are multiplied by, then the mean and the standard deviation of each channel; float32, shape
    (1 + 2 * channels,)."""
    pad_token_id: int = 0

    def pixels(self, image: Any) -> np.ndarray:
        """An opened image, resized and cropped; shape `shape`, uint8. Raises BadImageError."""
        width, height = image.size
        if (resized := _num_resized(self.inner, width, height)) > MOST_RESIZED:
            raise BadImageError(
                f"has {width:,} x {height:,} pixels: resized by its shorter side, as the model's {PROCESSOR} says, it "
                f"would have {resized:,}, and at most {MOST_RESIZED:,} are computed: cut it"
            )
        return np.asarray(_pixels(self.inner, image, self.shape[0]))

    def save_pretrained(self, folder: str) -> None:
        """Write preprocessor_config.json."""
        self.inner.save_pretrained(folder)

    def identity(self) -> str:
        """Hash of everything that determines the pixels, and of how they are scaled."""
        return hashlib.sha256(json.dumps(self.inner.to_dict(), sort_keys=True, default=str).encode()).hexdigest()


def load_image_processor(model: ModelConfig) -> ImageProcessor:
    """What makes inputs of images for this model, loaded once per process. Raises ConfigError naming the option."""
    assert model.image is not None
    return _load(model.model_dump_json(include={"path", "config", "image", "revision", "trust_remote_code"}))


@lru_cache(maxsize=4)
def _load(model_json: str) -> ImageProcessor:
    model = ModelConfig.model_validate_json(model_json)
    pillow()
    inner = _pretrained(model) if model.path is not None else _new(model)
    option = f"model.path {model.path}" if model.path is not None else "model.image"
    for name in ("image_mean", "image_std", "rescale_factor"):
        if getattr(inner, name, None) is None:
            raise ConfigError(f"{option}: {PROCESSOR} has no {name}: set model.image.mean and model.image.std")
    channels = len(inner.image_mean)
    shapes = set()
    for height, width in ((40, 56), (64, 48)):
        image = _noise(height, width, channels)
        pixels = np.asarray(_pixels(inner, image, channels))
        shapes.add(pixels.shape)
        scale = np.array([inner.rescale_factor, *inner.image_mean, *inner.image_std], np.float32)
        with _quiet():
            whole = np.asarray(inner(images=[image], return_tensors="np")["pixel_values"][0])
        ours = scaled(pixels[None], scale[None])[0]
        if pixels.dtype != np.uint8 or whole.shape != ours.shape or np.abs(whole - ours).max() > CLOSE:
            raise ConfigError(
                f"{option}: {type(inner).__name__} does more with an image than to resize, crop, rescale and normalize "
                "it, which is all that task.kind=image_classification can do. Use another model"
            )
    if len(shapes) > 1 or len(pixels.shape) != 3:
        raise ConfigError(
            f"{option}: {type(inner).__name__} makes inputs of other sizes of images of other shapes, which can't be "
            "in one batch: set model.image.size"
        )
    return ImageProcessor(inner, pixels.shape, scale)


def scaled(pixels: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """Bytes as the numbers that the model takes.

    Args:
        pixels: Shape (num_images, channels, height, width), uint8.
        scale: `ImageProcessor.scale` of each, shape (num_images, 1 + 2 * channels), float32.

    Returns:
        Shape of `pixels`, float32.
    """
    channels = pixels.shape[1]
    factor, mean, std = (part[..., None, None] for part in np.split(scale, (1, 1 + channels), axis=1))
    return np.asarray((pixels.astype(np.float32) * factor - mean) / std)


def decoded(data: bytes, most_pixels: int) -> Any:
    """The image in the bytes of a file, turned as its EXIF data says. Raises BadImageError."""
    with _opened(data) as image:
        from PIL import Image, ImageOps

        width, height = image.size
        if width * height > most_pixels:
            raise BadImageError(
                f"has {width:,} x {height:,} pixels, and task.max_pixels is {most_pixels:,}: it is not decoded"
            )
        image.load()
        name = image.format
        image = ImageOps.exif_transpose(image)
    if image.mode in GRAY_16:
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode == "I" and name == "PPM":  # Pillow scales the values of a gray PPM to 16 bits
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        raise BadImageError(f"has pixels of mode {image.mode}, of which the range of values is not known")
    return image


def of_base64(text: str) -> bytes:
    """The bytes of an image in JSON: base64, with or without `data:image/png;base64,` before it. Raises
    BadImageError."""
    if text.startswith("data:"):
        head, comma, text = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise BadImageError("is a data: URI that is not base64")
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except ValueError:
        raise BadImageError("is not base64") from None


def num_pixels(data: bytes) -> int:
    """Width times height, by the head of the file. Raises BadImageError."""
    with _opened(data) as image:
        width, height = image.size
    return int(width * height)


@contextlib.contextmanager
def _opened(data: bytes) -> Iterator[Any]:
    """An image whose pixels are not decoded yet. Raises BadImageError, also for what fails meanwhile."""
    pillow()
    from PIL import Image, UnidentifiedImageError

    if not data:
        raise BadImageError("is empty (0 bytes)")
    try:
        with _quiet():
            yield Image.open(io.BytesIO(data), formats=FORMATS)
    except BadImageError:
        raise
    except UnidentifiedImageError:
        raise BadImageError(
            f"is not an image of a known format ({', '.join(FORMATS)}), or its beginning is damaged"
        ) from None
    except Image.DecompressionBombError:
        raise BadImageError(f"has more than {MOST_PIXELS:,} pixels: it is not decoded") from None
    except Exception as error:  # Pillow's readers raise errors of many types for bytes that are damaged
        raise BadImageError(f"can't be decoded: {first_line(str(error)) or type(error).__name__}") from None


def from_python(value: Any) -> Any:
    """The bytes of an image file of an object of Pillow or an array of numbers; a local path in full; anything else as
    it is. Raises ConfigError."""
    pillow()
    image = value
    if isinstance(value, os.PathLike | str):
        path = os.fspath(value)
        is_whole = "://" in path or path.startswith("data:")
        return path if is_whole else os.path.abspath(os.path.expanduser(path))
    from PIL import Image

    if isinstance(value, np.ndarray):
        if value.dtype != np.uint8 or value.ndim not in (2, 3) or value.shape[2:] not in ((), (3,)):
            raise ConfigError(
                f"an array of {value.dtype} and shape {value.shape}: an image is one of uint8, of shape (height, "
                "width) or (height, width, 3)"
            )
        image = Image.fromarray(value)
    if not isinstance(image, Image.Image):
        return value
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


def pillow() -> Any:
    """Pillow. Raises ConfigError when it is not installed."""
    try:
        import PIL
    except ModuleNotFoundError:
        raise ConfigError(
            "task.kind=image_classification needs the package Pillow, which is not installed: pip install "
            "'raytrain[images]', on every node"
        ) from None
    return PIL


def _num_resized(inner: Any, width: int, height: int) -> int:
    """Pixels of an image when its shorter side is resized to the processor's; 0: it is resized to a fixed size. A file
    of a few hundred bytes can be a line of a million pixels, which would be made to fill the memory."""
    shortest = (getattr(inner, "size", None) or {}).get("shortest_edge")
    if shortest is None or not getattr(inner, "do_resize", True):
        return 0
    longest = max(width, height) * shortest / min(width, height)
    return int(shortest * min(longest, inner.size.get("longest_edge") or longest))


def _pixels(inner: Any, image: Any, channels: int) -> Any:
    with _quiet():
        image = image.convert("L" if channels == 1 else "RGB")
        found = inner(images=[image], do_rescale=False, do_normalize=False, return_tensors="np")
    return found["pixel_values"][0]


def _noise(height: int, width: int, channels: int) -> Any:
    """A picture to compare by."""
    from PIL import Image

    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(values).convert("L" if channels == 1 else "RGB")


def _new(model: ModelConfig) -> Any:
    """The processor for a new model."""
    from transformers import ViTImageProcessorPil

    image, config = model.image, model.config or {}
    assert image is not None
    if image.size is None:
        raise ConfigError("model.image.size is missing: the width and height in pixels that images are resized to")
    channels = config.get("num_channels", 3)
    if image.mean is None and channels not in (1, 3):
        raise ConfigError(f"model.config.num_channels {channels}: images have 3 channels (RGB), or 1 (gray)")
    mean, std = image.mean or [0.5] * channels, image.std or [0.5] * channels
    if len(mean) != channels:
        raise ConfigError(
            f"model.image.mean has {len(mean)} numbers, and model.config.num_channels is {channels}: make them equal"
        )
    size = {"height": image.size, "width": image.size}
    return ViTImageProcessorPil(size=size, image_mean=mean, image_std=std)


def _pretrained(model: ModelConfig) -> Any:
    """The processor beside a pretrained model, with the values of model.image in place of its own."""
    from transformers import AutoImageProcessor

    image = model.image
    changes: dict[str, Any] = {}
    assert image is not None
    if image.size is not None:
        changes["size"] = {"height": image.size, "width": image.size}
        changes["do_center_crop"] = False
    if image.mean is not None:
        changes |= {"image_mean": image.mean, "image_std": image.std}
    try:
        with _quiet():
            return AutoImageProcessor.from_pretrained(
                model.path,
                backend="pil",
                revision=model.revision or "main",
                trust_remote_code=model.trust_remote_code,
                **changes,
            )
    except (OSError, ValueError, KeyError, ImportError) as error:
        reason = first_line(str(error)).rstrip(".")
        raise ConfigError(
            f"model.path {model.path}: what prepares its images can't be loaded ({reason}). A model on images has a "
            f"{PROCESSOR}: save it there with processor.save_pretrained"
        ) from None


def image_identity(model: ModelConfig) -> str:
    """Hash of what makes inputs of images. A local folder is identified by its file, without importing Transformers.
    Raises ConfigError."""
    assert model.image is not None
    said = model.image.model_dump_json()
    if model.path is None:
        return hashlib.sha256(f"{said} {(model.config or {}).get('num_channels')}".encode()).hexdigest()
    place = os.path.join(model.path, PROCESSOR)
    if not os.path.isfile(place):
        return load_image_processor(model).identity()
    with open(place, "rb") as file:
        return hashlib.sha256(said.encode() + file.read()).hexdigest()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings, on images that are large or unusual, and Transformers' advice on torchvision."""
    from transformers.utils import logging as their_logging

    verbosity = their_logging.get_verbosity()
    their_logging.set_verbosity_error()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        their_logging.set_verbosity(verbosity)
