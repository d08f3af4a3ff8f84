"""Spectra of BA against NumPy's SVD of the product, and measures against values worked out by hand."""

import json
import math

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from em_core.errors import UserError
from em_core.manifest import ADAPTER, ADAPTER_CONFIG
from em_train.spectra import (
    MEASURES,
    LoraPair,
    as_json,
    condition_number,
    entropy,
    entropy_squared,
    exact_spectra,
    fro_over_nuclear,
    paper_spectra,
    participation_ratio,
    product_norm,
    read_pairs,
    read_spectra,
    singular_values,
    spectra_of,
    stable_rank,
    summarise,
    write_spectra,
)
from em_train.spectra.measures import measure

RANK, COLUMNS, ROWS = 8, 48, 40


def factors(seed: int = 0, rows: int = ROWS, columns: int = COLUMNS, rank: int = RANK):
    """(A, B) in float32 as an adapter file holds them."""
    chance = torch.Generator().manual_seed(seed)
    return torch.randn(rank, columns, generator=chance), torch.randn(rows, rank, generator=chance)


def by_numpy(a: torch.Tensor, b: torch.Tensor) -> np.ndarray:
    product = b.numpy().astype(np.float64) @ a.numpy().astype(np.float64)
    return np.linalg.svd(product, compute_uv=False)[: a.shape[0]]


def orthonormal(rows: int, columns: int, seed: int) -> torch.Tensor:
    chance = torch.Generator().manual_seed(seed)
    return torch.linalg.qr(torch.randn(rows, columns, generator=chance, dtype=torch.float64)).Q


def close(found: torch.Tensor, expected: np.ndarray, relative_to_largest: float = 1e-13) -> None:
    assert found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), expected, rtol=0, atol=relative_to_largest * expected.max())


@pytest.mark.parametrize("rows, columns", [(40, 48), (48, 40), (8, 8), (9, 300), (8, 48)])
def test_equals_the_svd_of_the_product(rows, columns):
    a, b = factors(1, rows, columns)
    close(singular_values(a, b), by_numpy(a, b))


def test_values_are_descending_and_as_many_as_the_rank():
    sigma = singular_values(*factors())
    assert sigma.shape == (RANK,)
    assert torch.equal(sigma, sigma.sort(descending=True).values)


@pytest.mark.parametrize("condition", [1e2, 1e4, 1e6, 1e8])
def test_ill_conditioned_spectrum_known_by_construction(condition):
    """B = U diag(s), A = V': the values are s, small ones included, to a part in 1e7 of the smallest one."""
    expected = np.geomspace(1, 1 / condition, RANK)
    b = orthonormal(ROWS, RANK, 2) * torch.from_numpy(expected)
    a = orthonormal(COLUMNS, RANK, 3).T
    close(singular_values(a, b), expected)
    np.testing.assert_allclose(singular_values(a, b).numpy(), expected, rtol=1e-15 * condition + 1e-13)


@pytest.mark.parametrize("condition", [1e4, 1e8])
def test_ill_conditioned_gauge_does_not_show(condition):
    """(B R, R^-1 A) has the spectrum of BA; forming Grams would square the condition number."""
    a, b = (factor.double() for factor in factors(4))
    gauge = torch.from_numpy(np.geomspace(1, 1 / condition, RANK))
    found = singular_values(a / gauge[:, None], b * gauge)
    np.testing.assert_allclose(found.numpy(), by_numpy(a, b), rtol=1e-9)


def test_invariant_under_any_gauge_and_transposition():
    a, b = (factor.double() for factor in factors(5))
    mix = torch.randn(RANK, RANK, generator=torch.Generator().manual_seed(6), dtype=torch.float64)
    expected = singular_values(a, b).numpy()
    np.testing.assert_allclose(singular_values(torch.linalg.inv(mix) @ a, b @ mix).numpy(), expected, rtol=1e-10)
    np.testing.assert_allclose(singular_values(b.T, a.T).numpy(), expected, rtol=1e-12)


