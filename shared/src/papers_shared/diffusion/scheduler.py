"""ResShift's diffusion as a diffusers scheduler: from a low-quality latent to a high-quality one.

Source: Yue, Wang, Loy, ResShift, NeurIPS 2023 (arXiv 2307.12348), section 3; the deterministic
sampler is that of SinSR and TAD-SR (dit_sr sheet 4.1, tad_sr sheet 4.1 and 4.2).

Symbols: z0 clean latent, z_y latent of the enlarged low-quality picture, eta_t from nearly 0 to
nearly 1, kappa the strength of the noise. Forward: z_t = (1 - eta_t) z0 + eta_t z_y +
kappa sqrt(eta_t) noise. Steps count 0 .. T-1; tables are float64, what is gathered is float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from diffusers import SchedulerMixin
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.utils import BaseOutput
from torch import Tensor

PredictionType = Literal["sample", "residual", "epsilon", "epsilon_scale"]
CAP = 0.001**0.5  # on the first sqrt(eta), in ResShift's NeurIPS code, SinSR and TAD-SR


@dataclass
class ResShiftOutput(BaseOutput):
    """Result of one step.

    Attributes:
        prev_sample: (B, C, h, w), the latent of the next step of the chain.
        pred_original_sample: (B, C, h, w), the clean latent as predicted in this step.
    """

    prev_sample: Tensor
    pred_original_sample: Tensor


@dataclass(frozen=True)
class Tables:
    """What follows from a chain's etas, all float64 (T,), index 0 nearest to the clean latent.

    Attributes:
        etas, etas_prev, alphas: eta_t, eta_{t-1} (0 before the first), their difference.
        posterior_variance: kappa^2 eta_{t-1} / eta_t alpha_t.
        posterior_log_variance: the logarithm, its first value replaced by the second.
        coef_sample, coef_original: of z_t and z0 in the posterior's mean.
        ddim_original, ddim_sample, ddim_target: of z0, z_t and z_y in the deterministic step.
    """

    etas: Tensor
    etas_prev: Tensor
    alphas: Tensor
    posterior_variance: Tensor
    posterior_log_variance: Tensor
    coef_sample: Tensor
    coef_original: Tensor
    ddim_original: Tensor
    ddim_sample: Tensor
    ddim_target: Tensor

    @classmethod
    def of(cls, etas: Tensor, *, kappa: float) -> Tables:
        """From float64 etas (T,)."""
        prev = torch.cat([etas.new_zeros(1), etas[:-1]])
        alphas = etas - prev
        variance = kappa**2 * prev / etas * alphas
        clipped = torch.cat([variance[1:2], variance[1:]]) if len(etas) > 1 else variance + 1
        root, ratio = (etas * prev).sqrt(), (prev / etas).sqrt()
        return cls(
            etas=etas,
            etas_prev=prev,
            alphas=alphas,
            posterior_variance=variance,
            posterior_log_variance=clipped.log(),
            coef_sample=prev / etas,
            coef_original=alphas / etas,
            ddim_original=1 - prev + root - ratio,
            ddim_sample=ratio,
            ddim_target=prev - root,
        )


class ResShiftScheduler(SchedulerMixin, ConfigMixin):
    """Residual shifting, stochastic (ResShift) or deterministic (SinSR, TAD-SR).

    Args:
        num_train_timesteps: T, at least 2.
        kappa: standard deviation of the noise at eta = 1.
        min_noise_level: m; the first sqrt(eta) is min(m / kappa, m).
        etas_end: the last sqrt(eta) (not eta), as the authors name it.
        power: shape of the exponential schedule.
        sqrt_eta_start_cap: upper bound of the first sqrt(eta): None in ResShift's journal code and
            DiT-SR, sqrt(0.001) in ResShift's first code, SinSR and TAD-SR. It matters for the
            four-step face models only.
        prediction_type: what the network's output is: ``sample`` (z0, all released networks),
            ``residual`` (z_y - z0), ``epsilon`` (noise), ``epsilon_scale`` (kappa sqrt(eta) noise).
        algorithm_type: ``ddpm`` samples the posterior, ``ddim`` goes deterministically.
        timestep_spacing: which steps a shorter chain keeps: ``leading`` as the authors (its chain
            then starts from less noise than T-1), ``trailing`` always begins at T-1.
        normalize_input: divide the network's input by its standard deviation.
        latent: True: by sqrt(1 + kappa^2 eta); False (pixels): by 1 + 3 kappa sqrt(eta).
        clip_sample: clamp the predicted z0 to [-1, 1] (pixels).
        scale_factor: picture is enlarged by this before it is encoded to z_y (4, or 1 for faces).

    Raises:
        ValueError: an argument has no meaning.
    """

    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 15,
        kappa: float = 2.0,
        min_noise_level: float = 0.04,
        etas_end: float = 0.99,
        power: float = 0.3,
        sqrt_eta_start_cap: float | None = None,
        prediction_type: PredictionType = "sample",
        algorithm_type: Literal["ddpm", "ddim"] = "ddpm",
        timestep_spacing: Literal["leading", "trailing"] = "leading",
        normalize_input: bool = True,
        latent: bool = True,
        clip_sample: bool = False,
        scale_factor: int = 4,
    ) -> None:
        if num_train_timesteps < 2:
            raise ValueError(f"num_train_timesteps must be at least 2, got {num_train_timesteps}")
        for name, value, known in (
            ("prediction_type", prediction_type, PredictionType.__args__),  # type: ignore[attr-defined]
            ("algorithm_type", algorithm_type, ("ddpm", "ddim")),
            ("timestep_spacing", timestep_spacing, ("leading", "trailing")),
        ):
            if value not in known:
                raise ValueError(f"{name} {value!r} is none of {', '.join(known)}")
        if kappa <= 0 or power <= 0:
            raise ValueError(f"kappa and power must be positive, got {kappa} and {power}")
        first = min(min_noise_level / kappa, min_noise_level)
        if sqrt_eta_start_cap is not None:
            first = min(first, sqrt_eta_start_cap)
        if not 0 < first < etas_end < 1:
            raise ValueError(
                "sqrt(eta) must rise between 0 and 1: min_noise_level, sqrt_eta_start_cap and "
                f"etas_end make it go from {first} to {etas_end}"
            )
        position = torch.linspace(0, 1, num_train_timesteps, dtype=torch.float64) ** power
        self.sqrt_etas = first * (etas_end / first) ** position
        self.training_tables = Tables.of(self.sqrt_etas**2, kappa=kappa)
        self.set_timesteps(num_train_timesteps)

    # ---- chains

    def set_timesteps(
        self, num_inference_steps: int, device: torch.device | str | None = None
    ) -> None:
        """Choose the steps of the chain; the network still gets the original step indices.

        Raises:
            ValueError: not between 1 and T, or 1 with leading spacing (it would keep the cleanest
                step alone, from which nothing can be made).
        """
        total = self.config.num_train_timesteps
        if not 1 <= num_inference_steps <= total:
            raise ValueError(
                f"num_inference_steps must be from 1 to {total} (the steps this network was "
                f"trained with), got {num_inference_steps}"
            )
        strides = [int(total / num_inference_steps * j) for j in range(num_inference_steps)]
        if self.config.timestep_spacing == "trailing":
            strides = [total - 1 - stride for stride in reversed(strides)]
        elif num_inference_steps == 1:
            raise ValueError("one step needs timestep_spacing='trailing': it starts from step T-1")
        self.num_inference_steps = num_inference_steps
        self._kept = strides
        self.tables = Tables.of(self.training_tables.etas[strides], kappa=self.config.kappa)
        self.timesteps = torch.tensor(strides[::-1], device=device)

    def prior_sample(self, z_y: Tensor, noise: Tensor) -> Tensor:
        """Where the chain starts: z_y + kappa sqrt(eta) noise at its noisiest step."""
        return z_y + self.config.kappa * self.tables.etas[-1].sqrt().item() * noise

    def step(
        self,
        model_output: Tensor,
        timestep: int | Tensor,
        sample: Tensor,
        z_y: Tensor | None = None,
        generator: torch.Generator | None = None,
        noise: Tensor | None = None,
        return_dict: bool = True,
    ) -> Any:
        """One step of the chain.

        Args:
            model_output: what the network gave for ``scale_model_input(sample, timestep)``.
            timestep: an element of ``timesteps``.
            sample: z_t (B, C, h, w), not normalised.
            z_y: the low-quality latent; for ``ddim`` and all prediction types but ``sample``.
            generator: of the noise.
            noise: used in place of a draw, same shape as ``sample``.
            return_dict: False: a tuple.

        Returns:
            ``ResShiftOutput``, or its two tensors.

        Raises:
            ValueError: the timestep is not in the chain, or z_y is needed and missing.
        """
        t = int(timestep)
        if t not in self._kept:
            raise ValueError(f"timestep {t} is not in this chain: {self.timesteps.tolist()}")
        index = self._kept.index(t)
        original = self.predict_original(model_output, t, sample, z_y)
        tables = self.tables
        if self.config.algorithm_type == "ddim":
            target = _needed(z_y, "the deterministic sampler")
            previous = (
                tables.ddim_original[index].float() * original
                + tables.ddim_sample[index].float() * sample
                + tables.ddim_target[index].float() * target
            )
        else:
            previous = (
                tables.coef_sample[index].float() * sample
                + tables.coef_original[index].float() * original
            )
            if index > 0:
                if noise is None:
                    noise = torch.randn(
                        sample.shape, generator=generator, device=sample.device, dtype=sample.dtype
                    )
                deviation = (0.5 * tables.posterior_log_variance[index].float()).exp()
                previous = previous + deviation * noise
        previous = previous.to(sample.dtype)
        if not return_dict:
            return previous, original
        return ResShiftOutput(prev_sample=previous, pred_original_sample=original)

    # ---- network input and output

    def scale_model_input(self, sample: Tensor, timestep: int | Tensor) -> Tensor:
        """Divide z_t (B, C, h, w) by its standard deviation at ``timestep`` (a number or (B,))."""
        if not self.config.normalize_input:
            return sample
        eta, kappa = self._gather(self.training_tables.etas, timestep, sample), self.config.kappa
        std = (eta * kappa**2 + 1).sqrt() if self.config.latent else 1 + 3 * kappa * eta.sqrt()
        return sample / std

    def predict_original(
        self, model_output: Tensor, timestep: int | Tensor, sample: Tensor, z_y: Tensor | None
    ) -> Tensor:
        """z0 from the network's output; arguments as of ``step``, timestep a number or (B,)."""
        kind, kappa = self.config.prediction_type, self.config.kappa
        if kind == "sample":
            original = model_output
        elif kind == "residual":
            original = _needed(z_y, "prediction_type 'residual'") - model_output
        else:
            eta = self._gather(self.training_tables.etas, timestep, sample)
            noise = kappa * eta.sqrt() * model_output if kind == "epsilon" else model_output
            target = _needed(z_y, f"prediction_type {kind!r}")
            original = (sample - eta * target - noise) / (1 - eta)
        return original.clamp(-1, 1) if self.config.clip_sample else original

    def predict_noise(
        self, sample: Tensor, original: Tensor, z_y: Tensor, timestep: int | Tensor
    ) -> Tensor:
        """The noise in z_t if its clean latent is ``original``: eps of the score distillation."""
        eta = self._gather(self.training_tables.etas, timestep, sample)
        mean = (1 - eta) * original + eta * z_y
        return (sample - mean) / (self.config.kappa * eta.sqrt())

    # ---- training

    def add_noise(
        self,
        original_samples: Tensor,
        noise: Tensor,
        timesteps: int | Tensor,
        z_y: Tensor | None = None,
    ) -> Tensor:
        """z_t of a clean latent.

        Args:
            original_samples: z0 (B, C, h, w).
            noise: standard normal, same shape.
            timesteps: a number or (B,).
            z_y: the low-quality latent, same shape.

        Raises:
            ValueError: z_y is missing.
        """
        eta = self._gather(self.training_tables.etas, timesteps, original_samples)
        target = _needed(z_y, "residual shifting")
        shifted = original_samples + eta * (target - original_samples)
        return shifted + self.config.kappa * eta.sqrt() * noise

    def training_target(
        self, original: Tensor, z_y: Tensor, noise: Tensor, timesteps: Tensor
    ) -> Tensor:
        """What the network's output is compared with, by prediction type."""
        eta = self._gather(self.training_tables.etas, timesteps, original)
        targets = {
            "sample": lambda: original,
            "residual": lambda: z_y - original,
            "epsilon": lambda: noise,
            "epsilon_scale": lambda: self.config.kappa * eta.sqrt() * noise,
        }
        return targets[self.config.prediction_type]()

    def loss_weights(self) -> Tensor:
        """Weights of the variational bound for each step of the chain, float64; no release's loss.

        Source: dit_sr sheet 4.1 (``weighted_mse``).
        """
        tables, kappa = self.tables, self.config.kappa
        variance = tables.posterior_log_variance.exp()
        if self.config.prediction_type in ("sample", "residual"):
            return 0.5 * tables.coef_original**2 / variance
        factor = kappa * tables.alphas / ((1 - tables.etas) * tables.etas.sqrt())
        return 0.5 * factor**2 / variance

    def _gather(self, table: Tensor, timestep: int | Tensor, like: Tensor) -> Tensor:
        """float32 values of a table, shaped to multiply ``like`` (B, C, h, w)."""
        index = torch.as_tensor(timestep, device="cpu").long()
        values = table[index].float().to(like.device)
        return values.reshape(-1, *[1] * (like.ndim - 1)) if values.ndim else values

    def __len__(self) -> int:
        return self.config.num_train_timesteps


