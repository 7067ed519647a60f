"""Enlarge the pictures of pairs and measure them: the ``eval`` command of the packages."""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from papers_shared import assets
from papers_shared.checkpoints import atomic_path
from papers_shared.data.photos import Pair, PairFolder
from papers_shared.diffusion.commands import EvalConfig
from papers_shared.diffusion.pipeline import ResShiftPipeline
from papers_shared.images import SUFFIXES, list_images, read_image, to_uint8, write_image
from papers_shared.inference.listing import photo_seed
from papers_shared.metrics.folder import (
    OF_SETS,
    WITH_REFERENCE,
    WITHOUT_REFERENCE,
    FolderScores,
    Scorer,
    evaluate_folder,
)
from papers_shared.metrics.frechet import Inception
from papers_shared.metrics.restoration import PSNR

if TYPE_CHECKING:
    from papers_shared.diffusion.families import Family

VAL_SR = "val_sr"
Progress = Callable[[int, int, str], None]


def pairs_folder(data: str | Path) -> Path:
    """Where the pairs called ``data`` lie: ``val_sr``, or a folder with lq/ and gt/.

    Raises:
        FileNotFoundError: they are not on this machine; the message says where they are had.
    """
    if str(data) == VAL_SR:
        return assets.fetch(VAL_SR).path
    return Path(data)


def enlarge_pairs(
    pipeline: ResShiftPipeline,
    pairs: PairFolder | Photos,
    folder: Path,
    *,
    first: int | None = None,
    progress: Progress = lambda done, total, what: None,
    **options: Any,
) -> None:
    """Write the enlarged lq of every pair as 8-bit PNG.

    Args:
        pipeline: the network.
        pairs: what to enlarge; each picture's noise follows from the seed and its name.
        folder: of the results.
        first: only the first pairs.
        progress: called as ``progress(done, total, what)``.
        options: of the pipeline's call; ``seed`` among them.
    """
    seed = options.pop("seed", 0)
    names = pairs.names[:first]
    for i, name in enumerate(names):
        target = folder / f"{name}.png"
        large = pipeline.enlarge(pairs[i].lq, seed=photo_seed(seed, name), **options)
        write_image(large, target)
        progress(i + 1, len(names), "pictures")


def measure(
    pipeline: ResShiftPipeline,
    config: EvalConfig,
    *,
    progress: Progress = lambda done, total, what: None,
) -> FolderScores:
    """The scores of a pipeline on ``config.data``.

    Raises:
        FileNotFoundError: the pictures, or the weights of a metric, are not here.
        ImportError: a package that a metric needs is not installed.
        ValueError: pictures without partner; a metric that is not known, or needs references
            where there are none; a folder of results that holds other pictures.
    """
    folder = pairs_folder(config.data)
    pairs = _pictures(folder)
    has_references, device = isinstance(pairs, PairFolder), pipeline.device
    _check_metrics(config.metrics, folder, has_references=has_references, device=device)
    names = pairs.names[: config.first]
    with _result_folder(config.output, names, data=folder) as results:
        enlarge_pairs(
            pipeline,
            pairs,
            results,
            first=config.first,
            progress=progress,
            seed=config.seed,
            num_inference_steps=config.steps,
            tile=config.tile,
        )
        score = partial(evaluate_folder, metrics=config.metrics, device=device, progress=progress)
        if not has_references:
            return score(results)
        with _references(folder, names, all_names=pairs.names) as references:
            return score(results, references)


def picture_count(config: EvalConfig) -> int:
    """How many pictures ``measure`` would enlarge, were there no ``first``.

    Raises:
        FileNotFoundError, ValueError: as ``measure``.
    """
    return len(_pictures(pairs_folder(config.data)).names)


def _pictures(folder: Path) -> PairFolder | Photos:
    has_references = any((folder / name).is_dir() for name in ("gt", "hq"))
    return PairFolder(folder) if has_references else Photos(folder)


class Photos:
    """Photos without references, as ``PairFolder`` gives pairs: a folder, or its lq/.

    Raises:
        FileNotFoundError: the folder does not exist or holds no image.
        ValueError: two photos of one name.
    """

    def __init__(self, folder: Path) -> None:
        paths = list_images(folder / "lq" if (folder / "lq").is_dir() else folder)
        self._paths = {path.stem: path for path in paths}
        if len(self._paths) < len(paths):
            raise ValueError(f"two photos in {folder} have one name; results would overwrite")
        self.names = sorted(self._paths)

    def __getitem__(self, index: int) -> Pair:
        photo = read_image(self._paths[self.names[index]], truncated="warn")
        return Pair(self.names[index], photo, photo)


