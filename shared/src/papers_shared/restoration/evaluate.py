"""Measure a network on test sets by its task's protocol: the ``eval`` command of the packages."""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from papers_shared.checkpoints import atomic_path
from papers_shared.inference.progress import TileProgress
from papers_shared.restoration.benchmarks import SETS
from papers_shared.restoration.family import RestorationFamily, Restorer
from papers_shared.restoration.prepare import dtype_and_device, prepared_restorer, weights_for
from papers_shared.restoration.protocols import Scores, measure
from papers_shared.restoration.restore import PhotoRestorer
from papers_shared.restoration.restore_commands import EvalConfig
from papers_shared.restoration.task import Kind

OWN = "own"  # the set of a folder without a name
# Where --data is left out: what the catalogue holds, or where it holds nothing the usual sets.
DEFAULTS: dict[Kind, tuple[str, ...]] = {
    "sr": ("set5", "set14", "bsd100"),
    "denoise": ("kodak24", "cbsd68"),
    "dejpeg": ("kodak24", "cbsd68"),
    "derain": ("rain100l", "rain100h"),
    "deblur": ("gopro",),
    "real_denoise": ("sidd",),
}


def named_set(data: str) -> tuple[str, Path | None]:
    """The name of a set and its folder of ``NAME``, ``NAME=FOLDER`` or ``FOLDER``.

    Raises:
        ValueError: it is neither a name nor a folder.
    """
    name, given, folder = data.partition("=")
    if name in SETS or name == "sidd":
        return name, Path(folder) if given else None
    if Path(data).is_dir():
        return OWN, Path(data)
    known = ", ".join([*(n for n in SETS if n != OWN), "sidd"])
    raise ValueError(
        f"{data} is neither a folder nor a test set; give a folder of pictures, NAME or "
        f"NAME=FOLDER, with a name of {known}"
    )


def restore_function(restorer: Restorer, *, tile: int | None = None) -> Callable[[Tensor], Tensor]:
    """What the protocols call: (1, C, H, W) in [0, 1] -> the restored picture in float32.

    Args:
        restorer: on its device.
        tile: side of tiles in pixels; None: the whole picture at once.
    """
    photos = functools.partial(PhotoRestorer, restorer, tile=tile, rounded=False)
    if restorer.channels == 1 and restorer.task.kind == "sr":
        luma = photos()  # test pictures are RGB, and measured on Y
        return lambda x: luma(x[0].cpu(), seed=0, progress=lambda done, total: None)[None]
    if tile is not None:
        return photos().restore
    dtype, device = dtype_and_device(restorer)
    return lambda x: restorer(x.to(device, dtype)).float()


def run_eval(config: EvalConfig, family: RestorationFamily) -> int:
    """Print (and with ``output`` write) scores, a set at a time.

    Returns:
        the exit status: 1 where a set is not on this machine; what to do about it is printed.

    Raises:
        FileNotFoundError: no such weights, or none of the sets is here.
        ValueError: an option does not fit, or the task's level is not known.
    """
    restorer = prepared_restorer(config, family, config.task, level=config.level)
    task = restorer.task
    if config.level is not None:
        task = replace(task, level=config.level)
    if config.first is not None and config.first < 1:
        raise ValueError(f"--first {config.first}: expected 1 or more")
    sets = [named_set(data) for data in config.data or DEFAULTS[task.kind]]
    weights = weights_for(family, config.weights, config.task)
    print(f"{family.package} {weights}: {task}", flush=True)
    restore = restore_function(restorer, tile=config.tile)
    found: dict[str, Scores] = {}
    missing: list[str] = []
    for name, folder in sets:
        title = str(folder) if name == OWN else name
        try:
            with TileProgress(title) as progress:
                found[title] = measure(
                    restore,
                    task,
                    name,
                    folder=folder,
                    first=config.first,
                    seed=config.seed,
                    progress=_without_name(progress),
                )
        except FileNotFoundError as error:
            missing.append(" ".join(str(error).split()))
            print(f"{title}: {missing[-1]}", file=sys.stderr, flush=True)
            continue
        print(f"{title}, {len(found[title].images)} pictures", flush=True)
        for metric, value in found[title].means.items():
            print(f"  {metric}: {value:.4f}  ({found[title].protocols[metric]})", flush=True)
    if not found:
        raise FileNotFoundError(f"none of the test sets is on this machine: {'; '.join(missing)}")
    if config.output is not None:
        _write(config.output, {"weights": weights, "task": task.to_dict()}, found)
    return int(bool(missing))


def _without_name(show: TileProgress) -> Callable[[int, int, str], None]:
    return lambda done, total, name: show(done, total)


def _write(path: Path, told: dict[str, Any], found: dict[str, Scores]) -> None:
    sets = {
        name: {
            "means": scores.means,
            "images": {image: dict(values) for image, values in scores.images.items()},
            "protocols": dict(scores.protocols),
        }
        for name, scores in found.items()
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps({**told, "sets": sets}, indent=2) + "\n", encoding="utf-8")
