"""Reads recordings of the authors' LIPT code (see papers_shared.parity).

By content: ``kind`` says what a case is, ``config`` builds it; the file's ``how`` and ``tolerance``
say how weights are made and how near values must be. A key that no line here compares fails.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lipt.hrm import DiverseBranchBlock, merge, merge_branches
from lipt.model import LIPT, Config, NVSMSelfAttention, build, set_attention_backend
from lipt.official import convert, load_official, printed
from papers_shared.complexity import count_macs, count_parameters
from papers_shared.images import rgb_to_y
from papers_shared.kernels.nvsm import Shared
from papers_shared.kernels.nvsm_layout import mask_positions, masked_rows
from papers_shared.metrics.restoration import PSNR, SSIM
from papers_shared.parity import (
    Case,
    Part,
    Run,
    fingerprint_difference,
    name_seeded_state_dict,
    no_reader,
    seeded_input,
    values_error,
)

DESCRIPTIONS = {"paper", "how", "tolerance"}
NOTES = {"kind", "name", "model", "module", "note", "weights", "keep", "input", "meaning"}
PADDING = {"wrap": "sparse", "zero": "zero_pad", "ref": "ref_pad"}
BACKENDS = ("fast", "reference")


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; what it does not know fails."""
    readers: dict[str, Callable[[Case, Rules], Iterable[Part]]] = {
        "counts": _counts,
        "network": _network,
        "dbb": _dbb,
        "mask": _mask,
        "metric": _metric,
    }
    rules = Rules(recording["how"], recording["tolerance"])
    for section, content in recording.items():
        if section in DESCRIPTIONS:
            continue
        for name, case in _cases(section, content):
            kind = case.get("kind") if isinstance(case, Mapping) else type(case).__name__
            yield (
                name,
                partial(readers.get(str(kind), partial(no_reader, f"kind {kind!r}")), case, rules),
            )


