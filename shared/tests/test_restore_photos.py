"""From a file of weights to restored photos: what a command's user sees."""

import dataclasses
import importlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from papers_shared.checkpoints import load_state_dict, save_state_dict
from papers_shared.data.resize import imresize
from papers_shared.devices import pick_device
from papers_shared.images import read_image, rgb_to_ycbcr, to_uint8, write_image, ycbcr_to_rgb
from papers_shared.inference import OutOfMemory, photos
from papers_shared.inference.tiles import side_weights
from papers_shared.restoration import restore
from papers_shared.restoration.prepare import open_restorer
from papers_shared.restoration.restore import Cost, PhotoRestorer, run_restore
from papers_shared.restoration.restore_commands import EnlargeConfig, RestoreConfig
from papers_shared.restoration.task import Task

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
toy = importlib.import_module("toy_restoration")

DENOISE = Task("denoise", level=25)


def image(*shape, seed=0, levels=256):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(levels, shape, generator=generator).float() / (levels - 1)


@pytest.fixture
def weights(tmp_path):
    return toy.write(tmp_path / "weights/denoise.safetensors", DENOISE)


def restored(tmp_path, picture, weights, *, kind="denoise", config=RestoreConfig, **options):
    """A picture through the command: the stored result."""
    path = tmp_path / "in.png"
    if isinstance(picture, Path):
        path = picture
    else:
        write_image(picture, path, bits=options.pop("bits", 8))
    options = {"output": tmp_path / "out.png", "device": "cpu", **options}
    assert run_restore(config(photos=[path], weights=weights, **options), toy.FAMILY, kind) == 0
    return read_image(options["output"], mode="stored")


def through(weights, picture):
    """The same picture through the network alone."""
    with torch.no_grad():
        return open_restorer(toy.FAMILY, weights)(picture[None])[0].clamp(0, 1)


# --------------------------------------------------------------------------- pictures


@pytest.mark.parametrize("size", [(1, 1), (1, 50), (33, 17)])
@pytest.mark.parametrize("attend", [False, True])
def test_any_size(tmp_path, size, attend):
    weights = toy.write(tmp_path / "w.safetensors", DENOISE, attend=attend)
    picture = image(3, *size)
    result = restored(tmp_path, picture, weights)
    wanted = through(weights, picture)
    torch.testing.assert_close(result, wanted, atol=0.51 / 255, rtol=0)
    assert (result - picture).abs().max() > 0.05  # the network does something


def test_enlarged_and_reduced_again(tmp_path):
    weights = toy.write(tmp_path / "w.safetensors", Task("sr", 4))
    picture = image(3, 9, 12)
    options = {"kind": "sr", "config": EnlargeConfig}
    large = restored(tmp_path, picture, weights, **options)
    torch.testing.assert_close(large, through(weights, picture), atol=0.51 / 255, rtol=0)
    half = restored(tmp_path, picture, weights, scale=2, **options)
    wanted = imresize(through(weights, picture), size=(18, 24)).clamp(0, 1)
    torch.testing.assert_close(half, wanted, atol=0.51 / 255, rtol=0)
    with pytest.raises(ValueError, match="enlarges 4 times; scale 5"):
        restored(tmp_path, picture, weights, scale=5, **options)


