"""What a language model says at an evaluation: the same at each number of workers and ZeRO stage, without a hang."""

from pathlib import Path
from typing import Any

import torch
from chat_templates import TINY_CHAT, chat_tokenizer
from launcher import run_workers
from tiny_engine import make_engine

from raytrain.config.io import parse_config
from raytrain.tasks import make_task
from raytrain.training.sampler import Sampler

NEW_TOKENS = 5
TURNS = [{"role": "system", "content": "be short"}, {"role": "user", "content": "say ab"}]


def _said(folder: str, stage: int) -> tuple[list[Any], list[int]]:
    """What is said greedily, and drawn; and the forward passes of texts that end at once."""
    config = parse_config(
        {
            "name": "chat",
            "task": {"kind": "chat", "format": "messages", "sample_prompts": ["hi", TURNS]}
            | {"sample_max_new_tokens": NEW_TOKENS},
            "model": {"config": {**TINY_CHAT, "initializer_range": 0.2}, "tokenizer": folder},
            "data": {"train": {"path": "train.jsonl"}, "max_length": 120},
        }
    )
    drawn = config.model_copy(update={"task": config.task.model_copy(update={"sample_temperature": 1.0})})
    task: Any = make_task(config.task, 120)
    torch.manual_seed(0)
    engine = make_engine(stage, model=task.build_model(config.model, {}, config.training))
    samplers = [Sampler.of(one, task) for one in (config, drawn)]
    said = [one.sample(engine.module, lambda: None) for one in samplers if one is not None]
    passes: list[int] = []
    engine.module.generation_config.eos_token_id = list(range(engine.module.config.vocab_size))
    ended = samplers[0] and samplers[0].sample(engine.module, lambda: passes.append(1))
    engine.close()
    return [*said, ended], passes


def test_samples_are_the_same_on_one_worker_and_on_two_with_zero_3(tmp_path: Path) -> None:
    folder = chat_tokenizer(tmp_path)
    ((alone, passes),) = run_workers(_said, 1, folder, 0)
    greedy, drawn, ended = alone
    assert [one["prompt"] for one in greedy] == ["hi", "say ab"] and greedy[0]["text"] != drawn[0]["text"]
    assert [one["text"] for one in ended] == ["", ""]
    assert len(passes) == 2 * NEW_TOKENS, "a worker whose text has ended goes on, as others wait for it in ZeRO-3"
    for found in run_workers(_said, 2, folder, 3):
        assert found == (alone, passes)
