"""What a user calls from Python: class labels in, pictures (or latents) out."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import torch
from diffusers import (
    DDIMScheduler,
    DDPMScheduler,
    DiTPipeline,
    DPMSolverMultistepScheduler,
    ImagePipelineOutput,
)
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor, nn

from papers_shared.diffusion.adm import STEPS, space_timesteps
from papers_shared.diffusion.class_family import ClassFamily, load_network
from papers_shared.training.seeds import seed_from

Sampler = Literal["ddpm", "ddim", "dpm"]


def make_scheduler(sampler: Sampler = "ddpm", *, learn_sigma: bool = True) -> Any:
    """ADM's diffusion as a scheduler of diffusers.

    Args:
        sampler: 'ddpm': ancestral, as the paper samples; 'ddim' without noise; 'dpm': DPM-Solver++,
            for few steps.
        learn_sigma: the network gives the variance (for 'ddpm').

    Source: u_dit sheet 4.2.
    """
    schedule: dict[str, Any] = {
        "num_train_timesteps": STEPS,
        "beta_start": 1e-4,
        "beta_end": 0.02,
        "beta_schedule": "linear",
        "prediction_type": "epsilon",
    }
    if sampler == "ddpm":
        variance = "learned_range" if learn_sigma else "fixed_large"
        return DDPMScheduler(
            **schedule, variance_type=variance, clip_sample=False, timestep_spacing="linspace"
        )
    if sampler == "ddim":
        return DDIMScheduler(
            **schedule, clip_sample=False, set_alpha_to_one=True, timestep_spacing="leading"
        )
    if sampler == "dpm":
        return DPMSolverMultistepScheduler(**schedule)
    raise ValueError(f"sampler={sampler!r}: expected 'ddpm', 'ddim' or 'dpm'")


def generator_of(seed: int, *, device: str | torch.device = "cpu") -> torch.Generator:
    """The generator that all noise of one picture is drawn from."""
    return torch.Generator(device).manual_seed(seed_from(seed))


def guided_channels(in_channels: int, asked: int | None = None) -> int:
    """How many first channels are guided.

    Args:
        in_channels: of the network.
        asked: so many; None: the 3 that the paper's numbers come from, where the network has 3 or
            4 as the authors' have, else all.

    Raises:
        ValueError: more than the network has, or none.

    Source: u_dit sheet 8.
    """
    if asked is None:
        return 3 if in_channels == 4 else in_channels
    if not 1 <= asked <= in_channels:
        raise ValueError(f"{asked} channels to guide, expected 1 to {in_channels}")
    return asked


def autocast(device: torch.device, precision: str) -> Any:
    """torch's autocast for "bf16" and "fp16"; nothing for "no"."""
    if precision == "no":
        return contextlib.nullcontext()
    return torch.autocast(device.type, torch.bfloat16 if precision == "bf16" else torch.float16)


