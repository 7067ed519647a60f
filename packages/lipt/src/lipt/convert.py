"""``lipt convert model_x2_500.pt deployed.safetensors``."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from lipt.config import ConvertConfig
from lipt.family import FAMILY
from lipt.official import convert, layout_of, read
from papers_shared.checkpoints import atomic_path, load_state_dict, save_state_dict
from papers_shared.restoration.family import network_metadata
from papers_shared.restoration.prepare import open_restorer

PICKLES = (".pt", ".pth")


def main(config: ConvertConfig) -> int:
    """Merge a file of weights; prints what became of it.

    Raises:
        FileNotFoundError: no such file, or no folder to write to.
        FileExistsError: the result is there already.
        ValueError: it is no LIPT, or does not say what it undoes.
    """
    source, target = config.source, config.target
    if target.suffix not in (".safetensors", *PICKLES):
        raise ValueError(f"{target}: expected a name that ends with .safetensors, .pt or .pth")
    if not target.absolute().parent.is_dir():
        raise FileNotFoundError(f"{target.absolute().parent} is not a folder; create it first")
    if target.exists() and not config.overwrite:
        raise FileExistsError(f"{target} exists; give --overwrite to replace it")
    # Loading it as a network makes sure that nothing is missing.
    restorer = open_restorer(
        FAMILY, str(source), variant=config.variant, kind=config.task, level=config.level
    )
    state = read(load_state_dict(_file(source)))
    converted = convert(state, config.layout)
    if target.suffix in PICKLES:
        with atomic_path(target) as temporary:
            torch.save(converted, temporary)
    else:
        network = replace(restorer.config, deploy=True)
        metadata = network_metadata(FAMILY, network, restorer.task)
        save_state_dict(converted, target, metadata=metadata)
    before, after = (sum(v.numel() for v in s.values()) for s in (state, converted))
    print(
        f"{target}: {restorer.task}; {layout_of(state)} of {len(state)} entries, {before:,} values "
        f"-> {config.layout} of {len(converted)} entries, {after:,} values"
    )
    return 0


def _file(source: Path) -> Path:
    path = FAMILY.path_of(str(source))
    return path / "model.safetensors" if path.is_dir() else path
