"""Optimizers of the user's: those that treat each element alone can be sharded, all others are refused. No Ray."""

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from running import tiny_run
from torch import Tensor

from raytrain.config import OptimizerConfig, TrainingConfig
from raytrain.config.io import dump_config, parse_config
from raytrain.config.yaml import parse_yaml
from raytrain.engine.optimizer import make_optimizer
from raytrain.engine.own_optimizer import ADAMW, StateLayout, layout_of
from raytrain.errors import ConfigError
from raytrain.runs.preflight import resolve

SOURCE = '''
import torch
from torch.optim import Optimizer


class Base(Optimizer):
    def __init__(self, params, lr, scale=1.0):
        super().__init__(params, {"lr": lr, "scale": scale})
        self.count = 0
        self.first_rate = lr

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.sub_(group["lr"] * self.update(parameter, parameter.grad, self.state[parameter], group))

    def update(self, parameter, gradient, state, group):
        raise NotImplementedError


class Lion(Base):
    """One moment, and no count of steps."""

    def update(self, parameter, gradient, state, group):
        mean = state.setdefault("mean", torch.zeros_like(parameter))
        found = (0.9 * mean + 0.1 * gradient).sign()
        mean.mul_(0.99).add_(gradient, alpha=0.01)
        return found * group["scale"]


class Counts(Base):
    def update(self, parameter, gradient, state, group):
        state["step"] = state.get("step", 0) + 1
        return gradient / state["step"]


class Lamb(Base):
    def update(self, parameter, gradient, state, group):
        return gradient * parameter.norm() / gradient.norm()


class Shaped(Base):
    def update(self, parameter, gradient, state, group):
        return gradient / (2.0 if parameter.ndim > 1 else 1.0)


class Noisy(Base):
    def update(self, parameter, gradient, state, group):
        return gradient + torch.randn_like(gradient)


class Elsewhere(Base):
    def update(self, parameter, gradient, state, group):
        self.count += 1
        return gradient / self.count


class InGroup(Base):
    def update(self, parameter, gradient, state, group):
        group["k"] = group.get("k", 0) + 1
        return gradient / group["k"]


class Rows(Base):
    def update(self, parameter, gradient, state, group):
        state["rows"] = gradient.mean(0)
        return gradient


class NormOfAll(Base):
    """Cut into parts that one optimizer has, it would pass."""

    def update(self, parameter, gradient, state, group):
        return gradient / sum(one.grad.square().sum() for one in group["params"]).sqrt()


class ClipsLarge(Base):
    def update(self, parameter, gradient, state, group):
        return gradient * min(1.0, float(100 / gradient.norm()))


class Projects(Base):
    """As AdamP, weights whose scale has no effect."""

    def update(self, parameter, gradient, state, group):
        product, norms = (parameter * gradient).sum(), parameter.norm() * gradient.norm()
        is_scaleless = parameter.ndim > 1 and product.abs() < 0.02 * norms
        return gradient - product * parameter / parameter.norm() ** 2 if is_scaleless else gradient


class FirstIsSpecial(Base):
    def update(self, parameter, gradient, state, group):
        return gradient if parameter is group["params"][0] else gradient / 2


class EveryHundredth(Elsewhere):
    def update(self, parameter, gradient, state, group):
        self.count += 1
        return gradient * (10 if self.count % 100 == 0 else 1)


class CountsByTwo(Base):
    def update(self, parameter, gradient, state, group):
        state["step"] = state.get("step", 0) + 2
        return gradient / state["step"]


class FixedRate(Base):
    def update(self, parameter, gradient, state, group):
        return gradient * self.first_rate / group["lr"]


class Fails(Base):
    def update(self, parameter, gradient, state, group):
        return gradient / group["no_such"]
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    (tmp_path / "optimizers_of_mine.py").write_text(SOURCE)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    yield tmp_path
    sys.modules.pop("optimizers_of_mine", None)


def own(name: str, **args: Any) -> OptimizerConfig:
    target = name if ":" in name else f"optimizers_of_mine:{name}"
    return OptimizerConfig(learning_rate=0.1, target=target, args=args)


@pytest.mark.parametrize(
    ("optimizer", "expected"),
    [
        (OptimizerConfig(), ADAMW),
        (own("Lion", scale=0.5), StateLayout(("mean",), None)),
        (own("Counts"), StateLayout((), int)),
        (own("torch.optim:SGD"), StateLayout((), None)),
        (own("torch.optim:SGD", momentum=0.9, nesterov=True), StateLayout(("momentum_buffer",), None)),
        (own("torch.optim:RAdam"), StateLayout(("exp_avg", "exp_avg_sq"), Tensor)),
        (own("torch.optim:AdamW", betas=[0.8, 0.9]), StateLayout(("exp_avg", "exp_avg_sq"), Tensor)),
        (own("torch.optim:RMSprop"), StateLayout(("square_avg",), Tensor)),
        (own("torch.optim:Adadelta"), StateLayout(("acc_delta", "square_avg"), Tensor)),
    ],
)
def test_what_treats_each_element_alone_can_be_sharded(optimizer: OptimizerConfig, expected: StateLayout) -> None:
    before = torch.random.get_rng_state()
    assert layout_of(optimizer) == expected
    assert torch.equal(torch.random.get_rng_state(), before)


@pytest.mark.parametrize(
    ("optimizer", "said"),
    [
        (own("Lamb"), "the update of an element depends on others, of its tensor"),
        (
            own("Shaped"),
            "depends on others, of its tensor or of other tensors, or on the tensor's shape",
        ),
        (own("torch.optim:Adafactor"), r"its state '(row|col)_var' is a tensor of shape"),
        (own("torch.optim:Muon"), "depends on others, of its tensor|can't be made|step failed"),
        (own("torch.optim:Adagrad"), "it keeps state before its first step"),
        (own("torch.optim:NAdam"), "its state 'mu_product' is a tensor of shape"),
        (own("Noisy"), "it draws random numbers, or keeps something elsewhere"),
        (own("Elsewhere"), "depends on others, of its tensor or of other tensors"),
        (own("EveryHundredth"), "its step changes 'count' of its own, which is not saved"),
        (own("CountsByTwo"), "continued from its tensors shaped like the parameter and 'step', the number of updates"),
        (own("NormOfAll"), "the update of an element depends on others, of its tensor or of other tensors"),
        (own("ClipsLarge"), "the update of an element depends on others, of its tensor or of other tensors"),
        (own("Projects"), "the update of an element depends on others, of its tensor or of other tensors"),
        (own("FirstIsSpecial"), "the update of an element depends on others, of its tensor or of other tensors"),
        (own("FixedRate"), "its step does not depend on `lr` of its parameter groups"),
        (own("torch.optim:Rprop"), "its step does not depend on `lr` of its parameter groups"),
        (own("InGroup"), "its step changes 'k' of its parameter groups, which is not saved"),
        (own("Rows"), r"its state 'rows' is a tensor of shape \(6,\)"),
        (own("Fails"), r"step failed: KeyError: 'no_such' \(.*optimizers_of_mine.py, line \d+\)"),
        (own("Lion", size=3), r"it can't be made of training.optimizer.args \{'size': 3\}: TypeError"),
        (own("Lyon"), "has no 'Lyon'; did you mean Lion"),
        (own("torch.nn:Linear"), "is not a subclass of torch.optim.Optimizer"),
    ],
)
def test_what_can_not_be_sharded_is_refused_with_the_reason(optimizer: OptimizerConfig, said: str) -> None:
    with pytest.raises(ConfigError, match=f"(?s)^training.optimizer.target.*({said})"):
        layout_of(optimizer)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["training.optimizer.args={momentum: 1}"], "training.optimizer.args are those of training.optimizer.target"),
        (["training.optimizer={target: 'torch.optim:SGD', beta1: 0.8}"], "training.optimizer.beta1 is AdamW's and has"),
        (["training.optimizer={target: 'torch.optim:SGD', args: {lr: 1}}"], "set training.optimizer.learning_rate"),
        (["training.optimizer={target: 'torch.optim.SGD'}"], "training.optimizer.target"),
    ],
)
def test_a_config_that_can_not_be_meant(tmp_path: Path, words: list[str], said: str) -> None:
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    with pytest.raises(ConfigError, match=said):
        parse_config(raw, words)


def test_its_file_is_part_of_the_experiment(tmp_path: Path, here: Path) -> None:
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    config = resolve(parse_config(raw, ["training.optimizer={target: 'optimizers_of_mine:Lion'}"]))
    assert config.training.optimizer.source is not None
    (here / "optimizers_of_mine.py").write_text(SOURCE + "# changed\n")
    with pytest.raises(ConfigError, match="the files of this package are not those that the run was started with"):
        layout_of(config.training.optimizer)
    torchs = resolve(parse_config(raw, ["training.optimizer={target: 'torch.optim:SGD'}"]))
    assert torchs.training.optimizer.source is None, "versions of packages are recorded as those of all others"


def test_the_config_of_a_run_is_read_again(tmp_path: Path) -> None:
    """config.yaml has every field, those of AdamW too."""
    raw = tiny_run(tmp_path, "a").model_dump(mode="json", exclude_unset=True)
    words = ["training.optimizer={target: 'optimizers_of_mine:Lion'}", "training.schedule={target: 'some:thing'}"]
    config = parse_config(raw, words)
    again = parse_config(parse_yaml(dump_config(config)))
    assert again == config
    make_optimizer(torch.nn.Linear(2, 2), again.training)


def test_weight_decay_that_it_has_not_is_not_ignored(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ConfigError, match=r"training.optimizer.weight_decay 0.1 has no effect: .*:Lion has no"):
        make_optimizer(
            model, TrainingConfig(optimizer=OptimizerConfig(target="optimizers_of_mine:Lion", weight_decay=0.1))
        )
    sgd = OptimizerConfig(target="torch.optim:SGD", weight_decay=0.1)
    decayed, not_decayed = make_optimizer(model, TrainingConfig(optimizer=sgd)).param_groups
    assert (decayed["weight_decay"], not_decayed["weight_decay"]) == (0.1, 0.0)
