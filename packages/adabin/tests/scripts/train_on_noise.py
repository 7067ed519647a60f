"""Train AdaBin's small network on random pictures; every process writes its weights.

Run by torchrun: ``train_on_noise.py OUTPUT``.
"""

import sys
from pathlib import Path

import torch

from adabin import train as training
from adabin.config import TrainConfig
from papers_shared.checkpoints import save_state_dict
from papers_shared.data.cifar10 import Cifar10
from papers_shared.training import Run


def noise(split: str, **_: object) -> Cifar10:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (32, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Cifar10(images, torch.arange(32) % 10, torch.ones(32, dtype=torch.bool), "noise", {})


class RecordedRun(Run):
    """Writes the weights of every process, not of the first alone."""

    def finish(self) -> Path:
        rank, world = self.accelerator.process_index, self.accelerator.num_processes
        state = dict(self.trained.named_parameters())
        save_state_dict(state, self.output / f"rank{rank}of{world}.safetensors")
        return super().finish()

    @property
    def trained(self) -> torch.nn.Module:
        return self.accelerator.unwrap_model(self.accelerator._models[0])


if __name__ == "__main__":
    training.load_cifar10 = noise
    training.Run = RecordedRun
    training.train(
        TrainConfig(
            num_blocks=(1, 1, 1), image_size=16, epochs=2, batch_size=8, workers=0, log_every=1,
            output=Path(sys.argv[1]),
        )
    )  # fmt: skip
