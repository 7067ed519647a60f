"""Batches whose content is a function of the seed and the step alone.

Nothing about the order of the data has to be stored beside the step: the permutation of an epoch
comes from (seed, epoch), the random augmentation of a sample from (seed, epoch, index). So a run
goes on in the middle of an epoch without replaying it, and one process and several see the same
global batches.
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from papers_shared.training.seeds import cpu_generators_kept, seed_cpu_generators, seed_from

Transform = Callable[[Any, torch.Generator], Any]


class Key(NamedTuple):
    """Which sample, and in which epoch it is drawn."""

    epoch: int
    sample: int


class ResumableSampler(Sampler[list[Key]]):
    """The batches of one process, from any step to any step.

    A global batch (the samples of one update) is cut into ``accumulation`` micro-batches, each
    of them into one part a process; all parts are equally large. An incomplete last batch of an
    epoch is filled up from the epoch's beginning to a multiple of the number of parts.

    Args:
        size: samples in the data set.
        batch_size: samples of one update, over all processes and micro-batches.
        seed: decides the permutations.
        shuffle: False keeps the data set's order.
        drop_last: leave out an epoch's incomplete last batch.
        rank: this process, 0 <= rank < processes.
        processes: how many share the work.
        accumulation: micro-batches an update.

    Raises:
        ValueError: the batch cannot be divided evenly, or an epoch has no batch.
    """

    def __init__(
        self,
        size: int,
        *,
        batch_size: int,
        seed: int,
        shuffle: bool = True,
        drop_last: bool = True,
        rank: int = 0,
        processes: int = 1,
        accumulation: int = 1,
    ) -> None:
        parts = processes * accumulation
        if batch_size < 1 or batch_size % parts:
            raise ValueError(
                f"batch_size {batch_size} (samples of one update, over all processes) is not a "
                f"multiple of {processes} processes x {accumulation} accumulated micro-batches; "
                "choose one that is"
            )
        if size < 1 or (drop_last and size < batch_size):
            raise ValueError(
                f"a data set of {size} samples gives no batch of {batch_size}; "
                "choose a smaller batch_size or drop_last=False"
            )
        self.size, self.batch_size, self.seed = size, batch_size, seed
        self.shuffle, self.drop_last = shuffle, drop_last
        self.rank, self.processes, self.accumulation = rank, processes, accumulation
        self.first_step, self.last_step = 0, 0

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch."""
        whole, rest = divmod(self.size, self.batch_size)
        return whole + bool(rest and not self.drop_last)

    def permutation(self, epoch: int) -> list[int]:
        """The order of an epoch, from a generator of its own: (size,) indices."""
        if not self.shuffle:
            return list(range(self.size))
        generator = torch.Generator().manual_seed(seed_from(self.seed, epoch))
        return torch.randperm(self.size, generator=generator).tolist()

    def between(self, first_step: int, last_step: int) -> None:
        """Let the next iteration yield the batches of first_step <= step < last_step."""
        self.first_step, self.last_step = first_step, last_step

    def __len__(self) -> int:
        return (self.last_step - self.first_step) * self.accumulation

    def __iter__(self) -> Iterator[list[Key]]:
        parts = self.processes * self.accumulation
        epoch = -1
        order: list[int] = []
        for step in range(self.first_step, self.last_step):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self.permutation(epoch)
            start = step % self.steps_per_epoch * self.batch_size
            batch = order[start : start + self.batch_size]
            batch += [order[i % self.size] for i in range(-len(batch) % parts)]
            for micro in range(self.accumulation):
                mine = batch[micro * self.processes + self.rank :: parts]
                yield [Key(epoch, index) for index in mine]


class _KeyedDataset(Dataset):
    """Fetches samples by ``Key``, every random draw seeded by (seed, epoch, index)."""

    def __init__(self, dataset: Any, transform: Transform | None, seed: int) -> None:
        self.dataset, self.transform, self.seed = dataset, transform, seed

    def __getitems__(self, keys: Sequence[Key]) -> list[Any]:  # torch's hook for a whole batch
        # The global generators belong to the training loop when there are no workers.
        with cpu_generators_kept():
            return [self._sample(key) for key in keys]

    def _sample(self, key: Key) -> Any:
        seed = seed_from(self.seed, key.epoch, key.sample)
        seed_cpu_generators(seed)
        sample = self.dataset[key.sample]
        if self.transform is None:
            return sample
        return self.transform(sample, torch.Generator().manual_seed(seed))


class Loader:
    """A data set in batches on the training device; made by ``Run.loader``."""

    def __init__(
        self,
        dataset: Any,
        sampler: ResumableSampler,
        *,
        transform: Transform | None,
        workers: int,
        collate: Callable[[list[Any]], Any] | None,
        device: torch.device,
    ) -> None:
        self.sampler = sampler
        self._device = device
        self._batches = DataLoader(
            _KeyedDataset(dataset, transform, sampler.seed),
            batch_sampler=sampler,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            worker_init_fn=_ignore_interrupt,
            # iter() draws the workers' base seed: from the global generator unless it has its own,
            # which would shift the loop's draws in a run that iterates once more or less.
            generator=torch.Generator().manual_seed(sampler.seed),
        )

    @property
    def steps_per_epoch(self) -> int:
        """Updates an epoch."""
        return self.sampler.steps_per_epoch

    def facts(self) -> dict[str, Any]:
        """What must stay the same for a run to go on with the same data."""
        names = ("size", "batch_size", "seed", "shuffle", "drop_last")
        return {name: getattr(self.sampler, name) for name in names}

    def batches(self, first_step: int, last_step: int) -> Iterator[Any]:
        """This process's micro-batches of the updates first_step <= step < last_step."""
        from accelerate.utils import send_to_device

        self.sampler.between(first_step, last_step)
        for batch in self._batches:
            yield send_to_device(batch, self._device, non_blocking=True)


def _ignore_interrupt(worker: int) -> None:
    # Ctrl-C reaches the whole process group; the main process stops after its step and needs
    # its workers until then.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
