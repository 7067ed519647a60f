import json
import math
import os
from pathlib import Path

import pytest
import torch

from papers_shared.images import read_image
from papers_shared.metrics.parity import checks
from papers_shared.metrics.restoration import LPIPS, NIQE, PSNR, SSIM
from papers_shared.parity import CannotRun

needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)
RECORDING = json.loads((Path(__file__).parent / "golden/basicsr_metrics.json").read_text())


def noise(*shape, seed=0):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


CASES = list(checks(RECORDING))


@pytest.mark.parametrize(("case", "run"), CASES, ids=[case for case, _ in CASES])
def test_recorded_values_of_basicsr(case, run):
    try:
        parts = list(run())
    except CannotRun as reason:
        pytest.skip(str(reason))
    assert parts
    for part, error, tolerance in parts:
        assert error <= tolerance, part


def test_a_known_offset_has_its_psnr():
    x = torch.full((2, 3, 16, 16), 100, dtype=torch.uint8)
    expected = 20 * math.log10(255 / 5)
    torch.testing.assert_close(PSNR()(x, x + 5), torch.full((2,), expected, dtype=torch.float64))
    weight = (65.481 + 128.553 + 24.966) / 255  # a grey step of 1 changes Y by this much
    y = PSNR(channels="y")(x, x + 5)[0].item()
    assert y == pytest.approx(20 * math.log10(255 / (5 * weight)), abs=1e-4)


def test_equal_images_are_infinitely_good():
    x = noise(2, 3, 20, 20)
    assert PSNR()(x, x).tolist() == [math.inf, math.inf]
    assert PSNR(quantize=False)(x, x).tolist() == pytest.approx([80, 80])
    torch.testing.assert_close(SSIM()(x, x), torch.ones(2, dtype=torch.float64))


@pytest.mark.parametrize("metric", [PSNR(), SSIM(channels="y"), SSIM(quantize=False)])
def test_a_batch_equals_its_images_and_the_order_of_a_pair_is_free(metric):
    x, y = noise(3, 3, 24, 20), noise(3, 3, 24, 20, seed=1)
    assert metric(x, y).shape == (3,)
    one_by_one = torch.cat([metric(a, b) for a, b in zip(x, y, strict=True)])
    torch.testing.assert_close(metric(x, y), one_by_one)
    torch.testing.assert_close(metric(x, y), metric(y, x))


def test_uint8_and_the_floats_it_stands_for_are_the_same_image():
    x, y = ((noise(1, 3, 24, 24, seed=s) * 255).byte() for s in (0, 1))
    for channels in ("rgb", "y"):
        for kind in (PSNR, SSIM):
            metric = kind(channels=channels)
            assert torch.equal(metric(x, y), metric(x / 255, y / 255))


def test_the_border_is_not_compared():
    x = noise(1, 3, 24, 24)
    y = x.clone()
    y[..., :4] = 0
    assert PSNR()(x, y).item() < 30
    assert PSNR(crop_border=4)(x, y).item() == math.inf


def test_grey_images_are_their_own_luma():
    x, y = noise(1, 1, 24, 24), noise(1, 1, 24, 24, seed=1)
    assert torch.equal(PSNR(channels="y")(x, y), PSNR()(x, y))


def test_ssim_is_scikit_image_s_with_the_gaussian_window():
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    x, y = ((noise(3, 40, 33, seed=s) * 255).byte() for s in (0, 1))
    theirs = structural_similarity(
        x.permute(1, 2, 0).numpy(),
        y.permute(1, 2, 0).numpy(),
        channel_axis=2,
        data_range=255,
        gaussian_weights=True,
        sigma=1.5,
        use_sample_covariance=False,
    )
    assert SSIM()(x, y).item() == pytest.approx(theirs, abs=1e-12)


