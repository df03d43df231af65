"""Clipping bounds the estimate of the clean sample and keeps it consistent with the noisy one."""

import pytest
import torch

from ditwright.diffusion.guidance import clipped
from ditwright.diffusion.path import PATHS, coeffs_like
from ditwright.diffusion.target import Prediction


@pytest.mark.parametrize("path", PATHS)
def test_clipped_predictions_are_bounded_and_consistent(path):
    x_t, t = torch.randn(4, 3, 5, dtype=torch.float64) * 3, torch.tensor(0.7, dtype=torch.float64)
    c = coeffs_like(PATHS[path], t, x_t)

    def wild(x_t, t):
        eps = torch.randn(x_t.shape, generator=torch.Generator().manual_seed(0), dtype=x_t.dtype)
        return Prediction((x_t - c.sigma * eps) / c.alpha, eps, torch.ones_like(x_t))

    pred = clipped(wild, PATHS[path], 0.5)(x_t, t)
    assert pred.x0.abs().max() == 0.5
    torch.testing.assert_close(c.alpha * pred.x0 + c.sigma * pred.eps, x_t)
    assert torch.equal(pred.var, torch.ones_like(x_t))
    free, bounded = wild(x_t, t), clipped(wild, PATHS[path], 1e9)(x_t, t)
    torch.testing.assert_close(bounded.x0, free.x0)
    torch.testing.assert_close(bounded.eps, free.eps)


def test_clipping_tames_noise_prediction_where_there_is_no_signal():
    path, t = PATHS["ddpm-cosine"], torch.tensor(1.0, dtype=torch.float64)

    def off(x_t, t):  # the exact denoiser of a point at 0.3, but for an error of a thousandth
        c = coeffs_like(path, t, x_t)
        eps = (x_t - c.alpha * 0.3) / c.sigma + 1e-3
        return Prediction((x_t - c.sigma * eps) / c.alpha, eps)

    x = torch.randn(8, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert off(x, t).x0.abs().min() > 10
    assert clipped(off, path, 1.0)(x, t).x0.abs().max() == 1
