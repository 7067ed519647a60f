"""Folders paired by name, the released evaluation protocol, and the Frechet distance."""

import math
import os
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from papers_shared.images import list_images, read_image, write_image
from papers_shared.metrics.folder import RoundedSSIM, Scorer, evaluate_folder
from papers_shared.metrics.frechet import Inception, frechet_distance
from papers_shared.metrics.no_reference import NoReference
from papers_shared.metrics.restoration import PSNR, SSIM

needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def folder(path, names, *, side=32, seed=0):
    path.mkdir()
    for index, name in enumerate(names):
        write_image(noise(3, side, side, seed=seed + index), path / name)
    return path


# --- the protocol --------------------------------------------------------------------------------


@needs_mirror
def test_bicubic_on_val_sr_has_the_scores_of_the_released_evaluation(tmp_path):
    data = Path(os.environ["PAPERS_MIRROR"]) / "data/val_sr"
    for path in list_images(data / "lq"):
        low = read_image(path)[None]
        high = F.interpolate(low, scale_factor=4, mode="bicubic", align_corners=False)
        write_image(high[0], tmp_path / path.name)
    scores = evaluate_folder(tmp_path, data / "gt")
    assert len(scores.images) == 32
    assert {name: round(mean, 4) for name, mean in scores.means.items()} == {
        "psnr": 24.1118,
        "ssim": 0.6264,
        "lpips": 0.6086,
    }
    first = scores.images["ILSVRC2012_val_00000067"]
    assert set(first) == {"psnr", "ssim", "lpips"}


def test_means_are_those_of_the_pictures_and_floats_count_as_the_files_they_become(tmp_path):
    outputs = folder(tmp_path / "out", ["a.png", "b.bmp"])
    references = folder(tmp_path / "gt", ["a.bmp", "b.png"], seed=7)
    scores = evaluate_folder(outputs, references, metrics=("psnr", "ssim"))
    assert list(scores.images) == ["a", "b"]
    for name in ("psnr", "ssim"):
        values = [image[name] for image in scores.images.values()]
        assert scores.means[name] == pytest.approx(sum(values) / 2)
    assert scores.images["b"] == Scorer(("psnr", "ssim"))(
        noise(3, 32, 32, seed=1), noise(3, 32, 32, seed=8)
    )


def test_psnr_is_of_unrounded_luma_with_1e_8_and_ssim_of_rounded_luma(tmp_path):
    outputs = folder(tmp_path / "out", ["a.png"])
    same = evaluate_folder(outputs, outputs, metrics=("psnr", "ssim"))
    assert same.means == {"psnr": pytest.approx(80), "ssim": pytest.approx(1)}
    grey = torch.full((3, 32, 32), 100, dtype=torch.uint8)
    step = Scorer(("psnr",))(grey + 1, grey)["psnr"]  # Y changes by 219/255 of a level
    assert step == pytest.approx(-10 * math.log10((219 / 255**2) ** 2 + 1e-8), abs=1e-4)
    assert "eps1e-8" in same.protocols["psnr"]
    assert "rounded" in same.protocols["ssim"]
    assert "nonnegative" in same.protocols["ssim"]


def test_rounded_ssim_counts_inverted_structure_as_none():
    x = noise(1, 1, 24, 24)
    inverted = 1 - x
    assert SSIM()(x, inverted).item() < -0.5
    assert RoundedSSIM(channels="y")(x, inverted).item() == pytest.approx(0, abs=0.01)
    # Where no term is negative the two differ by the rounding of Y alone; grey has none.
    close = (x + 0.02 * noise(1, 1, 24, 24, seed=1)).clamp(0, 1)
    torch.testing.assert_close(RoundedSSIM()(x, close), SSIM()(x, close))
    rgb, near = noise(1, 3, 24, 24), noise(1, 3, 24, 24) * 0.98
    gap = (RoundedSSIM(channels="y")(rgb, near) - SSIM(channels="y")(rgb, near)).abs().item()
    assert 0 < gap < 1e-3


# --- folders -------------------------------------------------------------------------------------


def test_an_unpaired_picture_is_named_whichever_folder_it_is_in(tmp_path):
    outputs = folder(tmp_path / "out", ["a.png", "c.png"])
    references = folder(tmp_path / "gt", ["a.png", "b.png"])
    with pytest.raises(ValueError, match=r"gt/b\.png has no partner b\.\* in .*out \(2 pictures"):
        evaluate_folder(outputs, references, metrics=("psnr",))
    (references / "b.png").unlink()
    with pytest.raises(ValueError, match=r"out/c\.png has no partner c\.\* in .*gt \(1 pictures"):
        evaluate_folder(outputs, references, metrics=("psnr",))


