"""A recipe for every row of the paper's tables that can be computed (see papers_shared.tables)."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn

from adabin.config import TrainConfig
from adabin.eval import cifar10_accuracy, predict_logits
from adabin.layers import AdaBinConv2d, AdaptiveBinarySet, weight_statistics
from adabin.model import VARIANTS, Config, build
from adabin.official import CHECKPOINTS, load_official
from papers_shared.checkpoints import load_state_dict
from papers_shared.cli import load_config
from papers_shared.complexity import count_macs, count_parameters
from papers_shared.data.cifar10 import Cifar10, load_cifar10
from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Context, Measured, Recipe, Table

RELEASED = CHECKPOINTS["cifar10_resnet20"]
TEST_SET = "cifar10_test"
main = partial(run_reproduce, paper="adabin")


def _released(context: Context, config: Config = VARIANTS["cifar10_resnet20"]) -> nn.Module:
    state = load_state_dict(context.assets[RELEASED].path)
    return load_official(state, config).to(context.device)


def _test_set(context: Context) -> Cifar10:
    return load_cifar10("test", path=context.assets[TEST_SET].path, download=False)


def released_accuracy(context: Context) -> dict[str, Measured]:
    """Top-1 of the released ResNet-20, by the authors' count and on all pictures (float32)."""
    data = _test_set(context)
    logits = predict_logits(_released(context), data.images, progress=context.progress)
    authors, everything, exact = cifar10_accuracy(logits, data).values()
    note = f"{everything.right} right; {exact.right} of the {exact.of} pictures stored exactly"
    return {
        "top1_9984": Measured(authors.percent, n=authors.of, note=f"{authors.right} right"),
        "top1": Measured(everything.percent, n=everything.of, note=note),
    }


# --- table 3: counts ---------------------------------------------------------------------------


def counts(context: Context, *, variant: str) -> dict[str, Measured]:
    """Parameters, operations and memory of a network, for one picture; nothing is computed."""
    size = VARIANTS[variant].image_size
    with torch.device("meta"):
        model = build(VARIANTS[variant]).eval()
    shape = (1, 3, size, size)
    macs = count_macs(model, shape, rule="conv_linear", is_binary=_is_binary)
    flops = count_macs(model, shape, rule="flop_counter").total
    parameters = count_parameters(model)
    binary = sum(m.weight.numel() for m in model.modules() if isinstance(m, AdaBinConv2d))
    memory = math.ceil(binary / 8) + 4 * (parameters - binary)
    millions = {
        "params": parameters,
        "binary_weights": binary,
        "binary_macs": macs.binary,
        "float_macs": macs.total - macs.binary,
        "flops": flops,
    }
    return {
        **{name: Measured(value / 1e6) for name, value in millions.items()},
        "memory": Measured(memory),
    }


def cost(context: Context, *, variant: str) -> dict[str, Measured]:
    """A network in the units of the cost comparison: OPs = FLOPs + BOPs / 64."""
    row = {name: m.value for name, m in counts(context, variant=variant).items()}
    ops = 1e6 * (row["float_macs"] + row["binary_macs"] / 64)
    return {
        "params_mb": Measured(row["memory"] / 1e6),
        "bops": Measured(row["binary_macs"] / 1e3),
        "flops": Measured(row["float_macs"] / 1e2, note="multiply-accumulates of conv and fc"),
        "ops": Measured(ops / 1e8),
    }


def _is_binary(module: nn.Module) -> bool:
    return isinstance(module, AdaBinConv2d)


# --- table 5: statements about the released network ----------------------------------------------


def right_of_500(
    context: Context, *, change: Callable[[nn.Module], None], form: str = "code"
) -> dict[str, Measured]:
    """Right answers among the first 500 test pictures, float64, with something changed."""
    model = _released(context, Config.of({"form": form})).double()
    change(model)
    data = _test_set(context)
    logits = predict_logits(model, data.images[:500], batch_size=100, progress=context.progress)
    return {"right": Measured(int((logits.argmax(1) == data.labels[:500]).sum()), n=500)}


def _nothing(model: nn.Module) -> None:
    """The network as released."""


def _drop_activation_centre(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, AdaptiveBinarySet):
            module.register_forward_hook(lambda layer, _, out: out - layer.centre)


