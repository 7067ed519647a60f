import math
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from papers_shared.data.resize import imresize
from papers_shared.images import read_image, to_uint8, write_image
from papers_shared.inference import Estimate, OutOfMemory, photos, run_tiled, upscale_files
from papers_shared.inference.listing import photo_seed, plan_photos, process_rank
from papers_shared.inference.progress import TileProgress, duration


class Nearest:
    """Repeats pixels; ``noise`` adds a little that depends on the seed."""

    scale = 4

    def __init__(self, *, noise=0.0, seconds=None, broken=None):
        self.noise, self.seconds, self.broken = noise, seconds, broken
        self.calls = []

    def __call__(self, image, *, seed, progress):
        self.calls.append(tuple(image.shape))

        def network(tiles, origins):
            return tiles.repeat_interleave(4, -1).repeat_interleave(4, -2)

        out = run_tiled(network, image, scale=4, tile=16, overlap=4, progress=progress)
        if self.broken is not None and image.shape[-1] == 9:
            return self.broken(out)
        generator = torch.Generator().manual_seed(seed)
        return out + self.noise * torch.rand(out.shape, generator=generator)

    def estimate(self, height, width):
        return Estimate(tiles=7, seconds=self.seconds, bytes=2_500_000_000)


def picture(channels=3, height=6, width=8, levels=256, seed=0):
    generator = torch.Generator().manual_seed(seed + channels)
    shape = (channels, height, width)
    return torch.randint(levels, shape, generator=generator).float() / (levels - 1)


def large(image):
    return image.repeat_interleave(4, -1).repeat_interleave(4, -2)


def save(folder, name, **options):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    write_image(picture(**options), path)
    return path


def names(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# --------------------------------------------------------------------------- one photo


def test_a_photo_goes_to_the_file_that_is_named(tmp_path, capsys):
    path = save(tmp_path, "a.png")
    report = upscale_files([path], tmp_path / "large.png", Nearest())
    assert report.written == [tmp_path / "large.png"]
    assert report.status == 0
    assert torch.equal(read_image(tmp_path / "large.png", mode="stored"), large(picture()))
    assert "large.png (32 x 24, 0 s)" in capsys.readouterr().out


def test_without_an_output_the_result_lies_beside_the_photo_and_the_folder(tmp_path):
    path = save(tmp_path, "in/a.png")
    upscale_files([path], None, Nearest())
    path.with_name("a_x4.png").rename(tmp_path / "beside.png")
    upscale_files([path.parent], None, Nearest(), scale=2)
    assert names(tmp_path) == ["beside.png", "in/a.png", "in_x2/a.png"]


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 17)])
@pytest.mark.parametrize("colour", ["none", "wavelet", "adain"])
def test_any_size_and_colour_correction(tmp_path, size, colour):
    path = save(tmp_path, "a.png", height=size[0], width=size[1])
    upscale_files([path], tmp_path / "b.png", Nearest(), colour=colour)
    assert read_image(tmp_path / "b.png").shape == (3, 4 * size[0], 4 * size[1])


def test_colours_are_matched_to_the_photo(tmp_path):
    path = save(tmp_path, "a.png", height=40, width=9)
    darker = Nearest(broken=lambda out: 0.7 * out)
    upscale_files([path], tmp_path / "raw.png", darker)
    upscale_files([path], tmp_path / "matched.png", darker, colour="wavelet")
    wanted = picture(height=40, width=9).mean((1, 2))
    raw, matched = (read_image(tmp_path / f"{n}.png").mean((1, 2)) for n in ("raw", "matched"))
    assert (raw - wanted).abs().min() > 0.1
    torch.testing.assert_close(matched, wanted, rtol=0, atol=0.01)


def test_grey_photos_stay_grey(tmp_path):
    path = save(tmp_path, "a.png", channels=1)
    upscaler = Nearest()
    upscale_files([path], tmp_path / "b.png", upscaler)
    assert upscaler.calls == [(3, 6, 8)]
    assert torch.equal(read_image(tmp_path / "b.png", mode="stored"), large(picture(1)))


