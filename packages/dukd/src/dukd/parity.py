"""Reads recordings of basicsr's networks and the authors' DUKD (see papers_shared.parity).

By content: a section's name is the kind of its cases, ``arch`` and ``config`` build a network, the
file's ``tolerance`` says how near values must come. A key that no line here compares fails.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dukd.distill import DUKD, LogitsKD
from dukd.features import TRANSFORMS, solution_flow
from dukd.model import Config, build
from dukd.official import convert, guess_config, load_official
from dukd.upcycling import InvertibleTransforms, zoom_out
from papers_shared.complexity import count_macs, count_parameters
from papers_shared.parity import (
    Case,
    Part,
    Run,
    fingerprint_error,
    name_seeded_state_dict,
    no_reader,
    seeded_input,
    values_error,
)
from papers_shared.training.objects import EMA

DESCRIPTIONS = {"note", "tolerance"}
NOTES = {"name", "arch", "config", "input", "inputs", "kept", "basicsr_rel_error", "args", "layout"}
LOSS_NAMES = {
    "l_pix": "pixel",
    "l_kd": "kd",
    "l_zoom_in": "zoom_in",
    "l_zoom_out_pix": "zoom_out_pixel",
    "l_zoom_out_kd": "zoom_out_kd",
    "l_feature": "feature",
}
INPUT = re.compile(
    r"(255\*)?sigmoid\(seeded_input\('([\w.]+)'(\+str\(i\))?, ?\[([\d, ]+)\]\)\)"
    r"(, i = iteration from 0)?"
)


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; what it does not know fails."""
    readers: dict[str, Callable[[Any, Case], Iterable[Part]]] = {
        "cases": _network,
        "original_layouts": _original,
        "dukd_steps": _step,
        "dukd_runs": _run,
        "fakd_steps": _fakd,
        "fakd_transforms": _transforms,
        "noising": _noising,
        "zoom_out_imresize": _zoom_out,
        "counts": _count,
    }
    for section, content in recording.items():
        if section in DESCRIPTIONS:
            continue
        reader = readers.get(section, partial(no_reader, f"the section {section!r}"))
        for name, case in _cases(section, content):
            yield name, partial(reader, case, recording["tolerance"])


def _cases(section: str, content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, list):
        for i, case in enumerate(content):
            yield f"{section}[{i}] {case.get('name', '')}".rstrip(), case
    elif section == "counts":
        for name, case in content.items():
            yield f"{section} {name}", case
    else:
        yield section, content


def _refuse_unread(case: Case, *read: str) -> None:
    if unread := set(case) - set(read) - NOTES:
        raise ValueError(f"no reader for {', '.join(sorted(unread))}")


def _equal(name: str, ours: Any, recorded: Any) -> Part:
    return name, float(ours != recorded), 0.0


# ----------------------------------------------------------------------------- inputs and weights


def _input(text: str, iteration: int = 0) -> Tensor:
    """What a recording's description of an input means."""
    match = INPUT.fullmatch(text)
    if match is None:
        raise ValueError(f"no reader for the input {text!r}")
    factor, name, numbered, shape, _ = match.groups()
    name += str(iteration) if numbered else ""
    x = torch.sigmoid(seeded_input(name, tuple(int(side) for side in shape.split(","))))
    return 255 * x if factor else x


def _seed(network: nn.Module, *, prefix: str = "", keep: Iterable[str] = ()) -> nn.Module:
    """Weights that follow from names and shapes."""
    state = {f"{prefix}{name}": value for name, value in network.state_dict().items()}
    seeded = name_seeded_state_dict(state, keep={f"{prefix}{name}" for name in keep})
    network.load_state_dict({n.removeprefix(prefix): v for n, v in seeded.items()})
    return network.eval()


