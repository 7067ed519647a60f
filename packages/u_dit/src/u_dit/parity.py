"""Reads recordings of the authors' code (see papers_shared.parity), by content.

``class``, ``model`` or ``module`` says what is built from ``config`` or ``args``; every key is
compared, and one that this reader does not know fails.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from papers_shared.complexity import count_parameters
from papers_shared.diffusion.adm import Chain, q_sample, training_losses
from papers_shared.diffusion.examples import center_crop, to_pictures
from papers_shared.diffusion.unet_parts import timestep_embedding
from papers_shared.metrics.adm import inception_score, precision_recall
from papers_shared.metrics.frechet import frechet_distance
from papers_shared.networks.grid_attention import split_cells
from papers_shared.networks.rep_ffn import RepLeFFN
from papers_shared.networks.rotary import turns
from papers_shared.parity import (
    Case,
    Part,
    Run,
    fingerprint_error,
    name_seeded_state_dict,
    no_reader,
    refuse_unknown,
    seeded_input,
    values_error,
)
from u_dit.attention import DownsampledAttention
from u_dit.counting import elementwise, macs, on_meta
from u_dit.dit import DiT
from u_dit.model import VARIANTS, UDiT, fuse
from u_dit.parity_diffusion import diffusion_checks

NETWORKS: dict[str, Callable[[Case], Any]] = {"U_DiT": UDiT, "DiT": DiT}
DESCRIPTIONS = {"paper", "how", "comment", "note", "name", "kind", "class", "model", "module",
                "tolerance", "recorded_as"}  # fmt: skip


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; sections it does not know fail."""
    limit = recording["tolerance"]["atol_of_abs_max"]
    for section, content in recording.items():
        if section == "full_size":
            for name, case in content.items():
                if name not in DESCRIPTIONS:
                    yield f"full_size {name}", partial(_full_size, name, case)
        elif section == "modules":
            for i, case in enumerate(content):
                yield f"modules[{i}] {case['module']}", partial(_module, case, limit)
        elif section == "cases":
            for case in content:
                yield f"{case['class']} {case['name']}", partial(_network, case, limit)
        elif section == "diffusion":
            for name, run in diffusion_checks(content, limit):
                yield f"diffusion {name}", run
        elif section == "train_step":
            yield section, partial(_train_step, content, limit)
        elif section == "evaluator":
            yield section, partial(_evaluator, content, limit)
        elif section == "images":
            for i, case in enumerate(content):
                yield f"images[{i}] {case['kind']}", partial(_image, case)
        elif section not in DESCRIPTIONS:
            yield section, partial(no_reader, f"section {section!r}")


def seeded(model: nn.Module, *, keep: Iterable[str] = ()) -> Any:
    """Weights by the recordings' rule, in eval mode."""
    model.load_state_dict(name_seeded_state_dict(model.state_dict(), keep=list(keep)))
    return model.eval()


def given(pair: Any) -> Tensor:
    """The input that a recording names: ``[name, shape]`` or a mapping of both."""
    name, shape = (pair["name"], pair["shape"]) if isinstance(pair, Mapping) else pair
    return seeded_input(name, tuple(shape))


def _layout(model: nn.Module) -> list[list[Any]]:
    return [[name, list(value.shape)] for name, value in model.state_dict().items()]


def _differs(ours: Any, recorded: Any) -> float:
    return float(ours != recorded)


# ---- networks


