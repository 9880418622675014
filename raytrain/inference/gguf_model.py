"""A language model of Llama's kin as a GGUF file, the format of llama.cpp: writing it, and reading it back with
Transformers (extra `[gguf]`).

The names of the weights are those of the package `gguf` of ggml-org. What Transformers does not read from a file, such
as scaled rotary positions, is refused: it could not be compared, and would be wrong in silence.
"""

from typing import TYPE_CHECKING, Any

import numpy as np

from raytrain.data.stages.packages import needed
from raytrain.errors import ConfigError
from raytrain.inference.formats import DType
from raytrain.inference.gguf_tokenizer import gguf_tokenizer

if TYPE_CHECKING:
    from torch import Tensor

FILE = "model.gguf"
FAMILIES = {"llama": "llama", "mistral": "llama", "qwen2": "qwen2", "qwen3": "qwen3"}
"""Model type of Transformers -> architecture of llama.cpp."""
HEAD_WIDTH_OF_QWEN3 = 128  # Transformers does not read another one
FILE_TYPES = {DType.FP32: "ALL_F32", DType.FP16: "MOSTLY_F16", DType.BF16: "MOSTLY_BF16"}
"""Names of gguf.LlamaFileType."""


def _needed(module: str) -> Any:
    return needed(module, "--format gguf", "gguf")


def check_gguf(model: Any) -> None:
    """Raises ConfigError for a model that can't be written, or not read back, and where the packages are missing."""
    for module in ("gguf", "accelerate"):  # Transformers reads the format with both
        _needed(module)
    config, name = model.config, type(model).__name__
    if config.model_type not in FAMILIES or not name.endswith("ForCausalLM"):
        raise ConfigError(
            f"--format gguf: {name} can't be written. GGUF is for language models (task.kind causal_lm, chat, "
            f"preference) of the types {', '.join(FAMILIES)}. Export it with --format hf"
        )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    rope = config.rope_parameters or {}
    window = getattr(config, "sliding_window", None)
    has_window = window and window < config.max_position_embeddings and getattr(config, "use_sliding_window", True)
    even = config.hidden_size // config.num_attention_heads
    problems = {
        f"its positions are scaled (rope_type {rope.get('rope_type')})": rope.get("rope_type", "default") != "default",
        "only a part of each head is rotated": rope.get("partial_rotary_factor", 1.0) != 1.0,
        f"its attention has a window of {window} tokens": has_window,
        "its attention has biases": config.model_type != "qwen2" and getattr(config, "attention_bias", False),
        "its MLP has biases": getattr(config, "mlp_bias", False),
        f"its activation is {config.hidden_act} and not silu": config.hidden_act != "silu",
        f"its heads are {width} wide and not {even}": config.model_type == "qwen2" and width != even,
        f"its heads are {width} wide and not {HEAD_WIDTH_OF_QWEN3}": config.model_type == "qwen3"
        and width != HEAD_WIDTH_OF_QWEN3,
    }
    if found := [why for why, is_so in problems.items() if is_so]:
        raise ConfigError(
            f"--format gguf: {found[0]}, which Transformers does not read from a GGUF file, so that the file can't be "
            "compared with the trained model. Export it with --format hf, and convert that with llama.cpp's own script"
        )