def test_wrong_folders_metrics_and_sizes_are_told(tmp_path):
    outputs = folder(tmp_path / "out", ["a.png"])
    small = folder(tmp_path / "small", ["a.png"], side=16)
    with pytest.raises(ValueError, match=r"is 32x32, its reference .* 16x16 pixels"):
        evaluate_folder(outputs, small, metrics=("psnr",))
    with pytest.raises(ValueError, match="unknown metric 'dists'; known: psnr, ssim"):
        evaluate_folder(outputs, small, metrics=("dists",))
    with pytest.raises(ValueError, match="fid compares with references"):
        evaluate_folder(outputs, metrics=("fid",))
    with pytest.raises(ValueError, match="ssim compares with a reference"):
        Scorer(("ssim",))(noise(3, 32, 32))
    with pytest.raises(ValueError, match="unknown metric 'fid' of single pictures"):
        Scorer(("fid",))
    with pytest.raises(FileNotFoundError, match="nowhere is not a folder"):
        evaluate_folder(tmp_path / "nowhere", small)
    with pytest.raises(ValueError, match=r"a\.png: NIQE needs two blocks"):
        evaluate_folder(outputs)
    write_image(noise(3, 32, 32), outputs / "a.bmp")
    with pytest.raises(ValueError, match=r"a\.bmp and a\.png have one name"):
        evaluate_folder(outputs, small, metrics=("psnr",))


# --- scores without a reference, through a stand-in for pyiqa ------------------------------------


def pyiqa_with(create_metric):
    return types.SimpleNamespace(__version__="9.8.7", create_metric=create_metric)


def test_pyiqa_gets_rgb_floats_of_the_files_and_its_version_is_part_of_the_protocol(
    tmp_path, monkeypatch
):
    made = []

    def create_metric(name, device):
        made.append((name, str(device)))
        return lambda image: image.mean(dim=(1, 2, 3))[:, None]  # (B, 1), as pyiqa returns

    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa_with(create_metric))
    outputs = folder(tmp_path / "out", ["a.png", "b.png"])
    scores = evaluate_folder(outputs, metrics=("musiq", "clipiqa"))
    assert made == [("musiq", "cpu"), ("clipiqa", "cpu")]  # once, not once a picture
    assert scores.images["a"]["musiq"] == pytest.approx(read_image(outputs / "a.png").mean().item())
    assert scores.protocols["musiq"] == "MUSIQ KonIQ-10k uint8 pyiqa 9.8.7 float32"
    grey = torch.full((1, 8, 8), 51, dtype=torch.uint8)
    assert NoReference("maniqa")(grey).tolist() == pytest.approx([0.2])
    with pytest.raises(ValueError, match="unknown score 'brisque'"):
        NoReference("brisque")  # type: ignore[arg-type]


def test_without_pyiqa_or_its_weights_the_error_says_how_they_are_had(tmp_path, monkeypatch):
    outputs = folder(tmp_path / "out", ["a.png"])
    monkeypatch.setitem(sys.modules, "pyiqa", None)
    with pytest.raises(ImportError, match=r"musiq needs the package pyiqa .*papers-shared\[iqa\]"):
        evaluate_folder(outputs, metrics=("musiq",))

    def incomplete(name, device):
        raise ModuleNotFoundError("No module named 'pkg_resources'")

    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa_with(incomplete))
    with pytest.raises(ImportError, match=r"behind pyiqa \(No module named 'pkg_resources'\)"):
        evaluate_folder(outputs, metrics=("clipiqa",))

    def create_metric(name, device):
        raise OSError("no route to host\nand more")

    monkeypatch.setitem(sys.modules, "pyiqa", pyiqa_with(create_metric))
    with pytest.raises(
        FileNotFoundError, match=r"weights .* \(no route to host\); run `pyiqa musiq"
    ):
        evaluate_folder(outputs, metrics=("musiq",))


# --- Frechet distance ----------------------------------------------------------------------------


def whitened(n, d, *, seed):
    """Features whose mean is 0 and whose covariance is the identity, exactly."""
    x = torch.randn(n, d, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    x = x - x.mean(0)
    return x @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(x.T))).T


def test_frechet_distance_of_commuting_covariances_is_its_closed_form():
    a, b = torch.tensor([1.0, 4.0, 9.0]).double(), torch.tensor([4.0, 0.25, 9.0]).double()
    rotation = torch.linalg.qr(whitened(50, 3, seed=2)[:3])[0]
    mean = torch.tensor([1.0, -2.0, 0.5]).double()
    first = (whitened(50, 3, seed=0) * a.sqrt()) @ rotation
    second = (whitened(70, 3, seed=1) * b.sqrt()) @ rotation + mean
    expected = mean.square().sum() + (a.sqrt() - b.sqrt()).square().sum()
    assert frechet_distance(first, second) == pytest.approx(expected.item(), abs=1e-9)


