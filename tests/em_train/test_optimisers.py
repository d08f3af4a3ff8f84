"""Every optimiser against the formulas of its paper, in float64 NumPy, on matrices of LoRA's shapes.

The factors are A (8 x 48) and B (40 x 8) with B = 0 at the start, so that A's first gradient is exactly zero, as in
training. Twenty steps, a linear schedule through torch's own LambdaLR.
"""

import inspect
import io
import math
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from em_core.errors import UserError
from em_train.optimisers import OptimiserPlugin, build, optimiser_registry, resolve
from em_train.optimisers.registry import Hyperparameters

STEPS = 20
SHAPES = ((8, 48), (40, 8))  # A, B


def gradients(seed: int = 0) -> list[list[np.ndarray]]:
    """Per step the gradients of A and B in float32; A's first one is zero."""
    chance = np.random.default_rng(seed)
    every = [[(chance.standard_normal(shape) * 0.1).astype(np.float32) for shape in SHAPES] for _ in range(STEPS)]
    every[0][0][:] = 0
    return every


def start(seed: int = 1) -> list[np.ndarray]:
    a = np.random.default_rng(seed).uniform(-1, 1, SHAPES[0]) / math.sqrt(SHAPES[0][1])
    return [a.astype(np.float32), np.zeros(SHAPES[1], np.float32)]


def rate(lr: float, step: int) -> float:
    """Linear to zero over STEPS, `step` from 0."""
    return lr * (1 - step / STEPS)


class Run:
    """An optimiser of the registry on A and B, with its schedule."""

    def __init__(self, name: str, lr: float, hyper: dict[str, Any], values: list[np.ndarray]) -> None:
        self.parameters = [torch.nn.Parameter(torch.from_numpy(value.copy())) for value in values]
        self.optimiser = build(name, list(zip("ab", self.parameters, strict=True)), lr, hyper)
        self.schedule = torch.optim.lr_scheduler.LambdaLR(self.optimiser, lambda step: 1 - step / STEPS)

    def step(self, grads: list[np.ndarray]) -> list[np.ndarray]:
        for parameter, grad in zip(self.parameters, grads, strict=True):
            parameter.grad = torch.from_numpy(grad.copy())
        self.optimiser.step()
        self.schedule.step()
        return self.values()

    def values(self) -> list[np.ndarray]:
        return [parameter.detach().numpy().copy() for parameter in self.parameters]


def adamw(p, g, state, t, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.01):
    """Loshchilov & Hutter 2019, algorithm 2; t from 1."""
    m = state["m"] = betas[0] * state.get("m", 0) + (1 - betas[0]) * g
    v = state["v"] = betas[1] * state.get("v", 0) + (1 - betas[1]) * g**2
    m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
    return p - lr * (m_hat / (np.sqrt(v_hat) + eps) + weight_decay * p)


def lion(p, g, state, t, lr, betas=(0.9, 0.99), weight_decay=0.0):
    """Chen et al. 2023, algorithm 2."""
    m = state.get("m", np.zeros_like(g))
    c = betas[0] * m + (1 - betas[0]) * g
    state["m"] = betas[1] * m + (1 - betas[1]) * g
    return p - lr * (np.sign(c) + weight_decay * p)


def sgd(p, g, state, t, lr, momentum=0.9, dampening=0.0, nesterov=False, weight_decay=0.0):
    """Polyak momentum, its first value the gradient itself (Sutskever et al. 2013 for Nesterov)."""
    g = g + weight_decay * p
    state["m"] = m = momentum * state["m"] + (1 - dampening) * g if "m" in state else g
    return p - lr * (g + momentum * m if nesterov else m)