def write_gguf(model: Any, tokenizer: Any, name: str, dtype: DType, path: str) -> None:
    """Write a model that `check_gguf` allows, with its tokenizer.

    Args:
        model: On the CPU, fp32, without an adapter.
        name: Of the model, for people.
        dtype: Of the matrices. Vectors, such as the weights of norms, are fp32, as llama.cpp needs them.

    Raises ConfigError when the tokenizer can't be written.
    """
    gguf, config = _needed("gguf"), model.config
    kind = FAMILIES[config.model_type]
    writer = gguf.GGUFWriter(path, kind)
    writer.add_name(name)
    writer.add_file_type(getattr(gguf.LlamaFileType, FILE_TYPES[dtype]))
    _add_shape(writer, config)
    _add_tokenizer(writer, tokenizer, model.get_input_embeddings().weight.shape[0], model.generation_config)
    arch = next(key for key, value in gguf.MODEL_ARCH_NAMES.items() if value == kind)
    names = gguf.get_tensor_name_map(arch, config.num_hidden_layers)
    weights = {}
    for own, weight in model.state_dict().items():
        if own == "lm_head.weight" and config.tie_word_embeddings:
            continue  # a file without it has a tied head
        known = names.get_name(own, try_suffixes=(".weight", ".bias"))
        if known is None:
            raise ConfigError(f"--format gguf: the weight {own} has no name in the format. Export it with --format hf")
        weights[known] = (own, weight)
    try:
        for known, (_, weight) in weights.items():
            array, raw = _stored(gguf, weight[:1], dtype, weight.ndim)
            shape = (weight.shape[0], *array.shape[1:]) if weight.ndim > 1 else weight.shape
            num_bytes = array.nbytes * weight.shape[0]
            writer.add_tensor_info(known, shape, array.dtype, num_bytes, raw)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_ti_data_to_file()
        for own, weight in weights.values():  # one after the other: never all of them twice in memory
            writer.write_tensor_data(_stored(gguf, _rotated(own, weight, config), dtype, weight.ndim)[0])
    finally:
        writer.close()


def _add_shape(writer: Any, config: Any) -> None:
    """Write what the model is like, without its weights."""
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_key_length(width)
    writer.add_value_length(width)
    writer.add_rope_dimension_count(width)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_vocab_size(config.vocab_size)


def _add_tokenizer(writer: Any, tokenizer: Any, num_rows: int, generation: Any) -> None:
    """Write the tokenizer. An answer may end with another token than a text: that of the generation config."""
    found = gguf_tokenizer(tokenizer, num_rows)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(found.pre)
    writer.add_token_list(found.tokens)
    writer.add_token_types(found.kinds)
    writer.add_token_merges(found.merges)
    for name, place in found.ids.items():
        getattr(writer, f"add_{name}_token_id")(place)
    writer.add_add_bos_token(found.adds["bos"])
    writer.add_add_eos_token(found.adds["eos"])
    ends = getattr(generation, "eos_token_id", None)
    others = [one for one in (ends if isinstance(ends, list) else [ends]) if one not in (None, found.ids.get("eos"))]
    if others:
        writer.add_eot_token_id(others[0])
    if found.template is not None:
        writer.add_chat_template(found.template)


def _rotated(name: str, weight: "Tensor", config: Any) -> "Tensor":
    """The rows of queries and keys in llama.cpp's order: for `llama` it rotates neighbours, rows 2i and 2i + 1 of a
    head, where Transformers rotates rows i and i + width / 2. For other architectures their order is the same."""
    part = name.rsplit(".", 2)[-2]
    if FAMILIES[config.model_type] != "llama" or part not in ("q_proj", "k_proj"):
        return weight
    heads = config.num_attention_heads if part == "q_proj" else config.num_key_value_heads
    halves = weight.reshape(heads, 2, weight.shape[0] // heads // 2, *weight.shape[1:])
    return halves.transpose(1, 2).reshape(weight.shape)


def _stored(gguf: Any, weight: "Tensor", dtype: DType, ndim: int) -> tuple[np.ndarray, Any]:
    """(a weight as it is stored, its type where numpy has none)."""
    array = weight.detach().float().contiguous().numpy()
    if ndim < 2 or dtype == DType.FP32:
        return array, None
    if dtype == DType.FP16:
        with np.errstate(over="ignore"):  # what overflows is found by the comparison
            return array.astype(np.float16), None
    bits = gguf.GGMLQuantizationType.BF16
    return gguf.quants.quantize(array, bits), bits


def read_gguf(folder: str) -> Any:
    """The model of a folder that an export has written, fp32. Raises ConfigError where the packages are missing."""
    import torch
    from transformers import AutoModelForCausalLM

    from raytrain.models.build import quiet_transformers

    for module in ("gguf", "accelerate"):
        _needed(module)
    with quiet_transformers():
        return AutoModelForCausalLM.from_pretrained(folder, gguf_file=FILE, dtype=torch.float32)
