"""What gives the classes away without a look at a pixel: ``genimage audit DATA``.

GenImage's own bias: all generated files are PNG of one size a generator, nearly all real ones JPEG
of many sizes. A detector trained on that may have learned the format.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from genimage.config import AuditConfig
from genimage.formats import Format, read_format
from genimage.index import Entry, Index, open_index
from genimage.metrics import wilson
from genimage.pictures import Unreadable, open_header
from papers_shared.checkpoints import atomic_path

FOLDS = 5
CLASSES = ("nature", "ai")
# What a file says without its pixels; a naive Bayes classifier reads the values as categories.
FEATURES = ("format", "mode", "size", "quality", "tables", "subsampling", "progressive")
# A file's size follows from its contents as well (smooth pictures are smaller): shown apart.
SIZE = "bytes_per_pixel"


def features(entry: Format) -> dict[str, str]:
    """Categories of one file."""
    pixels = max(1, entry.width * entry.height)
    return {
        "format": entry.format,
        "mode": entry.mode,
        "size": f"{entry.width}x{entry.height}",
        "quality": str(entry.quality or ""),
        "tables": str(entry.tables),
        "subsampling": entry.subsampling,
        "progressive": str(entry.progressive),
        SIZE: str(round(4 * math.log2(max(entry.bytes, 1) / pixels))),
    }


def naive_bayes(
    rows: Sequence[Mapping[str, str]], labels: Sequence[int], names: Sequence[str], *, seed: int
) -> tuple[float, int]:
    """Balanced accuracy of a naive Bayes classifier on categories, in five folds.

    Args:
        rows: feature -> category, of each file.
        labels: 0 real, 1 generated.
        names: which features it sees.
        seed: of the folds.

    Returns:
        balanced accuracy in percent (NaN with fewer files of a class than folds), files in all.
    """
    y = np.asarray(labels)
    if len(set(labels)) < 2 or min(Counter(labels).values()) < FOLDS:
        return math.nan, len(y)
    order = np.random.default_rng(seed).permutation(len(y))
    fold = np.empty(len(y), dtype=int)
    for label in (0, 1):  # each class evenly over the folds
        members = order[y[order] == label]
        fold[members] = np.arange(len(members)) % FOLDS
    right = np.zeros(len(y), dtype=bool)
    for held in range(FOLDS):
        counts: dict[str, dict[str, list[float]]] = {
            name: defaultdict(lambda: [1.0, 1.0]) for name in names
        }
        totals = [0, 0]
        for i in np.flatnonzero(fold != held).tolist():
            totals[y[i]] += 1
            for name in names:
                counts[name][rows[i][name]][y[i]] += 1
        for i in np.flatnonzero(fold == held).tolist():
            log_ratio = 0.0  # equal priors
            for name in names:
                seen = counts[name]
                real, generated = seen.get(rows[i][name], [1.0, 1.0])
                width = len(seen) + 1
                log_ratio += math.log(generated / (totals[1] + width))
                log_ratio -= math.log(real / (totals[0] + width))
            right[i] = (log_ratio > 0) == bool(y[i]) if log_ratio else i % 2 == 0
    balanced = 50 * float(right[y == 0].mean() + right[y == 1].mean())
    return balanced, len(y)


@dataclass(frozen=True)
class Report:
    """The audit of one generator's folder.

    Attributes:
        subset: generator.
        counts: files of each class.
        tables: feature -> class -> category -> files, the most frequent ones.
        unusable: class -> files that cannot be used, with the reason.
        cheats: features -> balanced accuracy of a classifier that sees nothing else.
        interval: 95 % of the balanced accuracy of all features together.
    """

    subset: str
    counts: dict[str, int]
    tables: dict[str, dict[str, dict[str, int]]]
    unusable: dict[str, list[str]]
    cheats: dict[str, float]
    interval: tuple[float, float]

    @property
    def verdict(self) -> str:
        """In words."""
        together = self.cheats["all"]
        if math.isnan(together):
            return "too few files of a class for a classifier"
        if self.interval[0] > 55:
            return (
                f"BIASED: {together:.0f} % of the files can be told by their format alone; compare "
                "detectors on `genimage eval --forms matched`"
            )
        return f"no bias found: formats alone tell {together:.0f} % (50 is chance)"


def audit(index: Index, subset: str, *, seed: int = 0) -> Report:
    """Audit the files of one generator, real ones of its folder beside them.

    Args:
        index: of the data.
        subset: generator, by the tables' name.
        seed: of the classifier's folds.
    """
    entries = index.select(subsets=[subset])
    rows, labels = [], []
    unusable: dict[str, list[str]] = {name: [] for name in CLASSES}
    for entry in (*entries, *(e for e in index.bad if e.subset == subset)):
        try:
            rows.append(features(format_of(index.root, entry)))
            labels.append(entry.label)
        except (Unreadable, OSError) as error:
            unusable[CLASSES[entry.label]].append(f"{entry.path}: {error}")
    tables: dict[str, dict[str, dict[str, int]]] = {}
    for name in (*FEATURES, SIZE):
        tables[name] = {}
        for label, cls in enumerate(CLASSES):
            found = Counter(r[name] for r, y in zip(rows, labels, strict=True) if y == label)
            tables[name][cls] = dict(found.most_common(8))
    cheats = {name: naive_bayes(rows, labels, [name], seed=seed)[0] for name in (*FEATURES, SIZE)}
    cheats["all"], of = naive_bayes(rows, labels, FEATURES, seed=seed)
    known = not math.isnan(cheats["all"])
    interval = wilson(round(cheats["all"] * of / 100) if known else 0, of if known else 0)
    counts = {cls: labels.count(label) for label, cls in enumerate(CLASSES)}
    return Report(subset, counts, tables, unusable, cheats, interval)


def format_of(root: Path, entry: Entry) -> Format:
    """Read again from the file's header: the index keeps less.

    Raises:
        Unreadable: it has none.
    """
    data: bytes | Path = entry.read(root) if entry.shard else root / entry.path
    with open_header(data) as picture:
        return read_format(picture, entry.bytes)


def lines(report: Report) -> Iterator[str]:
    """The report as text."""
    yield f"{report.subset}: {report.counts['nature']} real, {report.counts['ai']} generated files"
    for name, classes in report.tables.items():
        for cls, found in classes.items():
            shown = ", ".join(f"{value or '-'} ({n})" for value, n in list(found.items())[:5])
            more = f", {len(found) - 5} more kinds" if len(found) > 5 else ""
            yield f"  {name:16} {cls:7} {shown or 'none'}{more}"
        by_contents = " (contents show in it: smooth pictures are smaller)" * (name == SIZE)
        yield f"  {name:16} alone tells {report.cheats[name]:.1f} %{by_contents}"
    for cls, files in report.unusable.items():
        if files:
            yield f"  unusable {cls}: {len(files)} (first: {files[0]})"
    low, high = report.interval
    yield f"  all but its size: {report.cheats['all']:.1f} % ({low:.1f} to {high:.1f})"
    yield f"  {report.verdict}"


def main(config: AuditConfig) -> int:
    """Print a report for each generator."""
    index = open_index(config.data, path=config.index, verify=config.verify, rebuild=config.reindex)
    reports = [audit(index, subset, seed=config.seed) for subset in index.named(config.subsets)]
    for report in reports:
        for line in lines(report):
            print(line)
    if config.output:
        content: list[dict[str, Any]] = [report.__dict__ for report in reports]
        with atomic_path(config.output) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 0
