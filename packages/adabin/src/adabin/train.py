"""Training by the authors' recipes: ``python -m adabin.train --config cifar10_resnet20``.

Several processes: ``accelerate launch -m adabin.train --config cifar10_resnet20``.

Every epoch sets the sharpness of the weights' gradient, and ends with a test. Two-step training
is two runs: binary activations with full-precision weights first, then ``--init`` with its result.
"""

from __future__ import annotations

if __name__ == "__main__":  # arguments are checked before torch is imported
    import sys

    from adabin.cli import main as command_line

    raise SystemExit(command_line(["train", *sys.argv[1:]]))

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.lr_scheduler import LambdaLR

from adabin.config import TrainConfig
from adabin.data import (
    Pictures,
    average_down,
    flip_and_crop,
    folder_pictures,
    normalise_only,
    random_pictures,
)
from adabin.eval import Accuracy, evaluate_pictures, predict_logits
from adabin.layers import set_gradient_schedule
from adabin.model import Config, build
from adabin.pipeline import network_metadata, variant_config
from papers_shared.checkpoints import load_state_dict, load_strict
from papers_shared.data.cifar10 import load_cifar10
from papers_shared.training import Run


@dataclass(frozen=True)
class Result:
    """What a training ends with.

    Attributes:
        path: the last network, as safetensors.
        train_loss: mean over the last epoch.
        accuracy: of the last network on the test pictures. The authors report the best epoch's,
            chosen on the test set: ``model_best.safetensors`` beside it.
    """

    path: Path
    train_loss: float
    accuracy: Accuracy


def network_config(config: TrainConfig) -> Config:
    """The network of a run: its variant, with what the run changes of it."""
    network = replace(
        variant_config(config.variant),
        w_bit=config.w_bit,
        weight_set=config.weight_set,
        adaptive=config.adaptive,
        nonlinearity=config.nonlinearity,
    )
    if not config.num_blocks:
        return network
    if network.arch == "imagenet_resnet":
        return replace(network, layers=config.num_blocks)
    if network.arch.startswith("cifar10_resnet"):
        return replace(network, num_blocks=config.num_blocks)
    raise ValueError(f"{config.variant} has no stages whose depth num_blocks could set")


@dataclass(frozen=True)
class Task:
    """Training pictures, their augmentation, and how a network is tested."""

    pictures: Any
    augment: Callable[[Any, torch.Generator], Any] | None
    test: Callable[[nn.Module], Accuracy]
    drop_last: bool


def cifar10_task(config: TrainConfig) -> Task:
    """CIFAR-10, flipped and cropped; tested on all test pictures (or the first ``test_limit``)."""
    train = load_cifar10("train", path=config.data_path)
    test = load_cifar10("test", path=config.data_path)
    images, labels = train.images[: config.limit], train.labels[: config.limit]
    pictures = Pictures(average_down(images, config.image_size), labels)
    test_images = average_down(test.images[: config.test_limit], config.image_size)

    def accuracy(model: nn.Module) -> Accuracy:
        right = predict_logits(model, test_images).argmax(1) == test.labels[: len(test_images)]
        return Accuracy(int(right.sum()), len(right))

    view = flip_and_crop if config.augment else normalise_only
    return Task(pictures, view, accuracy, drop_last=True)


