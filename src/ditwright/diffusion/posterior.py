"""One reverse step t -> s as a Gaussian, on any path; and the variational bound that trains its variance.

B batch, N times of a grid, in decreasing order and ending at 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .path import Path
from .target import Prediction


class Posterior(NamedTuple):
    """q(x_s | x_t, x0) for every step of a grid (docs/maths.md, eq. 7 and 8); (N - 1,) each.

    The original's tables run from index 0 upwards: flip these to compare.
    """

    x0: Tensor  # coefficient of x0 in the mean
    x_t: Tensor  # coefficient of x_t in the mean
    log_beta: Tensor  # log variance of q(x_t | x_s), the upper bound of a reverse step's
    log_var: Tensor  # log variance of the posterior; the last step's, which is zero, takes the one before it


def posterior(path: Path, times: Tensor) -> Posterior:
    """The reverse steps of a grid of times (N,), in float64 (Ho et al. 2020, eq. 6 and 7)."""
    c = path(times.double())
    alpha_s, var_s, var_t = c.alpha[1:], c.sigma[1:].square(), c.sigma[:-1].square()
    ratio = c.alpha[:-1] / alpha_s
    beta = var_t - ratio.square() * var_s  # variance of q(x_t | x_s); 1 - ratio^2 where variance is preserved
    variance = beta * var_s / var_t
    clipped = torch.cat((variance[:-1], variance[-2:-1])) if len(variance) > 1 else beta
    return Posterior(alpha_s * beta / var_t, ratio * var_s / var_t, beta.log(), clipped.log())


def log_variance(q: Posterior, i: Tensor, pred: Prediction) -> Tensor:
    """Learned log variance of step i, between the posterior's and beta's (docs/maths.md, eq. 8)."""
    low, high = (v[i].to(pred.x0).reshape(-1, *(1,) * (pred.x0.ndim - 1)) for v in (q.log_var, q.log_beta))
    return low if pred.var is None else pred.var * high + (1 - pred.var) * low


def mean(q: Posterior, i: Tensor, x0: Tensor, x_t: Tensor) -> Tensor:
    """Mean of step i given a clean sample and a noisy one."""
    k0, kt = (v[i].to(x0).reshape(-1, *(1,) * (x0.ndim - 1)) for v in (q.x0, q.x_t))
    return k0 * x0 + kt * x_t


def normal_kl(mean1: Tensor, log_var1: Tensor, mean2: Tensor, log_var2: Tensor) -> Tensor:
    """KL divergence of two Gaussians, in nats, per element."""
    spread = log_var2 - log_var1 + (log_var1 - log_var2).exp() - 1
    return 0.5 * (spread + (mean1 - mean2).square() * (-log_var2).exp())


def discretised_nll(x: Tensor, mean: Tensor, log_var: Tensor, bin_width: float = 2 / 255) -> Tensor:
    """-log of a Gaussian's mass in the 8-bit bin around x in [-1, 1]; the outer bins are open (Ho et al. 2020, eq. 13).

    The normal distribution function is the tanh approximation that ADM and DiT train with.
    """

    def cdf(z: Tensor) -> Tensor:
        return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3)))

    upper = cdf((x - mean + bin_width / 2) * (-0.5 * log_var).exp())
    lower = cdf((x - mean - bin_width / 2) * (-0.5 * log_var).exp())
    mass = torch.where(x < -0.999, upper, torch.where(x > 0.999, 1 - lower, upper - lower))
    return -mass.clamp(min=1e-12).log()


class VariationalBound:
    """The bound of one step in bits per dimension, which trains the variance alone (Nichol & Dhariwal 2021, eq. 16).

    A term for `Objective`: added to the mean squared error it is DiT's hybrid loss.
    """

    def __init__(self, path: Path, times: Tensor):
        self.path, self.times, self.q = path, times.double().cpu(), posterior(path, times.cpu())

    def __call__(self, pred: Prediction, x0: Tensor, x_t: Tensor, t: Tensor) -> Tensor:
        """(B,) bits per dimension; t (B,) are times of the grid."""
        i = (self.times[None, :-1] - t.detach().cpu().double()[:, None]).abs().argmin(1)
        true_mean, model_mean = mean(self.q, i, x0, x_t), mean(self.q, i, pred.x0.detach(), x_t)
        log_var = log_variance(self.q, i, pred)
        kl = normal_kl(true_mean, log_variance(self.q, i, pred._replace(var=None)), model_mean, log_var)
        last = (i == len(self.times) - 2).to(x0.device).reshape(-1, *(1,) * (x0.ndim - 1))
        nll = discretised_nll(x0, model_mean, log_var)
        return torch.where(last, nll, kl).flatten(1).mean(1) / math.log(2)
