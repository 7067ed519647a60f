import itertools
import math
import platform
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from papers_shared.inference import (
    OutOfMemory,
    available_memory,
    colour,
    count_tiles,
    even_tile,
    match_colour,
    plan_tile,
    run_tiled,
    tile_starts,
)
from papers_shared.inference import tiles as tiles_module
from papers_shared.inference.colour import low_frequencies
from papers_shared.inference.memory import is_out_of_memory, linux_available, peak_of_call
from papers_shared.inference.tiles import pad_to_multiple, side_weights


def levels(*shape):
    generator = torch.Generator().manual_seed(sum(shape))
    return torch.randint(256, shape, generator=generator).float() / 255


def nearest(tiles, origins=()):
    return tiles.repeat_interleave(4, -1).repeat_interleave(4, -2)


def tiled(fn, image, **options):
    return run_tiled(fn, image, **{"scale": 4, "tile": 64, "overlap": 16, "multiple": 16} | options)


# --------------------------------------------------------------------------- tiles


@pytest.mark.parametrize("length", [1, 63, 64, 65, 112, 113, 1000])
def test_starts_cover_the_side_and_the_last_tile_is_shifted_to_fit(length):
    starts = tile_starts(length, 64, 16)
    assert starts[0] == 0
    assert starts[-1] == max(0, length - 64)
    assert all(0 < b - a <= 48 for a, b in itertools.pairwise(starts))


def test_the_authors_tiles_of_512_with_stride_448():
    assert tile_starts(1100, 512, 64) == [0, 448, 588]
    assert count_tiles(1100, 512, tile=512, overlap=64) == 3


@pytest.mark.parametrize("blend", ["feather", "average"])
@pytest.mark.parametrize("batch_size", [1, 3, 64])
@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (64, 64), (65, 130), (150, 211)])
def test_pixels_come_back_unchanged_at_any_size(size, batch_size, blend):
    image = levels(3, *size)
    out = tiled(nearest, image, batch_size=batch_size, blend=blend, dtype=torch.uint8)
    assert torch.equal(out, (nearest(image) * 255).round().to(torch.uint8))
    floats = tiled(nearest, image, batch_size=batch_size, blend=blend)
    torch.testing.assert_close(floats, nearest(image), rtol=0, atol=5e-7)


def test_batches_of_latents_keep_their_pictures_apart():
    latents = torch.randn(3, 8, 30, 45, generator=torch.Generator().manual_seed(0))
    seen = []

    def double(tiles, origins):
        seen.extend(origins)
        for tile, (image, top, left) in zip(tiles, origins, strict=True):
            height, width = tile.shape[1:]
            assert max(height, width) <= 16
            assert torch.equal(tile, latents[image, :, top : top + height, left : left + width])
        return torch.cat([tiles, 2 * tiles], 1)

    out = run_tiled(double, latents, scale=1, tile=16, overlap=4, batch_size=5)
    torch.testing.assert_close(out, torch.cat([latents, 2 * latents], 1))
    assert len(seen) == len(set(seen)) == 3 * count_tiles(30, 45, tile=16, overlap=4)


def test_every_tile_has_the_sides_the_network_needs():
    shapes = set()

    def record(tiles, origins):
        shapes.add(tuple(tiles.shape[-2:]))
        return nearest(tiles)

    tiled(record, levels(3, 50, 100))
    tiled(record, levels(3, 3, 5))
    assert shapes == {(64, 64), (16, 16)}


def test_padding_mirrors_where_the_side_is_long_enough_and_repeats_the_edge_elsewhere():
    row = torch.arange(5.0).reshape(1, 1, 5)
    assert pad_to_multiple(row, 8)[0, 0].tolist() == [0, 1, 2, 3, 4, 3, 2, 1]
    assert pad_to_multiple(row[..., :2], 8)[0, 7].tolist() == [0, 1, 1, 1, 1, 1, 1, 1]


@pytest.mark.parametrize("blend", ["feather", "average"])
def test_weights_of_a_side_add_up_to_one_also_where_three_tiles_overlap(blend):
    starts = tile_starts(70, 32, 16)
    assert starts == [0, 16, 32, 38]
    total = torch.zeros(140)
    for start, weight in zip(starts, side_weights(starts, 32, 2, blend), strict=True):
        assert weight.min() > 0
        total[2 * start : 2 * start + 64] += weight
    torch.testing.assert_close(total, torch.ones(140))