def imagenet_task(config: TrainConfig, network: Config) -> Task:
    """A folder with train/ and val/, each with one folder a class.

    Raises:
        ValueError: their class folders are not the same, or not as many as the network's classes.
    """
    folder, size, classes = Path(config.data), network.image_size, network.num_classes
    train = folder_pictures(folder / "train", size=size, classes=classes, train=True)
    test = folder_pictures(folder / "val", size=size, classes=classes, train=False)
    if lonely := sorted({*train.classes} ^ {*test.classes}):
        raise ValueError(f"{folder}: only one of train/ and val/ holds the class {lonely[0]}")
    tested = random_pictures(test, config.test_limit)

    def accuracy(model: nn.Module) -> Accuracy:
        return evaluate_pictures(model, tested, batch_size=100, workers=config.workers)["top-1"]

    return Task(random_pictures(train, config.limit), None, accuracy, drop_last=False)


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """SGD or Adam; weight decay on everything, or as ReActNet's two-step training has it.

    Source: authors' code (``all``); ReActNet's (``conv``: 4-d parameters and names with 'conv').
    """
    decayed: list[nn.Parameter] = []
    free: list[nn.Parameter] = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            penalised = config.decay == "all" or parameter.ndim == 4 or "conv" in name
            (decayed if penalised else free).append(parameter)
    groups = [
        {"params": decayed, "weight_decay": config.weight_decay},
        {"params": free, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if config.optimizer == "adam":
        return torch.optim.Adam(groups, lr=config.lr)
    return torch.optim.SGD(groups, lr=config.lr, momentum=0.9)


def learning_rate_factor(config: TrainConfig, epoch: int) -> float:
    """Half a cosine or a straight line from 1 down to 0, by epoch."""
    done = epoch / config.epochs
    return (1 + math.cos(math.pi * done)) / 2 if config.lr_schedule == "cosine" else 1 - done


def loss_function(
    teacher: Path | None, device: torch.device
) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """Cross entropy of logits (B, C), given images and labels.

    Args:
        teacher: weights of torchvision's ResNet-34 (BSD-3, trained on ImageNet); its softmax
            then replaces the labels (temperature 1), as in ReActNet's two-step training.
        device: where the teacher runs.
    """
    if teacher is None:
        return lambda logits, images, labels: F.cross_entropy(logits, labels)
    from torchvision.models import resnet34

    network = resnet34()
    load_strict(network, load_state_dict(teacher), what=str(teacher))
    network.to(device).eval().requires_grad_(False)
    return lambda logits, images, labels: F.cross_entropy(logits, network(images).softmax(1))


def train(config: TrainConfig) -> Result:
    """Train a network; see ``TrainConfig``. Resumes from ``config.output``.

    Raises:
        ValueError: the configuration does not fit itself, the data or an earlier run.
        FileNotFoundError: the data are not here; the message says how to get them.
    """
    network = network_config(config)
    imagenet = network.image_size == 224
    if imagenet == (config.data == "cifar10"):
        raise ValueError(f"{config.variant} cannot be trained on --data {config.data}")
    output = config.output or Path("runs") / config.variant
    task = imagenet_task(config, network) if imagenet else cifar10_task(config)

    apart = ("output", "workers", "log_every", "save_every", "tensorboard", "data_path", "init")
    settings = {key: value for key, value in asdict(config).items() if key not in apart}
    # Paths may change before the run goes on; whether there is a teacher may not.
    settings["data"] = "folder" if imagenet else "cifar10"
    settings["teacher"] = None if config.teacher is None else "resnet34"
    run = Run(
        output,
        seed=config.seed,
        config=settings,
        metadata=network_metadata(network),
        mixed_precision=config.mixed_precision,
        gradient_accumulation=config.accumulate,
        log_every=config.log_every,
        save_every=config.save_every,
        tensorboard=config.tensorboard,
        # bn3 and nonlinear2 of the ImageNet networks are never used.
        find_unused_parameters=imagenet,
    )
    model = build(network)
    if config.init is not None:
        load_strict(model, load_state_dict(config.init), what=str(config.init))
    optimizer = make_optimizer(model, config)
    scheduler = LambdaLR(optimizer, lambda epoch: learning_rate_factor(config, epoch))
    criterion = loss_function(config.teacher, run.accelerator.device)
    loader = run.loader(
        task.pictures,
        batch_size=config.batch_size,
        transform=task.augment,
        workers=config.workers,
        drop_last=task.drop_last,
    )
    model, optimizer, scheduler = run.prepare(model, optimizer, scheduler)

    for images, labels in run.steps(loader, config.epochs * loader.steps_per_epoch):
        if run.new_epoch:
            model.train()
            if config.progressive:
                set_gradient_schedule(model, run.epoch, config.epochs)
        with run.accumulate():
            loss = criterion(model(images), images, labels)
            run.backward(loss)
            optimizer.step()
            optimizer.zero_grad()
        run.log(loss=loss)
        if run.epoch_done:
            scheduler.step()
            accuracy = task.test(run.accelerator.unwrap_model(model).eval())
            run.record(accuracy=accuracy.percent)
            run.save(best=accuracy.percent)

    path = run.finish()
    accuracy = task.test(run.accelerator.unwrap_model(model).eval())
    return Result(path, last_epoch_loss(output / "log.jsonl", config.epochs), accuracy)


def last_epoch_loss(log: Path, epochs: int) -> float:
    """Mean of the log's losses after ``epochs - 1`` epochs."""
    lines = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    losses = [x["loss"] for x in lines if "loss" in x and x["epoch"] > epochs - 1]
    return sum(losses) / len(losses)


def main(config: TrainConfig) -> int:
    """Train, and say where the network lies and how good it is."""
    result = train(config)
    print(f"{result.path}: {result.accuracy} on the test pictures")
    return 0
