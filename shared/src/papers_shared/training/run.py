"""One training run: the loop over steps, its checkpoints, its log, the finished weights."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from papers_shared.checkpoints import load_file
from papers_shared.training import state as files
from papers_shared.training.loader import Loader, ResumableSampler, Transform
from papers_shared.training.log import Averages, Log, Progress
from papers_shared.training.objects import EMA, Objects
from papers_shared.training.seeds import (
    random_state,
    seed_everything,
    seed_from,
    set_random_state,
)
from papers_shared.training.signals import Signals

if TYPE_CHECKING:
    from accelerate import Accelerator


class NonFiniteLoss(ValueError):
    """The loss or a gradient is NaN or infinite; the batch was saved."""


class Run:
    """The state of a training run and the parts of its script.

    Args:
        output: folder for checkpoints, log and weights.
        seed: decides initial weights made after this call, order of data and every draw.
        config: the settings that decide the result (leave out paths and intervals); stored in
            the checkpoints, and going on with other values is refused. ``total_steps`` may grow.
        resume: go on from the newest checkpoint in ``output``, if there is one; with False a
            folder that holds checkpoints is refused.
        mixed_precision: "no", "bf16" or "fp16".
        gradient_accumulation: micro-batches an update; the loader's batch_size counts them all.
        ema_decay: keep an average of the first prepared model's weights in ``run.ema.model``.
        find_unused_parameters: for networks with parameters that some losses do not reach, when
            several processes train them.
        log_every: steps over which the values given to ``log`` are averaged into one line.
        save_every: steps between checkpoints.
        keep: how many checkpoints are kept.
        tensorboard: also log to ``output/tensorboard``.
        metadata: what the first model's weight files say of it, those in checkpoints too, beside
            the step.

    Attributes:
        step: completed updates.
        epoch: the epoch (0, 1, ...) of the batch at hand.
        new_epoch: the batch at hand begins an epoch, or is the first after a resumption: what
            is set by epoch is to be set now.
        epoch_done: the update just made was the last of its epoch.
        accelerator: accelerate's, for autocast, gather, clip_grad_norm_, unwrap_model.

    Raises:
        ValueError: the folder's checkpoint was made with another configuration, or an interval is
            below 1.
        FileExistsError: ``resume=False`` and there are checkpoints.
        OSError: the folder is not writable.
    """

    def __init__(
        self,
        output: Path | str,
        *,
        seed: int,
        config: Mapping[str, Any] | None = None,
        resume: bool = True,
        mixed_precision: Literal["no", "bf16", "fp16"] = "no",
        gradient_accumulation: int = 1,
        ema_decay: float | None = None,
        find_unused_parameters: bool = False,
        log_every: int = 50,
        save_every: int = 1000,
        keep: int = 2,
        tensorboard: bool = False,
        metadata: Mapping[str, str] | None = None,
    ) -> None:
        for name, steps in (("log_every", log_every), ("save_every", save_every)):
            if steps < 1:
                raise ValueError(f"{name} is at least 1 step, not {steps}")
        self.output = Path(output)
        self._seed, self._accumulation = seed, gradient_accumulation
        self._ema_decay, self._tensorboard = ema_decay, tensorboard
        self._metadata = dict(metadata or {})
        self._log_every, self._save_every, self._keep = log_every, save_every, keep
        own = {"seed": seed, "mixed_precision": mixed_precision, "ema_decay": ema_decay}
        self._config = files.plain({**(config or {}), **own})
        self._checkpoint, self._facts = files.newest(
            self.output, config=self._config, resume=resume
        )
        self.accelerator = _accelerator(
            mixed_precision, gradient_accumulation, find_unused_parameters
        )
        if self._checkpoint is not None:
            files.refuse_other_processes(
                self._checkpoint, self._facts["processes"], self.accelerator.num_processes
            )
        self.step: int = self._facts.get("step", 0)
        self.epoch = 0
        self.new_epoch = self.epoch_done = False
        self._objects: Objects | None = None
        self._averages = Averages()
        self._best: dict[str, float] | None = self._facts.get("best")
        self._candidate: float | None = None
        self._save_asked = False
        self._signals = Signals()
        self._log: Log | None = None
        self._progress: Progress | None = None
        seed_everything(seed)

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files."""
        return self.accelerator.is_main_process

    # ---- before the loop

    def loader(
        self,
        dataset: Any,
        *,
        batch_size: int,
        shuffle: bool = True,
        drop_last: bool = True,
        transform: Transform | None = None,
        workers: int = 0,
        collate: Callable[[list[Any]], Any] | None = None,
    ) -> Loader:
        """Resumable batches on the training device.

        Random augmentation is a function of (seed, epoch, index): ``transform(sample, generator)``
        gets a generator seeded so, and python's, numpy's and torch's global generators are seeded
        alike around ``dataset[index]`` and restored, for data sets that draw from them.
        A data set that lies on the GPU is best given as ``range(len(images))``, the batches being
        indices; augment then in the loop with torch's global generator, which checkpoints hold.

        Args:
            dataset: anything with ``len`` and ``[index]``.
            batch_size: samples of one update, over all processes and accumulated micro-batches.
            shuffle: a new permutation each epoch.
            drop_last: leave out an epoch's incomplete last batch.
            transform: applied to each sample where it is loaded (in the workers).
            workers: processes that load; the result does not depend on it.
            collate: samples to batch; torch's default otherwise.

        Raises:
            ValueError: batch_size is not divisible among processes and micro-batches, or larger
                than the data set.
        """
        sampler = ResumableSampler(
            len(dataset),
            batch_size=batch_size,
            seed=self._seed,
            shuffle=shuffle,
            drop_last=drop_last,
            rank=self.accelerator.process_index,
            processes=self.accelerator.num_processes,
            accumulation=self._accumulation,
        )
        return Loader(
            dataset,
            sampler,
            transform=transform,
            workers=workers,
            collate=collate,
            device=self.accelerator.device,
        )

    def prepare(self, *objects: Any) -> Any:
        """Models, optimizers and schedulers for this machine, in the state of the checkpoint.

        Schedulers count updates, whatever the number of processes. The first model is the one
        that is averaged (``ema_decay``) and written by ``finish``.

        Args:
            objects: modules, optimizers, learning-rate schedulers, in any order, the same at
                each start.

        Returns:
            the prepared objects in the same order (a single one by itself).

        Raises:
            ValueError: the checkpoint does not fit them.
        """
        if self._objects is not None:
            raise ValueError("prepare takes all models, optimizers and schedulers in one call")
        kind = _objects_of(objects)
        self._objects = kind(objects, self.accelerator, ema_decay=self._ema_decay)
        if self._checkpoint is not None:
            self._objects.load(self._checkpoint)
        prepared = self._objects.prepared
        return prepared if len(prepared) > 1 else prepared[0]

    @property
    def _trained(self) -> Objects:
        assert self._objects is not None, "steps() has checked it"
        return self._objects

    @property
    def ema(self) -> EMA | None:
        """The average of the first model's weights: ``run.ema.model`` is ready to be called."""
        return None if self._objects is None else self._objects.ema

    # ---- the loop

    def steps(self, loader: Loader, total_steps: int) -> Iterator[Any]:
        """Batches until ``total_steps`` updates are done, those of earlier starts included.

        After each update the log line, the checkpoint and the progress are due. SIGTERM and
        Ctrl-C end the run after the step at hand: it is saved, then SystemExit is raised with
        status 143 or 130. A second Ctrl-C ends it at once.

        Raises:
            ValueError: the checkpoint was made with other data or another batch size.
            RuntimeError: the loop body did not run ``with run.accumulate():``.
        """
        self._begin(loader)
        first, per_epoch = self.step, loader.steps_per_epoch
        progress = Progress(first, total_steps) if self.is_main else None
        self._progress = progress
        self._per_epoch = per_epoch
        with self._signals:
            try:
                new_update = True
                for batch in loader.batches(first, total_steps):
                    before = self.step
                    self.epoch = before // per_epoch
                    self.new_epoch = new_update and (before == first or before % per_epoch == 0)
                    self.epoch_done = False
                    self._batch, self._accumulated = batch, False
                    yield batch
                    if not self._accumulated:
                        raise RuntimeError(
                            "the loop body must run `with run.accumulate():` once for each batch"
                        )
                    new_update = self.step > before
                    if new_update:
                        self._end_step(total_steps)
            finally:
                if progress is not None:
                    progress.close()

    def _begin(self, loader: Loader) -> None:
        if self._objects is None:
            raise RuntimeError("call run.prepare(model, optimizer, ...) before run.steps")
        rank = self.accelerator.process_index
        self._loader_facts = loader.facts()
        if self._checkpoint is not None:
            files.refuse_differences(self._checkpoint, self._facts["loader"], self._loader_facts)
            mine = load_file(self._checkpoint / f"process_{rank}.pt")
            self._averages.load(mine["averages"])
            set_random_state(mine["random"])
        else:
            # Each process draws its own noise and dropout, whatever was drawn before the loop.
            seed_everything(seed_from(self._seed, rank))
        if self.is_main and self._log is None:
            size = self._facts.get("log_bytes", 0)
            self._log = Log(self.output, step=self.step, size=size, tensorboard=self._tensorboard)

    @contextlib.contextmanager
    def accumulate(self) -> Iterator[None]:
        """Around forward, backward and optimizer step of one (micro-)batch.

        Optimizers and schedulers act, gradients are exchanged, and ``step`` grows at an update's
        last micro-batch only.
        """
        with self.accelerator.accumulate(*self._trained.models):
            yield
        self._accumulated = True
        if self.accelerator.sync_gradients:
            self.step += 1
            self.epoch_done = self.step % self._per_epoch == 0
            if self.ema is not None:
                self.ema.update(self._trained.bare()[0])

    def backward(self, loss: Tensor) -> None:
        """Gradients of ``loss``, stopping the run before NaN reaches the weights.

        Raises:
            NonFiniteLoss: loss or gradients are NaN or infinite (with fp16 the loss only: its
                scaler skips updates with infinite gradients); batch and state have been saved.
        """
        self.accelerator.backward(loss)
        verdict = loss.detach().float()
        if self.accelerator.scaler is None:
            weights = [p for model in self._trained.models for p in model.parameters()]
            gradients = [p.grad for p in weights if p.grad is not None]
            norm: Any = torch.nn.utils.get_total_norm(gradients)
            verdict = verdict + (norm.full_tensor() if hasattr(norm, "full_tensor") else norm)
        if not torch.isfinite(verdict):
            self._save_nonfinite(loss)

    def log(self, **values: Tensor | float) -> None:
        """Values of this (micro-)batch for the log: averaged over log_every steps, micro-batches
        and processes. Every process logs the same names.
        """
        self._averages.add(values)

    def record(self, **values: float) -> None:
        """A line of its own at once, for results such as a validation accuracy."""
        if self.is_main:
            if self._log is None or self._progress is None:
                raise RuntimeError("run.record belongs into or behind the loop over run.steps")
            self._log.write(self.step, self._epochs_done(), values)
            shown = "  ".join(f"{name} {value:.6g}" for name, value in values.items())
            self._progress.message(f"step {self.step}  {shown}")

    def save(self, *, best: float | None = None) -> None:
        """Write a checkpoint when this step is over.

        Args:
            best: a metric, larger is better; the weights (averaged ones too) are also written to
                ``model_best.safetensors`` if it exceeds all earlier ones.
        """
        self._save_asked, self._candidate = True, best

    def finish(self) -> Path:
        """Write ``model.safetensors`` and ``model_ema.safetensors``; returns the former's path.

        Every process may read them then.
        """
        self._write_weights()
        self.accelerator.wait_for_everyone()
        if self._log is not None:
            self._log.close()
            self._log = None
        return self.output / "model.safetensors"

    # ---- the end of a step

    def _epochs_done(self) -> float:
        return round(self.step / self._per_epoch, 4)

    def _end_step(self, total_steps: int) -> None:
        last = self.step == total_steps
        if self.step % self._log_every == 0 or last:
            self._write_log()
        stop = self._agreed_signal()
        if self._candidate is not None:
            if self._best is None or self._candidate > self._best["value"]:
                self._best = {"step": self.step, "value": float(self._candidate)}
                self._write_weights("_best")
            self._candidate = None
        if self._save_asked or last or stop or self.step % self._save_every == 0:
            self._save_asked = False
            self._save()
        if self._progress is not None:
            self._progress.update(self.step, self._epochs_done())
        if stop:
            if self._progress is not None:
                self._progress.message(
                    f"stopped by {signal.Signals(stop).name} after step {self.step}; saved in "
                    f"{self._checkpoint}; the same command goes on from there"
                )
            raise SystemExit(128 + stop)

    def _write_log(self) -> None:
        means = self._averages.take(self.accelerator)
        if means and self._log is not None and self._progress is not None:
            self._log.write(self.step, self._epochs_done(), means)
            self._progress.show(means)

    def _agreed_signal(self) -> int:
        """The signal that any process got: all have to stop after the same step."""
        if self.accelerator.num_processes == 1:
            return self._signals.received
        flag = torch.tensor(self._signals.received, device=self.accelerator.device)
        torch.distributed.all_reduce(flag, op=torch.distributed.ReduceOp.MAX)
        return int(flag)

    # ---- files

    def _save(self) -> None:
        folder = files.checkpoint_folder(self.output, self.step)
        self._trained.gather()
        with files.written_together(folder, self.accelerator, keep=self._keep) as partial:
            files.write_tensors(
                {"random": random_state(), "averages": self._averages.state()},
                partial / f"process_{self.accelerator.process_index}.pt",
            )
            if self._log is not None:  # the main process
                self._trained.write(partial, metadata=self._about())
                facts = {
                    "step": self.step,
                    "processes": self.accelerator.num_processes,
                    "best": self._best,
                    "log_bytes": self._log.size(),
                    "config": self._config,
                    "loader": self._loader_facts,
                }
                files.write_json(facts, partial / "run.json")
        self._checkpoint = folder

    def _write_weights(self, suffix: str = "") -> None:
        self._trained.gather()
        if self.is_main:
            self._trained.write_weights(self.output, suffix=suffix, metadata=self._about())

    def _about(self) -> dict[str, str]:
        return {**self._metadata, "step": str(self.step)}

    def _save_nonfinite(self, loss: Tensor) -> None:
        folder = self.output / "nonfinite" / f"step_{self.step + 1:08d}"
        folder.mkdir(parents=True, exist_ok=True)
        self._trained.gather()
        self._trained.write(folder, metadata=self._about())
        rank = self.accelerator.process_index
        torch.save({"batch": self._batch, "loss": loss.detach()}, folder / f"batch_{rank}.pt")
        if self._progress is not None:
            self._progress.close()
        what = "gradient" if torch.isfinite(loss.detach()).all() else f"loss ({loss.item()})"
        raise NonFiniteLoss(
            f"the {what} of step {self.step + 1} is not finite; its batch and the weights before "
            f"the update are in {folder}; lower the learning rate or look at the batch"
        )


def _objects_of(things: tuple[Any, ...]) -> type[Objects]:
    """``ShardedObjects`` for what ``sharded.shard`` has cut, else ``Objects``."""
    if not any(type(thing).__name__.startswith("FSDP") for thing in things):
        return Objects
    from papers_shared.training.sharded import ShardedObjects

    return ShardedObjects


def _accelerator(
    mixed_precision: str, accumulation: int, find_unused_parameters: bool
) -> Accelerator:
    from accelerate import Accelerator, DataLoaderConfiguration, DistributedDataParallelKwargs
    from accelerate.state import AcceleratorState

    # accelerate keeps the precision of a process's first run and refuses another one.
    if AcceleratorState._shared_state.get("_mixed_precision", mixed_precision) != mixed_precision:
        AcceleratorState._reset_state()
    return Accelerator(
        mixed_precision=mixed_precision,
        gradient_accumulation_steps=accumulation,
        # Batches are global here: without this, schedulers would step once for each process.
        dataloader_config=DataLoaderConfiguration(split_batches=True),
        kwargs_handlers=[
            DistributedDataParallelKwargs(find_unused_parameters=find_unused_parameters)
        ],
    )
