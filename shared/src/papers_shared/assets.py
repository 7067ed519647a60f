"""Named data sets and checkpoints -> local paths whose checksums were verified.

A catalogue (``catalogue.yaml`` in papers_shared and in each paper's package) lists every asset
in one or more *forms*: the public original, and the mirror's own packing of it. ``fetch(name)``
takes the first form it can find, in this order:

1. the explicit path given by the caller,
2. the folders of the environment variable ``PAPERS_MIRROR`` (absolute, ``:`` between),
3. the cache (``PAPERS_CACHE``, else the user's cache folder),
4. a download, with a progress bar.

A file whose checksum differs from the catalogue's is refused and left as it is. A file marked
``unverified``, whose checksum nobody has published, is never downloaded: its user puts it there.

Command line: ``python -m papers_shared.assets list | where NAME | fetch NAME``.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import hashlib
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from papers_shared.workspace import package_folder, papers

MIRROR_VARIABLE = "PAPERS_MIRROR"
CACHE_VARIABLE = "PAPERS_CACHE"


class AssetMissing(FileNotFoundError):
    """An asset is not on this machine; the message says where to get it and where to put it."""


class AssetCorrupt(ValueError):
    """A file's checksum is not the catalogue's; the file was neither loaded nor changed."""


@dataclass(frozen=True)
class File:
    """One file of a form, or one folder (``glob`` set): the digest is then of its listing.

    ``unverified`` says that its checksum is not known.
    """

    path: str
    sha256: str = ""
    md5: str = ""
    bytes: int | None = None
    glob: str = ""
    count: int | None = None
    url: str = ""
    original: str = ""  # address and checksum of what ours was converted from
    unverified: bool = False

    @property
    def name(self) -> str:
        return Path(self.path).name

    @property
    def address(self) -> str:
        """Where it is published; ``mirror only`` when nowhere."""
        return self.url or "mirror only"


@dataclass(frozen=True)
class Form:
    name: str
    files: tuple[File, ...]
    note: str = ""


@dataclass(frozen=True)
class Asset:
    name: str
    title: str
    licence: str
    forms: tuple[Form, ...]
    citation: str = ""
    source: str = ""


@dataclass(frozen=True)
class Resolved:
    """An asset found on this machine.

    Attributes:
        asset: its catalogue entry.
        form: the name of the form that was found.
        files: base name -> local path (a folder asset has one entry, the folder).
        checksums: base name -> ``sha256:…`` or ``md5:…``, as verified; with `` (not verified)``
            where the catalogue has none to compare with.
    """

    asset: Asset
    form: str
    files: dict[str, Path] = field(default_factory=dict)
    checksums: dict[str, str] = field(default_factory=dict)

    @property
    def path(self) -> Path:
        """The only file (or folder) of the asset."""
        if len(self.files) != 1:
            raise ValueError(
                f"{self.asset.name} ({self.form}) has {len(self.files)} files; name one of them: "
                + ", ".join(self.files)
            )
        return next(iter(self.files.values()))


def _build(cls: type, mapping: Mapping[str, Any], where: str) -> Any:
    known = {f.name for f in dataclasses.fields(cls)}
    unknown = set(mapping) - known
    if unknown:
        raise ValueError(f"{where}: unknown key {sorted(unknown)[0]!r}; known: {sorted(known)}")
    try:
        return cls(**mapping)
    except TypeError as error:
        raise ValueError(f"{where}: {error}") from None


def load_catalogue(path: Path) -> dict[str, Asset]:
    """Read one catalogue file.

    Raises:
        ValueError: an entry has an unknown key, no form, or a file with neither a checksum nor
            ``unverified: true``, or with both.
    """
    entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    assets = {}
    for name, entry in entries.items():
        where = f"{path.name}: {name}"
        forms = []
        for form_name, form in (entry.get("forms") or {}).items():
            here = f"{where}.{form_name}"
            files = tuple(_build(File, file, here) for file in form.get("files", ()))
            if not files or any(bool(f.sha256 or f.md5) == f.unverified for f in files):
                raise ValueError(
                    f"{here}: every form needs files with a checksum, or else unverified: true"
                )
            forms.append(_build(Form, form | {"files": files, "name": form_name}, here))
        if not forms:
            raise ValueError(f"{where}: no forms")
        assets[name] = _build(Asset, entry | {"forms": tuple(forms), "name": name}, where)
    return assets


@functools.cache
def catalogue() -> dict[str, Asset]:
    """Every asset of papers_shared and of the installed paper packages, by name."""
    merged: dict[str, Asset] = {}
    for module in papers().values():
        path = package_folder(module) / "catalogue.yaml"
        if path.is_file():
            entries = load_catalogue(path)
            if twice := merged.keys() & entries.keys():
                raise ValueError(f"{path}: {sorted(twice)[0]!r} stands in another catalogue too")
            merged |= entries
    return merged


def describe(name: str) -> Asset:
    """The catalogue entry called ``name``.

    Raises:
        ValueError: there is none; the nearest names are listed.
    """
    import difflib

    known = catalogue()
    if name not in known:
        near = difflib.get_close_matches(name, known, n=3) or sorted(known)
        raise ValueError(f"no asset is called {name!r}; did you mean {', '.join(near)}?")
    return known[name]


def mirrors() -> list[Path]:
    """The folders of ``PAPERS_MIRROR``.

    Raises:
        ValueError: one is relative or does not exist.
    """
    folders = [Path(p) for p in os.environ.get(MIRROR_VARIABLE, "").split(os.pathsep) if p]
    for folder in folders:
        if not folder.is_absolute() or not folder.is_dir():
            raise ValueError(
                f"{MIRROR_VARIABLE} names {str(folder)!r}, which is not an existing absolute "
                f"folder; correct or unset the variable"
            )
    return folders


def cache_folder() -> Path:
    """Where downloads go: ``PAPERS_CACHE``, else the user's cache folder."""
    import pooch

    return Path(os.environ.get(CACHE_VARIABLE) or pooch.os_cache("papers"))