def _replace_weights(model: nn.Module, *, scale: float | None = None, mean: bool = True) -> None:
    """Use ``scale * alpha_w * sign + beta_w`` (or without beta_w) as they are.

    ``scale`` None stands for the sample instead of the population standard deviation.
    """
    for module in model.modules():
        if isinstance(module, AdaBinConv2d):
            alpha, beta = weight_statistics(module.weight.data)
            n = module.weight[0].numel()
            factor = math.sqrt(n / (n - 1)) if scale is None else scale
            signs = (module.weight.data - beta).sign()
            module.weight.data = factor * alpha * signs + (beta if mean else 0)
            module.w_bit = 32


BinaryWeights = Callable[[Tensor], Tensor]


def _mean(x: Tensor) -> Tensor:
    return x.mean(dim=(1, 2, 3), keepdim=True)


def _equalised(w: Tensor) -> Tensor:
    alpha, beta = weight_statistics(w)
    return alpha * (w - beta).sign() + beta


def _centred_l1(w: Tensor) -> Tensor:
    centred = w - _mean(w)
    return _mean(centred.abs()) * centred.sign()


def _centred_l1_mean(w: Tensor) -> Tensor:
    return _centred_l1(w) + _mean(w)


def _sign_l1(w: Tensor) -> Tensor:
    return _mean(w.abs()) * w.sign()


def quantization(context: Context, *, binarize: BinaryWeights) -> dict[str, Measured]:
    """Distance of the released network's latent weights from a binary version of them."""
    layers = [
        m.weight.data.double() for m in _released(context).modules() if isinstance(m, AdaBinConv2d)
    ]
    errors = [(w - binarize(w)) ** 2 for w in layers]
    divergences = torch.cat([gaussian_divergence(w, binarize(w)) for w in layers])
    every = torch.cat([e.flatten() for e in errors])
    by_layer = torch.stack([e.mean() for e in errors])
    return {
        "mse": Measured(1e3 * by_layer.mean().item(), n=len(layers)),
        "mse_all": Measured(1e3 * every.mean().item(), n=len(every)),
        "kl": Measured(
            1e3 * divergences.mean().item(),
            n=len(divergences),
            note=f"largest {1e3 * divergences.max().item():.1f}",
        ),
    }


def gaussian_divergence(w: Tensor, binary: Tensor) -> Tensor:
    """Per output channel, the divergence between Gaussians with the moments of both.

    ``ln(s2/s1) + (s1^2 + (m1 - m2)^2) / (2 s2^2) - 1/2``, (m1, s1) of the weights, (m2, s2) of
    their binary version.

    Args:
        w, binary: (O, I, kh, kw).

    Returns:
        (O,).
    """
    (s1, m1), (s2, m2) = weight_statistics(w), weight_statistics(binary)
    return ((s2 / s1).log() + (s1**2 + (m1 - m2) ** 2) / (2 * s2**2) - 0.5).flatten()


def packed_equals_dense(context: Context) -> dict[str, Measured]:
    """Predictions that change between packed and dense inference; sizes in bytes."""
    from adabin.packed import pack, packed_weight_bytes, save_packed

    images = _test_set(context).images[:1000]
    changed = {}
    for column, dtype in (("changed64", torch.float64), ("changed32", torch.float32)):
        dense = _released(context).to(dtype)
        logits = [predict_logits(m, images, batch_size=100) for m in (dense, pack(dense))]
        different = int((logits[0].argmax(1) != logits[1].argmax(1)).sum())
        largest = (logits[0] - logits[1]).abs().max().item()
        changed[column] = Measured(
            different, n=len(images), note=f"largest logit difference {largest:.2g}"
        )
    packed = pack(_released(context))
    file = context.workdir / "packed.safetensors"
    save_packed(packed, file)
    return {
        **changed,
        "bits": Measured(packed_weight_bytes(packed)),
        "file": Measured(file.stat().st_size),
    }


# --- table 5: small-scale training ---------------------------------------------------------------

SMALL = {
    "num_blocks": [1, 1, 1],
    "image_size": 16,
    "augment": False,
    "limit": 3000,
    "epochs": 6,
    "batch_size": 128,
    "workers": 0,
    "log_every": 1,
    "seeds": 3,
    "test_images": 1000,
}


