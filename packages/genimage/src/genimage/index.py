"""One index file a data root: built once, resumable, with every file that cannot be used.

A CSV of one line a file, in the order of the folders. While it is being built it is called
``….part`` and grows; started again, the build goes on behind its last whole line. Columns follow
UnbiasedGenImage's metadata (path, generator, mode, class, width, height, compression_rate).
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import os
import sys
import tarfile
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from genimage.formats import read_format
from genimage.layout import canonical, place_of, walk
from genimage.pictures import Unreadable, as_rgb, open_header
from papers_shared.assets import cache_folder

COLUMNS = (
    *("path", "generator", "mode", "class", "width", "height", "compression_rate"),
    *("subset", "format", "subsampling", "bytes", "shard", "offset", "status"),
)
OK, DECODED = "ok", "decoded"  # the status of usable files: header read, all of it decoded
Bytes = bytes  # ``bytes`` is a field below
NAME = "genimage_index.csv"


@dataclass(frozen=True, slots=True)
class Entry:
    """One file of the data.

    Attributes:
        path: relative to the root, POSIX (inside a shard: the member's name).
        subset: the generator in whose folder it lies.
        mode: ``train`` or ``val``.
        label: 0 real, 1 generated.
        class_id: ImageNet class, or None.
        width, height: 0 for unusable files.
        quality: of a JPEG, estimated; else None.
        format, subsampling: see ``formats.Format``.
        bytes: of the file.
        shard: the tar that holds it, relative to the root; empty for plain files.
        offset: of its first byte in the shard.
        status: ``ok``, ``decoded`` (found whole with ``verify``), or why it cannot be used.
    """

    path: str
    subset: str
    mode: str
    label: int
    class_id: int | None
    width: int
    height: int
    quality: int | None
    format: str
    subsampling: str
    bytes: int
    shard: str
    offset: int
    status: str

    def row(self) -> list[str]:
        """The line of the CSV."""
        number = ["" if v is None else str(v) for v in (self.class_id, self.quality)]
        return [
            *(self.path, self.subset if self.label else "nature", self.mode, number[0]),
            *(str(self.width), str(self.height), number[1], self.subset, self.format),
            *(self.subsampling, str(self.bytes), self.shard, str(self.offset), self.status),
        ]

    @classmethod
    def of_row(cls, row: Sequence[str]) -> Entry:
        """The opposite of ``row``."""
        path, generator, mode, class_id, width, height, quality, subset, *rest = row
        kind, subsampling, size, shard, offset, status = rest
        return cls(
            path,
            subset,
            mode,
            int(generator != "nature"),
            int(class_id) if class_id else None,
            int(width),
            int(height),
            int(quality) if quality else None,
            kind,
            subsampling,
            int(size),
            shard,
            int(offset),
            status,
        )

    def read(self, root: Path) -> Bytes:
        """The file's bytes."""
        if not self.shard:
            return (root / self.path).read_bytes()
        with (root / self.shard).open("rb") as stream:
            stream.seek(self.offset)
            return stream.read(self.bytes)


@dataclass(frozen=True)
class Index:
    """The files of a data root.

    Attributes:
        root: folder.
        entries: usable files.
        bad: the others, with the reason in ``status``.
        path: of the index file.
    """

    root: Path
    entries: tuple[Entry, ...]
    bad: tuple[Entry, ...]
    path: Path

    @property
    def subsets(self) -> list[str]:
        """Generators, in the order of the paper's tables, others behind them by name."""
        from genimage.layout import GENERATORS

        found = {entry.subset for entry in self.entries}
        known = [name for name in GENERATORS if name in found]
        return known + sorted(found - set(known))

    def named(self, subsets: Iterable[str]) -> list[str]:
        """Generators by the tables' names, each once, in the order given; none means all.

        Raises:
            ValueError: a generator is not in the data.
        """
        wanted, known = list(dict.fromkeys(map(canonical, subsets))), self.subsets
        if missing := [name for name in wanted if name not in known]:
            raise ValueError(
                f"{self.root} has no generator {missing[0]!r}; it has {', '.join(known)}"
            )
        return wanted or known

    def select(
        self, *, mode: str | None = None, subsets: Iterable[str] = (), label: int | None = None
    ) -> list[Entry]:
        """Usable files of a split, of some generators (none means all), of one class.

        Raises:
            ValueError: a generator is not in the data, or nothing is left.
        """
        wanted = self.named(subsets)
        found = [
            e
            for e in self.entries
            if (mode is None or e.mode == mode)
            and e.subset in wanted
            and (label is None or e.label == label)
        ]
        if not found:
            what = f"{mode or 'any'} pictures of {', '.join(wanted)}"
            raise ValueError(f"{self.root} has no {what} that can be read")
        return found

    def refuse_if_broken(
        self, share: float, *, mode: str | None = None, subsets: Iterable[str] = ()
    ) -> None:
        """Fail where more than ``share`` of the files that ``select`` would choose among is bad.

        Raises:
            ValueError: so many.
        """
        wanted = {canonical(name) for name in subsets}

        def chosen(files: Iterable[Entry]) -> list[Entry]:
            return [
                e
                for e in files
                if (mode is None or e.mode == mode) and (not wanted or e.subset in wanted)
            ]

        bad = chosen(self.bad)
        total = len(bad) + len(chosen(self.entries))
        if len(bad) > share * total:
            raise ValueError(
                f"{len(bad)} of {total} files under {self.root} cannot be read (first: "
                f"{bad[0].path}: {bad[0].status}); get them again, or allow it with "
                "--max-unreadable"
            )


def default_path(root: Path) -> Path:
    """Beside the data where that can be written, else in the papers' cache."""
    if os.access(root, os.W_OK):
        return root / NAME
    digest = hashlib.sha256(str(root.resolve()).encode()).hexdigest()[:16]
    return cache_folder() / "genimage" / f"index_{digest}.csv"


def open_index(
    root: Path | str, *, path: Path | None = None, verify: bool = False, rebuild: bool = False
) -> Index:
    """The index of a data root, built where there is none or where the data changed since.

    Args:
        root: see ``layout``, or a folder of WebDataset shards (``*.tar``) of that layout.
        path: of the index file; ``default_path`` if left out.
        verify: decode every file while building (finds files whose header alone is whole); an
            index built without it is built anew.
        rebuild: build it anew.

    Raises:
        FileNotFoundError: there is no such folder.
        ValueError: it holds no picture in the layout.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"{root} is not a folder; expected GENERATOR/{{train,val}}/...")
    path = path or default_path(root)
    index = None if rebuild else _current(root, path, verify=verify)
    if index is None:
        with alone(path):
            # Another process (of the same training, say) may have built it meanwhile.
            index = None if rebuild else _current(root, path, verify=verify)
            if index is None:
                build_index(root, path, verify=verify, restart=rebuild)
                index = _read(root, path)
    if not index.entries:
        raise ValueError(
            f"{root} holds no readable picture in GenImage's layout, "
            "GENERATOR/{train,val}/{ai,nature}/FILE"
        )
    return index


@contextlib.contextmanager
def alone(path: Path) -> Iterator[None]:
    """One process at a time makes a file or folder; the others wait (where files can be locked)."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.with_name(f".{path.name}.lock").open("w") as stream:
        try:
            import fcntl
        except ImportError:  # Windows
            yield
            return
        fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _read(root: Path, path: Path) -> Index:
    entries: list[Entry] = []
    bad: list[Entry] = []
    for entry in read_index(path):
        (entries if entry.status in (OK, DECODED) else bad).append(entry)
    return Index(root, tuple(entries), tuple(bad), path)


def _current(root: Path, path: Path, *, verify: bool) -> Index | None:
    """The index in a file; None where there is none, the data changed, or it was not verified.

    A change shows as a folder of pictures (or a shard) newer than the index, or, as moved and
    unpacked folders keep their old dates, as one that holds another number of files than the index.
    """
    if not path.is_file():
        return None
    built = path.stat().st_mtime
    index = _read(root, path)
    files = (*index.entries, *index.bad)
    shards = sorted(root.glob("*.tar"))
    if shards:
        same = {shard.name for shard in shards} == {entry.shard for entry in files}
        places = shards
    else:
        listed = Counter(entry.path.rpartition("/")[0] for entry in files)
        found = dict(walk(root))
        places = [root / folder for folder in found]
        same = listed == {
            folder: len(names)
            for folder, names in found.items()
            if names and place_of(PurePosixPath(folder, names[0]), root_name=root.name)
        }
    if not same or any(place.stat().st_mtime > built for place in places):
        return None
    return None if verify and any(entry.status == OK for entry in index.entries) else index


def read_index(path: Path) -> Iterator[Entry]:
    """Lines of an index file.

    Raises:
        ValueError: it is none.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        lines = csv.reader(stream)
        if tuple(next(lines, ())) != COLUMNS:
            raise ValueError(f"{path} is not an index of this version; remove it")
        for row in lines:
            yield Entry.of_row(row)


def build_index(root: Path, path: Path, *, verify: bool = False, restart: bool = False) -> Counter:
    """Write the index of a root, going on where an interrupted build stopped.

    Args:
        root, path, verify: as ``open_index`` takes them.
        restart: forget what an interrupted build has written.

    Returns:
        how many files are ``usable``, ``unusable`` and ``resumed`` (found by the earlier build).

    Raises:
        ValueError: the root changed since the interrupted build.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    if restart:
        part.unlink(missing_ok=True)
    done, last = _written(part, verify=verify)
    changed = f"{root} changed since {part} was begun; build it anew with --reindex"
    counts: Counter = Counter(resumed=done)
    number = -1
    with part.open("a", newline="", encoding="utf-8") as stream:
        writer = csv.writer(stream)
        if stream.tell() == 0:
            writer.writerow(COLUMNS)
        for number, entry in enumerate(_scan(root, skip=done, verify=verify)):
            if number == 0 and last:
                if entry.path != last:
                    raise ValueError(changed)
                continue
            writer.writerow(entry.row())
            counts["usable" if entry.status in (OK, DECODED) else "unusable"] += 1
            if sys.stderr.isatty() and sum(counts.values()) % 1000 == 0:
                print(f"\rindex: {sum(counts.values()):,} files", end="", file=sys.stderr)
    if last and number < 0:  # the root has fewer files by now
        raise ValueError(changed)
    part.replace(path)
    return counts


def _written(part: Path, *, verify: bool) -> tuple[int, str]:
    """How many files an interrupted build has listed, and the last of them; cuts a torn line.

    A build that did not decode is no beginning of one that does: it is forgotten.
    """
    if not part.is_file():
        return 0, ""
    data = part.read_bytes()
    whole = data.rfind(b"\n") + 1
    if whole < len(data):
        with part.open("r+b") as stream:
            stream.truncate(whole)
    lines = list(csv.reader(data[:whole].decode("utf-8").splitlines()))
    if verify and any(line[-1] == OK for line in lines):
        part.unlink()
        return 0, ""
    return (len(lines) - 1, lines[-1][0]) if len(lines) > 1 else (0, "")


def _scan(root: Path, *, skip: int, verify: bool) -> Iterator[Entry]:
    """Entries from number ``skip`` on; before them the last skipped one, to compare with."""
    number = 0
    for path, shard, offset, size in _files(root):
        place = place_of(PurePosixPath(path), root_name=root.name)
        if place is None:
            continue
        number += 1
        if number < skip:
            continue
        data: bytes | Path = root / path
        if shard:
            with (root / shard).open("rb") as stream:
                stream.seek(offset)
                data = stream.read(size)
        width = height = 0
        quality, kind, subsampling, status = None, "", "", DECODED if verify else OK
        try:
            if isinstance(data, Path):
                size = data.stat().st_size
            with open_header(data) as picture:
                facts = read_format(picture, size)
                if verify:
                    as_rgb(picture)
            width, height = facts.width, facts.height
            quality, kind, subsampling = facts.quality, facts.format, facts.subsampling
        except (Unreadable, OSError) as error:
            status = " ".join(str(error).split()) or type(error).__name__
        yield Entry(
            path,
            place.subset,
            place.mode,
            place.label,
            place.class_id,
            width,
            height,
            quality,
            kind,
            subsampling,
            size,
            shard,
            offset,
            status,
        )


def _files(root: Path) -> Iterator[tuple[str, str, int, int]]:
    """Path, shard, offset and (in a shard) bytes of every file, in a fixed order.

    Raises:
        ValueError: a shard is not a whole tar.
    """
    shards = sorted(root.glob("*.tar"))
    for shard in shards:
        yield from ((name, shard.name, at, size) for name, at, size in _members(shard))
    if shards:
        return
    for folder, names in walk(root):
        for name in names:
            path = f"{folder}/{name}" if folder != "." else name
            yield path, "", 0, 0


def _members(shard: Path) -> Iterator[tuple[str, int, int]]:
    """Name, offset and bytes of a tar's files but their JSONs."""
    try:
        with tarfile.open(shard, "r:") as archive:
            for member in archive:
                if member.isfile() and not member.name.endswith(".json"):
                    yield member.name, member.offset_data, member.size
            end = archive.offset
    except tarfile.TarError as error:
        raise ValueError(f"{shard} is not a whole tar ({error}); get it again") from None
    # tarfile ends in silence at a header that is cut or no header; a whole tar has zeros there.
    with shard.open("rb") as stream:
        stream.seek(end)
        if stream.read(512) != bytes(512):
            raise ValueError(f"{shard} is not a whole tar (no end at byte {end}); get it again")
