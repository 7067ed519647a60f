"""Decoding, cropping, degrading; what a format says."""

from __future__ import annotations

import io

import numpy as np
import pytest
import torch
from PIL import Image

from genimage.augment import jensen_shannon_loss, random_resized_crop
from genimage.degradations import PAPER, BlurJpeg, Degradation, jpeg
from genimage.formats import jpeg_quality, read_format
from genimage.index import Entry
from genimage.loading import Matching
from genimage.pictures import (
    Geometry,
    Unreadable,
    as_rgb,
    decode,
    decode_jpeg,
    open_header,
    to_tensor,
)
from genimage.spectrum import band_mask, log_spectrum


def encoded(picture: Image.Image, kind: str, **options) -> bytes:
    stream = io.BytesIO()
    picture.save(stream, kind, **options)
    return stream.getvalue()


@pytest.mark.parametrize(
    ("mode", "kind"),
    [("CMYK", "JPEG"), ("L", "JPEG"), ("P", "GIF"), ("RGBA", "PNG"), ("LA", "PNG"), ("1", "PNG")],
)
def test_every_mode_becomes_rgb(mode, kind, make_picture) -> None:
    picture = decode(encoded(make_picture(1).convert(mode), kind))
    assert (picture.mode, picture.size) == ("RGB", (40, 36))


def test_sixteen_bits_keep_their_upper_half() -> None:
    array = np.full((5, 4), 0x80FF, dtype=np.uint16)
    assert to_tensor(decode(encoded(Image.fromarray(array), "PNG"))).unique().tolist() == [0x80]


@pytest.mark.parametrize("data", [b"", b"hello, world"])
def test_what_is_no_picture_is_unreadable(data) -> None:
    with pytest.raises(Unreadable):
        decode(data)