def _needed(z_y: Tensor | None, what: str) -> Tensor:
    if z_y is None:
        raise ValueError(f"{what} needs z_y, the latent of the enlarged low-quality picture")
    return z_y


def scheduler_of(diffusion: dict[str, Any], **changes: Any) -> ResShiftScheduler:
    """A scheduler from the authors' ``diffusion`` section of a configuration.

    Args:
        diffusion: sf, schedule_name, schedule_kwargs, etas_end, steps, min_noise_level, kappa,
            predict_type, normalize_input, latent_flag, timestep_respacing …
        changes: further arguments of ``ResShiftScheduler``, for example ``sqrt_eta_start_cap``.

    Raises:
        ValueError: a schedule or an option that no release uses.
    """
    names = {"xstart": "sample"}
    kind = diffusion.get("predict_type", "xstart")
    if diffusion.get("schedule_name", "exponential") != "exponential":
        raise ValueError(f"unknown schedule {diffusion['schedule_name']!r}; known: exponential")
    if diffusion.get("scale_factor", 1.0) != 1.0 or diffusion.get("weighted_mse"):
        raise ValueError("no release scales its latents or weights its loss")
    scheduler = ResShiftScheduler(
        num_train_timesteps=diffusion["steps"],
        kappa=diffusion["kappa"],
        min_noise_level=diffusion["min_noise_level"],
        etas_end=diffusion["etas_end"],
        power=diffusion["schedule_kwargs"]["power"],
        prediction_type=names.get(kind, kind),
        normalize_input=diffusion.get("normalize_input", True),
        latent=diffusion.get("latent_flag", True),
        scale_factor=diffusion.get("sf", 4),
        **changes,
    )
    respacing: int | Sequence[int] | None = diffusion.get("timestep_respacing")
    if respacing is not None:
        scheduler.set_timesteps(int(respacing))  # type: ignore[arg-type]
    return scheduler
