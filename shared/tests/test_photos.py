import itertools
import os
import pickle

import pytest
import torch
from PIL import Image

from papers_shared._basicsr import basicsr_module
from papers_shared.data import photos
from papers_shared.data.photos import (
    PairFolder,
    PairTransform,
    PhotoCrops,
    PhotoFiles,
    load_photos,
    make_pairs,
    photo_files,
    random_crop,
    random_flip,
    rescale_crop,
    stored_size,
)
from papers_shared.data.real_esrgan import TESTING
from papers_shared.images import to_uint8, write_image
from papers_shared.training.loader import ResumableSampler, _KeyedDataset

mirrored = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)


def seeded(seed):
    return torch.Generator().manual_seed(seed)


def photo(height=70, width=90, seed=0):
    return torch.randint(256, (3, height, width), generator=seeded(seed), dtype=torch.uint8)


@pytest.fixture
def basicsr():
    try:
        basicsr_module("data.degradations")
    except ImportError as reason:
        pytest.skip(str(reason))


# --------------------------------------------------------------------------- loading


def test_photos_of_a_folder_come_sorted_and_in_colour(tmp_path):
    first, second = photo(8, 9), photo(7, 5, seed=1)
    write_image(second, tmp_path / "b.png")
    write_image(first, tmp_path / "a.png")
    write_image(first[:1], tmp_path / "c.png")
    found = load_photos(tmp_path)
    assert torch.equal(found[0], first)
    assert torch.equal(found[1], second)
    assert torch.equal(found[2], first[:1].expand(3, -1, -1))
    assert all(p.dtype == torch.uint8 for p in found)