def fetch(name: str, *, path: Path | str | None = None, download: bool = True) -> Resolved:
    """Find the asset called ``name`` on this machine, or download it, and verify it.

    Args:
        name: a name of the catalogue.
        path: where the caller says it is: the file itself or a folder that holds it.
        download: whether the network may be asked.

    Raises:
        AssetMissing: it is nowhere; the message says how to get it.
        AssetCorrupt: a file was found whose checksum is wrong.
        ValueError: there is no such asset, or a mirror folder does not exist.
    """
    asset = describe(name)
    for form in asset.forms:
        found = {file: _find(file, path) for file in form.files}
        if download and path is None:
            for file in form.files:
                downloadable = file.address != "mirror only" and not file.unverified
                if found[file] is None and downloadable:
                    found[file] = _download(file, cache_folder() / asset.name / file.name)
        if all(found.values()):
            resolved = Resolved(asset, form.name)
            for file, local in found.items():
                assert local is not None
                resolved.files[file.name] = local
                resolved.checksums[file.name] = _verify(local, file)
            return resolved
    raise AssetMissing(_how_to_get(asset, path))


def find_file(name: str, sha256: str = "") -> Path:
    """A single file by its base name, in the mirrors or the cache, verified.

    Args:
        name: base name; where a catalogue lists it, the catalogue's checksum is used.
        sha256: the checksum of a file that no catalogue lists.

    Raises:
        AssetMissing, AssetCorrupt: as ``fetch``.
        ValueError: no checksum is known for it.
    """
    listed = {
        file.name: file
        for asset in catalogue().values()
        for form in asset.forms
        for file in form.files
        if not file.glob
    }
    file = listed.get(name) or File(path=name, sha256=sha256)
    if (sha256 and file.sha256 != sha256) or not (file.sha256 or file.md5):
        raise ValueError(f"the catalogue knows {name} with sha256 {file.sha256!r}, not {sha256!r}")
    path = _find(file, None)
    if path is None:
        raise AssetMissing(f"needs {name} ({file.address}) in a folder of {MIRROR_VARIABLE}")
    _verify(path, file)
    return path


def _find(file: File, explicit: Path | str | None) -> Path | None:
    for candidate in _candidates(file, explicit):
        if candidate.is_dir() if file.glob else candidate.is_file():
            return candidate
    return None