def test_scale_of_a_factor_scales_the_values_and_no_measure():
    a, b = factors(7)
    one, two = singular_values(a, b), singular_values(a, b * 1e-6)
    np.testing.assert_allclose(two.numpy(), one.numpy() * 1e-6, rtol=1e-6)
    for name, flatness in MEASURES.items():
        assert flatness(two) == pytest.approx(flatness(one), rel=1e-6), name


def test_zero_b_has_no_spectrum():
    a, _ = factors()
    sigma = singular_values(a, torch.zeros(ROWS, RANK))
    assert torch.equal(sigma, torch.zeros(RANK, dtype=torch.float64))


def test_rank_deficient_product():
    a, b = factors()
    b[:, 3:] = 0
    sigma = singular_values(a, b)
    assert torch.all(sigma[:3] > 1) and torch.all(sigma[3:] == 0)
    assert condition_number(sigma) == math.inf
    assert 1 < stable_rank(sigma) <= 3 and 1 < participation_ratio(sigma) <= 3
    assert entropy(sigma) <= math.log(3)


def test_rank_above_the_width_of_a_module(tmp_path):
    """A rank of 256 on a key projection of 192 rows, as grouped-query attention has: BA has 192 values."""
    narrow, wide = factors(8, rows=4), factors(9)
    pairs = [LoraPair("narrow", *narrow), LoraPair("wide", *wide)]
    assert write_spectra(pairs, tmp_path / "spectra.safetensors").modules == 2
    close(singular_values(*narrow), by_numpy(*narrow))
    with safe_open(tmp_path / "spectra.safetensors", framework="pt") as file:
        table = file.get_tensor("singular_values")
    assert table.shape == (2, RANK) and table[0, 4:].tolist() == [0.0] * 4 and table[1].min() > 0


def test_measures_worked_out_by_hand():
    sigma = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    # Squares 16, 4, 1, 1: sum 22. Fourth powers 256, 16, 1, 1: sum 274. Sum 8, so p = 1/2, 1/4, 1/8, 1/8.
    assert stable_rank(sigma) == pytest.approx(22 / 16, rel=1e-14)
    assert participation_ratio(sigma) == pytest.approx(22**2 / 274, rel=1e-14)
    assert fro_over_nuclear(sigma) == pytest.approx(math.sqrt(22) / 8, rel=1e-14)
    assert entropy(sigma) == pytest.approx(1.75 * math.log(2), rel=1e-14)
    q = (16 / 22, 4 / 22, 1 / 22, 1 / 22)
    assert entropy_squared(sigma) == pytest.approx(-sum(x * math.log(x) for x in q), rel=1e-14)
    assert condition_number(sigma) == 4.0


@pytest.mark.parametrize("scale", [1e-8, 1.0, 1e6])
def test_flat_spectrum_reaches_the_flat_bounds(scale):
    sigma = torch.full((32,), scale, dtype=torch.float64)
    assert stable_rank(sigma) == pytest.approx(32)
    assert participation_ratio(sigma) == pytest.approx(32)
    assert entropy(sigma) == pytest.approx(math.log(32))
    assert fro_over_nuclear(sigma) == pytest.approx(1 / math.sqrt(32))


def test_rank_one_spectrum_reaches_the_peaked_bounds():
    sigma = torch.tensor([3.0] + [0.0] * 31, dtype=torch.float64)
    assert (stable_rank(sigma), participation_ratio(sigma), fro_over_nuclear(sigma)) == (1.0, 1.0, 1.0)
    assert entropy(sigma) == 0.0


def test_every_spectrum_lies_between_the_bounds():
    for seed in range(20):
        sigma = singular_values(*factors(seed)) ** (1 + seed % 4)
        assert 1 <= stable_rank(sigma) <= RANK
        assert 1 <= participation_ratio(sigma) <= RANK
        assert 0 <= entropy(sigma) <= math.log(RANK)
        assert 1 / math.sqrt(RANK) <= fro_over_nuclear(sigma) <= 1