def test_frechet_distance_of_any_covariances_is_that_of_the_matrix_square_root():
    linalg = pytest.importorskip("scipy.linalg")
    mix = torch.randn(2, 4, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    first, second = whitened(60, 4, seed=4) @ mix[0], whitened(60, 4, seed=5) @ mix[1] + 1
    cov_1, cov_2 = torch.cov(first.T), torch.cov(second.T)
    root = torch.from_numpy(linalg.sqrtm((cov_1 @ cov_2).numpy()).real)
    expected = 4 + cov_1.trace() + cov_2.trace() - 2 * root.trace()
    assert frechet_distance(first, second) == pytest.approx(expected.item(), rel=1e-9)
    assert frechet_distance(second, first) == pytest.approx(expected.item(), rel=1e-9)


def test_frechet_distance_with_fewer_vectors_than_channels():
    x = noise(5, 40).double()
    assert frechet_distance(x, x) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(x, x + 2) == pytest.approx(4 * 40, rel=1e-9)  # a shift alone
    with pytest.raises(ValueError, match="two vectors at least, got 1 and 5"):
        frechet_distance(x[:1], x)
    with pytest.raises(ValueError, match=r"expected features \(n, d\)"):
        frechet_distance(x, x[:, :3])
    with pytest.raises(ValueError, match="finite"):
        frechet_distance(x, x / 0)


def torch_fidelity_with(extractor):
    module = types.SimpleNamespace(FeatureExtractorInceptionV3=extractor)
    package = types.SimpleNamespace(feature_extractor_inceptionv3=module)
    return {
        "torch_fidelity": package,
        "torch_fidelity.feature_extractor_inceptionv3": module,
    }


class MeanColours(torch.nn.Module):
    """Stands for the Inception network: uint8 in, a tuple of features out."""

    def __init__(self, name, features_list, feature_extractor_weights_path=None):
        super().__init__()
        assert features_list == ["2048"]

    def forward(self, picture):
        assert picture.dtype == torch.uint8
        return (picture.float().mean(dim=(2, 3)),)


def test_fid_of_two_folders_needs_neither_pairs_nor_sizes(tmp_path, monkeypatch):
    for name, module in torch_fidelity_with(MeanColours).items():
        monkeypatch.setitem(sys.modules, name, module)
    outputs = folder(tmp_path / "out", ["a.png", "b.png", "c.png"])
    others = folder(tmp_path / "others", ["x.png", "y.png"], side=16, seed=9)
    scores = evaluate_folder(outputs, others, metrics=("fid",))
    means = [
        torch.stack([255 * read_image(p).mean(dim=(1, 2)) for p in list_images(f)])
        for f in (outputs, others)
    ]
    assert scores.means == {"fid": pytest.approx(frechet_distance(*means), rel=1e-4)}
    assert "TF1 bilinear 299x299" in scores.protocols["fid"]
    with pytest.raises(ValueError, match="no partner"):
        evaluate_folder(outputs, others, metrics=("psnr", "fid"))


def test_without_torch_fidelity_or_its_weights_the_error_says_how_they_are_had(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch_fidelity", None)
    with pytest.raises(ImportError, match=r"torch-fidelity .*papers-shared\[iqa\]"):
        Inception()
    with pytest.raises(
        FileNotFoundError, match=r"missing\.pth is not a file; expected weights-inc"
    ):
        Inception(weights="missing.pth")

    def unreachable(*args, **kwargs):
        raise OSError("no route to host")

    for name, module in torch_fidelity_with(unreachable).items():
        monkeypatch.setitem(sys.modules, name, module)
    with pytest.raises(FileNotFoundError, match=r"no route to host\); take it from .*weights=FILE"):
        Inception()


def test_importing_the_metrics_loads_none_of_the_packages_behind_them():
    heavy = ("lpips", "basicsr", "pyiqa", "torch_fidelity", "torchvision")
    code = (
        f"import sys, papers_shared.metrics.folder; print([m for m in {heavy} if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_psnr_of_the_folder_is_the_float_protocol_of_basicsr():
    x, y = noise(1, 3, 24, 24), noise(1, 3, 24, 24, seed=1)
    eight_bit = [(255 * t).round() / 255 for t in (x, y)]
    value = Scorer(("psnr",))(x[0], y[0])["psnr"]
    assert value == pytest.approx(PSNR(channels="y", quantize=False)(*eight_bit).item(), abs=1e-4)
