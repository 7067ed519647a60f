import os

import numpy as np
import pytest
import torch
from PIL import Image

from papers_shared.images import (
    from_pil,
    list_images,
    read_image,
    rgb_to_y,
    rgb_to_ycbcr,
    to_uint8,
    write_image,
    ycbcr_to_rgb,
)


def picture(channels=3, height=5, width=7, levels=256):
    generator = torch.Generator().manual_seed(channels)
    return torch.randint(levels, (channels, height, width), generator=generator).float() / (
        levels - 1
    )


@pytest.mark.parametrize("channels", [1, 3, 4])
@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_8_bit_images_come_back_unchanged(tmp_path, channels, suffix):
    image = picture(channels)
    write_image(image, tmp_path / f"a{suffix}")
    assert torch.equal(read_image(tmp_path / f"a{suffix}", mode="stored"), image)


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bit_images_come_back_unchanged(tmp_path, channels):
    pytest.importorskip("cv2")
    image = picture(channels, levels=65536)
    write_image(image, tmp_path / "a.png", bits=16)
    back = read_image(tmp_path / "a.png", mode="stored")
    torch.testing.assert_close(back, image, rtol=0, atol=1e-7)
    assert (back * 255).frac().abs().max() > 0.01  # more than 8 bits


def test_rounding_is_half_to_even_and_values_are_clamped():
    levels = torch.tensor([-3.0, 0.5, 1.5, 2.5, 300.0], dtype=torch.float64)
    assert to_uint8(levels / 255).tolist() == [0, 0, 2, 2, 255]


def test_modes_give_the_channels_they_name(tmp_path):
    image = picture(4)
    write_image(image, tmp_path / "rgba.png")
    write_image(image[:1], tmp_path / "grey.png")
    assert torch.equal(read_image(tmp_path / "rgba.png"), image[:3])
    assert torch.equal(read_image(tmp_path / "grey.png"), image[:1].expand(3, -1, -1))
    grey = read_image(tmp_path / "rgba.png", mode="grey")
    expected = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    torch.testing.assert_close(grey[0], expected)
    assert torch.equal(read_image(tmp_path / "grey.png", mode="rgba")[3], torch.ones_like(image[0]))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied(tmp_path, orientation):
    from PIL import ImageOps

    array = (picture() * 255).byte().permute(1, 2, 0).numpy()
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(array).save(tmp_path / "a.png", exif=exif)
    with Image.open(tmp_path / "a.png") as opened:
        upright = torch.from_numpy(np.array(ImageOps.exif_transpose(opened))).permute(2, 0, 1)
    assert torch.equal(to_uint8(read_image(tmp_path / "a.png")), upright)


