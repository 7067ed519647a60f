"""What is trained, the average of its weights, and how both are written and read."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.optim import Optimizer
from torch.optim.swa_utils import get_ema_multi_avg_fn

from papers_shared.checkpoints import load_file, load_strict, save_state_dict
from papers_shared.training.state import write_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator


class EMA:
    """Exponential moving average of a model's weights: ema <- decay * ema + (1 - decay) * w.

    It starts at the initial weights; buffers (batch norm's statistics) are copied.

    Args:
        model: a module of which a copy is taken.
        decay: 0 <= decay <= 1.

    Attributes:
        model: the averaged network, in eval mode, ready to be called.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = copy.deepcopy(model).eval().requires_grad_(False)
        self._average = get_ema_multi_avg_fn(decay)

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights of ``model``."""
        self._average(list(self.model.parameters()), list(model.parameters()), 0)
        for mine, theirs in zip(self.model.buffers(), model.buffers(), strict=True):
            mine.copy_(theirs)


class Objects:
    """Models, optimizers, schedulers and the EMA of the first model, prepared by accelerate.

    Args:
        things: modules, optimizers, learning-rate schedulers, the same at each start.
        accelerator: accelerate's.
        ema_decay: None for no average.

    Attributes:
        prepared: the prepared things in their order.
        models: the prepared modules.
        ema: the average, or None.

    Raises:
        ValueError: there is no module.
    """

    def __init__(
        self, things: tuple[Any, ...], accelerator: Accelerator, *, ema_decay: float | None
    ) -> None:
        self._accelerator = accelerator
        # Prepared one by one a scheduler would not find its optimizer.
        prepared = accelerator.prepare(*things)
        self.prepared: tuple[Any, ...] = prepared if len(things) > 1 else (prepared,)
        pairs = list(zip(things, self.prepared, strict=True))
        self.models = [ready for thing, ready in pairs if isinstance(thing, nn.Module)]
        self.optimizers = [ready for thing, ready in pairs if isinstance(thing, Optimizer)]
        self.schedulers = [
            ready for thing, ready in pairs if not isinstance(thing, nn.Module | Optimizer)
        ]
        if not self.models:
            raise ValueError("nothing to train: prepare takes at least one torch module")
        # After preparing: several processes have then got the first one's weights.
        self.ema = None if ema_decay is None else EMA(self.bare()[0], ema_decay)

    def bare(self) -> list[nn.Module]:
        """The models without the wrapper of several processes."""
        return [self._accelerator.unwrap_model(model) for model in self.models]

    def gather(self) -> None:
        """What all processes have to do before the first one writes: nothing."""

    def write(self, folder: Path, *, metadata: Mapping[str, str]) -> None:
        """Write everything into an existing folder; ``metadata`` is of the first model."""
        for number, model in enumerate(self.bare()):
            about = metadata if number == 0 else None
            save_state_dict(model.state_dict(), folder / _model_file(number), metadata=about)
        if self.ema is not None:
            path = folder / "ema.safetensors"
            save_state_dict(self.ema.model.state_dict(), path, metadata=metadata)
        scaler = self._accelerator.scaler
        rest = {
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "schedulers": [scheduler.state_dict() for scheduler in self.schedulers],
            "scaler": None if scaler is None else scaler.state_dict(),
        }
        write_tensors(rest, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Take on what ``write`` wrote.

        Raises:
            ValueError: it does not fit these objects.
        """
        for number, model in enumerate(self.bare()):
            path = folder / _model_file(number)
            load_strict(model, load_file(path), what=str(path))
        if self.ema is not None:
            path = folder / "ema.safetensors"
            load_strict(self.ema.model, load_file(path), what=str(path))
        rest = load_file(folder / "state.pt")
        for kind, things in (("optimizers", self.optimizers), ("schedulers", self.schedulers)):
            if len(rest[kind]) != len(things):
                raise ValueError(
                    f"{folder} holds {len(rest[kind])} {kind}, this script prepares {len(things)}; "
                    "choose another output folder"
                )
            for thing, saved in zip(things, rest[kind], strict=True):
                thing.load_state_dict(saved)
        if self._accelerator.scaler is not None:
            self._accelerator.scaler.load_state_dict(rest["scaler"])

    def write_weights(self, output: Path, *, suffix: str, metadata: Mapping[str, str]) -> None:
        """The first model alone, and its average: model.safetensors, model_ema.safetensors."""
        weights = {"model": self.bare()[0]}
        if self.ema is not None:
            weights["model_ema"] = self.ema.model
        for name, model in weights.items():
            path = output / f"{name}{suffix}.safetensors"
            save_state_dict(model.state_dict(), path, metadata=metadata)


def _model_file(number: int) -> str:
    return "model.safetensors" if number == 0 else f"model_{number}.safetensors"