def test_summary_is_the_mean_over_defined_modules():
    flat, peaked = torch.ones(4, dtype=torch.float64), torch.tensor([1.0, 0, 0, 0], dtype=torch.float64)
    found = summarise([flat, peaked, torch.zeros(4, dtype=torch.float64)])
    assert (found.modules, found.undefined) == (3, 1)
    assert found.stable_rank == pytest.approx(2.5)
    assert found.participation_ratio == pytest.approx(2.5)
    assert found.entropy == pytest.approx(math.log(4) / 2)
    assert found.fro_over_nuclear == pytest.approx(0.75)
    assert found.entropy_squared == pytest.approx(math.log(4) / 2)
    assert (found.condition_number, found.undefined_condition_number) == (1.0, 2)


def test_summary_of_untouched_adapters_is_undefined():
    found = summarise([torch.zeros(4, dtype=torch.float64)] * 2)
    assert (found.modules, found.undefined, found.stable_rank, found.fro_over_nuclear) == (2, 2, None, None)


def test_written_file_holds_values_and_names(tmp_path):
    pairs = [LoraPair(f"layer.{i}", *factors(i)) for i in range(3)]
    summary = write_spectra(pairs, tmp_path / "spectra.safetensors")
    with safe_open(tmp_path / "spectra.safetensors", framework="pt") as file:
        names = file.metadata()["modules"].split("\n")
        values = file.get_tensor("singular_values")
    assert names == [pair.name for pair in pairs] and values.dtype == torch.float32
    for row, pair in zip(values, pairs, strict=True):
        np.testing.assert_allclose(row.numpy(), by_numpy(pair.a, pair.b), rtol=1e-6)
    expected = np.mean([np.sum(s**2) / s[0] ** 2 for s in (by_numpy(pair.a, pair.b) for pair in pairs)])
    assert summary.stable_rank == pytest.approx(expected)


def save(folder, settings=None, **tensors):
    folder.mkdir(exist_ok=True)
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / ADAPTER)
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": 16, "use_rslora": False} | (settings or {})
    (folder / ADAPTER_CONFIG).write_text(json.dumps(config), encoding="utf-8")
    return folder


def test_pairs_come_back_by_name(tmp_path):
    (a, b), (c, d) = factors(1), factors(2)
    save(
        tmp_path,
        z__lora_A__weight=a,
        z__lora_B__weight=b,
        y__lora_B__weight=d,
        y__lora_A__weight=c,
        other__weight=torch.ones(1),
    )
    pairs = read_pairs(tmp_path)
    assert [pair.name for pair in pairs] == ["y", "z"]
    assert torch.equal(pairs[1].a, a) and torch.equal(pairs[0].b, d)


def test_missing_or_damaged_adapter(tmp_path):
    with pytest.raises(UserError, match="adapter_config.json cannot be read"):
        read_pairs(tmp_path)
    with pytest.raises(UserError, match="does not exist"):
        read_pairs(tmp_path / "nowhere")
    save(tmp_path)
    (tmp_path / ADAPTER).unlink()
    with pytest.raises(UserError, match="has no adapter_model.safetensors"):
        read_pairs(tmp_path)
    (tmp_path / "adapter_model.bin").touch()
    with pytest.raises(UserError, match="is a pickle"):
        read_pairs(tmp_path)
    (tmp_path / ADAPTER).write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be read as a LoRA adapter"):
        read_pairs(tmp_path)
    a, b = factors()
    whole = (save(tmp_path, m__lora_A__weight=a, m__lora_B__weight=b) / ADAPTER).read_bytes()
    (tmp_path / ADAPTER).write_bytes(whole[:-100])
    with pytest.raises(UserError, match="cannot be read as a LoRA adapter"):
        read_pairs(tmp_path)


