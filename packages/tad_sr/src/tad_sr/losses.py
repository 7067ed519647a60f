"""The losses of time-aware distillation, as plain functions of what they depend on.

Symbols as in the scheduler: z_y latent of the enlarged low-quality picture, z_gt of the ground
truth, z_stu the student's output, z_tea the teacher's, z_ref what the score distillation pulls
towards; latents are (B, C, h, w), ``lq`` is (B, 3, h r, w r) in [-1, 1]. Losses are per sample
(B,); what is trained on is their mean. Every draw is an argument: ``draw`` makes them.

Source: tad_sr sheet 4.2 to 4.4 (paper: Eq. 12), in the form of the released code; the switches of
``LossConfig`` lead to the form of the text and to the ablations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.diffusion.swin_unet import UNetModelSwin

if TYPE_CHECKING:
    from papers_shared.diffusion.scheduler import ResShiftScheduler

DistillType = Literal["HSD", "SDS", "none"]
NoiseKind = Literal["uniform", "gaussian"]


@dataclass(frozen=True)
class LossConfig:
    """Which losses, and how; the defaults are those of the released x4 model.

    Attributes:
        distill_type: score distillation against a reference (HSD), against the drawn noise (SDS,
            ablation), or none.
        score_distill_target: HSD's reference: the teacher's output, or the ground truth's latent.
        regression_weight: of the squared distance to the teacher's output.
        hsd_weight: of HSD or SDS; 1 for x4, 0.1 for faces.
        use_gan: the discriminator and its loss.
        gan_weight: of the student's adversarial loss; 0.02 for x4, 0.2 for faces.
        uniform_sampling: score steps from all but the noisiest; False: from the first three.
        noise: what the latents are noised with for score and discriminator: "uniform" on [0, 1) as
            the released code does, "gaussian" as the diffusion does.
        double_scale: divide the network's input of the score by its standard deviation twice, as
            the released code does.
        use_fixed_time: the student starts at T-1; False: at one of ``student_timesteps``.
    """

    distill_type: DistillType = "HSD"
    score_distill_target: Literal["teacher", "gt"] = "teacher"
    regression_weight: float = 1.0
    hsd_weight: float = 1.0
    use_gan: bool = True
    gan_weight: float = 0.02
    uniform_sampling: bool = False
    noise: NoiseKind = "uniform"
    double_scale: bool = True
    use_fixed_time: bool = True
    student_timesteps: tuple[int, ...] = (3, 7, 11, 14)

    def __post_init__(self) -> None:
        for name, known in (
            ("distill_type", ("HSD", "SDS", "none")),
            ("score_distill_target", ("teacher", "gt")),
            ("noise", ("uniform", "gaussian")),
        ):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} {getattr(self, name)!r} is none of {', '.join(known)}")


# ---- what is drawn


@dataclass(frozen=True)
class Noising:
    """How clean latents are noised before the teacher sees them.

    Attributes:
        z_y: low-quality latent, towards which they shift.
        lq: low-quality picture, the teacher's condition.
        timesteps: (B,).
        noise: as z_y.
    """

    z_y: Tensor
    lq: Tensor
    timesteps: Tensor
    noise: Tensor


@dataclass(frozen=True)
class Draws:
    """Everything random in a training step.

    Attributes:
        noise: standard normal, of the start z_T that student and teacher share.
        t_student: step at which both start; one for the batch.
        t_dis, noise_dis: of what the discriminator sees.
        t_hsd, noise_hsd: of the score distillation.
    """

    noise: Tensor
    t_student: int
    t_dis: Tensor
    noise_dis: Tensor
    t_hsd: Tensor
    noise_hsd: Tensor

    def for_discriminator(self, z_y: Tensor, lq: Tensor) -> Noising:
        """Of what the discriminator sees."""
        return Noising(z_y=z_y, lq=lq, timesteps=self.t_dis, noise=self.noise_dis)

    def for_score(self, z_y: Tensor, lq: Tensor) -> Noising:
        """Of the score distillation."""
        return Noising(z_y=z_y, lq=lq, timesteps=self.t_hsd, noise=self.noise_hsd)


def discriminator_steps(total: int) -> tuple[int, int]:
    """Steps 0 .. T-2, as (first, one past the last)."""
    return 0, total - 1


def score_steps(total: int, *, uniform_sampling: bool = False) -> tuple[int, int]:
    """The three steps of least noise, or 0 .. T-2, as (first, one past the last)."""
    return 0, total - 1 if uniform_sampling else min(3, total - 1)


def draw(
    config: LossConfig, like: Tensor, *, total: int, generator: torch.Generator | None = None
) -> Draws:
    """All draws of a training step.

    Args:
        config: of the losses.
        like: a latent (B, C, h, w).
        total: T.
        generator: of everything drawn; torch's own if not given.

    Raises:
        ValueError: ``student_timesteps`` has a step that the diffusion has not.
    """
    device = like.device if generator is None else generator.device

    def steps(first: int, stop: int, count: int = like.shape[0]) -> Tensor:
        drawn = torch.randint(first, stop, (count,), generator=generator, device=device)
        return drawn.to(like.device)

    def noise(kind: NoiseKind) -> Tensor:
        make = torch.rand if kind == "uniform" else torch.randn
        return make(like.shape, generator=generator, device=device).to(like)

    t_student = total - 1
    if not config.use_fixed_time:
        if not all(0 <= t < total for t in config.student_timesteps):
            raise ValueError(
                f"student_timesteps {config.student_timesteps} have to be from 0 to {total - 1}"
            )
        t_student = config.student_timesteps[int(steps(0, len(config.student_timesteps), 1))]
    return Draws(
        noise=noise("gaussian"),
        t_student=t_student,
        t_dis=steps(*discriminator_steps(total)),
        noise_dis=noise(config.noise),
        t_hsd=steps(*score_steps(total, uniform_sampling=config.uniform_sampling)),
        noise_hsd=noise(config.noise),
    )


# ---- student and teacher


def start(scheduler: ResShiftScheduler, z_y: Tensor, noise: Tensor) -> Tensor:
    """z_T = z_y + kappa sqrt(eta_{T-1}) noise."""
    return scheduler.add_noise(z_y, noise, len(scheduler) - 1, z_y=z_y)


def student_output(
    student: nn.Module,
    scheduler: ResShiftScheduler,
    *,
    z_T: Tensor,
    z_y: Tensor,
    lq: Tensor,
    t: int,
) -> Tensor:
    """z_stu: the clean latent that the student predicts from z_T in one evaluation at step t."""
    return _clean(student, scheduler, scheduler.scale_model_input(z_T, t), z_T, z_y, lq, t)


@torch.no_grad()
def teacher_target(
    teacher: nn.Module,
    scheduler: ResShiftScheduler,
    *,
    z_T: Tensor,
    z_y: Tensor,
    lq: Tensor,
    t: int,
) -> Tensor:
    """z_tea: where the deterministic chain over the steps t .. 0 ends.

    With x0 = teacher(z_t), e = eta_t and p = eta_{t-1}:
    z_{t-1} = x0 (1 - p + sqrt(e p) - sqrt(p/e)) + z_t sqrt(p/e) + z_y (p - sqrt(e p)).

    Source: tad_sr sheet 4.2 (SinSR's sampler).
    """
    tables, z = scheduler.training_tables, z_T
    for i in range(t, -1, -1):
        x0 = _clean(teacher, scheduler, scheduler.scale_model_input(z, i), z, z_y, lq, i)
        z = (
            tables.ddim_original[i].item() * x0
            + tables.ddim_sample[i].item() * z
            + tables.ddim_target[i].item() * z_y
        )
    return z


def _clean(
    network: nn.Module,
    scheduler: ResShiftScheduler,
    network_input: Tensor,
    z_t: Tensor,
    z_y: Tensor,
    lq: Tensor,
    t: int | Tensor,
) -> Tensor:
    """The clean latent according to a network."""
    steps = torch.as_tensor(t, device=z_t.device).expand(len(z_t))
    output = network(network_input, steps, lq).to(z_t.dtype)
    return scheduler.predict_original(output, t, z_t, z_y)


# ---- score distillation


@torch.no_grad()
def score(
    teacher: nn.Module,
    scheduler: ResShiftScheduler,
    z: Tensor,
    at: Noising,
    *,
    double_scale: bool = True,
) -> tuple[Tensor, Tensor]:
    """What the teacher thinks of a clean latent: it is noised, and the teacher finds noise in it.

    Returns:
        the noise that the teacher finds, and the clean latent, both (B, C, h, w).
    """
    z_t = scheduler.add_noise(z, at.noise, at.timesteps, z_y=at.z_y)
    scaled = scheduler.scale_model_input(z_t, at.timesteps)
    if double_scale:
        scaled = scheduler.scale_model_input(scaled, at.timesteps)
    x0 = _clean(teacher, scheduler, scaled, z_t, at.z_y, at.lq, at.timesteps)
    return scheduler.predict_noise(z_t, x0, at.z_y, at.timesteps), x0


def hsd_gradient(
    teacher: nn.Module,
    scheduler: ResShiftScheduler,
    *,
    z_stu: Tensor,
    z_ref: Tensor,
    at: Noising,
    double_scale: bool = True,
) -> Tensor:
    """g = eps(z_stu) - eps(z_ref), both with the same noise; zero where z_stu = z_ref.

    Equal to (1 - eta) / (kappa sqrt(eta)) ((z_stu - z_ref) - (x0_stu - x0_ref)).

    Source: tad_sr sheet 4.4 (2).
    """
    eps_stu, _ = score(teacher, scheduler, z_stu, at, double_scale=double_scale)
    eps_ref, _ = score(teacher, scheduler, z_ref, at, double_scale=double_scale)
    return eps_stu - eps_ref


def sds_gradient(
    teacher: nn.Module,
    scheduler: ResShiftScheduler,
    *,
    z_stu: Tensor,
    at: Noising,
    double_scale: bool = True,
) -> Tensor:
    """g = eps(z_stu) - noise.

    Source: tad_sr sheet 4.4 (3).
    """
    eps, _ = score(teacher, scheduler, z_stu, at, double_scale=double_scale)
    return eps - at.noise


def score_loss(gradient: Tensor, z_stu: Tensor) -> Tensor:
    """mean(g z_stu): only its gradient has a meaning, g / (C h w)."""
    return (gradient.detach() * z_stu).mean(dim=(1, 2, 3))


# ---- adversarial


def noised_features(
    teacher: UNetModelSwin, scheduler: ResShiftScheduler, z: Tensor, at: Noising
) -> list[Tensor]:
    """The teacher's encoder features of a noised clean latent; gradients flow to ``z``.

    Source: tad_sr sheet 4.4 (4).
    """
    z_t = scheduler.add_noise(z, at.noise, at.timesteps, z_y=at.z_y)
    return teacher.features(scheduler.scale_model_input(z_t, at.timesteps), at.timesteps, at.lq)


def discriminator_loss(real: Sequence[Tensor], fake: Sequence[Tensor]) -> Tensor:
    """Hinge loss, mean over all logits of a sample: relu(1 - D(real)) + relu(1 + D(fake))."""
    of_real, of_fake = torch.cat(list(real), dim=1), torch.cat(list(fake), dim=1)
    return F.relu(1 - of_real).mean(dim=1) + F.relu(1 + of_fake).mean(dim=1)


def adversarial_loss(fake: Sequence[Tensor]) -> Tensor:
    """- mean D(fake), over all logits of a sample."""
    return -torch.cat(list(fake), dim=1).mean(dim=1)


# ---- the student's losses together


def score_gradient(
    config: LossConfig,
    teacher: nn.Module,
    scheduler: ResShiftScheduler,
    *,
    z_stu: Tensor,
    z_ref: Tensor,
    at: Noising,
) -> Tensor:
    """HSD's or SDS's gradient, as ``config`` says; SDS has no use for ``z_ref``.

    Raises:
        ValueError: ``distill_type`` is none.
    """
    double = config.double_scale
    if config.distill_type == "HSD":
        return hsd_gradient(
            teacher, scheduler, z_stu=z_stu, z_ref=z_ref, at=at, double_scale=double
        )
    if config.distill_type == "SDS":
        return sds_gradient(teacher, scheduler, z_stu=z_stu, at=at, double_scale=double)
    raise ValueError("distill_type is none: there is no score to distil")


def student_losses(
    config: LossConfig,
    teacher: nn.Module,
    discriminator: nn.Module | None,
    scheduler: ResShiftScheduler,
    *,
    z_stu: Tensor,
    z_tea: Tensor,
    z_gt: Tensor,
    z_y: Tensor,
    lq: Tensor,
    fake_features: Sequence[Tensor] | None,
    draws: Draws,
) -> dict[str, Tensor]:
    """Everything the student is trained on.

    Args:
        config: which losses.
        teacher: frozen.
        discriminator: after its own update; its parameters receive gradients that have to be
            zeroed before its next one. None without ``use_gan``.
        scheduler: the diffusion.
        z_stu: ``student_output``, with its graph.
        z_tea: ``teacher_target``.
        z_gt, z_y, lq: of the batch.
        fake_features: ``noised_features`` of z_stu, with the graph.
        draws: of this step.

    Returns:
        weighted terms a sample (B,): ``mse``, then ``mse_hsd`` or ``mse_sds``, ``GAN_loss``, as
        far as they are used, and their sum ``loss``. Train on ``loss.mean()``.

    Raises:
        ValueError: ``use_gan`` without discriminator and features.
    """
    regression = (z_tea - z_stu).square().mean(dim=(1, 2, 3))
    terms = {"mse": config.regression_weight * regression}
    if config.distill_type != "none":
        z_ref = z_tea if config.score_distill_target == "teacher" else z_gt
        at = draws.for_score(z_y, lq)
        gradient = score_gradient(config, teacher, scheduler, z_stu=z_stu, z_ref=z_ref, at=at)
        name = f"mse_{config.distill_type.lower()}"
        terms[name] = config.hsd_weight * score_loss(gradient, z_stu)
    if config.use_gan:
        if discriminator is None or fake_features is None:
            raise ValueError("use_gan needs a discriminator and the features of z_stu")
        logits = discriminator(fake_features, draws.t_dis)
        terms["GAN_loss"] = config.gan_weight * adversarial_loss(logits)
    terms["loss"] = torch.stack(list(terms.values())).sum(dim=0)
    return terms
