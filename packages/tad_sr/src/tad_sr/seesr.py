"""The SeeSR variant: Stable Diffusion 2 with a ControlNet, distilled into one step.

Everything runs over diffusers' ``UNet2DConditionModel`` and ``ControlNetModel``, or over SeeSR's
own classes of the same interface, which have one more attention (``image_attentions``), to
embeddings of the picture; ``Condition.extra`` carries these. Text and picture embeddings are the
caller's.

Symbols: z latents (B, 4, h, w), scaled; a_t = ``alphas_cumprod[t]``; x_t = sqrt(a_t) z +
sqrt(1 - a_t) noise; the networks predict the noise. Source: tad_sr sheet 3.3, 4.8.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from papers_shared.images import from_pil, to_uint8
from papers_shared.inference.colour import ColourMethod, match_colour
from tad_sr.losses import adversarial_loss, discriminator_loss, score_loss

LAST = 999  # the student's only step
STEPS = range(20, 881, 20)  # those of discriminator and score
TRAINABLE = ("image_attentions", "controlnet_cond_embedding")
PROMPT = "clean, high-resolution, 8k, extremely detailed, best quality, sharp"


@dataclass(frozen=True)
class Condition:
    """What the networks are told of a batch.

    Attributes:
        text: embeddings of the prompts (B, L, D).
        image: picture for the ControlNet (B, 3, 8 h, 8 w) in [0, 1].
        extra: further keyword arguments of both networks and of their blocks with attention, for
            SeeSR's classes ``image_encoder_hidden_states``.
    """

    text: Tensor
    image: Tensor
    extra: Mapping[str, Tensor] = field(default_factory=dict)


class SeeSR(nn.Module):
    """U-net and ControlNet as one network: teacher or student.

    Args:
        unet: diffusers' ``UNet2DConditionModel``.
        controlnet: diffusers' ``ControlNetModel`` for it.
    """

    def __init__(self, unet: nn.Module, controlnet: nn.Module) -> None:
        super().__init__()
        self.unet: Any = unet
        self.controlnet: Any = controlnet

    def _residuals(
        self, x: Tensor, timesteps: Tensor, condition: Condition
    ) -> tuple[Sequence[Tensor], Tensor]:
        return self.controlnet(
            x,
            timesteps,
            encoder_hidden_states=condition.text,
            controlnet_cond=condition.image,
            return_dict=False,
            **condition.extra,
        )

    def forward(self, x: Tensor, timesteps: Tensor, condition: Condition) -> Tensor:
        """The noise in x_t (B, 4, h, w); timesteps (B,) from 0 to 999."""
        down, middle = self._residuals(x, timesteps, condition)
        return self.unet(
            x,
            timesteps,
            encoder_hidden_states=condition.text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
            **condition.extra,
        )[0]

    def features(self, x: Tensor, timesteps: Tensor, condition: Condition) -> list[Tensor]:
        """Encoder features for the discriminator; arguments as of ``forward``.

        Returns:
            what the decoder gets from the last layer of each resolution, the ControlNet's part
            added: for Stable Diffusion 2 the skips 2, 5, 8 and 11 of 12, (B, 320, h, w),
            (B, 640, h/2, w/2), (B, 1280, h/4, w/4), (B, 1280, h/8, w/8).
        """
        unet = self.unet
        time = unet.time_embedding(unet.get_time_embed(sample=x, timestep=timesteps))
        h = unet.conv_in(x)
        skips = [h]
        for block in unet.down_blocks:
            if getattr(block, "has_cross_attention", False):
                h, outputs = block(
                    hidden_states=h,
                    temb=time,
                    encoder_hidden_states=condition.text,
                    **condition.extra,
                )
            else:
                h, outputs = block(hidden_states=h, temb=time)
            skips += outputs
        residuals, _ = self._residuals(x, timesteps, condition)
        skips = [skip + residual for skip, residual in zip(skips, residuals, strict=True)]
        layers = unet.config.layers_per_block
        return skips[layers :: layers + 1]


def select_trainable(
    model: nn.Module, suffixes: Sequence[str] = TRAINABLE
) -> list[tuple[str, nn.Parameter]]:
    """Freeze all of a model but the modules whose names end with one of ``suffixes``.

    Returns:
        names and parameters that remain to be trained.

    Raises:
        ValueError: a suffix fits no module.
    """
    model.requires_grad_(False)
    for suffix in suffixes:
        fitting = [module for name, module in model.named_modules() if name.endswith(suffix)]
        if not fitting:
            raise ValueError(
                f"no module's name ends with {suffix!r}; diffusers' own networks have no "
                "image_attentions, only SeeSR's have: load those, or name other suffixes"
            )
        for module in fitting:
            module.requires_grad_(True)
    return [(name, p) for name, p in model.named_parameters() if p.requires_grad]


# ---- between clean latents, noisy latents and noise


def add_noise(alphas_cumprod: Tensor, z: Tensor, noise: Tensor, t: int) -> Tensor:
    """x_t = sqrt(a_t) z + sqrt(1 - a_t) noise."""
    a = alphas_cumprod[t].item()
    return a**0.5 * z + (1 - a) ** 0.5 * noise


def clean_latent(alphas_cumprod: Tensor, x: Tensor, noise: Tensor, t: int) -> Tensor:
    """z = (x_t - sqrt(1 - a_t) noise) / sqrt(a_t)."""
    a = alphas_cumprod[t].item()
    return (x - (1 - a) ** 0.5 * noise) / a**0.5


def encode(vae: Any, images: Tensor, generator: torch.Generator | None = None) -> Tensor:
    """(B, 3, H, W) in [0, 1] -> a sample of the latents (B, 4, H/8, W/8), scaled."""
    posterior = vae.encode(images * 2 - 1).latent_dist
    return posterior.sample(generator=generator) * vae.config.scaling_factor


def decode(vae: Any, z: Tensor) -> Tensor:
    """Latents -> (B, 3, H, W), about [0, 1], not clamped."""
    return vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5


def _steps(z: Tensor, t: int) -> Tensor:
    return torch.full((len(z),), t, device=z.device)


# ---- training


@dataclass(frozen=True)
class SeeSRLossConfig:
    """Weights of the losses, and their reference.

    Attributes:
        regression_weight, hsd_weight, gan_weight: as released.
        target: reference of regression and score: the teacher's picture, made beforehand, or the
            ground truth.
        max_grad_norm: of the student's gradient.
    """

    regression_weight: float = 0.2
    hsd_weight: float = 1.0
    gan_weight: float = 0.2
    target: Literal["tch", "gt"] = "tch"
    max_grad_norm: float = 1.0

    def __post_init__(self) -> None:
        if self.target not in ("tch", "gt"):
            raise ValueError(f"target {self.target!r} is neither tch nor gt")


@dataclass(frozen=True)
class SeeSRBatch:
    """A batch: latents of the ground truth and of the teacher's pictures, and both conditions.

    The teacher is told of the ground truth (``for_teacher``), the student of the low-quality
    picture (``for_student``).
    """

    z_gt: Tensor
    z_tch: Tensor
    for_student: Condition
    for_teacher: Condition


@dataclass(frozen=True)
class SeeSRDraws:
    """Everything random in a training step; a step index counts for the whole batch."""

    noise: Tensor
    t_dis: int
    noise_dis: Tensor
    t_hsd: int
    noise_hsd: Tensor


def draw(like: Tensor, *, generator: torch.Generator | None = None) -> SeeSRDraws:
    """All draws of a training step: standard normal noise as ``like``, steps 20, 40 .. 880."""
    device = like.device if generator is None else generator.device

    def noise() -> Tensor:
        return torch.randn(like.shape, generator=generator, device=device).to(like)

    t_dis, t_hsd = torch.randint(len(STEPS), (2,), generator=generator, device=device).tolist()
    return SeeSRDraws(
        noise=noise(),
        t_dis=STEPS[t_dis],
        noise_dis=noise(),
        t_hsd=STEPS[t_hsd],
        noise_hsd=noise(),
    )


def make_optimizer(parameters: Sequence[nn.Parameter]) -> AdamW:
    """As released, for student and discriminator alike."""
    return AdamW(parameters, lr=2e-5, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2)


def student_output(
    student: SeeSR, alphas_cumprod: Tensor, z: Tensor, noise: Tensor, condition: Condition
) -> Tensor:
    """z_stu: latents are noised to the last step and cleaned in one evaluation."""
    x = add_noise(alphas_cumprod, z, noise, LAST)
    return clean_latent(alphas_cumprod, x, student(x, _steps(x, LAST), condition), LAST)


@torch.no_grad()
def hsd_gradient(
    teacher: SeeSR,
    alphas_cumprod: Tensor,
    *,
    z_stu: Tensor,
    z_ref: Tensor,
    t: int,
    noise: Tensor,
    condition: Condition,
) -> Tensor:
    """g = eps(z_stu) - eps(z_ref), both with the same noise; zero where z_stu = z_ref."""
    of_student, of_reference = (
        teacher(add_noise(alphas_cumprod, z, noise, t), _steps(z, t), condition)
        for z in (z_stu, z_ref)
    )
    return of_student - of_reference


def training_step(
    config: SeeSRLossConfig,
    *,
    teacher: SeeSR,
    student: SeeSR,
    discriminator: nn.Module,
    student_optimizer: Optimizer,
    discriminator_optimizer: Optimizer,
    alphas_cumprod: Tensor,
    batch: SeeSRBatch,
    draws: SeeSRDraws,
    backward: Callable[[Tensor], Any] = Tensor.backward,
) -> dict[str, float]:
    """One update of the discriminator, then one of the student.

    Args:
        config: of the losses.
        teacher: frozen.
        student: with ``select_trainable`` applied.
        discriminator: ``TimeAwareDiscriminator``.
        student_optimizer, discriminator_optimizer: of what is trained.
        alphas_cumprod: (1000,), of the diffusion; ``DDPMScheduler`` has it.
        batch, draws: of this step.
        backward: replaced by accelerate's where that scales losses.

    Returns:
        the weighted losses, means over the batch: ``GAN_loss_D``, ``mse``, ``mse_hsd``,
        ``GAN_loss``, ``loss``.
    """
    z_stu = student_output(student, alphas_cumprod, batch.z_gt, draws.noise, batch.for_student)

    def features(z: Tensor) -> list[Tensor]:
        x = add_noise(alphas_cumprod, z, draws.noise_dis, draws.t_dis)
        return teacher.features(x, t_dis, batch.for_teacher)

    t_dis = _steps(z_stu, draws.t_dis)
    with torch.no_grad():
        real = features(batch.z_gt)
    fake = features(z_stu)
    discriminator_optimizer.zero_grad()
    of_real = discriminator(real, t_dis)
    of_fake = discriminator([feature.detach() for feature in fake], t_dis)
    hinge = discriminator_loss(of_real, of_fake).mean()
    backward(hinge)
    discriminator_optimizer.step()

    z_ref = batch.z_tch if config.target == "tch" else batch.z_gt
    gradient = hsd_gradient(
        teacher,
        alphas_cumprod,
        z_stu=z_stu,
        z_ref=z_ref,
        t=draws.t_hsd,
        noise=draws.noise_hsd,
        condition=batch.for_teacher,
    )
    terms = {
        "mse": config.regression_weight * (z_stu - z_ref).square().mean(),
        "mse_hsd": config.hsd_weight * score_loss(gradient, z_stu).mean(),
        "GAN_loss": config.gan_weight * adversarial_loss(discriminator(fake, t_dis)).mean(),
    }
    terms["loss"] = torch.stack(list(terms.values())).sum()
    student_optimizer.zero_grad()
    backward(terms["loss"])
    trained = [p for group in student_optimizer.param_groups for p in group["params"]]
    nn.utils.clip_grad_norm_(trained, config.max_grad_norm)
    student_optimizer.step()
    return {name: value.item() for name, value in {"GAN_loss_D": hinge, **terms}.items()}


# ---- sampling


def prompt(tags: str, wish: str = "") -> str:
    """The positive prompt: RAM's tags, what the user adds, and SeeSR's fixed words."""
    return ", ".join(part for part in (tags, wish, PROMPT) if part)


def working_size(width: int, height: int, *, scale: int = 4, least: int = 128) -> tuple[int, int]:
    """(width, height) at which a low-quality picture is processed.

    A picture whose shorter side is below ``least`` is enlarged to it first; then ``scale``, then
    down to multiples of 8.
    """
    short = min(width, height)
    wanted = max(short, least)
    return width * wanted // short * scale // 8 * 8, height * wanted // short * scale // 8 * 8


@torch.no_grad()
def enhance(
    model: SeeSR,
    vae: nn.Module,
    alphas_cumprod: Tensor,
    photo: Image.Image,
    *,
    text: Tensor,
    extra: Mapping[str, Tensor] | None = None,
    seed: int = 0,
    colour: ColourMethod = "adain",
    scale: int = 4,
) -> Image.Image:
    """Enlarge a photo in one evaluation, without classifier-free guidance.

    Args:
        model: the student.
        vae: diffusers' ``AutoencoderKL``; its ``enable_tiling`` saves memory.
        alphas_cumprod: as in ``training_step``.
        photo: low-quality picture of any size.
        text: embedding of ``prompt(...)`` (1, L, D).
        extra: of ``Condition``.
        seed: of the noise.
        colour: how the photo's colours are restored.
        scale: of the output; its size is exactly ``scale`` times the photo's.
    """
    photo = Image.fromarray(to_uint8(from_pil(photo)).permute(1, 2, 0).numpy())
    size = working_size(*photo.size, scale=scale)
    weight = next(model.parameters())
    large = np.asarray(photo.resize(size, Image.Resampling.BICUBIC)).copy()
    image = torch.from_numpy(large).permute(2, 0, 1)[None].to(weight.device, weight.dtype) / 255
    generator = torch.Generator().manual_seed(seed)
    z_lr = encode(vae, image, generator)
    noise = torch.randn(z_lr.shape, generator=generator).to(z_lr)
    condition = Condition(text=text, image=image, extra=extra or {})
    z = student_output(model, alphas_cumprod, z_lr, noise, condition)
    out = match_colour(decode(vae, z).float(), image.float(), colour)[0].clamp(0, 1)
    picture = Image.fromarray(to_uint8(out).permute(1, 2, 0).cpu().numpy())
    exact = (photo.width * scale, photo.height * scale)
    return picture if picture.size == exact else picture.resize(exact, Image.Resampling.BICUBIC)