def test_subfolders_are_listed_on_request(tmp_path):
    for name in ("n02/b.png", "n01/c.png", "a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_image(photo(8, 9), tmp_path / name)
    found = [
        path.relative_to(tmp_path).as_posix() for path in photo_files(tmp_path, recursive=True)
    ]
    assert found == ["a.png", "n01/c.png", "n02/b.png"]
    assert photo_files(tmp_path) == [tmp_path / "a.png"]


def test_photos_in_files_are_decoded_when_asked_for(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.fromarray(photo(8, 5).permute(1, 2, 0).numpy()).save(tmp_path / "a.png", exif=turned)
    files = PhotoFiles([tmp_path / "a.png", tmp_path / "missing.png"])
    assert len(files) == 2
    assert torch.equal(files[0], photo(8, 5).transpose(1, 2).flip(2))
    with pytest.raises(FileNotFoundError, match=r"missing\.png"):
        files[1]
    assert stored_size(tmp_path / "a.png") == (8, 5)
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png cannot be opened"):
        stored_size(tmp_path / "text.png")


def test_scikit_image_s_photos_need_no_download():
    pytest.importorskip("skimage")
    found = load_photos("skimage")
    assert len(found) >= 4
    assert all(p.shape[0] == 3 and min(p.shape[1:]) >= 256 for p in found)
    # Photographs, in colour: not grey pictures repeated.
    assert all((p[0] != p[2]).float().mean() > 0.2 for p in found)


def test_without_scikit_image_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setattr(photos.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="pip install scikit-image"):
        load_photos("skimage")


def test_unknown_sources_are_answered_with_the_names(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"names: skimage, .*bsds500_train"):
        load_photos("bsds")
    with pytest.raises(FileNotFoundError, match="holds no images"):
        load_photos(tmp_path)


@mirrored
@pytest.mark.parametrize(("name", "count"), [("kodak24", 24), ("set5/HR", 5)])
def test_data_sets_are_found_by_name(name, count):
    assert len(load_photos(name)) == count


@mirrored
def test_what_holds_no_photos_is_refused():
    with pytest.raises(ValueError, match="not a folder of photos"):
        load_photos("niqe_pris_params")


# --------------------------------------------------------------------------- cropping


def test_random_crops_are_parts_of_the_photo_and_reach_every_place():
    image = torch.arange(4 * 5).view(1, 4, 5)
    crops = [random_crop(image, 3, seeded(seed)) for seed in range(200)]
    places = {(int(c[0, 0, 0]) // 5, int(c[0, 0, 0]) % 5) for c in crops}
    assert places == set(itertools.product(range(2), range(3)))
    for crop in crops:
        top, left = int(crop[0, 0, 0]) // 5, int(crop[0, 0, 0]) % 5
        assert torch.equal(crop, image[:, top : top + 3, left : left + 3])
    with pytest.raises(ValueError, match="a 4x5 photo has no 8x8 crop"):
        random_crop(image, 8, seeded(0))


def test_flips_are_left_to_right_and_half_as_often():
    image = photo(4, 6)
    flipped = [torch.equal(random_flip(image, seeded(s)), image.flip(-1)) for s in range(200)]
    kept = [torch.equal(random_flip(image, seeded(s)), image) for s in range(200)]
    assert 70 < sum(flipped) < 130
    assert sum(flipped) + sum(kept) == 200


def test_rescaled_crops_average_the_whole_short_side():
    pytest.importorskip("cv2")
    blocks = photo(16, 16, seed=3)
    big = blocks.repeat_interleave(4, 1).repeat_interleave(4, 2)
    assert torch.equal(rescale_crop(big, 16, seeded(0)), blocks)
    wide = torch.arange(48, dtype=torch.uint8).expand(3, 16, 48)
    starts = {int(rescale_crop(wide, 16, seeded(seed))[0, 0, 0]) for seed in range(100)}
    assert min(starts) < 5
    assert max(starts) > 27


def test_small_photos_are_continued_by_reflection_when_rescaled():
    pytest.importorskip("cv2")
    image = photo(6, 6)
    grown = rescale_crop(image, 10, seeded(0))
    assert torch.equal(grown[:, :6, :6], image)
    assert torch.equal(grown[:, 6:, :6], image[:, 1:5].flip(1))


def test_crop_data_sets_are_fixed_by_their_seed():
    images = [photo(seed=0), photo(seed=1)]
    crops = PhotoCrops(images, size=32, count=5, seed=7)
    again = PhotoCrops(images, size=32, count=5, seed=7)
    other = PhotoCrops(images, size=32, count=5, seed=8)
    assert len(crops) == 5 == len(list(crops))
    assert all(torch.equal(crops[i], again[i]) for i in (4, 0, 2))
    assert any(not torch.equal(crops[i], other[i]) for i in range(5))
    assert not torch.equal(crops[0], crops[2])  # the same photo, another place
    with pytest.raises(ValueError, match="unknown crop 'centre'"):
        PhotoCrops(images, size=32, crop="centre")
    with pytest.raises(ValueError, match="no photos"):
        PhotoCrops([], size=32)
    with pytest.raises(ValueError, match="uint8"):
        PhotoCrops([images[0].float()], size=32)[0]


# --------------------------------------------------------------------------- pairs


def test_a_transform_gives_pairs_in_minus_one_to_one_from_its_generator_alone(basicsr):
    transform = pickle.loads(pickle.dumps(PairTransform(size=64)))
    first, second = transform(photo(), seeded(1)), transform(photo(), seeded(1))
    other = transform(photo(), seeded(2))
    assert first["gt"].shape == (3, 64, 64)
    assert first["lq"].shape == (3, 16, 16)
    for name, value in first.items():
        assert value.dtype == torch.float32
        assert -1 <= value.min() < 0 < value.max() <= 1
        assert torch.equal(value, second[name])
        assert not torch.equal(value, other[name])
    levels = (first["gt"] + 1) * 127.5
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-3)
    crop = random_crop(photo(), 64, seeded(3))
    whole = PairTransform(size=64, flip=False)(crop, seeded(0))["gt"]
    assert torch.equal(to_uint8((whole + 1) / 2), crop)


def test_batches_do_not_depend_on_how_they_are_split(basicsr):
    keyed = _KeyedDataset([photo(seed=s) for s in range(4)], PairTransform(size=64), seed=5)
    together = ResumableSampler(4, batch_size=4, seed=5)
    split = ResumableSampler(4, batch_size=4, seed=5, accumulation=2)
    together.between(0, 2)
    split.between(0, 2)

    def samples(sampler):
        keys_of_batches = list(sampler)
        return {
            key: pair
            for keys in keys_of_batches
            for key, pair in zip(keys, keyed.__getitems__(keys), strict=True)
        }

    one, two = samples(together), samples(split)
    assert one.keys() == two.keys()
    assert len(one) == 8
    assert all(torch.equal(one[k][name], two[k][name]) for k in one for name in ("gt", "lq"))


def test_a_pool_s_pairs_depend_on_the_seed_and_their_number_alone(basicsr):
    images = [photo(seed=0), photo(seed=1)]
    done = []
    gt, lq = make_pairs(
        images, 5, gt_size=64, seed=3, progress=lambda i, count: done.append((i, count))
    )
    assert gt.shape == (5, 3, 64, 64)
    assert lq.shape == (5, 3, 16, 16)
    assert gt.dtype == lq.dtype == torch.uint8
    assert done == [(i, 5) for i in range(1, 6)]
    shorter = make_pairs(images, 2, gt_size=64, seed=3)
    assert torch.equal(shorter[0], gt[:2])
    assert torch.equal(shorter[1], lq[:2])
    other = make_pairs(images, 2, gt_size=64, seed=4)
    assert not torch.equal(other[0], gt[:2])
    assert not torch.equal(other[1], lq[:2])


def test_low_resolution_shows_the_same_picture(basicsr):
    smooth = torch.nn.functional.interpolate(
        torch.rand(6, 3, 4, 4, generator=seeded(0)), size=64, mode="bilinear"
    )
    images = list(to_uint8(smooth))
    gt, lq = make_pairs(images, 6, gt_size=64, config=TESTING)
    small = torch.nn.functional.avg_pool2d(gt.float(), 4)
    errors = (small[:, None] - lq[None].float()).abs().mean((2, 3, 4))  # gt i against lq j
    assert torch.equal(errors.argmin(1), torch.arange(6))
    assert errors.diagonal().max() < 12  # levels of 255


def test_pair_folders_go_by_name(tmp_path):
    for folder in ("lq", "hq"):
        (tmp_path / folder).mkdir()
    low, high = photo(4, 4), photo(16, 16)
    for stem in ("b", "a"):
        write_image(low, tmp_path / "lq" / f"{stem}.png")
        write_image(high, tmp_path / "hq" / f"{stem}.bmp")
    pairs = PairFolder(tmp_path)
    assert [pair.name for pair in pairs] == ["a", "b"]
    assert len(pairs) == 2
    assert torch.equal(to_uint8(pairs[0].lq), low)
    assert torch.equal(to_uint8(pairs[0].gt), high)


def test_pair_folders_name_the_first_file_without_partner(tmp_path):
    for folder in ("lq", "gt"):
        (tmp_path / folder).mkdir()
        write_image(photo(4, 4), tmp_path / folder / "a.png")
    write_image(photo(4, 4), tmp_path / "gt" / "c.png")
    write_image(photo(4, 4), tmp_path / "gt" / "b.png")
    with pytest.raises(ValueError, match=r"b\.png has no partner b\.\* in .*lq \(2 such files\)"):
        PairFolder(tmp_path)
    for name in ("b.png", "c.png", "a.jpg"):
        write_image(photo(4, 4), tmp_path / "lq" / name)
    with pytest.raises(ValueError, match=r"a\.png and a\.jpg have one name"):
        PairFolder(tmp_path)
    with pytest.raises(FileNotFoundError, match="lq is not a folder"):
        PairFolder(tmp_path / "gt")


@mirrored
def test_val_sr_is_32_pairs_at_scale_4():
    from papers_shared.assets import fetch

    pairs = PairFolder(fetch("val_sr").path)
    assert len(pairs) == 32
    assert pairs[31].lq.shape == (3, 64, 64)
    assert pairs[31].gt.shape == (3, 256, 256)
