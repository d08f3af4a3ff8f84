"""Hyper-parameters by name and range, of the built-in optimisers and of the libraries' own."""

from typing import Any

import pytest
import torch

from em_core.errors import UserError
from em_train.optimisers import build, find, resolve

COMMON = {"lr_ratio": 1.0, "factors": {}}


def build_tiny(name: str, hyper: dict[str, Any]) -> torch.optim.Optimizer:
    return build(name, [("m.lora_A.weight", torch.nn.Parameter(torch.zeros(2, 2)))], 0.1, hyper)


def test_resolve_fills_every_default():
    assert resolve("adamw", {}) == COMMON | {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
    assert resolve("adam", {}) == COMMON | {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.0}
    assert resolve("lion", {"betas": [0.5, 0.6]}) == COMMON | {"betas": [0.5, 0.6], "weight_decay": 0.0}
    assert resolve("sgd", {}) == COMMON | {"momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}
    assert resolve("muon", {"momentum": 0.9}) == COMMON | {
        "momentum": 0.9,
        "nesterov": True,
        "ns_steps": 5,
        "eps": 1e-7,
        "weight_decay": 0.1,
        "adjust_lr_fn": "original",
        "orthogonalise": "ab",
        "adamw_lr": None,
        "adamw_betas": [0.9, 0.999],
        "adamw_eps": 1e-8,
        "adamw_weight_decay": 0.01,
    }


def test_resolving_what_was_resolved_changes_nothing():
    for name in ("muon", "soap", "pytorch_optimizer:prodigy", "torch:rprop"):
        assert resolve(name, resolve(name, {})) == resolve(name, {})


# Settings of other names than the resolved ones: the scalings of muon's AdamW, what the plugin fixes.
@pytest.mark.parametrize(
    "name",
    ["adam", "adamw", "lion", "sgd", "lora_muon", "signsgd", "soap", "adafactor", "schedule_free_adamw"]
    + ["torch:radam", "pytorch_optimizer:ademamix"],
)
def test_resolved_values_are_what_the_optimiser_uses(name):
    resolved = resolve(name, {"weight_decay": 0.25})
    plain = {key: value for key, value in resolved.items() if key not in COMMON}
    parameters = [("m.lora_A.weight", torch.zeros(2, 4)), ("m.lora_B.weight", torch.zeros(4, 2))]
    optimiser = build(name, [(key, torch.nn.Parameter(value)) for key, value in parameters], 0.5, resolved)
    for group in optimiser.param_groups:
        assert group["lr"] == 0.5
        for key, value in plain.items():
            assert group[key] == (tuple(value) if isinstance(value, list) else value)


@pytest.mark.parametrize(
    "name, known",
    [
        ("muon", "lr, momentum, nesterov, ns_steps, eps, weight_decay, adjust_lr_fn, .*, lr_ratio, factors"),
        ("torch:adamw", "lr, betas, eps, weight_decay, amsgrad, lr_ratio, factors"),
        ("pytorch_optimizer:lion", "lr, betas, weight_decay, .*, lr_ratio, factors"),
    ],
)
def test_unknown_hyperparameter_lists_the_known_ones(name, known):
    """pytorch_optimizer itself would swallow it."""
    with pytest.raises(UserError, match=f"has no hyper-parameter 'nestrov': it knows {known}"):
        resolve(name, {"nestrov": True})


def test_unknown_optimiser_suggests():
    for call in (lambda: resolve("moun", {}), lambda: build("moun", [], 0.1, {})):
        with pytest.raises(UserError, match="did you mean .*muon"):
            call()


OUT_OF_RANGE = [
    ("adamw", {"eps": 0}, "eps"),
    ("adamw", {"weight_decay": -0.1}, "weight_decay"),
    ("adamw", {"betas": [0.9]}, "betas"),
    ("adamw", {"betas": "high"}, "betas"),
    ("adamw", {"weight_decay": float("nan")}, "weight_decay"),
    ("adam", {"betas": (0.9, 1.5)}, "betas.1"),
    ("adamw", {"betas": (1.0, 0.999)}, "betas.0"),
    ("adamw", {"lr_ratio": 0}, "lr_ratio"),
    ("lion", {"weight_decay": -1}, "weight_decay"),
    ("lion", {"weight_decay": float("inf")}, "weight_decay"),
    ("lion", {"betas": (0.9, -1.0)}, "betas.1"),
    ("sgd", {"momentum": 1.0}, "momentum"),
    ("sgd", {"dampening": 2}, "dampening"),
    ("muon", {"momentum": -0.1}, "momentum"),
    ("muon", {"ns_steps": 0}, "ns_steps"),
    ("muon", {"ns_steps": 100}, "ns_steps"),
    ("muon", {"adjust_lr_fn": "moonlight"}, "adjust_lr_fn"),
    ("muon", {"orthogonalise": "a"}, "orthogonalise"),
    ("muon_gram", {"polar": "svd"}, "polar"),
    ("lora_muon", {"damping": 1}, "damping"),
    ("signsgd", {"momentum": 1}, "momentum"),
    ("soap", {"precondition_frequency": 0}, "precondition_frequency"),
    ("adafactor", {"clip_threshold": 0.5}, "clip_threshold"),
    ("schedule_free_adamw", {"betas": (0.0, 0.9)}, "betas.0"),
    ("torch:adamw", {"eps": -1}, "eps"),
    ("torch:adamw", {"betas": [0.9, 2]}, "betas.1"),
    ("torch:rprop", {"etas": "small"}, "etas"),
    ("pytorch_optimizer:lion", {"betas": [0.9, 2.0]}, "betas"),
    ("pytorch_optimizer:prodigy", {"d0": "tiny"}, "d0"),
    ("adamw", {"factors": {"c": {}}}, "factors.c"),
    ("adamw", {"factors": {"a": {"eps": -1}}}, "factors.a.eps"),
    ("adamw", {"factors": {"a": {"lr": -1}}}, "factors.a.lr"),
]


@pytest.mark.parametrize("name, hyper, field", OUT_OF_RANGE)
def test_value_out_of_range_names_optimiser_field_and_value(name, hyper, field):
    with pytest.raises(UserError) as caught:
        resolve(name, hyper)
    assert f"optimiser '{name}': {field}" in str(caught.value) and "got" in str(caught.value)
    with pytest.raises(UserError):
        build_tiny(name, hyper)


REFUSED = {
    "sgd nesterov without momentum": ("sgd", {"momentum": 0.0, "nesterov": True}, "nesterov"),
    "sgd nesterov with dampening": ("sgd", {"dampening": 0.5, "nesterov": True}, "nesterov"),
    "a range only the constructor knows": ("torch:rprop", {"etas": [2.0, 3.0]}, "etas|eta"),
    "and one of pytorch_optimizer": ("pytorch_optimizer:soap", {"precondition_frequency": 0}, "precondition_freq"),
    "both rates of B": ("adamw", {"lr_ratio": 2, "factors": {"b": {"lr": 0.1}}}, "choose one"),
    "unknown name for one factor": ("adamw", {"factors": {"b": {"beta": 1}}}, "factors.b.beta': it knows lr"),
    "a ratio within a factor": ("adamw", {"factors": {"b": {"lr_ratio": 2}}}, "cannot differ between factors"),
    "a choice of the whole": ("muon", {"factors": {"b": {"orthogonalise": "b"}}}, "cannot differ between factors"),
    "AdamW's decay where Muon steps": (
        "muon",
        {"factors": {"a": {"adamw_weight_decay": 0.1}}},
        "^factors.a.adamw_weight_decay has no effect: Muon steps these; leave it out$",
    ),
    "Muon's decay where AdamW steps": (
        "muon_gram",
        {"orthogonalise": "b", "factors": {"a": {"weight_decay": 0.1, "lr": 0.1}}},
        "factors.a.weight_decay has no effect: AdamW steps these",
    ),
    "two rates of AdamW": (
        "muon",
        {"orthogonalise": "b", "adamw_lr": 0.01, "factors": {"a": {"lr": 0.1}}},
        "factors.a.lr has no effect: AdamW at adamw_lr=0.01 steps these",
    ),
    "pairs at two rates": ("lora_muon", {"lr_ratio": 2}, "leave out lr_ratio"),
    "pairs at two momenta": ("lora_muon", {"factors": {"b": {"momentum": 0.5}}}, "cannot differ between factors"),
    "pairs of LoRA-RITE": ("pytorch_optimizer:lorarite", {"lr_ratio": 2}, "leave out lr_ratio"),
    "not a group's value": (
        "pytorch_optimizer:soap",
        {"factors": {"b": {"data_format": "channels_last"}}},
        "one data_format for all",
    ),
}


@pytest.mark.parametrize("name, hyper, text", REFUSED.values(), ids=REFUSED)
def test_impossible_combinations_are_user_errors(name, hyper, text):
    with pytest.raises(UserError, match=text):
        resolve(name, hyper)


def test_settings_of_whichever_steps_a_factor_reach_it():
    factors = {"a": {"lr": 0.3, "adamw_eps": 1e-3}, "b": {"momentum": 0.5, "lr": 0.2}}
    parameters = [("m.lora_A.weight", torch.zeros(2, 4)), ("m.lora_B.weight", torch.zeros(4, 2))]
    named = [(name, torch.nn.Parameter(value)) for name, value in parameters]
    groups = build("muon", named, 0.1, {"orthogonalise": "b", "factors": factors}).param_groups
    a, b = sorted(groups, key=lambda group: group["kind"])
    assert (a["lr"], a["eps"], b["lr"], b["momentum"]) == (0.3, 1e-3, 0.2, 0.5)


def test_decay_of_lora_muon_must_leave_something():
    parameters = [("m.lora_A.weight", torch.zeros(2, 4)), ("m.lora_B.weight", torch.zeros(4, 2))]
    with pytest.raises(UserError, match="lr x weight_decay is 2, not below 1"):
        build("lora_muon", [(n, torch.nn.Parameter(p)) for n, p in parameters], 0.5, {"weight_decay": 4.0})


UNUSABLE = {
    "torch:LBFGS": "parameter groups",
    "torch:SparseAdam": "dense gradients",
    "torch:Optimizer": "torch has no optimiser 'Optimizer'",
    "torch:AdmaW": "did you mean adamw",
    "tensorflow:adam": "unknown library 'tensorflow': known: torch, pytorch_optimizer",
    "pytorch_optimizer:prodgy": "did you mean prodigy",
    "pytorch_optimizer:lomo": "not made from parameters",
    "pytorch_optimizer:sophiah": "cannot step under a trainer",
    "pytorch_optimizer:conda": "could not resume",
    "pytorch_optimizer:ranger21": "num_iterations: Field required",
}


@pytest.mark.parametrize("name, text", UNUSABLE.items(), ids=UNUSABLE)
def test_optimiser_that_a_trainer_cannot_use_is_refused_in_one_line(name, text):
    with pytest.raises(UserError, match=text) as caught:
        resolve(name, {})
    assert len(str(caught.value)) < 1000


def test_resolving_draws_no_random_numbers():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    resolve("pytorch_optimizer:kron", {})
    assert torch.equal(torch.rand(3), expected)


def test_sources_name_the_implementation():
    assert find("torch:ADAMW").source == "torch.optim.AdamW"
    assert find("pytorch_optimizer:Prodigy").source == "pytorch_optimizer.Prodigy"