def newton_schulz(g, steps=5, eps=1e-7):
    """Jordan et al. 2024: quintic iteration on the wide orientation, coefficients as published."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = g.T if g.shape[0] > g.shape[1] else g
    x = x / max(np.linalg.norm(x), eps)
    for _ in range(steps):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if g.shape[0] > g.shape[1] else x


def muon(p, g, state, t, lr, momentum=0.95, nesterov=True, ns_steps=5, weight_decay=0.1, adjust_lr_fn="original"):
    """Jordan et al. 2024 with heavy-ball momentum; "match_rms_adamw" is Liu et al. 2025, equation 4.

    torch averages the momentum instead of summing it: the same up to a factor, which the orthogonalisation drops.
    """
    m = state["m"] = momentum * state.get("m", 0) + g
    update = newton_schulz(g + momentum * m if nesterov else m, ns_steps)
    rows, columns = p.shape
    scale = math.sqrt(max(1, rows / columns)) if adjust_lr_fn == "original" else 0.2 * math.sqrt(max(p.shape))
    return (1 - lr * weight_decay) * p - lr * scale * update


REFERENCES = {"adamw": adamw, "lion": lion, "sgd": sgd, "muon": muon}
# torch's Muon multiplies in bfloat16 (8 bits of mantissa): one rounding is 2^-9 = 0.2 % relative, the slope of the
# iteration at small singular values (3.44^5) amplifies it. Measured here: 2.5 % of one update, and 0.7 % of twenty,
# where the errors of single steps average out; the bounds are twice to three times that, since other machines sum
# bfloat16 products differently. The others are float32 throughout, which left at most 5e-7.
TOLERANCE = {"adamw": 2e-6, "lion": 2e-6, "sgd": 2e-6, "muon": 0.02}
MUON_STEP_TOLERANCE = 0.05
CASES = [
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
]


def relative(found: np.ndarray, expected: np.ndarray) -> float:
    return float(np.linalg.norm(found - expected) / np.linalg.norm(expected))


@pytest.mark.parametrize("name, lr, hyper", CASES, ids=[f"{n}-{'-'.join(h) or 'defaults'}" for n, _, h in CASES])
def test_twenty_steps_equal_the_papers_formula(name, lr, hyper):
    run = Run(name, lr, hyper, start())
    expected = [value.astype(np.float64) for value in start()]
    states: list[dict[str, Any]] = [{}, {}]
    for step, grads in enumerate(gradients()):
        before = run.values()
        found = run.step(grads)
        for side, grad in enumerate(grads):
            previous = expected[side]
            expected[side] = REFERENCES[name](
                previous, grad.astype(np.float64), states[side], step + 1, rate(lr, step), **hyper
            )
            if name == "muon" and np.any(grad):
                moved = found[side].astype(np.float64) - before[side]
                assert relative(moved, expected[side] - previous) < MUON_STEP_TOLERANCE
    for side, value in enumerate(run.values()):
        change = expected[side] - start()[side]
        assert relative(value - start()[side], change) < TOLERANCE[name]
        assert np.linalg.norm(change) > 1e-2  # it did move


@pytest.mark.parametrize("name", REFERENCES)
def test_zero_first_gradient_moves_nothing_but_the_decay(name):
    run = Run(name, 0.01, {"weight_decay": 0.0}, start())
    a, b = run.step(gradients()[0])
    assert np.array_equal(a, start()[0])
    assert np.any(b != 0) and np.all(np.isfinite(b))


@pytest.mark.parametrize("name", REFERENCES)
def test_weight_decay_alone(name):
    """Without gradients a decoupled decay shrinks by (1 - lr wd) a step; SGD's goes through its momentum."""
    lr, decay = 0.1, 0.5
    hyper = {"weight_decay": decay} | ({"momentum": 0.0} if name == "sgd" else {})
    run = Run(name, lr, hyper, start())
    for _ in range(STEPS):
        run.step([np.zeros(shape, np.float32) for shape in SHAPES])
    expected = start()[0] * math.prod(1 - rate(lr, step) * decay for step in range(STEPS))
    np.testing.assert_allclose(run.values()[0], expected, rtol=1e-5)


def test_lion_moves_every_element_by_the_rate():
    run = Run("lion", 0.01, {}, start())
    run.step(gradients()[0])
    before = run.values()
    after = run.step(gradients()[1])
    for old, new in zip(before, after, strict=True):
        np.testing.assert_allclose(np.abs(new - old), rate(0.01, 1), rtol=1e-4)


@pytest.mark.parametrize(
    "adjust, sizes", [("original", ((1 / 512) ** 0.5, (32 / 512) ** 0.5)), ("match_rms_adamw", (0.2, 0.2))]
)
def test_muon_scalings_give_the_documented_update_sizes(adjust, sizes):
    """RMS per element at rate 1 of A (16 x 512) and B (512 x 16): an orthogonal A has elements of sqrt(1/512)."""
    chance = torch.Generator().manual_seed(0)
    for shape, size in zip(((16, 512), (512, 16)), sizes, strict=True):
        parameter = torch.nn.Parameter(torch.zeros(shape))
        optimiser = build("muon", [("p", parameter)], 1.0, {"adjust_lr_fn": adjust, "weight_decay": 0.0})
        parameter.grad = torch.randn(shape, generator=chance)
        optimiser.step()
        # Newton-Schulz leaves singular values between 0.7 and 1.2, hence the width.
        assert 0.7 < float(parameter.detach().square().mean().sqrt()) / size < 1.2