def _candidates(file: File, explicit: Path | str | None) -> Iterator[Path]:
    if explicit is not None:
        given = Path(explicit)
        if not given.exists():
            raise FileNotFoundError(f"{given} does not exist; it was given as {file.name}")
        if given.is_file() or file.glob:
            yield given
        yield given / file.path
        yield given / file.name
        return
    folders = mirrors()
    for folder in folders:
        yield folder / file.path
        yield folder / file.name
    for folder in folders:
        yield from _by_name(folder).get(file.name, ())
    yield from cache_folder().glob(f"*/{file.name}")


@functools.cache
def _by_name(folder: Path) -> dict[str, list[Path]]:
    index: dict[str, list[Path]] = {}
    for path in sorted(folder.rglob("*")):
        index.setdefault(path.name, []).append(path)
    return index


def _verify(path: Path, file: File) -> str:
    kind, expected = ("md5", file.md5) if file.md5 and not file.sha256 else ("sha256", file.sha256)
    if file.glob:
        actual = folder_digest(path, file.glob)
    else:
        stat = path.stat()
        actual = _digest(path, kind, stat.st_size, stat.st_mtime_ns)
    if file.unverified:
        return f"sha256:{actual} (not verified)"
    if actual != expected:
        raise AssetCorrupt(
            f"{path} is not the catalogued {file.name}: its {kind} is {actual}, expected "
            f"{expected}; it was not opened. Remove or replace it (published at: {file.address})"
        )
    return f"{kind}:{actual}"


@functools.cache
def _digest(path: Path, kind: str, size: int, mtime_ns: int) -> str:
    # Size and modification time are part of the cache's key: a changed file is read again.
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, kind).hexdigest()


def folder_digest(folder: Path, glob: str) -> str:
    """sha256 over the lines ``relative path, space, sha256`` of the files matching ``glob``."""
    listing = hashlib.sha256()
    for path in sorted(folder.glob(glob)):
        stat = path.stat()
        line = f"{path.relative_to(folder).as_posix()} "
        line += _digest(path, "sha256", stat.st_size, stat.st_mtime_ns)
        listing.update(line.encode() + b"\n")
    return listing.hexdigest()


def _download(file: File, target: Path) -> Path | None:
    """Fetch into the cache; None when the network does not answer (fetch() then says how)."""
    import pooch

    target.parent.mkdir(parents=True, exist_ok=True)
    known_hash = f"sha256:{file.sha256}" if file.sha256 else f"md5:{file.md5}"
    try:
        return Path(
            pooch.retrieve(
                file.url,
                known_hash=known_hash,
                fname=target.name,
                path=target.parent,
                progressbar=sys.stderr.isatty(),
            )
        )
    except OSError as error:  # requests' errors are OSErrors
        print(f"could not download {file.name} from {file.address}: {error}", file=sys.stderr)
        return None
    except ValueError as error:  # pooch refuses a wrong checksum and removes its temporary file
        raise AssetCorrupt(f"{file.address} did not deliver {file.name}: {error}") from None


def _how_to_get(asset: Asset, explicit: Path | str | None) -> str:
    wanted = "; or ".join(
        f"{', '.join(f.name for f in form.files)} ({form.name}: {form.files[0].address})"
        for form in asset.forms
    )
    if explicit is not None:
        return f"{asset.name}: {explicit} holds none of its forms: {wanted}"
    return (
        f"{asset.name} is not on this machine: needs {wanted}; put it into "
        f"{cache_folder() / asset.name}, or into a folder that {MIRROR_VARIABLE} names"
    )


def main(argv: list[str] | None = None) -> int:
    """Command line: list the catalogue, or find one asset (``fetch`` may download it)."""
    parser = argparse.ArgumentParser(prog="python -m papers_shared.assets", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("action", choices=["list", "where", "fetch"])
    parser.add_argument("name", nargs="?", help="a name of the catalogue")
    args = parser.parse_args(argv)
    if args.action == "list":
        for asset in catalogue().values():
            forms = " | ".join(f"{f.name}: {f.files[0].address}" for f in asset.forms)
            print(f"{asset.name}\n    {asset.title}\n    licence: {asset.licence}\n    {forms}")
        return 0
    if not args.name:
        parser.error(f"{args.action} needs the name of an asset; see list")
    try:
        resolved = fetch(args.name, download=args.action == "fetch")
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    for name, path in resolved.files.items():
        print(f"{path}  {resolved.checksums[name]}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
