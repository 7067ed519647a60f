"""Options of the training of the small vision transformer. No torch here."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from papers_shared.cli import option


@dataclass(frozen=True)
class VisionTrainConfig:
    """Train a small vision transformer on CIFAR-10 (AdamW, cosine, crop and flip).

    Started again with the same output folder, it goes on from the newest checkpoint there.
    """

    embed_dim: int = option(128, "width; 128 with 4 heads or 192 with 3 are the sheet's")
    depth: int = option(6, "blocks")
    num_heads: int = option(4, "attention heads")
    init: Path | None = option(None, "start from the weights of this file")
    data_path: Path | None = option(None, "where CIFAR-10 lies, if not in a mirror or the cache")
    output: Path = option(Path("runs/vit"), "folder of the run")

    epochs: int = option(14, "passes over the 50,000 pictures")
    batch_size: int = option(128, "pictures an update")
    lr: float = option(1e-3, "learning rate after the warm-up; falls to 0 as half a cosine")
    weight_decay: float = option(0.05, "AdamW's, on matrices only")
    warmup: float = option(0.05, "part of the updates in which the rate rises")
    smoothing: float = option(0.1, "label smoothing")
    token_drop: float = option(
        0.5, "part of the patches left out of each picture, drawn anew, until the last epochs"
    )
    whole_epochs: int = option(3, "last epochs, in which no patch is left out")
    limit: int | None = option(None, "only the first training pictures")
    test_limit: int | None = option(None, "only the first test pictures")

    seed: int = option(0, "of every draw")
    mixed_precision: Literal["no", "bf16"] = option("bf16", "of the matrix products")
    log_every: int = option(50, "updates between log lines")
    save_every: int = option(390, "updates between checkpoints")