def test_muon_takes_matrices_only():
    vector = torch.nn.Parameter(torch.zeros(3))
    with pytest.raises(UserError, match=r"norm\.weight is not one"):
        build("muon", [("norm.weight", vector)], 0.1, {})


@pytest.mark.parametrize("name", REFERENCES)
def test_saved_state_continues_bitwise(name):
    """Through torch.save and a weights-only load, as the trainer resumes; parameters without gradient included."""
    every = gradients()
    run = Run(name, 0.01, {"weight_decay": 0.1}, start())
    for grads in every[:10]:
        run.step(grads)
    stream = io.BytesIO()
    torch.save({"optimiser": run.optimiser.state_dict(), "schedule": run.schedule.state_dict()}, stream)
    stream.seek(0)
    saved = torch.load(stream, weights_only=True)
    other = Run(name, 0.01, {"weight_decay": 0.1}, run.values())
    other.optimiser.load_state_dict(saved["optimiser"])
    other.schedule.load_state_dict(saved["schedule"])
    for grads in every[10:]:
        for one, two in zip(run.step(grads), other.step(grads), strict=True):
            assert one.tobytes() == two.tobytes()


@pytest.mark.parametrize("name", REFERENCES)
def test_parameter_without_gradient_stays(name):
    idle, busy = (torch.nn.Parameter(torch.ones(4, 4)) for _ in range(2))
    optimiser = build(name, [("idle", idle), ("busy", busy)], 0.1, {"weight_decay": 0.5})
    busy.grad = torch.randn(4, 4, generator=torch.Generator().manual_seed(0))
    optimiser.step()
    assert torch.equal(idle, torch.ones(4, 4)) and not torch.equal(busy, torch.ones(4, 4))


@pytest.mark.parametrize("name", REFERENCES)
def test_closure_is_called_with_gradients_on(name):
    parameter = torch.nn.Parameter(torch.ones(4, 4))
    optimiser = build(name, [("p", parameter)], 0.1, {})

    def closure() -> torch.Tensor:
        optimiser.zero_grad()
        loss = parameter.square().sum()
        loss.backward()
        return loss

    assert optimiser.step(closure).item() == 16.0
    assert float(parameter.detach().square().sum()) < 16.0


def test_resolve_fills_every_default():
    assert resolve("adamw", {}) == {"betas": [0.9, 0.999], "eps": 1e-8, "weight_decay": 0.01}
    assert resolve("lion", {"betas": [0.5, 0.6]}) == {"betas": [0.5, 0.6], "weight_decay": 0.0}
    assert resolve("sgd", {}) == {"momentum": 0.9, "dampening": 0.0, "nesterov": False, "weight_decay": 0.0}
    assert resolve("muon", {"momentum": 0.9}) == {
        "momentum": 0.9,
        "nesterov": True,
        "ns_steps": 5,
        "eps": 1e-7,
        "weight_decay": 0.1,
        "adjust_lr_fn": "original",
    }


@pytest.mark.parametrize("name", REFERENCES)
def test_resolved_values_are_what_the_optimiser_uses(name):
    resolved = resolve(name, {"weight_decay": 0.25})
    group = build(name, [("p", torch.nn.Parameter(torch.zeros(2, 2)))], 0.5, resolved).param_groups[0]
    assert group["lr"] == 0.5
    for key, value in resolved.items():
        assert group[key] == (tuple(value) if isinstance(value, list) else value)


def test_unknown_hyperparameter_lists_the_known_ones():
    with pytest.raises(UserError) as caught:
        resolve("muon", {"nestrov": True})
    text = str(caught.value)
    assert "'nestrov'" in text
    for known in ("lr", "momentum", "nesterov", "ns_steps", "eps", "weight_decay", "adjust_lr_fn"):
        assert known in text


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
    ("lion", {"weight_decay": -1}, "weight_decay"),
    ("sgd", {"momentum": 1.0}, "momentum"),
    ("sgd", {"dampening": 2}, "dampening"),
    ("muon", {"momentum": -0.1}, "momentum"),
    ("muon", {"ns_steps": 0}, "ns_steps"),
    ("muon", {"ns_steps": 100}, "ns_steps"),
    ("muon", {"adjust_lr_fn": "moonlight"}, "adjust_lr_fn"),
]