def _pair(case: Case) -> tuple[nn.Module, nn.Module]:
    """Teacher and student of a step."""
    networks = []
    for role in ("teacher", "student"):
        rule = re.fullmatch(
            r"rule of name_seeded.py with the name '(\w+\.)'\+key", case[role]["weights"]
        )
        if rule is None:
            raise ValueError(f"no reader for the weights {case[role]['weights']!r}")
        network = build({"arch": case[role]["arch"], **case[role]["config"]})
        networks.append(_seed(network, prefix=rule[1]))
    if case["mode"] != "eval()":
        raise ValueError(f"no reader for the mode {case['mode']!r}")
    return networks[0], networks[1]


def _flat(values: Iterable[Tensor | None]) -> Tensor:
    return torch.cat([v.detach().flatten() for v in values if v is not None])


def _gradients(network: nn.Module) -> Tensor:
    return _flat(p.grad for p in network.parameters())


# ----------------------------------------------------------------------------- networks


def _network(case: Case, tolerance: Case) -> Iterator[Part]:
    _refuse_unread(case, "state", "kept_buffers", "params", "intermediates", "output")
    limit, config = tolerance["default"], {"arch": case["arch"], **case["config"]}
    network = _seed(build(config), keep=case["kept_buffers"])
    shapes = {name: list(value.shape) for name, value in network.state_dict().items()}
    yield _equal("names and shapes", list(shapes.items()), list(case["state"].items()))
    yield _equal("params", count_parameters(network), case["params"])
    found: dict[str, Tensor] = {}
    modules = dict(network.named_modules())
    for name in case["intermediates"]:
        modules[name].register_forward_hook(
            lambda module, given, made, name=name: found.__setitem__(name, made.clone())
        )
    with torch.no_grad():
        x = seeded_input(case["input"]["name"], tuple(case["input"]["shape"]))
        out = network(x)
        # The same through the loader of files, its architecture guessed.
        loaded = load_official({"params": network.state_dict()}, config)(x)
    yield "output", fingerprint_error(out, case["output"]), limit
    yield "output, loaded", fingerprint_error(loaded, case["output"]), limit
    for name, recorded in case["intermediates"].items():
        yield name, fingerprint_error(found[name], recorded), limit


def _original(case: Case, tolerance: Case) -> Iterator[Part]:
    _refuse_unread(case, "state", "output", "mapped_basicsr_keys")
    state = name_seeded_state_dict({n: torch.zeros(shape) for n, shape in case["state"].items()})
    yield _equal("mapped names", sorted(convert(state)), sorted(case["mapped_basicsr_keys"]))
    guessed = guess_config(convert(state))
    if guessed is None:
        raise ValueError("the architecture is not recognised")
    config = Config.of({**guessed.to_dict(), "res_scale": case["args"]["res_scale"]})
    yield _equal("scale", [config.upscale], case["args"]["scale"])
    with torch.no_grad():
        out = 255 * load_official(state, config)(_input(case["input"]) / 255)
    yield "output", fingerprint_error(out, case["output"]), tolerance["default"]


def _count(case: Case, tolerance: Case) -> Iterator[Part]:
    _refuse_unread(case, "params", "buffer_elements", "macs_conv_linear_matmul")
    config = {"arch": case["arch"], **case["config"]}
    # basicsr's SwinIR takes numbers out of tensors, which those of "meta" do not have.
    with torch.device("cpu" if case["arch"] == "SwinIR" else "meta"):
        network = build(config)
    yield _equal("params", count_parameters(network), case["params"])
    elements = sum(buffer.numel() for _, buffer in _saved_buffers(network))
    yield _equal("buffer_elements", elements, case["buffer_elements"])
    for size, recorded in case["macs_conv_linear_matmul"].items():
        height, width = map(int, size.split("x"))
        macs = count_macs(network, (1, 3, height, width), rule="flop_counter").total / 2
        yield f"MACs {size}", values_error(macs, recorded), tolerance["macs"]


def _saved_buffers(network: nn.Module) -> Iterator[tuple[str, Tensor]]:
    names = {name for name, _ in network.named_parameters()}
    return ((n, v) for n, v in network.state_dict().items() if n not in names)


# ----------------------------------------------------------------------------- training


