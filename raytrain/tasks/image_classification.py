"""One label for an image, or with `multi_label` any number of them.

A sample is the image as bytes, resized as the model takes it, so that an epoch decodes nothing. The random changes of
training images are drawn by sample and epoch when a batch is made; the model's device makes numbers of the bytes.
"""

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from raytrain.config import ImageClassificationConfig, ModelConfig, TrainingConfig
from raytrain.models.images import BadImageError, decoded, from_python, of_base64
from raytrain.storage import filesystem_of
from raytrain.tasks.base import Batch, BatchContext, Inputs, Rejection, RowError, TaskState
from raytrain.tasks.image_changes import changed
from raytrain.tasks.label_cells import described
from raytrain.tasks.labels import labels_in
from raytrain.tasks.sequence_classification import Labelling
from raytrain.tasks.text import PretrainedTask

if TYPE_CHECKING:
    from torch import Tensor, nn

PIXELS, SHAPE, SCALE = "pixels", "shape", "scale"
"""Columns of a sample: bytes of all channels, (channels, height, width), and `ImageProcessor.scale`."""
PLACE = "place"
"""Column of inputs: of each sample, its row in the table that was encoded."""


class ImageClassification(Labelling, PretrainedTask):
    """Labels of an image."""

    config: ImageClassificationConfig

    def __init__(self, config: ImageClassificationConfig, max_length: int):
        """`max_length`: not used; images have no tokens."""
        self.config = config

    def input_columns(self) -> list[str]:
        """The image."""
        return [self.config.image_column]

    def compared_texts(self, rows: pa.Table) -> list[str]:
        """The SHA-256 of each image file: only images with equal bytes are duplicates."""
        found = []
        for cell in rows[self.config.image_column].to_pylist():
            try:
                found.append(hashlib.sha256(self._bytes_of(cell)).hexdigest())
            except BadImageError:
                found.append("")  # it is compared with no other, and refused later
        return found

    def shown_texts(self, rows: pa.Table) -> list[str]:
        """The path of each image, or its SHA-256."""
        paths = map(_path_in, rows[self.config.image_column].to_pylist())
        return [path or text for path, text in zip(paths, self.compared_texts(rows), strict=True)]

    def passed_through(self, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray | None:
        """Of images their paths: the bytes are in the source."""
        if name != self.config.image_column:
            return column
        paths = [_path_in(cell) or None for cell in column.to_pylist()]
        return pa.chunked_array([pa.array(paths, pa.string())]) if any(paths) or not paths else None

    def value_from_python(self, value: Any) -> Any:
        """An image of Pillow, an array of shape (height, width) or (height, width, 3), bytes, or a path."""
        return from_python(value)

    def example_row(self) -> dict[str, Any]:
        """A black image."""
        return {self.config.image_column: from_python(np.zeros((8, 8, 3), np.uint8))}

    def check_inputs(self, rows: pa.Table) -> list[Rejection]:
        """Rows without an image. Whether it can be decoded shows when it is."""
        column = self.config.image_column
        return [
            Rejection(row, RowError.BAD_INPUT, f"{column} {reason}")
            for row, cell in enumerate(rows[column].to_pylist())
            if (reason := why_no_image(cell, self.config.image_folder))
        ]

    def encode_inputs(self, rows: pa.Table, tokenizer: Any) -> Inputs:
        """Decode, resize and crop the images.

        Args:
            tokenizer: The model's `ImageProcessor`.
        """
        pixels, places, rejected = [], [], []
        for row, cell in enumerate(rows[self.config.image_column].to_pylist()):
            try:
                image = decoded(self._bytes_of(cell), self.config.max_pixels)
                pixels.append(tokenizer.pixels(image).tobytes())
                places.append(row)
            except BadImageError as error:
                named = f" {path}" if (path := _path_in(cell)) else ""
                rejected.append(Rejection(row, RowError.BAD_INPUT, f"{self.config.image_column}{named} {error}"))
        count = len(pixels)
        columns = {
            PLACE: pa.array(places, pa.int64()),
            PIXELS: pa.array(pixels, pa.binary()),
            SHAPE: pa.array([list(tokenizer.shape)] * count, pa.list_(pa.int32())),
            SCALE: pa.array([tokenizer.scale.tolist()] * count, pa.list_(pa.float32())),
        }
        return Inputs(pa.table(columns), 0, np.array(places, np.int64), rejected)

    def encode_targets(self, rows: pa.Table, inputs: pa.Table, state: TaskState) -> pa.Table:
        """Adds `labels`. Where images could not be decoded, there are fewer samples than rows."""
        if len(rows) != len(inputs):
            rows = rows.take(inputs[PLACE])
        return super().encode_targets(rows, inputs.drop_columns(PLACE), state)

    def describe(self, sample: dict[str, Any], tokenizer: Any, state: TaskState) -> dict[str, Any]:
        """Size and mean brightness, a small picture in characters, and the label."""
        channels, height, width = sample[SHAPE]
        pixels = np.frombuffer(sample[PIXELS], np.uint8).reshape(channels, height, width)
        return {
            "image": f"{width} x {height}, {channels} channel(s), mean {pixels.mean():.0f} of 255",
            "picture": picture(pixels),
            "labels": self.name_targets(sample["labels"], [], state),
        }

    def collate_inputs(self, samples: pa.Table, pad_token_id: int) -> Batch:
        """`pixels` of shape (num_samples, channels, height, width), uint8; `scale` of shape (num_samples, 1 + 2 *
        channels), float32."""
        shape = tuple(samples[SHAPE][0].as_py()) if len(samples) else (1, 1, 1)
        pixels = np.frombuffer(b"".join(samples[PIXELS].to_pylist()), np.uint8).reshape(len(samples), *shape)
        scale = np.array(samples[SCALE].to_pylist(), np.float32).reshape(len(samples), 1 + 2 * shape[0])
        return {PIXELS: pixels.copy(), SCALE: scale}  # a copy: what is shared with Arrow can't be written to

    def collate(self, samples: pa.Table, context: BatchContext) -> Batch:
        """`collate_inputs`, changed at random in training, and `labels` as of other classifications."""
        batch = super().collate(samples, context)
        if context.split == "train" and (self.config.random_flip or self.config.random_crop is not None):
            for place in range(len(samples)):
                batch[PIXELS][place] = changed(batch[PIXELS][place], self.config, context.generator(place))
        return batch

    def padded_size(self, batch: Batch) -> int:
        """Images."""
        return len(batch[PIXELS])

    def model_inputs(self, batch: "dict[str, Tensor]") -> "dict[str, Tensor]":
        """`pixel_values`, what the processor of Transformers gives; shape (num_samples, channels, height, width),
        fp32."""
        pixels, scale = batch[PIXELS].float(), batch[SCALE][..., None, None]
        channels = pixels.shape[1]
        factor, mean, std = scale[:, :1], scale[:, 1 : 1 + channels], scale[:, 1 + channels :]
        return {"pixel_values": (pixels * factor - mean) / std}

    def example_inputs(self, processor: Any) -> "dict[str, Tensor]":
        """What the model is called with, of two images without content."""
        import torch

        return {"pixel_values": torch.zeros(2, *processor.shape)}

    def build_model(self, model: ModelConfig, state: TaskState, training: TrainingConfig) -> "nn.Module":
        """A vision model with a classification head."""
        from raytrain.models.vision import build_vision_model

        return build_vision_model(model, labels_in(state), training, problem_type=self.problem_type)

    def infer(self, model: "nn.Module", batch: "dict[str, Tensor]") -> list[np.ndarray]:
        """For each sample its logits, shape (num_labels,)."""
        return list(self._logits(model, batch).cpu().numpy())

    def _logits(self, model: "nn.Module", batch: "dict[str, Tensor]") -> "Tensor":
        values = self.model_inputs(batch)["pixel_values"]
        first = next(model.parameters(), None) if hasattr(model, "parameters") else None  # an ONNX graph has none
        logits: Tensor = model(pixel_values=values if first is None else values.to(first.dtype)).logits
        return logits.float()

    def _bytes_of(self, cell: Any) -> bytes:
        """The bytes of an image file. Raises BadImageError."""
        if isinstance(cell, bytes):
            return cell
        if isinstance(cell, dict) and cell.get("bytes") is not None:
            return bytes(cell["bytes"])
        path = cell["path"] if isinstance(cell, dict) else cell
        if isinstance(path, str) and path.startswith("data:"):
            return of_base64(path)
        if reason := why_no_image(cell, self.config.image_folder):
            raise BadImageError(reason)
        try:
            filesystem, inner = filesystem_of(_full(path, self.config.image_folder))
            with filesystem.open_input_stream(inner, compression=None) as opened:
                return bytes(opened.read())
        except (OSError, ValueError) as error:
            raise BadImageError(f"can't be read: {str(error).splitlines()[0]}") from None


def why_no_image(cell: Any, folder: str | None) -> str:
    """Why a cell can't be read as an image, or an empty string."""
    if isinstance(cell, dict) and ("bytes" in cell or "path" in cell):
        if cell.get("bytes") is not None:
            return "" if isinstance(cell["bytes"], bytes) else f"has bytes that are {described(cell['bytes'])}"
        cell = cell.get("path")
    if cell is None or (isinstance(cell, str | bytes) and not cell):
        return "is empty"
    if isinstance(cell, bytes):
        return ""
    if not isinstance(cell, str):
        return f"is {described(cell)} and not an image: give the bytes of a file, or its path"
    if cell.startswith("data:") or "://" in cell or cell.startswith(("/", "~")) or folder is not None:
        return ""
    return f"is {cell[:80]!r}, a relative path: set task.image_folder to the folder that it starts from"


def _path_in(cell: Any) -> str:
    """The path of an image for messages; "": it has none."""
    path = cell.get("path") if isinstance(cell, dict) else cell
    return path if isinstance(path, str) and not path.startswith("data:") else ""


def _full(path: str, folder: str | None) -> str:
    is_whole = "://" in path or path.startswith(("/", "~")) or folder is None
    return path if is_whole else f"{(folder or '').rstrip('/')}/{path}"


def picture(pixels: np.ndarray, columns: int = 32) -> str:
    """An image in characters, dark to bright, a line for two rows of pixels. `pixels`: shape (channels, height, width),
    uint8."""
    gray = pixels.mean(0)
    height, width = gray.shape
    across = min(columns, width)
    down = max(1, round(across * height / width / 2))
    rows = np.linspace(0, height - 1, down).round().astype(int)
    places = np.linspace(0, width - 1, across).round().astype(int)
    ramp = " .:-=+*#%@"
    levels = (gray[np.ix_(rows, places)] * (len(ramp) - 1) / 255).round().astype(int)
    return "\n".join("".join(ramp[level] for level in line) for line in levels)
