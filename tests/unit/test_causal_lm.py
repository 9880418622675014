"""Language models: documents as samples, the loss of each token, and what padding must not change."""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from saved_models import save_best
from tiny import TINY_BERT, TINY_GPT, byte_tokenizer, context, tiny_tokenizer
from torch.nn import functional
from transformers import GenerationConfig

import raytrain
from raytrain.config import CausalLmConfig, ModelConfig, RunConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.models import token_losses
from raytrain.models.tokenizer import load_tokenizer
from raytrain.sizing.shape import shape_on_meta
from raytrain.tasks import make_task
from raytrain.tasks.base import IGNORED
from raytrain.tasks.predicting import PLAIN, Decoding
from raytrain.training.evaluate import to_tensors

TEXTS = ["a fine film", "é", "no story, no plot and no ending at all", "café au lait: 5 €, 𝄞"]
ROWS = pa.table({"text": TEXTS})
CPU = torch.device("cpu")
END = 256


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    torch.set_num_threads(1)  # more would wait for each other: the models are tiny
    return byte_tokenizer(tmp_path_factory.mktemp("bytes"))


@pytest.fixture(scope="module")
def tokenizer(folder: str) -> Any:
    return load_tokenizer(ModelConfig(config=TINY_GPT, tokenizer=folder))


def task_of(max_length: int = 16) -> Any:
    return make_task(CausalLmConfig(kind="causal_lm"), max_length)


def build(folder: str, dropout: float = 0.0, **config: Any) -> Any:
    torch.manual_seed(0)
    model = ModelConfig(config={**TINY_GPT, **config}, tokenizer=folder)
    built = task_of().build_model(model, {}, TrainingConfig(dropout=dropout))
    with torch.no_grad():
        for parameter in built.parameters():
            if parameter.ndim > 1:
                parameter.mul_(6)  # so that predictions differ
    return built


def samples(tokenizer: Any, max_length: int = 16) -> pa.Table:
    task = task_of(max_length)
    return task.encode_targets(ROWS, task.encode_inputs(ROWS, tokenizer).table, {})


def plain_losses(model: Any, ids: list[int]) -> torch.Tensor:
    logits = model(input_ids=torch.tensor([ids])).logits[0, :-1].float()
    return functional.cross_entropy(logits, torch.tensor(ids[1:]), reduction="none")


@pytest.mark.parametrize("max_length", [2, 3, 16, 200])
def test_each_token_but_the_first_is_a_target_once(tokenizer: Any, max_length: int) -> None:
    inputs = task_of(max_length).encode_inputs(ROWS, tokenizer)
    for row, text in enumerate(TEXTS):
        of_row = inputs.table.filter(pa.array(inputs.first_rows == row))
        ids = of_row["input_ids"].to_pylist()
        assert all(2 <= len(one) <= max_length for one in ids)
        whole = [*tokenizer(text)["input_ids"], END]
        assert [ids[0][0], *(token for one in ids for token in one[1:])] == whole
        first = 2 if text == "é" else len(text[0].encode())  # both tokens of é end where it does
        assert sum(of_row["num_bytes"].to_pylist()) == len(text.encode()) - first
    assert inputs.num_truncated == 0


@pytest.mark.parametrize("max_length", [2, 5, 16, 200])
def test_joined_documents_make_full_samples(tokenizer: Any, max_length: int) -> None:
    """Each token but the very first is a target once, and stands for its bytes; a sample knows its rows."""
    task = make_task(CausalLmConfig(kind="causal_lm", cut="stream"), max_length)
    encoded = task.encode(ROWS, tokenizer, {})
    ids = encoded.table["input_ids"].to_pylist()
    whole = [token for text in TEXTS for token in (*tokenizer(text)["input_ids"], END)]
    assert [ids[0][0], *(token for one in ids for token in one[1:])] == whole
    assert {len(one) for one in ids[:-1]} <= {max_length}
    assert 2 <= len(ids[-1]) <= max_length
    assert sum(encoded.table["num_bytes"].to_pylist()) == sum(len(text.encode()) for text in TEXTS) - 1
    rows = [row for row, text in enumerate(TEXTS) for _ in (*tokenizer(text)["input_ids"], END)]
    firsts = [rows[0], *(rows[1 + place * (max_length - 1)] for place in range(1, len(ids)))]
    assert encoded.first_rows is not None
    assert encoded.first_rows.tolist() == firsts
    # A prediction is one of a document, as before.
    assert task.encode_inputs(ROWS, tokenizer).table.equals(task_of(max_length).encode_inputs(ROWS, tokenizer).table)
    assert len(task.encode(ROWS.slice(0, 0), tokenizer, {}).table) == 0