@pytest.mark.parametrize("kind", ["grey16", "rgba", "palette", "turned"])
def test_an_open_picture_is_read_as_its_file_is(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "grey16":
        write_image(picture(1, levels=65536), path, bits=16)
    elif kind == "turned":
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.new("RGB", (4, 3), "red").save(path, exif=exif)
    else:
        write_image(picture(4), path)
        if kind == "palette":
            Image.open(path).convert("RGB").quantize(8).save(path)
    with Image.open(path) as opened:
        found = from_pil(opened)
    assert torch.equal(found, read_image(path))
    assert found.shape == ((3, 4, 3) if kind == "turned" else (3, 5, 7))


def test_palettes_animations_and_cmyk_are_read(tmp_path):
    colours = Image.fromarray((picture() * 255).byte().permute(1, 2, 0).numpy())
    colours.quantize(8).save(tmp_path / "palette.png")
    assert read_image(tmp_path / "palette.png", mode="stored").shape == (3, 5, 7)
    first, second = Image.new("RGB", (4, 4), "white"), Image.new("RGB", (4, 4), "black")
    first.save(tmp_path / "animation.gif", save_all=True, append_images=[second])
    assert torch.equal(read_image(tmp_path / "animation.gif"), torch.ones(3, 4, 4))
    Image.new("CMYK", (4, 4), (0, 0, 0, 255)).save(tmp_path / "cmyk.tif")
    assert torch.equal(read_image(tmp_path / "cmyk.tif"), torch.zeros(3, 4, 4))
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = torch.tensor([1.0, 0, 0])[:, None, None].expand(3, 8, 8)
    torch.testing.assert_close(read_image(tmp_path / "cmyk.jpg"), red, rtol=0, atol=0.02)


def test_the_content_tells_the_format_not_the_suffix(tmp_path):
    write_image(picture(), tmp_path / "a.png")
    (tmp_path / "a.png").rename(tmp_path / "a.jpeg")
    assert torch.equal(read_image(tmp_path / "a.jpeg"), picture())


def test_a_text_file_named_png_is_refused_in_one_line(tmp_path):
    (tmp_path / "a.png").write_text("no picture\nat all")
    with pytest.raises(ValueError, match=r"a\.png is not an image in a known format") as error:
        read_image(tmp_path / "a.png")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", [".png", ".jpg", ".webp"])
def test_truncated_files_are_refused(tmp_path, suffix):
    write_image(torch.rand(3, 64, 64), tmp_path / f"whole{suffix}")
    data = (tmp_path / f"whole{suffix}").read_bytes()
    (tmp_path / f"half{suffix}").write_bytes(data[: len(data) // 2])
    with pytest.raises(ValueError, match=f"half{suffix} cannot be decoded"):
        read_image(tmp_path / f"half{suffix}")


@pytest.mark.parametrize("progressive", [False, True])
def test_a_truncated_jpeg_is_read_as_far_as_it_goes_on_request(tmp_path, progressive):
    texture = torch.rand(3, 96, 64, generator=torch.Generator().manual_seed(0))
    array = to_uint8(texture).permute(1, 2, 0).numpy()
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    whole, half = tmp_path / "whole.jpg", tmp_path / "half.jpg"
    Image.fromarray(array).save(whole, progressive=progressive, exif=exif)
    data = whole.read_bytes()
    half.write_bytes(data[: len(data) * 3 // 4])
    with pytest.warns(UserWarning, match=r"half\.jpg is truncated, read as far as it goes"):
        found = read_image(half, truncated="warn")
    expected = read_image(whole, truncated="warn")  # no warning: it is whole
    assert found.shape == expected.shape == (3, 96, 64)
    if progressive:  # the first scans hold the coarse picture of all
        assert (found - expected).abs().mean() < (found.mean() - expected).abs().mean()
    else:
        assert torch.equal(found[:, 48:], expected[:, 48:])
    assert not torch.equal(found[:, :24], expected[:, :24])


def test_reading_truncated_files_on_request_does_not_hide_other_damage(tmp_path):
    write_image(torch.rand(3, 64, 64), tmp_path / "a.png")
    (tmp_path / "half.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    write_image(torch.rand(3, 64, 64), tmp_path / "a.jpg")
    (tmp_path / "header.jpg").write_bytes((tmp_path / "a.jpg").read_bytes()[:100])
    for name in ("half.png", "header.jpg"):
        with pytest.raises(ValueError, match=f"{name} cannot be decoded"):
            read_image(tmp_path / name, truncated="warn")
    with pytest.raises(ValueError, match="expected error or warn"):
        read_image(tmp_path / "a.jpg", truncated="keep")


@pytest.mark.skipif(not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set")
def test_realset65_is_read_with_its_odd_files():
    from papers_shared.assets import fetch

    folder = fetch("realset65").path
    # flower2.jpeg is a PNG with alpha; the data of vegetable1.jpeg stop early.
    shapes = {path.name: read_image(path).shape for path in list_images(folder)}
    assert len(shapes) == 65
    assert {shape[0] for shape in shapes.values()} == {3}
    assert shapes["vegetable1.jpeg"] == (3, 168, 219)
    assert read_image(folder / "flower2.jpeg", mode="stored").shape[0] == 4


def test_missing_files_and_empty_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing\.png is not a file"):
        read_image(tmp_path / "nothing.png")
    with pytest.raises(FileNotFoundError, match="holds no images"):
        list_images(tmp_path)
    with pytest.raises(FileNotFoundError, match="is not a folder"):
        list_images(tmp_path / "nothing")


def test_images_of_a_folder_are_sorted_and_only_images(tmp_path):
    for name in ("b.png", "a.JPG", "notes.txt"):
        (tmp_path / name).touch()
    assert [p.name for p in list_images(tmp_path)] == ["a.JPG", "b.png"]


@pytest.mark.parametrize(
    ("image", "name", "options", "message"),
    [
        (torch.zeros(2, 4, 4), "a.png", {}, "1, 3 or 4 channels"),
        (torch.full((3, 4, 4), torch.nan), "a.png", {}, "NaN"),
        (torch.zeros(3, 4, 4), "a.jpg", {"bits": 16}, "bits must be 8"),
        (torch.zeros(4, 4, 4), "a.jpg", {}, "use .png"),
        (torch.zeros(3, 4, 4), "a.xyz", {}, "use .png"),
    ],
)
def test_what_cannot_be_written_leaves_nothing_behind(tmp_path, image, name, options, message):
    with pytest.raises(ValueError, match=message):
        write_image(image, tmp_path / name, **options)
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_keeps_the_old_file_and_leaves_nothing_else(tmp_path, monkeypatch):
    write_image(torch.zeros(3, 4, 4), tmp_path / "a.png")
    old = (tmp_path / "a.png").read_bytes()

    def refuse(self, target):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.replace", refuse)
    with pytest.raises(OSError, match="Permission denied"):
        write_image(torch.ones(3, 4, 4), tmp_path / "a.png")
    assert (tmp_path / "a.png").read_bytes() == old
    assert [p.name for p in tmp_path.iterdir()] == ["a.png"]


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere"
)
def test_a_write_protected_folder_is_named(tmp_path):
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match=r"cannot write a\.png"):
        write_image(torch.zeros(3, 4, 4), tmp_path / "a.png")


# --- ITU-R BT.601


def test_white_black_and_grey_have_the_studio_range_s_luma():
    greys = torch.tensor([0.0, 0.5, 1.0]).expand(3, 1, 3)
    y, cb, cr = rgb_to_ycbcr(greys) * 255
    torch.testing.assert_close(y, torch.tensor([[16.0, 125.5, 235.0]]))
    torch.testing.assert_close(torch.stack([cb, cr]), torch.full((2, 1, 3), 128.0))


def test_uint8_is_rounded_and_float_is_not():
    image = picture()
    whole = to_uint8(image)
    assert torch.equal(rgb_to_ycbcr(whole), to_uint8(rgb_to_ycbcr(image.double())))
    assert torch.equal(rgb_to_y(whole), rgb_to_ycbcr(whole)[:1])


def test_the_inverse_gives_the_colours_back():
    image = picture(height=40, width=40).double()
    torch.testing.assert_close(ycbcr_to_rgb(rgb_to_ycbcr(image)), image, rtol=0, atol=1e-4)
    whole = to_uint8(image)
    back = ycbcr_to_rgb(rgb_to_ycbcr(whole))
    assert (back.int() - whole.int()).abs().max() <= 2


def test_overflow_clips_by_default_and_wraps_on_request():
    outside = torch.tensor([255, 128, 255], dtype=torch.uint8).view(3, 1, 1)
    unbounded = (ycbcr_to_rgb(outside.double() / 255) * 255).round().long()
    assert unbounded.max() > 255
    assert torch.equal(ycbcr_to_rgb(outside).long(), unbounded.clamp(0, 255))
    assert torch.equal(ycbcr_to_rgb(outside, wrap=True).long(), unbounded % 256)


def test_colour_functions_refuse_other_shapes_and_types():
    with pytest.raises(ValueError, match="3, H, W"):
        rgb_to_y(torch.zeros(1, 4, 4))
    with pytest.raises(ValueError, match="floats"):
        rgb_to_y(torch.zeros(3, 4, 4, dtype=torch.int64))