def test_feathering_hides_seams_that_averages_and_cuts_show():
    def steepest(overlap, blend):
        stride = 64 - overlap
        image = torch.linspace(0, 1, 3 * stride + 64).expand(3, 64, -1)

        def drifting(tiles, origins):  # every second tile is brighter, as GroupNorm may make it
            shifts = [0.1 * (left // stride % 2) for _, _, left in origins]
            return nearest(tiles) + torch.tensor(shifts).reshape(-1, 1, 1, 1)

        shift = tiled(drifting, image, overlap=overlap, blend=blend) - nearest(image)
        return shift.diff(dim=-1).abs().max().item()

    assert steepest(0, "feather") == pytest.approx(0.1, rel=1e-4)
    assert steepest(16, "average") == pytest.approx(0.05, rel=1e-4)
    # sin^2 over n pixels rises by pi / (2 n) at its steepest; n = 4 * 16.
    assert steepest(16, "feather") == pytest.approx(0.1 * math.pi / 128, rel=1e-2)


@pytest.mark.parametrize("shape", [(64, 20000), (20000, 64)])
def test_of_a_panorama_only_open_rows_are_held_in_float(monkeypatch, shape):
    held = []
    finish = tiles_module._Canvas.finish

    def watched(canvas, row):
        held.append(canvas.strip.numel())
        finish(canvas, row)

    monkeypatch.setattr(tiles_module._Canvas, "finish", watched)
    image = levels(3, *shape)
    out = tiled(nearest, image, dtype=torch.uint8, batch_size=4)
    assert out.shape == (3, 4 * shape[0], 4 * shape[1])
    assert torch.equal(out[..., ::4, ::4], (image * 255).round().to(torch.uint8))
    # Four tiles of 64 with a stride of 48 are 208 pixels long: a hundredth of the picture.
    assert max(held) == 3 * (4 * 64) * (4 * 208)


def test_progress_counts_the_tiles():
    calls = []
    tiled(nearest, levels(3, 100, 100), batch_size=3, progress=lambda *c: calls.append(c))
    assert calls == [(2, 4), (4, 4)]  # a batch keeps to a row of tiles


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"tile": 60}, "multiple of 16"),
        ({"overlap": 64}, "0 <= overlap < tile"),
        ({"blend": "gauss"}, "expected feather, average, discard"),
        ({"dtype": torch.int64}, "uint8 or floating point"),
    ],
)
def test_sizes_that_do_not_go_together_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiled(nearest, levels(3, 80, 80), **options)


def test_a_network_of_another_scale_or_with_nan_is_refused():
    with pytest.raises(ValueError, match=r"expected \(1, C, 64, 64\)"):
        tiled(lambda tiles, origins: tiles, levels(3, 9, 9))

    def broken(tiles, origins):
        return nearest(tiles) * torch.tensor([math.nan if o.left == 36 else 1.0 for o in origins])

    with pytest.raises(ValueError, match="NaN or infinity for the tile at row 0, column 36"):
        tiled(broken, levels(3, 9, 100))


# --------------------------------------------------------------------------- memory


ALLOCATION = "[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"


@pytest.mark.parametrize(
    "error", [RuntimeError(ALLOCATION), torch.OutOfMemoryError("CUDA"), MemoryError()]
)
@pytest.mark.parametrize("pixels", [64 * 64, 40 * 40, 16 * 16])
def test_what_does_not_fit_is_tried_singly_and_then_in_smaller_tiles(error, pixels):
    sizes = []

    def limited(tiles, origins):
        sizes.append((len(tiles), *tiles.shape[-2:]))
        if tiles[:, 0].numel() > pixels:
            raise error
        return nearest(tiles)

    image = levels(3, 150, 211)
    out = tiled(limited, image, batch_size=3)
    torch.testing.assert_close(out, nearest(image), rtol=0, atol=5e-7)
    assert sizes[:2] == [(3, 64, 64), (1, 64, 64)]
    assert all(h % 16 == w % 16 == 0 for _, h, w in sizes)
    failed = [n for n, h, w in sizes if n * h * w > pixels]
    assert len(failed) == {64 * 64: 1, 40 * 40: 2, 16 * 16: 3}[pixels]  # once a size, no more


