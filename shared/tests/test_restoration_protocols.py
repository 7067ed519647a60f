"""How restoration is measured: degradations, test sets, protocols, against independent figures."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import fmean

import numpy as np
import pytest
import torch
from torch import Tensor

from papers_shared.data.resize import imresize
from papers_shared.images import rgb_to_y, to_uint8, write_image
from papers_shared.metrics.restoration import PSNR, PSNRB, SSIM, VolumeSSIM
from papers_shared.name_seeded import seeded_input
from papers_shared.restoration import benchmarks
from papers_shared.restoration.benchmarks import (
    CleanSet,
    Pair,
    PairedSet,
    SIDDValidation,
    SuperResolutionSet,
)
from papers_shared.restoration.protocols import (
    add_gaussian_noise,
    compress_jpeg,
    deblurring,
    deraining,
    gaussian_denoising,
    identity,
    jpeg_artifacts,
    measure,
    real_denoising,
    super_resolution,
)
from papers_shared.restoration.task import Task

needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def smooth(*size: int, seed: int = 0) -> Tensor:
    """Something like a photo, in multiples of 1/255."""
    small = noise(3, *(side // 4 for side in size), seed=seed)
    return to_uint8(imresize(small, size=(size[0], size[1]))).float() / 255


# ------------------------------------------------------------------------------ metrics


def test_psnr_b_counts_steps_between_blocks_as_error() -> None:
    levels = torch.tensor([100.0, 110.0]).repeat_interleave(8)  # two flat blocks, a step of 10
    image = (levels / 255).expand(1, 1, 16, 16)
    reference = torch.full((1, 1, 16, 16), 105 / 255)
    # Across the border: 16 differences of 10 and 16 (between rows) of 0; elsewhere none.
    effect = 3 / 4 * (16 * 100 / 32)
    expected = 10 * np.log10(255**2 / (25 + effect))
    assert PSNRB()(image, reference).item() == pytest.approx(expected)
    assert PSNRB()(reference, image).item() == pytest.approx(PSNR()(reference, image).item())
    assert PSNRB(channels="y").protocol == "PSNR-B-Y bt601 crop0 uint8 blocks8"


def test_psnr_b_ignores_steps_inside_blocks() -> None:
    x = torch.full((1, 1, 16, 16), 0.5)
    x[..., 4:] = 0.6
    reference = torch.full_like(x, 0.5)
    assert torch.equal(PSNRB()(x, reference), PSNR()(x, reference))


def test_psnr_b_is_of_grey_pictures() -> None:
    with pytest.raises(ValueError, match="grey images"):
        PSNRB()(noise(1, 3, 16, 16), noise(1, 3, 16, 16))
    with pytest.raises(ValueError, match="9x9"):
        PSNRB()(noise(1, 1, 8, 8), noise(1, 1, 8, 8))


def test_ssim_of_a_volume_filters_the_channels_too() -> None:
    gaussian_filter = pytest.importorskip("scipy.ndimage").gaussian_filter
    x, y = ((noise(3, 24, 20, seed=s) * 255).round() for s in (0, 1))

    def mean(a: Tensor) -> np.ndarray:
        return gaussian_filter(a.double().numpy(), sigma=1.5, mode="nearest", truncate=3.5)

    mx, my = mean(x), mean(y)
    vx, vy, vxy = mean(x * x) - mx**2, mean(y * y) - my**2, mean(x * y) - mx * my
    c1, c2 = 2.55**2, 7.65**2
    ssim = (2 * mx * my + c1) * (2 * vxy + c2) / ((mx**2 + my**2 + c1) * (vx + vy + c2))
    assert VolumeSSIM()(x / 255, y / 255).item() == pytest.approx(ssim.mean(), abs=1e-9)
    assert VolumeSSIM().protocol == "SSIM-RGB crop0 uint8 volume gaussian11 sigma1.5"


def test_psnr_without_epsilon_is_the_plain_formula() -> None:
    x, y = noise(1, 3, 16, 16), noise(1, 3, 16, 16, seed=1)
    expected = -10 * (x - y).double().square().mean().log10()
    plain = PSNR(quantize=False, epsilon=0.0)
    assert plain(x, y).item() == pytest.approx(expected.item(), abs=1e-5)
    assert plain.protocol == "PSNR-RGB crop0 float"


# ------------------------------------------------------------------------- degradations


def test_noise_is_that_of_numpy_seeded_before_every_picture() -> None:
    picture = smooth(16, 20)
    state = np.random.get_state()
    noisy = add_gaussian_noise(picture, sigma=25)
    assert all(np.array_equal(a, b) for a, b in zip(state, np.random.get_state(), strict=True))
    np.random.seed(0)
    expected = picture.permute(1, 2, 0).numpy() + np.random.normal(0, 25 / 255, (16, 20, 3))
    np.random.set_state(state)
    np.testing.assert_allclose(noisy.permute(1, 2, 0).numpy(), expected, atol=1e-7)
    assert torch.equal(noisy, add_gaussian_noise(picture, sigma=25))
    assert noisy.min() < 0 or noisy.max() > 1 or add_gaussian_noise(picture, sigma=50).min() < 0


def test_jpeg_keeps_channels_and_quality_counts() -> None:
    picture = smooth(32, 40)
    for image in (picture, picture[:1]):
        errors = [(compress_jpeg(image, q) - image).abs().mean() for q in (10, 40, 95)]
        assert errors[0] > errors[1] > errors[2]
    red = torch.zeros(3, 16, 16)
    red[0] = 1
    assert (compress_jpeg(red, 95)[0] > 0.9).all()
    with pytest.raises(ValueError, match="whole number from 1 to 100"):
        compress_jpeg(picture, 0)


# ---------------------------------------------------------------------------- protocols


def test_super_resolution_cuts_the_border_and_rounds() -> None:
    high = smooth(32, 40)
    spoilt = high.clone()
    spoilt[:, :2] = 0  # inside the border of 2
    scores = super_resolution(lambda x: spoilt[None] + 0.001, [Pair("a", high[:, ::2, ::2], high)],
                              scale=2)  # fmt: skip
    assert scores.means["psnr"] == float("inf")  # less than half a level off
    assert scores.protocols["psnr"] == "PSNR-Y bt601 crop2 uint8"
    assert scores.protocols["ssim"] == "SSIM-Y bt601 crop2 uint8 gaussian11 sigma1.5"


def test_the_unrounded_protocol_is_that_of_lipt_s_log() -> None:
    # Values recorded from the authors' evaluation code.
    shape = (1, 3, 40, 52)
    high = (128 + 40 * seeded_input("lipt_metric.hr", shape)).round().clamp(0, 255) / 255
    result = (high + 9 / 255 * seeded_input("lipt_metric.noise", shape)).clamp(0, 1)
    pair = Pair("a", high[0, :, ::2, ::2], high[0])
    scores = super_resolution(lambda x: result, [pair], scale=2, quantize=False)
    assert scores.means["psnr"] == pytest.approx(33.9602401, rel=1e-5)
    assert scores.means["ssim"] == pytest.approx(0.97357583, rel=1e-5)
    assert scores.protocols["psnr"] == "PSNR-Y bt601 crop2 float"


def test_means_are_over_pictures() -> None:
    pairs = [Pair(str(s), smooth(24, 24, seed=s), smooth(24, 24, seed=s)) for s in range(3)]
    shifts = iter((1, 2, 3))
    scores = deblurring(lambda x: x + next(shifts) / 255, pairs)
    values = [scores.images[str(s)]["psnr"] for s in range(3)]
    assert scores.means["psnr"] == pytest.approx(fmean(values))
    assert values[0] > values[1] > values[2]
    assert set(scores.protocols) == {"psnr", "ssim", "ssim_volume"}


def test_deraining_is_on_whole_levels_of_y() -> None:
    clean, result = smooth(24, 24), smooth(24, 24, seed=1)
    scores = deraining(lambda x: result[None], [Pair("a", clean, clean)])
    y = [rgb_to_y(to_uint8(t))[None] for t in (result, clean)]
    assert y[0].dtype == torch.uint8
    error = (y[0].double() - y[1].double()).square().mean()
    expected = (10 * torch.log10(255**2 / error)).item()
    assert scores.means["psnr"] == pytest.approx(expected)
    assert scores.means["ssim"] == pytest.approx(SSIM()(*y).item())
    assert scores.protocols["psnr"] == "PSNR-Y bt601 rounded crop0 uint8"


def test_real_denoising_does_not_round() -> None:
    clean = smooth(24, 24).clamp(0.1, 0.9)
    scores = real_denoising(lambda x: x + 0.001, [Pair("a", clean, clean)])
    assert scores.means["psnr"] == pytest.approx(60, abs=0.01)


def test_tasks_of_clean_pictures() -> None:
    picture = smooth(40, 32)
    denoised = gaussian_denoising(identity, [("a", picture[:1])], sigma=15)
    assert denoised.protocols["psnr"] == "PSNR-grey crop0 uint8"
    perfect = gaussian_denoising(lambda x: picture[None], [("a", picture)], sigma=50)
    assert perfect.means == {"psnr": float("inf"), "ssim": pytest.approx(1)}
    grey = jpeg_artifacts(identity, [("a", picture[:1])], quality=10, channels=1)
    assert grey.means["psnrb"] < grey.means["psnr"]
    assert grey.protocols["psnrb"] == "PSNR-B-Y bt601 rounded crop0 uint8 blocks8"
    colour = jpeg_artifacts(identity, [("a", picture)], quality=10, channels=3)
    assert set(colour.protocols) == {"psnr", "ssim"}
    with pytest.raises(ValueError, match="3 channels, got 1"):
        jpeg_artifacts(identity, [("a", picture[:1])], quality=10, channels=3)


def test_wrong_outputs_and_empty_sets_are_refused() -> None:
    pair = Pair("a", smooth(16, 16), smooth(32, 32))
    with pytest.raises(ValueError, match=r"a: the network gave \(1, 3, 16, 16\).*\(1, 3, 32, 32\)"):
        super_resolution(identity, [pair], scale=2)
    with pytest.raises(ValueError, match="no pictures"):
        deblurring(identity, [])


# ------------------------------------------------------------------------------ layouts


def put(folder: Path, names: list[str], size: tuple[int, int] = (24, 20)) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for seed, name in enumerate(names):
        write_image(smooth(*size, seed=seed), folder / name)


FIVE = [f"p{i}.png" for i in range(5)]
LAYOUTS: dict[str, Callable[[str], str]] = {
    "LR_bicubic/X2": lambda name: name.replace(".png", "x2.png"),
    "LR_x2": lambda name: name,
}


@pytest.mark.parametrize("low", LAYOUTS)
def test_super_resolution_folders(tmp_path: Path, low: str) -> None:
    put(tmp_path / "HR", FIVE, (25, 21))
    put(tmp_path / low, [LAYOUTS[low](name) for name in FIVE], (12, 10))
    pairs = list(SuperResolutionSet("set5", 2, tmp_path))
    assert [p.name for p in pairs] == [f"p{i}" for i in range(5)]
    assert pairs[3].degraded.shape == (3, 12, 10)
    assert torch.equal(pairs[3].clean, smooth(25, 21, seed=3)[:, :24, :20])
    scores = measure(lambda x: imresize(x, 2), Task("sr", scale=2), "set5", folder=tmp_path)
    assert set(scores.images) == {f"p{i}" for i in range(5)}


def test_missing_low_resolution_and_other_counts_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "HR", FIVE)
    with pytest.raises(FileNotFoundError, match="LR_bicubic"):
        SuperResolutionSet("set5", 2, tmp_path)
    with pytest.raises(ValueError, match="Set14 has 14 pictures"):
        SuperResolutionSet("set14", 2, tmp_path)
    put(tmp_path / "LR_x2", FIVE, (24, 20))
    with pytest.raises(ValueError, match="are not 1/2"):
        list(SuperResolutionSet("set5", 2, tmp_path))


def test_sets_that_are_not_at_hand_say_where_they_are_had() -> None:
    with pytest.raises(FileNotFoundError, match=r"Urban100 .*EDSR/benchmark.tar.*HR/NAME.png"):
        SuperResolutionSet("urban100", 4)
    with pytest.raises(FileNotFoundError, match="LIVE1"):
        measure(identity, Task("dejpeg", channels=1, level=10), "live1")
    with pytest.raises(FileNotFoundError, match="GoPro"):
        PairedSet("gopro")
    with pytest.raises(ValueError, match="no test set is called 'set15'"):
        CleanSet("set15")


def test_clean_sets_in_three_modes(tmp_path: Path) -> None:
    put(tmp_path, FIVE)
    colour = dict(CleanSet("classic5", "rgb", tmp_path))["p1"]
    luma = dict(CleanSet("classic5", "luma", tmp_path))["p1"]
    grey = dict(CleanSet("classic5", "grey", tmp_path))["p1"]
    assert torch.equal(to_uint8(luma), rgb_to_y(to_uint8(colour)))
    weights = torch.tensor([0.299, 0.587, 0.114]).view(3, 1, 1)
    assert (grey - (colour * weights).sum(0, keepdim=True)).abs().max() <= 0.51 / 255
    write_image(colour[:1], tmp_path / "p1.png")
    assert torch.equal(dict(CleanSet("classic5", "luma", tmp_path))["p1"], colour[:1])
    with pytest.raises(ValueError, match="rgb, grey or luma"):
        CleanSet("classic5", "yuv", tmp_path)


def few(monkeypatch: pytest.MonkeyPatch, name: str, pictures: int) -> None:
    monkeypatch.setitem(benchmarks.SETS, name, replace(benchmarks.SETS[name], pictures=pictures))


def test_pairs_of_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "rain100l", 5)
    put(tmp_path / "rain" / "input", FIVE)
    put(tmp_path / "rain" / "target", FIVE)
    task = Task("derain")
    scores = measure(identity, task, "rain100l", folder=tmp_path / "rain")
    assert scores.means["psnr"] == float("inf")
    (tmp_path / "rain" / "target" / "p2.png").unlink()
    with pytest.raises(FileNotFoundError, match=r"no clean picture of .*p2.png"):
        PairedSet("rain100l", tmp_path / "rain")


def test_real_denoising_is_measured_on_pairs_of_ones_own_too(tmp_path: Path) -> None:
    for kind in ("input", "target"):
        put(tmp_path / kind, FIVE)
    scores = measure(identity, Task("real_denoise"), "own", folder=tmp_path)
    assert len(scores.images) == 5
    assert scores.means["psnr"] == float("inf")
    with pytest.raises(FileNotFoundError, match="--data sidd=FOLDER"):
        measure(identity, Task("real_denoise"), "sidd")


def test_gopro_s_own_layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    few(monkeypatch, "gopro", 10)
    for scene in ("GOPR1", "GOPR2"):
        for kind in ("blur", "sharp"):
            put(tmp_path / scene / kind, FIVE)
    names = [pair.name for pair in PairedSet("gopro", tmp_path)]
    assert names[:2] == ["GOPR1/p0", "GOPR1/p1"]
    assert len(set(names)) == 10
    with pytest.raises(FileNotFoundError, match="neither input/"):
        PairedSet("gopro", tmp_path / "GOPR1" / "blur")


def test_sidd_blocks(tmp_path: Path) -> None:
    savemat = pytest.importorskip("scipy.io").savemat
    blocks = np.arange(2 * 3 * 16 * 16 * 3, dtype=np.uint8).reshape(2, 3, 16, 16, 3)
    with pytest.raises(FileNotFoundError, match="sidd/benchmark"):
        SIDDValidation(tmp_path)
    for name, shift in (("ValidationNoisyBlocksSrgb", 1), ("ValidationGtBlocksSrgb", 0)):
        savemat(tmp_path / f"{name}.mat", {name: np.minimum(blocks, 250) + np.uint8(shift)})
    scores = measure(identity, Task("real_denoise"), "sidd", folder=tmp_path)
    assert list(scores.images)[:4] == ["0/0", "0/1", "0/2", "1/0"]
    assert scores.means["psnr"] == pytest.approx(20 * np.log10(255))
    savemat(tmp_path / "ValidationGtBlocksSrgb.mat", {"x": blocks})
    with pytest.raises(ValueError, match="does not hold ValidationGtBlocksSrgb"):
        SIDDValidation(tmp_path)


def test_a_level_is_needed() -> None:
    with pytest.raises(ValueError, match="without a level"):
        measure(identity, Task("denoise"), "kodak24")


# ------------------------------------------------- figures of independent scripts


@needs_mirror
def test_noisy_kodak24_has_its_psnr() -> None:
    pictures = list(CleanSet("kodak24"))
    plain = PSNR(quantize=False, epsilon=0.0)
    values = [plain(add_gaussian_noise(p, sigma=50), p).item() for _, p in pictures]
    assert fmean(values) == pytest.approx(14.153, abs=6e-4)
    rounded = [PSNR()(add_gaussian_noise(p, sigma=50), p).item() for _, p in pictures]
    assert fmean(rounded) == pytest.approx(14.869, abs=6e-4)


@needs_mirror
@pytest.mark.parametrize(
    ("name", "mode", "psnr", "psnrb"),
    [
        ("kodak24", "luma", 28.805, 26.591),
        ("kodak24", "rgb", 26.672, None),
        ("cbsd68", "luma", 27.734, 25.167),
    ],
)
def test_jpeg_itself_has_its_psnr(name: str, mode: str, psnr: float, psnrb: float | None) -> None:
    pairs = [(compress_jpeg(p, 10), p) for _, p in CleanSet(name, mode)]
    assert fmean(PSNR()(a, b).item() for a, b in pairs) == pytest.approx(psnr, abs=2e-3)
    if psnrb is not None:
        assert fmean(PSNRB()(a, b).item() for a, b in pairs) == pytest.approx(psnrb, abs=2e-3)


@needs_mirror
def test_bicubic_enlargement_of_set5_has_its_psnr() -> None:
    scores = measure(lambda x: imresize(x.double(), 4), Task("sr", scale=4), "set5")
    assert scores.means["psnr"] == pytest.approx(28.432, abs=1e-3)
    assert scores.means["ssim"] == pytest.approx(0.8113, abs=1e-4)


@needs_mirror
def test_sets_of_the_catalogue_are_whole() -> None:
    assert len(SuperResolutionSet("set14", 3)) == 14
    bsd100 = SuperResolutionSet("bsd100", 4)
    assert len(bsd100) == 100
    assert next(iter(bsd100)).degraded.shape[-2:] in ((80, 120), (120, 80))
    assert (len(CleanSet("cbsd68")), len(CleanSet("kodak24"))) == (68, 24)
