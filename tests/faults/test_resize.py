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
    """1 -> 2 -> 3 by nodes that come, -> 2 by a notice, -> 1 by a kill of the node with rank 0."""
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
    training.wait_for_workers(1)
    pool.add()
    training.wait_for_workers(2)
    pool.add()
    training.wait_for_workers(3)
    reclaimed = pool.nodes[1]
    pool.drain(reclaimed, deadline_s=60)
    training.wait_for_workers(2)
    assert reclaimed.node_id not in training.nodes()
    pool.kill(reclaimed)  # its time is over; the run has left it
    assert [event["steps_redone"] for event in training.events("resize", "reclaim")] == [0, 0, 0]
    pool.kill(pool.node_of(training.nodes()[0]))
    training.wait_for_workers(1)
    (lost,) = training.events("failure")
    assert lost["cause"].startswith("a node was lost")
    # From the last complete snapshot, of every fifth step, on; the newest may have been on its way for as long again.
    assert lost["steps_redone"] <= 15
    assert training.events("restore")[-1]["source"] == "snapshot"
    output = training.stop()
    assert "notice to reclaim" in output
    training.assert_undisturbed()
    pool.assert_nothing_is_held()
