"""Dropout on a processor: the share, the scale and the seed are those that PyTorch's own would have."""

import pytest
import torch

from serve_app.inference.dropout import Dropout


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("probability", [0.05, 0.1, 0.5])
def test_share_and_scale(probability: float, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    units = torch.ones(401, 999, dtype=dtype, requires_grad=True)
    kept = Dropout(probability)(units)
    assert kept.dtype == dtype
    assert float((kept == 0).float().mean()) == pytest.approx(probability, abs=1 / 256)
    assert float(kept.detach().float().mean()) == pytest.approx(1.0, abs=0.01)
    kept.sum().backward()
    assert units.grad is not None
    torch.testing.assert_close(units.grad, kept.detach())  # dropped units learn nothing, and none is dropped twice


def test_units_are_dropped_independently() -> None:
    torch.manual_seed(0)
    kept = (Dropout(0.5)(torch.ones(2000, 64)) > 0).float()
    correlation = torch.corrcoef(kept.T) - torch.eye(64)
    assert correlation.abs().max() < 0.12  # 5 standard deviations


def test_same_seed_same_units_and_none_without_training() -> None:
    dropout, units = Dropout(0.3), torch.randn(7, 5)
    draws = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        draws.append(dropout(units))
    assert torch.equal(draws[0], draws[1])
    assert not torch.equal(draws[0], draws[2])
    assert dropout.eval()(units) is units
    assert Dropout(0.0)(units) is units
