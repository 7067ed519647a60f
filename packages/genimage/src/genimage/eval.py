"""Detectors against every generator: ``python -m genimage.eval DATA --weights a.safetensors ...``.

Every table comes twice: raw, and bias-matched (same crop, JPEG and number of compressions on both
classes). What a detector loses between them it had read off the format.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from genimage.cli import main as command_line

    raise SystemExit(command_line(["eval", *sys.argv[1:]]))

import json
import math
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from genimage.config import EvalConfig
from genimage.degradations import PAPER, Degradation
from genimage.detectors import Detector, load_detector, with_geometry
from genimage.heatmap import Matrix, draw
from genimage.index import Entry, Index, open_index
from genimage.loading import UNREADABLE, Before, Degrade, Matching, Pictures, Sequential, batches
from genimage.metrics import Scores, score, wilson
from papers_shared.checkpoints import atomic_path
from papers_shared.devices import pick_device

REENCODINGS = ("jpeg:95", "jpeg:85", "jpeg:75")
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Judged:
    """Probabilities of the pictures that could be read.

    Attributes:
        probabilities, labels: (N,) each.
        skipped: paths of files that could not be decoded.
    """

    probabilities: np.ndarray
    labels: np.ndarray
    skipped: tuple[str, ...]


@torch.inference_mode()
def judge_entries(
    detector: Detector,
    root: Path,
    entries: Sequence[Entry],
    *,
    before: Before | None = None,
    batch_size: int = 64,
    workers: int = 0,
    progress: Progress = lambda done, total, what: None,
) -> Judged:
    """What a detector says of files of an index.

    Args:
        detector: in eval mode.
        root: of the index.
        entries: which files.
        before: done to each picture first (a degradation, the matching).
        batch_size, workers: see ``loading.batches``.
        progress: called as ``progress(done, total, what)``.
    """
    pictures = Pictures(root, entries, detector.preset.geometry, before)
    probabilities, labels, skipped = [], [], []
    done = 0
    for images, truth, numbers in batches(pictures, batch_size=batch_size, workers=workers):
        usable = truth != UNREADABLE
        skipped += [entries[i].path for i in numbers[~usable].tolist()]
        if usable.any():
            found = detector(images[usable].to(detector.device, non_blocking=True))
            probabilities.append(found.float().cpu().numpy())
            labels.append(truth[usable].numpy())
        done += len(truth)
        progress(done, len(entries), "pictures")
    empty = np.zeros(0)
    return Judged(
        np.concatenate(probabilities) if probabilities else empty,
        np.concatenate(labels) if labels else empty.astype(np.int64),
        tuple(skipped),
    )


@dataclass(frozen=True)
class Record:
    """One cell of a table, with all that is needed to compare it with another.

    Attributes:
        detector: file of weights.
        trained_on: generators, as the file says.
        subset: generator tested on.
        form: ``raw`` or ``matched``.
        degradation: or empty.
        protocol: resize, crop and what was done before.
        scores: of the pictures that could be read.
        skipped: files that could not.
        stable: percent of verdicts that all re-encodings share; None where not asked for.
    """

    detector: str
    trained_on: tuple[str, ...]
    subset: str
    form: str
    degradation: str
    protocol: str
    scores: Scores
    skipped: tuple[str, ...]
    stable: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As JSON holds it."""
        return {**self.__dict__, "scores": self.scores.to_dict()}


def limited(entries: Sequence[Entry], limit: int | None) -> list[Entry]:
    """The first ``limit`` of each class and generator, in order; all of them for None."""
    seen: dict[tuple[str, int], int] = {}
    out = []
    for entry in entries:
        key = (entry.subset, entry.label)
        seen[key] = seen.get(key, 0) + 1
        if limit is None or seen[key] <= limit:
            out.append(entry)
    return out


def evaluate(config: EvalConfig) -> Iterator[Record]:
    """Every detector on every generator, in every form and degradation asked for.

    Raises:
        FileNotFoundError, ValueError: data, weights or options do not fit; the message says why.
    """
    index = open_index(config.data, path=config.index, verify=config.verify, rebuild=config.reindex)
    subsets = index.named(config.subsets)
    index.refuse_if_broken(config.max_unreadable, mode=config.mode, subsets=subsets)
    names = list(PAPER) if config.degrade == ["paper"] else config.degrade
    degradations: list[Degradation | None] = [None, *map(Degradation.parse, names)]
    tests = [
        limited(index.select(mode=config.mode, subsets=[subset]), config.limit)
        for subset in subsets
    ]
    device = pick_device(config.device)
    # All of them now: what does not fit has to be said before the first hours of work.
    detectors = [load_detector(weights, detector=config.detector) for weights in config.weights]
    for weights, detector in zip(config.weights, detectors, strict=True):
        detector = detector.to(device)
        if config.crop_only:
            detector = with_geometry(detector, detector.preset.geometry.crop_only())
        for entries in tests:
            for form in config.forms:
                for degradation in degradations:
                    yield _cell(config, index, detector, weights, entries, form, degradation)


