"""The x4 model at its full size, with random weights in the authors' files."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from papers_shared.images import read_image, write_image

SCRIPTS = Path(__file__).parent / "scripts"
sys.path.insert(0, str(SCRIPTS))
tiny = importlib.import_module("tiny_tad_sr")

# In a process of its own, so that the peak is the command's.
COMMAND = """
import resource, sys
from tad_sr.cli import main
status = main(sys.argv[1:])
print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="peaks are in KiB on Linux alone"),
]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Options that name generator and autoencoder."""
    folder = tmp_path_factory.mktemp("full_size")
    paths = [str(folder / name) for name in ("TAD-SR.pth", "autoencoder_vq_f4.pth")]
    subprocess.run([sys.executable, str(SCRIPTS / "write_full_size.py"), *paths], check=True)
    return ["--weights", paths[0], "--autoencoder", paths[1], "--device", "cpu"]


def gigabytes(*argv: str) -> tuple[float, str]:
    """Peak memory and output of a command that must succeed."""
    done = subprocess.run([sys.executable, "-c", COMMAND, *argv], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    out, _, peak = done.stdout.rpartition("peak ")
    return int(peak) * 1024 / 1e9, out


@pytest.mark.skipif(not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set")
def test_the_authors_files_are_evaluated_end_to_end(files: list[str], tmp_path: Path) -> None:
    few = ["--first", "2", "--metrics", "psnr", "--output", str(tmp_path)]
    peak, out = gigabytes("eval", "--data", "val_sr", *files, *few)
    assert "on val_sr, 2 pictures" in out
    assert "psnr: " in out
    assert [read_image(path).shape for path in tmp_path.glob("*.png")] == [(3, 256, 256)] * 2
    print(f"eval: {peak:.2f} GB")
    assert peak < 8


@pytest.mark.parametrize("side", [64, 128])
def test_a_tile_fits_into_8_gigabytes(files: list[str], tmp_path: Path, side: int) -> None:
    write_image(tiny.photo(side, side), tmp_path / "photo.png")
    output = tmp_path / "large.png"
    argv = ["upscale", str(tmp_path / "photo.png"), "-o", str(output), "--tile", str(side)]
    peak, _ = gigabytes(*argv, *files)
    assert read_image(output).shape == (3, 4 * side, 4 * side)
    print(f"{side}: {peak:.2f} GB")
    assert peak < 8
