"""The models of the tasks: their loss, what is asked of a blank batch, and what may be wrong with a model. No Ray."""

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import nn
from torch.nn import functional

from raytrain.config import ModelConfig, SequenceClassificationConfig, TokenClassificationConfig, TrainingConfig
from raytrain.errors import ConfigError
from raytrain.tasks import make_task
from raytrain.tasks.base import IGNORED
from raytrain.training.trainer import to_tensors
from tests.tiny import TINY_BERT, context, tiny_tokenizer

LABELS = ["a", "b", "c"]
TAGS = ["O", "B-LOC", "B-PER", "I-PER"]
CPU = torch.device("cpu")
SMALL: dict[str, dict[str, Any]] = {
    "bert": TINY_BERT,
    "roberta": {
        "model_type": "roberta",
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "max_position_embeddings": 34,
        "pad_token_id": 1,
        "type_vocab_size": 1,
    },
    "distilbert": {
        "model_type": "distilbert",
        "vocab_size": 64,
        "dim": 16,
        "hidden_dim": 32,
        "n_layers": 1,
        "n_heads": 2,
        "max_position_embeddings": 32,
    },
    "deberta": {  # it has a place for token types, and none
        "model_type": "deberta-v2",
        "vocab_size": 64,
        "hidden_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "type_vocab_size": 0,
        "max_position_embeddings": 32,
        "position_biased_input": False,
        "relative_attention": True,
    },
    "gpt2": {
        "model_type": "gpt2",
        "vocab_size": 64,
        "n_embd": 16,
        "n_layer": 1,
        "n_head": 2,
        "n_positions": 32,
        "bos_token_id": 1,
        "eos_token_id": 1,
        "pad_token_id": 0,
    },
}


def sequence(max_length: int = 16, **options: Any) -> Any:
    return make_task(SequenceClassificationConfig(kind="sequence_classification", **options), max_length)


def tagging(max_length: int = 16, **options: Any) -> Any:
    return make_task(TokenClassificationConfig(kind="token_classification", **options), max_length)


def build(task: Any, labels: list[str] = LABELS, dropout: float | None = 0.0, **model: Any) -> nn.Module:
    """A model of the task: the tiny BERT with new weights, unless `model` says otherwise."""
    model = model or {"config": TINY_BERT, "tokenizer": "unused"}
    torch.manual_seed(0)
    return task.build_model(ModelConfig.model_validate(model), {"labels": labels}, TrainingConfig(dropout=dropout))


