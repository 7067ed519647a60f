"""Scores: ``python -m u_dit.eval --samples samples --reference photos``."""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from u_dit.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

import json
from pathlib import Path

import torch
from torch import Tensor, nn

from papers_shared.diffusion.adm import Chain, q_sample
from papers_shared.images import list_images
from papers_shared.metrics.frechet import Inception, frechet_distance
from u_dit.config import EvalConfig
from u_dit.data import Examples, load_examples
from u_dit.metrics import precision_recall
from u_dit.official import load_checkpoint
from u_dit.sample import pick_device


@torch.no_grad()
def noise_error(
    model: nn.Module,
    examples: Examples,
    *,
    seed: int = 0,
    first: int = 1000,
    batch_size: int = 50,
    device: str | torch.device = "cpu",
) -> Tensor:
    """Mean squared error of the predicted noise, by example: (n,).

    Step and noise of an example follow from the seed and its place alone, so that networks are
    compared on the same draws.

    Args:
        model: in eval mode, on ``device``.
        examples: held-out ones.
        seed: of steps and noise.
        first: so many.
        batch_size: at a time.
        device: where the network is.
    """
    chain, generator = Chain.linear(), torch.Generator().manual_seed(seed)
    errors = []
    count = min(first, len(examples))
    for start in range(0, count, batch_size):
        pairs = [examples[i] for i in range(start, min(start + batch_size, count))]
        x0, labels = (torch.stack(parts) for parts in zip(*pairs, strict=True))
        draws = [
            (
                torch.randint(len(chain), (), generator=generator),
                torch.randn(x0.shape[1:], generator=generator),
            )
            for _ in pairs
        ]
        t, noise = (torch.stack(parts) for parts in zip(*draws, strict=True))
        x = q_sample(chain, x0, t, noise)
        output = model(x.to(device), t.to(device), labels.to(device)).cpu()
        errors.append((noise - output[:, : x0.shape[1]]).square().mean((1, 2, 3)))
    return torch.cat(errors)


def folder_scores(
    samples: Path, reference: Path, *, inception: Path | None, device: torch.device
) -> dict[str, float]:
    """FID, precision and recall of one folder's pictures against another's.

    Raises:
        ValueError: a folder holds fewer than four pictures.
        FileNotFoundError, ImportError: there is no Inception network; the message says what to do.
    """
    files = [list_images(folder) for folder in (samples, reference)]
    for folder, found in zip((samples, reference), files, strict=True):
        if len(found) < 4:
            raise ValueError(f"{folder} holds {len(found)} pictures; at least 4 are needed")
    network = Inception(weights=inception, device=device)
    made, real = (network(found) for found in files)
    precision, recall = precision_recall(made.float(), real.float())
    return {"fid": frechet_distance(made, real), "precision": precision, "recall": recall}


def main(config: EvalConfig) -> int:
    """Print (and with ``output`` write) the scores.

    Raises:
        ValueError: neither two folders nor weights were given.
    """
    device = pick_device(config.device)
    scores: dict[str, float] = {}
    if (config.samples is None) != (config.reference is None):
        raise ValueError("--samples and --reference go together")
    if config.samples is None and not config.weights:
        raise ValueError("give --samples and --reference, or --weights")
    if config.samples is not None and config.reference is not None:
        scores |= folder_scores(
            config.samples, config.reference, inception=config.inception, device=device
        )
    if config.weights:
        model, _ = load_checkpoint(config.weights, variant=config.variant)
        size = model.options.input_size
        examples = load_examples(
            config.data, split="test", data_path=config.data_path, image_size=size
        )
        if (examples.channels, examples.side) != (model.options.in_channels, size):
            raise ValueError(
                f"{config.data} has {examples.channels}x{examples.side}x{examples.side}, the "
                f"network takes {model.options.in_channels}x{size}x{size}"
            )
        errors = noise_error(
            model.to(device),
            examples,
            seed=config.seed,
            first=config.first,
            batch_size=config.batch_size,
            device=device,
        )
        scores["noise_mse"] = errors.mean().item()
    for name, value in scores.items():
        print(f"{name}  {value:.6g}")
    if config.output is not None:
        config.output.write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    return 0
