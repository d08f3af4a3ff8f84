"""The Gram-matrix polar factors against the iteration on the thin matrix itself, and against the SVD."""

import numpy as np
import pytest
import torch

from em_train.optimisers.polar import inverse_root, newton_schulz
from tests.em_train.optimisers.adapters import relative
from tests.em_train.optimisers.references import msign
from tests.em_train.optimisers.references import newton_schulz as thin_newton_schulz

# In float32 both orders of multiplication round, and the iteration amplifies the rounding of K by up to the fifth
# power of its slope at zero. Measured: 2e-6 at condition 10, 2e-4 at 1e4.
TOLERANCE = {1.0: 1e-5, 1e1: 1e-5, 1e2: 1e-4, 1e4: 1e-3}


def thin(condition: float, seed: int = 0, shape: tuple[int, int] = (16, 512)) -> torch.Tensor:
    """A matrix whose singular values fall geometrically from 3 to 3 / condition."""
    chance = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(shape[0], shape[0], generator=chance, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(shape[1], shape[0], generator=chance, dtype=torch.float64)).Q
    sigma = 3 * torch.logspace(0, -np.log10(condition), shape[0], dtype=torch.float64)
    return (u * sigma) @ v.T


def iterate_in_float32(x: torch.Tensor, steps: int) -> np.ndarray:
    """torch.optim.Muon's loop, in float32 instead of bfloat16."""
    return thin_newton_schulz(x.float().numpy(), steps)


@pytest.mark.parametrize("condition", TOLERANCE)
@pytest.mark.parametrize("steps", [1, 3, 5])
def test_gram_iteration_equals_the_thin_one(condition, steps):
    x = thin(condition).float()
    found = (newton_schulz(x @ x.T, steps) @ x).numpy()
    exact = thin_newton_schulz(x.double().numpy(), steps)
    assert relative(found, exact) < TOLERANCE[condition]
    assert relative(found, iterate_in_float32(x, steps)) < TOLERANCE[condition]
    if steps == 5:  # torch's own, in bfloat16, is this far away
        theirs = torch.optim._muon._zeropower_via_newtonschulz(x, (3.4445, -4.775, 2.0315), 5, 1e-7).float().numpy()
        assert relative(found, exact) < 0.1 * relative(theirs, exact)


def test_batch_equals_its_members():
    every = [thin(condition, seed).float() for seed, condition in enumerate((2.0, 30.0, 500.0))]
    grams = torch.stack([x @ x.T for x in every])
    for function in (newton_schulz, inverse_root):
        for one, gram in zip(function(grams), grams, strict=True):
            torch.testing.assert_close(one, function(gram), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("condition", [1.0, 1e2, 1e4])
def test_exact_polar_factor(condition):
    x = thin(condition)
    found = (inverse_root(x @ x.T) @ x).numpy()
    assert relative(found, msign(x.numpy())) < 1e-6
    np.testing.assert_allclose(np.linalg.svd(found)[1], 1.0, atol=1e-6)


def test_zero_stays_zero_and_null_directions_are_left_out():
    zero = torch.zeros(2, 4, 4, dtype=torch.float64)
    assert not inverse_root(zero).any() and not inverse_root(zero, damping=0.1).any()
    assert bool(torch.isfinite(newton_schulz(zero.float())).all())
    x = thin(10.0)
    x[1] = 0  # rank 15
    sigma = np.linalg.svd((inverse_root(x @ x.T) @ x).numpy())[1]
    np.testing.assert_allclose(sigma, [1.0] * 15 + [0.0], atol=1e-6)


def test_damping_is_a_share_of_the_largest_eigenvalue():
    grams = torch.diag(torch.tensor([4.0, 1.0, 0.0], dtype=torch.float64))
    root = inverse_root(grams, damping=0.25).diagonal().sort().values
    np.testing.assert_allclose(root, np.array([5.0, 2.0, 1.0]) ** -0.5, rtol=1e-12)


def test_newton_schulz_leaves_the_documented_band():
    """Singular values between 0.7 and 1.2 for a condition of 10, as published."""
    x = thin(10.0).float()
    sigma = np.linalg.svd((newton_schulz(x @ x.T) @ x).numpy())[1]
    assert sigma.min() > 0.65 and sigma.max() < 1.25