def collate(task: Any, table: pa.Table) -> dict[str, np.ndarray]:
    return task.collate(table, context(len(table)))


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tokenizer, which a decoder takes its padding from."""
    return tiny_tokenizer(tmp_path_factory.mktemp("words"))


def new(kind: str, tokenizer: str = "unused") -> dict[str, Any]:
    return {"config": SMALL[kind], "tokenizer": tokenizer}


def texts(labels: Any, multi_label: bool = False) -> pa.Table:
    """Three prepared samples of 3, 5 and 4 tokens."""
    kind = pa.list_(pa.float32()) if multi_label else pa.int64()
    return pa.table(
        {
            "input_ids": pa.array([[2, 7, 3], [2, 8, 9, 10, 3], [2, 11, 12, 3]], pa.list_(pa.int32())),
            "labels": pa.array(labels, kind),
        }
    )


def sentences(*, case_feature: bool = False) -> pa.Table:
    """Two prepared samples: two sentences of 2 and 1 words, and one of 2 words, of which one has two pieces."""
    columns = {
        "input_ids": [[2, 7, 8, 9, 3], [2, 10, 11, 12, 3]],
        "labels": [[IGNORED, 2, 0, 1, IGNORED], [IGNORED, 3, IGNORED, 0, IGNORED]],
        "sentence_lengths": [[2, 1], [2]],
    }
    if case_feature:
        columns["token_type_ids"] = [[0, 1, 0, 2, 0], [0, 3, 3, 0, 0]]
    return pa.table({name: pa.array(values, pa.list_(pa.int32())) for name, values in columns.items()})


def one_by_one(model: nn.Module, table: pa.Table) -> list[torch.Tensor]:
    """Logits of each sample by itself, without any padding."""
    rows = table["input_ids"].to_pylist()
    return [model(input_ids=torch.tensor([row])).logits[0] for row in rows]


def assert_has_no_loss_but_a_graph(task: Any, model: nn.Module, batch: dict[str, np.ndarray]) -> None:
    """ZeRO-3 gathers parameters in backward too, so a worker without samples must go through it."""
    loss = task.loss_sum(model, to_tensors(task.blank(batch), CPU))
    assert loss.item() == 0.0
    loss.backward()
    used = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(used) > 10
    assert all(not grad.any() for grad in used), "no sample may leave a gradient"


class TestSequenceLoss:
    def test_is_the_sum_of_the_samples_cross_entropies(self):
        task, table = sequence(), texts([2, 0, 1])
        model = build(task).eval()
        batch = to_tensors(collate(task, table), CPU)
        wanted = sum(
            functional.cross_entropy(logits[None], torch.tensor([label]))
            for logits, label in zip(one_by_one(model, table), [2, 0, 1], strict=True)
        )
        loss = task.loss_sum(model, batch)
        assert loss.shape == () and loss.dtype == torch.float32
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)

    def test_padding_does_not_matter(self):
        task, table = sequence(), texts([2, 0, 1])
        model = build(task).eval()
        alone = [task.loss_sum(model, to_tensors(collate(task, table.slice(i, 1)), CPU)).item() for i in range(3)]
        together = task.loss_sum(model, to_tensors(collate(task, table), CPU)).item()
        assert together == pytest.approx(sum(alone), rel=1e-5)

    def test_multi_label(self):
        labels = [[1.0, 0.0, 1.0], [0.0, 0.0, 0.0], [0.0, 1.0, 0.0]]
        task, table = sequence(multi_label=True), texts(labels, multi_label=True)
        model = build(task).eval()
        wanted = sum(
            functional.binary_cross_entropy_with_logits(logits, torch.tensor(row))  # a mean over the labels
            for logits, row in zip(one_by_one(model, table), labels, strict=True)
        )
        loss = task.loss_sum(model, to_tensors(collate(task, table), CPU))
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_blank(self, multi_label):
        task = sequence(multi_label=multi_label)
        labels = [[1.0, 0.0, 1.0]] * 3 if multi_label else [2, 0, 1]
        assert_has_no_loss_but_a_graph(task, build(task), collate(task, texts(labels, multi_label)))

    def test_a_mixture_of_labelled_and_not(self):
        """A sample without a label adds nothing, and takes nothing away from the others."""
        task = sequence(multi_label=True)
        model = build(task).eval()
        batch = collate(task, texts([[1.0, 0.0, 1.0]] * 3, multi_label=True))
        first = {name: array[:1] for name, array in batch.items()}
        batch["labels"][1:] = IGNORED
        losses = [task.loss_sum(model, to_tensors(b, CPU)).item() for b in (batch, first)]
        assert losses[0] == pytest.approx(losses[1], rel=1e-5)
        assert len(task.predict(model, to_tensors(batch, CPU))[1]) == len(task.targets(batch)) == 1

    def test_predictions(self):
        task, table = sequence(), texts([2, 0, 1])
        model = build(task).eval()
        loss, predictions = task.predict(model, to_tensors(collate(task, table), CPU))
        expected = [int(logits.argmax()) for logits in one_by_one(model, table)]
        assert [p.tolist() for p in predictions] == [[i] for i in expected]
        assert loss.item() == pytest.approx(task.loss_sum(model, to_tensors(collate(task, table), CPU)).item())

    def test_predictions_of_several_labels(self):
        task = sequence(multi_label=True)
        table = texts([[1.0, 0.0, 1.0]] * 3, multi_label=True)
        model = build(task).eval()
        with torch.no_grad():
            model.classifier.bias.copy_(torch.tensor([9.0, -9.0, 9.0]))
        _, predictions = task.predict(model, to_tensors(collate(task, table), CPU))
        assert [p.tolist() for p in predictions] == [[1, 0, 1]] * 3

    def test_segments_of_a_pair_reach_the_model(self):
        task, table = sequence(), texts([2, 0, 1])
        model = build(task).eval()
        segments = pa.array([[0, 1, 1], [0, 0, 1, 1, 1], [0, 0, 1, 1]], pa.list_(pa.int32()))
        pairs = collate(task, table.append_column("token_type_ids", segments))
        batches = [to_tensors(batch, CPU) for batch in (pairs, collate(task, table))]
        with_segments, without = (task.loss_sum(model, batch).item() for batch in batches)
        assert with_segments != without
        all_first = {**batches[0], "token_type_ids": torch.zeros_like(batches[0]["token_type_ids"])}
        assert task.loss_sum(model, all_first).item() == pytest.approx(without)

    def test_logits_of_half_precision_are_summed_in_full(self):
        task = sequence()
        model = build(task).bfloat16()
        loss = task.loss_sum(model, to_tensors(collate(task, texts([2, 0, 1])), CPU))
        assert loss.dtype == torch.float32


class TestTagLoss:
    def test_is_the_sum_over_the_words(self):
        task, table = tagging(), sentences()
        model = build(task, TAGS).eval()
        labels = torch.tensor(table["labels"].to_pylist())
        logits = torch.stack(one_by_one(model, table))
        is_word = labels != IGNORED
        wanted = sum(
            functional.cross_entropy(row[None], tag[None])
            for row, tag in zip(logits[is_word], labels[is_word], strict=True)
        )
        assert int(is_word.sum()) == 5
        loss = task.loss_sum(model, to_tensors(collate(task, table), CPU))
        assert loss.item() == pytest.approx(wanted.item(), rel=1e-5)

    def test_predictions_are_cut_back_to_sentences(self):
        task, table = tagging(document_context=True), sentences()
        model = build(task, TAGS).eval()
        batch = collate(task, table)
        _, predictions = task.predict(model, to_tensors(batch, CPU))
        chosen = [logits.argmax(-1).tolist() for logits in one_by_one(model, table)]
        assert [p.tolist() for p in predictions] == [chosen[0][1:3], [chosen[0][3]], [chosen[1][1], chosen[1][3]]]
        assert [len(t) for t in task.targets(batch)] == [2, 1, 2]

    @pytest.mark.parametrize("case_feature", [False, True])
    def test_blank(self, case_feature):
        task = tagging(case_feature=case_feature)
        batch = collate(task, sentences(case_feature=case_feature))
        model = build(task, TAGS)
        assert task.predict(model, to_tensors(task.blank(batch), CPU))[1] == []
        assert_has_no_loss_but_a_graph(task, model, batch)


class TestCaseFeature:
    task = tagging(case_feature=True)

    def types(self, model: Any) -> torch.Tensor:
        return model.bert.embeddings.token_type_embeddings.weight.data

    def test_a_row_for_each_case(self):
        plain, wide = build(tagging(), TAGS), build(self.task, TAGS)
        assert self.types(plain).shape == (2, 16) and self.types(wide).shape == (4, 16)
        assert wide.config.type_vocab_size == 4
        first = self.types(wide)[0]
        assert len({tuple(row.tolist()) for row in self.types(wide)}) == 4, "equal rows would grow alike"
        assert (self.types(wide) - first).abs().max() < 0.15, "the pretrained row is where all of them begin"

    def test_row_0_is_the_pretrained_one(self, tmp_path):
        plain = build(tagging(), TAGS)
        plain.save_pretrained(tmp_path)
        wide = build(self.task, TAGS, path=str(tmp_path))
        assert torch.equal(self.types(wide)[0], self.types(plain)[0])

    def test_new_rows_do_not_depend_on_the_seed(self, tmp_path):
        """Nor on the worker: each builds the model for itself."""
        build(tagging(), TAGS).save_pretrained(tmp_path)
        wide = []
        for seed in (1, 2):
            torch.manual_seed(seed)
            wide.append(self.task.build_model(ModelConfig(path=str(tmp_path)), {"labels": TAGS}, TrainingConfig()))
        assert torch.equal(*(self.types(model) for model in wide))

    def test_it_reaches_the_model(self):
        model = build(self.task, TAGS).eval()
        batch = to_tensors(collate(self.task, sentences(case_feature=True)), CPU)
        lower = {**batch, "token_type_ids": torch.zeros_like(batch["token_type_ids"])}
        assert self.task.loss_sum(model, batch).item() != self.task.loss_sum(model, lower).item()

    @pytest.mark.parametrize("reader", ["raytrain", "transformers"])
    def test_saved_and_loaded(self, tmp_path, reader):
        from transformers import AutoModelForTokenClassification

        model = build(self.task, TAGS).eval()
        with torch.no_grad():  # as training would
            self.types(model)[2] += 1.0
        model.save_pretrained(tmp_path)
        if reader == "raytrain":
            loaded = build(self.task, TAGS, path=str(tmp_path)).eval()
        else:
            loaded = AutoModelForTokenClassification.from_pretrained(tmp_path).eval()
        assert torch.equal(self.types(loaded), self.types(model))
        batch = to_tensors(collate(self.task, sentences(case_feature=True)), CPU)
        assert self.task.loss_sum(loaded, batch).item() == self.task.loss_sum(model, batch).item()
        assert loaded.config.id2label == dict(enumerate(TAGS))

    def test_a_model_with_one_row(self):
        model: Any = build(self.task, TAGS, **new("roberta"))
        assert model.roberta.embeddings.token_type_embeddings.weight.shape == (4, 16)

    @pytest.mark.parametrize("kind", ["distilbert", "deberta"])
    def test_a_model_without_token_types(self, kind):
        with pytest.raises(ConfigError, match=r"task\.case_feature needs .*token-type.*task\.case_feature=false"):
            build(self.task, TAGS, **new(kind))


class TestBuild:
    @pytest.mark.parametrize("kind", ["bert", "roberta", "distilbert", "deberta", "gpt2"])
    @pytest.mark.parametrize("dropout", [0.0, 0.25])
    def test_dropout_is_set_everywhere(self, kind, dropout, words):
        model = build(sequence(), dropout=dropout, **new(kind, words))
        rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
        assert rates == {dropout}
        fields = {k: v for k, v in model.config.to_dict().items() if "dropout" in k or k.endswith("pdrop")}
        assert fields and set(fields.values()) == {dropout}

    def test_dropout_stays_when_nothing_is_said(self):
        model = build(sequence(), dropout=None, config={**TINY_BERT, "hidden_dropout_prob": 0.3}, tokenizer="unused")
        rates = {module.p for module in model.modules() if isinstance(module, nn.Dropout)}
        assert rates == {0.3, 0.1}

    def test_without_dropout_a_training_pass_is_deterministic(self):
        task = sequence()
        model = build(task).train()
        batch = to_tensors(collate(task, texts([2, 0, 1])), CPU)
        assert task.loss_sum(model, batch).item() == task.loss_sum(model, batch).item()

    def test_labels_are_in_the_config(self):
        model = build(sequence())
        assert model.config.id2label == {0: "a", 1: "b", 2: "c"} and model.config.num_labels == 3
        assert model.config.label2id == {"a": 0, "b": 1, "c": 2}

    def test_weights_are_full_precision_whatever_was_saved(self, tmp_path):
        build(sequence()).bfloat16().save_pretrained(tmp_path)
        model = build(sequence(), path=str(tmp_path))
        assert {p.dtype for p in model.parameters()} == {torch.float32}

    def test_a_head_for_other_labels_is_new(self, tmp_path):
        saved = build(sequence())
        saved.save_pretrained(tmp_path)
        model = build(sequence(), list("vwxyz"), path=str(tmp_path))
        assert model.classifier.weight.shape == (5, 16)
        body = "bert.embeddings.word_embeddings.weight"
        assert torch.equal(model.state_dict()[body], saved.state_dict()[body])

    def test_new_weights_follow_the_seed(self):
        """Each worker builds the model for itself, and all must begin alike."""
        one, two = build(sequence()), build(sequence())
        assert all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


class TestRefusals:
    @pytest.fixture
    def saved(self, tmp_path: Path) -> Path:
        build(sequence()).save_pretrained(tmp_path / "model")
        tiny_tokenizer(tmp_path / "model")
        return tmp_path / "model"

    def refusal(self, path: Any) -> str:
        with pytest.raises(ConfigError) as error:
            build(sequence(), path=str(path))
        assert str(path) in str(error.value) and str(error.value).startswith("model.path")
        return str(error.value)

    def test_half_written_weights(self, saved):
        weights = saved / "model.safetensors"
        weights.write_bytes(weights.read_bytes()[:-1000])
        assert "no model that can be loaded" in self.refusal(saved)

    def test_no_weights(self, saved):
        (saved / "model.safetensors").unlink()
        assert "no model that can be loaded" in self.refusal(saved)

    @pytest.mark.parametrize("content", ["{", "{}", json.dumps({"model_type": "no_such_type"})])
    def test_config_that_can_not_be_used(self, saved, content):
        (saved / "config.json").write_text(content)
        assert "no model that can be loaded" in self.refusal(saved)

    def test_a_folder_that_holds_only_a_tokenizer(self, saved):
        (saved / "config.json").unlink()
        assert "no model that can be loaded" in self.refusal(saved)

    def test_a_hub_id_without_a_network(self, monkeypatch):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        message = self.refusal("nobody/no-such-model")
        assert "Without a network" in message and "folder" in message

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"model_type": "no_such_type"}, "no_such_type"),
            ({"hidden_size": 15}, "15"),
            ({"num_hidden_layers": "two"}, "num_hidden_layers"),
        ],
        ids=str,
    )
    def test_a_new_model_that_can_not_be(self, change, word):
        with pytest.raises(ConfigError, match=rf"(?s)model\.config.*: .*{word}"):
            build(sequence(), config={**TINY_BERT, **change}, tokenizer="unused")

    def test_the_saved_folder_itself_is_good(self, saved, tmp_path):
        shutil.copytree(saved, tmp_path / "copy")
        assert build(sequence(), path=str(tmp_path / "copy")).config.num_labels == 3


class TestLoading:
    def test_is_quiet_and_tells_which_weights_are_new(self, tmp_path, caplog, capfd):
        build(tagging(), TAGS).save_pretrained(tmp_path)
        capfd.readouterr()
        with caplog.at_level("INFO", logger="raytrain"):
            build(tagging(), TAGS, path=str(tmp_path))
            assert not caplog.messages
            build(tagging(), [*TAGS, "B-ORG"], path=str(tmp_path))  # a head of another size is a new one
        told = [message for message in caplog.messages if "new weights" in message]
        assert told == ["new weights, to be trained from scratch: classifier.bias, classifier.weight"]
        assert capfd.readouterr() == ("", ""), "no progress bar, no table, no warning"

    def test_leaves_transformers_as_talkative_as_it_was(self, tmp_path):
        from transformers.utils import logging as their_logging

        build(tagging(), TAGS).save_pretrained(tmp_path)
        before = their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()
        build(tagging(), TAGS, path=str(tmp_path))
        assert (their_logging.get_verbosity(), their_logging.is_progress_bar_enabled()) == before

    @pytest.mark.parametrize("multi_label", [False, True])
    def test_a_saved_model_knows_how_many_labels_a_text_has(self, multi_label):
        kind = build(sequence(multi_label=multi_label)).config.problem_type
        assert kind == ("multi_label_classification" if multi_label else "single_label_classification")

    @pytest.mark.parametrize("pad_token_id", [None, 5], ids=["none", "another"])
    def test_a_decoder_classifies_at_the_last_token_of_each_text(self, words, pad_token_id):
        """Its head finds it by the padding token, which must be the tokenizer's, whatever the config says."""
        task, table = sequence(), texts([2, 0, 1])
        model: Any = build(task, config={**SMALL["gpt2"], "pad_token_id": pad_token_id}, tokenizer=words).eval()
        assert model.config.pad_token_id == 0, "the tokenizer's, which samples are padded with"
        _, predictions = task.predict(model, to_tensors(collate(task, table), CPU))
        loss = task.loss_sum(model, to_tensors(collate(task, table), CPU)).item()
        wanted = sum(
            functional.cross_entropy(logits[None], torch.tensor([label])).item()
            for logits, label in zip(one_by_one(model, table), [2, 0, 1], strict=True)
        )
        assert loss == pytest.approx(wanted, rel=1e-5)
        alone = [to_tensors(collate(task, table.slice(i, 1)), CPU) for i in range(3)]
        assert [p.tolist() for p in predictions] == [task.predict(model, batch)[1][0].tolist() for batch in alone]

    def test_roberta_keeps_its_padding_token(self, words):
        """It counts positions from it, so another one would shift those of a pretrained model."""
        assert build(sequence(), **new("roberta", words)).config.pad_token_id == 1

    def test_a_model_that_reads_the_last_position_has_its_padding_on_the_left(self):
        task, table = sequence(), texts([2, 0, 1])
        sizes = {"vocab_size": 64, "d_model": 16, "n_layer": 2, "n_head": 2, "d_inner": 32}
        model = build(task, config={"model_type": "xlnet", **sizes}, tokenizer="unused").eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.mul_(5.0)  # new weights hardly tell one text from another
        alone = [task.loss_sum(model, to_tensors(collate(task, table.slice(i, 1)), CPU)).item() for i in range(3)]
        assert alone[0] != pytest.approx(alone[1], rel=1e-2)
        together = task.loss_sum(model, to_tensors(collate(task, table), CPU)).item()
        assert together == pytest.approx(sum(alone), rel=1e-5)


