"""What an export can be. No torch."""

from enum import StrEnum


class Format(StrEnum):
    """What is written."""

    HF = "hf"
    ONNX = "onnx"
    ADAPTER = "adapter"
    GGUF = "gguf"


class DType(StrEnum):
    """Of the weights that are written."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"


class TunedFor(StrEnum):
    """What a threshold is chosen by."""

    MICRO_F1 = "micro_f1"
    """One threshold for all labels, with the largest micro F1."""
    MACRO_F1 = "macro_f1"
    """One threshold for all labels, with the largest macro F1."""
    LABELS = "labels"
    """One for each label, with the largest F1 of it; macro F1, their mean, is the largest too."""