def _distiller(case: Case, teacher: nn.Module, student: nn.Module) -> DUKD:
    return DUKD(
        teacher,
        student,
        cells=case["n_gt_sub"],
        zoom_out=case["zoom_out"],
        probability=case["noise_prob"],
        released_order=True,
        step_mode="released",
        pixel_weight=case["pixel_weight"],
        kd_weight=case["kd_weight"],
        seed=case["numpy_seed"],
    )


def _adam(case: Case, student: nn.Module) -> torch.optim.Optimizer:
    if not case["optimizer"].startswith("Adam lr 1e-4 betas 0.9,0.99;"):
        raise ValueError(f"no reader for the optimizer {case['optimizer']!r}")
    return torch.optim.Adam(student.parameters(), lr=1e-4, betas=(0.9, 0.99))


_STEP = (
    "iterations", "scale", "batch", "lr_size", "teacher", "student", "numpy_seed", "pixel_weight",
    "kd_weight", "n_gt_sub", "zoom_out", "noise_prob", "optimizer", "mode", "losses",
    "params_after",
)  # fmt: skip


def _step(case: Case, tolerance: Case) -> Iterator[Part]:
    own = ("crop_cells", "noise_index", "grad_before_step1", "grad_before_step2")
    _refuse_unread(case, *_STEP, *own)
    limit, scale = tolerance["dukd_steps"], case["scale"]
    teacher, student = _pair(case)
    lq, gt = (_input(case["inputs"][name]) for name in ("lq", "gt"))
    yield from _drawn(case)
    optimizer = _adam(case, student)
    losses: dict[str, Tensor] = {}
    stages = enumerate(_distiller(case, teacher, student).stages(lq, gt), start=1)
    for number, terms in stages:
        losses |= terms
        torch.stack(list(terms.values())).sum().backward()
        recorded = case[f"grad_before_step{number}"]
        yield f"gradient {number}", fingerprint_error(_gradients(student), recorded), limit
        optimizer.step()
    yield _equal("steps", number, 2)
    yield _equal("sizes", [len(lq), lq.shape[-1], gt.shape[-1]], _sizes(case, scale))
    yield from _losses(losses, case["losses"], limit)
    after = fingerprint_error(_flat(student.parameters()), case["params_after"])
    yield "parameters", after, limit


def _sizes(case: Case, scale: int) -> list[int]:
    return [case["batch"], case["lr_size"], scale * case["lr_size"]]


def _drawn(case: Case) -> Iterator[Part]:
    """The draws alone: which cells, which items get which operation."""
    from dukd.upcycling import draw_cells

    rng, scale = np.random.RandomState(case["numpy_seed"]), case["scale"]
    cells = draw_cells(rng, case["n_gt_sub"], scale=scale)
    yield _equal("cells", [list(divmod(cell, scale)) for cell in cells], case["crop_cells"])
    if case["noise_index"] is not None:
        count = len(cells) * case["batch"]
        drawn = InvertibleTransforms.draw(rng, count, probability=case["noise_prob"])
        masks = (drawn.inverted, drawn.rows, drawn.columns, drawn.transposed)
        items = {n: m.nonzero().flatten().tolist() for n, m in zip("ihvt", masks, strict=True)}
        yield _equal("operations", items, dict(case["noise_index"]))


def _losses(ours: Mapping[str, Tensor], recorded: Case, limit: float) -> Iterator[Part]:
    for name, value in recorded.items():
        yield name, abs(ours[LOSS_NAMES[name]].item() - value), limit