def test_a_row_that_can_not_be_used_is_left_out_of_the_joined_ones(tokenizer: Any) -> None:
    rows = pa.table({"text": ["ab", None, "cd", " ", "ef"]})
    encoded = make_task(CausalLmConfig(kind="causal_lm", cut="stream"), 4).encode(rows, tokenizer, {})
    assert [one.row for one in encoded.rejected] == [1, 3]
    texts = [tokenizer.decode(ids).replace("<|endoftext|>", ".") for ids in encoded.table["input_ids"].to_pylist()]
    assert texts == ["ab.c", "cd.e", "ef."]
    assert encoded.first_rows is not None
    assert encoded.first_rows.tolist() == [0, 2, 4]


def test_targets_follow_lengths_and_not_the_token_for_padding(tokenizer: Any) -> None:
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == END
    table = samples(tokenizer)
    batch = task_of().collate(table, context(len(table), pad_token_id=END))
    for ids, labels in zip(table["input_ids"].to_pylist(), batch["labels"], strict=True):
        assert labels[: len(ids) - 1].tolist() == ids[1:]
        assert set(labels[len(ids) - 1 :]) <= {IGNORED}
    assert task_of().target_weight(batch) == sum(len(ids) - 1 for ids in table["input_ids"].to_pylist())


@pytest.mark.parametrize("chunk", [100, 1 << 22])
def test_losses_and_gradients_are_the_plain_ones(
    monkeypatch: pytest.MonkeyPatch, folder: str, tokenizer: Any, chunk: int
) -> None:
    monkeypatch.setattr(token_losses, "CHUNK_ELEMENTS", chunk * 257)
    table, model = samples(tokenizer), build(folder)
    task = task_of()
    wanted = sum(plain_losses(model, ids).sum() for ids in table["input_ids"].to_pylist())
    wanted.backward()
    gradients = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    batch = to_tensors(task.collate(table, context(len(table), pad_token_id=END)), CPU)
    loss = task.loss_sum(model, batch)
    loss.backward()
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-6)
    for name, parameter in model.named_parameters():
        scale = gradients[name].abs().max().item()
        assert torch.allclose(parameter.grad, gradients[name], atol=1e-6 * max(1.0, scale), rtol=1e-5), name


def test_a_blank_batch_goes_through_the_model_and_leaves_no_gradient(folder: str, tokenizer: Any) -> None:
    table, model, task = samples(tokenizer), build(folder), task_of()
    batch = task.blank(task.collate(table, context(len(table), pad_token_id=END)))
    loss = task.loss_sum(model, to_tensors(batch, CPU))
    loss.backward()
    assert loss.item() == 0.0
    with torch.no_grad():
        assert task.predict(model, to_tensors(batch, CPU))[1] == task.targets(batch) == []
    used = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(used) == len(list(model.parameters()))
    assert not any(grad.any() for grad in used)


def test_scores_are_those_of_all_documents_in_any_order(folder: str, tokenizer: Any) -> None:
    table, model, task = samples(tokenizer), build(folder).eval(), task_of()
    with torch.no_grad():
        each = [plain_losses(model, ids) for ids in table["input_ids"].to_pylist()]
        loss = torch.cat(each).double()
        found = []
        for parts in ([slice(0, len(table))], [slice(4, len(table)), slice(0, 4)]):
            scores = task.scores({})
            for part in parts:
                other = task.scores({})
                rows = table.slice(part.start, part.stop - part.start)
                batch = task.collate(rows, context(len(rows), pad_token_id=END))
                other.update(task.predict(model, to_tensors(batch, CPU))[1], task.targets(batch))
                scores.merge(other.state())
            found.append(scores.compute().values)
    num_bytes = sum(len(text.encode()) - (2 if text == "é" else 1) for text in TEXTS)
    for values in found:
        assert values["perplexity"] == pytest.approx(math.exp(loss.mean()), rel=1e-5)
        assert values["bits_per_byte"] == pytest.approx(loss.sum().item() / math.log(2) / num_bytes, rel=1e-5)
    assert found[0] == pytest.approx(found[1], rel=1e-6)
    assert found[0]["token_accuracy"] == found[1]["token_accuracy"]
    assert task.scores({}).compute().values == {}


