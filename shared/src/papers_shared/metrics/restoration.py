"""Restoration metrics: PSNR, PSNR-B, SSIM, LPIPS, NIQE; each says how it was computed.

A metric is a small object: ``PSNR(channels="y", crop_border=4)(image, reference)`` gives a value an
image, and its ``protocol`` (here ``PSNR-Y bt601 crop4 uint8``) goes beside every number reported.
Two numbers compare only where the protocols are equal.

Images are (B, C, H, W) or (C, H, W), RGB or grey, floating point in [0, 1] or uint8.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from papers_shared._basicsr import basicsr_module
from papers_shared.images import rgb_to_y, to_uint8

Channels = Literal["rgb", "y"]


@dataclass(frozen=True, kw_only=True)
class _Fidelity:
    """What PSNR and SSIM share: which pixels are compared, and in which precision.

    Attributes:
        channels: ``rgb``, or ``y``: the luma of ITU-R BT.601 in studio range, not rounded (grey
            images count as their own luma).
        crop_border: pixels removed on each side; the scale factor in most papers.
        quantize: compare images rounded to uint8, as files are (the protocol of nearly all
            tables), instead of the floats themselves.
    """

    channels: Channels = "rgb"
    crop_border: int = 0
    quantize: bool = True

    def __post_init__(self) -> None:
        if self.channels not in ("rgb", "y") or self.crop_border < 0:
            raise ValueError(
                f"expected channels rgb or y and crop_border >= 0, got {self.channels!r} and "
                f"{self.crop_border}"
            )

    def _protocol(self, name: str) -> str:
        kind = "Y bt601" if self.channels == "y" else "RGB"
        return f"{name}-{kind} crop{self.crop_border} {'uint8' if self.quantize else 'float'}"

    def _levels(self, image: Tensor) -> Tensor:
        """The compared values in levels of 255, float64."""
        if self.quantize:
            image = (image if image.dtype == torch.uint8 else to_uint8(image)).float() / 255
        elif image.dtype == torch.uint8:
            image = image.float() / 255
        if self.channels == "y" and image.shape[-3] == 3:
            # The reference computes the Y of files in float64 and keeps it in float32.
            image = rgb_to_y(image.double()).float() if self.quantize else rgb_to_y(image)
        levels = (image * 255).round() if self.quantize and self.channels == "rgb" else image * 255
        border = self.crop_border
        height, width = levels.shape[-2:]
        if 2 * border >= min(height, width):
            raise ValueError(f"crop_border {border} leaves nothing of {height}x{width} pixels")
        return levels[..., border : height - border, border : width - border].double()


@dataclass(frozen=True, kw_only=True)
class PSNR(_Fidelity):
    """Peak signal-to-noise ratio in dB, over all pixels and channels of an image.

    10 log10(255^2 / MSE); infinite for equal images. Without ``quantize`` the mean squared error
    of [0, 1] values is increased by ``epsilon``, as in basicsr, so equal images have 80 dB.

    Attributes:
        epsilon: only without ``quantize``; 0 for the plain formula.

    Source: basicsr 1.4.2, ``calculate_psnr`` (quantize) and ``calculate_psnr_pt``.
    """

    epsilon: float = 1e-8

    @property
    def protocol(self) -> str:
        shown = "" if self.quantize else f" eps{self.epsilon:.0e}".replace("e-0", "e-")
        return self._protocol("PSNR") + shown.replace(" eps0e+00", "")

    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        """Args: two image batches of one shape. Returns: float64 (B,), dB."""
        image, reference = _same_shape(image, reference)
        error = (self._levels(image) - self._levels(reference)) / 255
        mse = error.square().mean(dim=(1, 2, 3))
        return -10 * torch.log10(mse if self.quantize else mse + self.epsilon)


@dataclass(frozen=True, kw_only=True)
class PSNRB(_Fidelity):
    """PSNR with the blocking effect of JPEG counted as error, in dB.

    10 log10(255^2 / (MSE + BEF)). BEF is of the image alone: with D_b and D_n the mean squared
    differences of neighbours across the borders of 8x8 blocks and elsewhere (rows and columns
    together), BEF = log2(8) / log2(min(H, W)) (D_b - D_n) where D_b > D_n, else 0.

    Source: Yim and Bovik, TIP 2011, as SwinIR's evaluation computes it.
    """

    @property
    def protocol(self) -> str:
        return self._protocol("PSNR-B") + " blocks8"

    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        """Args: two batches of one shape, grey or with channels ``y``; the image comes first.

        Returns: float64 (B,), dB.

        Raises:
            ValueError: shapes differ, colours are to be compared, or no block border is inside.
        """
        image, reference = _same_shape(image, reference)
        x, y = self._levels(image), self._levels(reference)
        if x.shape[1] != 1 or min(x.shape[-2:]) < 9:
            raise ValueError(
                f"PSNR-B takes grey images, or channels='y', of at least 9x9 pixels; got "
                f"{tuple(image.shape)} with channels={self.channels!r}"
            )
        mse = (x - y).square().mean(dim=(1, 2, 3))
        across, elsewhere = _neighbour_errors(x)
        effect = 3 / torch.log2(torch.tensor(float(min(x.shape[-2:])))) * (across - elsewhere)
        return 10 * torch.log10(255**2 / (mse + effect.clamp(min=0)))


def _neighbour_errors(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean squared differences of neighbours across borders of 8x8 blocks, and elsewhere: (B,)."""
    sums = x.new_zeros(2, len(x))
    counts = [0, 0]
    for axis in (2, 3):
        squares = x.diff(dim=axis).square()
        border = torch.arange(1, squares.shape[axis] + 1, device=x.device) % 8 == 0
        for i, chosen in enumerate((border, ~border)):
            part = squares.index_select(axis, chosen.nonzero()[:, 0])
            sums[i] += part.sum(dim=(1, 2, 3))
            counts[i] += part[0].numel()
    return sums[0] / counts[0], sums[1] / counts[1]