def _network(case: Case, limit: float) -> Iterator[Part]:
    outputs = ("output_unfused", "output_eval", "output_eval_fused", "max_abs_fused_minus_unfused")
    counts = {"n_params", "n_trainable", "n_state", "state", "macs_conv_linear_matmul_eval_batch1"}
    inside = "intermediates" if "intermediates" in case else "intermediates_unfused"
    refuse_unknown(
        case,
        DESCRIPTIONS
        | {"config", "keep", "input", "t", "y", "pos_embed", "forward_with_cfg", inside}
        | counts
        | set(outputs),
    )
    if case["class"] not in NETWORKS:
        raise ValueError(f"no reader for class {case['class']!r}; known: {', '.join(NETWORKS)}")
    model = seeded(NETWORKS[case["class"]](case["config"]), keep=case.get("keep", []))
    fused = fuse(model)
    layout = _layout(model)
    if "state" in case:
        yield "names, shapes and order", _differs(layout, case["state"]), 0
    if "n_state" in case:
        yield "n_state", abs(len(layout) - case["n_state"]), 0
    yield "n_params", abs(count_parameters(model) - case["n_params"]), 0
    if "n_trainable" in case:
        trainable = count_parameters(model, trainable_only=True)
        yield "n_trainable", abs(trainable - case["n_trainable"]), 0
    if "pos_embed" in case:
        yield "pos_embed", fingerprint_error(model.pos_embed, case["pos_embed"]), limit
    if "macs_conv_linear_matmul_eval_batch1" in case:
        _, channels, side, _ = case["input"]["shape"]
        difference = macs(fused, channels, side) - case["macs_conv_linear_matmul_eval_batch1"]
        yield "macs", abs(difference), 0

    x, t, y = given(case["input"]), torch.tensor(case["t"]), torch.tensor(case["y"])
    recorded = case[inside]
    made: dict[str, Tensor] = {}
    hooks = [
        model.get_submodule(name).register_forward_hook(partial(_keep, made, name))
        for name in recorded
    ]
    with torch.no_grad():
        output = model(x, t, y)
        for hook in hooks:
            hook.remove()
        output_fused = fused(x, t, y)
    for name, value in recorded.items():
        out = made[name]
        if name.endswith(".downsampler"):  # the authors' splits the map, too
            f = model.get_submodule(name.rpartition(".")[0]).down_factor
            out = split_cells(out, f, f)
        yield name, fingerprint_error(out.contiguous(), value), limit
    for name, value in case.items():
        if name in ("output_unfused", "output_eval"):
            yield name, fingerprint_error(output.contiguous(), value), limit
        if name in ("output_unfused", "output_eval_fused", "output_eval"):
            error = fingerprint_error(output_fused.contiguous(), value)
            yield f"{name}, fused", error, limit
    if "max_abs_fused_minus_unfused" in case:  # rounding, which is each implementation's own
        difference = (output - output_fused).abs().max() / output.abs().max()
        yield "fused minus un-fused", difference.item(), limit
    if "forward_with_cfg" in case:
        guided = case["forward_with_cfg"]
        refuse_unknown(guided, DESCRIPTIONS | {"cfg_scale", "t", "y", "output"})
        steps, labels = torch.tensor(guided["t"]), torch.tensor(guided["y"])
        with torch.no_grad():
            out = model.forward_with_cfg(x, steps, labels, guided["cfg_scale"])
        yield "forward_with_cfg", fingerprint_error(out.contiguous(), guided["output"]), limit


def _keep(made: dict[str, Tensor], name: str, module: nn.Module, args: Any, out: Tensor) -> None:
    made[name] = out


def _full_size(variant: str, case: Case) -> Iterator[Part]:
    config = VARIANTS[variant]
    model, fused = on_meta(config), on_meta(config, fused=True)
    found: dict[str, Callable[[], int]] = {
        "params_checkpoint": lambda: count_parameters(model),
        "params_fused": lambda: count_parameters(fused),
        "state_entries": lambda: len(model.state_dict()),
        "macs_fused": lambda: macs(fused, 4, 32),
        "macs_unfused": lambda: macs(model, 4, 32),
        "macs_paper_convention_fused": lambda: macs(fused, 4, 32) + elementwise(config, 32),
        "macs_fused_512px": lambda: macs(fused, 4, 64),
        "macs_paper_convention_fused_512px": lambda: macs(fused, 4, 64) + elementwise(config, 64),
    }
    refuse_unknown(case, DESCRIPTIONS | set(found))
    for name, value in case.items():
        if name in found:
            yield name, abs(found[name]() - value), 0


# ---- modules


def _module(case: Case, limit: float) -> Iterator[Part]:
    kinds = {
        "DownSample_Attn": _attention,
        "FeedForward": _feed_forward,
        "precompute_freqs_cis_2d": _rotary,
        "timestep_embedding": _sinusoid,
    }
    if case["module"] not in kinds:
        raise ValueError(f"no reader for {case['module']!r}; known: {', '.join(kinds)}")
    yield from kinds[case["module"]](case, limit)


def _attention(case: Case, limit: float) -> Iterator[Part]:
    refuse_unknown(
        case,
        DESCRIPTIONS | {"args", "input", "state", "downsampler_output", "output", "override"},
    )
    arguments = dict(case["args"])
    dim, heads = arguments.pop("dim"), arguments.pop("num_heads")
    model = seeded(DownsampledAttention(dim, heads, **arguments))
    yield "names, shapes and order", _differs(_layout(model), case["state"]), 0
    with torch.no_grad():
        for name, value in case.get("override", {}).items():
            model.get_parameter(name).fill_(value)
        x, f = given(case["input"]), model.down_factor
        groups = split_cells(model.downsampler(x), f, f)
        output = model(x)
    if "downsampler_output" in case:
        yield "downsampler", fingerprint_error(groups, case["downsampler_output"]), limit
    yield "output", fingerprint_error(output.contiguous(), case["output"]), limit