def test_a_prediction_is_the_loss_of_a_whole_document(folder: str, tokenizer: Any) -> None:
    task, model = task_of(), build(folder).eval()
    inputs = task.encode_inputs(ROWS, tokenizer).table
    with torch.no_grad():
        outputs = task.infer(model, to_tensors(task.collate_inputs(inputs, END), CPU))
        told = task.decode(outputs, inputs, ROWS, {}, PLAIN).to_pylist()
        for row, text in zip(told, TEXTS, strict=True):
            ids = [*tokenizer(text)["input_ids"], END]
            parts = [plain_losses(model, ids[i : i + 16]) for i in range(0, len(ids) - 1, 15)]
            assert row["num_tokens"] == len(ids) - 1
            assert row["loss"] == pytest.approx(torch.cat(parts).mean().item(), abs=1e-5)


def test_a_tied_head_stays_tied(folder: str, tmp_path: Path) -> None:
    model = build(folder)
    assert model.lm_head.weight is model.transformer.wte.weight
    task_of().save_model(model, model.state_dict(), str(tmp_path))
    loaded = task_of().load_model(str(tmp_path), ModelConfig(config=TINY_GPT, tokenizer=folder), {}, TrainingConfig())
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(loaded.lm_head.weight, model.lm_head.weight)
    assert (loaded.config.eos_token_id, loaded.config.pad_token_id) == (END, None)


LLAMA = {
    "model_type": "llama",
    "vocab_size": 257,
    "hidden_size": 16,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 32,
}


@pytest.mark.parametrize("kind", ["llama", "bert", "gemma2"])
def test_other_families(folder: str, tokenizer: Any, kind: str) -> None:
    """An encoder becomes a decoder; Gemma's logits are changed after the head."""
    config = {
        "llama": LLAMA,
        "bert": {**TINY_BERT, "vocab_size": 257},
        "gemma2": {**LLAMA, "model_type": "gemma2", "num_key_value_heads": 2, "head_dim": 8},
    }[kind]
    torch.manual_seed(0)
    task, table = task_of(), samples(tokenizer)
    model: Any = task.build_model(ModelConfig(config=config, tokenizer=folder), {}, TrainingConfig(dropout=0.0)).eval()
    loss = task.loss_sum(model, to_tensors(task.collate(table, context(len(table), pad_token_id=END)), CPU))
    wanted = sum(plain_losses(model, ids).sum().item() for ids in table["input_ids"].to_pylist())
    assert loss.item() == pytest.approx(wanted, rel=1e-5)


@pytest.mark.parametrize(
    ("config", "word"),
    [
        ({"model_type": "xlnet", "vocab_size": 257, "d_model": 16, "n_layer": 1, "n_head": 2}, "later ones in view"),
        ({"model_type": "vit"}, "no causal language model of type 'vit'"),
    ],
)
def test_models_that_are_no_causal_ones_are_refused(folder: str, config: dict[str, Any], word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        task_of().build_model(ModelConfig(config=config, tokenizer=folder), {}, TrainingConfig())


def test_a_tokenizer_without_an_end_and_too_little_room_are_refused(tmp_path: Path, tokenizer: Any) -> None:
    words = load_tokenizer(ModelConfig(config=TINY_BERT, tokenizer=tiny_tokenizer(tmp_path)))
    with pytest.raises(ConfigError, match="no end-of-text token"):
        task_of().encode_inputs(ROWS, words)
    with pytest.raises(ConfigError, match="data.max_length 1 .* at least 2"):
        task_of(1).encode_inputs(ROWS, tokenizer)


def test_bad_rows_are_named() -> None:
    rows = pa.table({"text": ["good", "", None, "  "]})
    assert [(one.row, one.reason) for one in task_of().check_inputs(rows)] == [
        (row, "text is empty") for row in (1, 2, 3)
    ]


def run_of(folder: str, max_length: int) -> RunConfig:
    return RunConfig.model_validate(
        {
            "name": "lm",
            "model": {"config": TINY_GPT, "tokenizer": folder},
            "task": {"kind": "causal_lm"},
            "data": {"train": {"path": "unused"}, "max_length": max_length},
        }
    )


def test_plan_counts_the_logits_and_compares_positions(folder: str) -> None:
    shape = shape_on_meta(run_of(folder, 32), task_of(32), {})
    assert shape.vocabulary == 257
    assert shape.num_parameters == sum(p.numel() for p in build(folder).parameters())
    with pytest.raises(ConfigError, match="more than the 32 positions"):
        shape_on_meta(run_of(folder, 33), task_of(33), {})


def test_memory_of_a_long_text_is_less_than_that_of_a_plain_loss() -> None:
    """What autograd keeps beside the logits themselves is a number for each token."""
    logits = torch.randn(300, 1000, requires_grad=True)
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.numel()) or t, lambda t: t):
        token_losses._TokenLosses.apply(logits, torch.zeros(300, dtype=torch.long), 0.0).sum()
    assert sum(kept) <= logits.numel() + 2 * 300
    assert np.isfinite(logits.detach().numpy()).all()


