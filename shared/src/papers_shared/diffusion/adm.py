"""ADM's diffusion (improved DDPM), as DiT and U-DiT are trained and sampled with.

A network's output is noise, and after it the interpolation v of the learned variance. Tables are
float64. Sampling with schedulers of diffusers gives the same up to their float32 tables; what they
do not have stands here: the losses, and the chain that everything can be checked against.

Source: Nichol and Dhariwal, ICML 2021; Dhariwal and Nichol, NeurIPS 2021; u_dit sheet 4.1, 4.2.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

STEPS = 1000


def space_timesteps(count: int, respacing: str) -> list[int]:
    """Which of ``count`` steps a shorter chain keeps, rising.

    Args:
        count: steps of the whole chain.
        respacing: "250", evenly spaced from first to last; "10,15,20", so many of each of three
            equal sections; "ddim50", every so manieth step, 50 of them.

    Raises:
        ValueError: it cannot be read, or asks for more steps than there are.

    Source: u_dit sheet 4.2.
    """
    digits = respacing.removeprefix("ddim")
    if not all(part.strip().isdecimal() and int(part) > 0 for part in digits.split(",")):
        raise ValueError(f"respacing {respacing!r}: expected '250', '10,15,20' or 'ddim50'")
    if respacing.startswith("ddim"):
        for step in range(1, count):
            if len(range(0, count, step)) == int(digits):
                return list(range(0, count, step))
        raise ValueError(f"no whole stride takes {digits} of {count} steps; e.g. ddim50 of 1000")
    sections = [int(part) for part in digits.split(",")]
    kept: list[int] = []
    start = 0
    for i, wanted in enumerate(sections):
        size = count // len(sections) + (i < count % len(sections))
        if wanted > size:
            raise ValueError(f"respacing {respacing!r}: {wanted} of a section of {size} steps")
        stride = (size - 1) / (wanted - 1) if wanted > 1 else 1.0
        place = 0.0  # summed up as the authors do: a product would round otherwise
        for _ in range(wanted):
            kept.append(start + round(place))
            place += stride
        start += size
    return kept


@dataclass(frozen=True)
class Chain:
    """The steps of a diffusion.

    Attributes:
        betas: float64 (n,), variance of each step's noise.
        timesteps: int64 (n,), what the network is told.
    """

    betas: Tensor
    timesteps: Tensor

    @classmethod
    def linear(cls, count: int = STEPS) -> Chain:
        """Betas from 1e-4 to 0.02, both times 1000 / count."""
        scale = 1000 / count
        betas = torch.linspace(1e-4 * scale, 0.02 * scale, count, dtype=torch.float64)
        return cls(betas, torch.arange(count))

    def respaced(self, kept: Sequence[int]) -> Chain:
        """The chain of some of the steps, whose noise levels stay as they are."""
        levels = self.alphas_cumprod[list(kept)]
        before = torch.cat([levels.new_ones(1), levels[:-1]])
        return Chain(1 - levels / before, self.timesteps[list(kept)])

    def __len__(self) -> int:
        return len(self.betas)

    @cached_property
    def alphas_cumprod(self) -> Tensor:
        """(n,): share of the picture in x_t's variance."""
        return (1 - self.betas).cumprod(0)

    @cached_property
    def alphas_cumprod_prev(self) -> Tensor:
        """The same one step earlier, beginning with 1."""
        return torch.cat([self.betas.new_ones(1), self.alphas_cumprod[:-1]])

    @cached_property
    def posterior_variance(self) -> Tensor:
        """(n,) of q(x_{t-1} | x_t, x_0)."""
        return self.betas * (1 - self.alphas_cumprod_prev) / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_log_variance_clipped(self) -> Tensor:
        """Its logarithm; the first, of 0, is replaced by the second (by log beta if alone)."""
        variance = self.posterior_variance
        first = variance[1:2] if len(self) > 1 else self.betas[:1]
        return torch.cat([first, variance[1:]]).log()

    @cached_property
    def posterior_mean_coef1(self) -> Tensor:
        """(n,), of x_0."""
        return self.betas * self.alphas_cumprod_prev.sqrt() / (1 - self.alphas_cumprod)

    @cached_property
    def posterior_mean_coef2(self) -> Tensor:
        """(n,), of x_t."""
        kept = (1 - self.betas).sqrt()
        return (1 - self.alphas_cumprod_prev) * kept / (1 - self.alphas_cumprod)

    def posterior_mean(self, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
        """Mean of q(x_{t-1} | x_t, x_0)."""
        a, b = self.posterior_mean_coef1, self.posterior_mean_coef2
        return _at(a, t, x) * x0 + _at(b, t, x) * x


@dataclass(frozen=True)
class Prediction:
    """p(x_{t-1} | x_t): mean and log-variance, and the x_0 it comes from; (B, C, H, W) each."""

    mean: Tensor
    log_variance: Tensor
    pred_xstart: Tensor


def q_sample(chain: Chain, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
    """``sqrt(abar_t) x0 + sqrt(1 - abar_t) noise``; t (B,) are places in the chain."""
    level = chain.alphas_cumprod
    return _at(level.sqrt(), t, x0) * x0 + _at((1 - level).sqrt(), t, x0) * noise


def predict_xstart(chain: Chain, noise: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """The picture that a predicted noise leaves."""
    inverse = 1 / chain.alphas_cumprod
    return _at(inverse.sqrt(), t, x) * x - _at((inverse - 1).sqrt(), t, x) * noise


def p_mean_variance(
    chain: Chain, output: Tensor, x: Tensor, t: Tensor, *, clip_denoised: bool = False
) -> Prediction:
    """One step back by a network's output.

    ``log sigma^2 = w log beta_t + (1 - w) log variance_t`` with w = (v + 1) / 2, not clamped.

    Args:
        chain: of the step.
        output: (B, 2 C, H, W), noise and v.
        x: (B, C, H, W) at t.
        t: (B,), places in the chain.
        clip_denoised: clamp the predicted x_0 to [-1, 1].

    Raises:
        ValueError: the output has not twice as many channels as x.
    """
    noise, v = _split(output, x)
    w = (v + 1) / 2
    largest, smallest = chain.betas.log(), chain.posterior_log_variance_clipped
    log_variance = w * _at(largest, t, x) + (1 - w) * _at(smallest, t, x)
    x0 = predict_xstart(chain, noise, x, t)
    if clip_denoised:
        x0 = x0.clamp(-1, 1)
    return Prediction(chain.posterior_mean(x0, x, t), log_variance, x0)


def p_sample(
    chain: Chain,
    output: Tensor,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    clip_denoised: bool = False,
) -> Tensor:
    """x at t - 1, drawn with ``noise``; arguments as of ``p_mean_variance``."""
    p = p_mean_variance(chain, output, x, t, clip_denoised=clip_denoised)
    drawn = (t != 0).to(x.dtype)[:, None, None, None]
    return p.mean + drawn * (0.5 * p.log_variance).exp() * noise


def ddim_sample(
    chain: Chain,
    output: Tensor,
    x: Tensor,
    t: Tensor,
    noise: Tensor,
    *,
    eta: float = 0.0,
    clip_denoised: bool = False,
) -> Tensor:
    """DDIM's step: eta 0 draws nothing, eta 1 as much as DDPM's smaller variance.

    Source: Song et al., ICLR 2021, equation 12.
    """
    x0 = p_mean_variance(chain, output, x, t, clip_denoised=clip_denoised).pred_xstart
    level, before = chain.alphas_cumprod, chain.alphas_cumprod_prev
    inverse = 1 / level
    epsilon = (_at(inverse.sqrt(), t, x) * x - x0) / _at((inverse - 1).sqrt(), t, x)
    sigma = eta * ((1 - before) / (1 - level)).sqrt() * (1 - level / before).sqrt()
    rest = (1 - before - sigma.square()).clamp(min=0).sqrt()
    drawn = (t != 0).to(x.dtype)[:, None, None, None]
    mean = _at(before.sqrt(), t, x) * x0 + _at(rest, t, x) * epsilon
    return mean + drawn * _at(sigma, t, x) * noise


def training_losses(
    chain: Chain, output: Tensor, x0: Tensor, x: Tensor, t: Tensor, noise: Tensor
) -> dict[str, Tensor]:
    """Losses of a network's output at x_t, by sample.

    The bound teaches the variance alone: in it the noise's prediction is a constant. A network
    without a learned variance has the first loss only.

    Args:
        chain: of the steps.
        output: (B, 2 C, H, W) or (B, C, H, W).
        x0: (B, C, H, W), what x was made of.
        x: ``q_sample`` of x0, t and noise.
        t: (B,), places in the chain.
        noise: (B, C, H, W).

    Returns:
        ``mse``, ``vb`` (bits a value) and ``loss``, their sum; (B,) each.

    Source: Nichol and Dhariwal 2021, section 3.1 without resampling; u_dit sheet 4.1.
    """
    if output.shape == x.shape:
        mse = (noise - output).square().mean((1, 2, 3))
        return {"mse": mse, "loss": mse}
    predicted, v = _split(output, x)
    mse = (noise - predicted).square().mean((1, 2, 3))
    vb = variational_bound(chain, torch.cat([predicted.detach(), v], dim=1), x0, x, t)
    return {"mse": mse, "vb": vb, "loss": mse + vb}


def variational_bound(chain: Chain, output: Tensor, x0: Tensor, x: Tensor, t: Tensor) -> Tensor:
    """KL divergence from the true step back, at t = 0 the likelihood of x0; bits a value, (B,)."""
    p = p_mean_variance(chain, output, x, t)
    mean, smallest = chain.posterior_mean(x0, x, t), chain.posterior_log_variance_clipped
    kl = normal_kl(mean, _at(smallest, t, x), p.mean, p.log_variance)
    likelihood = discretized_log_likelihood(x0, p.mean, 0.5 * p.log_variance)
    nats = torch.where(t == 0, -likelihood.mean((1, 2, 3)), kl.mean((1, 2, 3)))
    return nats / math.log(2)


def normal_kl(mean1: Tensor, logvar1: Tensor, mean2: Tensor, logvar2: Tensor) -> Tensor:
    """KL(N(mean1, exp logvar1) || N(mean2, exp logvar2)) in nats, by element."""
    ratio, distance = logvar1 - logvar2, (mean1 - mean2).square()
    return 0.5 * (-1 - ratio + ratio.exp() + distance * (-logvar2).exp())


def discretized_log_likelihood(x: Tensor, mean: Tensor, log_scale: Tensor) -> Tensor:
    """Log of the normal's mass in the bin of 1/127.5 around each value; x in [-1, 1] has 8 bits.

    Latents are no 8-bit values; the authors use it on them all the same.
    """
    centred, inverse = x - mean, (-log_scale).exp()
    above = _approximate_cdf(inverse * (centred + 1 / 255))
    below = _approximate_cdf(inverse * (centred - 1 / 255))

    def log(value: Tensor) -> Tensor:
        return value.clamp(min=1e-12).log()

    inside = torch.where(x > 0.999, log(1 - below), log(above - below))
    return torch.where(x < -0.999, log(above), inside)


def _approximate_cdf(u: Tensor) -> Tensor:
    return 0.5 * (1 + torch.tanh(math.sqrt(2 / math.pi) * (u + 0.044715 * u**3)))


def _split(output: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    if output.shape[1] != 2 * x.shape[1]:
        raise ValueError(
            f"an output of {output.shape[1]} channels for {x.shape[1]}: noise and variance, "
            f"{2 * x.shape[1]}, are expected"
        )
    noise, v = output.chunk(2, dim=1)
    return noise, v


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Entries of a float64 table for a batch, in the batch's type: (B, 1, 1, 1)."""
    return table.to(t.device)[t].to(like.dtype)[:, None, None, None]
