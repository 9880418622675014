"""Preferences and rewards: what is compared, the losses by hand, and pairs that can't be used."""

import json
import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from chat_templates import CHATML, TINY_CHAT, chat_tokenizer
from pydantic import ValidationError
from saved_models import save_best
from tiny import context, write_parquet

import raytrain
from raytrain.config import ModelConfig, PreferenceConfig, RewardConfig, TrainingConfig
from raytrain.config.io import parse_config
from raytrain.errors import ConfigError
from raytrain.inference.export import ExportRequest, export_model
from raytrain.models.tokenizer import load_tokenizer
from raytrain.tasks import make_task
from raytrain.tasks.base import RowError
from raytrain.tasks.predicting import ASKED, PLAIN, Decoding
from raytrain.training.evaluate import to_tensors

CPU = torch.device("cpu")
USER = {"role": "user", "content": "hi"}
YES, NO = ({"role": "assistant", "content": text} for text in ("yes", "nope"))
ROWS = pa.table(
    {"prompt": ["a", "say it", "b?"], "chosen": ["yes", "no", "fine"], "rejected": ["nope", "well, no", "x"]}
)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> ModelConfig:
    torch.set_num_threads(1)
    folder = chat_tokenizer(tmp_path_factory.mktemp("chat"))
    return ModelConfig(config={**TINY_CHAT, "initializer_range": 0.3}, tokenizer=folder)


def task_of(kind: str = "preference", max_length: int = 200, **options: Any) -> Any:
    section = PreferenceConfig if kind == "preference" else RewardConfig
    return make_task(section.model_validate({"kind": kind, **options}), max_length)


def built(task: Any, model: ModelConfig) -> Any:
    torch.manual_seed(1)
    return task.build_model(model, {}, TrainingConfig(dropout=0.0)).eval()


