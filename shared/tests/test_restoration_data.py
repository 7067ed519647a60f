"""What restoration networks are trained on: crops, noise, JPEG, rain, pairs, lmdb."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from papers_shared.data.resize import imresize
from papers_shared.images import opencv, to_uint8, write_image
from papers_shared.restoration import sources
from papers_shared.restoration.commands import Stage, TrainConfig
from papers_shared.restoration.data import (
    Crops,
    Photos,
    add_rain,
    continued,
    crop_batch,
    crop_pair,
    floats,
    jpeg,
    mix,
    view,
)
from papers_shared.restoration.sources import (
    Lmdb,
    pairs_of,
    photos_of,
    picture_of,
    reduce,
    reduced_photos,
)
from papers_shared.restoration.task import Task


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def photo(height=60, width=72, seed=0, channels=3):
    small = torch.rand(1, channels, height // 6, width // 6, generator=generator(seed))
    large = torch.nn.functional.interpolate(small, size=(height, width), mode="bicubic")
    return to_uint8(large[0])


# --------------------------------------------------------------------------- crops


@pytest.mark.parametrize("scale", [2, 3, 4])
def test_a_pair_of_crops_shows_the_same_place(scale):
    """Inside, the target's crop reduced by itself is the input's crop."""
    high = photo(96, 120)
    low = reduce(high, scale)
    for seed in range(4):
        a, b = crop_pair(low, high, patch=48, scale=scale, generator=generator(seed))
        again = to_uint8(imresize(b.float() / 255, 1 / scale))
        inner = slice(3, 48 // scale - 3)  # the kernel reaches 2 input pixels
        assert a is not None
        difference = (again.int() - a.int())[:, inner, inner].abs()
        assert difference.max() <= 1  # of roundings of halves
        assert difference.float().mean() < 0.01


def test_pictures_smaller_than_the_crop_are_continued_by_reflection():
    row = torch.arange(1, 4)[None, None]
    assert continued(row, 8)[0, 0].tolist() == [1, 2, 3, 3, 2, 1, 1, 2]
    assert continued(row, 8).shape == (1, 8, 8)
    low = torch.arange(15, dtype=torch.uint8).reshape(1, 3, 5)  # less than half of the crop
    high = low.repeat_interleave(2, -1).repeat_interleave(2, -2)
    for seed in range(4):
        a, b = crop_pair(low, high, patch=16, scale=2, generator=generator(seed))
        assert torch.equal(a.repeat_interleave(2, -1).repeat_interleave(2, -2), b)
        assert b.shape == (1, 16, 16)
    # Only the side that is short is continued.
    tall = crop_pair(None, photo(60, 24), patch=48, scale=1, generator=generator(1))[1]
    assert torch.equal(tall[..., :24], tall[..., 24:].flip(-1))


def test_crops_lie_anywhere_and_follow_their_generator():
    high = torch.arange(10 * 12).reshape(1, 10, 12).to(torch.uint8)
    corners = [
        int(crop_pair(None, high, patch=8, scale=1, generator=generator(i))[1][0, 0, 0])
        for i in range(200)
    ]
    assert set(corners) == {row * 12 + column for row in range(3) for column in range(5)}
    assert corners[7] == crop_pair(None, high, patch=8, scale=1, generator=generator(7))[1][0, 0, 0]


def test_the_eight_views_differ_and_agree_in_input_and_target():
    image = torch.arange(9).reshape(1, 3, 3)
    assert len({tuple(view(image, number).flatten().tolist()) for number in range(8)}) == 8
    high = photo(64, 64)
    low = reduce(high, 2)
    cut = Crops(task=Task("sr", scale=2), patch=64)
    seen = set()
    for seed in range(40):
        pair = cut((low, high), generator(seed))
        number = next(n for n in range(8) if torch.equal(view(high, n), pair["gt"]))
        assert torch.equal(view(low, number), pair["lq"])
        seen.add(number)
    assert seen == set(range(8))


def test_what_does_not_fit_is_named():
    with pytest.raises(ValueError, match="20x20 pixels does not belong to a target of 60x72"):
        crop_pair(photo(20, 20), photo(), patch=8, scale=2, generator=generator())
    with pytest.raises(ValueError, match="no photos to train on"):
        Photos(None, [])


def test_an_epoch_sees_each_picture_so_often():
    pictures = [photo(seed=i) for i in range(3)]
    data = Photos(None, pictures, repeat=4)
    assert len(data) == 12
    assert torch.equal(data[7][1], pictures[1])


# --------------------------------------------------------------------------- degradations


def test_noise_has_its_deviation_and_is_not_clipped():
    batch = {"gt": torch.zeros(2, 3, 128, 128, dtype=torch.uint8), "sigma": torch.tensor([25.0, 5])}
    torch.manual_seed(0)
    low, high = floats(batch)
    assert high.abs().max() == 0
    deviation = (low * 255).std(dim=(1, 2, 3))
    torch.testing.assert_close(deviation, torch.tensor([25.0, 5.0]), rtol=0.02, atol=0)
    assert (low * 255).mean().abs() < 0.3
    assert low.min() < -3 * 25 / 255
    assert not torch.equal(floats(batch)[0], low)  # fresh draws
    torch.manual_seed(0)
    assert torch.equal(floats(batch)[0], low)


def test_a_range_of_levels_is_drawn_uniformly():
    cut = Crops(task=Task("denoise"), patch=8, levels=(0, 50))
    sigmas = torch.stack([cut((None, photo()), generator(i))["sigma"] for i in range(400)])
    assert sigmas.min() < 2
    assert sigmas.max() > 48
    assert abs(float(sigmas.mean()) - 25) < 3  # 0.7 is one deviation
    fixed = Crops(task=Task("denoise", level=15), patch=8, levels=(15, 15))
    assert float(fixed((None, photo()), generator())["sigma"]) == 15


def test_jpeg_keeps_colours_and_loses_more_at_low_quality():
    red = torch.zeros(3, 16, 16, dtype=torch.uint8)
    red[0] = 200
    assert (jpeg(red, 90).int() - red.int()).abs().max() <= 6
    errors = [(jpeg(photo(), q).float() - photo()).square().mean() for q in (10, 40, 90)]
    assert errors[0] > errors[1] > errors[2] > 0
    assert jpeg(photo(channels=1), 10).shape == (1, 60, 72)


def test_jpeg_blocks_begin_at_the_crops_corner():
    """The JPEG is made of the crop's view: written again, hardly anything changes."""
    task = Task("dejpeg", channels=1, level=10)
    pair = Crops(task=task, patch=32, levels=(10, 10))((None, photo(channels=1)), generator(3))
    first = (pair["lq"].float() - pair["gt"]).abs().mean()
    again = (jpeg(pair["lq"], 10).float() - pair["lq"]).abs().mean()
    assert again < 0.1 * first


