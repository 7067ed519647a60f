"""Training: ``accelerate launch -m u_dit.train --data cifar10 --variant U-DiT-S``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from u_dit.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from papers_shared.diffusion.adm import Chain, q_sample, training_losses
from papers_shared.networks.rep_ffn import merge_in_training
from papers_shared.training import Run
from u_dit.config import TrainConfig
from u_dit.data import Examples, flip, load_examples
from u_dit.dit import DIT_VARIANTS, DiTConfig
from u_dit.model import VARIANTS, Config, build
from u_dit.official import METADATA

# What does not decide the result of an update; more steps are a longer run.
INTERVALS = ("output", "steps", "workers", "log_every", "save_every", "tensorboard", "data_path")


@dataclass(frozen=True)
class Trained:
    """What a training gives: the averaged weights, the network that holds them, the last loss."""

    path: Path
    model: nn.Module
    loss: float


def network_config(config: TrainConfig, examples: Examples) -> Config | DiTConfig:
    """The network of a run: its variant, with what data and options say.

    Raises:
        ValueError: the variant is unknown, or an option is not one of its own.
    """
    known: dict[str, Config | DiTConfig] = {**VARIANTS, **DIT_VARIANTS}
    if config.variant not in known:
        raise ValueError(f"no variant {config.variant!r}; known: {', '.join(known)}")
    network = replace(
        known[config.variant],
        input_size=examples.side,
        in_channels=examples.channels,
        num_classes=len(examples.classes),
        class_dropout_prob=config.class_dropout,
        learn_sigma=config.learn_sigma,
    )
    sizes: dict[str, Any] = {"hidden_size": config.hidden_size, "num_heads": config.num_heads}
    network = replace(network, **{k: v for k, v in sizes.items() if v is not None})
    if isinstance(network, DiTConfig):
        if config.depth or config.label_dropout:
            raise ValueError("--depth and --label-dropout are for U-DiT")
        return network
    if config.depth:
        network = replace(network, depth=tuple(config.depth))
    return replace(network, label_dropout=config.label_dropout or network.label_dropout)


def train(config: TrainConfig) -> Trained:
    """Train a network; see ``TrainConfig``. Resumes from ``config.output``.

    Raises:
        ValueError: the configuration does not fit itself, the data or an earlier run.
        FileNotFoundError: the data are not here.
    """
    examples = load_examples(
        config.data,
        data_path=config.data_path,
        image_size=config.image_size,
        limit=config.limit,
    )
    network = network_config(config, examples)
    alignment = network.alignment if isinstance(network, Config) else network.patch_size
    if examples.side % alignment:
        raise ValueError(
            f"examples of {examples.side}x{examples.side}: {config.variant} needs a multiple of "
            f"{alignment}"
        )
    facts = {"config": network.to_dict(), "data": examples.kind, "classes": examples.classes}
    run = Run(
        config.output,
        seed=config.seed,
        config={key: value for key, value in asdict(config).items() if key not in INTERVALS},
        metadata={METADATA: json.dumps(facts)},
        mixed_precision=config.mixed_precision,
        gradient_accumulation=config.accumulate,
        ema_decay=config.ema_decay,
        log_every=config.log_every,
        save_every=config.save_every,
        tensorboard=config.tensorboard,
    )
    model = build(network).to(memory_format=torch.channels_last)
    merge_in_training(model, config.merge_in_training)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=True
    )
    mirrored = config.flip and examples.kind == "pixels"
    loader = run.loader(
        examples,
        batch_size=config.batch_size,
        transform=flip if mirrored else None,
        workers=config.workers,
    )
    model, optimizer = run.prepare(model, optimizer)
    model.train()
    chain, losses = Chain.linear(), {}
    for x0, labels in run.steps(loader, config.steps):
        x0 = x0.contiguous(memory_format=torch.channels_last)
        with run.accumulate():
            t = torch.randint(len(chain), (len(x0),), device=x0.device)
            noise = torch.randn_like(x0)
            x = q_sample(chain, x0, t, noise)
            with run.accelerator.autocast():
                output = model(x, t, labels)
            losses = training_losses(chain, output.float(), x0, x, t, noise)
            run.backward(losses["loss"].mean())
            optimizer.step()
            optimizer.zero_grad()
        run.log(**{name: value.mean() for name, value in losses.items()})
    path = run.finish()
    assert run.ema is not None
    last = losses["loss"].mean().item() if losses else float("nan")
    return Trained(path.with_name("model_ema.safetensors"), run.ema.model.eval(), last)


def main(config: TrainConfig) -> int:
    """Train, and say where the network lies."""
    trained = train(config)
    print(f"{trained.path}: loss {trained.loss:.4g}")
    return 0
