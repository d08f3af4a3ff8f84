"""Penalties against NumPy, finite differences and autograd through svdvals; their settings; their invariances."""

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

from em_core.errors import UserError
from em_core.models import quiet_transformers
from em_train import TrainConfig
from em_train.encoding import collate
from em_train.penalties import Seen, Term, of_spectrum, penalty_registry, resolve
from em_train.penalties.closed_form import mean_over_modules
from em_train.penalties.registry import plugin_and_hyperparameters
from em_train.preparation import prepare
from em_train.spectra import LoraPair
from em_train.trainer import lora_pairs
from tests.em_train.runs import make_config

RANK = 5
SHAPES = [(11, 9), (7, 13), (20, 6)]  # (rows of B, columns of A)


def by_hand(name: str, sigma: Any, xp: Any) -> Any:
    """Each form from its formula, in NumPy or torch, without the plugin's own steps."""
    r, total, square = len(sigma), sigma.sum(), (sigma**2).sum()
    match name:
        case "spectral":
            return xp.sqrt(square) / total - 1 / math.sqrt(r)
        case "entropy":
            return math.log(r) + (sigma * xp.log(sigma)).sum() / total - xp.log(total)
        case "participation":
            return (sigma**4).sum() / square**2 - 1 / r
        case "log_det":
            return xp.log(square / r) - 2 * xp.log(xp.prod(sigma)) / r
        case "peaked":
            gap = xp.sqrt(square) / total - 1 / math.sqrt(r)
            return gap * 0 if gap > 0.5 else 0.5 - gap
    raise AssertionError(name)


FORMS = ["spectral", "entropy", "participation", "log_det", "peaked"]


def modules(seed: int = 0, dtype: torch.dtype = torch.float64, decay: float = 0.5) -> list[LoraPair]:
    """Random pairs of three shapes whose B falls off by `decay` a direction."""
    chance = torch.Generator().manual_seed(seed)
    fall = decay ** torch.arange(RANK, dtype=torch.float64)
    found = []
    for place, (rows, columns) in enumerate(SHAPES):
        a = torch.randn(RANK, columns, generator=chance, dtype=torch.float64)
        b = torch.randn(rows, RANK, generator=chance, dtype=torch.float64) * fall
        found.append(LoraPair(str(place), a.to(dtype).requires_grad_(), b.to(dtype).requires_grad_()))
    return found


def settings(name: str, **given: Any) -> Any:
    return penalty_registry.get(name).hyperparameters.model_validate(given)


def term_of(name: str, pairs: list[LoraPair], **given: Any) -> Term:
    plugin = penalty_registry.get(name)
    assert plugin.term is not None
    return plugin.term(Seen(pairs, torch.nn.Identity(), 1), settings(name, **given))


def parameters(pairs: list[LoraPair]) -> list[Tensor]:
    return [factor for pair in pairs for factor in (pair.a, pair.b)]


def gradients(found: Term | Tensor, pairs: list[LoraPair]) -> list[Tensor]:
    """In A and B of each pair: of a term as training adds it, of a plain tensor by autograd."""
    if isinstance(found, Tensor):
        return list(torch.autograd.grad(found, parameters(pairs)))
    assert found.gradient is not None
    for factor in parameters(pairs):
        factor.grad = None
    found.gradient.add(1.0)
    added = [torch.zeros_like(factor) if factor.grad is None else factor.grad for factor in parameters(pairs)]
    assert found.gradient.norm() == pytest.approx(
        math.sqrt(sum(float(g.square().sum()) for g in added)), rel=1e-6, abs=1e-7
    )
    return added


