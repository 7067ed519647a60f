"""What a run keeps on disk, so that it goes on where it was: a file a finished block, and a log."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cbq.settings import Settings
from papers_shared.checkpoints import atomic_path, save_state_dict
from papers_shared.quantization import Grid, QuantizedWeight

Finished = dict[str, tuple[QuantizedWeight, Tensor]]  # layer in the block -> codes, act_factor


class WorkFolder:
    """The files of one run.

    Args:
        folder: made where it is not there.
        settings: of the run.
        tokens: (N, T), the calibration segments.
        model: name and sizes of the model, as JSON can hold them.

    Raises:
        ValueError: the folder holds a run with other settings, text or model.
        OSError: it cannot be written.
    """

    def __init__(
        self, folder: Path, settings: Settings, tokens: Tensor, model: Mapping[str, Any]
    ) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        digest = hashlib.sha256(tokens.cpu().numpy().tobytes()).hexdigest()
        mine = {"settings": settings.to_dict(), "tokens": digest, "model": dict(model)}
        mine = json.loads(json.dumps(mine))
        path = folder / "run.json"
        self.done = 0
        if path.is_file():
            kept = json.loads(path.read_text(encoding="utf-8"))
            self.done = kept.pop("windows_done")
            if kept != mine:
                names = [n for n in mine if kept.get(n) != mine[n]]
                raise ValueError(
                    f"{folder} holds another run ({', '.join(names)} differ); take another folder, "
                    f"or delete it to start again"
                )
        self.kept = mine
        self._drop_torn_line()
        self._write()

    def _write(self) -> None:
        with atomic_path(self.folder / "run.json") as path:
            content = {**self.kept, "windows_done": self.done}
            path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    def _drop_torn_line(self) -> None:
        """What a full disk or a kill left of a line of the log; its window did not count."""
        path = self.folder / "log.jsonl"
        if path.is_file() and not (written := path.read_bytes()).endswith(b"\n"):
            with atomic_path(path) as whole:
                whole.write_bytes(written[: written.rfind(b"\n") + 1])

    def save_window(
        self,
        finished: Mapping[int, Finished],
        open_blocks: Mapping[int, Mapping[str, Tensor]],
        report: Mapping[str, Any],
    ) -> None:
        """Keep a window's result; only the last write makes it count."""
        for index, layers in finished.items():
            entries = {}
            for name, (weight, factor) in layers.items():
                entries[f"{name}.codes"] = weight.codes
                entries[f"{name}.scale"] = weight.grid.scale
                entries[f"{name}.zero"] = weight.grid.zero
                entries[f"{name}.act_factor"] = factor
            save_state_dict(entries, self.folder / f"block_{index}.safetensors")
        for index, state in open_blocks.items():
            save_state_dict(state, self.folder / f"open_{self.done}_{index}.safetensors")
        self.log(report)
        self.done += 1
        self._write()
        for path in self.folder.glob("open_*.safetensors"):
            if int(path.stem.split("_")[1]) < self.done - 1:
                path.unlink()

    def log(self, line: Mapping[str, Any]) -> None:
        """Append a line to ``log.jsonl``."""
        with (self.folder / "log.jsonl").open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(line) + "\n")
            stream.flush()
            os.fsync(stream.fileno())

    def reports(self) -> list[dict[str, Any]]:
        """The lines of the windows that are done."""
        path = self.folder / "log.jsonl"
        if not path.is_file():
            return []
        lines = [json.loads(x) for x in path.read_text(encoding="utf-8").splitlines() if x.strip()]
        by_window = {line["window"]: line for line in lines if "window" in line}
        return [by_window[i] for i in range(self.done)]

    def load_block(self, index: int, settings: Settings) -> Finished:
        """A finished block."""
        from safetensors.torch import load_file

        entries = load_file(self.folder / f"block_{index}.safetensors")
        names = sorted({name.rpartition(".")[0] for name in entries})
        found: Finished = {}
        for name in names:
            codes, scale = entries[f"{name}.codes"], entries[f"{name}.scale"]
            group = codes.shape[1] // scale.shape[1]
            grid = Grid(scale, entries[f"{name}.zero"], settings.bits, group, settings.symmetric)
            found[name] = QuantizedWeight(codes, grid), entries[f"{name}.act_factor"]
        return found

    def load_open(self, index: int) -> dict[str, Tensor]:
        """The state of a block that the next window goes on with."""
        from safetensors.torch import load_file

        return load_file(self.folder / f"open_{self.done - 1}_{index}.safetensors")


def model_identity(model: Any, blocks: Sequence[torch.nn.Module]) -> dict[str, Any]:
    """What tells one model from another at no cost: class, sizes, and a few of its weights."""
    digest = hashlib.sha256()
    for parameter in list(blocks[0].parameters())[:2] + list(blocks[-1].parameters())[-2:]:
        digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return {"class": type(model).__name__, "blocks": len(blocks), "weights": digest.hexdigest()}