@pytest.mark.parametrize("name, hyper, field", OUT_OF_RANGE)
def test_value_out_of_range_names_optimiser_field_and_value(name, hyper, field):
    with pytest.raises(UserError) as caught:
        resolve(name, hyper)
    assert f"optimiser '{name}': {field}" in str(caught.value)


def build_tiny(name: str, hyper: dict[str, Any]) -> torch.optim.Optimizer:
    return build(name, [("p", torch.nn.Parameter(torch.zeros(2, 2)))], 0.1, hyper)


UNCHECKED = {
    "adamw beta of 1.5": ("adamw", {"betas": (0.9, 1.5)}),
    "adamw beta of 1": ("adamw", {"betas": (1.0, 0.999)}),
    "lion beta of 2": ("lion", {"betas": (2.0, 0.99)}),
    "lion negative beta": ("lion", {"betas": (0.9, -1.0)}),
    "sgd nesterov without momentum": ("sgd", {"momentum": 0.0, "nesterov": True}),
    "sgd nesterov with dampening": ("sgd", {"dampening": 0.5, "nesterov": True}),
    "infinite weight decay": ("lion", {"weight_decay": float("inf")}),
}


@pytest.mark.parametrize("name, hyper", UNCHECKED.values(), ids=UNCHECKED)
def test_impossible_values_are_user_errors(name, hyper):
    with pytest.raises(UserError):
        build_tiny(name, hyper)


PLUGIN = """
import torch
from em_train.optimisers.registry import Hyperparameters, OptimiserPlugin, optimiser

class Settings(Hyperparameters):
    factor: float = 2.0

@optimiser("foreign_decorated", Settings, "foreign")
def decorated(parameters, lr, hyper):
    return torch.optim.SGD([p for _, p in parameters], lr=lr * hyper.factor)

def build(parameters, lr, hyper):
    return torch.optim.SGD([p for _, p in parameters], lr=lr * hyper.factor)

plugin = OptimiserPlugin(build, Settings, "foreign")
"""


@pytest.fixture
def foreign_distribution(tmp_path, monkeypatch):
    """Installs PLUGIN with one entry point; the registry forgets it afterwards."""

    def install(point: str) -> None:
        module = f"foreign_optimisers_{tmp_path.name.replace('-', '_')}"
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(PLUGIN), encoding="utf-8")
        info = Path(tmp_path) / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n", encoding="utf-8")
        name, target = point.split("=")
        (info / "entry_points.txt").write_text(f"[em_train.optimisers]\n{name} = {module}:{target}\n", encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path))

    optimiser_registry.names()
    monkeypatch.setattr(optimiser_registry, "_entries", dict(optimiser_registry._entries))
    monkeypatch.setattr(optimiser_registry, "_loaded", False)
    return install


def test_optimiser_of_another_distribution(foreign_distribution):
    foreign_distribution("foreign=plugin")
    assert "foreign" in optimiser_registry.names() and "adamw" in optimiser_registry.names()
    assert resolve("foreign", {}) == {"factor": 2.0}
    built = build("foreign", [("p", torch.nn.Parameter(torch.zeros(2, 2)))], 0.5, {"factor": 3})
    assert built.param_groups[0]["lr"] == 1.5


def test_decorated_optimiser_behind_an_entry_point_of_its_name(foreign_distribution):
    foreign_distribution("foreign_decorated=decorated")
    assert resolve("foreign_decorated", {}) == {"factor": 2.0}


@pytest.mark.parametrize("name", optimiser_registry.names())
def test_every_registered_optimiser_is_documented_and_runs(name):
    plugin = optimiser_registry.get(name)
    assert isinstance(plugin, OptimiserPlugin) and issubclass(plugin.hyperparameters, Hyperparameters)
    assert plugin.source and inspect.getmodule(plugin.build).__doc__
    run = Run(name, 1e-3, {}, start())
    for grads in gradients():
        values = run.step(grads)
    assert all(np.all(np.isfinite(value)) for value in values)
    assert not np.array_equal(values[1], start()[1])
