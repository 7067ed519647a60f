import dataclasses
import json
import math
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch
from torch.nn import functional

from papers_shared._basicsr import basicsr_module
from papers_shared.data.degradation_stages import Noise, add_noise, blur, jpeg
from papers_shared.data.degradations import blur_kernel
from papers_shared.data.face_degradation import FaceConfig, degrade_face
from papers_shared.data.parity import degradation_parts
from papers_shared.data.real_esrgan import TESTING, TRAINING, apply, degrade, draw

try:
    basicsr_module("data.degradations")
except ImportError as reason:
    pytest.skip(str(reason), allow_module_level=True)

RECORDING = json.loads((Path(__file__).parent / "golden/resshift.json").read_text())


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def pictures(count, side=64, seed=0):
    """Smooth shapes with some texture: neither flat nor noise."""
    coarse = torch.rand(count, 3, 6, 6, generator=seeded(seed))
    fine = torch.rand(count, 3, side, side, generator=seeded(seed + 1))
    smooth = functional.interpolate(coarse, size=side, mode="bilinear")
    return (0.8 * smooth + 0.2 * fine).clamp(0, 1)


# --------------------------------------------------------------------------- pairs


def test_a_seed_gives_the_same_pair_in_any_batch():
    gt = pictures(6)
    _, together = degrade(gt, generators=[10, 11, 12, 13, 14, 15])
    for index in range(6):
        _, alone = degrade(gt[index : index + 1], generators=10 + index)
        assert torch.equal(alone[0], together[index])
    _, turned = degrade(gt.flip(0), generators=[seeded(s) for s in (15, 14, 13, 12, 11, 10)])
    assert torch.equal(turned.flip(0), together)
    assert len({row.numpy().tobytes() for row in together}) == 6


def test_global_generators_neither_matter_nor_move():
    gt = pictures(4)
    torch.manual_seed(1)
    before = torch.get_rng_state()
    _, first = degrade(gt, generators=[0, 1, 2, 3])
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(degrade(gt, generators=[0, 1, 2, 3])[1], first)