class TestPretrainedHead:
    """A row of a head is a label by its name, not by its place."""

    def logits(self, model: nn.Module) -> torch.Tensor:
        return torch.stack(one_by_one(model.eval(), texts([2, 0, 1])))

    @pytest.mark.parametrize("kind", ["bert", "distilbert", "gpt2"])
    @pytest.mark.parametrize("labels", [["c", "a", "b"], ["C", "A", "B"]], ids=["order", "case"])
    def test_of_the_same_labels_is_permuted(self, tmp_path, words, caplog, kind, labels):
        saved = build(sequence(), **new(kind, words))
        saved.save_pretrained(tmp_path)
        with caplog.at_level("INFO", logger="raytrain"):
            model: Any = build(sequence(), labels, path=str(tmp_path), tokenizer=words)
        torch.testing.assert_close(self.logits(model), self.logits(saved)[:, [2, 0, 1]])
        assert model.config.id2label == dict(enumerate(labels))
        assert not caplog.messages

    def test_of_other_labels_is_new_and_said_to_be(self, tmp_path, caplog):
        build(sequence()).save_pretrained(tmp_path)
        with caplog.at_level("INFO", logger="raytrain"):
            first, second = (build(sequence(), ["a", "b", "z"], path=str(tmp_path)) for _ in range(2))
        assert "its labels (a, b, c) are not those of the data (a, b, z)" in caplog.messages[0]
        saved: Any = build(sequence(), path=str(tmp_path))
        model: Any = first
        assert not torch.equal(model.classifier.weight, saved.classifier.weight)
        assert model.classifier.weight.std().item() == pytest.approx(0.02, rel=0.5) and not model.classifier.bias.any()
        assert torch.equal(model.classifier.weight, second.classifier.weight), "it follows the seed"
        assert torch.equal(model.bert.pooler.dense.weight, saved.bert.pooler.dense.weight), "the rest is kept"

    def test_without_names_is_that_of_numbered_labels(self, tmp_path):
        saved: Any = build(sequence(), ["LABEL_0", "LABEL_1", "LABEL_2"])
        saved.save_pretrained(tmp_path)
        model: Any = build(sequence(), ["2", "1", "0"], path=str(tmp_path))
        assert torch.equal(model.classifier.weight, saved.classifier.weight[[2, 1, 0]])

    def test_of_tags_too(self, tmp_path):
        saved: Any = build(tagging(), TAGS)
        saved.save_pretrained(tmp_path)
        model: Any = build(tagging(), TAGS[::-1], path=str(tmp_path))
        assert torch.equal(model.classifier.weight, saved.classifier.weight.flip(0))
        assert torch.equal(model.classifier.bias, saved.classifier.bias.flip(0))