def _check_metrics(
    metrics: Sequence[str], folder: Path, *, has_references: bool, device: torch.device
) -> None:
    """Refuse what cannot be computed before hours of enlarging, not after: score noise."""
    for name in metrics:
        if not has_references and name in WITH_REFERENCE + OF_SETS:
            raise ValueError(
                f"{name} compares with references, and {folder} has neither gt/ nor hq/; give "
                f"--metrics of single pictures: {' '.join(WITHOUT_REFERENCE)}"
            )
    draw = torch.Generator().manual_seed(0)
    noise = torch.randint(256, (3, 256, 256), dtype=torch.uint8, generator=draw)
    Scorer([name for name in metrics if name not in OF_SETS], device=device)(noise, noise)
    if "fid" in metrics:
        Inception(device=device)


@contextlib.contextmanager
def _result_folder(output: Path | None, names: Sequence[str], *, data: Path) -> Iterator[Path]:
    """``output``, which holds no other pictures than those of ``names``; or a temporary folder."""
    if output is not None:
        if output.resolve() in [(data / name).resolve() for name in ("", "lq", "gt", "hq")]:
            raise ValueError(f"{output} holds the data; choose another folder for the results")
        output.mkdir(parents=True, exist_ok=True)
        for path in output.iterdir():
            if path.suffix.lower() in SUFFIXES and path.name not in {f"{n}.png" for n in names}:
                raise ValueError(
                    f"{path} is none of the pictures to be measured; choose another folder"
                )
        yield output
        return
    with tempfile.TemporaryDirectory() as folder:
        yield Path(folder)


@contextlib.contextmanager
def _references(folder: Path, names: list[str], *, all_names: list[str]) -> Iterator[Path]:
    """The folder of references; where only some are wanted, one with links to these."""
    high = folder / "hq" if (folder / "hq").is_dir() else folder / "gt"
    if names == all_names:
        yield high
        return
    with tempfile.TemporaryDirectory() as some:
        for path in list_images(high):
            if path.stem in names:
                (Path(some) / path.name).symlink_to(path.resolve())
        yield Path(some)


def check_validation(data: str, *, scale: int, first: int | None = None) -> None:
    """Refuse at the start of a training what it could not validate on hours later.

    Args:
        data: see ``pairs_folder``; '' is none.
        scale: of the network.
        first: only the first pairs, this many.

    Raises:
        FileNotFoundError: the pairs are not on this machine.
        ValueError: a picture has no partner, or gt is not ``scale`` times as large as lq.
    """
    if not data:
        return
    try:
        pairs = PairFolder(pairs_folder(data))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{error}; or go without validation: --validation ''") from None
    for i in range(len(pairs))[:first]:
        name, lq, gt = pairs[i]
        (h, w), (height, width) = lq.shape[1:], gt.shape[1:]
        if (height, width) != (scale * h, scale * w):
            raise ValueError(
                f"{data}: {name} has a gt of {height}x{width} and an lq of {h}x{w}, the network's "
                f"scale is {scale}; name other pairs, or go without validation: --validation ''"
            )


def validation_psnr(
    pipeline: ResShiftPipeline, data: str | Path, *, first: int | None = None, **options: Any
) -> float:
    """Mean PSNR of Y in dB over pairs, as the training of ResShift validates (8-bit pictures)."""
    pairs = PairFolder(pairs_folder(data))
    metric, values = PSNR(channels="y"), []
    for i in range(len(pairs) if first is None else min(first, len(pairs))):
        pair = pairs[i]
        large = pipeline.enlarge(pair.lq, seed=i, **options)
        values.append(metric(to_uint8(large)[None], to_uint8(pair.gt)[None]))
    return torch.cat(values).mean().item()


def run_eval(config: EvalConfig, family: Family) -> int:
    """Print (and with ``output`` write) the scores of a network on pairs."""
    from papers_shared.diffusion.upscale import prepared_pipeline

    pipeline = prepared_pipeline(config, family)
    scores = measure(pipeline, config, progress=_show)
    count = len(scores.images)
    print(f"{config.weights} on {config.data}, {count} pictures")
    for name, value in scores.means.items():
        print(f"  {name}: {value:.4f}  ({scores.protocols[name]})")
    if config.output is not None:
        plain = {
            "means": dict(scores.means),
            "images": {k: dict(v) for k, v in scores.images.items()},
        }
        with atomic_path(config.output / "metrics.json") as temporary:
            temporary.write_text(json.dumps(plain, indent=2) + "\n", encoding="utf-8")
    return 0


def _show(done: int, total: int, what: str) -> None:
    if sys.stderr.isatty():
        print(f"\r{done} of {total} {what}", end="" if done < total else "\n", file=sys.stderr)