def _cell(
    config: EvalConfig,
    index: Index,
    detector: Detector,
    weights: str,
    entries: Sequence[Entry],
    form: str,
    degradation: Degradation | None,
) -> Record:
    subset = entries[0].subset
    steps: list[Before] = []
    said = []
    if form == "matched":
        matching, entries = Matching.of(entries, quality=config.match_quality)
        steps.append(matching)
        said.append(str(matching))
    if degradation is not None:
        steps.append(Degrade(degradation))
        said.append(str(degradation))

    def run(more: Sequence[Before]) -> Judged:
        return judge_entries(
            detector,
            index.root,
            entries,
            before=Sequential((*steps, *more)) if steps or more else None,
            batch_size=config.batch_size,
            workers=config.workers,
            progress=_show,
        )

    judged = run(())
    if len(judged.skipped) > config.max_unreadable * len(entries):
        raise ValueError(
            f"{len(judged.skipped)} of {len(entries)} files of {subset} cannot be decoded (first: "
            f"{judged.skipped[0]}); get them again, or allow it with --max-unreadable"
        )
    stable = None
    if config.stability:
        called = judged.probabilities > config.threshold
        same = np.ones(len(called), dtype=bool)
        for name in REENCODINGS:
            copies = run((Degrade(Degradation.parse(name)),)).probabilities
            same &= (copies > config.threshold) == called
        stable = 100 * float(same.mean())
    return Record(
        weights,
        tuple(detector.facts.get("trained_on", ())),
        subset,
        form,
        "" if degradation is None else str(degradation),
        "; ".join([*said, str(detector.preset.geometry)]),
        score(
            judged.probabilities.tolist(),
            judged.labels.tolist(),
            threshold=config.threshold,
            sure=config.sure,
        ),
        judged.skipped,
        stable,
    )


def _show(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} {what}", end="" if done < total else "\n", file=sys.stderr)


COLUMNS: Mapping[str, str] = {
    "accuracy": "acc",
    "accuracy_real": "real",
    "accuracy_generated": "gen.",
    "balanced": "bal.",
    "ap": "AP",
    "auc": "AUC",
    "tpr_at_1": "TPR@1%",
    "ece": "ECE",
    "unsure": "unsure",
}


def short_names(files: Iterable[str]) -> dict[str, str]:
    """Each file of weights by the end of its path that no other shares, without its suffix.

    At least folder and file: ``genimage train`` calls every file ``model``.
    """
    parts = {file: Path(file).with_suffix("").parts for file in files}
    out = {}
    for file, mine in parts.items():
        others = [theirs for name, theirs in parts.items() if name != file]
        for n in range(min(2, len(mine)), len(mine) + 1):
            if all(theirs[-n:] != mine[-n:] for theirs in others):
                out[file] = str(Path(*mine[-n:]))
                break
        else:  # they differ in their suffix alone
            out[file] = file
    return out


def lines(records: Sequence[Record]) -> Iterator[str]:
    """The records as tables, one for each form and degradation, their protocols in the header."""
    names = short_names(r.detector for r in records)
    wide = max(map(len, ("detector", *names.values())))
    seen: list[tuple[str, str]] = []
    for record in records:
        if (record.form, record.degradation) not in seen:
            seen.append((record.form, record.degradation))
    for form, degradation in seen:
        rows = [r for r in records if (r.form, r.degradation) == (form, degradation)]
        yield ""
        yield f"{form}{f', {degradation}' if degradation else ''}"
        for protocol in dict.fromkeys(r.protocol for r in rows):
            tested = dict.fromkeys(r.subset for r in rows if r.protocol == protocol)
            yield f"  [{', '.join(tested)}: {protocol}]"
        yield (
            f"{'detector':{wide}} {'tested on':18}"
            + "".join(f"{h:>8}" for h in COLUMNS.values())
            + ("  95 % of acc.   files")
        )
        for r in rows:
            values = "".join(f"{getattr(r.scores, name):8.1f}" for name in COLUMNS)
            total = r.scores.real + r.scores.generated
            low, high = wilson(round(r.scores.accuracy * total / 100), total)
            files = f"{r.scores.real}+{r.scores.generated}"
            if r.skipped:
                files += f" ({len(r.skipped)} unreadable)"
            if r.stable is not None:
                files += f", {r.stable:.1f} % stable under {' '.join(REENCODINGS)}"
            name = f"{names[r.detector]:{wide}}"
            yield f"{name} {r.subset[:18]:18}{values}  {low:5.1f} to {high:5.1f}   {files}"
            if (r.scores.accuracy_real, r.scores.accuracy_generated) in ((0, 100), (100, 0)):
                yield " " * (wide + 1) + "(every picture got the same answer)"


def matrices(records: Sequence[Record]) -> list[Matrix]:
    """Accuracy by detector and generator, a panel for each form and degradation.

    Below a detector's name: what it was trained on. Cells without a record are NaN.
    """
    names = short_names(r.detector for r in records)
    panels: dict[tuple[str, str], dict[str, dict[str, float]]] = {}
    for r in records:
        label = "\n".join(filter(None, (names[r.detector], ", ".join(r.trained_on))))
        panel = panels.setdefault((r.form, r.degradation), {})
        panel.setdefault(label, {})[r.subset] = r.scores.accuracy
    columns = list(dict.fromkeys(r.subset for r in records))
    out = []
    for (form, degradation), rows in panels.items():
        values = [[row.get(c, math.nan) for c in columns] for row in rows.values()]
        title = f"{form} {degradation}".strip()
        out.append(Matrix(title, list(rows), columns, values))
    return out


def main(config: EvalConfig) -> int:
    """Print the tables; write the records and the heat map where asked for.

    The file of records is written anew with each of them, and what was done before a failure is
    printed and drawn too: a table takes hours.
    """
    records: list[Record] = []
    try:
        for record in evaluate(config):
            records.append(record)
            if config.output:
                with atomic_path(config.output) as temporary:
                    content = [r.to_dict() for r in records]
                    temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    finally:
        for line in lines(records):
            print(line)
        if config.heatmap and records:
            draw(matrices(records), config.heatmap, columns=3)
    return 0