@pytest.fixture(scope="module")
def best(folder: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A best/ folder."""
    run = tmp_path_factory.mktemp("run")
    config = run_of(folder, 16)
    model = config.model.model_copy(update={"config": {**TINY_GPT, "initializer_range": 0.2}})
    return save_best(config.model_copy(update={"model": model}), {}, run)


class TestPredicting:
    def test_is_the_loss_of_the_evaluation(self, best: str) -> None:
        loaded = raytrain.load(best, device="cpu")
        task, found = task_of(), loaded.predict(TEXTS)
        table = task.encode(ROWS, loaded._predictor.tokenizer, {}).table
        batch = task.collate(table, context(len(table), pad_token_id=END))
        with torch.no_grad():
            loss = float(task.predict(loaded._predictor.model, to_tensors(batch, CPU))[0])
        assert sum(row["num_tokens"] for row in found) == task.target_weight(batch)
        assert sum(row["loss"] * row["num_tokens"] for row in found) == pytest.approx(loss, rel=1e-5)
        assert loaded("a fine film")["loss"] == pytest.approx(found[0]["loss"], abs=2e-6)

    def test_continues_texts_when_asked(self, best: str) -> None:
        loaded = raytrain.load(best, device="cpu")
        assert set(loaded("a film")) == {"loss", "num_tokens"}
        greedy = loaded(["a film", "no"], max_new_tokens=6)
        assert [row["generated"] for row in greedy] == [
            loaded(text, max_new_tokens=6)["generated"] for text in ("a film", "no")
        ]
        with pytest.raises(ConfigError, match="one after the other"):
            loaded("a film", max_new_tokens=6, embeddings=True)

    @pytest.mark.parametrize(("kind", "dtype"), [("hf", "bf16"), pytest.param("onnx", "fp32", marks=pytest.mark.slow)])
    def test_an_export_tells_the_same(self, best: str, tmp_path: Path, kind: str, dtype: str) -> None:
        rows = tmp_path / "rows.jsonl"
        rows.write_text("".join(f"{json.dumps({'text': text})}\n" for text in TEXTS))
        found = raytrain.export(best, tmp_path / kind, format=kind, dtype=dtype, data=rows)
        assert found.agreement > 0.8
        told = raytrain.load(tmp_path / kind)(TEXTS[0])
        assert told["loss"] == pytest.approx(raytrain.load(best)(TEXTS[0])["loss"], abs=0.05)
        if kind == "onnx":
            with pytest.raises(ConfigError, match="an ONNX graph, which generates no text"):
                raytrain.load(tmp_path / kind)("a", max_new_tokens=2)

    def test_its_card_says_how_to_use_it(self, best: str) -> None:
        from raytrain.models.card import model_card

        card = model_card(json.loads((Path(best) / "raytrain.json").read_text()), {})
        assert "pipeline_tag: text-generation" in card
        assert 'model = pipeline("text-generation", "path/to/this/folder")' in card


class TestGeneration:
    def continued(self, model: Any, tokenizer: Any, rows: pa.Table, **options: Any) -> list[str]:
        task = task_of()
        samples, numbers = task.encode_inputs(rows, tokenizer).table, np.arange(len(rows)) + 7
        return task.generate(model, samples, numbers, tokenizer, Decoding(**options)).texts

    def plain(self, model: Any, tokenizer: Any, text: str, max_new_tokens: int) -> str:
        """One token at a time, the whole text anew each time."""
        ids = tokenizer(text)["input_ids"]
        length = len(ids)
        for _ in range(max_new_tokens):
            token = int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax())
            if token == END:
                break
            ids = [*ids, token]
        return tokenizer.decode(ids[length:])

    def test_greedy_is_the_most_probable_token_of_each_text_alone(self, folder: str, tokenizer: Any) -> None:
        model, rows = build(folder).eval(), pa.table({"text": ["a fine film", "a", "b", "no plot", "a dull one", "é"]})
        found = self.continued(model, tokenizer, rows, max_new_tokens=9)
        with torch.no_grad():
            assert found == [self.plain(model, tokenizer, text, 9) for text in rows["text"].to_pylist()]
        assert len(set(found)) > 2, "the model says the same of all"

    def test_what_the_files_say_of_other_ways_to_generate_changes_nothing(self, folder: str, tokenizer: Any) -> None:
        model, rows = build(folder).eval(), pa.table({"text": ["a fine film", "no plot"]})
        for options in ({}, {"temperature": 0.5}):
            model.generation_config = GenerationConfig(eos_token_id=END)
            before = self.continued(model, tokenizer, rows, max_new_tokens=9, **options)
            own = GenerationConfig(eos_token_id=END, repetition_penalty=9.0, no_repeat_ngram_size=1, min_new_tokens=9)
            model.generation_config = own
            assert self.continued(model, tokenizer, rows, max_new_tokens=9, **options) == before
            assert model.generation_config is own

    def test_ends_at_the_end_token(self, folder: str, tokenizer: Any) -> None:
        model = build(folder).eval()
        with torch.no_grad():
            model.transformer.wte.weight[END] = 0  # makes it improbable, and then certain
            model.transformer.ln_f.weight.zero_()
            model.transformer.ln_f.bias.copy_(torch.ones(16))
            model.transformer.wte.weight[END] = 100
        assert self.continued(model, tokenizer, ROWS, max_new_tokens=5) == ["", "", "", ""]

    def test_draws_belong_to_the_row_and_not_to_its_batch(self, folder: str, tokenizer: Any) -> None:
        model, task = build(folder).eval(), task_of()
        rows = pa.table({"text": ["aa", "ab", "aa", "abc"]})
        options = {"max_new_tokens": 9, "temperature": 1.0}
        together = self.continued(model, tokenizer, rows, **options)
        assert together[0] != together[2]
        alone = []
        for place in range(4):
            samples = task.encode_inputs(rows.slice(place, 1), tokenizer).table
            found = task.generate(model, samples, np.array([place + 7]), tokenizer, Decoding(**options))
            alone += found.texts
        assert alone == together
        assert self.continued(model, tokenizer, rows, **options, seed=1) != together

    def test_draws_have_the_models_probabilities(self, folder: str, tokenizer: Any) -> None:
        model = build(folder).eval()
        rows = pa.table({"text": ["a"] * 2000})
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([tokenizer("a")["input_ids"]])).logits[0, -1]
            wanted = (logits / 0.7).softmax(-1)
        found = task_of().generate(
            model,
            task_of().encode_inputs(rows, tokenizer).table,
            np.arange(len(rows)),
            tokenizer,
            Decoding(max_new_tokens=1, temperature=0.7),
        )
        letters = [token for token in range(END) if tokenizer.decode([token]).isascii()]  # others show as the same
        best = sorted(letters, key=lambda token: -wanted[token])[:10]
        chance = wanted[best].sum().item()
        assert 0.05 < chance < 0.95
        share = sum(text in tokenizer.batch_decode([[token] for token in best]) for text in found.texts) / len(rows)
        assert share == pytest.approx(chance, abs=4 * (chance / len(rows)) ** 0.5)

    def test_room(self, folder: str, tokenizer: Any) -> None:
        model, task = build(folder).eval(), task_of(200)
        rows = pa.table({"text": ["x" * 40 + "a fine film", "a fine film"]})
        samples = task.encode_inputs(rows, tokenizer).table
        found = task.generate(model, samples, np.arange(2), tokenizer, Decoding(max_new_tokens=21))
        assert found.num_cut == 1
        assert found.texts[0] == found.texts[1]  # of 32 positions 11 are left for the text
        with pytest.raises(ConfigError, match="max_new_tokens 32 leaves no room"):
            task.generate(model, samples, np.arange(2), tokenizer, Decoding(max_new_tokens=32))

    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"max_new_tokens": -1}, "max_new_tokens -1"),
            ({"max_new_tokens": 3, "temperature": -0.5}, "temperature -0.5"),
            ({"max_new_tokens": 3, "temperature": float("nan")}, "temperature nan"),
            ({"temperature": 0.5}, "give max_new_tokens too"),
        ],
    )
    def test_options_out_of_range(self, options: dict[str, Any], word: str) -> None:
        with pytest.raises(ConfigError, match=word):
            Decoding(**options)
