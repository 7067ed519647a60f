"""Recipes for the calibration tables: known values of each metric, computed by ours."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from papers_shared._basicsr import basicsr_module
from papers_shared.data.resize import imresize
from papers_shared.images import list_images, read_image, rgb_to_y, to_uint8
from papers_shared.metrics.restoration import LPIPS, LPIPS_FEATURES, NIQE, PSNR, SSIM, Net
from papers_shared.tables.recipe import Context, Measured, Recipe, Table

BENCHMARKS = {"set5": 5, "set14": 14, "bsd100": 100}  # asset -> pictures
SCALES = (2, 3, 4)
RESIZES = {"down_4": 1 / 4, "down_3": 1 / 3, "down_2": 1 / 2, "up_2": 2, "up_3": 3, "up_1_5": 1.5}
Score = Callable[[Tensor, Tensor], float]


# --- bicubic: the baseline row of every super-resolution table -----------------------------------


def bicubic(context: Context, *, benchmark: str, scale: int) -> dict[str, Measured]:
    """Mean PSNR-Y and SSIM-Y of bicubic enlargement, in the two protocols in use."""
    psnr = PSNR(channels="y", crop_border=scale)
    ssim = SSIM(channels="y", crop_border=scale)
    rows = []
    for high, low in _pairs(context, benchmark, scale):
        # As published: Y of the HR image as whole levels, reduced without rounding, enlarged.
        levels = to_uint8(high) if len(high) == 1 else rgb_to_y(to_uint8(high))
        y = levels.double() / 255
        enlarged = imresize(imresize(y, 1 / scale), size=(y.shape[-2], y.shape[-1]))
        # As most test code: RGB files enlarged, rounded once.
        pair = imresize(low.double(), size=(high.shape[-2], high.shape[-1])), high
        rows.append([psnr(enlarged, y).item(), psnr(*pair).item(), ssim(*pair).item()])
        context.progress(len(rows), BENCHMARKS[benchmark], f"{benchmark} x{scale}")
    means = torch.tensor(rows, dtype=torch.float64).mean(0).tolist()
    columns = ("psnr_published", "psnr_files", "ssim_files")
    return {c: Measured(value, n=len(rows)) for c, value in zip(columns, means, strict=True)}


def _pairs(context: Context, benchmark: str, scale: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(HR cropped to a multiple of the scale, LR); grey pictures have one channel."""
    files = context.assets[benchmark].files
    if benchmark == "bsd100":
        names = files["bsd100.txt"].read_text(encoding="utf-8").split()
        paths = [files["val"] / f"{name}.jpg" for name in names]
        low_folder = None
    else:
        folder = context.assets[benchmark].path
        paths = list_images(folder / "HR")
        low_folder = folder / f"LR_x{scale}"
    for path in paths:
        high = read_image(path, mode="stored")
        height, width = (side // scale * scale for side in high.shape[-2:])
        high = high[:, :height, :width]
        if low_folder is not None:
            yield high, read_image(low_folder / path.name, mode="stored")
        else:
            yield high, to_uint8(imresize(high.double(), 1 / scale)).double() / 255


# --- perceptual metrics on pictures whose value is known -----------------------------------------


def lpips_examples(context: Context, *, net: Net, features: str) -> dict[str, Measured]:
    """The LPIPS authors' example pictures, and two seeded pairs of noise."""
    folder = context.assets["lpips_examples"].path
    metric = LPIPS(net, features=context.assets[features].path)
    reference, *distorted = (read_image(folder / f"ex_{name}.png") for name in ("ref", "p0", "p1"))
    generator = torch.Generator().manual_seed(42)
    first, second = (torch.rand(2, 3, 100, 100, generator=generator) for _ in range(2))
    values = [*(metric(d, reference).item() for d in distorted), *metric(first, second).tolist()]
    return {c: Measured(v) for c, v in zip(("p0", "p1", "seed_a", "seed_b"), values, strict=True)}


def niqe(context: Context) -> dict[str, Measured]:
    """NIQE of the picture that basicsr's documentation uses."""
    return {"niqe": Measured(NIQE()(read_image(_baboon(context))).item())}


def _baboon(context: Context) -> Path:
    return context.assets["set14"].path / "HR" / "baboon.png"


# --- agreement with the reference implementations ------------------------------------------------


def agreement(context: Context, *, ours: Score, theirs: Score) -> dict[str, Measured]:
    """Means over Set5 enlarged four times, and the largest difference on one picture."""
    values = []
    for high, low in _pairs(context, "set5", 4):
        enlarged = to_uint8(imresize(low, 4))
        values.append((ours(enlarged, to_uint8(high)), theirs(enlarged, to_uint8(high))))
    a, b = torch.tensor(values, dtype=torch.float64).T
    return {
        "ours": Measured(a.mean().item(), n=len(a)),
        "theirs": Measured(b.mean().item(), n=len(a)),
        "gap": Measured((a - b).abs().max().item(), n=len(a), note="largest of the pictures"),
    }


def _ours(metric: PSNR | SSIM) -> Score:
    return lambda image, reference: metric(image, reference).item()


def _basicsr(name: str) -> Score:
    """basicsr's metric on Y, border 4: of uint8 BGR arrays, or (``_pt``) of float batches."""

    def score(image: Tensor, reference: Tensor) -> float:
        pair: list[Any] = [image[None] / 255, reference[None] / 255]
        if not name.endswith("_pt"):
            pair = [t.flip(0).permute(1, 2, 0).numpy() for t in (image, reference)]
        function = getattr(basicsr_module("metrics.psnr_ssim"), name)
        return float(function(*pair, crop_border=4, test_y_channel=True))

    return score


def _skimage_ssim(image: Tensor, reference: Tensor, **settings: Any) -> float:
    from skimage.metrics import structural_similarity

    arrays = [t.permute(1, 2, 0).numpy() for t in (image, reference)]
    return float(structural_similarity(*arrays, channel_axis=2, data_range=255, **settings))


# scikit-image's name for the setting of Wang et al.; its defaults are a 7x7 box.
_WANG: dict[str, Any] = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
_PSNR_Y = PSNR(channels="y", crop_border=4)
_SSIM_Y = SSIM(channels="y", crop_border=4)
_COMPARISONS: dict[str, tuple[Score, Score, str]] = {
    "psnr_y": (_ours(_PSNR_Y), _basicsr("calculate_psnr"), "basicsr"),
    "ssim_y": (_ours(_SSIM_Y), _basicsr("calculate_ssim"), "basicsr"),
    "psnr_y_float": (
        _ours(PSNR(channels="y", crop_border=4, quantize=False)),
        _basicsr("calculate_psnr_pt"),
        "basicsr",
    ),
    "ssim_y_float": (
        _ours(SSIM(channels="y", crop_border=4, quantize=False)),
        _basicsr("calculate_ssim_pt"),
        "basicsr",
    ),
    "ssim_rgb_skimage": (_ours(SSIM()), partial(_skimage_ssim, **_WANG), "skimage"),
    "ssim_rgb_skimage_defaults": (_ours(SSIM()), _skimage_ssim, "skimage"),
}


def resize_basicsr(context: Context, *, scale: float) -> dict[str, Measured]:
    """Our imresize against basicsr's, on the pictures of Set14 (odd sizes among them)."""
    reference = basicsr_module("utils.matlab_functions").imresize
    gaps = []
    for path in list_images(context.assets["set14"].path / "HR"):
        picture = read_image(path)
        gaps.append((imresize(picture, scale) - reference(picture, scale)).abs().max().item())
    return {"largest": Measured(255 * max(gaps), n=len(gaps))}


def resize_files(context: Context, *, scale: int) -> dict[str, Measured]:
    """Our imresize, rounded, against the LR files of Set14, which follow MATLAB's older rule."""
    differences = []
    for high, low in _pairs(context, "set14", scale):
        ours = to_uint8(imresize(high.double(), 1 / scale)).int()
        differences.append((ours - to_uint8(low).int()).abs().flatten())
    gap = torch.cat(differences)
    return {
        "largest": Measured(gap.max().item(), n=len(differences)),
        "differing": Measured(100 * (gap > 0).double().mean().item(), n=len(differences)),
    }


TABLES = {
    "bicubic": Table(
        recipes={
            f"{benchmark}_x{scale}": Recipe(
                partial(bicubic, benchmark=benchmark, scale=scale),
                seconds=25 if benchmark == "bsd100" else 5,
                scale="exact",
                assets=(benchmark,),
            )
            for benchmark in BENCHMARKS
            for scale in SCALES
        }
    ),
    "lpips": Table(
        recipes={
            net: Recipe(
                partial(lpips_examples, net=net, features=features),
                seconds=5,
                scale="exact",
                assets=("lpips_examples", features),
                requires=("lpips",),
            )
            for net, features in LPIPS_FEATURES.items()
        }
    ),
    "niqe": Table(
        recipes={
            "baboon": Recipe(
                niqe, seconds=5, scale="exact", assets=("set14",), requires=("basicsr",)
            )
        }
    ),
    "agreement": Table(
        recipes={
            row: Recipe(
                partial(agreement, ours=ours, theirs=theirs),
                seconds=5,
                scale="exact",
                assets=("set5",),
                requires=(module,),
            )
            for row, (ours, theirs, module) in _COMPARISONS.items()
        }
    ),
    "resize": Table(
        recipes={
            **{
                row: Recipe(
                    partial(resize_basicsr, scale=scale),
                    seconds=10,
                    scale="exact",
                    assets=("set14",),
                    requires=("basicsr",),
                )
                for row, scale in RESIZES.items()
            },
            **{
                f"files_x{scale}": Recipe(
                    partial(resize_files, scale=scale),
                    seconds=5,
                    scale="exact",
                    assets=("set14",),
                )
                for scale in SCALES
            },
        }
    ),
}
