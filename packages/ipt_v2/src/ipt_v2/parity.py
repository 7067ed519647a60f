"""Reads recordings of the authors' code (see papers_shared.parity), by content.

``official_class`` or ``model`` says what is built from ``args`` or ``config``; ``state`` lists
names, shapes and order; every key is compared, and one that this reader does not know fails.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ipt_v2.attention import FCSA, GGSA, MDTA
from ipt_v2.feedforward import RepLeFFN, merge
from ipt_v2.generation import IPTBlock, IPTUNet
from papers_shared.complexity import count_macs, count_parameters
from papers_shared.parity import (
    Case,
    Part,
    Run,
    fingerprint_error,
    name_seeded_state_dict,
    no_reader,
    normal,
    refuse_unknown,
    seeded_input,
)

# Class names of the authors' file -> ours; both take the same argument names.
MODULES: dict[str, Callable[..., nn.Module]] = {
    "IPTV2_Focal_Attention": FCSA,
    "IPT_Global_Attention": GGSA,
    "ChAttention2d": MDTA,
    "FeedForward": RepLeFFN,
    "IPTBlock": IPTBlock,
}
NETWORKS: dict[str, Callable[[Case], Any]] = {"IPT_UNet": IPTUNet}
DESCRIPTIONS = {"paper", "how", "comment", "note", "module", "name"}


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; sections it does not know fail."""
    how = recording["how"]
    for section, content in recording.items():
        if section == "full_size":
            for name, case in content.items():
                if name not in DESCRIPTIONS:
                    yield f"full_size {name}", partial(_full_size, case)
        elif section == "modules":
            for case in content:
                yield case["module"], partial(_module, case, how)
        elif section == "cases":
            for case in content:
                yield f"{case['model']} {case['name']}", partial(_network, case, how)
        elif section not in DESCRIPTIONS:
            yield section, partial(no_reader, f"section {section!r}")


def _build(kinds: Mapping[str, Callable[..., Any]], name: str) -> Callable[..., Any]:
    if name not in kinds:
        raise ValueError(f"no reader for class {name!r}; known: {', '.join(kinds)}")
    return kinds[name]


def _seed(model: nn.Module, how: Case) -> nn.Module:
    """Weights by the recording's rule, in eval mode."""
    state = model.state_dict()
    endings = tuple(how.get("keep_name_endings", []))
    seeded = name_seeded_state_dict(state, keep=[n for n in state if n.endswith(endings)])
    for name, value in state.items():
        if name.rpartition(".")[2] in how.get("positive_last_names", []):
            seeded[name] = 1 + 0.1 * normal(name, tuple(value.shape)).abs()
    model.load_state_dict(seeded)
    return model.eval()


def _layout(model: nn.Module) -> list[list[Any]]:
    return [[name, list(value.shape)] for name, value in model.state_dict().items()]


def _crc32(model: nn.Module) -> int:
    named = sorted((name, tuple(value.shape)) for name, value in model.state_dict().items())
    return zlib.crc32("\n".join(f"{name} {shape}" for name, shape in named).encode())


def _module(case: Case, how: Case) -> Iterator[Part]:
    known = {"official_class", "args", "state", "n_params", "cases", "fused", "inputs", "output"}
    refuse_unknown(case, DESCRIPTIONS | known)
    limit = how["tolerance_of_abs_max"]
    model = _seed(_build(MODULES, case["official_class"])(**case["args"]), how)
    yield "names, shapes and order", float(_layout(model) != case["state"]), 0
    yield "n_params", abs(count_parameters(model) - case["n_params"]), 0
    runs = [([entry["input"]], entry["output"]) for entry in case.get("cases", [])]
    if "inputs" in case:
        named = [{"name": name, "shape": shape} for name, shape in case["inputs"]]
        runs.append((named, case["output"]))
    merged = merge(model)
    difference = 0.0
    for i, (inputs, recorded) in enumerate(runs):
        given = [seeded_input(x["name"], tuple(x["shape"])) for x in inputs]
        with torch.no_grad():
            y, y_merged = model(*given).contiguous(), merged(*given).contiguous()
        yield f"output {i}", fingerprint_error(y, recorded), limit
        yield f"output {i}, merged", fingerprint_error(y_merged, recorded), limit
        difference = max(difference, (y - y_merged).abs().max().item() / recorded["abs_max"])
    state = merged.state_dict()
    for name, recorded in case.get("fused", {}).items():
        if name == "n_params":
            yield "fused n_params", abs(count_parameters(merged) - recorded), 0
        elif name == "max_abs_difference":  # rounding, which is each implementation's own
            yield "fused minus un-fused", difference, limit
        else:
            yield f"fused {name}", fingerprint_error(state[name], recorded), limit


