"""Training of class-conditional networks with ADM's losses; the network is an argument."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from papers_shared.diffusion.adm import Chain, q_sample, training_losses
from papers_shared.diffusion.class_family import ClassFamily, changed, load_network
from papers_shared.diffusion.class_options import ClassTrainConfig
from papers_shared.diffusion.examples import Examples, flip, load_examples, one_of_two
from papers_shared.networks.rep_ffn import merge_in_training
from papers_shared.training import Run

# What does not decide the result of an update; more steps are a longer run.
INTERVALS = (
    *("output", "steps", "workers", "log_every", "save_every", "tensorboard", "data_path"),
    "checkpointing",
)


@dataclass(frozen=True)
class Trained:
    """What a training gives: the averaged weights, the network that holds them, the last loss."""

    path: Path
    model: nn.Module
    loss: float


def network_config(config: ClassTrainConfig, family: ClassFamily, examples: Examples) -> Any:
    """The network of a run: its variant, with what data and options say.

    Raises:
        ValueError: the variant is unknown, or the data do not fit it.
    """
    variant = family.config_of(config.variant)
    depth: Any = None
    if config.depth:
        whole = isinstance(variant.depth, int)
        if whole and len(config.depth) > 1:
            raise ValueError(f"--depth {config.depth}: {config.variant} takes one number")
        depth = config.depth[0] if whole else tuple(config.depth)
    if config.label_dropout and not hasattr(variant, "label_dropout"):
        raise ValueError(f"--label-dropout: {config.variant} has one label table only")
    return changed(
        variant,
        input_size=examples.side,
        in_channels=examples.channels,
        num_classes=len(examples.classes),
        class_dropout_prob=config.class_dropout,
        learn_sigma=config.learn_sigma,
        hidden_size=config.hidden_size,
        num_heads=config.num_heads,
        depth=depth,
        label_dropout=config.label_dropout,
    )


def recompute_blocks(model: nn.Module) -> None:
    """Let every block of a network keep its input alone and be computed again on the way back."""
    for level in model.children():
        if isinstance(level, nn.ModuleList):
            for block in level:
                whole = block.forward

                def forward(x: Tensor, c: Tensor, whole: Any = whole) -> Tensor:
                    return checkpoint(whole, x, c, use_reentrant=False)

                block.forward = forward


def start_from(model: nn.Module, family: ClassFamily, source: str) -> list[str]:
    """Take over a trained network's weights wherever name and shape fit; returns what did not.

    Raises:
        ValueError: less than half of the values fit.
    """
    trained, _ = load_network(family, source)
    theirs, own = trained.state_dict(), model.state_dict()
    fitting = {n: v for n, v in theirs.items() if n in own and own[n].shape == v.shape}
    taken = sum(v.numel() for v in fitting.values())
    if 2 * taken < sum(v.numel() for v in own.values()):
        raise ValueError(f"{source} is another network: {taken} of its values would fit this one")
    model.load_state_dict(fitting, strict=False)
    return [name for name in own if name not in fitting]


def train_network(config: ClassTrainConfig, family: ClassFamily, *, network: Any = None) -> Trained:
    """Train a network; see ``ClassTrainConfig``. Resumes from ``config.output``.

    Args:
        config: the run.
        family: whose networks.
        network: a configuration in place of the variant's.

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
    network = network or network_config(config, family, examples)
    if examples.side % network.alignment:
        raise ValueError(
            f"examples of {examples.side}x{examples.side}: {config.variant} needs a multiple of "
            f"{network.alignment}"
        )
    facts = {
        "config": network.to_dict(),
        "data": examples.kind,
        "classes": examples.classes,
        "vae": examples.vae,
    }
    run = Run(
        config.output,
        seed=config.seed,
        config={key: value for key, value in asdict(config).items() if key not in INTERVALS},
        metadata={family.package: json.dumps(facts)},
        mixed_precision=config.mixed_precision,
        gradient_accumulation=config.accumulate,
        ema_decay=config.ema_decay,
        log_every=config.log_every,
        save_every=config.save_every,
        tensorboard=config.tensorboard,
    )
    model = family.build(network)
    if not config.fsdp:  # which cannot cut weights of that layout
        model = model.to(memory_format=torch.channels_last)
    if config.init:
        left_out = start_from(model, family, config.init)
        if left_out and run.is_main:
            print(f"fresh: {', '.join(left_out)}")
    merge_in_training(model, config.merge_in_training)
    if config.checkpointing:
        recompute_blocks(model)
    if config.fsdp:
        from papers_shared.training.sharded import shard  # seconds to import

        model = shard(model, run.accelerator)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, weight_decay=config.weight_decay, fused=not config.fsdp
    )
    augment = None
    if config.flip:
        augment = one_of_two if examples.two else flip if examples.kind == "pixels" else None
    loader = run.loader(
        examples.both() if augment is one_of_two else examples,
        batch_size=config.batch_size,
        transform=augment,
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
    averaged = run.finish().with_name("model_ema.safetensors")
    last = losses["loss"].mean().item() if losses else float("nan")
    return Trained(averaged, load_network(family, averaged)[0], last)


def train_and_tell(config: ClassTrainConfig, family: ClassFamily) -> int:
    """Train, and say where the network lies."""
    trained = train_network(config, family)
    print(f"{trained.path}: loss {trained.loss:.4g}")
    return 0