def test_no_factors_at_all(tmp_path):
    with pytest.raises(UserError, match="holds no LoRA factors"):
        read_pairs(save(tmp_path, m__weight=torch.ones(2)))


def test_a_without_b_is_named(tmp_path):
    a, b = factors()
    with pytest.raises(UserError, match="q has A but no B"):
        read_pairs(save(tmp_path, m__lora_A__weight=a, m__lora_B__weight=b, q__lora_A__weight=a.clone()))


def test_b_without_a_is_named(tmp_path):
    a, b = factors()
    with pytest.raises(UserError, match="q has B but no A"):
        read_pairs(save(tmp_path, m__lora_A__weight=a, m__lora_B__weight=b, q__lora_B__weight=b.clone()))


def test_product_norm_equals_the_direct_norm():
    pairs = [LoraPair(str(i), *factors(i, rows=20 + i, columns=30 - i)) for i in range(4)]
    squares = [np.linalg.norm(p.b.numpy().astype(np.float64) @ p.a.numpy().astype(np.float64)) ** 2 for p in pairs]
    assert product_norm(pairs, 11.5) == pytest.approx(11.5 * math.sqrt(sum(squares)), rel=1e-6)


def test_product_norm_of_an_untouched_adapter_is_zero():
    a, _ = factors()
    assert product_norm([LoraPair("m", a, torch.zeros(ROWS, RANK))], 2.0) == 0.0


def test_product_norm_where_the_factors_nearly_cancel():
    """A's rows are alike up to 1e-3 and B's columns up to sign: BA is a thousandth of |B| |A|."""
    a, b = factors(3)
    a = a[:1] + 1e-3 * a
    b = b - b.mean(dim=1, keepdim=True)
    direct = np.linalg.norm(b.numpy().astype(np.float64) @ a.numpy().astype(np.float64))
    assert product_norm([LoraPair("m", a, b)], 1.0) == pytest.approx(direct, rel=1e-2)


def test_product_norm_of_bfloat16_factors_is_that_of_their_values():
    pair = LoraPair("m", *(factor.bfloat16() for factor in factors(5)))
    direct = np.linalg.norm(pair.b.double().numpy() @ pair.a.double().numpy())
    assert product_norm([pair], 1.0) == pytest.approx(direct, rel=1e-6)


def test_many_modules_at_once_are_those_one_by_one():
    """Batches by shape, some factors by Cholesky and some by QR: nothing is mixed up."""
    pairs = [LoraPair(str(i), *factors(i, rows=9 + 7 * (i % 3), rank=2 + i % 4)) for i in range(12)]
    pairs[5] = LoraPair("skewed", pairs[5].a, pairs[5].b * torch.logspace(0, -6, pairs[5].b.shape[1]))
    for pair, sigma in zip(pairs, exact_spectra(pairs), strict=True):
        close(sigma, by_numpy(pair.a, pair.b))


class TestPapersWay:
    def test_agrees_where_b_is_resolved(self):
        pairs = [LoraPair(str(i), *factors(i)) for i in range(3)]
        for sigma, pair in zip(paper_spectra(pairs), pairs, strict=True):
            np.testing.assert_allclose(sigma.numpy(), by_numpy(pair.a, pair.b), rtol=1e-4)
        assert all(one.resolved for one in spectra_of(pairs))

    def test_shows_the_spectrum_of_a_where_b_is_tiny(self):
        """L is 1e-4 I then: sigma_i = 1e-4 sigma_i(A), whatever B is. Our exact values are BA's."""
        a, b = factors()
        b = b * torch.logspace(0, -2, RANK) * 1e-9
        pair = LoraPair("m", a, b)
        (found,) = paper_spectra([pair])
        np.testing.assert_allclose(found.numpy(), 1e-4 * np.linalg.svd(a.numpy(), compute_uv=False), rtol=1e-3)
        (exact,) = spectra_of([pair])
        assert not exact.resolved
        np.testing.assert_allclose(exact.sigma.numpy(), by_numpy(a, b), rtol=1e-9)

    def test_leaves_out_b_below_its_gate(self):
        a, b = factors()
        assert paper_spectra([LoraPair("m", a, b * 1e-15)])[0].tolist() == [0.0] * RANK

    def test_floor_of_the_flag(self):
        """Mean squared column norm against 100 times 1e-8."""
        a, _ = factors()
        for size, resolved in ((1.01e-3, True), (0.99e-3, False)):
            b = torch.zeros(ROWS, RANK)
            b[:RANK] = size * torch.eye(RANK)
            assert spectra_of([LoraPair("m", a, b)])[0].resolved is resolved