def test_tiles_of_tiles_have_origins_in_the_whole_picture():
    image = levels(3, 60, 130)

    def limited(tiles, origins):
        for tile, (_, top, left) in zip(tiles, origins, strict=True):
            padded = pad_to_multiple(image, 16)
            side = tile.shape[-1]
            assert torch.equal(
                tile, padded[:, top : top + tile.shape[-2], :130][..., left : left + side]
            )
        if tiles.shape[-1] > 32:
            raise MemoryError
        return nearest(tiles)

    torch.testing.assert_close(tiled(limited, image), nearest(image), rtol=0, atol=5e-7)


def test_the_error_of_the_smallest_tile_says_why():
    def never(tiles, origins):
        raise RuntimeError(ALLOCATION)

    with pytest.raises(OutOfMemory, match=r"one tile of 16 px, the smallest.*can't allocate"):
        tiled(never, levels(3, 50, 50))


def test_other_errors_pass_through():
    def broken(tiles, origins):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    with pytest.raises(RuntimeError, match="mat1"):
        tiled(broken, levels(3, 50, 50))


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("CUDA error: out of memory", True),
        ("cuDNN error: CUDNN_STATUS_ALLOC_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True),
        ("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes", True),
        ("expected scalar type Half but found Float", False),
    ],
)
def test_failed_allocations_are_told_by_their_message(message, expected):
    assert is_out_of_memory(RuntimeError(message)) is expected
    assert not is_out_of_memory(ValueError(message))


def test_the_largest_tile_that_fits_is_planned():
    def square(side):
        return 1000 * side * side

    sides = (64, 128, 256, 512)
    assert plan_tile(100_000_000, square, sides) == 256
    assert plan_tile(100_000_000, square, sides, share=0.5) == 128
    with pytest.raises(OutOfMemory, match=r"smallest tile, 64 px, needs 0\.00 GB"):
        plan_tile(1000, square, sides)


