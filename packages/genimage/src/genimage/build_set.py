"""``genimage build OUT --real PHOTOS --generated NAME=FOLDER``: a benchmark in GenImage's layout.

Both classes are decoded, cut to one size and written in one format, so that nothing outside the
pixels tells them apart; ``genimage audit OUT`` shows it. What pixels keep of earlier compressions
(the 8x8 grid of JPEG photos) this cannot take out: reduce such photos first, or train with
``--augment blur_jpeg``.
"""

from __future__ import annotations

import io
import json
import random
import shutil
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from genimage.audit import audit, lines
from genimage.config import BuildConfig
from genimage.detect import find_files
from genimage.index import open_index
from genimage.pictures import Geometry, Unreadable, decode, from_tensor

Plan = list[tuple[str, Path]]  # path in the benchmark, source


def parse_generated(given: Sequence[str]) -> dict[str, Path]:
    """``NAME=FOLDER`` of each generator.

    Raises:
        ValueError: it is not of that form, or a name stands twice or cannot be a folder's.
    """
    out: dict[str, Path] = {}
    for text in given:
        name, equals, folder = text.partition("=")
        if not equals or not folder or not name or set(name) & set("/\\") or name in out:
            raise ValueError(f"--generated {text!r}: expected NAME=FOLDER, each name once")
        out[name] = Path(folder)
    return out


def plan(config: BuildConfig) -> Plan:
    """Where every picture goes: the split, and real ones shared out among the generators.

    Raises:
        FileNotFoundError: a folder does not exist or is empty.
        ValueError: there are fewer real pictures than generators, or no validation pictures.
    """
    generated = {n: find_files([f]) for n, f in parse_generated(config.generated).items()}
    real = find_files(config.real)
    if len(real) < len(generated):
        raise ValueError(f"{len(real)} real pictures for {len(generated)} generators")
    draw = random.Random(config.seed)
    draw.shuffle(real)
    out: Plan = []
    for number, (name, fake) in enumerate(generated.items()):
        mine = real[number :: len(generated)]
        draw.shuffle(fake)
        if config.balance:
            both = min(len(mine), len(fake))
            mine, fake = mine[:both], fake[:both]
        for label, files in (("nature", mine), ("ai", fake)):
            held = round(config.val * len(files))
            if not 0 < held < len(files):
                raise ValueError(
                    f"--val {config.val} of {len(files)} {label} pictures of {name} leaves one of "
                    "train/ and val/ empty"
                )
            for i, source in enumerate(files):
                mode = "val" if i < held else "train"
                suffix = "png" if config.format == "png" else "jpg"
                out.append((f"{name}/{mode}/{label}/{name}_{label}_{i:06d}.{suffix}", source))
    return out


def encode(source: Path, config: BuildConfig) -> bytes:
    """A source file as the benchmark holds it.

    Raises:
        Unreadable: it is no picture.
    """
    resize = config.size if config.view == "resize" else None
    picture = from_tensor(Geometry(config.size, resize)(decode(source.read_bytes())))
    stream = io.BytesIO()
    if config.format == "png":
        picture.save(stream, "PNG")
    else:
        picture.save(stream, "JPEG", quality=config.quality, subsampling=0)
    return stream.getvalue()


def encoded(planned: Plan, config: BuildConfig, bad: list[str]) -> Iterator[tuple[str, bytes]]:
    """Path and bytes of every picture; what cannot be read is noted in ``bad``."""
    for path, source in planned:
        try:
            yield path, encode(source, config)
        except (Unreadable, OSError) as error:
            bad.append(f"{source}: {' '.join(str(error).split())}")


def write_shards(files: Iterator[tuple[str, bytes]], folder: Path, *, size: int) -> None:
    """WebDataset shards of ``size`` pictures, each picture with a JSON of its label beside it."""
    archive: tarfile.TarFile | None = None
    for number, (path, data) in enumerate(files):
        if number % size == 0:
            if archive is not None:
                archive.close()
            archive = tarfile.open(folder / f"shard-{number // size:06d}.tar", "w")  # noqa: SIM115
        assert archive is not None
        facts = json.dumps({"generated": "/ai/" in path}).encode()
        for name, content in ((path, data), (path.rpartition(".")[0] + ".json", facts)):
            member = tarfile.TarInfo(name)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    if archive is not None:
        archive.close()


def main(config: BuildConfig) -> int:
    """Build, audit, and say what could not be read (exit status 1)."""
    if config.output.exists() and any(config.output.iterdir()):
        raise FileExistsError(f"{config.output} is not empty; name another folder")
    planned = plan(config)
    folder = config.output.with_name(config.output.name + ".part")
    shutil.rmtree(folder, ignore_errors=True)  # an interrupted build's
    folder.mkdir(parents=True)
    bad: list[str] = []
    files = encoded(planned, config, bad)
    if config.shards:
        write_shards(files, folder, size=config.shards)
    else:
        for path, data in files:
            target = folder / path
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(data)
    if config.output.exists():
        config.output.rmdir()
    folder.rename(config.output)
    index = open_index(config.output)
    for subset in index.subsets:
        *_, verdict = lines(audit(index, subset))
        print(f"{subset}:{verdict}")
    print(f"{config.output}: {len(index.entries)} pictures, {len(bad)} sources could not be read")
    for line in bad:
        print(f"  {line}")
    return 1 if bad else 0