def _feed_forward(case: Case, limit: float) -> Iterator[Part]:
    names = [f"fused_{part}_{kind}" for part in ("project_in", "dwconv", "project_out")
             for kind in ("weight", "bias")]  # fmt: skip
    outputs = {"output_unfused", "output_fused"}
    refuse_unknown(case, DESCRIPTIONS | {"args", "input", "state", *names, *outputs})
    arguments = dict(case["args"])
    dim, factor = arguments.pop("dim"), arguments.pop("ffn_expansion_factor")
    model = seeded(RepLeFFN(dim, factor, **arguments))
    fused = model.merged()
    yield "names, shapes and order", _differs(_layout(model), case["state"]), 0
    with torch.no_grad():
        x = given(case["input"])
        for name, net in (("output_unfused", model), ("output_fused", fused)):
            yield name, fingerprint_error(net(x).contiguous(), case[name]), limit
    for name in names:
        part, _, kind = name.removeprefix("fused_").rpartition("_")
        value = fused.get_parameter(f"{part}.{kind}")
        yield name, fingerprint_error(value.contiguous(), case[name]), limit


def _rotary(case: Case, limit: float) -> Iterator[Part]:
    refuse_unknown(case, DESCRIPTIONS | {"args", "real", "imag"})
    side = round(case["args"]["tokens"] ** 0.5)
    cos, sin = turns(side, side, case["args"]["head_dim"], torch.device("cpu"))
    yield "real", fingerprint_error(cos, case["real"]), limit
    yield "imag", fingerprint_error(sin, case["imag"]), limit


def _sinusoid(case: Case, limit: float) -> Iterator[Part]:
    refuse_unknown(case, DESCRIPTIONS | {"args", "output"})
    table = timestep_embedding(torch.tensor(case["args"]["t"]), case["args"]["dim"])
    yield "output", fingerprint_error(table, case["output"]), limit


# ---- training, evaluation, pictures


def _train_step(case: Case, limit: float) -> Iterator[Part]:
    refuse_unknown(
        case,
        DESCRIPTIONS
        | {"config", "inputs", "t", "y", "mse", "vb", "loss", "grad_norm", "gradients"},
    )
    model, chain = seeded(UDiT(case["config"])).train(), Chain.linear()
    x0, noise = (given(pair) for pair in case["inputs"])
    t, y = torch.tensor(case["t"]), torch.tensor(case["y"])
    x = q_sample(chain, x0, t, noise)
    losses = training_losses(chain, model(x, t, y), x0, x, t, noise)
    loss = losses["loss"].mean()
    loss.backward()
    for name in ("mse", "vb"):
        yield name, values_error(losses[name], case[name]), limit
    yield "loss", values_error(loss, case["loss"]), limit
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    norm = torch.nn.utils.get_total_norm(gradients.values())
    yield "grad_norm", values_error(norm, case["grad_norm"]), limit
    for name, value in case["gradients"].items():
        yield name, fingerprint_error(gradients[name].contiguous(), value), limit


def _evaluator(case: Case, limit: float) -> Iterator[Part]:
    splits = [name for name in case if name.startswith("inception_score_split_")]
    texts = {"sample_transform", "logits_transform"}
    numbers = {"k", "sample_scale", "sample_shift", "logits_scale"}
    found = {"fid", "precision", "recall", *splits}
    refuse_unknown(case, DESCRIPTIONS | {"inputs"} | texts | numbers | found)
    reference, samples, logits = (given(pair) for pair in case["inputs"])
    samples = samples * case["sample_scale"] + case["sample_shift"]
    yield "fid", values_error(frechet_distance(reference, samples), case["fid"]), limit
    precision, recall = precision_recall(samples, reference, k=case["k"])
    yield "precision", values_error(precision, case["precision"]), limit
    yield "recall", values_error(recall, case["recall"]), limit
    probabilities = (case["logits_scale"] * logits).softmax(1)
    for name in splits:
        score = inception_score(probabilities, split=int(name.rpartition("_")[2]))
        yield name, values_error(score, case[name]), limit


def _image(case: Case) -> Iterator[Part]:
    refuse_unknown(
        case, DESCRIPTIONS | {"input", "image_size", "input_scale", "shape", "sum", "picked"}
    )
    x = given(case["input"])
    if case["kind"] == "center_crop":
        levels = (50 * x + 128).clamp(0, 255).to(torch.uint8).numpy()
        cropped = center_crop(Image.fromarray(levels), case["image_size"])
        made = torch.from_numpy(np.array(cropped))
    elif case["kind"] == "to_uint8":
        made = to_pictures(case["input_scale"] * x).contiguous()
    else:
        raise ValueError(f"no reader for {case['kind']!r}")
    flat = made.flatten().long()
    places = torch.linspace(0, len(flat) - 1, len(case["picked"])).round().long()
    yield "shape", _differs(list(made.shape), case["shape"]), 0
    yield "sum", abs(flat.sum().item() - case["sum"]), 0
    yield "picked", _differs(flat[places].tolist(), case["picked"]), 0
