"""Sections on images: the task, and what a model takes."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from raytrain.config.base import Affects, Mark, PositiveInt, Section
from raytrain.config.labels import CodeName, Labels

MOST_PIXELS = 89_478_485  # from which on Pillow warns of an image that is made to fill the memory


class ImageClassificationConfig(Section):
    """One label per image, or with `multi_label` any number of labels."""

    kind: Annotated[Literal["image_classification"], Affects.DATA | Affects.SPEED]
    image_column: Annotated[str, Affects.DATA] = "image"
    """Column with the image: the bytes of a file such as a PNG or JPEG, an object with `bytes` or `path` as Hugging
    Face datasets have it, or a path or URI. A folder of images has it."""
    image_folder: Annotated[str | None, Affects.DATA, Mark.PATH] = None
    """Folder that relative paths in the column start from; null: paths must be absolute, or URIs."""
    label_column: Annotated[str, Affects.DATA] = "label"
    """Column with the label: a string or integer; with `multi_label` a list of them. In a folder of images it is the
    name of the sub-folder."""
    labels: Annotated[Labels | None, Affects.DATA] = None
    """The labels in the order of their ids; null: those found in the data, sorted."""
    multi_label: Annotated[bool, Affects.DATA] = False
    """True: each label is decided separately (sigmoid), and an image may have none or several."""
    label_separator: Annotated[str | None, Affects.DATA] = None
    """With `multi_label`: the separator of the labels in a text cell, such as `|`; null: a cell is a list, or the text
    of one, such as ['a', 'b']."""
    max_pixels: Annotated[int, Field(ge=1, le=MOST_PIXELS), Affects.DATA] = MOST_PIXELS
    """Most pixels of an image (width times height). A larger one can't be used, and is not decoded."""
    random_flip: Annotated[bool, Affects.RESULT] = False
    """True: half of the training images are mirrored, left to right; others in each epoch."""
    random_crop: Annotated[float | None, Field(gt=0, lt=1), Affects.RESULT] = None
    """The smallest share of a training image's area that a random crop keeps, which is then resized to the whole;
    others in each epoch. null: no crops."""
    loss: Annotated[CodeName | None, Affects.RESULT] = None
    """package.module:function that gives each sample its loss, from the logits and the true label; null:
    cross-entropy. It is found as `task.target` is."""
    metrics: Annotated[list[CodeName], Affects.RESULT] = []
    """package.module:Class of further metrics, each a subclass of raytrain.tasks.Metric."""
    sources: Annotated[dict[str, str], Affects.RESULT] = {}
    """SHA-256 of the Python files of the packages of `loss` and `metrics`, by their names. raytrain fills it in. A run
    that was started with other files is not resumed."""

    @model_validator(mode="after")
    def _check_separator(self) -> Self:
        if self.label_separator is not None and (not self.multi_label or not self.label_separator.strip()):
            raise ValueError("task.label_separator is a text that is not blank, and needs task.multi_label=true")
        return self


class ImageInputConfig(Section):
    """How an image becomes the input of a model: resized, and each channel scaled to (value / 255 - mean) / std."""

    size: Annotated[PositiveInt | None, Affects.RESULT | Affects.SPEED] = None
    """Width and height in pixels; null: those of the pretrained model. A new model needs it."""
    mean: Annotated[list[float] | None, Affects.RESULT | Affects.SPEED] = None
    """Mean of each channel, three for RGB or one for gray; null: that of the pretrained model, or 0.5."""
    std: Annotated[list[Annotated[float, Field(gt=0)]] | None, Affects.RESULT | Affects.SPEED] = None
    """Standard deviation of each channel, as `mean`."""

    @model_validator(mode="after")
    def _check_channels(self) -> Self:
        if (self.mean is None) != (self.std is None):
            raise ValueError("model.image.mean and model.image.std: give both, or neither")
        if self.mean is not None and (len(self.mean) not in (1, 3) or len(self.mean) != len(self.std or [])):
            raise ValueError("model.image.mean and model.image.std: give three numbers each for RGB, or one for gray")
        return self
