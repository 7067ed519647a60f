"""``python -m genimage.ship RUN/model.safetensors``: a trained detector as the file that ships.

Tests it on the small benchmark, on generators it was trained on and on the others, writes what it
found into the file (``genimage detect`` shows it), and stores the weights as float16.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from pathlib import Path
from typing import Any

import torch

from genimage.degradations import Degradation
from genimage.detectors import Detector, load_detector, shipped_file
from genimage.eval import judge_entries
from genimage.index import Index, open_index
from genimage.loading import Before, Degrade
from genimage.metrics import score
from genimage.small_set import SETTINGS, small_set, source_folders
from papers_shared.checkpoints import save_state_dict


def balanced(detector: Detector, index: Index, subsets: list[str], before: Before | None) -> float:
    """Mean balanced accuracy over generators, in percent."""
    found = []
    for subset in subsets:
        entries = index.select(mode="val", subsets=[subset])
        judged = judge_entries(detector, index.root, entries, before=before)
        found.append(score(judged.probabilities.tolist(), judged.labels.tolist()).balanced)
    return statistics.fmean(found)


def facts_of(detector: Detector, index: Index) -> dict[str, Any]:
    """What ``genimage detect`` says of the detector."""
    seen = list(detector.facts["trained_on"])
    unseen = [name for name in index.subsets if name not in seen]
    jpeg = Degrade(Degradation.parse("jpeg:65"))
    return {
        **detector.facts,
        "data": "the small benchmark (32-pixel squares of halved BSDS500 photos), not GenImage",
        "seen": balanced(detector, index, seen, None),
        "unseen": balanced(detector, index, unseen, None),
        "unseen_on": unseen,
        "seen_jpeg": balanced(detector, index, seen, jpeg),
        "unseen_jpeg": balanced(detector, index, unseen, jpeg),
    }


def main(argv: list[str] | None = None) -> int:
    """Write ``weights/shipped.safetensors`` and print its facts."""
    parser = argparse.ArgumentParser(prog="python -m genimage.ship", description=__doc__)
    parser.add_argument("source", type=Path, help="file that genimage train wrote")
    parser.add_argument("target", type=Path, nargs="?", default=shipped_file())
    args = parser.parse_args(argv)
    try:
        detector = load_detector(args.source)
        index = open_index(small_set(SETTINGS, source_folders()))
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    detector.facts = facts_of(detector, index)
    state = detector.network.state_dict()
    half = {k: v.half() if v.dtype == torch.float32 else v for k, v in state.items()}
    save_state_dict(half, args.target, metadata=detector.metadata())
    for name, value in detector.facts.items():
        print(f"{name}: {value}")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