@pytest.mark.parametrize(("config", "scale"), [(TRAINING, 4), (TRAINING, 2), (TESTING, 4)])
def test_lq_is_8_bit_in_range_and_of_the_size_gt_over_scale(config, scale):
    gt = pictures(8)[..., :56]
    same, lq = degrade(gt, config=config, scale=scale, generators=range(8))
    assert same is gt
    assert lq.shape == (8, 3, 64 // scale, 56 // scale)
    assert lq.min() >= 0
    assert lq.max() <= 1
    assert torch.equal(lq, (lq * 255).round() / 255)


def test_what_cannot_be_degraded_is_refused():
    gt = pictures(2)
    with pytest.raises(ValueError, match="2 samples need as many generators or seeds, got 1"):
        degrade(gt, generators=3)
    with pytest.raises(ValueError, match="multiples of the scale 4"):
        degrade(gt[..., :62], generators=[0, 1])
    with pytest.raises(ValueError, match=r"52x52 is too small .* side of 54"):
        degrade(gt[..., :52, :52], generators=[0, 1])
    with pytest.raises(ValueError, match="expected values in"):
        degrade(gt * 255, generators=[0, 1])
    with pytest.raises(ValueError, match="expected values in"):
        degrade(gt / 0, generators=[0, 1])
    with pytest.raises(ValueError, match="RGB floats"):
        degrade(gt[:, :1], generators=[0, 1])


def test_the_smallest_side_is_enough_for_every_draw():
    smallest = math.ceil(TRAINING.smallest_side(4) / 4) * 4
    gt = pictures(1, side=smallest)
    second = dataclasses.replace(TRAINING.second, blur_probability=1.0)
    first = dataclasses.replace(
        TRAINING.first, resize_range=(0.15, 1.5), resize_probabilities=(0, 1, 0)
    )
    harshest = dataclasses.replace(TRAINING, first=first, second=second, second_probability=1.0)
    for seed in range(30):
        recipe = draw(harshest, seeded(seed))
        shrunk = dataclasses.replace(recipe, first=dataclasses.replace(recipe.first, scale=0.15))
        assert apply(gt[0], shrunk, scale=4).shape == (3, smallest // 4, smallest // 4)


# --------------------------------------------------------------------------- what is drawn


def test_draws_have_the_training_configuration_s_frequencies_and_ranges():
    recipes = [draw(TRAINING, seeded(seed)) for seed in range(1500)]
    second = [r.second for r in recipes if r.second is not None]

    def check(hits, total, probability):
        spread = math.sqrt(probability * (1 - probability) / total)
        assert abs(hits / total - probability) < 4 * spread

    check(len(second), 1500, 0.5)
    check(sum(s.kernel is not None for s in second), len(second), 0.8)
    check(sum(r.final_kernel is not None for r in recipes), 1500, 0.8)
    check(sum(r.resize_first for r in recipes), 1500, 0.5)
    for orders, (up, down, keep), resizes, gaussian, poisson, size in (
        ([r.first for r in recipes], (0.2, 0.7, 0.1), (0.15, 1.5), (1, 30), (0.05, 3), 21),
        (second, (0.3, 0.4, 0.3), (0.3, 1.2), (1, 25), (0.05, 2.5), 15),
    ):
        check(sum(o.scale > 1 for o in orders), len(orders), up)
        check(sum(o.scale < 1 for o in orders), len(orders), down)
        check(sum(o.scale == 1 for o in orders), len(orders), keep)
        check(sum(o.noise.kind == "gaussian" for o in orders), len(orders), 0.5)
        check(sum(o.noise.grey for o in orders), len(orders), 0.4)
        for mode in ("area", "bilinear", "bicubic"):
            check(sum(o.mode == mode for o in orders), len(orders), 1 / 3)
        for values, (low, high) in (
            ([o.scale for o in orders], resizes),
            ([o.noise.level for o in orders if o.noise.kind == "gaussian"], gaussian),
            ([o.noise.level for o in orders if o.noise.kind == "poisson"], poisson),
        ):
            assert low <= min(values) < low + 0.1 * (high - low)
            assert high - 0.1 * (high - low) < max(values) <= high
        kernels = [o.kernel for o in orders if o.kernel is not None]
        assert {tuple(k.shape) for k in kernels} == {(size, size)}
        assert all(k.sum().item() == pytest.approx(1) for k in kernels)
        # At most: the narrowest kernels' outer values underflow to zero.
        sizes = Counter(extent(k) for k in kernels)
        assert max(sizes) == size - 2
        assert set(range(3, size, 2)) <= set(sizes)
    for values in ([r.jpeg for r in recipes], [r.final_jpeg for r in recipes]):
        assert 30 <= min(values) < 31
        assert 94 < max(values) <= 95
    assert len({o.noise.seed for o in second}) == len(second)


def extent(kernel):
    """Side of a kernel without the zeros around it."""
    centre = kernel.shape[-1] // 2
    used = kernel.abs().nonzero()
    return 2 * int((used - centre).abs().max()) + 1


def test_the_testing_configuration_has_one_order_and_is_milder():
    recipes = [draw(TESTING, seeded(seed)) for seed in range(200)]
    assert all(r.second is None for r in recipes)
    assert all(70 <= r.jpeg <= 95 and 80 <= r.final_jpeg <= 100 for r in recipes)
    gt = pictures(40)
    low = functional.interpolate(gt, scale_factor=0.25, mode="area")
    errors = {}
    for name, config in (("training", TRAINING), ("testing", TESTING)):
        lq = degrade(gt, config=config, generators=range(40))[1]
        errors[name] = (lq - low).square().mean().item()
    assert errors["testing"] < errors["training"]


# --------------------------------------------------------------------------- as basicsr computes


def reference(gt, recipe, scale):
    """The recipe by basicsr's functions, read from the fact sheet, not from ``apply``."""
    low = (gt.shape[-2] // scale, gt.shape[-1] // scale)
    degradations = basicsr_module("data.degradations")
    filter2d = basicsr_module("utils.img_process_util").filter2D
    codec = basicsr_module("utils.diffjpeg").DiffJPEG(differentiable=False)

    def noisy(image, noise):
        torch.manual_seed(noise.seed)
        kind = getattr(degradations, f"add_{noise.kind}_noise_pt")
        grey = torch.tensor([float(noise.grey)])
        # basicsr draws the grey and the colour noise both; grey comes first.
        return kind(image, torch.tensor([noise.level]), gray_noise=grey, clip=True, rounds=False)

    def compressed(image, quality):
        return codec(image.clamp(0, 1), quality=torch.tensor([quality])).detach()

    first, second, out = recipe.first, recipe.second, gt[None]
    out = filter2d(out, first.kernel[None].float())
    out = functional.interpolate(out, scale_factor=first.scale, mode=first.mode)
    out = compressed(noisy(out, first.noise), recipe.jpeg)
    if second is not None:
        if second.kernel is not None:
            out = filter2d(out, second.kernel[None].float())
        size = (int(low[0] * second.scale), int(low[1] * second.scale))
        out = noisy(functional.interpolate(out, size=size, mode=second.mode), second.noise)
    sinc = recipe.final_kernel
    for step in ("resize", "jpeg") if recipe.resize_first else ("jpeg", "resize"):
        if step == "jpeg":
            out = compressed(out, recipe.final_jpeg)
            continue
        out = functional.interpolate(out, size=low, mode=recipe.final_mode)
        out = out if sinc is None else filter2d(out, sinc[None].float())
    return (out[0] * 255).round().clamp(0, 255) / 255


@pytest.mark.parametrize("config", [TRAINING, TESTING])
def test_whole_recipes_match_basicsr_s_functions_applied_in_the_paper_s_order(config):
    gt = pictures(30)
    kinds, different, values = Counter(), 0, 0
    with torch.random.fork_rng():
        for index, image in enumerate(gt):
            recipe = draw(config, seeded(index))
            ours, theirs = apply(image, recipe, scale=4), reference(image, recipe, 4)
            different += (ours - theirs).abs().mul(255).round().count_nonzero().item()
            values += ours.numel()
            kinds.update([recipe.first.noise.kind, recipe.second is None, recipe.resize_first])
    # Kernels without their zeros add up in another order; a JPEG coefficient or an 8-bit level
    # at the edge of two may then fall to the other side.
    assert different / values < 1e-3
    assert min(kinds["gaussian"], kinds["poisson"], kinds[True]) > 3


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
@pytest.mark.parametrize("grey", [False, True])
def test_noise_is_basicsr_s_bit_for_bit(kind, grey):
    image = pictures(1)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        add = getattr(basicsr_module("data.degradations"), f"add_{kind}_noise_pt")
        expected = add(image, 2.0, gray_noise=torch.tensor([float(grey)]))
    noisy = add_noise(image, Noise(kind, 2.0, grey=grey, seed=5))
    torch.testing.assert_close(noisy, expected, rtol=0, atol=1e-6)
    assert (noisy - image).abs().max() > 0.01
    inside = ((noisy > 0) & (noisy < 1)).all(1, keepdim=True)
    added = (noisy - image)[inside.expand_as(noisy)].view(3, -1)
    assert ((added[0] - added[1]).abs().max() < 1e-5) == grey


def test_blur_is_basicsr_s_whatever_the_zeros_around_the_kernel():
    image = pictures(2)
    kernel = blur_kernel(
        "gaussian", kernel_size=7, sig_x=2.0, sig_y=0.7, theta=0.5, isotropic=False
    )
    padded = functional.pad(kernel, (7, 7, 7, 7))
    expected = basicsr_module("utils.img_process_util").filter2D(image, padded[None].float())
    torch.testing.assert_close(blur(image, padded), expected, rtol=0, atol=1e-6)
    delta = functional.pad(torch.ones(1, 1), (7, 7, 7, 7))
    assert torch.equal(blur(image, delta), image)
    with pytest.raises(ValueError, match="k odd"):
        blur(image, torch.ones(4, 4))


def test_jpeg_has_one_quality_an_image_and_none_is_infinite():
    image = pictures(3)
    together = jpeg(image, [30.0, 95.0, 100.0])
    for index, quality in enumerate((30.0, 95.0, 100.0)):
        torch.testing.assert_close(jpeg(image[index : index + 1], quality)[0], together[index])
    errors = (together - image).abs().mean((1, 2, 3))
    assert errors[0] > errors[1] > errors[2]
    grey = image.mean(1, keepdim=True).expand(-1, 3, -1, -1)  # no colour to subsample
    torch.testing.assert_close(jpeg(grey, 100), grey, rtol=0, atol=1e-3)
    with pytest.raises(ValueError, match="above 0 and at most 100"):
        jpeg(image, 0)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_gpu_gives_the_pairs_of_the_cpu():
    gt = pictures(8)
    _, expected = degrade(gt, generators=range(8))
    _, actual = degrade(gt.cuda(), generators=range(8))
    assert actual.is_cuda
    # JPEG coefficients on the edge may round to the other side.
    assert (actual.cpu() - expected).abs().mul(255).round().gt(1).float().mean() < 0.02
    # The codec of the CPU still works beside that of the GPU.
    assert torch.equal(degrade(gt, generators=range(8))[1], expected)


def test_without_basicsr_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "basicsr.data.degradations", None)
    with pytest.raises(ImportError, match=r"papers-shared\[basicsr\]|Python 3\.11 or 3\.12"):
        degrade(pictures(1), generators=0)


# --------------------------------------------------------------------------- faces


def test_face_pairs_keep_their_size_and_depend_on_the_seed_alone():
    gt = pictures(3, side=96)
    same, lq = degrade_face(gt, generators=[1, 2, 3])
    assert torch.equal(same, gt)
    assert lq.shape == gt.shape
    assert torch.equal(lq, (lq * 255).round() / 255)
    assert torch.equal(degrade_face(gt[1:2], generators=2)[1][0], lq[1])
    grey, grey_lq = degrade_face(gt, config=FaceConfig(grey_probability=1), generators=[1, 2, 3])
    for image in (grey, grey_lq):
        assert torch.equal(image[:, :1].expand(-1, 3, -1, -1), image)
    with pytest.raises(ValueError, match="too small"):
        degrade_face(gt[..., :20, :20], generators=[1, 2, 3])


# --------------------------------------------------------------------------- recordings


def test_the_recorded_primitives_are_matched():
    parts = list(degradation_parts(RECORDING["degradation"], tolerance=1e-4))
    assert len(parts) == 11
    for name, error, tolerance in parts:
        assert error <= tolerance, name


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("fn", "median_blur", "unknown function 'median_blur'"),
        ("args", {"differentiable": True, "quality": [35.0, 90.0]}, "differentiable"),
        ("args", {"differentiable": False, "grade": 3}, "grade"),
        ("input", {"of": "photo"}, "photo"),
        ("input", {"of": "image", "crop": 8}, "unknown 'crop'"),
        ("seed", 3, "unknown 'seed'"),
    ],
)
def test_recordings_that_are_not_understood_are_refused(key, value, message):
    section = dict(RECORDING["degradation"])
    name = next(n for n, e in section.items() if "fn" in e and e["fn"] == "DiffJPEG")
    section[name] = {**section[name], key: value}
    with pytest.raises(ValueError, match=message):
        list(degradation_parts(section, tolerance=1e-4))


def test_a_wrong_value_is_seen():
    section = json.loads(json.dumps(RECORDING["degradation"]))
    for entry in section["kernels"].values():
        entry["mean"] *= 1.1
    errors = [error for _, error, _ in degradation_parts(section, tolerance=1e-4)]
    assert sum(error > 1e-4 for error in errors) == len(section["kernels"])
    with pytest.raises(ValueError, match="no entry"):
        list(degradation_parts({"kind": "degradation"}, tolerance=1e-4))
