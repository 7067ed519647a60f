"""Reads recordings of the authors' AdaBin code (see papers_shared.parity).

By content: ``kind`` says what a case is, ``config`` builds it, ``state`` lists the names and
shapes it must have, every key of ``outputs`` and ``gradients`` is compared.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import PurePosixPath
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from adabin.data import normalise
from adabin.layers import AdaBinConv2d, Maxout, gradient_schedule, set_gradient_schedule
from adabin.model import build
from adabin.official import load_official
from papers_shared import assets
from papers_shared.checkpoints import load_file, unwrap
from papers_shared.data.cifar10 import load_cifar10
from papers_shared.parity import (
    Case,
    Part,
    Run,
    fingerprint_error,
    name_seeded_state_dict,
    named_cases,
    seeded_input,
    values_error,
)

DESCRIPTIONS = {"paper", "weights", "dtype", "note", "tolerance", "flops_note", "how_to_read"}


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; sections it does not know fail."""
    kinds: dict[str, Callable[[Case], Iterable[Part]]] = {
        "conv_with_gradients": _conv,
        "maxout": _maxout,
        "network": _network,
        "schedule": _schedule,
        "train_step": _train_step,
        "released_checkpoint": _released,
    }
    yield from named_cases(
        recording,
        kinds,
        full_size=lambda _, case: _full_size(case),
        descriptions=DESCRIPTIONS,
    )


def _error(value: Any, recorded: Any) -> float:
    if isinstance(recorded, Mapping):
        return fingerprint_error(value, recorded)
    return values_error(value, recorded)


def _parts(ours: Mapping[str, Any], recorded: Case, tolerance: float) -> Iterator[Part]:
    for name, value in recorded.items():
        if value is not None:  # null: not recorded
            yield name, _error(ours[name], value), tolerance


def _seed(module: nn.Module, case: Case) -> None:
    """Name-seeded weights for ``module``, whose names and shapes must be the recorded ones."""
    prefix = case.get("state_prefix", "")
    state = {prefix + name: value for name, value in module.state_dict().items()}
    ours = {name: list(value.shape) for name, value in state.items()}
    if ours != dict(case["state"]):
        raise ValueError("names or shapes of the state dict are not the recorded ones")
    seeded = name_seeded_state_dict(state)
    for pattern, change in case.get("after_seeding", {}).items():
        operator, _, number = change.partition(" ")
        if operator != "+=":
            raise ValueError(f"after_seeding knows '+= number', not {change!r}")
        for name in fnmatch.filter(seeded, pattern):
            seeded[name] = seeded[name] + float(number)
    module.load_state_dict({name.removeprefix(prefix): value for name, value in seeded.items()})


def _conv(case: Case) -> Iterator[Part]:
    options = dict(case["config"])
    layer = AdaBinConv2d(*options.pop("args"), **options)
    _seed(layer, case)
    layer.t, layer.k = case["t"], case["k"]
    binary_a = layer.binary_a
    tolerance = case["tolerance"]
    for name in ("alpha_a", "beta_a"):
        yield name, values_error(getattr(binary_a, name), case[name]), tolerance

    x = seeded_input("x", tuple(case["inputs"]["x"])).requires_grad_()
    y = layer(x)
    y.backward(seeded_input("grad_out", tuple(case["inputs"]["grad_out"])))
    with torch.no_grad():
        two_valued = layer.binary_weight()
        low, high = two_valued.amin((1, 2, 3)), two_valued.amax((1, 2, 3))
        activation = binary_a(x)
        outputs = {
            "y": y,
            "binary_activation": activation,
            "activation_values": activation.unique(),
            "alpha_w": (high - low) / 2,
            "beta_w": (high + low) / 2,
        }
    yield from _parts(outputs, case["outputs"], tolerance)
    grads = {name.removeprefix("binary_a."): p.grad for name, p in layer.named_parameters()}
    yield from _parts({"x": x.grad, **grads}, case["gradients"], tolerance)


def _maxout(case: Case) -> Iterator[Part]:
    layer = Maxout(case["config"]["channel"])
    _seed(layer, case)
    x = seeded_input("x", tuple(case["inputs"]["x"])).requires_grad_()
    y = layer(x)
    y.backward(seeded_input("grad_out", tuple(case["inputs"]["grad_out"])))
    yield from _parts({"y": y}, case["outputs"], case["tolerance"])
    grads = {name: p.grad for name, p in layer.named_parameters()}
    yield from _parts({"x": x.grad, **grads}, case["gradients"], case["tolerance"])


def _network(case: Case) -> Iterator[Part]:
    model = build(case["config"])
    _seed(model, case)
    outputs: dict[str, Tensor] = {}
    for name in case["outputs"]:
        if name not in ("y", "y_full"):
            module = model.get_submodule(name)
            module.register_forward_hook(lambda _m, _i, out, name=name: outputs.update({name: out}))
    (shape,) = case["inputs"].values()
    with torch.no_grad():
        y = model.eval()(seeded_input(next(iter(case["inputs"])), tuple(shape)))
    yield from _parts({**outputs, "y": y, "y_full": y}, case["outputs"], case["tolerance"])