class TestWhatIsCompared:
    @pytest.mark.parametrize(
        ("row", "options"),
        [
            ({"prompt": "hi", "chosen": "yes", "rejected": "nope"}, {}),
            ({"prompt": [USER], "chosen": [YES], "rejected": [NO]}, {}),
            ({"prompt": json.dumps([USER]), "chosen": json.dumps([YES]), "rejected": "nope"}, {}),
            ({"prompt": "not read", "chosen": [USER, YES], "rejected": [USER, NO]}, {}),
            ({"chosen": [USER, YES], "rejected": [USER, NO]}, {"prompt_column": None}),
        ],
        ids=["texts", "turns", "json", "conversations", "implicit"],
    )
    def test_the_answers_after_the_common_prompt(self, model: ModelConfig, row: Any, options: Any) -> None:
        tokenizer = load_tokenizer(model)
        encoded = task_of(**options).encode(pa.Table.from_pylist([row]), tokenizer, {})
        assert encoded.rejected == []
        (sample,) = encoded.table.to_pylist()
        header = "<|im_start|>system\nYou help.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n"
        for ids, answers, text in (("input_ids", "answers", "yes"), ("rejected_ids", "rejected_answers", "nope")):
            start, stop = sample[answers]
            assert tokenizer.decode(sample[ids]) == f"{header}{text}<|im_end|>"
            assert tokenizer.decode(sample[ids][start:stop]) == f"{text}<|im_end|>"
            assert stop == len(sample[ids])

    def test_one_sample_and_one_target(self, model: ModelConfig) -> None:
        task = task_of()
        table = task.encode(ROWS, load_tokenizer(model), {}).table
        batch = task.collate(table, context(3))
        assert len(table) == 3
        assert task.target_weight(batch) == 3.0
        assert task.target_weight(task.blank(batch)) == 0.0
        both = [len(row["input_ids"]) + len(row["rejected_ids"]) for row in table.to_pylist()]
        assert task.sizes(table).tolist() == both

    @pytest.mark.parametrize(
        ("row", "code", "reason"),
        [
            ({"prompt": "hi", "chosen": "yes", "rejected": "yes"}, RowError.BAD_TARGET, "are equal"),
            ({"prompt": "hi", "chosen": "yes", "rejected": " "}, RowError.BAD_INPUT, "rejected is empty"),
            ({"prompt": None, "chosen": "yes", "rejected": "no"}, RowError.BAD_INPUT, "prompt is empty"),
            (
                {"prompt": "", "chosen": [USER, YES], "rejected": [{"role": "user", "content": "other"}, NO]},
                RowError.BAD_INPUT,
                "have no prompt in common",
            ),
            (
                {"prompt": "", "chosen": [USER, USER, YES], "rejected": [USER, NO]},
                RowError.BAD_INPUT,
                r"chosen\[1\]: user follows user",
            ),
            (
                {"prompt": "", "chosen": [USER, YES], "rejected": [USER, YES, USER, NO]},
                RowError.BAD_INPUT,
                "chosen is the beginning of the other conversation",
            ),
            ({"prompt": "", "chosen": [USER], "rejected": [USER, NO]}, RowError.BAD_INPUT, "ends with a turn of user"),
            ({"prompt": "<|im_end|>", "chosen": "yes", "rejected": "no"}, RowError.BAD_INPUT, "a special token"),
            (
                {"prompt": "hi", "chosen": "a", "rejected": "b" * 300},
                RowError.TOO_LONG,
                "tokens on one side",
            ),
        ],
        ids=["equal", "empty", "no prompt", "no common", "order", "prefix", "question", "special", "long"],
    )
    def test_what_can_not_be_used(self, model: ModelConfig, row: Any, code: RowError, reason: str) -> None:
        encoded = task_of().encode(pa.Table.from_pylist([row]), load_tokenizer(model), {})
        (rejection,) = encoded.rejected
        assert rejection.code == code
        assert re.search(reason, rejection.reason), rejection.reason
        assert len(encoded.table) == 0

    def test_long_pairs_can_be_set_aside_and_a_base_model_is_told_what_to_do(
        self, model: ModelConfig, tmp_path: Path
    ) -> None:
        rows = pa.table({"prompt": ["hi"], "chosen": ["a" * 300], "rejected": ["b"]})
        encoded = task_of(too_long="set_aside").encode(rows, load_tokenizer(model), {})
        assert [one.is_set_aside for one in encoded.rejected] == [True]
        base = load_tokenizer(ModelConfig(config=TINY_CHAT, tokenizer=chat_tokenizer(tmp_path, None)))
        with pytest.raises(ConfigError, match="no chat template"):
            task_of().encode(ROWS, base, {})
        assert len(task_of(chat_template=CHATML).encode(ROWS, base, {}).table) == 3


def by_hand(model: Any, table: pa.Table) -> tuple[np.ndarray, np.ndarray]:
    """(sums of log-probabilities of the answers, their numbers of tokens), each side alone."""
    sums, counts = [], []
    for row in table.to_pylist():
        for ids, answers in (("input_ids", "answers"), ("rejected_ids", "rejected_answers")):
            with torch.no_grad():
                logits = model(input_ids=torch.tensor([row[ids]])).logits[0].double().log_softmax(-1)
            start, stop = row[answers]
            sums.append(sum(float(logits[place - 1, row[ids][place]]) for place in range(start, stop)))
            counts.append(stop - start)
    return np.array(sums).reshape(-1, 2), np.array(counts).reshape(-1, 2)