def test_a_truncated_picture_is_unreadable(make_picture) -> None:
    for kind in ("PNG", "JPEG"):
        data = encoded(make_picture(1, (200, 200)), kind)
        open_header(data[: len(data) // 2])  # the header is whole
        with pytest.raises(Unreadable):
            decode(data[: len(data) // 2])


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged tags
@pytest.mark.parametrize("kind", ["GIF", "TIFF"])
def test_a_cut_animation_is_unreadable_or_whole_whatever_pillow_raises(kind, make_picture) -> None:
    first, *others = [make_picture(i, (12, 10)).convert("P") for i in range(3)]
    data = encoded(first, kind, save_all=True, append_images=others)
    refused = 0
    for end in range(1, len(data), 11):
        try:
            with open_header(data[:end]) as picture:
                read_format(picture, end)
                as_rgb(picture)
        except Unreadable:
            refused += 1
    assert refused > 20


def test_a_jpeg_without_tables_is_unreadable(make_picture) -> None:
    data = encoded(make_picture(1), "JPEG")
    while (at := data.find(b"\xff\xdb")) >= 0:
        data = data[:at] + data[at + 2 + int.from_bytes(data[at + 2 : at + 4]) :]
    with pytest.raises(Unreadable, match="without quantization tables"):
        read_format(open_header(data), len(data))


def test_a_huge_picture_is_refused_before_it_is_decoded() -> None:
    huge = encoded(Image.new("1", (20_000, 10_000)), "PNG")
    with pytest.raises(Unreadable, match="pixels"):
        decode(huge)


@pytest.mark.parametrize("size", [(300, 200), (200, 333), (97, 241), (224, 224)])
@pytest.mark.parametrize(("resize", "how"), [(235, "BICUBIC"), (128, "BILINEAR"), (None, "")])
def test_resize_and_crop_are_torchvisions_to_within_a_level(size, resize, how, make_picture):
    from torchvision.transforms import v2

    picture = make_picture(4, size)
    if resize is None:
        theirs = v2.CenterCrop(90)(picture)
        ours = Geometry(90)(picture)
    else:
        mode = v2.InterpolationMode[how]
        theirs = v2.CenterCrop(120)(v2.Resize(resize, interpolation=mode, antialias=True)(picture))
        ours = Geometry(120, resize, interpolation=how.lower())(picture)
    difference = (ours.int() - to_tensor(theirs).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.06


def test_both_decoders_of_jpegs_give_the_same_values(make_picture) -> None:
    for options in ({"quality": 96, "subsampling": 0}, {"quality": 50}, {"progressive": True}):
        data = encoded(make_picture(6, (101, 67)), "JPEG", **options)
        fast = decode_jpeg(data)
        assert fast is not None
        assert torch.equal(fast, to_tensor(decode(data)))
    assert decode_jpeg(data[:-200]) is None  # torchvision would fill it up
    assert decode_jpeg(b"no picture \xff\xd9") is None


def test_a_picture_too_small_for_the_crop_is_enlarged(make_picture) -> None:
    assert Geometry(64)(make_picture(1)).shape == (3, 64, 64)
    assert (
        Geometry(64, 80, square=True, interpolation="plain")(make_picture(1)).shape[1:] == (64,) * 2
    )


def test_crops_are_spread_and_lie_inside(make_picture) -> None:
    geometry = Geometry(32, crops=6)
    offsets = geometry.offsets(100, 64)
    assert len(set(offsets)) == 6
    assert len(geometry.offsets(32, 32)) == len(geometry.offsets(32, 4000)) == 6
    assert all(0 <= x <= 68 and 0 <= y <= 32 for x, y in offsets)
    assert geometry(make_picture(1, (100, 64))).shape == (6, 3, 32, 32)


@pytest.mark.parametrize("text", PAPER)
def test_the_papers_degradations_run(text, make_picture) -> None:
    picture = make_picture(2, (150, 130), smooth=True)
    degraded = Degradation.parse(text)(picture)
    assert str(Degradation.parse(text)) == text
    if text.startswith("lr"):
        assert min(degraded.size) == int(text[3:])
    else:
        assert degraded.size == picture.size
        assert not torch.equal(to_tensor(degraded), to_tensor(picture))


@pytest.mark.parametrize("text", ["jpeg", "jpeg:0", "jpeg:101", "noise:3", "blur:-1", "lr:x"])
def test_other_degradations_are_refused(text) -> None:
    with pytest.raises(ValueError, match="expected lr"):
        Degradation.parse(text)


def test_blur_and_jpeg_follow_their_generator_and_probability(make_picture) -> None:
    picture = make_picture(3)

    def run(probability: float, seed: int) -> torch.Tensor:
        return to_tensor(BlurJpeg(probability)(picture, np.random.default_rng(seed)))

    assert torch.equal(run(0, 1), to_tensor(picture))
    assert torch.equal(run(1, 1), run(1, 1))
    assert not torch.equal(run(1, 1), run(1, 2))


@pytest.mark.parametrize("quality", [5, 30, 50, 65, 75, 90, 96, 100])
def test_quality_and_subsampling_are_read_from_the_file(quality, make_picture) -> None:
    for subsampling, name in ((0, "4:4:4"), (2, "4:2:0")):
        data = encoded(make_picture(1), "JPEG", quality=quality, subsampling=subsampling)
        facts = read_format(open_header(data), len(data))
        assert (facts.quality, facts.distance, facts.subsampling) == (quality, 0, name)
    progressive = encoded(make_picture(1), "JPEG", progressive=True)
    assert read_format(open_header(progressive), 1).progressive


def test_tables_of_another_encoder_have_a_distance() -> None:
    quality, distance = jpeg_quality([17] * 64)
    assert 1 <= quality <= 100
    assert distance > 0


def entry(**changes) -> Entry:
    values = {
        "path": "a",
        "subset": "x",
        "mode": "val",
        "label": 1,
        "class_id": None,
        "width": 40,
        "height": 36,
        "quality": None,
        "format": "PNG",
        "subsampling": "",
        "bytes": 1,
        "shard": "",
        "offset": 0,
        "status": "ok",
    }
    return Entry(**(values | changes))


def test_matching_compresses_both_classes_twice_and_crops_to_one_size(make_picture) -> None:
    real = entry(label=0, quality=80, subsampling="4:2:0", format="JPEG", height=30)
    matching, kept = Matching.of([entry(), real])
    assert (matching.crop, matching.first, len(kept)) == (30, ((80, 2),), 2)
    picture = make_picture(5)
    once = jpeg(picture, 80, subsampling=2)
    box = (5, 3, 35, 33)
    expected = jpeg(once.crop(box), 96, subsampling=0)
    assert torch.equal(to_tensor(matching(picture, entry())), to_tensor(expected))
    # A file that was a JPEG already is not compressed a third time.
    expected = jpeg(picture.crop(box), 96, subsampling=0)
    assert torch.equal(to_tensor(matching(picture, real)), to_tensor(expected))


def test_a_few_small_files_do_not_decide_on_the_crop_and_are_counted() -> None:
    real = [entry(label=0, width=500, height=375)] * 40 + [entry(label=0, width=60, height=80)] * 2
    generated = [entry(width=512, height=512)] * 40
    matching, kept = Matching.of([*real, *generated])
    assert (matching.crop, len(kept)) == (375, 80)
    assert "2 smaller files left out" in str(matching)
    matching, kept = Matching.of([*generated, *generated])
    assert (matching.crop, len(kept)) == (512, 80)
    assert "left out" not in str(matching)


def test_bands_of_a_spectrum_share_it_without_overlap() -> None:
    masks = [band_mask(band, 224) for band in ("low", "middle", "high")]
    assert torch.equal(sum(m.int() for m in masks), torch.ones(224, 224, dtype=torch.int))
    images = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8)
    parts = [log_spectrum(images, band=band) for band in ("low", "middle", "high")]
    assert torch.allclose(sum(parts), log_spectrum(images))
    with pytest.raises(ValueError, match="no band"):
        band_mask("lowest", 8)


def test_augmix_loss_is_the_cross_entropy_when_splits_agree() -> None:
    logits = torch.randn(5, 2)
    labels = torch.tensor([0, 1, 1, 0, 1])
    equal = jensen_shannon_loss(logits[:, None].expand(5, 3, 2), labels, smoothing=0.0)
    assert equal.item() == pytest.approx(
        torch.nn.functional.cross_entropy(logits, labels).item(), abs=1e-5
    )
    different = jensen_shannon_loss(torch.randn(5, 3, 2), labels, smoothing=0.0)
    assert different > 0


def test_a_random_crop_has_its_size_and_follows_its_generator(make_picture) -> None:
    picture = make_picture(1, (90, 60))
    views = [
        to_tensor(random_resized_crop(picture, 32, torch.Generator().manual_seed(s)))
        for s in (1, 1, 2)
    ]
    assert views[0].shape == (3, 32, 32)
    assert torch.equal(views[0], views[1])
    assert not torch.equal(views[0], views[2])