@pytest.mark.parametrize("channels", [2, 4])
def test_alpha_is_enlarged_bicubically_and_put_back(tmp_path, channels):
    image = picture(channels)
    pixels = to_uint8(image).permute(1, 2, 0).numpy()
    Image.fromarray(pixels, {2: "LA", 4: "RGBA"}[channels]).save(tmp_path / "a.png")
    upscale_files([tmp_path / "a.png"], tmp_path / "b.png", Nearest())
    out = read_image(tmp_path / "b.png", mode="stored")
    assert torch.equal(out[:3], large(image[:-1]).expand(3, -1, -1))
    expected = imresize(image[-1:], 4).clamp(0, 1)
    torch.testing.assert_close(out[3:], expected, rtol=0, atol=0.51 / 255)


def test_alpha_that_the_output_cannot_hold_is_refused_before_the_network_runs(tmp_path):
    path = save(tmp_path, "a.png", channels=4)
    upscaler = Nearest()
    with pytest.raises(ValueError, match=r"alpha channel.*b\.jpg cannot; use \.png"):
        upscale_files([path], tmp_path / "b.jpg", upscaler)
    assert upscaler.calls == []


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_16_bits_stay_16_bits_except_in_a_jpeg(tmp_path, channels):
    pytest.importorskip("cv2")
    image = picture(channels, levels=65536)
    write_image(image, tmp_path / "a.png", bits=16)
    upscale_files([tmp_path / "a.png"], tmp_path / "b.png", Nearest())
    out = read_image(tmp_path / "b.png", mode="stored")
    colours = channels - (channels == 4)
    torch.testing.assert_close(out[:colours], large(image[:colours]), rtol=0, atol=1e-5)
    if channels == 3:
        upscale_files([tmp_path / "a.png"], tmp_path / "b.jpg", Nearest())
        assert read_image(tmp_path / "b.jpg").shape == (3, 24, 32)


def test_photos_are_turned_upright_and_cmyk_is_read(tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(tmp_path / "turned.jpg", exif=exif)
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    upscale_files([tmp_path / "turned.jpg", tmp_path / "cmyk.jpg"], tmp_path / "out", Nearest())
    assert read_image(tmp_path / "out/turned.png").shape == (3, 32, 24)
    red = read_image(tmp_path / "out/cmyk.png").mean((1, 2))
    torch.testing.assert_close(red, torch.tensor([1.0, 0, 0]), rtol=0, atol=0.02)


def test_a_truncated_jpeg_is_enlarged_with_a_warning_naming_it(tmp_path, capsys):
    path = save(tmp_path, "a.jpg", height=64, width=64)
    path.write_bytes(path.read_bytes()[:-600])
    report = upscale_files([path], tmp_path / "b.png", Nearest())
    assert report.status == 0
    captured = capsys.readouterr().err.splitlines()
    assert len(captured) == 1
    assert captured[0].startswith("warning: ")
    assert "a.jpg is truncated" in captured[0]


def test_smaller_scales_are_reduced_from_the_networks(tmp_path):
    path = save(tmp_path, "a.png", channels=4)
    upscale_files([path], tmp_path / "b.png", Nearest(), scale=2)
    out = read_image(tmp_path / "b.png", mode="stored")
    expected = imresize(large(picture(4)[:3]), size=(12, 16)).clamp(0, 1)
    torch.testing.assert_close(out[:3], expected, rtol=0, atol=0.51 / 255)
    with pytest.raises(ValueError, match="enlarges 4 times; scale 5"):
        upscale_files([path], tmp_path / "b.png", Nearest(), scale=5)


# --------------------------------------------------------------------------- errors


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda out: out * math.nan, "NaN or infinity"),
        (lambda out: out[..., 1:], r"made \(3, 24, 35\) of the photo, not \(3, 24, 36\)"),
    ],
)
def test_nothing_is_written_when_the_network_fails(tmp_path, broken, message):
    path = save(tmp_path, "bad.png", width=9)
    with pytest.raises(ValueError, match=rf"bad\.png: the network .*{message}"):
        upscale_files([path], tmp_path / "out", Nearest(broken=broken))
    assert names(tmp_path) == ["bad.png"]


def test_one_bad_photo_of_a_folder_does_not_stop_the_others(tmp_path, capsys):
    for name, width in (("a.png", 8), ("m.png", 9), ("z.png", 8)):
        save(tmp_path, f"in/{name}", width=width)
    (tmp_path / "in/broken.jpg").write_text("no picture")
    upscaler = Nearest(broken=lambda out: out * math.nan)
    report = upscale_files([tmp_path / "in"], tmp_path / "out", upscaler)
    assert names(tmp_path / "out") == ["a.png", "z.png"]
    assert report.status == 1
    assert [p.name for p in report.failed] == ["broken.jpg", "m.png"]
    last = capsys.readouterr().err.splitlines()[-3:]
    assert last[0] == "2 of 4 photos failed:"
    assert "broken.jpg is not an image" in last[1]
    assert "m.png: the network returned NaN" in last[2]


