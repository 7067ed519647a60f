"""Trainings of the small benchmark: each done once, its scores kept, shared by several tables.

A run's folder lies beside the benchmark in the cache. Its name covers detector, generator, seed,
settings and the source of everything that decides the result, so a change of code trains anew.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from genimage.config import TrainConfig
from genimage.degradations import Degradation
from genimage.eval import judge_entries
from genimage.index import Index, alone, open_index
from genimage.loading import Degrade, Matching
from genimage.metrics import Scores, score
from genimage.small_photos import GENERATORS
from genimage.small_set import SETTINGS, small_set, source_folders
from genimage.train import train
from papers_shared.checkpoints import atomic_path
from papers_shared.cli import load_config
from papers_shared.tables.recipe import Context

SEEDS = 3
DETECTORS = ("mini_resnet", "mini_cnnspot", "mini_spec", "mini_gramnet")
TRAINING: dict[str, Any] = {
    "epochs": 8,
    "batch_size": 32,
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "warmup": 0.2,
}
# What differs from TRAINING: CNNSpot's augmentation (sigma 3 of 224 pixels is 0.43 of 32); Spec's
# pictures are not mirrored.
OWN: dict[str, dict[str, Any]] = {
    "mini_cnnspot": {"augment": "blur_jpeg", "augment_sigma": 0.43, "augment_quality": 30},
    "mini_spec": {"flip": False},
}
# Table 5's degradations, from 224 to 32 pixels.
DEGRADATIONS = {
    "lr112": "lr:16",
    "lr64": "lr:9",
    "jpeg65": "jpeg:65",
    "jpeg30": "jpeg:30",
    "blur3": "blur:0.43",
    "blur5": "blur:0.71",
}
# The modules that decide a run's result; the pictures' own are in `small_set.folder_of`'s key.
DECISIVE = (
    "augment",
    "config",
    "degradations",
    "detectors",
    "eval",
    "gramnet",
    "index",
    "loading",
    "metrics",
    "model",
    "pictures",
    "small_photos",
    "small_runs",
    "small_set",
    "spectrum",
    "train",
)
Numbers = dict[str, dict[str, float]]


@dataclass(frozen=True)
class Run:
    """What one training came to, in percent.

    Attributes:
        raw: generator -> accuracy, real, generated, on its val/ pictures.
        matched: the same on bias-matched pictures.
        degraded: degradation -> accuracy on the own generator's pictures.
    """

    raw: Numbers
    matched: Numbers
    degraded: dict[str, float]


@cache
def code_digest() -> str:
    """Of the modules that decide a run's result."""
    digest = hashlib.sha256()
    for name in DECISIVE:
        digest.update(Path(__file__).with_name(f"{name}.py").read_bytes())
    return digest.hexdigest()[:16]


def benchmark(context: Context) -> Index:
    """The small benchmark, made where it is not there."""
    return open_index(small_set(SETTINGS, source_folders(), progress=context.progress))


def settings(detector: str) -> dict[str, Any]:
    """All that a run's result depends on, as JSON holds it."""
    return {
        "detector": detector,
        "training": {**TRAINING, **OWN.get(detector, {})},
        "set": SETTINGS,
        "generators": list(GENERATORS),
        "seeds": SEEDS,
    }


def run(index: Index, detector: str, generator: str, seed: int) -> Run:
    """Train a detector on one generator (unless that was done), test it on all of them.

    Args:
        index: of the small benchmark.
        detector: one of ``DETECTORS``.
        generator: one of ``GENERATORS``.
        seed: of the training.
    """
    key = json.dumps(settings(detector), sort_keys=True) + code_digest()
    name = hashlib.sha256(key.encode()).hexdigest()[:12]
    folder = index.root.parent / f"{index.root.name}_runs" / f"{detector}_{generator}_{seed}_{name}"
    scores = folder / "scores.json"
    with alone(folder):  # several tables, made at the same time, want the same runs
        if not scores.is_file():
            options = {**TRAINING, **OWN.get(detector, {})}
            given: Mapping[str, Any] = {
                **options,
                "data": index.root,
                "index": index.path,
                "detector": detector,
                "subsets": [generator],
                "output": folder / "run",
                "seed": seed,
                "workers": 0,
                "val_limit": 50,
                "save_every": 10**6,
                "log_every": 10**6,
            }
            trained = train(load_config(TrainConfig, None, given)).detector
            measured = measure(trained, index, generator)
            with atomic_path(scores) as temporary:
                temporary.write_text(json.dumps(measured.__dict__) + "\n", encoding="utf-8")
            shutil.rmtree(folder / "run")
    return Run(**json.loads(scores.read_text(encoding="utf-8")))


def _numbers(scores: Scores) -> dict[str, float]:
    return {
        "accuracy": scores.accuracy,
        "real": scores.accuracy_real,
        "generated": scores.accuracy_generated,
    }


def measure(detector: Any, index: Index, own: str) -> Run:
    """A trained detector on every generator, raw and matched, and on its own degraded."""

    def judged(subset: str, before: Any = None) -> Scores:
        entries = index.select(mode="val", subsets=[subset])
        if before == "matched":
            before, entries = Matching.of(entries)
        found = judge_entries(detector, index.root, entries, before=before, batch_size=100)
        return score(found.probabilities.tolist(), found.labels.tolist())

    return Run(
        {name: _numbers(judged(name)) for name in GENERATORS},
        {name: _numbers(judged(name, "matched")) for name in GENERATORS},
        {
            column: judged(own, Degrade(Degradation.parse(text))).accuracy
            for column, text in DEGRADATIONS.items()
        },
    )
