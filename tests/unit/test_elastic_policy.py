"""When to grow, when to give up, and how many workers fit: pure decisions."""

import math

import pytest

from raytrain.config.io import parse_config
from raytrain.elastic.policy import Failure, FailureKind, FaultBudget, ScaleUpPolicy
from raytrain.elastic.scale_up import ScaleUp
from raytrain.ray_core import nodes as capacity
from raytrain.ray_core.nodes import NodeView, places_that_fit, seconds_left

RUN = {
    "name": "a",
    "task": {"kind": "sequence_classification"},
    "model": {"path": "m"},
    "data": {"train": {"path": "x.parquet"}},
    "workers": {"max": 8},
}


class TestGrowth:
    def grow(self, policy: ScaleUpPolicy, now_s: float, possible: int, remaining_s: float = 1000.0) -> bool:
        return policy.should_grow(now_s, 2, possible, remaining_s * (1 - 2 / possible), cost_s=10.0)

    def test_it_waits_until_the_room_has_settled(self) -> None:
        policy = ScaleUpPolicy(delay_s=10, payback=2)
        assert [self.grow(policy, now_s, 3) for now_s in (100, 105, 109.9, 110)] == [False, False, False, True]

    def test_staggered_nodes_make_one_resize(self) -> None:
        policy = ScaleUpPolicy(delay_s=10, payback=2)
        assert not self.grow(policy, 100, 3)
        assert not self.grow(policy, 109, 4)  # another node came
        assert not self.grow(policy, 118, 4)
        assert self.grow(policy, 119, 4)

    def test_nodes_that_never_stop_coming_do_not_put_it_off_for_ever(self) -> None:
        policy = ScaleUpPolicy(delay_s=10, payback=2)
        assert any(self.grow(policy, 100 + 5 * i, 3 + i) for i in range(14))

    def test_room_that_goes_again_is_forgotten(self) -> None:
        policy = ScaleUpPolicy(delay_s=10, payback=2)
        assert not self.grow(policy, 100, 3)
        assert not self.grow(policy, 105, 2)
        assert not self.grow(policy, 110, 3)
        assert not self.grow(policy, 119, 3)
        assert policy.seen_at_s == 110

    def test_a_growth_in_vain_is_not_tried_again_at_once(self) -> None:
        policy = ScaleUpPolicy(delay_s=0, payback=2)
        assert self.grow(policy, 0, 3)
        policy.was_in_vain(10)
        policy.reset()
        assert not self.grow(policy, 11, 3)
        assert self.grow(policy, 320, 3)

    def test_a_new_group_lets_the_room_settle_anew(self) -> None:
        policy = ScaleUpPolicy(delay_s=10, payback=2)
        assert not self.grow(policy, 100, 3)
        policy.reset()
        assert not self.grow(policy, 400, 3)
        assert policy.seen_at_s == 400

    def test_it_must_pay_back(self) -> None:
        """2 -> 4 workers halve what is left: 20 s of 40, exactly twice the cost of 10 s."""
        policy = ScaleUpPolicy(delay_s=0, payback=2)
        assert not self.grow(policy, 0, 4, remaining_s=39.9)
        assert self.grow(policy, 0, 4, remaining_s=40.0)

    def test_workers_that_would_only_wait_are_not_added(self) -> None:
        """With 8 micro-batches, 7 workers take two passes a step, as 4 do."""
        config = parse_config({**RUN, "training": {"global_batch_size": 8, "micro_batch_size": 1}})
        scale_up = ScaleUp(config, None, print)  # type: ignore[arg-type]
        assert [scale_up._share_saved(4, possible) for possible in (3, 4, 5, 7, 8)] == [0.0, 0.0, 0.0, 0.0, 0.5]
        assert not ScaleUpPolicy(delay_s=0, payback=0).should_grow(0, 4, 7, saved_s=0.0, cost_s=0.0)


def crash(step: int | None, kind: FailureKind = FailureKind.CRASH) -> Failure:
    return Failure(kind, step, f"{kind} at {step}")