def _cases(section: str, content: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(content, list):
        for i, case in enumerate(content):
            given = case.get("name") or case.get("module")
            yield f"{section}[{i}] {given}", case
    elif not isinstance(content, Mapping) or "kind" in content:
        yield section, content
    else:
        for name, case in content.items():
            if name != "comment":
                yield f"{section} {name}", case


class Rules:
    """How a recording makes its weights, and how near ours must come to its values."""

    def __init__(self, how: Case, tolerance: Case) -> None:
        self.beginnings = tuple(how["keep_name_beginnings"])
        self.endings = tuple(how["keep_name_endings"])
        self.damping = how["damping"]
        self.relative, self.absolute = tolerance["relative"], tolerance["absolute"]
        self.gradients = tolerance["gradients_absolute"]
        self.merged = tolerance["merged"]

    def seed(self, module: nn.Module) -> None:
        """Weights that follow from names and shapes."""
        state = module.state_dict()
        kept = [n for n in state if n.startswith(self.beginnings) or n.endswith(self.endings)]
        module.load_state_dict(name_seeded_state_dict(state, keep=kept))

    def seeded(self, config: Config) -> LIPT:
        """A network with such weights, damped as the recording says."""
        network = build(config)
        self.seed(network)
        state = network.state_dict()
        for rule in self.damping:
            if rule["deploy"] not in ("both", config.deploy):
                continue
            ends = tuple(rule.get("name_endings", ()))
            for name, value in state.items():
                if name == rule.get("name") or (ends and name.endswith(ends)):
                    factor = rule.get("multiply", 1.0)
                    if "divide_by" in rule:
                        factor /= getattr(config, rule["divide_by"])
                    value.mul_(factor)
        return network.eval()

    def near(self, name: str, ours: Tensor, recorded: Case, *, absolute: float = 0.0) -> Part:
        """A fingerprint: mean, deviation, largest and picked values."""
        limit = self.relative * recorded["abs_max"] + self.absolute + absolute
        return name, fingerprint_difference(ours.contiguous(), recorded), limit

    def number(self, name: str, ours: Any, recorded: float) -> Part:
        """A scalar, relative to the recorded one."""
        return name, values_error(ours, recorded), self.relative


def _equal(name: str, ours: Any, recorded: Any) -> Part:
    return name, float(ours != recorded), 0.0


def _refuse_unread(case: Case, read: Iterable[str]) -> None:
    if unread := set(case) - set(read) - NOTES:
        raise ValueError(f"no reader for {', '.join(sorted(unread))}")


def _crc32(state: Mapping[str, Tensor]) -> int:
    lines = (f"{name} {tuple(state[name].shape)}" for name in sorted(state))
    return zlib.crc32("\n".join(lines).encode())


def _input(case: Case, config: Config) -> Tensor:
    expected = "rgb_range * (0.5 + 0.25 * seeded_input)"
    if case["transform"] != expected:
        raise ValueError(f"no reader for the transform {case['transform']!r}")
    return config.rgb_range * (0.5 + 0.25 * seeded_input(case["name"], tuple(case["shape"])))


# ---- counts at full size


def _counts(case: Case, rules: Rules) -> Iterator[Part]:
    scales = [key for key in case if re.fullmatch(r"x\d+", key)]
    _refuse_unread(case, ["config", *scales])
    for key in scales:
        for part in _count(Config.of({**case["config"], "scale": int(key[1:])}), case[key]):
            yield f"{key} {part[0]}", *part[1:]


def _count(config: Config, recorded: Case) -> Iterator[Part]:
    with torch.device("meta"):
        train = build(config)
        deploy = build({**config.to_dict(), "deploy": True})
    set_attention_backend(deploy, "reference")  # plain products, which the counter knows
    shape = (1, config.colors, recorded["lr_height"], recorded["lr_width"])
    convolutions = count_macs(deploy, shape).total
    all_products = count_macs(deploy, shape, rule="flop_counter").total // 2
    ours = {
        "params_deploy": count_parameters(deploy),
        "entries_deploy": len(deploy.state_dict()),
        "state_crc32_deploy": _crc32(deploy.state_dict()),
        "params_train": count_parameters(train),
        "trainable_train": count_parameters(train, trainable_only=True),
        "entries_train": len(train.state_dict()),
        "state_crc32_train": _crc32(train.state_dict()),
        "macs_conv": convolutions,
        "macs_attention": all_products - convolutions,
        "lr_height": shape[2],
        "lr_width": shape[3],
    }
    for name, value in recorded.items():
        yield _equal(name, ours[name], value)


# ---- networks


def _network(case: Case, rules: Rules) -> Iterator[Part]:
    config = Config.of(case["config"])
    network, x = rules.seeded(config), _input(case["input"], config)
    state = network.state_dict()
    known = {
        "n_params": count_parameters(network),
        "state": [[name, list(value.shape)] for name, value in state.items()],
        "state_entries": len(state),
        "state_crc32": _crc32(state),
    }
    parts = {"merged": _merged, "train_step": _train_step, "half_converted": _half_converted}
    _refuse_unread(case, [*known, *parts, "config", "intermediate", "output"])
    for name, value in known.items():
        if name in case:
            yield _equal(name, value, case[name])

    outputs = {}
    for backend in BACKENDS:
        set_attention_backend(network, backend)
        made = outputs[backend] = _run(network, x, case["intermediate"])
        yield rules.near(f"{backend} output", made["output"], case["output"])
        for name, recorded in case["intermediate"].items():
            yield rules.near(f"{backend} {name}", made[name], recorded)
    set_attention_backend(network, "fast")
    for name, compare in parts.items():
        if name in case:
            yield from compare(network, x, outputs["fast"]["output"], case[name], rules)


@torch.no_grad()
def _run(network: LIPT, x: Tensor, wanted: Iterable[str]) -> dict[str, Tensor]:
    """The output and what the modules in between give, by the recording's names."""
    made: dict[str, Any] = {}
    handles = []
    for name in wanted:
        path, _, what = _place(name)
        module = network.get_submodule(path)
        if isinstance(module, NVSMSelfAttention):
            module.share = True
        handles.append(module.register_forward_hook(partial(_keep, made, name, what)))
    made["output"] = network(x)
    for handle in handles:
        handle.remove()
    for module in network.modules():
        if isinstance(module, NVSMSelfAttention):
            module.share = network.config.n_share > 0
    return made


def _place(name: str) -> tuple[str, str, str]:
    """A module's path, and which of an attention's results is meant."""
    if found := re.fullmatch(r"(body\.\d+)\.(smmsa_\d+)\.(\w+)", name):
        return f"{found[1]}.modules_nvsm_sa.{found[2]}", ".", found[3]
    return name, "", ""


def _keep(made: dict[str, Any], name: str, what: str, _m: Any, _i: Any, result: Any) -> None:
    if what in ("attn_dense", "attn_sparse"):
        shared: Shared = result[1]
        result = shared.maps()[what == "attn_sparse"]
    elif what:
        if what != "out":
            raise ValueError(f"no reader for {name!r}")
        result = result[0]
    made[name] = result


def _merged(network: LIPT, x: Tensor, unmerged: Tensor, case: Case, rules: Rules) -> Iterator[Part]:
    _refuse_unread(
        case, ["rule", "n_params", "entries", "output", "max_abs_difference_to_unmerged"]
    )
    merged = merge(network)
    assert isinstance(merged, LIPT)
    output = _run(merged, x, ())["output"]
    yield _equal("merged n_params", count_parameters(merged), case["n_params"])
    state = merged.state_dict()
    for name, recorded in case["entries"].items():
        yield rules.near(f"merged {name}", state[name], recorded)
    yield rules.near("merged output", output, case["output"])
    limit = rules.merged * unmerged.abs().max().item()
    yield "merged against unmerged", (output - unmerged).abs().max().item(), limit


def _half_converted(
    network: LIPT, x: Tensor, unmerged: Tensor, case: Case, rules: Rules
) -> Iterator[Part]:
    _refuse_unread(case, ["state_entries", "state_crc32", "entries", "output"])
    state = convert(network.state_dict(), to="half_converted")
    yield _equal("half-converted state_entries", len(state), case["state_entries"])
    yield _equal("half-converted state_crc32", _crc32(state), case["state_crc32"])
    for name, recorded in case["entries"].items():
        yield rules.near(f"half-converted {name}", state[name], recorded)
    loaded = load_official(state, network.config)
    yield rules.near("half-converted output", _run(loaded, x, ())["output"], case["output"])


def _train_step(
    network: LIPT, x: Tensor, unmerged: Tensor, case: Case, rules: Rules
) -> Iterator[Part]:
    compared = ["output", "loss", "grad_norm", "n_params_with_gradient", "gradients"]
    _refuse_unread(case, [*compared, "running_after", "target"])
    network = rules.seeded(network.config).train()
    output = network(x)
    loss = F.l1_loss(output, _input(case["target"], network.config))
    loss.backward()
    gradients = {n: p.grad for n, p in network.named_parameters() if p.grad is not None}
    yield rules.near("train output", output, case["output"])
    yield rules.number("train loss", loss, case["loss"])
    norm = torch.nn.utils.get_total_norm(list(gradients.values()))
    yield rules.number("train grad_norm", norm, case["grad_norm"])
    number = case["n_params_with_gradient"]
    yield _equal("train n_params_with_gradient", len(gradients), number)
    for name, recorded in case["gradients"].items():
        yield rules.near(f"train {name}", gradients[name], recorded, absolute=rules.gradients)
    state = network.state_dict()
    for name, recorded in case["running_after"].items():
        yield rules.near(f"train {name}", state[name], recorded)


# ---- modules


@torch.no_grad()
def _dbb(case: Case, rules: Rules) -> Iterator[Part]:
    filters = {"sobel_x_mask_first_filter": "sobelx", "sobel_y_mask_first_filter": "sobely"}
    compared = ["branches", "output", "merged_kernel", "merged_bias", *filters]
    _refuse_unread(case, ["args", "state", *compared])
    args = dict(case["args"])
    if [args.pop(name) for name in ("kernel_size", "stride", "padding")] != [3, 1, 1]:
        raise ValueError(f"no reader for the convolution {case['args']}")
    block = DiverseBranchBlock(**args).eval()
    rules.seed(block)
    state = block.state_dict()
    yield _equal("state", [[n, list(v.shape)] for n, v in state.items()], case["state"])
    x = seeded_input(case["input"]["name"], tuple(case["input"]["shape"]))
    for name, recorded in case["branches"].items():
        yield rules.near(name, block.get_submodule(name)(x), recorded)
    kernel, bias = merge_branches(state)
    yield rules.near("output", block(x), case["output"])
    yield rules.near("merged_kernel", kernel, case["merged_kernel"])
    yield rules.near("merged_bias", bias, case["merged_bias"])
    yield rules.near("merged output", F.conv2d(x, kernel, bias, padding=1), case["output"])
    for name, branch in filters.items():
        yield rules.number(name, state[f"dbb_{branch}.mask"][0, 0], case[name])


def _mask(case: Case, rules: Rules) -> Iterator[Part]:
    axes = {"rows_picked": "height", "columns_picked": "width"}
    _refuse_unread(case, ["mask", "window", "padding", "height", "width", "is_identity", *axes])
    positions = mask_positions(case["mask"], case["window"])
    for picked, side in axes.items():
        ours = masked_rows(case[side], case["window"], positions, PADDING[case["padding"]])
        if picked in case:
            yield _equal(picked, ours, case[picked])
        if "is_identity" in case:
            yield _equal(side, ours == list(range(case[side])), case["is_identity"])


def _metric(case: Case, rules: Rules) -> Iterator[Part]:
    expected = (
        "round(128+40*seeded_input(lipt_metric.hr)) clipped to 0..255",
        "clip(hr+9*seeded_input(lipt_metric.noise)), not rounded",
    )
    if (case["hr"], case["sr"]) != expected:
        raise ValueError(f"no reader for the pictures {case['hr']!r} and {case['sr']!r}")
    printing = {"printed_psnr": ("psnr_y", 2), "printed_ssim": ("ssim_y", 4)}
    compared = ["y_hr", "psnr_y", "ssim_y", *printing]
    _refuse_unread(case, ["hr", "sr", "shape", "border", "hr_input", "noise_input", *compared])
    shape, border = tuple(case["shape"]), case["border"]
    hr = (128 + 40 * seeded_input(case["hr_input"], shape)).round().clamp(0, 255)
    sr = (hr + 9 * seeded_input(case["noise_input"], shape)).clamp(0, 255)
    y = 255 * rgb_to_y(hr / 255)[..., border:-border, border:-border]
    yield rules.near("y_hr", y, case["y_hr"])
    options: dict[str, Any] = {"channels": "y", "crop_border": border, "quantize": False}
    ours = {
        "psnr_y": PSNR(**options)(sr / 255, hr / 255).item(),
        "ssim_y": SSIM(**options)(sr / 255, hr / 255).item(),
    }
    for name, value in ours.items():
        yield rules.number(name, value, case[name])
    for name, (metric, digits) in printing.items():
        yield _equal(name, printed(ours[metric], digits), case[name])