def _network(case: Case, how: Case) -> Iterator[Part]:
    known = {"model", "config", "input", "t", "y", "n_params", "state", "state_crc32"}
    refuse_unknown(case, DESCRIPTIONS | known | {"intermediate", "output", "forward_with_cfg"})
    limit = how["tolerance_of_abs_max"]
    model: Any = _seed(_build(NETWORKS, case["model"])(case["config"]), how)
    yield "names, shapes and order", float(_layout(model) != case["state"]), 0
    yield "state_crc32", float(_crc32(model) != case["state_crc32"]), 0
    yield "n_params", abs(count_parameters(model) - case["n_params"]), 0
    x = seeded_input(case["input"]["name"], tuple(case["input"]["shape"]))
    made: dict[str, Tensor] = {}
    hooks = [
        _find(model, name).register_forward_hook(partial(_keep, made, name))
        for name in case["intermediate"]
    ]
    with torch.no_grad():
        made["output"] = model(x, torch.tensor(case["t"]), torch.tensor(case["y"]))
    for hook in hooks:
        hook.remove()
    for name, recorded in {**case["intermediate"], "output": case["output"]}.items():
        yield name, fingerprint_error(made[name].contiguous(), recorded), limit
    with torch.no_grad():
        y = merge(model)(x, torch.tensor(case["t"]), torch.tensor(case["y"]))
    yield "output, merged", fingerprint_error(y.contiguous(), case["output"]), limit
    if "forward_with_cfg" in case:
        guided = case["forward_with_cfg"]
        refuse_unknown(guided, DESCRIPTIONS | {"cfg_scale", "t", "y", "output"})
        steps, labels = torch.tensor(guided["t"]), torch.tensor(guided["y"])
        with torch.no_grad():
            y = model.forward_with_cfg(x, steps, labels, guided["cfg_scale"])
        yield "forward_with_cfg", fingerprint_error(y.contiguous(), guided["output"]), limit


def _find(model: nn.Module, name: str) -> nn.Module:
    """A module; ``latent.last`` is the last block of a level."""
    level, _, last = name.rpartition(".")
    if last != "last":
        return model.get_submodule(name)
    return list(model.get_submodule(level).children())[-1]


def _keep(made: dict[str, Tensor], name: str, module: nn.Module, given: Any, out: Tensor) -> None:
    made[name] = out


def _full_size(case: Case) -> Iterator[Part]:
    known = {"config", "params", "params_fused", "state_entries", "state_crc32", "macs_unfused"}
    refuse_unknown(case, DESCRIPTIONS | known)
    config = case["config"]
    with torch.device("meta"):
        model = IPTUNet(config)
        shape = (1, config["in_channels"], config["input_size"], config["input_size"])
        step = torch.zeros(1, dtype=torch.long)
        given = [torch.empty(shape), step, step]
    macs = count_macs(model, given, rule="flop_counter").total // 2
    yield "params", abs(count_parameters(model) - case["params"]), 0
    yield "params_fused", abs(count_parameters(merge(model)) - case["params_fused"]), 0
    yield "state_entries", abs(len(model.state_dict()) - case["state_entries"]), 0
    yield "state_crc32", float(_crc32(model) != case["state_crc32"]), 0
    yield "macs_unfused", abs(macs - case["macs_unfused"]), 0
