"""Layers that are compiled compute what they do uncompiled, with the same dropout, at all lengths by the same code."""

from typing import Any

import pytest
import torch
from tiny import TINY_BERT, TINY_GPT
from torch import nn

from raytrain.models.compiled import compile_layers, layers_of, why_no_compiler
from raytrain.models.token_losses import without_cache

LENGTHS = (7, 12, 30, 19, 12)


def losses_and_gradients(model: Any) -> list[torch.Tensor]:
    found = []
    for step, length in enumerate(LENGTHS):
        torch.manual_seed(step)
        ids = torch.randint(5, 30, (3, length))
        mask = torch.ones_like(ids)
        mask[0, length // 2 :] = 0
        loss = model(input_ids=ids, attention_mask=mask, **without_cache(model)).logits.square().mean()
        model.zero_grad()
        loss.backward()
        found += [loss.detach(), *(one.grad.clone() for one in model.parameters() if one.grad is not None)]
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "config"), [("BertForSequenceClassification", TINY_BERT), ("GPT2LMHeadModel", TINY_GPT)]
)
def test_the_same_losses_and_gradients_by_one_graph(name: str, config: dict[str, Any]) -> None:
    import transformers
    from torch._dynamo.utils import counters

    torch.manual_seed(0)
    kinds: Any = getattr(transformers, name)
    model = kinds(transformers.AutoConfig.for_model(**config)).train()
    assert not all(one.p == 0 for one in model.modules() if isinstance(one, nn.Dropout))
    plain = losses_and_gradients(model)
    torch._dynamo.reset()
    counters.clear()
    assert compile_layers(model) == 2
    names = list(model.state_dict())
    for ours, theirs in zip(losses_and_gradients(model), plain, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5)
    assert counters["stats"]["unique_graphs"] == 1, dict(counters)
    assert not counters["graph_break"]
    assert list(model.state_dict()) == names


def test_layers_are_those_of_the_outermost_lists() -> None:
    block = nn.ModuleDict({"heads": nn.ModuleList([nn.Linear(2, 2), nn.Linear(2, 2)])})
    other = nn.Linear(2, 2)
    model = nn.ModuleDict({"layers": nn.ModuleList([block]), "layers_after": nn.ModuleList([other])})
    assert layers_of(model) == [block, other]
    assert layers_of(nn.Linear(2, 2)) == []


@pytest.mark.slow
def test_a_machine_without_a_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch._inductor.config as inductor

    assert why_no_compiler(torch.device("cpu")) is None
    torch._dynamo.reset()
    monkeypatch.setattr(inductor, "force_disable_caches", True)
    monkeypatch.setattr(inductor.cpp, "cxx", ("/nonexistent-compiler",))
    found = why_no_compiler(torch.device("cpu"))
    assert found and "ompiler" in found, found