def _schedule(case: Case) -> Iterator[Part]:
    t, k = zip(*(gradient_schedule(e, case["epochs"]) for e in case["epoch"]), strict=True)
    yield from _parts({"t": t, "k": k}, case["outputs"], case["tolerance"])


def _train_step(case: Case) -> Iterator[Part]:
    model = build(case["config"])
    _seed(model, case)
    t, k = set_gradient_schedule(model.train(), **case["schedule"])
    yield from _parts({"t": t, "k": k}, {"t": case["t"], "k": case["k"]}, case["tolerance"])
    options = dict(case["optimizer"])
    name, scope = options.pop("name"), options.pop("on")
    if scope != "every parameter":
        raise ValueError(f"no reader for an optimizer on {scope!r}")
    optimizer = getattr(torch.optim, name)(model.parameters(), **options)
    x, labels = seeded_input("x", tuple(case["inputs"]["x"])), torch.tensor(case["labels"])
    losses, norms, first_logits = [], [], None
    for _ in range(case["steps"]):
        logits = model(x)
        first_logits = logits.detach() if first_logits is None else first_logits
        loss = F.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        gradients = [p.grad for p in model.parameters() if p.grad is not None]
        norms.append(torch.nn.utils.get_total_norm(gradients).item())
        losses.append(loss.item())
        optimizer.step()
    ours = {"losses": losses, "gradient_norms": norms, "first_logits": first_logits}
    recorded = dict(case["outputs"])
    state_after = recorded.pop("state_after", {})
    yield from _parts(ours, recorded, case["tolerance"])
    yield from _parts(model.state_dict(), state_after, case["tolerance"])


def _full_size(case: Case) -> Iterator[Part]:
    with torch.device("meta"):
        model = build(case["config"]).eval()
        counter = FlopCounterMode(display=False)
        with counter:
            model(torch.empty(case["input"]))
    convs = [m for m in model.modules() if isinstance(m, AdaBinConv2d)]
    ours = {
        "params": sum(p.numel() for p in model.parameters()),
        "state_entries": len(model.state_dict()),
        "binary_convs": len(convs),
        "binary_conv_weights": sum(m.weight.numel() for m in convs),
        "flop_counter_mode_flops": counter.get_total_flops(),
    }
    for name, value in case.items():
        if name not in ("input", "config"):
            yield name, abs(ours[name] - value), 0


def _released(case: Case) -> Iterator[Part]:
    """Logits, counts of right images and cross entropy of a checkpoint on a data file.

    Logits in float64, where no activation flips; counts as recorded, in float32.
    """
    weights = assets.find_file(PurePosixPath(case["file"]).name, case["sha256"])
    checkpoint = load_file(weights)
    data = load_cifar10("test", path=assets.find_file(PurePosixPath(case["dataset"]).name))
    model = load_official(unwrap(checkpoint), case["config"])
    if "best_prec1_in_file" in case:
        stored = float(checkpoint["best_prec1"])
        yield "best_prec1", abs(stored - case["best_prec1_in_file"]), case["tolerance"]

    images = normalise(data.images, **case["normalize"])
    first, last = case["images"]
    counts, entropies = case.get("correct", []), case.get("mean_cross_entropy", [])
    stop = max([last, *(c.get("stop", len(images)) for c in counts + entropies)])
    with torch.inference_mode():
        logits = torch.cat([model(batch) for batch in images[:stop].split(250)])
        exactly = model.double()(images[first:last].double())
    recorded = torch.tensor(case["logits"], dtype=torch.float64)
    yield "logits", (exactly - recorded).abs().max().item(), case["tolerance"]
    labels = data.labels[:stop]
    yield "labels", float(labels[first:last].tolist() != case["labels"]), 0

    right = logits.argmax(1) == labels
    for count in counts:
        chosen = right[data.exact[:stop]] if "only" in count else right[_span(count)]
        if count.get("only", "exact") != "exact":
            raise ValueError(f"no reader for images {count['only']!r}")
        if "of" in count and count["of"] != len(chosen):
            raise ValueError(f"{len(chosen)} images where {count['of']} are recorded")
        off = abs(int(chosen.sum()) - count["correct"])
        yield f"correct {_name(count)}", off, case["count_tolerance"]
    for mean in entropies:
        span = _span(mean)
        off = abs(F.cross_entropy(logits[span], labels[span]).item() - mean["value"])
        yield f"cross entropy {_name(mean)}", off, case["cross_entropy_tolerance"]


def _span(part: Case) -> slice:
    return slice(part["start"], part["stop"])


def _name(part: Case) -> str:
    return part.get("only") or f"{part['start']}..{part['stop']}"