def test_rain_only_brightens_and_is_one_for_all_channels():
    dark = torch.full((3, 64, 64), 20, dtype=torch.uint8)
    rainy = add_rain(dark, generator(1))
    assert (rainy >= dark).all()
    assert 0.01 < (rainy[0] > 30).float().mean() < 0.9
    assert torch.equal(rainy[0], rainy[2])
    assert torch.equal(rainy, add_rain(dark, generator(1)))
    assert not torch.equal(rainy, add_rain(dark, generator(2)))


def test_grey_is_the_readers_and_luma_is_that_of_bt601():
    white = torch.full((3, 4, 4), 255, dtype=torch.uint8)
    assert picture_of(white, Task("denoise", channels=1, level=25)).unique().tolist() == [255]
    assert picture_of(white, Task("dejpeg", channels=1, level=10)).unique().tolist() == [235]
    cv2 = opencv("grey")
    array = photo().permute(1, 2, 0).numpy()
    grey = torch.from_numpy(cv2.cvtColor(np.ascontiguousarray(array), cv2.COLOR_RGB2GRAY))
    ours = picture_of(photo(), Task("denoise", channels=1, level=25))[0]
    assert (grey.int() - ours.int()).abs().max() <= 1


# --------------------------------------------------------------------------- batches


def test_mixup_blends_inputs_and_targets_alike():
    low, high = torch.rand(2, 4, 3, 8, 8, generator=generator())
    assert mix(low, high, probability=0) == (low, high)
    torch.manual_seed(3)
    mixed = mix(low, high, probability=1)
    assert mixed[0].shape == low.shape
    # Each sample is w of its own + (1 - w) of another; which one, and one w for all?
    weights = []
    for i in range(4):
        for other in range(4):
            if other != i:
                own = torch.stack([low[i] - low[other], high[i] - high[other]])
                got = torch.stack([mixed[0][i] - low[other], mixed[1][i] - high[other]])
                weight = (own * got).sum() / own.square().sum()
                if torch.allclose(weight * own, got, atol=1e-5):
                    weights.append(float(weight))
    changed = [w for w in weights if w < 1 - 1e-4]
    assert len(changed) >= 2
    assert changed == pytest.approx([changed[0]] * len(changed), abs=1e-4)
    assert 0 < changed[0] < 1


def test_a_stage_takes_fewer_and_smaller_crops_of_the_same_place():
    high = torch.arange(16 * 16).reshape(1, 1, 16, 16).expand(6, 1, 16, 16)
    low = high[..., ::2, ::2]
    torch.manual_seed(0)
    small = crop_batch({"gt": high, "lq": low}, patch=8, count=4, scale=2)
    assert small["gt"].shape == (4, 1, 8, 8)
    assert torch.equal(small["gt"][..., ::2, ::2], small["lq"])
    state = torch.get_rng_state()
    whole = crop_batch({"gt": high, "lq": low}, patch=16, count=6, scale=2)
    assert whole["gt"].shape == (6, 1, 16, 16)
    assert torch.equal(torch.get_rng_state(), state)
    corners = {
        int(crop_batch({"gt": high[:1]}, patch=4, count=1, scale=1, grid=8)["gt"][0, 0, 0, 0])
        for _ in range(40)
    }
    assert corners == {0, 8, 8 * 16, 8 * 16 + 8}


