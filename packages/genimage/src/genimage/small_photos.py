"""Photos remade by generators that can be had here: the sources of the small benchmark.

Photos of BSDS500 are halved, which takes out the grid of their JPEG files, and pass through each
generator, which makes them anew from a quarter of their size or from latents. Pictures stay in the
cache: a generator runs once.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

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
    from papers_shared.diffusion.taef2 import load_taef2

    vae = load_taef2()

    def there_and_back(x: Tensor) -> Tensor:
        return vae.decode(vae.encode(2 * x - 1).latents).sample / 2 + 0.5

    return {stem: _through(there_and_back, photo) for stem, photo in photos.items()}


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


def photos_of(folder: Path, count: int) -> dict[str, Image]:
    """The first photos of a folder by name, halved."""
    return {path.stem: halved(path) for path in list_images(folder)[:count]}


def remade(name: str, folder: Path, count: int) -> dict[str, Image]:
    """What a generator makes of the first photos of a folder; from the cache where it did before.

    Args:
        name: one of ``GENERATORS``.
        folder: of photos.
        count: how many.

    Raises:
        Needs: a package whose command generates is missing.
        FileNotFoundError: weights are missing.
        ValueError: the generator changed a picture's size.
    """
    photos = photos_of(folder, count)
    digest = hashlib.sha256(Path(__file__).read_bytes())
    digest.update(json.dumps(sorted(photos)).encode())
    home = assets.cache_folder() / "genimage" / "made"
    kept = home / f"{name}_{digest.hexdigest()[:16]}"
    if not kept.is_dir():
        part = kept.with_name(kept.name + ".part")
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        made = GENERATORS[name].make(photos, part / "work")
        for stem, photo in photos.items():
            if made[stem].size != photo.size:
                raise ValueError(f"{name} changed the size of {stem}: {made[stem].size}")
            made[stem].save(part / f"{stem}.png")
        shutil.rmtree(part / "work", ignore_errors=True)
        part.replace(kept)
    return {stem: open_picture(kept / f"{stem}.png") for stem in photos}
