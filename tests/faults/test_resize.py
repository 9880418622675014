"""P9 and P12: nodes come, are reclaimed and are killed, and the training does not notice."""

import json
from pathlib import Path

import pytest
from cluster import NodePool
from tiny import TINY_GPT, byte_tokenizer, write_conll
from training import Training

SLOW = pytest.mark.slow


@pytest.mark.parametrize(
    ("zero_stage", "task", "exactness"),
    [
        (2, "sequence_classification", "bitwise"),
        pytest.param(2, "sequence_classification", "rounding", marks=SLOW),
        pytest.param("auto", "sequence_classification", "rounding", marks=SLOW),  # 0, where nothing is sharded
        pytest.param(1, "sequence_classification", "rounding", marks=SLOW),
        pytest.param(3, "sequence_classification", "rounding", marks=SLOW),
        pytest.param(3, "sequence_classification", "bitwise", marks=SLOW),
        pytest.param(2, "token_classification", "rounding", marks=SLOW),
        pytest.param(3, "causal_lm", "rounding", marks=SLOW),
        pytest.param(1, "causal_lm", "bitwise", marks=SLOW),
    ],
)
def test_resized_and_reclaimed_and_killed(
    pool: NodePool, tmp_path: Path, zero_stage: int | str, task: str, exactness: str
) -> None:
    data = []
    if task == "token_classification":  # targets are words: their number differs from sample to sample (P7)
        data = [f"data.train={{path: {write_conll(tmp_path / 'train.conll', 403, 0)}}}", f"task={{kind: {task}}}"]
    if task == "causal_lm":  # a tied head, and documents that become several samples
        tokenizer = byte_tokenizer(tmp_path / "bytes")
        data = [f"task={{kind: {task}}}", f"data.max_length={TINY_GPT['n_positions']}"]
        data += [f"model={{config: {json.dumps(TINY_GPT)}, tokenizer: {tokenizer}}}"]
    training = Training(
        pool,
        tmp_path,
        f"training.zero_stage={zero_stage}",
        f"training.exactness={exactness}",
        *data,
        "data.test=null",
    )
    training.resize_reclaim_kill()
    output = training.stop()
    assert "notice to reclaim" in output
    training.assert_undisturbed()
    pool.assert_nothing_is_held()