def test_a_single_bad_photo_is_an_error(tmp_path):
    (tmp_path / "a.jpg").write_text("no picture")
    with pytest.raises(ValueError, match=r"a\.jpg is not an image"):
        upscale_files([tmp_path / "a.jpg"], tmp_path / "out", Nearest())
    with pytest.raises(FileNotFoundError, match=r"b\.jpg does not exist"):
        upscale_files([tmp_path / "b.jpg"], tmp_path / "out", Nearest())


def test_programming_errors_are_not_taken_for_bad_photos(tmp_path):
    save(tmp_path, "a.png"), save(tmp_path, "b.png", width=9)

    def broken(out):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        upscale_files([tmp_path], tmp_path / "out", Nearest(broken=broken))


def test_results_that_memory_cannot_hold_are_refused_before_the_network_runs(tmp_path, monkeypatch):
    path = save(tmp_path, "a.png", height=50, width=50)
    upscaler = Nearest()
    with pytest.raises(ValueError, match=r"200 x 200 pixels needs 0\.00 GB.*--max-pixels 39999"):
        upscale_files([path], tmp_path / "b.png", upscaler, max_pixels=39999)
    monkeypatch.setattr(photos, "available_memory", lambda device: 1_000_000)
    with pytest.raises(ValueError, match=r"0\.00 GB are free.*--max-pixels 40000") as error:
        upscale_files([path], tmp_path / "b.png", upscaler)
    assert isinstance(error.value.__cause__, OutOfMemory)
    assert upscaler.calls == []
    upscale_files([path], tmp_path / "b.png", upscaler, max_pixels=40000)
    assert upscaler.calls == [(3, 50, 50)]


def test_the_memory_of_a_picture_of_20000_by_20000_is_named():
    with pytest.raises(ValueError, match=r"20000 x 20000 pixels needs 33\.60 GB"):
        photos._check_size(20000, 20000, 3 * 20000**2 * photos.HOST_BYTES_PER_SAMPLE, 10**8)


# --------------------------------------------------------------------------- names and seeds


def test_names_that_collide_keep_their_path_then_their_suffix(tmp_path):
    for name in ("x.png", "one/x.png", "two/X.jpg", "y.png", "y.jpg", "two/z.png"):
        save(tmp_path / "in", name)
    upscale_files([tmp_path / "in"], tmp_path / "out", Nearest(), recursive=True)
    assert names(tmp_path / "out") == [
        "one/x.png",
        "two/X.png",
        "x.png",
        "y.jpg.png",
        "y.png.png",
        "z.png",
    ]


def test_photos_of_two_folders_keep_the_folders_names(tmp_path):
    for name in ("one/a.png", "two/a.png", "two/b.png"):
        save(tmp_path, name)
    upscale_files([tmp_path / "one", tmp_path / "two"], tmp_path / "out", Nearest())
    assert names(tmp_path / "out") == ["b.png", "one/a.png", "two/a.png"]
    assert [p.key for p in plan_photos([tmp_path / "two"], None, mark="_x4")] == ["a", "b"]


def test_subfolders_are_read_on_request_and_old_results_never(tmp_path):
    save(tmp_path, "a.png"), save(tmp_path, "sub/b.png")
    for _ in range(2):
        upscale_files([tmp_path], tmp_path / "out", Nearest(), recursive=True)
        assert names(tmp_path / "out") == ["a.png", "b.png"]
    assert [p.path.name for p in plan_photos([tmp_path], None, mark="_x4")] == ["a.png"]


def test_a_photo_given_twice_is_enlarged_once(tmp_path):
    path = save(tmp_path, "a.png")
    assert len(plan_photos([path, tmp_path, path], tmp_path / "out", mark="_x4")) == 1


def test_suffixes_stand_behind_the_stem(tmp_path):
    save(tmp_path, "in/a.png")
    upscale_files([tmp_path / "in"], tmp_path / "in", Nearest(), suffix="_large")
    assert names(tmp_path / "in") == ["a.png", "a_large.png"]