class ClassPipeline(DiTPipeline):
    """diffusers' ``DiTPipeline`` with the paper's sampler.

    Against its base class: learned variances, guidance of some channels only, any number of
    classes, networks of pixels (without ``vae``), and a generator a picture for all of its noise,
    so that a picture does not depend on what is sampled beside it.

    Args:
        transformer: a network as a diffusers model (``as_diffusers_model``), with ``options``.
        vae: diffusers' ``AutoencoderKL`` or TAEF2; None: the network's own space is that of
            pictures.
        scheduler: of ``make_scheduler``, or another that predicts noise from 1000 steps.
        id2label: names of the classes.

    Source: u_dit sheet 4.3.
    """

    _optional_components = ["vae"]  # noqa: RUF012  diffusers' own way

    def __init__(
        self,
        transformer: nn.Module,
        vae: nn.Module | None,
        scheduler: Any,
        id2label: dict[int, str] | None = None,
    ) -> None:
        super().__init__(transformer, vae, scheduler, id2label)

    @torch.no_grad()
    def __call__(
        self,
        class_labels: Sequence[int],
        guidance_scale: float = 1.5,
        generator: torch.Generator | list[torch.Generator] | None = None,
        num_inference_steps: int = 250,
        output_type: str | None = "pil",
        return_dict: bool = True,
        *,
        seeds: Sequence[int] | None = None,
        guidance_channels: int | None = None,
        respacing: str = "",
        mixed_precision: Literal["no", "bf16", "fp16"] = "no",
    ) -> ImagePipelineOutput | tuple:
        """Sample one picture a label.

        Args:
            class_labels: 0 .. num_classes - 1.
            guidance_scale: s of classifier-free guidance; 1: none, half the time.
            generator: one for all, or one a picture; all noise is drawn from it.
            num_inference_steps: of the network.
            output_type: "pil", "np", "pt" (in [0, 1]) or "latent" (as the network gives them).
            return_dict: return an ``ImagePipelineOutput``, not a tuple.
            seeds: one a picture, in place of ``generator``.
            guidance_channels: the first channels, which are guided; the rest and the variance are
                the conditional ones. None: see ``guided_channels``.
            respacing: which steps a ``DDPMScheduler`` takes, as ``adm.space_timesteps`` reads it
                (default: ``num_inference_steps`` evenly spaced).
            mixed_precision: of the network.

        Raises:
            ValueError: labels, seeds or generators do not fit, or the network knows no "no class"
                to guide by.
        """
        network, device = self.transformer, self._execution_device
        config = network.options
        labels = torch.as_tensor(list(class_labels), device=device)
        self._check(labels, guidance_scale, generator, seeds)
        if seeds is not None:
            generator = [generator_of(seed) for seed in seeds]
        shape = (len(labels), config.in_channels, config.input_size, config.input_size)
        dtype = next(network.parameters()).dtype
        x = randn_tensor(shape, generator=generator, device=device, dtype=dtype)
        x = x * self.scheduler.init_noise_sigma
        self._set_timesteps(num_inference_steps, respacing, device)
        guided = guided_channels(config.in_channels, guidance_channels)
        takes_generator = "generator" in inspect.signature(self.scheduler.step).parameters
        extra = {"generator": generator} if takes_generator else {}
        for t in self.progress_bar(self.scheduler.timesteps):
            given = self.scheduler.scale_model_input(x, t)
            with autocast(device, mixed_precision):
                output = self._predict(given, t, labels, guidance_scale, guided)
            output = output.to(x.dtype)
            if not str(self.scheduler.config.get("variance_type")).startswith("learned"):
                output = output[:, : config.in_channels]
            x = self.scheduler.step(output, t, x, **extra).prev_sample
        images = x if output_type == "latent" else self._finish(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def _check(self, labels: Tensor, guidance_scale: float, generator: Any, seeds: Any) -> None:
        config = self.transformer.options
        if len(labels) == 0 or labels.min() < 0 or labels.max() >= config.num_classes:
            raise ValueError(
                f"class labels {labels.tolist()}: expected one or more of 0 .. "
                f"{config.num_classes - 1}"
            )
        if guidance_scale != 1 and config.class_dropout_prob == 0:
            raise ValueError(
                "this network was trained without dropped labels, so it cannot be guided; use "
                "guidance_scale=1"
            )
        if seeds is not None and generator is not None:
            raise ValueError("give seeds or a generator, not both")
        for name, value in (("seeds", seeds), ("generators", generator)):
            if isinstance(value, Sequence) and len(value) != len(labels):
                raise ValueError(f"{len(value)} {name} for {len(labels)} pictures")

    def _set_timesteps(self, steps: int, respacing: str, device: torch.device) -> None:
        if isinstance(self.scheduler, DDPMScheduler):
            kept = space_timesteps(STEPS, respacing or str(steps))
            self.scheduler.set_timesteps(timesteps=kept[::-1], device=device)
        elif respacing:
            raise ValueError("respacing is for DDPM; other samplers take num_inference_steps")
        else:
            self.scheduler.set_timesteps(steps, device=device)

    def _predict(self, x: Tensor, t: Tensor, labels: Tensor, scale: float, channels: int) -> Tensor:
        """The network's output, guided; (B, outputs, H, W)."""
        steps = t.to(x.device).long().expand(len(x))
        if scale == 1:
            return self.transformer(x, steps, labels)
        null = torch.full_like(labels, self.transformer.options.num_classes)
        output = self.transformer(
            torch.cat([x, x]), torch.cat([steps, steps]), torch.cat([labels, null])
        )
        conditional, unconditional = output.chunk(2)
        c, u = conditional[:, :channels], unconditional[:, :channels]
        return torch.cat([u + scale * (c - u), conditional[:, channels:]], dim=1)

    def _finish(self, x: Tensor, output_type: str | None) -> Any:
        if self.vae is None:
            if self.transformer.options.in_channels not in (1, 3):
                raise ValueError(
                    f"latents of {self.transformer.options.in_channels} channels need their "
                    "autoencoder: load the pipeline with vae='taef2' or a folder, or take "
                    "output_type='latent'"
                )
        else:
            x = self.vae.decode(x.to(self.vae.dtype) / self.vae.config.scaling_factor).sample
        pictures = (x.float() / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return pictures
        array = pictures.cpu().permute(0, 2, 3, 1).numpy()
        return self.numpy_to_pil(array) if output_type == "pil" else array


def load_autoencoder(name: str) -> Any:
    """An autoencoder of latents by name: 'taef2' or a folder of diffusers' ``AutoencoderKL``.

    Raises:
        FileNotFoundError: there is no such folder, or TAEF2's files are nowhere.
    """
    if name == "taef2":
        from papers_shared.diffusion.taef2 import load_taef2

        return load_taef2()
    if not Path(name).is_dir():
        raise FileNotFoundError(
            f"{name} is no folder of an autoencoder (AutoencoderKL), nor 'taef2'; the authors' is "
            "stabilityai/sd-vae-ft-ema"
        )
    from diffusers import AutoencoderKL

    return AutoencoderKL.from_pretrained(name, local_files_only=True)


def load_class_pipeline(
    family: ClassFamily,
    weights: str | Path = "",
    *,
    variant: str = "",
    vae: str | Path = "",
    sampler: Sampler | None = None,
    merge: bool = True,
    pipeline: type[ClassPipeline] = ClassPipeline,
) -> ClassPipeline:
    """A pipeline from weights, on the CPU.

    Args:
        family: whose networks.
        weights: see ``load_network``, or a folder that ``save_pretrained`` wrote.
        variant: which network a file holds, where it does not say so.
        vae: see ``load_autoencoder``.
        sampler: see ``make_scheduler``; None: 'ddpm', or what a folder holds.
        merge: merge the feed-forward nets: fewer operations, the same to rounding. A folder's
            network stays as it was saved.
        pipeline: the class to make.

    Raises:
        FileNotFoundError: a file or folder is not there.
        ValueError: the file does not fit its network, or the autoencoder does not; a variant
            besides a folder.
    """
    if str(weights) and Path(weights).is_dir():
        if variant:
            raise ValueError(f"{weights} is a pipeline's folder and tells its network itself")
        made = pipeline.from_pretrained(weights)
        saved: Any = made.transformer.options
        if vae:
            made.register_modules(vae=_autoencoder_for(saved, vae))
        if sampler is not None:
            scheduler = make_scheduler(sampler, learn_sigma=saved.learn_sigma)
            made.register_modules(scheduler=scheduler)
        return made
    network, facts = load_network(family, weights, variant=variant)
    options: Any = network.options
    if merge:
        network = family.merge(network)
    autoencoder = _autoencoder_for(options, vae) if vae else None
    scheduler = make_scheduler(sampler or "ddpm", learn_sigma=options.learn_sigma)
    names = {i: str(name) for i, name in enumerate(facts.get("classes", []))}
    return pipeline(family.as_model(network), autoencoder, scheduler, names or None)


def _autoencoder_for(options: Any, name: str | Path) -> Any:
    autoencoder = load_autoencoder(str(name))
    if autoencoder.config.latent_channels != options.in_channels:
        raise ValueError(
            f"the autoencoder has {autoencoder.config.latent_channels} latent channels, the "
            f"network takes {options.in_channels}"
        )
    return autoencoder
