"""A tiny config of each architecture that Transformers can classify with, made from its default by general rules."""

from typing import Any

import torch
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES as SEQUENCE,
)
from transformers.models.auto.modeling_auto import (
    MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES as TOKEN,
)

AUTO_CLASSES = {
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
}
ALL = [("sequence", name) for name in sorted(SEQUENCE)] + [("token", name) for name in sorted(TOKEN)]
WIDTH, HEADS, HEAD_WIDTH, NUM_POSITIONS, VOCABULARY = 32, 2, 16, 40, 64
# (value in a tiny model, the fields of any config that have it); a smaller default stays.
SMALL: list[tuple[int, str]] = [
    (VOCABULARY, "vocab_size n_words entity_vocab_size vocab_size_per_layer_input"),
    (WIDTH, "hidden_size d_model n_embd dim emb_dim word_embed_proj_dim embedding_size entity_emb_size d_latents"),
    (2 * WIDTH, "intermediate_size ffn_dim encoder_ffn_dim decoder_ffn_dim d_ff d_inner dff n_inner hidden_dim"),
    (2 * WIDTH, "ffn_hidden_size moe_intermediate_size mlp_hidden_size intermediate_dim"),
    (2 * WIDTH, "shared_expert_intermediate_size"),
    (2, "num_hidden_layers num_layers n_layer n_layers encoder_layers decoder_layers num_decoder_layers"),
    (HEADS, "num_attention_heads num_heads n_head n_heads encoder_attention_heads decoder_attention_heads"),
    (HEADS, "num_key_value_heads num_kv_heads"),
    (2, "num_experts_per_tok"),
    (4, "num_experts num_local_experts n_routed_experts moe_num_experts"),
    (HEAD_WIDTH, "head_dim d_kv d_head global_head_dim attention_head_size"),
    (NUM_POSITIONS, "max_position_embeddings n_positions max_seq_len n_ctx max_2d_position_embeddings"),
]
SIZES = {name: size for size, names in SMALL for name in names.split()}
# What no general rule says: fields that depend on each other, or that the default leaves to the user.
LATENT = {"qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 16, "q_lora_rank": 16, "kv_lora_rank": 16}
LATENT |= {"n_group": 1, "topk_group": 1, "head_dim": 8}
MORE: dict[str, dict[str, Any]] = {
    "axk1": LATENT,
    "deepseek_v2": {**LATENT, "num_experts_per_tok": 2},
    "deepseek_v3": LATENT,
    "esm": {"vocab_size": VOCABULARY, "mask_token_id": 4},
    "gpt_neo": {"attention_types": [[["global", "local"], 1]]},
    "gptj": {"rotary_dim": 8},
    "hunyuan_v1_dense": {"head_dim": HEAD_WIDTH},
    "hunyuan_v1_moe": {"head_dim": HEAD_WIDTH},
    "jamba": {"attn_layer_period": 2, "attn_layer_offset": 1},
    "layoutlmv3": {"coordinate_size": 6, "shape_size": 4, "has_spatial_attention_bias": False},
    "lilt": {"channel_shrink_ratio": 4, "hidden_size": 48},
    "longformer": {"attention_window": 8},
    "ministral": {"head_dim": HEAD_WIDTH},
    "mobilebert": {"intra_bottleneck_size": 32, "embedding_size": 32, "true_hidden_size": 32},
    "nemotron": {"head_dim": HEAD_WIDTH, "num_key_value_heads": HEADS},
    "qwen3_5_text": {"layer_types": ["linear_attention", "full_attention"]},
    "qwen3_next": {"layer_types": ["linear_attention", "full_attention"]},
    "reformer": {"axial_pos_embds": False},
    "roc_bert": {"pronunciation_vocab_size": VOCABULARY, "shape_vocab_size": VOCABULARY},
    "t5": {"decoder_start_token_id": 0},
    "xmod": {"default_language": "en_XX"},
}
# Not tried, and why.
NOT_TINY = {
    "bros": "needs the box of each word on its page",
    "cohere_compass_text": "its default config has no rotary parameters",
    "layoutlmv2": "needs detectron2",
    "mistral4": "its rotary parameters depend on sizes of its attention",
    "qwen3_5": "qwen3_5_text with images",
    "qwen3_asr": "hears, and its audio encoder stays large",
    "zamba": "the weights that its layers share depend on its number of layers",
    "zamba2": "as zamba",
}
SPECIAL = {"pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3}  # as in tests/tiny.py
FAMILIES = [(kind, name) for kind, name in ALL if name not in NOT_TINY]
COMMON = ("bert", "deberta-v2", "distilbert", "electra", "gemma3", "gpt2", "llama", "modernbert", "qwen3", "roberta")


def is_long_tail(kind: str, family: str) -> bool:
    """Whether it is tried by `make test-all` only. Others stand for it: one of each kind of positions and padding."""
    return family not in COMMON + (("albert", "bart", "opt", "t5", "xlnet") if kind == "sequence" else ())


def tiny_config(family: str) -> dict[str, Any]:
    """The fields of `model.config`."""
    return {"model_type": family, **_shrunk(CONFIG_MAPPING[family]().to_dict()), **MORE.get(family, {})}


def _shrunk(fields: dict[str, Any]) -> dict[str, Any]:
    small: dict[str, Any] = {}
    for name, value in fields.items():
        if isinstance(value, dict) and ("model_type" in value or name.endswith("config")):
            small[name] = _shrunk(value)
        elif name in SPECIAL:
            small[name] = SPECIAL[name]
        elif name in SIZES and isinstance(value, int) and value > 0:
            small[name] = min(value, SIZES[name])
    return small


def enlarge(model: torch.nn.Module, factor: float = 4.0) -> None:
    """Multiply the matrices, so that a leak from padding shows: new weights are so small that texts are alike."""
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(factor)
