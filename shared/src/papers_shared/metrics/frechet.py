"""Frechet distance between two sets of features, and FID: that of Inception's features.

The distance is computed here, in float64. The features come from ``torch-fidelity``'s Inception
network (``pip install 'papers-shared[iqa]'``), whose weights are those of the TensorFlow release
that FID is defined by.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from papers_shared.images import read_image, to_uint8

WEIGHTS = "weights-inception-2015-12-05-6726825d.pth"
WEIGHTS_SOURCE = "github.com/toshas/torch-fidelity, release v0.2.0"


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """Squared Frechet distance of the normal distributions fitted to two sets of features.

    ``|m1 - m2|^2 + trace(C1 + C2 - 2 (C1 C2)^(1/2))``, covariances with Bessel's correction. The
    trace of the root is the sum of the singular values of ``R1 R2^T`` where ``C = R^T R``: no
    imaginary parts and no lost digits, also where there are fewer vectors than channels.

    Args:
        first: (n, d).
        second: (m, d); n and m are 2 at least.

    Raises:
        ValueError: shapes that do not fit, fewer than two vectors, or values that are not finite.

    Source: Dowson and Landau 1982; Heusel et al., NeurIPS 2017, equation 6.
    """
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"expected features (n, d) and (m, d), got {tuple(first.shape)} and "
            f"{tuple(second.shape)}"
        )
    if min(len(first), len(second)) < 2:
        raise ValueError(
            f"a covariance needs two vectors at least, got {len(first)} and {len(second)}"
        )
    first, second = first.double(), second.double()
    if not (first.isfinite().all() and second.isfinite().all()):
        raise ValueError("features have to be finite; there is a NaN or an infinity among them")
    mean_1, mean_2 = first.mean(0), second.mean(0)
    root_1 = _root(first - mean_1)
    root_2 = _root(second - mean_2)
    cross = torch.linalg.svdvals(root_1 @ root_2.T).sum()
    distance = (mean_1 - mean_2).square().sum() - 2 * cross
    distance = distance + root_1.square().sum() + root_2.square().sum()
    return max(distance.item(), 0.0)  # rounding may bring equal sets just below zero


def _root(centred: Tensor) -> Tensor:
    """R (min(n, d), d) with R^T R = covariance of the (n, d)."""
    return torch.linalg.qr(centred, mode="r")[1] / (len(centred) - 1) ** 0.5


class Inception:
    """Pool features of the Inception network that FID is defined by.

    Pictures of any size are brought to 299x299 as TensorFlow 1 does, bilinear and without
    antialiasing. pyiqa's ``fid`` (what DiT-SR's script calls) resizes by antialiased bicubic
    instead and gives other numbers.

    Args:
        weights: the file ``weights-inception-2015-12-05-6726825d.pth``; otherwise downloaded.
        device: where it is computed.
    """

    protocol = "FID Inception 2015-12-05, 2048 pool features, TF1 bilinear 299x299, uint8"

    def __init__(
        self, *, weights: Path | str | None = None, device: str | torch.device = "cpu"
    ) -> None:
        self.device = torch.device(device)
        self.network = self._load(weights).to(self.device)

    def __call__(
        self,
        pictures: Sequence[Path],
        *,
        progress: Callable[[int, int, str], None] = lambda done, total, what: None,
    ) -> Tensor:
        """Args: picture files of any sizes. Returns: float64 (n, 2048), on the CPU."""
        features = []
        for path in pictures:
            picture = to_uint8(read_image(path))[None]
            with torch.no_grad():
                (pooled,) = self.network(picture.to(self.device))
            features.append(pooled.double().cpu())
            progress(len(features), len(pictures), f"Inception features of {path.name}")
        return torch.cat(features)

    @staticmethod
    def _load(weights: Path | str | None) -> Any:
        if weights is not None and not Path(weights).is_file():
            raise FileNotFoundError(
                f"{weights} is not a file; expected {WEIGHTS} ({WEIGHTS_SOURCE})"
            )
        try:
            from torch_fidelity.feature_extractor_inceptionv3 import FeatureExtractorInceptionV3
        except ImportError as error:
            raise ImportError(
                f"FID needs the package torch-fidelity ({error}): pip install 'papers-shared[iqa]'"
            ) from None
        try:
            return FeatureExtractorInceptionV3(
                "inception-v3-compat",
                ["2048"],
                feature_extractor_weights_path=None if weights is None else str(weights),
            )
        except OSError as error:
            raise FileNotFoundError(
                f"FID needs {WEIGHTS}, which could not be downloaded ({error}); take it from "
                f"{WEIGHTS_SOURCE} to {torch.hub.get_dir()}/checkpoints, or pass weights=FILE"
            ) from None