class TestJson:
    def test_every_field_against_numpy(self):
        pairs = [LoraPair("one", *factors(1), 2.0), LoraPair("two", *factors(2), 3.0)]
        found = as_json(spectra_of(pairs))
        for pair in pairs:
            sigma = by_numpy(pair.a, pair.b)
            p, q = sigma / sigma.sum(), sigma**2 / (sigma**2).sum()
            one = found["modules"][pair.name]
            np.testing.assert_allclose(one["singular_values"], sigma, rtol=1e-9)
            expected = {
                "stable_rank": (sigma**2).sum() / sigma[0] ** 2,
                "entropy": -(p * np.log(p)).sum(),
                "entropy_squared": -(q * np.log(q)).sum(),
                "condition_number": sigma[0] / sigma[-1],
                "fro_over_nuclear": np.sqrt((sigma**2).sum()) / sigma.sum(),
                "participation_ratio": (sigma**2).sum() ** 2 / (sigma**4).sum(),
            }
            for name, value in expected.items():
                assert one[name] == pytest.approx(value, rel=1e-9), name
            assert one["resolved"] is True and one["scaling"] == pair.scaling
            assert set(one) == {"singular_values", "resolved", "scaling", *expected}
        for name in MEASURES:
            assert found["mean"][name] == pytest.approx(np.mean([found["modules"][m][name] for m in ("one", "two")]))

    def test_undefined_is_none_skipped_and_counted(self):
        a, b = factors()
        thin = b.clone()
        thin[:, 2:] = 0
        pairs = [LoraPair("full", a, b), LoraPair("thin", a, thin), LoraPair("zero", a, 0 * b)]
        found = as_json(spectra_of(pairs))
        modules, mean = found["modules"], found["mean"]
        assert all(modules["zero"][name] is None for name in MEASURES)
        assert modules["zero"]["singular_values"] == [0.0] * RANK and modules["zero"]["resolved"] is False
        assert modules["thin"]["condition_number"] is None and modules["thin"]["stable_rank"] <= 2
        assert mean["stable_rank"] == pytest.approx(
            (modules["full"]["stable_rank"] + modules["thin"]["stable_rank"]) / 2
        )
        assert mean["condition_number"] == modules["full"]["condition_number"]
        assert (mean["modules"], mean["undefined"], mean["undefined_condition_number"]) == (3, 1, 2)
        assert mean["unresolved"] == 1
        json.dumps(found, allow_nan=False)

    def test_tiny_values_keep_their_measures(self):
        """Fourth powers of 1e-90 are no float64; the measures see ratios only."""
        sigma = torch.tensor([2e-90, 1e-90], dtype=torch.float64)
        found = measure(sigma)
        assert found["participation_ratio"] == pytest.approx(25 / 17) and found["condition_number"] == 2.0


