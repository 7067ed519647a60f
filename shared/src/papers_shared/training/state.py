"""Checkpoint folders: written whole or not at all, found, compared, read without pickled code.

checkpoints/step_00001000/
    run.json              step, number of processes, best metric, configuration, loader
    model.safetensors     weights (model_1.safetensors ... for further models), ema.safetensors
    state.pt              optimizers, schedulers, gradient scaler
    process_0.pt          of each process: random generators, averages of the log not yet written
"""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from papers_shared.checkpoints import atomic_path, load_file

_FOLDER = re.compile(r"step_(\d{8,})")


def checkpoint_folder(output: Path, step: int) -> Path:
    """Where the checkpoint of ``step`` lies."""
    return output / "checkpoints" / f"step_{step:08d}"


def checkpoints(output: Path) -> list[Path]:
    """The complete checkpoints of a run, oldest first."""
    found = [
        (int(match.group(1)), path)
        for path in (output / "checkpoints").glob("step_*")
        if (match := _FOLDER.fullmatch(path.name)) and (path / "run.json").is_file()
    ]
    return [path for _, path in sorted(found)]


def partial_folder(folder: Path) -> Path:
    """The name under which a checkpoint is written before it is complete."""
    return folder.with_name(f".{folder.name}.partial")


def complete(folder: Path, *, keep: int) -> None:
    """Give a wholly written checkpoint its name and remove all but the newest ``keep``."""
    partial = partial_folder(folder)
    for path in partial.iterdir():
        _flush_to_disk(path)
    _flush_to_disk(partial)
    os.replace(partial, folder)
    _flush_to_disk(folder.parent)
    for old in checkpoints(folder.parents[1])[:-keep]:
        # Renamed first: a removal that is interrupted must not leave half a checkpoint.
        doomed = partial_folder(old)
        os.replace(old, doomed)
        shutil.rmtree(doomed)


def _flush_to_disk(path: Path) -> None:
    # A rename that survives a power cut before the data it names would be a broken checkpoint.
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_tensors(value: Any, path: Path) -> None:
    """``torch.save`` of plain containers and tensors, checked to be loadable with weights_only.

    Raises:
        ValueError: ``value`` holds objects of other classes.
    """
    with atomic_path(path) as temporary:
        torch.save(value, temporary)
        if foreign := torch.serialization.get_unsafe_globals_in_checkpoint(temporary):
            raise ValueError(
                f"the training state holds objects of {', '.join(sorted(foreign))}, which cannot "
                "be loaded safely; keep tensors, numbers, strings and containers of these in the "
                "state_dict of optimizers and schedulers"
            )


def write_json(value: Mapping[str, Any], path: Path) -> None:
    """One readable JSON object."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def read_facts(folder: Path) -> dict[str, Any]:
    """``run.json`` of a checkpoint.

    Raises:
        ValueError: it is damaged.
    """
    try:
        return json.loads((folder / "run.json").read_text(encoding="utf-8"))
    except ValueError:
        raise ValueError(f"{folder}/run.json is damaged; remove {folder} to go on") from None


def read_tensors(path: Path) -> Any:
    """What ``write_tensors`` wrote."""
    return load_file(path)


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON gives it back (tuples as lists, paths as strings)."""
    return json.loads(json.dumps(dict(config), default=str))


def refuse_differences(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare a checkpoint's configuration with this run's; a larger total_steps is fine.

    Raises:
        ValueError: they differ; names the keys with both values.
    """
    differing = [
        f"{key}={_show(saved, key)} (now {_show(now, key)})"
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key)
        and not (key == "total_steps" and now.get(key, 0) > saved.get(key, 0))
    ]
    if differing:
        raise ValueError(
            f"{folder} was made with {', '.join(differing)}; choose another output folder, or "
            "the same settings to go on"
        )


def _show(config: Mapping[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "unset"
