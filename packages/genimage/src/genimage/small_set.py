"""A benchmark in GenImage's layout from generators that can be had here; NOT GenImage.

Photos of BSDS500 are halved (which takes out the grid of their JPEG files). Some stay as they are
(real); other photos pass through a generator, which makes them anew from a quarter of their size
or from latents. Both are cut into squares of 32 pixels and saved as PNG: same sizes and formats on
both sides. What the generators change is texture, not content.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from genimage.pictures import from_tensor, open_picture, to_tensor
from papers_shared import assets
from papers_shared.images import list_images
from papers_shared.networks import load as load_network
from papers_shared.tables.recipe import Needs

if TYPE_CHECKING:
    from PIL.Image import Image

LONG, SHORT = 240, 160  # of the halved photos
Photos = Mapping[str, "Image"]
Progress = Callable[[int, int, str], None]

SETTINGS: dict[str, Any] = {
    "train_photos": 60,  # real ones; as many others are generated
    "train_crops": 20,  # of each photo
    "val_photos": 30,
    "val_crops": 10,
    "side": 32,
}


def halved(path: Path) -> Image:
    """A photo of BSDS500 at half its size, its sides multiples of 80."""
    from PIL import Image

    picture = open_picture(path)
    size = (LONG, SHORT) if picture.width > picture.height else (SHORT, LONG)
    box = (0, 0, 2 * size[0], 2 * size[1])
    return picture.resize(size, Image.Resampling.BICUBIC, box=box)


def quartered(picture: Image) -> Image:
    """A quarter of the sides, bicubic and antialiased: what an upscaler starts from."""
    from PIL import Image

    size = (picture.width // 4, picture.height // 4)
    return picture.resize(size, Image.Resampling.BICUBIC)


def _through(network: Callable[[Tensor], Tensor], picture: Image) -> Image:
    """uint8 -> [0, 1] -> network -> uint8."""
    with torch.inference_mode():
        out = network(to_tensor(picture)[None].float() / 255)[0]
    return from_tensor(out.clamp(0, 1).mul(255).round().to(torch.uint8))


def by_network(name: str) -> Callable[[Photos, Path], dict[str, Image]]:
    """A published x4 network (papers_shared.networks) on the quartered photos."""

    def make(photos: Photos, workdir: Path) -> dict[str, Image]:
        network = load_network(name)
        return {stem: _through(network, quartered(photo)) for stem, photo in photos.items()}

    return make


def by_command(program: str) -> Callable[[Photos, Path], dict[str, Image]]:
    """``PROGRAM upscale FOLDER -o FOLDER`` of another package, pictures passed on as files."""

    def make(photos: Photos, workdir: Path) -> dict[str, Image]:
        beside = str(Path(sys.executable).parent)
        found = shutil.which(program, path=beside) or shutil.which(program)
        if found is None:
            raise Needs(
                f"the command {program} is not installed: pip install -e "
                f"packages/{program.replace('-', '_')}"
            )
        low, high = workdir / "low", workdir / "high"
        low.mkdir(parents=True)
        for stem, photo in photos.items():
            quartered(photo).save(low / f"{stem}.png")
        command = [found, "upscale", str(low), "-o", str(high), "--device", "cpu"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise Needs(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
        return {stem: open_picture(high / f"{stem}.png") for stem in photos}

    return make


def by_latents(photos: Photos, workdir: Path) -> dict[str, Image]:
    """TAEF2's round trip."""
    from genimage import taef2

    encode, decode = taef2.load()
    return {stem: _through(lambda x: decode(encode(x)), photo) for stem, photo in photos.items()}