@dataclass(frozen=True, kw_only=True)
class SSIM(_Fidelity):
    """Structural similarity, at most 1; the mean over the channels.

    Window: 11x11 Gaussian of sigma 1.5, only where it lies wholly inside the image (after the
    crop); C1 = (0.01 * 255)^2, C2 = (0.03 * 255)^2; variances without Bessel's correction.

    Source: Wang et al. 2004; basicsr 1.4.2, ``calculate_ssim`` and ``calculate_ssim_pt``.
    """

    @property
    def protocol(self) -> str:
        return self._protocol("SSIM") + " gaussian11 sigma1.5"

    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        """Args: two image batches of one shape, 11 pixels after the crop at least.

        Returns: float64 (B,).
        """
        image, reference = _same_shape(image, reference)
        x, y = self._levels(image), self._levels(reference)
        if min(x.shape[-2:]) < 11:
            raise ValueError(
                f"SSIM needs at least 11x11 pixels after the crop of {self.crop_border}, got "
                f"{x.shape[-2]}x{x.shape[-1]}"
            )
        mu_x, mu_y, xx, yy, xy = _gaussian_mean(torch.stack([x, y, x * x, y * y, x * y]))
        return _similarity(mu_x, mu_y, xx, yy, xy).mean(dim=(1, 2, 3))


@dataclass(frozen=True, kw_only=True)
class VolumeSSIM(_Fidelity):
    """Structural similarity of H x W x 3 as one volume, as MATLAB's ``ssim`` takes an RGB array.

    SIDD, GoPro and HIDE are reported so: about 0.02 to 0.04 above the mean of three channels. The
    Gaussian (sigma 1.5, 11 taps) runs along the channels too; borders repeat the edge pixel.

    Source: MATLAB R2014a and later, ``ssim``; NAFNet's evaluation.
    """

    @property
    def protocol(self) -> str:
        return self._protocol("SSIM") + " volume gaussian11 sigma1.5"

    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        """Args: two image batches of one shape. Returns: float64 (B,)."""
        image, reference = _same_shape(image, reference)
        x, y = self._levels(image), self._levels(reference)
        mu_x, mu_y, xx, yy, xy = (_volume_mean(v) for v in (x, y, x * x, y * y, x * y))
        return _similarity(mu_x, mu_y, xx, yy, xy).mean(dim=(1, 2, 3))


