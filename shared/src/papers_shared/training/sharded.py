"""Training a network whose weights, gradients and optimizer state are cut over the processes.

PyTorch's ``fully_shard`` (FSDP2) in the place of accelerate's wrapper, on GPUs over NCCL or on CPUs
over gloo. Checkpoints hold whole tensors, as those of unsharded runs do.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.optim import Optimizer

from papers_shared.checkpoints import load_file, save_state_dict
from papers_shared.training.objects import Objects
from papers_shared.training.state import write_tensors

if TYPE_CHECKING:
    from accelerate import Accelerator

WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)
FROM_WHOLE = StateDictOptions(full_state_dict=True, broadcast_from_rank0=False)


def shard(model: nn.Module, accelerator: Accelerator) -> nn.Module:
    """Cut a network's weights over the processes, block by block; to be done before its optimizer.

    Args:
        model: its blocks are the entries of the ``ModuleList``s among its children.
        accelerator: accelerate's, which has set up the processes.

    Raises:
        ValueError: there is one process only.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if accelerator.num_processes < 2:
        raise ValueError("--fsdp needs several processes: torchrun --nproc_per_node 2 -m ...")
    model.to(accelerator.device)
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in model.children():
        if isinstance(module, nn.ModuleList):
            for block in module:
                fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    return model


class ShardedAverage:
    """The moving average of a sharded model's weights; each process keeps that of its own part."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self._decay = decay
        self.parts = [_own(p).clone() for p in model.parameters()]

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        """Take one step towards the weights of ``model``."""
        for mine, theirs in zip(self.parts, model.parameters(), strict=True):
            mine.lerp_(_own(theirs), 1 - self._decay)

    @torch.no_grad()
    def swap(self, model: nn.Module) -> None:
        """Exchange the average with the model's weights."""
        for mine, theirs in zip(self.parts, model.parameters(), strict=True):
            now = _own(theirs).clone()
            _own(theirs).copy_(mine)
            mine.copy_(now)


def _own(parameter: Tensor) -> Tensor:
    local: Any = parameter.detach()
    return local.to_local()


class ShardedObjects(Objects):
    """``Objects`` of one sharded network and its optimizer."""

    def __init__(
        self, things: tuple[Any, ...], accelerator: Accelerator, *, ema_decay: float | None
    ) -> None:
        model, optimizer = things
        if not isinstance(model, nn.Module) or not isinstance(optimizer, Optimizer):
            raise ValueError("a sharded run prepares one network and its optimizer")
        self._accelerator = accelerator
        self.prepared = (model, accelerator.prepare(optimizer))
        self.models, self.optimizers, self.schedulers = [model], [self.prepared[1]], []
        self.average = None if ema_decay is None else ShardedAverage(model, ema_decay)
        self.ema = self.average  # type: ignore[assignment]
        self._whole: dict[str, Any] = {}

    def bare(self) -> list[nn.Module]:
        """The network."""
        return self.models

    def gather(self) -> None:
        """Whole tensors from all processes; to be called by all before the first one writes."""
        (model,), optimizer = self.models, self.optimizers[0].optimizer
        self._whole = {
            "model": get_model_state_dict(model, options=WHOLE),
            "optimizer": get_optimizer_state_dict(model, optimizer, options=WHOLE),
        }
        if self.average is not None:
            self.average.swap(model)
            self._whole["ema"] = get_model_state_dict(model, options=WHOLE)
            self.average.swap(model)

    def write(self, folder: Path, *, metadata: Mapping[str, str]) -> None:
        """Write what ``gather`` has brought together."""
        save_state_dict(self._whole["model"], folder / "model.safetensors", metadata=metadata)
        if self.average is not None:
            save_state_dict(self._whole["ema"], folder / "ema.safetensors", metadata=metadata)
        write_tensors({"optimizer": self._whole["optimizer"]}, folder / "state.pt")

    def load(self, folder: Path) -> None:
        """Take on what ``write`` wrote; every process reads it."""
        (model,), optimizer = self.models, self.optimizers[0].optimizer
        if self.average is not None:
            set_model_state_dict(model, load_file(folder / "ema.safetensors"), options=FROM_WHOLE)
            self.average.parts = [_own(p).clone() for p in model.parameters()]
        set_model_state_dict(model, load_file(folder / "model.safetensors"), options=FROM_WHOLE)
        state = load_file(folder / "state.pt")["optimizer"]
        set_optimizer_state_dict(model, optimizer, state, options=FROM_WHOLE)

    def write_weights(self, output: Path, *, suffix: str, metadata: Mapping[str, str]) -> None:
        """As of ``Objects``, of what ``gather`` has brought together."""
        names = {"model": "model", "ema": "model_ema"}
        for key, name in names.items():
            if key in self._whole:
                path = output / f"{name}{suffix}.safetensors"
                save_state_dict(self._whole[key], path, metadata=metadata)