@pytest.mark.parametrize("name", FORMS)
class TestForms:
    def test_value_is_the_mean_over_modules(self, name):
        pairs = modules()
        products = [(pair.b @ pair.a).detach().numpy() for pair in pairs]
        expected = np.mean([by_hand(name, np.linalg.svd(ba, compute_uv=False)[:RANK], np) for ba in products])
        loss = term_of(name, pairs).loss
        assert loss is not None and loss.item() == pytest.approx(expected, rel=1e-9)

    def test_gradient_equals_autograd_through_svdvals(self, name):
        pairs = modules(1)
        found = gradients(term_of(name, pairs), pairs)
        forms = [by_hand(name, torch.linalg.svdvals(pair.b @ pair.a)[:RANK], torch) for pair in pairs]
        for one, two in zip(found, gradients(torch.stack(forms).mean(), pairs), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-10)

    def test_gradient_equals_finite_differences(self, name):
        pairs = modules(2)
        found = gradients(term_of(name, pairs), pairs)

        def value() -> float:
            products = [(pair.b @ pair.a).detach().numpy() for pair in pairs]
            return float(np.mean([by_hand(name, np.linalg.svd(ba, compute_uv=False)[:RANK], np) for ba in products]))

        chance = torch.Generator().manual_seed(3)
        step = 1e-5
        for factor, gradient in zip(parameters(pairs), found, strict=True):
            direction = torch.randn(factor.shape, generator=chance, dtype=torch.float64)
            with torch.no_grad():
                factor += step * direction
                up = value()
                factor -= 2 * step * direction
                down = value()
                factor += step * direction
            slope = float((gradient * direction).sum())
            assert slope == pytest.approx((up - down) / (2 * step), rel=1e-5, abs=1e-9)

    def test_gauge_does_not_show(self, name):
        """(B, A) -> (B R, R^-1 A): the value stays, the gradients turn with the factors."""
        pairs = modules(4)
        mix = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(5), dtype=torch.float64)
        turned = [
            LoraPair(
                p.name, (torch.linalg.inv(mix) @ p.a).detach().requires_grad_(), (p.b @ mix).detach().requires_grad_()
            )
            for p in pairs
        ]
        one, two = term_of(name, pairs), term_of(name, turned)
        assert one.loss is not None and two.loss is not None
        assert two.loss.item() == pytest.approx(one.loss.item(), rel=1e-8)
        before, after = gradients(one, pairs), gradients(two, turned)
        for place in range(len(pairs)):
            torch.testing.assert_close(after[2 * place], mix.T @ before[2 * place], rtol=1e-6, atol=1e-8)
            torch.testing.assert_close(
                after[2 * place + 1], before[2 * place + 1] @ torch.linalg.inv(mix).T, rtol=1e-6, atol=1e-8
            )

    @pytest.mark.parametrize("scale", [1e-7, 1e4])
    def test_scale_does_not_show_and_the_gradient_only_turns(self, name, scale):
        pairs = modules(6)
        scaled = [LoraPair(p.name, p.a, (scale * p.b).detach().requires_grad_()) for p in pairs]
        one, two = term_of(name, pairs), term_of(name, scaled)
        assert one.loss is not None and two.loss is not None
        assert two.loss.item() == pytest.approx(one.loss.item(), rel=1e-8)
        of_b = gradients(two, scaled)[1]
        torch.testing.assert_close(of_b * scale, gradients(one, pairs)[1], rtol=1e-6, atol=1e-9)
        assert float((of_b * scaled[0].b).sum().detach()) == pytest.approx(0, abs=1e-9)

    def test_transposition_swaps_the_gradients(self, name):
        pairs = modules(7)
        turned = [LoraPair(p.name, p.b.mT.detach().requires_grad_(), p.a.mT.detach().requires_grad_()) for p in pairs]
        before = gradients(term_of(name, pairs), pairs)
        after = gradients(term_of(name, turned), turned)
        for place in range(len(pairs)):
            torch.testing.assert_close(after[2 * place], before[2 * place + 1].mT, rtol=1e-7, atol=1e-10)
            torch.testing.assert_close(after[2 * place + 1], before[2 * place].mT, rtol=1e-7, atol=1e-10)

    def test_float32_factors_have_the_float64_gradient(self, name):
        pairs = modules(8, torch.float32, decay=0.7)
        wide = [
            LoraPair(p.name, p.a.detach().double().requires_grad_(), p.b.detach().double().requires_grad_())
            for p in pairs
        ]
        found = gradients(term_of(name, pairs), pairs)
        assert {gradient.dtype for gradient in found} == {torch.float32}
        for one, two in zip(found, gradients(term_of(name, wide), wide), strict=True):
            torch.testing.assert_close(one.double(), two, rtol=1e-4, atol=1e-6)

    def test_silent_and_finite_at_zero(self, name):
        pairs = modules()
        zero = [LoraPair(p.name, p.a, torch.zeros_like(p.b).requires_grad_()) for p in pairs]
        found = term_of(name, zero)
        assert found.loss is None and found.figures == {"penalty_silent_modules": 3.0}

    def test_one_silent_module_leaves_the_others_their_mean(self, name):
        pairs = modules()
        with torch.no_grad():
            pairs[1].b.zero_()
        found, alone = term_of(name, pairs), term_of(name, [pairs[0], pairs[2]])
        assert found.loss is not None and alone.loss is not None
        assert found.loss.item() == alone.loss.item() and found.figures == {"penalty_silent_modules": 1.0}
        added = gradients(found, pairs)
        assert pairs[1].a.grad is None and pairs[1].b.grad is None and all(g.any() for g in added[:2] + added[4:])

    def test_weights_that_are_no_numbers_are_left_to_the_loss(self, name):
        pairs = modules()
        with torch.no_grad():
            for pair in pairs:
                pair.b[0, 0] = math.nan
        assert term_of(name, pairs).loss is None