def test_a_grey_picture_stays_grey_and_is_the_mean_of_the_colours(tmp_path, weights):
    picture = image(1, 12, 9)
    result = restored(tmp_path, picture, weights)
    wanted = through(weights, picture.expand(3, -1, -1))
    assert (wanted[0] - wanted[1]).abs().max() > 0.01
    with torch.no_grad():
        wanted = (
            open_restorer(toy.FAMILY, weights)(picture.expand(1, 3, -1, -1)).mean(1).clamp(0, 1)
        )
    torch.testing.assert_close(result, wanted, atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize("kind", ["denoise", "deblur"])
def test_a_grey_network_takes_red_green_and_blue_one_by_one(tmp_path, kind):
    weights = toy.write(tmp_path / "w.safetensors", Task(kind, channels=1))
    picture = image(3, 12, 9)
    result = restored(tmp_path, picture, weights, kind=kind)
    wanted = torch.cat([through(weights, channel[None]) for channel in picture])
    torch.testing.assert_close(result, wanted, atol=0.51 / 255, rtol=0)
    grey = restored(tmp_path, picture[:1], weights, kind=kind)
    torch.testing.assert_close(grey, wanted[:1], atol=0.51 / 255, rtol=0)


@pytest.mark.parametrize("task", [Task("dejpeg", channels=1, level=40), Task("sr", 2, channels=1)])
def test_a_luma_network_keeps_the_colours(tmp_path, task):
    weights = toy.write(tmp_path / "w.safetensors", task)
    picture = 0.3 + 0.4 * image(3, 12, 9)
    write_image(picture, tmp_path / "in.png")
    picture = read_image(tmp_path / "in.png")
    result = restored(tmp_path, picture, weights, kind=task.kind)
    before = rgb_to_ycbcr(picture)
    with torch.no_grad():
        luma = open_restorer(toy.FAMILY, weights)(before[None, :1])[0]
    chroma = before[1:] if task.scale == 1 else imresize(before[1:], task.scale)
    wanted = ycbcr_to_rgb(torch.cat([luma, chroma])).clamp(0, 1)
    torch.testing.assert_close(result, wanted, atol=0.52 / 255, rtol=0)
    # A grey file is what the network calls luma.
    grey = restored(tmp_path, picture[:1], weights, kind=task.kind)
    torch.testing.assert_close(grey, through(weights, picture[:1]), atol=0.51 / 255, rtol=0)


def test_alpha_and_16_bits_are_kept(tmp_path, weights):
    pytest.importorskip("cv2")
    picture = image(4, 12, 9, levels=65536)
    result = restored(tmp_path, picture, weights, bits=16)
    torch.testing.assert_close(result[:3], through(weights, picture[:3]), atol=1e-5, rtol=0)
    torch.testing.assert_close(result[3:], picture[3:], atol=1e-5, rtol=0)
    result = restored(tmp_path, to_uint8(picture), weights)
    rounded = to_uint8(picture) / 255
    torch.testing.assert_close(result[:3], through(weights, rounded[:3]), atol=0.6 / 255, rtol=0)
    assert torch.equal(to_uint8(result[3:]), to_uint8(picture[3:]))


def test_turned_cmyk_and_truncated_files(tmp_path, weights, capsys):
    exif = Image.Exif()
    exif[0x0112] = 6
    pixels = (image(6, 8, 3) * 255).numpy().astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "turned.jpg", exif=exif)
    assert restored(tmp_path, tmp_path / "turned.jpg", weights).shape == (3, 8, 6)
    Image.new("CMYK", (8, 6), (0, 255, 255, 0)).save(tmp_path / "cmyk.jpg")
    red = restored(tmp_path, tmp_path / "cmyk.jpg", weights)
    assert red[0].mean() > red[1:].mean() + 0.3
    large = (image(64, 64, 3) * 255).numpy().astype(np.uint8)
    Image.fromarray(large).save(tmp_path / "whole.jpg")
    data = (tmp_path / "whole.jpg").read_bytes()
    (tmp_path / "cut.jpg").write_bytes(data[: len(data) // 2])
    assert restored(tmp_path, tmp_path / "cut.jpg", weights).shape == (3, 64, 64)
    assert "cut.jpg is truncated" in capsys.readouterr().err


def test_results_lie_beside_the_photos_and_the_processes_share_them(tmp_path, weights, monkeypatch):
    for name in "abc":
        path = tmp_path / f"in/{name}.png"
        path.parent.mkdir(exist_ok=True)
        write_image(image(3, 6, 6), path)
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, names in (("0", ["a", "c"]), ("1", ["a", "b", "c"])):
        monkeypatch.setenv("RANK", rank)
        config = RestoreConfig(photos=[tmp_path / "in"], weights=weights, device="cpu")
        run_restore(config, toy.FAMILY, "denoise")
        assert sorted(p.stem for p in (tmp_path / "in_denoised").iterdir()) == names
    monkeypatch.undo()
    config = dataclasses.replace(config, photos=[tmp_path / "in/a.png"])
    run_restore(config, toy.FAMILY, "denoise")
    assert (tmp_path / "in/a_denoised.png").is_file()


# --------------------------------------------------------------------------- tiles and memory


def test_tiles_are_the_whole_picture_where_the_overlap_covers_what_a_pixel_sees(weights):
    restorer = open_restorer(toy.FAMILY, weights)
    picture = image(3, 70, 53)
    with torch.no_grad():
        whole = restorer(picture[None])[0].clamp(0, 1)
    seen = []
    # Two 3x3 convolutions: two pixels around. Of an overlap of 8 the outer 2 are not used.
    tiled = PhotoRestorer(restorer, tile=20, overlap=8, batch_size=3).restore(
        picture, progress=lambda done, total: seen.append((done, total))
    )
    torch.testing.assert_close(tiled, whole, atol=1e-5, rtol=0)
    assert seen[-1][0] == seen[-1][1] > 9
    seams = PhotoRestorer(restorer, tile=20, overlap=0).restore(picture)
    assert (seams - whole).abs().max() > 1e-3


def test_padding_and_overlaps_keep_the_windows_of_the_whole_picture(tmp_path):
    weights = toy.write(tmp_path / "w.safetensors", DENOISE, attend=True)
    restorer = open_restorer(toy.FAMILY, weights)
    picture = image(3, 50, 31)
    with torch.no_grad():
        whole = restorer(picture[None])[0].clamp(0, 1)
    photos = PhotoRestorer(restorer, tile=23, overlap=9)
    assert (photos.tile, photos.overlap) == (24, 12)
    difference = (photos.restore(picture) - whole).abs()
    # The shift by two wraps: at the edges of the tiles it sees others than in the whole picture,
    # and there the tiles are not used.
    torch.testing.assert_close(difference[:, 4:-4, 4:-4], torch.zeros(3, 42, 23), atol=1e-5, rtol=0)


def test_discarded_quarters_have_no_weight_and_weights_sum_to_1():
    first, last = side_weights([0, 12], 20, 1, "discard")
    assert last[:2].tolist() == [0, 0]
    assert last[6:].tolist() == [1] * 14
    assert ((last[2:6] > 0) & (last[2:6] < 1)).all()
    torch.testing.assert_close(first[12:] + last[:8], torch.ones(8))
    # The last was shifted: three tiles overlap.
    starts, total = [0, 12, 15], torch.zeros(35)
    for start, weight in zip(starts, side_weights(starts, 20, 1, "discard"), strict=True):
        total[start : start + 20] += weight
    torch.testing.assert_close(total, torch.ones(35))


def test_the_tile_follows_from_the_memory_measured(weights, monkeypatch):
    restorer = open_restorer(toy.FAMILY, weights)
    free = {"bytes": 10**12}
    monkeypatch.setattr(restore, "available_memory", lambda device: free["bytes"])
    roomy = PhotoRestorer(restorer)
    assert roomy.tile == restore.LARGEST_TILE
    free["bytes"] = roomy.bytes_of_tile(100) / 0.7
    assert 92 <= PhotoRestorer(restorer).tile <= 108
    assert 60 <= PhotoRestorer(restorer, batch_size=2).tile <= 80
    free["bytes"] = 1
    with pytest.raises(OutOfMemory, match="the smallest tile, 4 px"):
        PhotoRestorer(restorer)
    # Eight maps of floats a pixel at least, so a tile of 64 x 64 takes more than 100 kB.
    assert roomy.bytes_of_tile(64) > 100_000


def test_costs_grow_with_the_square_where_two_measurements_say_so():
    assert Cost.through(10, 30.0, 20, 60.0) == Cost(3.0, 0.0)
    assert Cost.through(10, 100.0, 20, 60.0) == Cost(3.0, 0.0)  # mostly constant
    assert Cost.through(10, 1.0, 20, 80.0)(1) == pytest.approx(0.2)  # never below zero
    square = Cost.through(10, 10 * 2 + 100 * 0.5, 20, 20 * 2 + 400 * 0.5)
    assert square(100) == pytest.approx(100 * 2 + 10_000 * 0.5)


def test_long_work_is_announced(tmp_path, weights, monkeypatch, capsys):
    monkeypatch.setattr(photos, "LONG_SECONDS", 0)
    restored(tmp_path, image(3, 40, 30), weights, tile=20)
    assert "in.png: 30 x 40, " in (told := capsys.readouterr().err)
    assert "tiles, about 0 s; memory: " in told


def test_a_result_beyond_memory_is_refused(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(photos, "available_memory", lambda device: 3 * 32 * 32 * 20)
    with pytest.raises(ValueError, match=r"40 x 40 pixels needs 0\.00 GB"):
        restored(tmp_path, image(3, 40, 40), weights)
    assert restored(tmp_path, image(3, 32, 32), weights).shape == (3, 32, 32)
    with pytest.raises(ValueError, match="32 x 32"):  # floats take more
        restored(tmp_path, image(3, 32, 32, levels=65536), weights, bits=16)


# --------------------------------------------------------------------------- options and errors


def test_the_merged_form_runs_unless_it_is_not_wanted(tmp_path, weights, monkeypatch):
    merged = []
    family = dataclasses.replace(
        toy.FAMILY, merge=lambda network: merged.append(1) or toy.merge(network)
    )
    monkeypatch.setattr(toy, "FAMILY", family)
    picture = image(3, 8, 8)
    first = restored(tmp_path, picture, weights)
    assert merged == [1]
    second = restored(tmp_path, picture, weights, merge=False)
    assert merged == [1]
    torch.testing.assert_close(first, second, atol=1.1 / 255, rtol=0)


def test_bfloat16_is_near(tmp_path, weights):
    picture = image(3, 16, 16)
    exact = restored(tmp_path, picture, weights)
    near = restored(tmp_path, picture, weights, precision="bfloat16")
    assert 0 < (exact - near).abs().mean() < 0.01


def test_shipped_weights_say_what_they_are(tmp_path, monkeypatch, capsys):
    package = tmp_path / "package"
    toy.write(package / "weights/toy_s25.safetensors", DENOISE)
    monkeypatch.setattr("papers_shared.restoration.family.package_folder", lambda name: package)
    shipped = {"denoise": "toy_s25"}
    monkeypatch.setattr(toy, "FAMILY", dataclasses.replace(toy.FAMILY, shipped=shipped))
    restored(tmp_path, image(3, 8, 8), "")
    told = capsys.readouterr().out.splitlines()[0]
    assert "toy_s25, the small network trained here for colour denoising, sigma 25" in told
    assert "The toy's weights are nowhere." in told
    with pytest.raises(ValueError, match=r"no weights ship .* for derain; .* toy_s25 \(denoise\)"):
        restored(tmp_path, image(3, 8, 8), "", kind="derain")
    with pytest.raises(ValueError, match="toy_s25 is made for colour denoising, sigma 25; give"):
        restored(tmp_path, image(3, 8, 8), "toy_s25", kind="derain")


def test_files_that_say_nothing_are_told_by_their_shapes(tmp_path):
    for i, task in enumerate((Task("sr", 3), Task("sr", 2, channels=1), Task("denoise"))):
        weights = toy.write(tmp_path / f"{i}.safetensors", task, labelled=False)
        assert open_restorer(toy.FAMILY, weights, kind=task.kind).task == task
    jpeg = open_restorer(toy.FAMILY, weights, kind="dejpeg", level=40)
    assert jpeg.task == Task("dejpeg", level=40)
    with pytest.raises(ValueError, match="does not say what it undoes"):
        open_restorer(toy.FAMILY, weights)
    with pytest.raises(ValueError, match="x3 super-resolution; give --weights of one for denoise"):
        open_restorer(toy.FAMILY, str(tmp_path / "0.safetensors"), kind="denoise")


def test_wrong_weights_are_told(tmp_path, weights):
    picture = image(3, 8, 8)
    with pytest.raises(FileNotFoundError, match="no weights at nothing"):
        restored(tmp_path, picture, "nothing")
    state = load_state_dict(weights)
    save_state_dict({"other": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match="fits no known network; --variant NAME is one of toy"):
        restored(tmp_path, picture, str(tmp_path / "other.safetensors"))
    state["tail.bias"] = torch.full_like(state["tail.bias"], torch.nan)
    save_state_dict(state, tmp_path / "nan.safetensors")
    with pytest.raises(ValueError, match=r"in\.png: the network returned NaN or infinity"):
        restored(tmp_path, picture, str(tmp_path / "nan.safetensors"))


@pytest.mark.parametrize("options", [{"tile": 0}, {"overlap": -1}, {"batch_size": 0}])
def test_sizes_that_make_no_sense_are_refused(tmp_path, weights, options):
    with pytest.raises(ValueError, match="expected tile and batch_size of 1 or more"):
        restored(tmp_path, image(3, 8, 8), weights, **options)


def test_devices():
    assert pick_device("cpu").type == "cpu"
    with pytest.raises(ValueError, match="float16 is for GPUs"):
        pick_device("cpu", precision="float16")
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="no CUDA device"):
            pick_device("cuda")


def test_of_several_processes_on_a_machine_each_takes_its_own_gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    for rank, index in (("0", 0), ("3", 3), ("5", 1)):
        monkeypatch.setenv("LOCAL_RANK", rank)
        assert pick_device("auto") == pick_device("cuda") == torch.device("cuda", index)
    assert pick_device("cuda:2") == torch.device("cuda", 2)


# --------------------------------------------------------------------------- large photos

LARGE = """
import importlib, resource, sys
from pathlib import Path
sys.path.insert(0, {scripts!r})
toy = importlib.import_module("toy_restoration")
from papers_shared.restoration.restore import run_restore
from papers_shared.restoration.restore_commands import RestoreConfig
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
config = RestoreConfig(photos=[Path({photo!r})], output=Path({result!r}), weights={weights!r})
run_restore(config, toy.FAMILY, "denoise")
print("MEGABYTES", (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 1024)
"""


@pytest.mark.slow
def test_a_photo_of_20_megapixels_takes_less_than_what_is_announced(tmp_path, weights):
    pixels = np.random.default_rng(0).integers(256, size=(400, 500, 3), dtype=np.uint8)
    Image.fromarray(np.tile(pixels, (10, 10, 1))).save(tmp_path / "large.jpg")
    scripts, (photo, result) = (
        Path(__file__).parent / "scripts",
        (tmp_path / name for name in ("large.jpg", "restored.png")),
    )
    code = LARGE.format(scripts=str(scripts), photo=str(photo), result=str(result), weights=weights)
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    megabytes = int(out.stdout.rpartition("MEGABYTES")[2])
    announced = 3 * 20e6 * restore.HOST_BYTES_PER_SAMPLE_8_BITS / 1e6
    assert megabytes < announced + 500  # what the tiles of this network take
    with Image.open(result) as picture:
        assert picture.size == (5000, 4000)