def small_training(context: Context) -> dict[str, Measured]:
    """Train the small setting once a seed; last-epoch training loss and test accuracy."""
    from adabin.train import train

    settings = dict(context.settings)
    seeds, test_images = settings.pop("seeds"), settings.pop("test_images")
    losses, accuracies = [], []
    for seed in range(context.seed, context.seed + seeds):
        run = {"seed": seed, "output": context.workdir / f"seed{seed}", "test_limit": test_images}
        result = train(load_config(TrainConfig, None, {**settings, **run}))
        losses.append(result.train_loss)
        accuracies.append(result.accuracy.percent)
        context.progress(seed - context.seed + 1, seeds, "trainings")
    return {"loss": _over_seeds(losses), "top1": _over_seeds(accuracies)}


def _over_seeds(values: list[float]) -> Measured:
    t = torch.tensor(values, dtype=torch.float64)
    return Measured(t.mean().item(), std=t.std().item(), n=len(values))


def _small(**changes: object) -> Recipe:
    return Recipe(
        small_training,
        seconds=75,
        scale="small",
        assets=("cifar10_train", TEST_SET),
        settings={**SMALL, **changes},
    )


ABLATION: Mapping[str, Mapping[str, object]] = {
    "sign": {"weight_set": "l1", "adaptive": False, "nonlinearity": "hardtanh"},
    "equalised": {"adaptive": False, "nonlinearity": "hardtanh"},
    "adaptive": {"nonlinearity": "hardtanh"},
    "maxout": {},
}

_ON_CHECKPOINT = partial(Recipe, scale="exact", assets=(RELEASED, TEST_SET))


def _on_weights(binarize: BinaryWeights) -> Recipe:
    run = partial(quantization, binarize=binarize)
    return Recipe(run, seconds=1, scale="exact", assets=(RELEASED,))


def _on_500(change: Callable[[nn.Module], None] = _nothing, *, form: str = "code") -> Recipe:
    return _ON_CHECKPOINT(partial(right_of_500, change=change, form=form), seconds=8)


TABLES: dict[str, Table] = {
    "table1": Table({"resnet20_adabin": _ON_CHECKPOINT(released_accuracy, seconds=30)}),
    "table3": Table(
        {name: Recipe(partial(counts, variant=name), seconds=1, scale="exact") for name in VARIANTS}
    ),
    "table3_cost": Table(
        {
            row: Recipe(partial(cost, variant=variant), seconds=1, scale="exact")
            for row, variant in (
                ("adabin18", "imagenet_resnet18"),
                ("adabin_a", "imagenet_mobilenet"),
            )
        }
    ),
    "table5_sets": Table(
        {
            "code": _on_500(),
            "paper": _on_500(form="paper"),
            "scale_only": _on_500(_drop_activation_centre),
            "sample_std": _on_500(_replace_weights),
            "no_weight_mean": _on_500(partial(_replace_weights, scale=1, mean=False)),
        },
        claims=[
            Claim(
                "the released network was trained with the code's activation set, not the paper's",
                lambda r: r["code"]["right"].value > 2 * r["paper"]["right"].value,
            ),
            Claim(
                "adding the weights' mean back matters",
                lambda r: r["code"]["right"].value > 2 * r["no_weight_mean"]["right"].value,
            ),
        ],
    ),
    "table5_quantization": Table(
        {
            "adabin": _on_weights(_equalised),
            "centred_l1": _on_weights(_centred_l1),
            "centred_l1_mean": _on_weights(_centred_l1_mean),
            "sign_l1": _on_weights(_sign_l1),
        },
        claims=[
            Claim(
                "equalised weights keep the distribution better than a plain sign with L1 scale",
                lambda r: r["adabin"]["kl"].value < r["sign_l1"]["kl"].value,
            ),
            Claim(
                "the standard deviation is not the scale of least squared error: L1 on centred "
                "weights is nearer",
                lambda r: r["centred_l1_mean"]["mse"].value < r["adabin"]["mse"].value,
            ),
        ],
    ),
    "table5_ablation": Table(
        {name: _small(**changes) for name, changes in ABLATION.items()},
        claims=[
            Claim(
                "every part lowers the training loss",
                lambda r: (
                    r["sign"]["loss"].value
                    > r["equalised"]["loss"].value
                    > r["adaptive"]["loss"].value
                    > r["maxout"]["loss"].value
                ),
            )
        ],
    ),
    "table5_schedule": Table(
        {"progressive": _small(), "fixed": _small(progressive=False)},
        claims=[
            Claim(
                "the schedule ends at a lower training loss than a fixed t",
                lambda r: r["progressive"]["loss"].value < r["fixed"]["loss"].value,
            )
        ],
    ),
    "table5_packed": Table({"resnet20": _ON_CHECKPOINT(packed_equals_dense, seconds=20)}),
}