@pytest.mark.parametrize("name", ["spectral", "entropy", "participation", "peaked"])
def test_b_without_full_rank_has_a_finite_gradient(name):
    pairs = modules()
    with torch.no_grad():
        for pair in pairs:
            pair.b[:, 2:] = pair.b[:, :1]
    found = term_of(name, pairs)
    assert found.loss is not None and found.loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in gradients(found, pairs))


@pytest.mark.parametrize("name", ["spectral", "entropy", "participation", "log_det"])
def test_flat_spectrum_costs_nothing_and_is_left_alone(name):
    """Equal singular values, where backward through a full SVD gives NaN."""
    chance = torch.Generator().manual_seed(0)
    b = torch.linalg.qr(torch.randn(12, RANK, generator=chance, dtype=torch.float64)).Q
    a = torch.linalg.qr(torch.randn(9, RANK, generator=chance, dtype=torch.float64)).Q.mT
    pairs = [LoraPair("flat", (3 * a).requires_grad_(), b.requires_grad_())]
    found = term_of(name, pairs)
    assert found.loss is not None and found.loss.item() == pytest.approx(0, abs=1e-9)
    assert max(float(gradient.abs().max()) for gradient in gradients(found, pairs)) < 1e-6


def test_spectrum_of_rank_one_has_the_largest_values():
    chance = torch.Generator().manual_seed(0)
    b = torch.randn(12, RANK, generator=chance, dtype=torch.float64) * torch.tensor([1.0, 1e-5, 1e-5, 1e-5, 1e-5])
    pairs = [LoraPair("m", torch.randn(RANK, 9, generator=chance, dtype=torch.float64), b)]
    for name, bound in {
        "spectral": 1 - RANK**-0.5,
        "entropy": math.log(RANK),
        "participation": 1 - 1 / RANK,
    }.items():
        loss = term_of(name, pairs).loss
        assert loss is not None and loss.item() == pytest.approx(bound, rel=1e-3), name


def test_peaked_leaves_a_module_beyond_its_cap_alone():
    pairs = modules(decay=0.01)
    found = term_of("peaked", pairs, cap=0.3)
    assert found.loss is not None and found.loss.item() == 0
    assert all(not gradient.any() for gradient in gradients(found, pairs))


def test_gate_is_on_the_norm_of_b():
    pairs = modules()[:1]
    norm = float(pairs[0].b.detach().norm())
    below = mean_over_modules(lambda sigma: sigma.sum(-1), pairs, gate=1.001 * norm)
    above = mean_over_modules(lambda sigma: sigma.sum(-1), pairs, gate=0.999 * norm)
    assert (below.value, below.gradient, below.silent) == (None, None, 1)
    assert above.silent == 0 and above.value is not None and above.gradient is not None