def test_photos_are_never_replaced(tmp_path):
    path = save(tmp_path, "a.png")
    for output in (tmp_path, path):
        with pytest.raises(ValueError, match="would replace a photo"):
            upscale_files([path], output, Nearest())


def test_one_file_name_for_many_photos_is_refused(tmp_path):
    save(tmp_path, "a.png")
    with pytest.raises(ValueError, match="name of a file, for one photo"):
        upscale_files([tmp_path], tmp_path / "out.png", Nearest())


def test_results_that_are_there_are_skipped_on_request(tmp_path):
    save(tmp_path, "in/a.png"), save(tmp_path, "in/b.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").write_text("old")
    report = upscale_files([tmp_path / "in"], tmp_path / "out", Nearest(), overwrite=False)
    assert (tmp_path / "out/a.png").read_text() == "old"
    assert [p.name for p in report.skipped] == ["a.png"]
    assert [p.name for p in report.written] == ["b.png"]


def test_what_a_photo_becomes_depends_on_its_name_and_the_seed_alone(tmp_path):
    for name in ("a.png", "b.png", "sub/a.png"):
        save(tmp_path / "in", name)
    upscaler = Nearest(noise=0.5)
    upscale_files([tmp_path / "in"], tmp_path / "all", upscaler, seed=3, recursive=True)
    upscale_files([tmp_path / "in/b.png"], tmp_path / "alone", upscaler, seed=3)
    upscale_files([tmp_path / "in"], tmp_path / "other", upscaler, seed=4)
    together, alone, other, nested = (
        (tmp_path / name).read_bytes()
        for name in ("all/b.png", "alone/b.png", "other/b.png", "all/sub/a.png")
    )
    assert together == alone
    assert len({together, other, nested, (tmp_path / "all/a.png").read_bytes()}) == 4


def test_seeds_of_photos_are_recorded():
    assert photo_seed(12345, "sub/a") == 2054818765888429141
    assert photo_seed(1, "23") != photo_seed(12, "3")


def test_processes_share_the_photos(tmp_path, monkeypatch):
    for name in "abcde":
        save(tmp_path, f"in/{name}.png")
    upscale_files([tmp_path / "in"], tmp_path / "one", Nearest(noise=0.5))
    for rank, expected in ((0, "ace"), (1, "bd")):
        monkeypatch.setenv("RANK", str(rank))
        monkeypatch.setenv("WORLD_SIZE", "2")
        report = upscale_files([tmp_path / "in"], tmp_path / "two", Nearest(noise=0.5))
        assert [p.stem for p in report.written] == list(expected)
    for name in "abcde":
        one, two = (tmp_path / folder / f"{name}.png" for folder in ("one", "two"))
        assert one.read_bytes() == two.read_bytes()
    monkeypatch.setenv("RANK", "2")
    with pytest.raises(ValueError, match="RANK=2 WORLD_SIZE=2"):
        process_rank()


# --------------------------------------------------------------------------- what is shown


def test_long_photos_are_announced_with_time_and_memory(tmp_path, capsys):
    path = save(tmp_path, "a.png")
    upscale_files([path], tmp_path / "b.png", Nearest(seconds=60))
    assert capsys.readouterr().err == ""
    upscale_files([path], tmp_path / "b.png", Nearest(seconds=720))
    line = "a.png: 8 x 6, 7 tiles, about 12 min; memory: 2.5 GB for the network, 0.0 GB for"
    assert line in capsys.readouterr().err


def test_without_a_terminal_progress_is_a_line_now_and_then(capsys):
    with TileProgress("a.png", bar=False, every=0) as progress:
        for done in (1, 2, 4):
            progress(done, 4)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == ["a.png: 25%", "a.png: 50%"]
    with TileProgress("a.png", bar=False) as progress:
        progress(1, 4)
    assert capsys.readouterr().err == ""


def test_on_a_terminal_progress_is_a_bar(monkeypatch, capsys):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with TileProgress("[a].png") as progress:
        progress(3, 4)
    shown = capsys.readouterr().err
    assert "[a].png" in shown
    assert "75%" in shown


def test_durations_are_short():
    assert [duration(s) for s in (0.4, 45, 720, 9000)] == ["0 s", "45 s", "12 min", "2.5 h"]