class TestLosses:
    @pytest.mark.parametrize("kind", ["dpo", "ipo", "orpo"])
    def test_by_hand(self, model: ModelConfig, kind: str) -> None:
        task = task_of(loss=kind, beta=0.3)
        policy = built(task, model)
        table = task.encode(ROWS, load_tokenizer(model), {}).table
        sums, counts = by_hand(policy, table)
        reference = sums + np.array([[0.5, -1.0], [2.0, 0.0], [-3.0, 1.0]])
        if kind != "orpo":
            table = table.append_column("reference", pa.array(reference.tolist(), pa.list_(pa.float32())))
        apart = sums - reference
        log_odds = sums / counts - np.log(1 - np.exp(sums / counts))
        ratio = log_odds[:, 0] - log_odds[:, 1]
        expected = {
            "dpo": np.log1p(np.exp(-0.3 * (apart[:, 0] - apart[:, 1]))),
            "ipo": ((apart / counts)[:, 0] - (apart / counts)[:, 1] - 1 / 0.6) ** 2,
            "orpo": -(sums / counts)[:, 0] + 0.3 * np.log1p(np.exp(-ratio)),
        }[kind]
        batch = task.collate(table, context(3))
        with torch.no_grad():
            loss, values = task.predict(policy, to_tensors(batch, CPU))
            blank = task.loss_sum(policy, to_tensors(task.blank(batch), CPU))
        assert float(loss) == pytest.approx(expected.sum(), rel=1e-4)
        assert float(blank) == 0.0
        scores = task.scores({})
        scores.update(values, task.targets(batch))
        found = scores.compute().values
        rewards = 0.3 * {"dpo": apart, "ipo": apart / counts, "orpo": sums / counts}[kind]
        assert found["accuracy"] == pytest.approx((rewards[:, 0] > rewards[:, 1]).mean())
        assert found["margin"] == pytest.approx((rewards[:, 0] - rewards[:, 1]).mean(), abs=1e-4)
        assert set(found) == set(task.metrics)
        if kind == "orpo":
            assert found["log_odds_ratio"] == pytest.approx(ratio.mean(), abs=1e-4)

    def test_at_the_beginning_the_model_is_its_reference(self, model: ModelConfig) -> None:
        task = task_of()
        policy = built(task, model)
        table = task.encode(ROWS, load_tokenizer(model), {}).table
        column = task.refer(policy, to_tensors(task.collate(table, context(3)), CPU))
        assert column == pytest.approx(by_hand(policy, table)[0], abs=1e-3)
        table = table.append_column("reference", pa.array(column.tolist(), pa.list_(pa.float32())))
        with torch.no_grad():
            loss = task.loss_sum(policy, to_tensors(task.collate(table, context(3)), CPU))
        assert float(loss) == pytest.approx(3 * math.log(2), abs=1e-5)

    def test_rewards_are_those_of_each_side_alone(self, model: ModelConfig) -> None:
        task = task_of("reward")
        scorer = built(task, model)
        table = task.encode(ROWS, load_tokenizer(model), {}).table
        with torch.no_grad():
            alone = np.array(
                [
                    [
                        float(scorer(input_ids=torch.tensor([row[name]])).logits)
                        for name in ("input_ids", "rejected_ids")
                    ]
                    for row in table.to_pylist()
                ]
            )
            batch = task.collate(table, context(3, pad_token_id=load_tokenizer(model).pad_token_id))
            loss, values = task.predict(scorer, to_tensors(batch, CPU))
        assert np.array(values) == pytest.approx(alone, abs=1e-5)
        assert float(loss) == pytest.approx(np.log1p(np.exp(alone[:, 1] - alone[:, 0])).sum(), rel=1e-5)