def _run(case: Case, tolerance: Case) -> Iterator[Part]:
    _refuse_unread(case, *_STEP, "numpy_seeded", "ema_decay", "adam_steps", "ema_minus_params")
    limit = tolerance["dukd_runs"]
    if case["numpy_seeded"] != "once, before the first iteration":
        raise ValueError(f"no reader for {case['numpy_seeded']!r}")
    teacher, student = _pair(case)
    ema, optimizer = EMA(student, case["ema_decay"]), _adam(case, student)
    distiller = _distiller(case, teacher, student)
    yield _equal("losses", len(case["losses"]), case["iterations"])
    for i, recorded in enumerate(case["losses"]):
        lq, gt = (_input(case["inputs"][name], i) for name in ("lq", "gt"))
        yield _equal("sizes", [len(lq), lq.shape[-1], gt.shape[-1]], _sizes(case, case["scale"]))
        optimizer.zero_grad()
        losses: dict[str, Tensor] = {}
        for terms in distiller.stages(lq, gt):
            losses |= terms
            torch.stack(list(terms.values())).sum().backward()
            optimizer.step()
        ema.update(student)
        yield from _losses(losses, recorded, limit)
    steps = {int(state["step"]) for state in optimizer.state.values()}
    yield _equal("steps of Adam", steps, {case["adam_steps"]})
    weights = _flat(student.parameters())
    yield "parameters", fingerprint_error(weights, case["params_after"]), limit
    gap = fingerprint_error(_flat(ema.model.parameters()) - weights, case["ema_minus_params"])
    yield "averaged minus plain", gap, tolerance["ema_minus_params"]


def _fakd(case: Case, tolerance: Case) -> Iterator[Part]:
    _refuse_unread(
        case, "scale", "teacher", "student", "positions", "type", "pixel_weight", "kd_weight",
        "feature_weight", "mode", "losses", "student_features", "grad_released", "grad_intended",
    )  # fmt: skip
    limit = tolerance["fakd_steps"]
    lq, gt = (_input(case["inputs"][name]) for name in ("lq", "gt"))
    for released in (True, False):
        teacher, student = _pair(case)
        distiller = LogitsKD(
            teacher,
            student,
            features=case["type"],
            feature_weight=case["feature_weight"],
            positions=case["positions"],
            released_gradient=released,
            pixel_weight=case["pixel_weight"],
            kd_weight=case["kd_weight"],
        )
        distiller.loss(lq, gt).backward()
        yield from _losses(distiller.parts, case["losses"], limit)
        form = "released" if released else "intended"
        error = fingerprint_error(_gradients(student), case[f"grad_{form}"])
        yield f"gradient, {form}", error, limit
    assert distiller.features is not None, "case['type'] has made one"
    with torch.no_grad():
        student(lq)
    maps = distiller.features.take("student")
    yield _equal("maps", len(maps), len(case["student_features"]))
    for number, (ours, recorded) in enumerate(zip(maps, case["student_features"], strict=True)):
        yield f"map {number}", fingerprint_error(ours, recorded), limit


# ----------------------------------------------------------------------------- parts


def _transforms(case: Case, tolerance: Case) -> Iterator[Part]:
    maps = [seeded_input(name, tuple(shape)) for name, shape in case["inputs"].items()]
    for name, recorded in case.items():
        if name == "inputs":
            continue
        ours = solution_flow(*maps) if name == "FSP" else TRANSFORMS[name](maps[0])
        yield name, fingerprint_error(ours, recorded), tolerance["default"]


def _noising(case: Case, tolerance: Case) -> Iterator[Part]:
    _refuse_unread(case, "index", "once", "twice", "twice_equals_input")
    x = _input(case["input"])
    transforms = InvertibleTransforms.of(len(x), case["index"])
    once = transforms.apply(x)
    twice = transforms.undo(once, released_order=True)
    yield "once", fingerprint_error(once, case["once"]), tolerance["default"]
    yield "twice", fingerprint_error(twice, case["twice"]), tolerance["default"]
    same = [torch.allclose(a, b) for a, b in zip(twice, x, strict=True)]
    yield _equal("undone by the released order", same, case["twice_equals_input"])
    yield "exact inverse", (transforms.undo(once) - x).abs().max().item(), tolerance["default"]


def _zoom_out(case: Case, tolerance: Case) -> Iterator[Part]:
    _refuse_unread(case, "scale", "output")
    ours = zoom_out(_input(case["input"])[None], scale=round(1 / case["scale"]))[0]
    yield "output", fingerprint_error(ours, case["output"]), tolerance["default"]
