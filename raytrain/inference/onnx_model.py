"""A model as an ONNX graph: writing it with torch's exporter, and answering with onnxruntime (extra `[onnx]`)."""

import contextlib
import logging
import warnings
from collections.abc import Iterator, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, Self

from raytrain.data.stages.packages import needed
from raytrain.errors import ConfigError, first_line

if TYPE_CHECKING:
    from torch import Tensor, nn

GRAPH = "model.onnx"
OPSET = 20
# Sizes of the batch that the graph is traced with. Neither may be 1, which the exporter would take for a constant.
TRACED_SAMPLES, TRACED_TOKENS = 3, 7


def _needed(module: str) -> Any:
    return needed(module, "--format onnx", "onnx")


def write_graph(model: "nn.Module", inputs: "Mapping[str, Tensor]", path: str) -> None:
    """Write a graph with a dynamic number of samples and tokens. The size of images is fixed.

    Args:
        model: One of Transformers with a head, on the CPU.
        inputs: What it is called with: each of shape (num_samples, num_tokens), int64, or images of shape (num_samples,
            channels, height, width), fp32. Its values do not matter.

    Raises ConfigError when the model has operators that ONNX lacks, or depends on the sizes of its inputs.
    """
    import torch

    for module in ("onnx", "onnxscript", "onnxruntime"):
        _needed(module)
    names = tuple(inputs)

    class Logits(torch.nn.Module):
        """Takes exactly the inputs of the graph, and returns the logits alone."""

        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, *values: "Tensor") -> "Tensor":
            logits: Tensor = self.model(**dict(zip(names, values, strict=True))).logits
            return logits.float()

    batch, length = torch.export.Dim("batch"), torch.export.Dim("length")
    traced = tuple(_resized(inputs[name]) for name in names)
    try:
        with _quiet():
            torch.onnx.export(
                Logits().eval(),
                traced,
                path,
                dynamo=True,
                opset_version=OPSET,
                input_names=list(names),
                output_names=["logits"],
                dynamic_shapes=(tuple({0: batch, 1: length} if one.ndim == 2 else {0: batch} for one in traced),),
                external_data=False,
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise ConfigError(
            f"--format onnx: {type(model).__name__} can't be written as an ONNX graph ({first_line(str(error))}). "
            "Export it with --format hf"
        ) from error


def _resized(values: "Tensor") -> "Tensor":
    """The first values, repeated to the sizes that are traced."""
    if values.ndim > 2:
        return values[:1].repeat(TRACED_SAMPLES, *[1] * (values.ndim - 1)).clone()
    flat = values.reshape(-1)
    count = TRACED_SAMPLES * TRACED_TOKENS
    return flat.repeat(-(-count // len(flat)))[:count].reshape(TRACED_SAMPLES, TRACED_TOKENS).clone()


def quantize(path: str, out: str) -> None:
    """Write a graph whose weights of matrix products are int8, with scales of each output channel."""
    quantization = _needed("onnxruntime.quantization")
    kinds = ["MatMul", "Gemm"]
    with _quiet():
        quantization.quantize_dynamic(
            path, out, weight_type=quantization.QuantType.QInt8, per_channel=True, op_types_to_quantize=kinds
        )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the remarks of the exporters: on packages that are not needed, and that the inputs share their sizes,
    which is meant."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


class OnnxModel:
    """Answers like the model of Transformers that the graph was made of, on the CPU."""

    def __init__(self, path: str, config: Any = None):
        """`config`: that of Transformers."""
        import torch

        runtime = _needed("onnxruntime")
        options = runtime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self._session = runtime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
        self._names = [one.name for one in self._session.get_inputs()]
        self.config, self.device = config, torch.device("cpu")

    def eval(self) -> Self:
        """Itself: a graph has no dropout."""
        return self

    def to(self, device: Any) -> Self:
        """Itself: the graph stays on the CPU."""
        return self

    def __call__(self, **inputs: "Tensor") -> SimpleNamespace:
        """`logits`, fp32."""
        import torch

        (logits,) = self._session.run(["logits"], {name: inputs[name].numpy() for name in self._names})
        return SimpleNamespace(logits=torch.from_numpy(logits))
