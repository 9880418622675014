"""The loss of many logits, computed a chunk at a time: the same gradient in less memory, where it may be done."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from raytrain.models import token_losses
from raytrain.models.token_losses import loss_sum_at_targets, losses_at_targets
from raytrain.tasks.base import IGNORED

VOCABULARY, POSITIONS = 101, 24
MEMORY: dict[str, Any] = {"activities": [torch.profiler.ProfilerActivity.CPU], "profile_memory": True}


@pytest.fixture
def chunked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Any number of logits is computed five at a time. Returns the numbers of targets of each such call."""
    monkeypatch.setattr(token_losses, "LARGE_ELEMENTS", 0)
    monkeypatch.setattr(token_losses, "HEAD_ELEMENTS", 5 * VOCABULARY)
    calls: list[int] = []
    apply = token_losses._HeadLosses.apply

    def counted(*args: Any) -> Tensor:
        calls.append(len(args[0]))
        return apply(*args)

    monkeypatch.setattr(token_losses._HeadLosses, "apply", counted)
    return calls


def model_of(kind: str, **changes: Any) -> Any:
    from transformers import AutoModelForCausalLM
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    torch.set_num_threads(1)
    torch.manual_seed(0)
    fields = {"vocab_size": VOCABULARY, "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1}
    config = CONFIG_MAPPING[kind](**fields, num_attention_heads=2, num_key_value_heads=2, head_dim=8, **changes)
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # so that predictions differ
    return model


def tied() -> Any:
    return model_of("llama", tie_word_embeddings=True)


def with_bias() -> Any:
    model = model_of("llama")
    model.lm_head = torch.nn.Linear(16, VOCABULARY)
    return model


def with_frozen_head() -> Any:
    model = model_of("llama")
    model.lm_head.weight.requires_grad_(False)
    return model


def with_frozen_body() -> Any:
    model = model_of("llama")
    model.model.requires_grad_(False)
    return model


def with_adapted_head() -> Any:
    peft = pytest.importorskip("peft")
    model = peft.inject_adapter_in_model(peft.LoraConfig(target_modules=["lm_head", "q_proj"]), model_of("llama"))
    torch.nn.init.normal_(model.lm_head.lora_B["default"].weight)
    return model


def with_hook() -> Any:
    """As ZeRO-3, which has the weights during a call alone."""
    model = model_of("llama")
    model.lm_head.register_forward_pre_hook(lambda _, args: args)
    return model


def capped() -> Any:
    return model_of("gemma2", final_logit_softcapping=2.0)


def scaled() -> Any:
    return model_of("granite", logits_scaling=8.0)


def batch() -> tuple[dict[str, Tensor], Tensor]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, VOCABULARY, (2, POSITIONS), generator=generator)
    labels = ids.roll(-1, 1)
    labels[torch.rand(ids.shape, generator=generator) < 0.3] = IGNORED
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, labels


def gradients(model: Any, loss: Tensor) -> dict[str, Tensor]:
    model.zero_grad()
    (loss * 0.37).backward()
    return {name: one.grad.clone() for name, one in model.named_parameters() if one.grad is not None}


@pytest.mark.parametrize("make", [tied, with_bias, with_frozen_head, with_frozen_body, with_adapted_head])
def test_chunks_have_the_plain_gradient(chunked: list[int], make: Callable[[], Any]) -> None:
    model, (inputs, labels) = make(), batch()
    plain = functional.cross_entropy(model(**inputs).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    wanted = gradients(model, plain)
    for _ in range(2):  # the first call also finds out whether the head's output are the logits
        loss = loss_sum_at_targets(model, inputs, labels)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
        found = gradients(model, loss)
        assert found.keys() == wanted.keys()
        for name, gradient in found.items():
            assert torch.allclose(gradient, wanted[name], rtol=1e-4, atol=1e-5 * float(wanted[name].abs().max())), name
    assert chunked == 2 * [int((labels != IGNORED).sum())]


@pytest.mark.parametrize("make", [capped, scaled, with_hook])
def test_heads_that_can_not_be_chunked_are_not(chunked: list[int], make: Callable[[], Any]) -> None:
    model, (inputs, labels) = make(), batch()
    plain = functional.cross_entropy(model(**inputs).logits.flatten(0, 1), labels.flatten(), reduction="sum")
    for _ in range(2):
        loss = loss_sum_at_targets(model, inputs, labels)
        assert loss.item() == pytest.approx(plain.item(), rel=1e-5)
    assert chunked == []


def test_a_batch_without_targets_reaches_all_weights(chunked: list[int]) -> None:
    model, (inputs, labels) = tied(), batch()
    loss = loss_sum_at_targets(model, inputs, torch.full_like(labels, IGNORED))
    found = gradients(model, loss)
    assert loss.item() == 0.0
    assert found.keys() == dict(model.named_parameters()).keys()
    assert not any(gradient.any() for gradient in found.values())
    assert chunked == [1]


def test_peak_memory_is_less_than_half_of_a_plain_loss() -> None:
    vocabulary, positions = 49_152, 2_048
    from transformers import LlamaConfig, LlamaForCausalLM

    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=vocabulary, **sizes))
    ids = torch.arange(positions)[None]

    def plain() -> Tensor:
        logits = model(input_ids=ids, use_cache=False).logits
        return functional.cross_entropy(logits.float().flatten(0, 1), ids.flatten(), reduction="sum")

    def kept() -> Tensor:
        return losses_at_targets(model, {"input_ids": ids}, ids)[0].sum()

    def chunked() -> Tensor:
        return loss_sum_at_targets(model, {"input_ids": ids}, ids)

    peaks = [_peak_bytes(model, make) for make in (plain, kept, chunked)]
    logits = 4 * vocabulary * positions
    assert peaks[0] > 2.9 * logits
    assert peaks[1] < 2.3 * logits
    assert peaks[2] < 0.3 * peaks[0]


def _peak_bytes(model: Any, make: Callable[[], Tensor]) -> int:
    """The most bytes that the tensors of a forward and a backward pass hold at a time."""
    model.zero_grad()
    with torch.profiler.profile(**MEMORY) as profile:
        make().backward()
    held, most = 0, 0
    events: Any = profile.profiler.kineto_results.events()  # type: ignore[union-attr]
    for event in sorted(events, key=lambda one: one.start_ns()):
        if event.name() == "[memory]":
            held += event.nbytes()
            most = max(most, held)
    return most