def test_memory_of_this_machine_is_known():
    lines = Path("/proc/meminfo").read_text().splitlines()
    total = next(int(line.split()[1]) for line in lines if "MemTotal" in line)
    assert 0 < available_memory("cpu") < 1024 * total
    with pytest.raises(ValueError, match="expected cpu or cuda"):
        available_memory("meta")


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="is about glibc's malloc")
def test_freed_memory_stays_with_the_process():
    """After a few maps of 64 MB the next one needs no pages from the system."""
    code = """
import resource, torch
from papers_shared.inference.memory import keep_freed_memory
keep_freed_memory()
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(1 << 24)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
print(*[faults() for _ in range(10)])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    counts = [int(count) for count in done.stdout.split()]
    assert min(counts) < counts[0] / 10


@pytest.mark.parametrize("version", [1, 2])
@pytest.mark.parametrize("path", ["/", "/jobs/one"])
def test_limits_of_a_container_count(tmp_path, version, path):
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/meminfo").write_text("MemTotal: 900 kB\nMemAvailable: 800 kB\n")
    top = tmp_path / "sys/fs/cgroup" / ("memory" if version == 1 else "")
    group = top / path.strip("/")
    group.mkdir(parents=True)
    names = {
        1: (
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_inactive_file",
            "4:cpu,memory:",
        ),
        2: ("memory.max", "memory.current", "inactive_file", "0::"),
    }
    limit, used, cache, line = names[version]
    (tmp_path / "proc/self/cgroup").write_text(f"{line}{path}\n")
    (group / limit).write_text("500000\n")
    (group / used).write_text("400000\n")
    (group / "memory.stat").write_text(f"anon 1\n{cache} 30000\n")
    assert linux_available(tmp_path) == 130000
    (group / limit).write_text("max\n" if version == 2 else f"{2**63 - 4096}\n")
    assert linux_available(tmp_path) == 800 * 1024


# --------------------------------------------------------------------------- colour


def smooth_picture(size=96, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return F.interpolate(torch.rand(1, 3, 6, 6, generator=generator), size, mode="bicubic")[0]


def test_low_frequencies_are_five_dilated_passes_of_the_3x3_kernel():
    image = levels(3, 40, 50)
    kernel = torch.tensor([[1.0, 2, 1], [2, 4, 2], [1, 2, 1]]).div(16).expand(3, 1, 3, 3)
    expected = image[None]
    for step in (1, 2, 4, 8, 16):
        padded = F.pad(expected, (step,) * 4, mode="replicate")
        expected = F.conv2d(padded, kernel, dilation=step, groups=3)
    torch.testing.assert_close(low_frequencies(image), expected[0])


@pytest.mark.parametrize(("method", "contrast"), [("wavelet", 1.0), ("adain", 0.8)])
def test_a_colour_cast_is_removed(method, contrast):
    clean = smooth_picture() + 0.1 * (levels(3, 96, 96) - 0.5)
    cast = contrast * clean + torch.tensor([0.1, -0.05, 0.02])[:, None, None]
    fixed = match_colour(cast, clean, method)
    torch.testing.assert_close(fixed, clean, rtol=0, atol=1e-4)


def test_wavelet_keeps_high_frequencies_exactly():
    image, reference = levels(3, 64, 64), smooth_picture(64)
    fixed = match_colour(image, reference, "wavelet")
    torch.testing.assert_close(
        fixed, image - low_frequencies(image) + low_frequencies(reference), rtol=0, atol=1e-5
    )


def test_adain_takes_mean_and_contrast_of_each_picture():
    images = torch.stack([levels(3, 64, 48), levels(3, 64, 48) ** 2])
    references = torch.stack([smooth_picture(64)[..., :48], smooth_picture(64, 1)[..., :48]])
    fixed = match_colour(images, references, "adain")
    torch.testing.assert_close(fixed.mean((-1, -2)), references.mean((-1, -2)))
    torch.testing.assert_close(fixed.std((-1, -2)), references.std((-1, -2)), rtol=1e-3, atol=0)


@pytest.mark.parametrize("method", ["wavelet", "adain"])
@pytest.mark.parametrize("factor", [1, 3, 4])
def test_strips_give_what_the_whole_picture_gives(monkeypatch, method, factor):
    reference = levels(3, 60, 25)
    image = levels(3, 60 * factor, 25 * factor)
    large = F.interpolate(reference[None], scale_factor=factor, mode="bicubic")[0]
    whole = match_colour(image, large if factor > 1 else reference, method)
    monkeypatch.setattr(colour, "_STRIP_PIXELS", 13 * 25 * factor)
    torch.testing.assert_close(match_colour(image, reference, method), whole, rtol=0, atol=2e-6)


def test_colour_of_tiny_and_constant_pictures():
    flat = torch.full((3, 4, 4), 0.5)
    for method in ("wavelet", "adain"):
        fixed = match_colour(flat, torch.full((3, 1, 1), 0.25), method)
        torch.testing.assert_close(fixed, torch.full((3, 4, 4), 0.25))
    assert match_colour(flat, flat, "none") is flat


@pytest.mark.parametrize(
    ("image", "reference", "method", "message"),
    [
        (torch.zeros(3, 8, 8), torch.zeros(3, 8, 8), "histogram", "expected wavelet, adain"),
        (torch.zeros(1, 8, 8), torch.zeros(1, 8, 8), "adain", r"floats \(\.\.\., 3, H, W\)"),
        (torch.zeros(3, 8, 8), torch.zeros(3, 3, 3), "adain", "nor smaller by a whole factor"),
        (torch.zeros(3, 8, 8), torch.zeros(3, 4, 2), "wavelet", "nor smaller by a whole factor"),
        (torch.zeros(3, 8, 8), torch.zeros(3, 9, 9), "wavelet", "nor smaller by a whole factor"),
    ],
)
def test_pictures_whose_colours_cannot_be_matched_are_refused(image, reference, method, message):
    with pytest.raises(ValueError, match=message):
        match_colour(image, reference, method)


def test_tiles_are_as_small_as_cover_a_side_with_their_number():
    for length in range(1, 400):
        side = even_tile(length, tile=64, overlap=8, multiple=8)
        assert side % 8 == 0
        count = len(tile_starts(length, 64, 8))
        assert len(tile_starts(length, side, min(8, side - 1))) == count
        assert count == 1 or count * (side - 8) - (count - 1) * 8 < length <= count * side
    assert even_tile(300, tile=256, overlap=16, multiple=16) == 160


def test_the_peak_of_a_call_is_what_lives_at_once():
    def skip():
        a = torch.zeros(1000)
        b = a + 1
        b = b + 1  # the first b lives until the second is made
        view = a[10:]
        return (view * 2).sum() + b.sum()

    assert peak_of_call(skip) == 12_000  # a and both b
    assert peak_of_call(lambda: [torch.zeros(100) for _ in range(5)]) == 2000
    assert peak_of_call(lambda: [torch.zeros(100).sum() for _ in range(5)]) < 1000
