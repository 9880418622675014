"""What an export can be. No torch."""

from enum import StrEnum


class Format(StrEnum):
    """What is written."""

    HF = "hf"
    ONNX = "onnx"
    ADAPTER = "adapter"


class DType(StrEnum):
    """Of the weights that are written."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
