"""P9 for what has more state or other batches than a classifier: packed documents, adapters, pairs with a reference,
averaged weights, images."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from chat_templates import TINY_CHAT, chat_tokenizer
from cluster import NodePool
from running import steps_done
from tiny import TINY_GPT, byte_tokenizer, write_parquet
from tiny_images import TINY_VIT, write_folder
from training import ENDLESS_STEPS, Training, validation_losses

pytestmark = pytest.mark.slow

LORA = "model.adapter={kind: lora, rank: 4}"
LENGTH = "data.max_length=250"


def base_model(folder: Path) -> str:
    """A saved language model that has a chat template."""
    import transformers

    torch.manual_seed(5)
    config = transformers.AutoConfig.for_model(**TINY_CHAT)
    path = chat_tokenizer(folder / "base")
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(path)
    return path


def pretrained(folder: Path) -> list[str]:
    return [f"model={{path: {base_model(folder)}}}", LORA]


def write_rows(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def packed(folder: Path) -> list[str]:
    texts = [{"text": "ab " * (1 + number % 9)} for number in range(403)]
    return [
        "task={kind: causal_lm}",
        f"model={{config: {json.dumps(TINY_GPT)}, tokenizer: {byte_tokenizer(folder / 'bytes')}}}",
        f"data.max_length={TINY_GPT['n_positions']}",
        f"data.train.path={write_parquet(folder / 'texts.parquet', texts)}",
        *("training.packing=on", "training.micro_batch_size=2"),
        "training.global_batch_size=12",  # 6, 3 and 2 micro-batches a worker: a group grows where that is faster
    ]


def chat_lora(folder: Path) -> list[str]:
    def turns(number: int) -> list[dict[str, str]]:
        answer = {"role": "assistant", "content": "ab" * (1 + number % 20)}
        return [{"role": "user", "content": f"say {number}"}, answer] * (1 + number % 3)

    rows: list[dict[str, object]] = [{"messages": turns(number)} for number in range(403)]
    data = write_rows(folder / "chat.jsonl", rows)
    return [
        "task={kind: chat, format: messages}",
        *pretrained(folder),
        f"data.train.path={data}",
        "data.max_length=250",
    ]


def allocation(num_steps: int) -> str:
    """Ranks are removed from step 20 to step 70 of a run of this many."""
    shares = f"begin: {20.5 / num_steps}, end: {70.5 / num_steps}"
    return f"model.adapter={{kind: adalora, rank: 2, allocation: {{first_rank: 6, every: 5, {shares}}}}}"


def adalora(folder: Path) -> list[str]:
    return [*chat_lora(folder), allocation(ENDLESS_STEPS), "training.optimizer.learning_rate=1e-3"]


def pairs(folder: Path) -> str:
    rows: list[dict[str, object]] = [
        {"prompt": f"say {n}", "chosen": "ab" * (1 + n % 10), "rejected": "yz" * (1 + n * 3 % 10)} for n in range(403)
    ]
    return f"data.train.path={write_rows(folder / 'pairs.jsonl', rows)}"


def dpo_lora(folder: Path) -> list[str]:
    return ["task={kind: preference}", *pretrained(folder), pairs(folder), LENGTH]


def dpo(folder: Path) -> list[str]:
    return ["task={kind: preference}", f"model={{path: {base_model(folder)}}}", pairs(folder), LENGTH]


def reward(folder: Path) -> list[str]:
    return ["task={kind: reward}", f"model={{path: {base_model(folder)}}}", pairs(folder), LENGTH]


def averaged(folder: Path) -> list[str]:
    """Evaluations are of the averaged weights."""
    return [
        f"data.validation={{path: {folder / 'data' / 'validation.parquet'}}}",
        *("training.ema_decay=0.99", "training.label_smoothing=0.1", "training.layerwise_lr_decay=0.8"),
        "training.eval_every_steps=10",
    ]


def images(folder: Path) -> list[str]:
    return [
        "task={kind: image_classification}",
        f"model={{config: {json.dumps(TINY_VIT)}, image: {{size: 8}}}}",
        f"data.train.path={write_folder(folder / 'images', 203)}",
    ]


Case = Callable[[Path], list[str]]


@pytest.mark.parametrize(
    ("case", "zero_stage"),
    [
        (packed, 2),
        (chat_lora, 3),
        (adalora, 2),
        (adalora, 3),
        (dpo_lora, 2),
        (dpo, 3),
        (reward, 1),
        (averaged, 2),
        (averaged, 3),
        (images, 2),
    ],
)
def test_resized_and_reclaimed_and_killed(pool: NodePool, tmp_path: Path, case: Case, zero_stage: int) -> None:
    training = Training(pool, tmp_path, f"training.zero_stage={zero_stage}", *case(tmp_path), "data.test=null")
    training.resize_reclaim_kill()
    training.stop()
    if case is adalora:
        training.assert_undisturbed(allocation(steps_done(training.path)))
    else:
        training.assert_undisturbed()
    assert bool(validation_losses(training.path)) is (case is averaged)
    pool.assert_nothing_is_held()