def test_every_metric_names_its_protocol():
    assert PSNR(channels="y", crop_border=4).protocol == "PSNR-Y bt601 crop4 uint8"
    assert PSNR(quantize=False).protocol == "PSNR-RGB crop0 float eps1e-8"
    assert SSIM(crop_border=2).protocol == "SSIM-RGB crop2 uint8 gaussian11 sigma1.5"
    assert LPIPS().protocol == "LPIPS-alex v0.1"
    assert NIQE().protocol.startswith("NIQE-Y bt601 crop0 uint8")


@pytest.mark.parametrize("metric", [PSNR(), SSIM(), LPIPS()])
def test_different_shapes_are_refused(metric):
    with pytest.raises(ValueError, match="must have one shape"):
        metric(noise(1, 3, 24, 24), noise(1, 3, 24, 25))


def test_impossible_settings_are_refused():
    x = noise(1, 3, 12, 12)
    with pytest.raises(ValueError, match="leaves nothing"):
        PSNR(crop_border=6)(x, x)
    with pytest.raises(ValueError, match="at least 11x11"):
        SSIM(crop_border=1)(x, x)
    with pytest.raises(ValueError, match="rgb or y"):
        PSNR(channels="yuv")
    with pytest.raises(ValueError, match="1 or 3 channels"):
        PSNR()(noise(1, 4, 12, 12), noise(1, 4, 12, 12))
    with pytest.raises(ValueError, match="alex, squeeze or vgg"):
        LPIPS("resnet")
    with pytest.raises(ValueError, match="at least 32x32"):
        LPIPS()(x, x)


@pytest.mark.parametrize("size", [(96, 191), (191, 96), (95, 400)])
def test_niqe_needs_two_blocks(size):
    with pytest.raises(ValueError, match="two blocks"):
        NIQE()(noise(3, *size))


@needs_mirror
def test_lpips_of_the_authors_example():
    pytest.importorskip("lpips")
    from papers_shared import assets

    folder = assets.fetch("lpips_examples").path
    reference, *distorted = (read_image(folder / f"ex_{n}.png") for n in ("ref", "p0", "p1"))
    metric = LPIPS("alex")
    values = metric(torch.stack(distorted), reference[None].expand(2, -1, -1, -1))
    assert [round(v, 3) for v in values.tolist()] == [0.722, 0.138]
    assert metric(reference, reference).item() == 0


@needs_mirror
def test_lpips_refuses_the_backbone_of_another_network():
    pytest.importorskip("lpips")
    from papers_shared import assets

    wrong = assets.fetch("lpips_squeezenet1_1_features").path
    with pytest.raises(ValueError, match="LPIPS-alex"):
        LPIPS("alex", features=wrong)(noise(1, 3, 40, 40), noise(1, 3, 40, 40))


# --- the reader of recordings


def altered(section, **changes):
    """The recording's first case of a section, changed."""
    case = {**RECORDING[section][0], **changes}
    return {"tolerance": RECORDING["tolerance"], section: [case]}


def run_only(recording):
    ((_, run),) = checks(recording)
    return list(run())


def test_an_unknown_section_is_a_failing_case():
    with pytest.raises(ValueError, match="no reader for section 'lpips'"):
        run_only({"lpips": [{"value": 1.0}]})


def test_an_unknown_key_is_a_failing_case():
    with pytest.raises(ValueError, match="cannot interpret the key 'ms_ssim_y'"):
        run_only(altered("psnr_ssim", ms_ssim_y=0.5))
    with pytest.raises(ValueError, match="cannot interpret"):
        run_only(altered("imresize", input="float16 CHW"))


def test_a_changed_value_is_noticed():
    recording = altered("psnr_ssim", psnr_y=RECORDING["psnr_ssim"][0]["psnr_y"] + 0.01)
    assert any(error > tolerance for _, error, tolerance in run_only(recording))
    output = {**RECORDING["imresize"][0]["output"], "mean": 0.4}
    recording = altered("imresize", output=output)
    assert any(error > tolerance for _, error, tolerance in run_only(recording))