class TestScaling:
    """The scale of each module as PEFT itself resolves it, from folders that PEFT itself wrote."""

    @pytest.mark.parametrize("rslora", [False, True])
    def test_equals_that_of_the_loaded_model(self, tiny_base, tmp_path, rslora):
        settings = LoraConfig(
            r=4,
            lora_alpha=8,
            use_rslora=rslora,
            target_modules=["q_proj", "v_proj", "down_proj", "embed_tokens"],
            rank_pattern={"v_proj": 6, "^model.layers.1.mlp.down_proj": 2, "layers.0.self_attn.q_proj": 3},
            alpha_pattern={r"layers\.[01]\.self_attn\.q_proj": 5, "down_proj": 11},
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny_base), settings)
        chance = torch.Generator().manual_seed(0)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=chance))
        model.save_pretrained(tmp_path)
        found = {one.name: one for one in read_spectra(tmp_path)}
        layers = {name: layer for name, layer in model.named_modules() if hasattr(layer, "get_delta_weight")}
        assert set(found) == set(layers) and len(found) == 7
        for name, layer in layers.items():
            one = found[name]
            assert one.scaling == pytest.approx(layer.scaling["default"], rel=1e-12), name
            assert len(one.sigma) == layer.r["default"]
            delta = layer.get_delta_weight("default").detach().double().numpy()
            expected = np.linalg.svd(delta, compute_uv=False)[: len(one.sigma)]
            np.testing.assert_allclose(one.scaling * one.sigma.numpy(), expected, rtol=1e-4)
        assert {len(one.sigma) for one in found.values()} == {2, 3, 4, 6}

    def test_experts_are_modules_of_their_own(self, tmp_path):
        """PEFT's adapter on a stack of three experts: A stacks them, B interleaves them."""
        experts, chance = 3, torch.Generator().manual_seed(0)
        a = torch.randn(RANK * experts, COLUMNS, generator=chance)
        b = torch.randn(ROWS, RANK * experts, generator=chance)
        save(tmp_path, {"target_parameters": ["mlp.experts.w"]}, m__lora_A__weight=a, m__lora_B__weight=b)
        deltas = torch.einsum(
            "o r e, e r i -> e o i", b.reshape(ROWS, RANK, experts), a.reshape(experts, RANK, COLUMNS)
        )
        pairs = read_pairs(tmp_path)
        assert [pair.name for pair in pairs] == ["m.0", "m.1", "m.2"]
        for pair, delta in zip(pairs, deltas, strict=True):
            torch.testing.assert_close(pair.b @ pair.a, delta)
            assert pair.scaling == 2.0

    def test_convolution_is_flattened(self, tmp_path):
        chance = torch.Generator().manual_seed(0)
        a, b = torch.randn(RANK, 3, 5, 5, generator=chance), torch.randn(ROWS, RANK, 1, 1, generator=chance)
        (pair,) = read_pairs(save(tmp_path, m__lora_A__weight=a, m__lora_B__weight=b))
        assert pair.a.shape == (RANK, 75) and pair.b.shape == (ROWS, RANK)


class TestRefusals:
    @pytest.mark.parametrize(
        "settings, words",
        [
            ({"peft_type": "LOHA"}, "peft_type is LOHA"),
            ({"use_bdlora": {"n": 2}}, "block-diagonal"),
            ({"r": 5}, "gives m rank 5, its factors have rank 8"),
            ({"r": None}, "has no r"),
        ],
    )
    def test_configurations(self, tmp_path, settings, words):
        a, b = factors()
        with pytest.raises(UserError, match=words):
            read_pairs(save(tmp_path, settings, m__lora_A__weight=a, m__lora_B__weight=b))

    def test_values_that_are_not_numbers(self, tmp_path):
        a, b = factors()
        b[3, 2] = math.inf
        with pytest.raises(UserError, match="B of m holds values that are not finite"):
            read_pairs(save(tmp_path, m__lora_A__weight=a, m__lora_B__weight=b))

    def test_factors_that_do_not_fit(self, tmp_path):
        a, b = factors()
        with pytest.raises(UserError, match="A has 8 rows but B has 5 columns"):
            read_pairs(save(tmp_path, m__lora_A__weight=a, m__lora_B__weight=b[:, :5].contiguous()))