# --------------------------------------------------------------------------- sources


def test_photos_are_reduced_once(tmp_path, monkeypatch):
    photos = [photo(seed=i) for i in range(2)]
    told = []
    first = reduced_photos(photos, 2, folder=tmp_path, progress=lambda *x: told.append(x))
    assert told == [(1, 2), (2, 2)]
    assert torch.equal(first[1], to_uint8(imresize(photos[1].float() / 255, 0.5)))
    monkeypatch.setattr(sources, "reduce", None)
    again = reduced_photos(photos[::-1], 2, folder=tmp_path)
    assert torch.equal(again[1], first[0])


def test_pairs_of_folders_are_in_natural_order(tmp_path):
    for name in ("input", "target"):
        (tmp_path / name).mkdir()
        for number in (2, 10):
            value = torch.full((3, 4, 4), number / 255)
            write_image(value, tmp_path / name / f"a{number}.png")
    low, high = pairs_of([tmp_path], Task("derain"))
    assert [int(image[0, 0, 0]) for image in low] == [2, 10]
    assert torch.equal(low[1], high[1])
    (tmp_path / "target" / "a2.png").unlink()
    with pytest.raises(ValueError, match="2 inputs and 1 targets"):
        pairs_of([tmp_path], Task("derain"))
    with pytest.raises(FileNotFoundError, match="input"):
        pairs_of([tmp_path / "nowhere"], Task("derain"))


def test_photos_of_an_lmdb_are_those_of_its_files(tmp_path):
    lmdb = pytest.importorskip("lmdb")
    images = [photo(seed=0), photo(42, 48, seed=1)]
    folder = tmp_path / "photos.lmdb"
    environment = lmdb.open(str(folder), map_size=2**24)
    with environment.begin(write=True) as transaction:
        for i, image in enumerate(images):
            write_image(image.float() / 255, tmp_path / f"{i}.png")
            transaction.put(str(i).encode(), (tmp_path / f"{i}.png").read_bytes())
    environment.close()
    (folder / "meta_info.txt").write_text("0.png (60,72,3) 1\n1.png (42,48,3) 1\n")
    photos = photos_of([str(folder)], Task("denoise", level=25))
    assert len(photos) == 2
    assert all(map(torch.equal, photos, images))
    (folder / "meta_info.txt").write_text("0.png (60,72,3) 1\n1.png (3,48,3) 1\n")
    with pytest.raises(ValueError, match=r"1 of 2 photos of .* cannot be reduced 4 times"):
        photos_of([str(folder)], Task("sr", scale=4))
    with pytest.raises(FileNotFoundError, match=r"meta_info\.txt"):
        Lmdb(tmp_path, Task("denoise", level=25))


# --------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"task": "denoise"}, "denoise needs --level"),
        ({"task": "denoise", "level": [50.0, 0.0]}, "needs --level"),
        ({"task": "denoise", "level": [300.0]}, "0 to 255"),
        ({"task": "dejpeg", "level": [0.0, 50.0]}, "1 to 100"),
        ({"task": "dejpeg", "level": [10.5]}, "whole numbers"),
        ({"task": "derain", "level": [3.0]}, "derain has no level"),
        ({"task": "sr"}, "scale 1"),
        ({"task": "derain", "scale": 2}, "scale 2"),
        ({"task": "deblur"}, "deblur needs --pairs"),
        ({"task": "denoise", "level": [5.0], "pairs": ["x"]}, "--pairs has none"),
        ({"scale": 3, "patch": 128}, "no multiple of the scale 3"),
        ({"scale": 2, "progressive": ["128:8"]}, "PATCH:BATCH:FROM_STEP"),
        ({"scale": 2, "progressive": ["462720"]}, "in quotes"),
        ({"scale": 2, "progressive": ["160:8:5", "192:8:5"]}, "does not begin after step 5"),
        ({"scale": 2, "accumulate": 3}, "cannot be cut into 3 passes"),
        ({"scale": 2, "weight_decay": 0.1}, "adamw"),
        ({"scale": 2, "milestones": [3], "lr_schedule": "cosine"}, "multistep"),
        ({"scale": 2, "mixup": 2.0}, "probability"),
        ({"scale": 2, "ema_decay": 1.0}, "ema_decay"),
        ({"scale": 2, "init": "a", "init_from": "b"}, "give one"),
        ({"scale": 2, "steps": 0}, "steps is at least 1"),
        ({"scale": 2, "lr": 0.0}, "lr is positive"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TrainConfig(variant="toy", **options)


def test_a_range_of_levels_is_a_task_of_unknown_level():
    config = TrainConfig(variant="toy", task="denoise", level=[0.0, 50.0])
    assert config.to_task() == Task("denoise")
    assert TrainConfig(variant="toy", task="denoise", level=[25.0]).to_task().level == 25
    stages = TrainConfig(variant="toy", scale=2, progressive=["160:8:5"]).stages
    assert stages == (Stage(128, 16, 0), Stage(160, 8, 5))


def test_options_need_no_torch():
    code = "import sys, papers_shared.restoration.commands; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
