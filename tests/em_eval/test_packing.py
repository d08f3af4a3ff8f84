"""Packed layers compute what plain ones do, and leave no trace behind."""

import pytest
import torch
from torch import nn

from em_eval.providers import packing
from em_eval.providers.packing import pack, unpack


def layers(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 64), nn.SiLU(), nn.Linear(64, 32, bias=False), nn.LayerNorm(32)).to(dtype)


@pytest.mark.parametrize("shape", [(1, 48), (7, 48), (3, 5, 48)])
def test_the_same_as_the_formula_in_float64(shape: tuple[int, ...]) -> None:
    model, x = layers(), torch.randn(shape)
    expected = model.double()(x.double())
    model.float()
    with torch.inference_mode():
        packed = pack(model)
        assert [type(layer) for layer in packed] == [nn.Linear, nn.Linear]
        torch.testing.assert_close(model(x).double(), expected, rtol=1e-5, atol=1e-5)


def test_a_row_does_not_depend_on_how_many_stand_beside_it() -> None:
    model, x = layers(), torch.randn(300, 48)
    with torch.inference_mode():
        pack(model)
        whole = model(x)
        for rows in (2, 7, 40, 96):
            assert torch.equal(model(x[:rows]), whole[:rows])


def test_unpacked_layers_multiply_by_their_own_weights() -> None:
    model, x = layers(), torch.randn(3, 48)
    with torch.inference_mode():
        before = model(x)
        packed = pack(model)
        packed[0].weight.add_(1.0)
        stale = model(x)
        unpack(packed)
        assert not torch.equal(model(x), stale)
        packed[0].weight.sub_(1.0)
        torch.testing.assert_close(model(x), before)


def test_other_types_and_larger_models_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    assert pack(layers(torch.bfloat16)) == []
    monkeypatch.setattr(packing, "LARGEST", 100)
    assert pack(layers()) == []


def test_without_onednn_nothing_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert pack(layers()) == []