def _volume_mean(x: Tensor) -> Tensor:
    """(B, C, H, W) -> the same shape: weighted means, the edges repeated, channels an axis too."""
    weights = _gaussian(x)
    padded = F.pad(x[:, None], (5, 5, 5, 5, 5, 5), mode="replicate")
    for shape in ((11, 1, 1), (1, 11, 1), (1, 1, 11)):
        padded = F.conv3d(padded, weights.view(1, 1, *shape))
    return padded[:, 0]


def _similarity(mu_x: Tensor, mu_y: Tensor, xx: Tensor, yy: Tensor, xy: Tensor) -> Tensor:
    """SSIM of every pixel, from the local means of x, y, x^2, y^2 and xy in levels of 255."""
    var_x, var_y, covariance = xx - mu_x**2, yy - mu_y**2, xy - mu_x * mu_y
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mu_x * mu_y + c1) / (mu_x**2 + mu_y**2 + c1)
    return luminance * (2 * covariance + c2) / (var_x + var_y + c2)


def _gaussian_mean(x: Tensor) -> Tensor:
    """(..., H, W) -> (..., H - 10, W - 10): weighted means under the 11x11 Gaussian of SSIM."""
    weights = _gaussian(x)
    planes = x.reshape(-1, 1, *x.shape[-2:])
    planes = F.conv2d(F.conv2d(planes, weights.view(1, 1, 11, 1)), weights.view(1, 1, 1, 11))
    return planes.reshape(*x.shape[:-2], *planes.shape[-2:])


def _gaussian(like: Tensor) -> Tensor:
    """The 11 weights of SSIM's Gaussian, sigma 1.5."""
    grid = torch.arange(-5, 6, dtype=like.dtype, device=like.device)
    weights = torch.exp(-(grid**2) / (2 * 1.5**2))
    return weights / weights.sum()


# ------------------------------------------------------------------------------- perceptual

Net = Literal["alex", "squeeze", "vgg"]
LPIPS_FEATURES: dict[Net, str] = {  # the assets with the backbones' weights
    "alex": "lpips_alexnet_features",
    "squeeze": "lpips_squeezenet1_1_features",
}


class LPIPS:
    """Learned perceptual image patch similarity (version 0.1), through the package ``lpips``.

    Its calibrated heads ship with ``lpips``; the backbones are torchvision's networks trained on
    ImageNet: for alex and squeeze from the catalogue (papers_shared.assets), for vgg downloaded by
    torchvision, which checks the file.

    Args:
        net: the backbone: ``alex`` (what evaluations report), ``squeeze``, or ``vgg`` (for losses).
        features: a file with the backbone's state dict in torchvision's names, instead.

    Source: Zhang et al., CVPR 2018, equation 1.
    """

    def __init__(self, net: Net = "alex", *, features: Path | str | None = None) -> None:
        if net not in ("alex", "squeeze", "vgg"):
            raise ValueError(f"unknown LPIPS net {net!r}; expected alex, squeeze or vgg")
        self.net = net
        self.features = features

    @property
    def protocol(self) -> str:
        return f"LPIPS-{self.net} v0.1"

    def __call__(self, image: Tensor, reference: Tensor) -> Tensor:
        """Args: two RGB image batches of one shape. Returns: float32 (B,); 0 for equal images.

        Raises:
            ImportError: ``lpips`` is not installed.
            FileNotFoundError: the backbone's weights cannot be had; says where to put them.
            ValueError: shapes differ, not RGB, or too small for the backbone.
        """
        image, reference = _same_shape(image, reference)
        if image.shape[1] != 3 or min(image.shape[-2:]) < 32:
            raise ValueError(
                f"LPIPS takes RGB images of at least 32x32 pixels, got {tuple(image.shape)}"
            )
        model = self._model.to(image.device)
        pair = [t.float() / (255 if t.dtype == torch.uint8 else 1) for t in (image, reference)]
        return model(*pair, normalize=True).flatten()

    @cached_property
    def _model(self) -> torch.nn.Module:
        try:
            import lpips
        except ImportError as error:
            raise ImportError(
                f"LPIPS needs the package lpips ({error}): pip install 'papers-shared[metrics]'"
            ) from None
        with warnings.catch_warnings():
            # lpips builds the backbone with an argument that torchvision deprecates.
            warnings.simplefilter("ignore", UserWarning)
            # pnet_rand: without it lpips asks torchvision to download the backbone.
            model = lpips.LPIPS(net=self.net, version="0.1", pnet_rand=True, verbose=False)
        _load_features(model.net, self._features(), what=f"LPIPS-{self.net}")
        return model.requires_grad_(False)

    def _features(self) -> Mapping[str, Tensor]:
        from papers_shared import assets, checkpoints

        if self.features is not None:
            return checkpoints.load_state_dict(self.features)
        if self.net in LPIPS_FEATURES:
            return checkpoints.load_state_dict(assets.fetch(LPIPS_FEATURES[self.net]).path)
        from torchvision.models import VGG16_Weights

        weights = VGG16_Weights.IMAGENET1K_V1
        try:
            return weights.get_state_dict(progress=False, check_hash=True)
        except OSError as error:  # urllib's errors are OSErrors
            raise FileNotFoundError(
                f"LPIPS-vgg needs torchvision's VGG16 weights, and {weights.url} does not answer "
                f"({error}); download it and pass features=FILE"
            ) from None


