"""The paper's claims about gradients that hold for any weights, as numbers.

Symbols as in ``losses``. Source: tad_sr sheet 7.1 and 7.5.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from papers_shared.diffusion.swin_unet import UNetModelSwin
from tad_sr.losses import (
    Noising,
    adversarial_loss,
    hsd_gradient,
    noised_features,
    score,
    sds_gradient,
)

if TYPE_CHECKING:
    from papers_shared.diffusion.scheduler import ResShiftScheduler


def gradients_at_target(
    teacher: nn.Module, scheduler: ResShiftScheduler, z: Tensor, at: Noising
) -> tuple[float, float]:
    """Largest |g| of HSD and of SDS where the student's output is its target, ``z``.

    HSD's is exactly 0; SDS's is the teacher's error, a bias.
    """
    hsd = hsd_gradient(teacher, scheduler, z_stu=z, z_ref=z.clone(), at=at)
    sds = sds_gradient(teacher, scheduler, z_stu=z, at=at)
    return hsd.abs().max().item(), sds.abs().max().item()


def identity_gap(
    teacher: nn.Module,
    scheduler: ResShiftScheduler,
    *,
    z_stu: Tensor,
    z_ref: Tensor,
    at: Noising,
) -> float:
    """How far HSD's gradient is from its form in clean latents, relative to its largest value.

    g = (1 - eta) / (kappa sqrt(eta)) ((z_stu - z_ref) - (x0_stu - x0_ref)).
    """
    eps_stu, x0_stu = score(teacher, scheduler, z_stu, at)
    eps_ref, x0_ref = score(teacher, scheduler, z_ref, at)
    config: Any = scheduler.config
    eta = scheduler.training_tables.etas[at.timesteps.cpu()].to(z_stu)[:, None, None, None]
    weight = (1 - eta) / (config.kappa * eta.sqrt())
    gradient = eps_stu - eps_ref
    other = weight * ((z_stu - z_ref) - (x0_stu - x0_ref))
    return ((gradient - other).abs().max() / gradient.abs().max()).item()


def adversarial_gradient(
    teacher: UNetModelSwin,
    discriminator: nn.Module,
    scheduler: ResShiftScheduler,
    z_stu: Tensor,
    at: Noising,
) -> Tensor:
    """Gradient of the adversarial loss at the student's output, (B, C, h, w).

    Exactly 0 with a new discriminator: its convolution before the heads starts at 0.
    """
    z = z_stu.detach().requires_grad_()
    features = noised_features(teacher, scheduler, z, at)
    loss = adversarial_loss(discriminator(features, at.timesteps)).mean()
    (gradient,) = torch.autograd.grad(loss, z)
    return gradient
