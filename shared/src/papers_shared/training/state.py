"""Checkpoint folders: written whole or not at all, found, compared, read without pickled code.

checkpoints/step_00001000/
    run.json              step, number of processes, best metric, configuration, loader
    model.safetensors     weights (model_1.safetensors ... for further models), ema.safetensors
    state.pt              optimizers, schedulers, gradient scaler
    process_0.pt          of each process: random generators, averages of the log not yet written
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from papers_shared.checkpoints import atomic_path

if TYPE_CHECKING:
    from accelerate import Accelerator

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


def newest(
    output: Path, *, config: Mapping[str, Any], resume: bool
) -> tuple[Path | None, dict[str, Any]]:
    """The checkpoint to go on from and its ``run.json``; (None, {}) when there is none.

    Args:
        output: folder of the run, made if it does not exist.
        config: this run's settings.
        resume: False refuses a folder that holds checkpoints.

    Raises:
        ValueError: the checkpoint was made with other settings.
        FileExistsError: there are checkpoints and ``resume`` is False.
        OSError: the folder cannot be made or written to.
    """
    try:
        output.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise type(error)(
            f"cannot write {output}: {error.strerror}; choose another output folder"
        ) from None
    if not os.access(output, os.W_OK):
        raise PermissionError(f"cannot write {output}: it is read-only; choose another folder")
    found = checkpoints(output)
    if not found:
        return None, {}
    if not resume:
        raise FileExistsError(
            f"{output} already holds checkpoints up to {found[-1].name}; choose another output "
            "folder, or resume=True to go on from there"
        )
    facts = read_facts(found[-1])
    refuse_differences(found[-1], facts["config"], config)
    return found[-1], facts


@contextlib.contextmanager
def written_together(folder: Path, accelerator: Accelerator, *, keep: int) -> Iterator[Path]:
    """A folder for all processes to write into; it gets its name when all of them are done.

    Args:
        folder: the checkpoint's name when it is complete.
        accelerator: accelerate's.
        keep: how many checkpoints stay.
    """
    partial = partial_folder(folder)
    if accelerator.is_main_process:
        shutil.rmtree(partial, ignore_errors=True)  # of a process killed while saving
        partial.mkdir(parents=True)
    accelerator.wait_for_everyone()
    yield partial
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        complete(folder, keep=keep)
    accelerator.wait_for_everyone()


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
    if os.name == "nt" and path.is_dir():
        return  # Windows opens no folders
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


def plain(config: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration as JSON gives it back (tuples as lists, paths as strings)."""
    return json.loads(json.dumps(dict(config), default=str))


def refuse_differences(folder: Path, saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Compare a checkpoint's configuration with this run's.

    A larger total_steps is fine, and so is an option that the checkpoint does not know, being
    older, and that is off: false, zero, empty or None. Where this run has total_steps, an older
    checkpoint's ``steps`` are those.

    Raises:
        ValueError: they differ; names the keys with both values.
    """
    if "total_steps" in now and "steps" not in now and "steps" in saved:
        saved = {("total_steps" if key == "steps" else key): v for key, v in saved.items()}
    differing = [
        f"{key}={_show(saved, key)} (now {_show(now, key)})"
        for key in sorted({*saved, *now})
        if saved.get(key) != now.get(key)
        and not (key not in saved and not now[key])
        and not (key == "total_steps" and now.get(key, 0) > saved.get(key, 0))
    ]
    if differing:
        raise ValueError(
            f"{folder} was made with {', '.join(differing)}; choose another output folder, or "
            "the same settings to go on"
        )


def refuse_other_processes(folder: Path, saved: int, now: int) -> None:
    """Compare the numbers of processes.

    Raises:
        ValueError: they differ.
    """
    if saved != now:
        raise ValueError(
            f"{folder} was written by {saved} processes and this run has {now}; start as many, "
            "each goes on with its own random state"
        )


def _show(config: Mapping[str, Any], key: str) -> str:
    return repr(config[key]) if key in config else "unset"
