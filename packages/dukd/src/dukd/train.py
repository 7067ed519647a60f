"""Training: ``accelerate launch -m dukd.train --config edsr_x4 --teacher-weights FILE``.

``dukd distill`` is the same with settings for one machine. The paper's iteration stands in
``distill.DUKD.stages``; here it is given batches, steps and an average of the weights.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from dukd.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from dukd.config import ALONE, METHOD_OPTIONS, TrainConfig
from dukd.csd import WidthSlice, vgg19_features
from dukd.distill import Distiller
from dukd.family import FAMILY, load_restorer
from dukd.methods import METHODS
from dukd.model import Config, build
from dukd.official import init_from
from dukd.teachers import (
    CachedTeacher,
    answer_bytes,
    answers_that_fit,
    check_pair,
    load_teacher,
)
from papers_shared.checkpoints import (
    atomic_path,
    load_file,
    load_state_dict,
    load_strict,
    save_state_dict,
)
from papers_shared.inference import available_memory
from papers_shared.restoration.data import Crops, Photos, floats, training_data
from papers_shared.restoration.family import Restorer, network_metadata
from papers_shared.restoration.task import Task
from papers_shared.restoration.train import INTERVALS, learning_rate_factor
from papers_shared.restoration.validation import validation_pairs, validation_psnr
from papers_shared.training import Run
from papers_shared.training.seeds import seed_from

REDUCING = ("dukd", "dukd_fakd", "zoom_out", "zoom_in_out", "zoom_out_true")
FEATURE_METHODS = ("fitnet", "at", "fakd", "fakd_authors", "rkd", "dukd_fakd")


@dataclass(frozen=True)
class Trained:
    """What a training gives.

    Attributes:
        path: the weights, averaged ones if there are any.
        model: the student that holds them, in eval mode, float32.
        parts: of the log's last line: the loss's terms, means over steps.
    """

    path: Path
    model: Restorer
    parts: Mapping[str, float]


def make_distiller(config: TrainConfig, teacher: nn.Module | None, student: nn.Module) -> Distiller:
    """The method of a configuration, with the options that were given.

    Raises:
        ValueError: the method does not take one of them.
    """
    options = {name: getattr(config, name) for name in METHOD_OPTIONS}
    options = {name: value for name, value in options.items() if value is not None}
    for name in ("positions", "teacher_positions"):
        if getattr(config, name):
            options[name] = getattr(config, name)
    if config.method == "csd":
        options["features"] = vgg19_features(config.vgg)
    try:
        return METHODS[config.method](teacher, student, **options)
    except TypeError:
        raise ValueError(f"{config.method} does not take all of {', '.join(options)}") from None


class Pool:
    """Patches cut beforehand: the same ones come again, so that a teacher's answers can be kept.

    Args:
        photos: whole pictures.
        crops: how they are cut.
        size: how many patches.
        seed: of places and views; nothing else decides them.
    """

    def __init__(self, photos: Photos, crops: Crops, *, size: int, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        self._patches = [crops(photos[i % len(photos)], generator) for i in range(size)]

    def __len__(self) -> int:
        return len(self._patches)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        """``lq`` and ``gt``, uint8."""
        return self._patches[index]


def initialise(student: nn.Module, config: TrainConfig) -> None:
    """Take the first weights from ``init`` or ``init_from``, if given.

    Raises:
        FileNotFoundError: no such file.
        ValueError: it does not fit.
    """
    if config.init:
        variant = config.student if ":" in config.student else ""
        task = Task("sr", scale=config.scale)
        start = load_restorer(config.init, variant=variant, task=task)
        load_strict(student, start.network.state_dict(), what=config.init)
    elif config.init_from:
        kept = init_from(student, load_file(FAMILY.path_of(config.init_from)))
        print(f"starting from {config.init_from}; begun anew: {', '.join(kept) or 'nothing'}")


def train(config: TrainConfig) -> Trained:
    """Train a student; see ``TrainConfig``. Resumes from ``config.output``.

    Raises:
        ValueError: the configuration does not fit itself, the networks, the data or an earlier run.
        FileNotFoundError: photos or weights are not here; the message says how to get them.
    """
    shared, task = config.shared(), Task("sr", scale=config.scale)
    network_config = Config.parse(config.student, config.scale)
    output = config.output or Path("runs") / config.method
    teacher = _teacher(config)
    judged = validation_pairs(shared) if config.validation else []
    photos, crops, described = training_data(shared, low_cache=config.low_cache or output / "low")
    users = ":" in network_config.arch
    about = {} if users else network_metadata(FAMILY, network_config, task)
    told = f"{config.teacher or 'no teacher'}, {config.method}"
    run = Run(
        output,
        seed=config.seed,
        config=_decisive(config),
        metadata={**about, "trained_on": described, "distilled_from": told},
        mixed_precision=config.mixed_precision,
        ema_decay=config.ema_decay or None,
        log_every=config.log_every,
        save_every=config.save_every,
        tensorboard=config.tensorboard,
    )
    if config.batch_size % run.accelerator.num_processes:
        raise ValueError(f"batch {config.batch_size} cannot be shared evenly by the processes")
    if config.method == "csd" and run.accelerator.num_processes > 1:
        raise ValueError("csd trains two networks with shared weights: in one process")
    layout = torch.channels_last if config.channels_last else torch.contiguous_format
    student: nn.Module = build(network_config, implementation="own")
    initialise(student, config)
    student = student.to(memory_format=layout)
    reduced = config.method in REDUCING and config.zoom_out is not False
    check_pair(teacher, student, scale=config.scale, patch=config.patch, zoom_out=reduced)
    if teacher is not None:
        teacher = teacher.to(run.accelerator.device).to(memory_format=layout)
    if config.method == "csd":
        student = WidthSlice(teacher, student)  # type: ignore[arg-type]
    elif config.pool and teacher is not None and config.method not in FEATURE_METHODS:
        # The teacher's maps are not kept, only its answers: to patches, their cells and reductions.
        teacher = CachedTeacher(teacher, capacity=_capacity(config, run))
    optimizer = torch.optim.Adam(student.parameters(), lr=config.lr, betas=(0.9, 0.99))
    schedule = LambdaLR(optimizer, lambda step: learning_rate_factor(shared, step))
    if config.pool:
        pool = Pool(photos, crops, size=config.pool, seed=config.pool_seed)
        loader = run.loader(pool, batch_size=config.batch_size, workers=config.workers)
    else:
        loader = run.loader(
            photos, batch_size=config.batch_size, transform=crops, workers=config.workers
        )
    judge: Restorer | None = None
    if judged:  # a copy, free of accelerate's casts, for the average or the network itself
        twin = build(network_config, implementation="own")
        judge = Restorer(twin, config=network_config, task=task, family=FAMILY)
    student, optimizer, schedule = run.prepare(student, optimizer, schedule)
    distiller = make_distiller(config, teacher, student)
    student.train()

    for batch in run.steps(loader, config.steps):
        with run.accumulate():
            lr, hr = (x.contiguous(memory_format=layout) for x in floats(batch))
            # A function of the step, so that a run that goes on draws what it would have drawn.
            distiller.reseed(seed_from(config.seed, run.step, run.accelerator.process_index))
            stages = distiller.stages(lr, hr)
            parts: dict[str, Tensor] = {}
            while True:
                with run.accelerator.autocast():
                    terms = next(stages, None)
                if terms is None:
                    break
                if terms:
                    run.backward(torch.stack(list(terms.values())).sum())
                    optimizer.step()
                    parts |= {name: value.detach() for name, value in terms.items()}
            schedule.step()
            optimizer.zero_grad()
        run.log(**parts)
        if judge is not None and run.is_main and run.step % config.validate_every == 0:
            source = run.accelerator.unwrap_model(student) if run.ema is None else run.ema.model
            judge.network.load_state_dict(_student_state(source))
            run.record(psnr=validation_psnr(judge.to(lr.device).eval(), judged))

    path = run.finish()
    return Trained(
        *_finished(path, config, network_config, about), _last_parts(output / "log.jsonl")
    )


def _teacher(config: TrainConfig) -> nn.Module | None:
    if config.method in ALONE:
        return None
    if config.method == "csd":  # trained together with its slice, so weights may be fresh
        wide = build(Config.parse(config.teacher, config.scale), implementation="own")
        if config.teacher_weights:
            state = load_state_dict(config.teacher_weights, key=config.teacher_key or None)
            load_strict(wide, state, what=config.teacher_weights)
        return wide
    return load_teacher(
        config.teacher,
        weights=config.teacher_weights,
        key=config.teacher_key or None,
        scale=config.scale,
    )


def _capacity(config: TrainConfig, run: Run) -> int:
    """Answers to keep: as many as half of the free memory holds, shared by the processes."""
    memory = available_memory() // 2 // run.accelerator.num_processes
    kept, wanted = answers_that_fit(
        config.pool, scale=config.scale, patch=config.patch, memory=memory
    )
    if run.is_main:
        each = answer_bytes(scale=config.scale, patch=config.patch) / 2**30
        less = "; the rest is computed each time" if kept < wanted else ""
        print(
            f"the teacher's answers: up to {kept * each:.1f} of {wanted * each:.1f} GiB are kept "
            f"in memory by each process{less}"
        )
    return kept


def _student_state(network: nn.Module) -> dict[str, Tensor]:
    return network.student_state() if isinstance(network, WidthSlice) else network.state_dict()


def _finished(
    path: Path, config: TrainConfig, network_config: Config, about: Mapping[str, str]
) -> tuple[Path, Restorer]:
    """The student, read back; beside it ``student.pth`` as basicsr's tools read it."""
    average = path.with_name("model_ema.safetensors")
    result = average if config.ema_decay else path
    states = {"params": load_state_dict(path)}
    if config.ema_decay:
        states["params_ema"] = load_state_dict(average)
    if config.method == "csd":
        narrow = build(network_config, implementation="own").state_dict()
        for name, state in states.items():
            wide = {k.removeprefix("wide."): v for k, v in state.items()}
            states[name] = {
                k: wide[k][tuple(slice(side) for side in v.shape)].clone()
                for k, v in narrow.items()
            }
        result = path.with_name("student.safetensors")
        save_state_dict(list(states.values())[-1], result, metadata=about)
    with atomic_path(path.with_name("student.pth")) as temporary:
        torch.save(states, temporary)
    variant = "" if about else config.student
    task = Task("sr", scale=config.scale)
    return result, load_restorer(str(result), variant=variant, task=task)


def _last_parts(log: Path) -> dict[str, float]:
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return [line for line in lines if "psnr" not in line][-1]


def _decisive(config: TrainConfig) -> dict[str, Any]:
    """The settings that decide the result; steps down do not depend on where they end."""
    settings = {key: value for key, value in asdict(config).items() if key not in INTERVALS}
    if config.lr_schedule == "multistep":
        settings["total_steps"] = settings.pop("steps")
    return settings


def main(config: TrainConfig) -> int:
    """Train, and say where the student lies."""
    trained = train(config)
    print(f"{trained.path}: {trained.model.task}")
    return 0
