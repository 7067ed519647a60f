"""``genimage detect photo.jpg folder/``: was it generated, and how far is the answer to be trusted?

Every file found is in the report, judged or with the reason why not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from genimage.config import DetectConfig
from genimage.degradations import Degradation
from genimage.detectors import Detector, load_detector
from genimage.eval import REENCODINGS
from genimage.pictures import SUFFIXES, Unreadable, as_rgb, frame_count, open_header
from papers_shared.checkpoints import atomic_path
from papers_shared.devices import pick_device

if TYPE_CHECKING:
    from PIL.Image import Image


@dataclass(frozen=True)
class Verdict:
    """What is said of one file.

    Attributes:
        path: of the file.
        answer: ``generated``, ``real``, ``unsure`` or ``not judged``.
        probability: of "generated"; None where not judged.
        reencoded: probabilities of re-encoded copies, by encoding.
        note: first frame of an animation, why not judged, why unsure.
    """

    path: str
    answer: str
    probability: float | None = None
    reencoded: dict[str, float] | None = None
    note: str = ""


def judge_file(
    detector: Detector, path: Path, *, sure: float = 0.9, stability: bool = True
) -> Verdict:
    """The verdict on a file; one that cannot be read gets ``not judged`` and the reason.

    Args:
        detector: in eval mode.
        path: of the file.
        sure: between ``1 - sure`` and it the answer is ``unsure``.
        stability: also ``unsure`` where a re-encoded copy falls on the other side.
    """
    try:
        with open_header(path) as picture:
            frames = frame_count(picture)
            rgb = as_rgb(picture)
    except (Unreadable, OSError) as error:
        return Verdict(str(path), "not judged", note=" ".join(str(error).split()))
    notes = [f"first of {frames} frames"] if frames > 1 else []
    crop = detector.preset.geometry.crop
    if min(rgb.size) < crop:
        notes.append(f"enlarged: smaller than the {crop} pixels that the detector sees")
    probability, *others = detector.judge([rgb, *(_copies(rgb) if stability else ())])
    reencoded = dict(zip(REENCODINGS, others, strict=True)) if stability else None
    answer = "generated" if probability > 0.5 else "real"
    if 1 - sure < probability < sure:
        answer = "unsure"
    elif any((p > 0.5) != (probability > 0.5) for p in others):
        answer = "unsure"
        notes.append("the answer changes when the file is re-encoded")
    return Verdict(str(path), answer, probability, reencoded, "; ".join(notes))


def _copies(picture: Image) -> Iterator[Image]:
    return (Degradation.parse(name)(picture) for name in REENCODINGS)


def find_files(given: Sequence[Path]) -> list[Path]:
    """The files named, and in folders (to any depth) all with a picture's suffix.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no picture.
    """
    found: list[Path] = []
    for path in given:
        if path.is_dir():
            inside = sorted(
                Path(folder) / name
                for folder, _, names in os.walk(path, followlinks=True)
                for name in names
                if os.path.splitext(name)[1].lower() in SUFFIXES
            )
            if not inside:
                raise FileNotFoundError(f"{path} holds no pictures ({' '.join(SUFFIXES)})")
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"{path} does not exist; expected a picture or a folder")
    return list(dict.fromkeys(found))


def trust(detector: Detector) -> Iterator[str]:
    """How far to trust the detector: what its file says of its training and tests."""
    facts = detector.facts
    if not facts:
        yield "The weights do not say what the detector was trained on: no claim about its errors."
        return
    trained = ", ".join(facts.get("trained_on", ())) or "unknown"
    yield f"Trained on: {facts.get('data', 'unknown data')}; generators: {trained}."
    for key, text in (
        ("seen", "balanced accuracy on new pictures of these generators"),
        ("unseen", "on generators it was not trained on"),
        ("seen_jpeg", "on the former after JPEG 65"),
        ("unseen_jpeg", "on the latter after JPEG 65"),
    ):
        if key in facts:
            yield f"  {facts[key]:.0f} % {text}"
    yield "Nothing is known of other generators: take a verdict as a hint, not as a proof."


def main(config: DetectConfig) -> int:
    """Print a line a file; exit status 1 where some could not be judged."""
    if not 0.5 <= config.sure <= 1:
        raise ValueError(f"--sure {config.sure}: expected 0.5 to 1")
    files = find_files(config.photos)
    detector = load_detector(config.weights, detector=config.detector)
    detector = detector.to(pick_device(config.device))
    verdicts = []
    for path in files:
        verdict = judge_file(detector, path, sure=config.sure, stability=config.stability)
        verdicts.append(verdict)
        chance = "" if verdict.probability is None else f"{100 * verdict.probability:5.1f} %"
        note = f"  ({verdict.note})" if verdict.note else ""
        print(f"{verdict.answer:10} {chance:8} {verdict.path}{note}", flush=True)
    for line in trust(detector):
        print(line)
    missed = sum(verdict.answer == "not judged" for verdict in verdicts)
    print(f"{len(files) - missed} of {len(files)} files judged")
    if config.output:
        content = {
            "weights": config.weights,
            "preset": detector.preset.to_dict(),
            "facts": detector.facts,
            "verdicts": [asdict(verdict) for verdict in verdicts],
        }
        with atomic_path(config.output) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    return 1 if missed else 0
