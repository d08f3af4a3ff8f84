"""Groups for A, for B and for anything else: rates and choices per factor."""

import numpy as np
import pytest
import torch

from em_core.errors import UserError
from em_train.optimisers import build
from em_train.optimisers.chained import Chained
from tests.em_train.optimisers.adapters import NAMES, STEPS, Run, gradients, relative, start
from tests.em_train.optimisers.references import adamw, sgd


def parameters(*names: str) -> list[tuple[str, torch.nn.Parameter]]:
    return [(name, torch.nn.Parameter(torch.ones(4, 4))) for name in names]


def test_factors_are_told_by_pefts_names():
    names = ["z.lora_A.default.weight", "z.lora_B.default.weight", "a.lora_A.default.weight", "a.lora_B.default.weight"]
    named = parameters(*names, "z.lora_magnitude_vector.default.weight", "head.bias")
    groups = build("adamw", named, 0.1, {}).param_groups
    assert [group["kind"] for group in groups] == ["a", "b", "other"]
    by_name = dict(named)
    assert [id(p) for p in groups[0]["params"]] == [id(by_name[names[2]]), id(by_name[names[0]])]
    assert [id(p) for p in groups[1]["params"]] == [id(by_name[names[3]]), id(by_name[names[1]])]
    assert len(groups[2]["params"]) == 2


def test_absent_kinds_have_no_group():
    assert [group["kind"] for group in build("sgd", parameters("x"), 0.1, {}).param_groups] == ["other"]


def test_lora_plus_trains_b_faster_by_the_ratio():
    """Twenty steps of AdamW on each factor at its own rate, against the formula."""
    run = Run("adamw", 1e-2, {"lr_ratio": 16.0}, start())
    expected, states = [value.astype(np.float64) for value in start()], ({}, {})
    for step, grads in enumerate(gradients()):
        run.step(grads)
        left = 1 - step / STEPS
        for side, lr in enumerate((1e-2, 16e-2)):
            expected[side] = adamw(expected[side], grads[side].astype(np.float64), states[side], step + 1, lr * left)
    for found, wanted, begin in zip(run.values(), expected, start(), strict=True):
        assert relative(found - begin, wanted - begin) < 3e-6


def test_hyperparameters_of_one_factor():
    hyper = {"momentum": 0.5, "factors": {"b": {"momentum": 0.9, "weight_decay": 0.2, "lr": 0.3}, "a": {"lr": 0.0}}}
    run = Run("sgd", 0.1, hyper, start())
    b, state = start()[1].astype(np.float64), {}
    for step, grads in enumerate(gradients()):
        run.step(grads)
        rate = 0.3 * (1 - step / STEPS)
        b = sgd(b, grads[1].astype(np.float64), state, step + 1, rate, momentum=0.9, weight_decay=0.2)
    assert np.array_equal(run.values()[0], start()[0])  # frozen by its rate
    assert relative(run.values()[1], b) < 3e-6


def test_rates_of_an_external_optimiser():
    groups = build(
        "pytorch_optimizer:lion", parameters(*NAMES), 0.1, {"lr_ratio": 4, "factors": {"a": {"betas": [0, 0]}}}
    )
    assert [group["lr"] for group in groups.param_groups] == [0.1, 0.4]
    assert [tuple(group["betas"]) for group in groups.param_groups] == [(0, 0), (0.9, 0.99)]


def test_the_papers_muon_is_torchs_class_itself():
    assert type(build("muon", parameters(*NAMES), 0.1, {})) is torch.optim.Muon


@pytest.mark.parametrize("name", ["muon", "muon_gram"])
def test_muon_leaves_the_rest_to_adamw(name):
    """A vector and an embedding are no LoRA factors: one is no matrix, the other must not be orthogonalised."""
    named = [*parameters(*NAMES, "embedding.weight"), ("norm.weight", torch.nn.Parameter(torch.ones(3)))]
    optimiser = build(name, named, 0.1, {"adamw_lr": 0.01, "adamw_betas": (0.5, 0.6)})
    assert isinstance(optimiser, Chained) and isinstance(optimiser.parts[1], torch.optim.AdamW)
    assert [(group["kind"], group["lr"]) for group in optimiser.param_groups] == [
        ("a", 0.1),
        ("b", 0.1),
        ("other", 0.01),
    ]
    for _, parameter in named:
        parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0))
    optimiser.step()
    for _, parameter in named[2:]:  # AdamW's first step: the rate in every element, after the decay
        moved = parameter.detach() - (1 - 0.01 * 0.01)
        torch.testing.assert_close(moved.abs(), torch.full_like(moved, 0.01), rtol=1e-3, atol=0)


@pytest.mark.parametrize("name", ["lora_muon", "pytorch_optimizer:lorarite"])
@pytest.mark.parametrize(
    "names, lonely",
    [
        (("x.lora_A.weight", "x.lora_B.weight", "y.lora_A.weight"), r"y\.lora_\?\.weight"),
        (("x.lora_A.weight", "x.lora_B.weight", "norm.weight"), r"norm\.weight"),
    ],
)
def test_pairs_must_be_whole(name, names, lonely):
    with pytest.raises(UserError, match=f"{lonely} has no partner"):
        build(name, parameters(*names), 0.1, {})


def test_pairs_are_matched_by_module():
    """Two modules of different sizes, listed in an order that mixes them."""
    named = [
        ("y.lora_B.weight", torch.nn.Parameter(torch.zeros(10, 3))),
        ("x.lora_A.weight", torch.nn.Parameter(torch.randn(2, 5, generator=torch.Generator().manual_seed(0)))),
        ("y.lora_A.weight", torch.nn.Parameter(torch.randn(3, 7, generator=torch.Generator().manual_seed(1)))),
        ("x.lora_B.weight", torch.nn.Parameter(torch.zeros(6, 2))),
    ]
    for name in ("lora_muon", "pytorch_optimizer:lorarite"):
        optimiser = build(name, named, 0.1, {})
        for _ in range(2):
            for _, parameter in named:
                parameter.grad = torch.randn(parameter.shape, generator=torch.Generator().manual_seed(2))
            optimiser.step()
        assert all(bool(torch.isfinite(parameter).all()) for _, parameter in named)
        assert all(bool(parameter.any()) for _, parameter in named)