class TestFaultBudget:
    def test_crashes_are_counted(self) -> None:
        budget = FaultBudget(2)
        assert [budget.charge(crash(step), 0.0) for step in (5, 9)] == [None, None]
        verdict = budget.charge(crash(14), 0.0)
        assert verdict is not None
        assert "3 failure(s) within an hour, and workers.max_failures is 2" in verdict

    @pytest.mark.parametrize("kind", [FailureKind.RECLAIM, FailureKind.NODE_LOST, FailureKind.NO_START])
    def test_what_the_cluster_does_is_not(self, kind: FailureKind) -> None:
        budget = FaultBudget(0)
        assert all(budget.charge(crash(step, kind), 0.0) is None for step in range(1, 50))
        assert budget.spent == 0

    def test_crashes_of_another_day_are_forgotten(self) -> None:
        """state.md 12: a run of a month ended at its fourth unrelated crash."""
        budget = FaultBudget(1)
        day_s = 86_400.0
        assert [budget.charge(crash(1000 * day), day * day_s) for day in range(30)] == [None] * 30
        verdict = budget.charge(crash(30_001), 29 * day_s + 1800)
        assert verdict is not None
        assert "2 failure(s) within an hour, and workers.max_failures is 1" in verdict

    def test_slow_failures_without_a_new_step_are_not_forgotten(self) -> None:
        """Workers that hang while they load the model fail twice an hour: they must not do so all day."""
        budget = FaultBudget(3)
        hangs = [budget.charge(crash(None, FailureKind.HANG), 1800.0 * number) for number in range(4)]
        assert hangs[:3] == [None] * 3
        assert "4 failure(s) without a new step, and workers.max_failures is 3" in str(hangs[3])

    def test_errors_at_alternating_steps_are_bugs_too(self) -> None:
        budget = FaultBudget(100)
        verdicts = [budget.charge(crash(step, FailureKind.ERROR), 0.0) for step in (7, 8, 7)]
        assert verdicts[:2] == [None, None]
        assert str(verdicts[2]).startswith("step 7 failed 2 times")

    def test_an_error_that_repeats_at_its_step_is_a_bug(self) -> None:
        budget = FaultBudget(100)
        assert budget.charge(crash(7, FailureKind.ERROR), 0.0) is None
        verdict = budget.charge(crash(7, FailureKind.ERROR), 0.0)
        assert verdict is not None
        assert verdict.startswith("step 7 failed 2 times. The first time: error at 7")

    def test_a_dead_process_may_be_an_accident_twice(self) -> None:
        budget = FaultBudget(100)
        assert [budget.charge(crash(7), 0.0) for _ in range(2)] == [None, None]
        assert budget.charge(crash(7), 0.0) is not None

    def test_errors_at_other_steps_or_before_the_loop_are_not_the_same(self) -> None:
        budget = FaultBudget(100)
        assert all(budget.charge(crash(step, FailureKind.ERROR), 0.0) is None for step in (7, None, 8, 9, None, 11))

    def test_workers_that_never_start_end_the_run_at_last(self) -> None:
        budget = FaultBudget(0)
        verdicts = [budget.charge(crash(None, FailureKind.NO_START), 0.0) for _ in range(20)]
        assert verdicts[:19] == [None] * 19
        assert "20 failures in a row without a new step" in str(verdicts[19])

    def test_nodes_that_are_lost_while_the_model_loads_end_it_too(self) -> None:
        budget = FaultBudget(0)
        assert any(budget.charge(crash(None, FailureKind.NODE_LOST), 0.0) for _ in range(20))

    def test_nodes_may_be_lost_at_one_step_for_a_while(self) -> None:
        budget = FaultBudget(0)
        verdicts = [budget.charge(crash(7, FailureKind.NODE_LOST), 0.0) for _ in range(6)]
        assert verdicts[:5] == [None] * 5
        assert "step 7 failed 6 times" in str(verdicts[5])

    def test_a_reclaimed_node_is_never_a_bug(self) -> None:
        budget = FaultBudget(0)
        assert all(budget.charge(crash(7, FailureKind.RECLAIM), 0.0) is None for _ in range(9))

    def test_it_backs_off_while_nothing_gets_done(self) -> None:
        budget = FaultBudget(100)
        waits = []
        for step in (3, None, None, None, 9, 12):
            budget.charge(crash(step), 0.0)
            waits.append(budget.wait_s)
        assert waits == [0.0, 1.0, 5.0, 15.0, 0.0, 0.0]

    def test_a_crash_that_was_the_end_of_a_node_is_taken_back(self) -> None:
        budget = FaultBudget(1)
        for _ in range(5):
            assert budget.charge(crash(7), 0.0) is None
            budget.take_back()
        assert budget.charge(crash(7), 0.0) is None
        assert "2 failure(s)" in str(budget.charge(crash(9), 0.0))