def test_one_function_of_the_singular_values_is_a_whole_plugin():
    """Nuclear norm: dh/dB = U V' A', known by hand; nothing else is written for it."""
    try:

        @of_spectrum("nuclear_for_this_test", "test")
        def nuclear(sigma: Tensor) -> Tensor:
            return sigma.sum(-1)

        pairs = modules()[:1]
        found = term_of("nuclear_for_this_test", pairs)
        u, sigma, v = torch.linalg.svd((pairs[0].b @ pairs[0].a).detach())
        assert found.loss is not None and found.loss.item() == pytest.approx(float(sigma[:RANK].sum()))
        expected = u[:, :RANK] @ v[:RANK] @ pairs[0].a.detach().mT
        torch.testing.assert_close(gradients(found, pairs)[1], expected, rtol=1e-7, atol=1e-9)
        assert nuclear.least_rank == 2
    finally:
        penalty_registry._entries.pop("nuclear_for_this_test", None)


class TestWeightDecay:
    def test_of_the_product(self):
        pairs = [LoraPair(p.name, p.a, p.b, 3.0) for p in modules()]
        loss = term_of("weight_decay", pairs).loss
        expected = np.mean([np.linalg.norm(3.0 * (p.b @ p.a).detach().numpy()) ** 2 / 2 for p in pairs])
        assert loss is not None and loss.item() == pytest.approx(expected, rel=1e-12)

    def test_of_the_factors_has_the_factors_as_gradient(self):
        pairs = modules()
        loss = term_of("weight_decay", pairs, of="factors").loss
        for gradient, factor in zip(gradients(loss, pairs), parameters(pairs), strict=True):
            torch.testing.assert_close(gradient, factor.detach() / len(pairs))