def _load_features(net: Any, state: Mapping[str, Tensor], *, what: str) -> None:
    """Fill lpips's slices; they keep torchvision's numbers: slice2.3.bias is features.3.bias."""
    from papers_shared import checkpoints

    ours = {name: "features." + name.split(".", 1)[1] for name in net.state_dict()}
    convolutions = {k: v for k, v in state.items() if k.startswith("features.")}
    renamed = {name: convolutions.pop(key) for name, key in ours.items() if key in convolutions}
    checkpoints.load_strict(net, renamed | convolutions, what=what)


@dataclass(frozen=True, kw_only=True)
class NIQE:
    """Natural image quality evaluator, without a reference; lower is better. Through basicsr.

    On the Y of ITU-R BT.601 rounded to whole levels, 96x96 blocks without overlap, the pristine
    parameters that basicsr ships (those of the authors' release).

    Attributes:
        crop_border: pixels removed on each side.

    Source: Mittal et al. 2013; basicsr 1.4.2, ``calculate_niqe``.
    """

    crop_border: int = 0

    @property
    def protocol(self) -> str:
        return f"NIQE-Y bt601 crop{self.crop_border} uint8 blocks96 (basicsr, not MATLAB)"

    def __call__(self, image: Tensor) -> Tensor:
        """Args: images. Returns: float64 (B,).

        Raises:
            ImportError: basicsr is not installed.
            ValueError: fewer than two whole blocks: their covariance does not exist.
        """
        image = _batch(image)
        height, width = (side - 2 * self.crop_border for side in image.shape[-2:])
        if (height // 96) * (width // 96) < 2 or min(height, width) < 96:
            raise ValueError(
                f"NIQE needs two blocks of 96x96 pixels at least, got {height}x{width} after the "
                f"crop of {self.crop_border}"
            )
        calculate = basicsr_module("metrics.niqe").calculate_niqe
        pictures = image if image.dtype == torch.uint8 else to_uint8(image)
        scores = []
        for picture in pictures.cpu():
            array = picture.flip(0).permute(1, 2, 0).contiguous().numpy()  # RGB -> BGR
            if array.shape[2] == 1:
                scores.append(calculate(array[..., 0], self.crop_border, input_order="HW"))
            else:
                scores.append(calculate(array, self.crop_border, convert_to="y"))
        return torch.tensor(scores, dtype=torch.float64, device=image.device)


# ------------------------------------------------------------------------------- inputs


def _same_shape(image: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    if image.shape != reference.shape:
        raise ValueError(
            f"images to compare must have one shape, got {tuple(image.shape)} and "
            f"{tuple(reference.shape)}; crop the reference to the image's size first"
        )
    return _batch(image), _batch(reference)


def _batch(image: Tensor) -> Tensor:
    if image.ndim not in (3, 4) or image.shape[-3] not in (1, 3):
        raise ValueError(
            f"expected images (B, C, H, W) or (C, H, W) with 1 or 3 channels, got "
            f"{tuple(image.shape)}"
        )
    if image.dtype != torch.uint8 and not image.is_floating_point():
        raise ValueError(f"expected floats in [0, 1] or uint8, got {image.dtype}")
    return image if image.ndim == 4 else image[None]
