"""Spectra of BA against NumPy's SVD of the product, and measures against values worked out by hand."""

import math

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from em_core.errors import UserError
from em_core.manifest import ADAPTER
from em_train.spectra import (
    MEASURES,
    LoraPair,
    entropy,
    fro_over_nuclear,
    participation_ratio,
    product_norm,
    read_pairs,
    singular_values,
    stable_rank,
    summarise,
    write_spectra,
)

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
    for name, measure in MEASURES.items():
        assert measure(two) == pytest.approx(measure(one), rel=1e-6), name


def test_zero_b_has_no_spectrum():
    a, _ = factors()
    sigma = singular_values(a, torch.zeros(ROWS, RANK))
    assert torch.equal(sigma, torch.zeros(RANK, dtype=torch.float64))


def test_rank_deficient_product():
    a, b = factors()
    b[:, 3:] = 0
    sigma = singular_values(a, b)
    assert torch.all(sigma[:3] > 1) and torch.all(sigma[3:] < 1e-12)
    assert 1 < stable_rank(sigma) <= 3 and 1 < participation_ratio(sigma) <= 3
    assert entropy(sigma) <= math.log(3)


def test_rank_above_the_width_of_a_module(tmp_path):
    """A rank of 256 on a key projection of 192 rows, as grouped-query attention has: r values, the rest zero."""
    narrow, wide = factors(8, rows=4), factors(9)
    pairs = [LoraPair("narrow", *narrow), LoraPair("wide", *wide)]
    assert write_spectra(pairs, tmp_path / "spectra.safetensors").modules == 2
    assert singular_values(*narrow).shape == (RANK,)


def test_measures_worked_out_by_hand():
    sigma = torch.tensor([4.0, 2.0, 1.0, 1.0], dtype=torch.float64)
    # Squares 16, 4, 1, 1: sum 22. Fourth powers 256, 16, 1, 1: sum 274. Sum 8, so p = 1/2, 1/4, 1/8, 1/8.
    assert stable_rank(sigma) == pytest.approx(22 / 16, rel=1e-14)
    assert participation_ratio(sigma) == pytest.approx(22**2 / 274, rel=1e-14)
    assert fro_over_nuclear(sigma) == pytest.approx(math.sqrt(22) / 8, rel=1e-14)
    assert entropy(sigma) == pytest.approx(1.75 * math.log(2), rel=1e-14)


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


def save(folder, **tensors):
    folder.mkdir(exist_ok=True)
    save_file({name.replace("__", "."): tensor for name, tensor in tensors.items()}, folder / ADAPTER)
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
    with pytest.raises(UserError, match="cannot be read as a LoRA adapter"):
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