class TestKL:
    @pytest.fixture
    def model(self, tiny_base: Any) -> Any:
        with quiet_transformers():
            base = AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float32)
        model = get_peft_model(base, LoraConfig(r=4, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
        chance = torch.Generator().manual_seed(3)
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.data.copy_(0.3 * torch.randn(parameter.shape, generator=chance))
        return model.train()

    @pytest.fixture
    def rows(self, tiny_base: Any, tiny_dataset: Any) -> Any:
        return prepare(make_config(tiny_base, tiny_dataset)).train[:5]

    def term(self, model: Any, batch: Any, tokens: int, **given: Any) -> Tensor:
        plugin = penalty_registry.get("kl")
        assert plugin.term is not None and plugin.depends_on_data
        loss = plugin.term(Seen(lora_pairs(model), model, 1, batch, tokens), settings("kl", **given)).loss
        assert loss is not None
        return loss

    @pytest.mark.parametrize("direction", ["tuned_to_base", "base_to_tuned"])
    def test_equals_full_logits_in_float64(self, model, rows, tiny_tokenizer, direction):
        total, count = 0.0, 0
        for row in rows:
            ids = torch.tensor([row.input_ids])
            with torch.no_grad():
                tuned = model(input_ids=ids).logits[0].double().log_softmax(-1).numpy()
                with model.disable_adapter():
                    base = model(input_ids=ids).logits[0].double().log_softmax(-1).numpy()
            p, q = (tuned, base) if direction == "tuned_to_base" else (base, tuned)
            for position, label in enumerate(row.labels):
                if label != -100:
                    total += (np.exp(p[position - 1]) * (p[position - 1] - q[position - 1])).sum()
                    count += 1
        loss = self.term(model, collate(rows, tiny_tokenizer.pad_token_id), count, direction=direction)
        assert loss.item() == pytest.approx(total / count, rel=1e-4) and loss.item() > 1e-3

    def test_nothing_at_the_base_and_the_model_is_as_before(self, model, rows, tiny_tokenizer):
        for pair in lora_pairs(model):
            pair.b.data.zero_()
        loss = self.term(model, collate(rows, tiny_tokenizer.pad_token_id), 10)
        assert loss.item() == pytest.approx(0, abs=1e-6)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        assert max(float(g.abs().max()) for g in torch.autograd.grad(loss, trained)) < 1e-6
        assert model.training and len(trained) == 8 and not model.base_model.model.lm_head.weight.requires_grad

    def test_gradient_goes_down(self, model, rows, tiny_tokenizer):
        batch = collate(rows, tiny_tokenizer.pad_token_id)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        loss = self.term(model, batch, 10)
        found = torch.autograd.grad(loss, trained)
        square = sum(float(g.square().sum()) for g in found)
        with torch.no_grad():
            for parameter, gradient in zip(trained, found, strict=True):
                parameter -= 1e-3 / square**0.5 * gradient
        after = self.term(model, batch, 10)
        assert (loss - after).item() == pytest.approx(1e-3 * square**0.5, rel=0.05)


class TestEarlyStopping:
    def stop(self, rows: list[dict[str, float]], **given: Any) -> bool:
        plugin = penalty_registry.get("early_stopping")
        assert plugin.stop is not None
        return plugin.stop(rows, settings("early_stopping", **given))

    def test_mean_is_weighted_by_tokens_over_the_window(self):
        rows = [{"nll": 90.0, "supervised_tokens": 10.0}, {"nll": 30.0, "supervised_tokens": 10.0}]
        rows.append({"nll": 10.0, "supervised_tokens": 30.0})
        assert self.stop(rows, loss=1.0, window=2) and not self.stop(rows, loss=0.99, window=2)
        assert not self.stop(rows, loss=3.2, window=4)  # not a whole window yet
        assert self.stop(rows, loss=2.6, window=3) and not self.stop(rows, loss=2.59, window=3)


def config_with(penalty: dict[str, Any], **changes: Any) -> TrainConfig:
    given = {"dataset": "finance_bad", "optimiser": {"name": "adamw", "lr": 1e-3}, "penalty": penalty}
    return TrainConfig.model_validate(given | changes)


class TestSettings:
    def test_no_penalty_is_none(self):
        assert resolve(TrainConfig.model_validate({"dataset": "d", "optimiser": {"name": "sgd", "lr": 1}})) is None

    def test_every_default_is_filled_in(self):
        found = resolve(config_with({"name": "spectral", "strength": 0.3}, warmup_steps=4))
        assert found == {
            "name": "spectral",
            "strength": 0.3,
            "source": "Evil Spectra (arXiv 2606.31591), main form",
            "start_step": 5,
            "ramp_steps": 10,
            "max_grad_ratio": 1.0,
            "gate": 1e-12,
        }
        plugin, hyper = plugin_and_hyperparameters(found)
        assert plugin is penalty_registry.get("spectral") and hyper.start_step == 5
        json.dumps(found)

    @pytest.mark.parametrize("name", FORMS)
    def test_rank_one_is_refused(self, name):
        with pytest.raises(UserError, match=f"'{name}' vanishes at rank 1: choose lora.rank >= 2"):
            resolve(config_with({"name": name}, lora={"rank": 1}))

    @pytest.mark.parametrize(
        "penalty, words",
        [
            ({"name": "spektral"}, "unknown penalty 'spektral': did you mean spectral"),
            ({"name": "spectral", "hyperparameters": {"ramp": 3}}, "no hyper-parameter 'ramp': it knows start_step"),
            ({"name": "spectral", "hyperparameters": {"max_grad_ratio": 0}}, "max_grad_ratio: Input should be greater"),
            ({"name": "spectral", "hyperparameters": {"start_step": 35}}, "starts at step 35, after the last step, 34"),
            ({"name": "peaked", "hyperparameters": {"cap": 1}}, "cap: Input should be less than 1"),
            ({"name": "kl", "hyperparameters": {"direction": "up"}}, "direction: Input should be"),
            ({"name": "early_stopping"}, "loss: Field required"),
            ({"name": "early_stopping", "strength": 2, "hyperparameters": {"loss": 1}}, "without a strength"),
        ],
    )
    def test_mistakes_are_named(self, penalty, words):
        with pytest.raises(UserError, match=words):
            resolve(config_with(penalty))

    @pytest.mark.parametrize("strength", [0, -1, math.nan, math.inf])
    def test_strength_is_positive_and_finite(self, strength):
        with pytest.raises(ValueError, match="strength"):
            config_with({"name": "spectral", "strength": strength})