class TestPredictions:
    def test_which_answer_is_preferred(self, model: ModelConfig) -> None:
        for kind, name in (("preference", "logp"), ("reward", "reward")):
            task = task_of(kind)
            samples = task.encode_inputs(ROWS, load_tokenizer(model)).table
            net = built(task, model)
            batch = to_tensors(task.collate_inputs(samples, 0), CPU)
            with torch.no_grad():
                answers = task.decode(task.infer(net, batch), samples, ROWS, {}, PLAIN).to_pylist()
            for answer in answers:
                margin = answer[f"chosen_{name}"] - answer[f"rejected_{name}"]
                assert answer["margin"] == pytest.approx(margin, abs=1e-5)
                assert answer["preferred"] == ("chosen" if margin > 0 else "rejected")

    def test_a_single_conversation(self, model: ModelConfig) -> None:
        tokenizer = load_tokenizer(model)
        rows = pa.table({ASKED: [json.dumps([USER, YES])]})
        task = task_of("reward")
        samples = task.encode_inputs(rows, tokenizer).table
        net = built(task, model)
        with torch.no_grad():
            outputs = task.infer(net, to_tensors(task.collate_inputs(samples, 0), CPU))
            alone = float(net(input_ids=torch.tensor(samples["input_ids"].to_pylist())).logits)
        (answer,) = task.decode(outputs, samples, rows, {}, PLAIN).to_pylist()
        assert answer["chosen_reward"] == pytest.approx(alone, abs=1e-5)
        assert answer["preferred"] is None
        policy = task_of()
        samples = policy.encode_inputs(pa.table({ASKED: ["hi"]}), tokenizer).table
        found = policy.generate(built(policy, model), samples, np.array([0]), tokenizer, Decoding(max_new_tokens=3))
        assert isinstance(found.texts[0], str)
        (prompt,) = samples["prompt_ids"].to_pylist()
        assert tokenizer.decode(prompt).endswith("hi<|im_end|>\n<|im_start|>assistant\n")

    def test_a_question_is_not_bound_by_the_length_of_the_pairs(self, model: ModelConfig) -> None:
        tokenizer, asked = load_tokenizer(model), [{"role": "user", "content": "long " * 60}]
        for max_length in (40, 2000):
            policy = task_of(max_length=max_length)
            assert len(policy.prompt_ids(asked, tokenizer)) > 250
            inputs = policy.encode_inputs(pa.table({ASKED: [json.dumps(asked)]}), tokenizer)
            assert inputs.rejected == [] and max(policy.sizes(inputs.table)) < 10, "the loss is of nothing"
            answered = task_of("reward", max_length=max_length).encode_inputs(
                pa.table({ASKED: [json.dumps([*asked, YES])]}), tokenizer
            )
            assert len(answered.rejected) == (max_length == 40), "a reward is of all tokens"


def test_options_are_checked() -> None:
    raw = {
        "name": "a",
        "task": {"kind": "preference"},
        "model": {"config": TINY_CHAT, "tokenizer": "x"},
        "data": {"train": {"path": "x"}},
    }
    with pytest.raises(ConfigError, match=r"task\.loss=dpo compares with the pretrained model of model\.path"):
        parse_config(raw)
    parse_config({**raw, "task": {"kind": "preference", "loss": "orpo"}})
    with pytest.raises(ValidationError):
        PreferenceConfig.model_validate({"kind": "preference", "beta": 0.0})


def test_predict_evaluate_and_export(tmp_path: Path) -> None:
    """As a run leaves the model in best/."""
    tokenizer = chat_tokenizer(tmp_path / "tokenizer")
    rows = [{"prompt": f"say {i}", "chosen": "ab" * (1 + i % 9), "rejected": "yz" * (1 + i % 7)} for i in range(8)]
    train = write_parquet(tmp_path / "train.parquet", rows)
    for task in ({"kind": "preference", "loss": "orpo"}, {"kind": "reward"}, {"kind": "preference"}):
        raw = {
            "name": "a",
            "task": {**task, "loss": "orpo"} if task == {"kind": "preference"} else task,
            "model": {"config": {**TINY_CHAT, "initializer_range": 0.2}, "tokenizer": tokenizer},
            "data": {"train": {"path": train}, "max_length": 200},
        }
        best = save_best(parse_config(raw), {}, tmp_path / f"{task['kind']}-{len(task)}")
        if task == {"kind": "preference"}:  # as with dpo, whose model.path is not there
            facts = Path(best) / "raytrain.json"
            facts.write_text(facts.read_text().replace('"orpo"', '"dpo"').replace('"path": null', f'"path": "{best}"'))
            with pytest.raises(ConfigError, match=r"eval RUN data\.test\.path=FILE"):
                raytrain.evaluate(best, pa.Table.from_pylist(rows))
            continue
        answers = raytrain.load(best)(rows, **({"max_new_tokens": 2} if task["kind"] == "preference" else {}))
        found = raytrain.evaluate(best, pa.Table.from_pylist(rows)).metrics
        right = np.mean([answer["preferred"] == "chosen" for answer in answers])
        assert found["accuracy"] == pytest.approx(right)
        exported = export_model(best, ExportRequest(out=str(tmp_path / f"out-{task['kind']}")))
        assert exported.num_rows == 8
        assert exported.largest_difference < 1e-5
