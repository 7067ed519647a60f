"""F3Net: two Xception trunks on frequency-filtered pictures, joined by cross attention.

In the layout of the re-implementation by Leminhbinh0209 (from yyk-wew/F3Net) that GenImage holds.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from genimage.xception import Xception

SIZE = 299  # the only size the heads fit


def dct_matrix(size: int) -> Tensor:
    """Orthonormal DCT-II: row i, column j is sqrt(1/N or 2/N) cos((j + 1/2) pi i / N)."""
    i, j = torch.meshgrid(torch.arange(size), torch.arange(size), indexing="ij")
    matrix = torch.cos((j.double() + 0.5) * math.pi * i / size) * math.sqrt(2 / size)
    matrix[0] = math.sqrt(1 / size)
    return matrix.float()


def _fixed(value: Tensor) -> nn.Parameter:
    return nn.Parameter(value, requires_grad=False)


class Filter(nn.Module):
    """A band of DCT coefficients and a learned change of it: ``base + 2 sigmoid(learnable) - 1``.

    Args:
        size: side of the plane of coefficients.
        start, end: coefficient (i, j) is in the band if start < i + j <= end.
        normalise: divide by the number of coefficients in the band.
    """

    def __init__(self, size: int, start: float, end: float, *, normalise: bool = False) -> None:
        super().__init__()
        total = torch.arange(size)[:, None] + torch.arange(size)
        # Strict at the start, as in the authors' code: (0, 0) is in no band.
        base = ((total > start) & (total <= end)).float()
        self.base = _fixed(base)
        self.learnable = nn.Parameter(torch.randn(size, size) * 0.1)
        self.ft_num: nn.Parameter | None = _fixed(base.sum()) if normalise else None

    def forward(self, x: Tensor) -> Tensor:
        """(..., size, size) coefficients -> the same, filtered."""
        x = x * (self.base + 2 * torch.sigmoid(self.learnable) - 1)
        return x if self.ft_num is None else x / self.ft_num


class FADHead(nn.Module):
    """Frequency-aware decomposition: the picture in low, middle, high and all frequencies."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self._DCT_all = _fixed(dct_matrix(size))
        self._DCT_all_T = _fixed(dct_matrix(size).T.contiguous())
        bands = ((0, size // 16), (size // 16, size // 8), (size // 8, size), (0, 2 * size))
        self.filters = nn.ModuleList(Filter(size, *band) for band in bands)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, N, N) -> (B, 12, N, N)."""
        spectrum = self._DCT_all @ x @ self._DCT_all_T
        bands = [self._DCT_all_T @ keep(spectrum) @ self._DCT_all for keep in self.filters]
        return torch.cat(bands, dim=1)


class LFSHead(nn.Module):
    """Local frequency statistics: per window of the grey picture, mean log DCT in M bands."""

    def __init__(self, size: int, window: int, bands: int) -> None:
        super().__init__()
        self.window = window
        self.side = (size + 2 * 4 - window) // 2 + 1
        self._DCT_patch = _fixed(dct_matrix(window))
        self._DCT_patch_T = _fixed(dct_matrix(window).T.contiguous())
        step = 2 * window / bands
        self.filters = nn.ModuleList(
            Filter(window, step * m, step * (m + 1), normalise=True) for m in range(bands)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, N, N) in [-1, 1] -> (B, M, 149, 149) for N = 299."""
        red, green, blue = x.split(1, dim=1)
        # 122.5 is the authors' factor (127.5 would give 0..255).
        grey = (0.299 * red + 0.587 * green + 0.114 * blue + 1) * 122.5
        patches = F.unfold(grey, self.window, stride=2, padding=4)
        patches = patches.transpose(1, 2).unflatten(2, (self.window, self.window))
        logs = torch.log10((self._DCT_patch @ patches @ self._DCT_patch_T).abs() + 1e-15)
        sums = [keep(logs).sum((2, 3)) for keep in self.filters]
        return torch.stack(sums, dim=1).unflatten(2, (self.side, self.side))


class MixBlock(nn.Module):
    """Cross attention between both trunks, a W x W map for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.FAD_gamma, self.LFS_gamma = (nn.Parameter(torch.zeros(1)) for _ in range(2))
        self.FAD_query, self.LFS_query, self.FAD_key, self.LFS_key = (
            nn.Conv2d(channels, channels, 1) for _ in range(4)
        )
        self.FAD_conv = nn.Conv2d(channels, channels, 1, groups=channels)
        self.FAD_bn = nn.BatchNorm2d(channels)
        self.LFS_conv = nn.Conv2d(channels, channels, 1, groups=channels)
        self.LFS_bn = nn.BatchNorm2d(channels)

    def forward(self, fad: Tensor, lfs: Tensor) -> tuple[Tensor, Tensor]:
        """Two (B, C, H, W) -> two (B, C, H, W)."""
        query = torch.cat([self.FAD_query(fad), self.LFS_query(lfs)], dim=3)
        key = torch.cat([self.FAD_key(fad), self.LFS_key(lfs)], dim=3)
        attention = (query @ key.transpose(2, 3)).softmax(-1)
        from_lfs = lfs * attention * (2 * torch.sigmoid(self.LFS_gamma) - 1)
        from_fad = fad * attention * (2 * torch.sigmoid(self.FAD_gamma) - 1)
        return (
            fad + self.FAD_bn(self.FAD_conv(from_lfs)),
            lfs + self.LFS_bn(self.LFS_conv(from_fad)),
        )


class F3Net(nn.Module):
    """Both trunks and the classifier.

    Args:
        num_classes: outputs.
        img_width, img_height: 299.
        LFS_window_size, LFS_M: windows of the local statistics, and their bands.

    Raises:
        ValueError: another size: the trunks' features would not meet.

    Source: Qian et al., Thinking in Frequency (ECCV 2020).
    """

    def __init__(
        self,
        num_classes: int = 2,
        img_width: int = SIZE,
        img_height: int = SIZE,
        LFS_window_size: int = 10,
        LFS_M: int = 6,
    ) -> None:
        super().__init__()
        if (img_width, img_height) != (SIZE, SIZE):
            raise ValueError(f"F3Net is made for {SIZE}x{SIZE}, not {img_width}x{img_height}")
        self.fad_head = FADHead(SIZE)
        self.lfs_head = LFSHead(SIZE, LFS_window_size, LFS_M)
        self.fad_excep = Xception(12)
        self.lfs_excep = Xception(LFS_M, stride=1)
        self.mix_block7, self.mix_block12 = MixBlock(728), MixBlock(1024)
        self.fc = nn.Linear(4096, num_classes)

    def features(self, x: Tensor) -> Tensor:
        """(B, 3, 299, 299) in [-1, 1] -> (B, 4096), the half of the filtered picture first."""
        if x.shape[-2:] != (SIZE, SIZE):
            raise ValueError(f"F3Net takes {SIZE}x{SIZE} pixels, not {tuple(x.shape[-2:])}")
        fad = self.fad_excep.blocks(self.fad_excep.stem(self.fad_head(x)), 1, 7)
        lfs = self.lfs_excep.blocks(self.lfs_excep.stem(self.lfs_head(x)), 1, 7)
        fad, lfs = self.mix_block7(fad, lfs)
        fad, lfs = self.fad_excep.blocks(fad, 8, 12), self.lfs_excep.blocks(lfs, 8, 12)
        fad, lfs = self.mix_block12(fad, lfs)
        both = self.fad_excep.tail(fad), self.lfs_excep.tail(lfs)
        return torch.cat([F.relu(x).mean((2, 3)) for x in both], dim=1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, 3, 299, 299) in [-1, 1] -> features (B, 4096) and logits (B, num_classes)."""
        features = self.features(x)
        return features, self.fc(F.dropout(features, 0.2, self.training))
