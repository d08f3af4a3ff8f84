"""Every built-in optimiser against the formulas of its paper, in float64 NumPy, on matrices of LoRA's shapes.

B = 0 at the start, so that A's first gradient is exactly zero, as in training. Twenty steps, a linear schedule
through torch's own LambdaLR.
"""

import math
from typing import Any

import numpy as np
import pytest
import torch

from em_train.optimisers import build, find, optimiser_registry
from tests.em_train.optimisers.adapters import SHAPES, STEPS, Run, gradients, rate, relative, start
from tests.em_train.optimisers.references import REFERENCES

# torch's Muon multiplies in bfloat16 (8 bits of mantissa): one rounding is 2^-9 = 0.2 % relative, the slope of the
# iteration at small singular values (3.44^5) amplifies it. Measured here: 2.5 % of one update, and 0.7 % of twenty,
# where the errors of single steps average out; the bounds are twice to three times that, since other machines sum
# bfloat16 products differently. The others are float32 throughout, which left at most 2e-6; more room is given to
# those with r x r eigenvectors or iterations in between.
TOLERANCE = {"muon": 0.02, "soap": 1e-4, "lora_muon": 1e-5, "muon_gram": 1e-5}
MUON_STEP_TOLERANCE = 0.05
SMALL = {"max_precondition_dim": 16}  # below the long sides, as 256 is for a real module
CASES: list[tuple[str, float, dict[str, Any]]] = [
    ("adam", 1e-2, {}),
    ("adam", 1e-2, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.3}),
    ("adamw", 1e-2, {}),
    ("adamw", 1e-2, {"betas": (0.8, 0.95), "eps": 1e-3, "weight_decay": 0.0}),
    ("adamw", 1e-2, {"weight_decay": 2.0}),
    ("lion", 1e-2, {}),
    ("lion", 1e-2, {"betas": (0.95, 0.98), "weight_decay": 2.0}),
    ("sgd", 0.1, {}),
    ("sgd", 0.1, {"momentum": 0.5, "weight_decay": 0.3, "nesterov": True}),
    ("sgd", 0.1, {"momentum": 0.5, "dampening": 0.5}),
    ("sgd", 0.1, {"momentum": 0.0}),
    ("muon", 0.02, {}),
    ("muon", 0.02, {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0}),
    ("muon", 0.02, {"nesterov": False, "momentum": 0.8, "weight_decay": 3.0}),
    ("muon", 0.02, {"ns_steps": 3, "adjust_lr_fn": "match_rms_adamw"}),
    ("muon", 0.02, {"orthogonalise": "b"}),
    ("muon", 0.02, {"orthogonalise": "b", "adamw_lr": 0.5, "adamw_weight_decay": 1.0}),
    ("muon_gram", 0.02, {}),
    ("muon_gram", 0.02, {"adjust_lr_fn": "match_rms_adamw", "weight_decay": 0.0}),
    ("muon_gram", 0.02, {"nesterov": False, "momentum": 0.8, "weight_decay": 3.0, "ns_steps": 3}),
    ("muon_gram", 0.02, {"polar": "exact", "weight_decay": 1.0}),
    ("muon_gram", 0.02, {"polar": "exact", "orthogonalise": "b"}),
    ("lora_muon", 0.1, {}),
    ("lora_muon", 0.1, {"momentum": 0.8, "damping": 0.01, "weight_decay": 1.0}),
    ("signsgd", 1e-2, {}),
    ("signsgd", 1e-2, {"momentum": 0.9, "weight_decay": 2.0}),
    ("soap", 1e-2, SMALL),
    ("soap", 1e-2, {"precondition_frequency": 3, "betas": (0.9, 0.8), "weight_decay": 2.0} | SMALL),
    ("adafactor", 1e-2, {}),
    ("adafactor", 0.3, {"scale_parameter": True, "beta1": 0.9, "weight_decay": 0.3}),
    ("adafactor", 1e-2, {"clip_threshold": 1.5}),
    ("schedule_free_adamw", 1e-2, {}),
    ("schedule_free_adamw", 1e-2, {"betas": (0.95, 0.99), "weight_decay": 0.5, "r": 1.0, "weight_lr_power": 1.0}),
]