def by_resampling(photos: Photos, workdir: Path) -> dict[str, Image]:
    """Bicubic down to half and up again: no network at all, the control."""
    from PIL import Image

    out = {}
    for stem, photo in photos.items():
        small = photo.resize((photo.width // 2, photo.height // 2), Image.Resampling.BICUBIC)
        out[stem] = small.resize(photo.size, Image.Resampling.BICUBIC)
    return out


@dataclass(frozen=True)
class Generator:
    """Where generated pictures come from.

    Attributes:
        label: in tables.
        kind: in words.
        make: photos by stem -> pictures of the same sizes.
        assets: of the catalogue that it needs.
    """

    label: str
    kind: str
    make: Callable[[Photos, Path], dict[str, Image]]
    assets: tuple[str, ...] = ()


GENERATORS: dict[str, Generator] = {
    "taef2": Generator(
        "TAEF2",
        "latent autoencoder, round trip",
        by_latents,
        ("taef2_encoder", "taef2_decoder"),
    ),
    "dit_sr": Generator("DiT-SR", "latent diffusion x4, 15 steps", by_command("dit-sr")),
    "tad_sr": Generator("TAD-SR", "latent diffusion x4, distilled to 1 step", by_command("tad-sr")),
    "realesrgan": Generator(
        "Real-ESRGAN", "GAN x4", by_network("realesrgan_x4plus"), ("realesrgan_x4plus_fp16",)
    ),
    "rlfn": Generator("RLFN", "regression x4", by_network("rlfn_x4"), ("rlfn_x4",)),
    "bicubic": Generator("bicubic", "resampling x2, the control", by_resampling),
}
ASSETS = ("bsds500_train", "bsd100", *(a for g in GENERATORS.values() for a in g.assets))


def squares(photos: Photos, count: int, *, side: int, seed: int) -> list[tuple[str, Image]]:
    """``count`` squares of each photo, drawn from a grid of squares that do not overlap."""
    out = []
    draw = random.Random(seed)
    for stem, photo in photos.items():
        cells = [
            (left, top)
            for top in range(0, photo.height - side + 1, side)
            for left in range(0, photo.width - side + 1, side)
        ]
        for left, top in sorted(draw.sample(cells, count)):
            box = (left, top, left + side, top + side)
            out.append((f"{stem}_{left:03d}_{top:03d}", photo.crop(box)))
    return out


def photos_of(folder: Path, count: int) -> tuple[dict[str, Image], dict[str, Image]]:
    """Real photos, and others to be generated from: ``count`` each, in turns by name."""
    paths = list_images(folder)[: 2 * count]
    halves = [{p.stem: halved(p) for p in paths[k::2]} for k in (0, 1)]
    return halves[0], halves[1]


def folder_of(settings: Mapping[str, Any], *, seed: int) -> Path:
    """Where the benchmark of these settings lies; the key covers this file's source too."""
    key = json.dumps(dict(settings), sort_keys=True) + f" {seed} "
    digest = hashlib.sha256((key + Path(__file__).read_text(encoding="utf-8")).encode())
    return assets.cache_folder() / "genimage" / f"small_{digest.hexdigest()[:16]}"


def small_set(
    settings: Mapping[str, Any],
    sources: Mapping[str, Path],
    *,
    seed: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> Path:
    """The benchmark's folder, made where it is not there; an interrupted making goes on.

    Args:
        settings: ``SETTINGS``.
        sources: ``train`` and ``val`` -> folder of photos.
        seed: of the choice of squares.
        progress: called as ``progress(done, total, what)``.

    Raises:
        Needs: a package whose command generates is missing.
        FileNotFoundError: weights are missing.
    """
    root = folder_of(settings, seed=seed)
    for number, (name, generator) in enumerate(GENERATORS.items()):
        if (root / name).is_dir():
            continue
        progress(number, len(GENERATORS), f"pictures of {generator.label}")
        part = root / f".{name}.part"
        shutil.rmtree(part, ignore_errors=True)
        for mode, source in sources.items():
            real, others = photos_of(source, settings[f"{mode}_photos"])
            made = generator.make(others, part / "work" / mode)
            wrong = [s for s in others if made[s].size != others[s].size]
            if wrong:
                raise ValueError(f"{generator.label} changed the size of {wrong[0]}")
            for offset, (label, photos) in enumerate({"nature": real, "ai": made}.items()):
                folder = part / mode / label
                folder.mkdir(parents=True)
                draw = 1000 * seed + 10 * number + offset
                for stem, square in squares(
                    photos, settings[f"{mode}_crops"], side=settings["side"], seed=draw
                ):
                    square.save(folder / f"{name}_{stem}.png")
        shutil.rmtree(part / "work", ignore_errors=True)
        part.replace(root / name)
    return root


def mean_spectrum(pictures: Sequence[Image]) -> np.ndarray:
    """Mean log magnitude of the grey pictures' residues, zero frequency in the middle.

    A residue is a picture less its 3x3 mean, so that contents do not hide the traces.

    Args:
        pictures: of one size (S, S).

    Returns:
        (S, S).
    """
    from scipy.ndimage import uniform_filter

    total = None
    for picture in pictures:
        grey = np.asarray(picture.convert("L"), dtype=np.float64)
        residue = grey - uniform_filter(grey, 3)
        logs = np.log(np.abs(np.fft.fftshift(np.fft.fft2(residue))) + 1e-3)
        total = logs if total is None else total + logs
    if total is None:
        raise ValueError("no pictures")
    return total / len(pictures)
