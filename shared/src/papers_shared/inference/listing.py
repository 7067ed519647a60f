"""Which photos a command line names, where their results go, and what their seeds are."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from papers_shared.images import SUFFIXES, list_images


@dataclass(frozen=True)
class Photo:
    """A file to read and the file to write.

    Attributes:
        path: what to read.
        key: its path below the folder that was given (its name, if it was given itself), without
            suffix and with slashes: what its seed is made of.
        target: what to write.
    """

    path: Path
    key: str
    target: Path


@dataclass(frozen=True)
class _Found:
    path: Path
    root: Path  # the folder that was given, or the folder of the file that was
    given: bool  # as a file

    @property
    def inside(self) -> Path:
        return self.path.relative_to(self.root)


def plan_photos(
    inputs: Sequence[Path],
    output: Path | None,
    *,
    mark: str,
    suffix: str | None = None,
    recursive: bool = False,
) -> list[Photo]:
    """The photos of files and folders, and a different target for each.

    Results are called ``<stem><suffix>.png`` in one folder. Photos whose results would have the
    same name keep their path below the folder that was given, then also its name, then their own
    suffix (``a.jpg.png``), whatever suffices.

    Args:
        inputs: files of any suffix, and folders.
        output: a folder, made where it is missing; or a file name with an image's suffix, for one
            file; None: ``<stem><mark>.png`` beside each file, ``<folder><mark>/`` beside each
            folder.
        mark: ends the names that None gives, such as ``_x4``.
        suffix: behind the stems; default: none, and the mark where a file lies beside its photo.
        recursive: take folders with all their subfolders (results below ``output`` excepted).

    Raises:
        FileNotFoundError: an input does not exist, or a folder holds no image.
        ValueError: two results have one name, or a result would replace a photo.
    """
    found = _find(inputs, output, recursive=recursive)
    if output is not None and output.suffix.lower() in SUFFIXES and not output.is_dir():
        if len(found) > 1 or not found[0].given:
            raise ValueError(f"{output} is the name of a file, for one photo; give a folder")
        photos = [Photo(found[0].path, found[0].inside.stem, output)]
    else:
        photos = _named(found, output, mark, suffix)
    sources = {photo.path.resolve() for photo in photos}
    for photo in photos:
        if photo.target.resolve() in sources:
            raise ValueError(
                f"{photo.target} would replace a photo that is to be read; give another output "
                "folder or a suffix"
            )
    return photos


def _find(inputs: Sequence[Path], output: Path | None, *, recursive: bool) -> list[_Found]:
    found: dict[Path, _Found] = {}
    for given in inputs:
        if given.is_dir():
            paths, root = list_images(given, recursive=recursive), given
            if output is not None and output.resolve() != given.resolve():
                paths = [p for p in paths if output.resolve() not in p.resolve().parents]
        elif given.is_file():
            paths, root = [given], given.parent
        else:
            raise FileNotFoundError(f"{given} does not exist; expected a photo or a folder of them")
        for path in paths:
            found.setdefault(path.resolve(), _Found(path, root, given.is_file()))
    if not found:
        raise FileNotFoundError(f"{', '.join(map(str, inputs))} holds no image but old results")
    return list(found.values())


def _named(
    found: Sequence[_Found], output: Path | None, mark: str, suffix: str | None
) -> list[Photo]:
    def folder(photo: _Found) -> Path:
        root = photo.root.resolve()
        if output is not None:
            return output
        return photo.root if photo.given else root.with_name(root.name + mark)

    def ending(photo: _Found) -> str:
        if suffix is not None:
            return suffix
        return mark if output is None and photo.given else ""

    forms: tuple[Callable[[_Found], Path], ...] = (
        lambda p: Path(p.inside.stem),
        lambda p: p.inside.with_name(p.inside.stem),
        lambda p: Path(p.root.resolve().name) / p.inside.with_name(p.inside.stem),
        lambda p: p.inside,
        lambda p: Path(p.root.resolve().name) / p.inside,
    )

    def target(photo: _Found, form: Callable[[_Found], Path]) -> Path:
        name = form(photo)
        return folder(photo) / name.with_name(f"{name.name}{ending(photo)}.png")

    def same(path: Path) -> str:  # what a file system that ignores case holds for one name
        return str(path.resolve()).casefold()

    groups: dict[str, list[_Found]] = {}
    for photo in found:
        groups.setdefault(same(target(photo, forms[0])), []).append(photo)
    targets: dict[Path, Path] = {}
    for group in groups.values():
        for form in forms:
            names = {photo.path: target(photo, form) for photo in group}
            if len({same(name) for name in names.values()}) == len(group):
                break
        targets |= names
    taken: dict[str, Path] = {}
    for path, name in targets.items():
        if (other := taken.setdefault(same(name), path)) != path:
            raise ValueError(f"{other} and {path} would both become {name}; give them apart")
    return [
        Photo(p.path, p.inside.with_name(p.inside.stem).as_posix(), targets[p.path]) for p in found
    ]


def photo_seed(seed: int, key: str) -> int:
    """A 63-bit seed of one photo: the same in whatever order and company it is given."""
    digest = hashlib.blake2b(f"{seed}\0{key}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def process_rank() -> tuple[int, int]:
    """This process's number and how many there are, from what torchrun and accelerate set.

    Raises:
        ValueError: RANK and WORLD_SIZE contradict each other.
    """
    rank, world = os.environ.get("RANK", "0"), os.environ.get("WORLD_SIZE", "1")
    if not (rank.isdigit() and world.isdigit() and int(rank) < int(world)):
        raise ValueError(f"expected 0 <= RANK < WORLD_SIZE, got RANK={rank} WORLD_SIZE={world}")
    return int(rank), int(world)