def on_rate(hyper: dict[str, Any], lr: float) -> dict[str, Any]:
    """The references take AdamW's rate as a multiple of Muon's."""
    return hyper | {"adamw_lr": lr * hyper["adamw_lr"]} if "adamw_lr" in hyper else hyper


def test_every_built_in_has_a_reference():
    assert set(REFERENCES) == set(optimiser_registry.names()) == {name for name, _, _ in CASES}


@pytest.mark.parametrize("name, lr, hyper", CASES, ids=[f"{n}-{'-'.join(h) or 'defaults'}" for n, _, h in CASES])
def test_twenty_steps_equal_the_papers_formula(name, lr, hyper):
    run = Run(name, lr, on_rate(hyper, lr), start())
    expected = [value.astype(np.float64) for value in start()]
    state: dict[str, Any] = {}
    for step, grads in enumerate(gradients()):
        before, previous = run.values(), expected
        found = run.step(grads)
        expected = REFERENCES[name](
            previous, [grad.astype(np.float64) for grad in grads], state, step + 1, rate(lr, step), **hyper
        )
        if name == "muon":
            for side in (0, 1) if np.any(grads[0]) else (1,):
                moved = found[side].astype(np.float64) - before[side]
                assert relative(moved, expected[side] - previous[side]) < MUON_STEP_TOLERANCE
    for side, value in enumerate(run.values()):
        change = expected[side] - start()[side]
        assert relative(value - start()[side], change) < TOLERANCE.get(name, 3e-6)
        assert np.linalg.norm(change) > 1e-2  # it did move


@pytest.mark.parametrize("hyper", [{}, {"betas": (0.95, 0.99), "weight_decay": 0.5, "r": 1.0}], ids=["defaults", "all"])
def test_schedule_free_publishes_the_papers_x(hyper):
    run = Run("schedule_free_adamw", 1e-2, hyper, start())
    expected = [value.astype(np.float64) for value in start()]
    state: dict[str, Any] = {}
    for step, grads in enumerate(gradients()):
        run.step(grads)
        expected = REFERENCES["schedule_free_adamw"](
            expected, [grad.astype(np.float64) for grad in grads], state, step + 1, rate(1e-2, step), **hyper
        )
    publish = find("schedule_free_adamw").evaluation_weights
    assert publish is not None
    values = publish(run.optimiser)
    for parameter, reference in zip(run.parameters, state["each"], strict=True):
        x = values[parameter].numpy()
        assert relative(x, reference["x"]) < 3e-6
        assert relative(parameter.detach().numpy(), reference["x"]) > 1e-3  # y is another


@pytest.mark.parametrize("name", REFERENCES)
def test_zero_first_gradient_moves_nothing_but_the_decay(name):
    run = Run(name, 0.01, {"weight_decay": 0.0}, start())
    a, b = run.step(gradients()[0])
    assert np.array_equal(a, start()[0])
    assert np.all(np.isfinite(b))
    if name == "soap":  # whose first step is for the eigenbases only
        assert not np.any(b)
        a, b = run.step(gradients()[0])
        assert np.array_equal(a, start()[0])
    assert np.any(b != 0)


# Not among them: L2 terms go through the normalisation (adam), z decays and y follows (schedule_free_adamw), the first
# step of soap does nothing, and lora_muon shares the decay of BA between A and B.
DECOUPLED = ("adamw", "lion", "sgd", "muon", "muon_gram", "signsgd", "adafactor")


@pytest.mark.parametrize("name", DECOUPLED)
def test_weight_decay_alone(name):
    """Without gradients a decoupled decay shrinks by (1 - lr wd) a step; SGD's goes through its momentum."""
    lr, decay = 0.1, 0.5
    hyper = {"weight_decay": decay} | ({"momentum": 0.0} if name == "sgd" else {})
    run = Run(name, lr, hyper, start())
    for _ in range(STEPS):
        run.step([np.zeros(shape, np.float32) for shape in SHAPES])
    expected = start()[0] * math.prod(1 - rate(lr, step) * decay for step in range(STEPS))
    np.testing.assert_allclose(run.values()[0], expected, rtol=1e-5)