def node(name: str, cpus: float, deadline_s: float | None = None, total: float = 64.0, **more: float) -> NodeView:
    return NodeView(name, name, {"CPU": cpus, **more}, {"CPU": total, **more}, deadline_s)


class TestCapacity:
    def test_a_cpu_stays_for_data(self) -> None:
        """Two workers of one CPU on two CPUs would leave Ray Data none, which then waits for ever."""
        assert len(places_that_fit([node("a", 2)], {"CPU": 1}, 0.5, most=8)) == 1
        assert len(places_that_fit([node("a", 3)], {"CPU": 1}, 0.5, most=8)) == 2
        assert len(places_that_fit([node("a", 4)], {"CPU": 1}, 0.5, most=8)) == 2

    def test_a_worker_fits_whole_on_one_node(self) -> None:
        assert len(places_that_fit([node("a", 3), node("b", 3)], {"CPU": 2}, 0.5, most=8)) == 2

    def test_a_node_with_notice_counts_for_nothing(self) -> None:
        nodes = [node("a", 4), node("b", 4, deadline_s=math.inf)]
        assert len(places_that_fit(nodes, {"CPU": 2}, 0.5, most=8)) == 1

    def test_what_we_hold_ourselves_is_room(self) -> None:
        """Two workers run, on a and b; their pipelines hold a CPU of the head's two."""
        nodes = [node("head", 1), node("a", 0), node("b", 0), node("c", 2)]
        assert len(places_that_fit(nodes, {"CPU": 2}, 0.5, most=8, ours=["a", "b"], num_pipelines=2)) == 3
        assert len(places_that_fit(nodes, {"CPU": 2}, 0.5, most=8)) == 1

    def test_what_we_have_given_back_already_is_not_counted_twice(self) -> None:
        """A worker of two CPUs has just died on a node of two: there is room for one, not for two."""
        nodes = [node("head", 4, total=4), node("a", 2, total=2)]
        assert (
            len(places_that_fit(nodes, {"CPU": 2}, 0.5, most=8, ours=["a"], num_pipelines=1)) == 2
        )  # the other fits on the head
        assert (
            len(places_that_fit(nodes[1:], {"CPU": 2}, 0.0, most=8, ours=["a"], num_pipelines=1)) == 0
        )  # none is left for data

    def test_a_process_that_trains_not_yet_has_no_pipeline(self) -> None:
        """The head's CPUs are for three pipelines; one process on c has come up, and only a and b have theirs."""
        nodes = [node("head", 0), node("a", 0), node("b", 0), node("c", 0)]
        held = ["a", "b", "c"]
        assert len(places_that_fit(nodes, {"CPU": 2}, 0.5, most=8, ours=held, num_pipelines=3)) == 3
        assert len(places_that_fit(nodes, {"CPU": 2}, 0.5, most=8, ours=held, num_pipelines=2)) == 2

    def test_our_places_come_first_then_the_roomiest_nodes(self) -> None:
        nodes = [node("a", 4), node("b", 0), node("c", 8), node("head", 4)]
        places = places_that_fit(nodes[:3], {"CPU": 2}, 0.5, most=4, ours=["b", "b"], num_pipelines=2)
        assert places == ["b", "b", "c", "c"]

    def test_gpus(self) -> None:
        nodes = [node("head", 8), node("a", 8, GPU=4), node("b", 1, GPU=4)]
        assert len(places_that_fit(nodes, {"CPU": 1, "GPU": 1}, 0.5, most=8)) == 5

    def test_no_more_than_asked_for(self) -> None:
        assert len(places_that_fit([node("a", 64)], {"CPU": 1}, 0.5, most=3)) == 3

    def test_the_first_deadline_counts(self) -> None:
        import time

        now_s = time.time()
        nodes = [node("a", 1, now_s + 100), node("b", 1, now_s + 50), node("c", 1, now_s + 1)]
        left_s = seconds_left(nodes, ["a", "b"])
        assert left_s is not None
        assert 48 < left_s <= 50
        assert seconds_left(nodes, []) is None


def test_a_node_that_is_known_to_be_gone_is_not_counted_until_ray_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    there = [node("a", 2), node("b", 2), node("c", 2)]
    monkeypatch.setattr(capacity, "look", lambda: there)
    view = capacity.ClusterView()
    view.probed([there[0], there[2]], ours=["a", "b"])
    assert view.staying == {"a", "c"}
    assert [n.node_id for n in view.look()] == ["a", "c"]
    del there[1]  # now Ray knows
    view.look()
    assert not view.lost
