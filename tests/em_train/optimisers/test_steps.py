"""What every optimiser of the registry owes a trainer: state that continues bitwise, determinism, closures."""

import inspect
import io

import numpy as np
import pytest
import torch

from em_train.optimisers import OptimiserPlugin, build, find, optimiser_registry
from em_train.optimisers.registry import Hyperparameters
from tests.em_train.optimisers.adapters import NAMES, Run, gradients, start

EVERY = optimiser_registry.names()
VARIANTS = [(name, {}) for name in EVERY] + [
    ("muon", {"orthogonalise": "b"}),
    ("muon_gram", {"polar": "exact", "orthogonalise": "b"}),
    ("signsgd", {"momentum": 0.9}),
    ("soap", {"max_precondition_dim": 16, "precondition_frequency": 3}),
    ("pytorch_optimizer:prodigy", {}),
    ("pytorch_optimizer:lorarite", {}),
    ("torch:nadam", {}),
]


@pytest.mark.parametrize("name, hyper", VARIANTS, ids=[f"{n}-{'-'.join(h)}" for n, h in VARIANTS])
def test_saved_state_continues_bitwise(name, hyper):
    """Through torch.save and a weights-only load, as the trainer resumes."""
    every = gradients()
    run = Run(name, 0.01, hyper, start())
    for grads in every[:10]:
        run.step(grads)
    stream = io.BytesIO()
    torch.save({"optimiser": run.optimiser.state_dict(), "schedule": run.schedule.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    other = Run(name, 0.01, hyper, run.values())
    other.optimiser.load_state_dict(saved["optimiser"])
    other.schedule.load_state_dict(saved["schedule"])
    for grads in every[10:]:
        for one, two in zip(run.step(grads), other.step(grads), strict=True):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("name, hyper", VARIANTS, ids=[f"{n}-{'-'.join(h)}" for n, h in VARIANTS])
def test_twice_the_same_bytes(name, hyper):
    runs = [Run(name, 0.01, hyper, start()) for _ in range(2)]
    for grads in gradients():
        one, two = (run.step(grads) for run in runs)
    assert all(left.tobytes() == right.tobytes() for left, right in zip(one, two, strict=True))
    assert all(not np.array_equal(value, begin) for value, begin in zip(one, start(), strict=True))


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"lora_muon"}))
def test_parameter_without_gradient_stays(name):
    idle, busy = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimiser = build(name, [("i.lora_A.weight", idle), ("b.lora_A.weight", busy)], 0.1, {"weight_decay": 0.5})
    chance = torch.Generator().manual_seed(0)
    for _ in range(2):
        busy.grad = torch.randn(4, 4, generator=chance)
        optimiser.step()
    assert torch.equal(idle, torch.ones(4, 4)) and not torch.equal(busy, torch.ones(4, 4))


@pytest.mark.parametrize("name", sorted(set(EVERY) - {"adafactor"}))  # transformers' own calls it without gradients
def test_closure_is_called_with_gradients_on(name):
    parameters = [torch.nn.Parameter(torch.ones(4, 4) / 2) for _ in NAMES]
    optimiser = build(name, list(zip(NAMES, parameters, strict=True)), 0.1, {})

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = sum(parameter.square().sum() for parameter in parameters)
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 8.0
    optimiser.step(closure)
    assert float(sum(parameter.detach().square().sum() for parameter in parameters)) < 8.0


@pytest.mark.parametrize("name", EVERY)
def test_every_registered_optimiser_is_documented(name):
    plugin = find(name)
    assert isinstance(plugin, OptimiserPlugin) and issubclass(plugin.hyperparameters, Hyperparameters)
    assert plugin.source and inspect.getmodule(plugin.build).__doc__


@pytest.mark.parametrize("name", ["muon", "muon_gram"])
def test_chained_parts_follow_the_schedule_after_a_load(name):
    """Loading makes new groups: the parts must see those, or the schedule would move nothing."""
    run = Run(name, 0.01, {"orthogonalise": "b"}, start())
    for grads in gradients()[:2]:
        run.step(grads)
    run.optimiser.load_state_dict(run.optimiser.state_dict())
    for group in run.optimiser.param_groups:
        group["lr"] = 0.0
        group["weight_decay"] = 0.0
    before = run.values()
    after = run.step(gradients()[2])
    assert all(np.array_equal(one, two) for one, two in zip(before, after, strict=True))


def test_bfloat16_factors_are_stepped_in_their_own_dtype():
    for name in ("muon_gram", "lora_muon", "lion"):
        factors = [torch.nn.Parameter(torch.ones(4, 6).bfloat16()), torch.nn.Parameter(torch.ones(8, 4).bfloat16())]
        optimiser = build(name, list(zip(NAMES, factors, strict=True)), 0.1, {})
        for factor in factors:
            factor.grad = torch.randn(factor.shape, generator=torch.Generator().manual_seed(0)).bfloat16()
        optimiser.step()
        assert all(factor.dtype == torch.bfloat16 and bool(torch.isfinite(factor).all()) for factor in factors)