@pytest.mark.parametrize("name", ["lion", "signsgd"])
def test_signs_move_every_element_by_the_rate(name):
    run = Run(name, 0.01, {}, start())
    run.step(gradients()[0])
    before = run.values()
    after = run.step(gradients()[1])
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(np.abs(new - old), rate(0.01, 1), rtol=1e-4)


@pytest.mark.parametrize("name", ["muon", "muon_gram"])
@pytest.mark.parametrize(
    "adjust, sizes", [("original", ((1 / 512) ** 0.5, (32 / 512) ** 0.5)), ("match_rms_adamw", (0.2, 0.2))]
)
def test_muon_scalings_give_the_documented_update_sizes(name, adjust, sizes):
    """RMS per element at rate 1 of A (16 x 512) and B (512 x 16): an orthogonal A has elements of sqrt(1/512)."""
    chance = torch.Generator().manual_seed(0)
    for side, shape, size in zip("AB", ((16, 512), (512, 16)), sizes, strict=True):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        optimiser = build(
            name, [(f"m.lora_{side}.weight", parameter)], 1.0, {"adjust_lr_fn": adjust, "weight_decay": 0.0}
        )
        parameter.grad = torch.randn(shape, generator=chance)
        optimiser.step()
        # Newton-Schulz leaves singular values between 0.7 and 1.2, hence the width.
        assert 0.7 < float(parameter.detach().square().mean().sqrt()) / size < 1.2


class TestLoRAMuon:
    def product_change(self, a: np.ndarray, b: np.ndarray, grads: list[np.ndarray], lr: float) -> np.ndarray:
        run = Run("lora_muon", lr, {"damping": 0.0}, [a, b])
        new_a, new_b = (value.astype(np.float64) for value in run.step(grads))
        return new_b @ new_a - b.astype(np.float64) @ a

    def factors(self) -> tuple[np.ndarray, np.ndarray]:
        return start()[0], np.random.default_rng(3).standard_normal(SHAPES[1]).astype(np.float32)

    def test_change_of_the_product_has_the_rate_as_its_spectral_norm(self):
        """When the gradient of W is one dyad, both halves push the same direction: exactly the rate, to first order."""
        a, b = self.factors()
        left, right = np.random.default_rng(4).standard_normal((40,)), np.random.default_rng(5).standard_normal((48,))
        left, right = b @ np.linalg.pinv(b) @ left, right @ np.linalg.pinv(a) @ a  # within reach of both factors
        slope = np.outer(left, right)
        grads = [(b.T @ slope).astype(np.float32), (slope @ a.T).astype(np.float32)]
        lr = 1e-3
        change = self.product_change(a, b, grads, lr)
        assert np.linalg.svd(change)[1][0] == pytest.approx(lr, rel=1e-2)

    def test_change_does_not_depend_on_the_gauge(self):
        """(B, A) -> (B R, R^-1 A) is the same product; its gradients transform the other way round."""
        a, b = self.factors()
        gauge = np.random.default_rng(6).standard_normal((8, 8)) + 3 * np.eye(8)
        inverse = np.linalg.inv(gauge)
        g_a, g_b = gradients()[1]
        plain = self.product_change(a, b, [g_a, g_b], 1e-2)
        other = self.product_change(
            (inverse @ a).astype(np.float32),
            (b @ gauge).astype(np.float32),
            [(gauge.T @ g_a).astype(np.float32), (g_b @ inverse.T).astype(np.float32)],
            1e-2,
        )
        assert relative(other, plain) < 1e-3

    def test_decay_is_that_of_the_product(self):
        a, b = self.factors()
        run = Run("lora_muon", 0.1, {"weight_decay": 0.5}, [a, b])
        new_a, new_b = run.step([np.zeros(shape, np.float32) for shape in SHAPES])
        np.testing.assert_allclose(new_b @ new_a, (1 - 0.1 * 0.5) * b @ a, rtol=1e-4, atol=1e-6)
