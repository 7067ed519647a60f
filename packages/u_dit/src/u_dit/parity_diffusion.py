"""The section ``diffusion`` of a recording: schedules, losses, steps and a guided chain."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial

import torch
from torch import Tensor

from papers_shared.diffusion.adm import (
    Chain,
    ddim_sample,
    p_mean_variance,
    p_sample,
    q_sample,
    space_timesteps,
    training_losses,
)
from papers_shared.parity import (
    Case,
    Part,
    fingerprint_error,
    name_seeded_state_dict,
    no_reader,
    refuse_unknown,
    seeded_input,
    values_error,
)
from u_dit.model import UDiT, fuse

Check = tuple[str, Callable[[], Iterable[Part]]]
TABLES = (
    "betas",
    "alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
)
MAPS = {"respacing", "n", "timestep_map_first", "timestep_map_last", "timestep_map_sum"}
INPUTS = ("x0", "noise", "model_output", "xt")
DESCRIPTIONS = {"kind", "class", "note", "inputs", "t", "t_respaced", "chains"}


def diffusion_checks(content: Case, limit: float) -> Iterator[Check]:
    """Every part of the section, to be run; parts it does not know fail."""
    known: dict[str, Callable[[Case, str, float], Iterable[Part]]] = {
        "q_sample": _q_sample,
        "training_losses": _losses,
        "p_mean_variance": _mean_variance,
        "p_mean_variance_1000": _mean_variance,
        "p_sample": _p_sample,
        "ddim_sample_eta0": _ddim,
        "ddim_sample_eta1": _ddim,
    }
    for name, part in content.items():
        if name.startswith("schedule_"):
            yield name, partial(_schedule, part, limit)
        elif name == "space_timesteps":
            for case in part:
                what = f"{name} {case['respacing']} of {case['T']}"
                yield what, partial(_timesteps, case, case["T"])
        elif name == "sample_loop":
            yield name, partial(_loop, part, limit)
        elif name in known:
            yield name, partial(known[name], content, name, limit)
        elif name not in DESCRIPTIONS:
            yield name, partial(no_reader, repr(name))


def _timesteps(case: Case, count: int) -> Iterator[Part]:
    refuse_unknown(case, MAPS | {"T", "at", *TABLES})
    kept = space_timesteps(count, case["respacing"])
    first, last = case["timestep_map_first"], case["timestep_map_last"]
    yield "n", abs(len(kept) - case["n"]), 0
    yield "first", float(kept[: len(first)] != first), 0
    yield "last", float(kept[-len(last) :] != last), 0
    yield "sum", abs(sum(kept) - case["timestep_map_sum"]), 0


def _schedule(case: Case, limit: float) -> Iterator[Part]:
    refuse_unknown(case, MAPS | {"at", *TABLES})
    chain = Chain.linear()
    if "respacing" in case:
        yield from _timesteps(case, len(chain))
        chain = chain.respaced(space_timesteps(len(chain), case["respacing"]))
    for name in TABLES:
        if name in case:
            yield name, values_error(getattr(chain, name)[case["at"]], case[name]), limit


def _chain(content: Case, name: str) -> tuple[Chain, Tensor]:
    """The chain that a part was recorded with, and its steps, by ``chains``."""
    keys = [k for k in content["chains"] if k == name or (k[-1] == "*" and name.startswith(k[:-1]))]
    (key,) = keys
    chain = Chain.linear()
    if content["chains"][key].startswith("schedule_respaced"):
        kept = space_timesteps(len(chain), content["schedule_respaced"]["respacing"])
        return chain.respaced(kept), torch.tensor(content["t_respaced"])
    return chain, torch.tensor(content["t"])


def _inputs(content: Case) -> list[Tensor]:
    """x0, noise, output, x: told by the ends of their names."""
    found = {name.rpartition(":")[2]: seeded_input(name, tuple(shape))
             for name, shape in content["inputs"]}  # fmt: skip
    return [found[name] for name in INPUTS]


def _q_sample(content: Case, name: str, limit: float) -> Iterator[Part]:
    chain, t = _chain(content, name)
    x0, noise, _, _ = _inputs(content)
    yield name, fingerprint_error(q_sample(chain, x0, t, noise), content[name]), limit


def _losses(content: Case, name: str, limit: float) -> Iterator[Part]:
    chain, t = _chain(content, name)
    x0, noise, output, _ = _inputs(content)
    losses = training_losses(chain, output, x0, q_sample(chain, x0, t, noise), t, noise)
    refuse_unknown(content[name], set(losses))
    for key, value in content[name].items():
        yield key, values_error(losses[key], value), limit


def _mean_variance(content: Case, name: str, limit: float) -> Iterator[Part]:
    chain, t = _chain(content, name)
    _, _, output, x = _inputs(content)
    case = content[name]
    refuse_unknown(case, {"clip_denoised", "mean", "log_variance", "pred_xstart"})
    p = p_mean_variance(chain, output, x, t, clip_denoised=case.get("clip_denoised", False))
    for key in ("mean", "log_variance", "pred_xstart"):
        if key in case:
            yield key, fingerprint_error(getattr(p, key), case[key]), limit


def _p_sample(content: Case, name: str, limit: float) -> Iterator[Part]:
    chain, t = _chain(content, name)
    _, _, output, x = _inputs(content)
    case = content[name]
    refuse_unknown(case, {"noise", "clip_denoised", "output"})
    noise = seeded_input(case["noise"], tuple(x.shape))
    made = p_sample(chain, output, x, t, noise, clip_denoised=case["clip_denoised"])
    yield name, fingerprint_error(made, case["output"]), limit


def _ddim(content: Case, name: str, limit: float) -> Iterator[Part]:
    chain, t = _chain(content, name)
    _, _, output, x = _inputs(content)
    noise = seeded_input(content["p_sample"]["noise"], tuple(x.shape))
    made = ddim_sample(chain, output, x, t, noise, eta=float(name.rpartition("eta")[2]))
    yield name, fingerprint_error(made, content[name]), limit


def _loop(case: Case, limit: float) -> Iterator[Part]:
    texts = {"weights", "eval", "kind", "class"}
    numbers = {"model_config", "z", "y", "null_class", "cfg_scale", "steps"}
    noises = {"noise_name", "noise_shape"}
    refuse_unknown(case, {"after", "final_first_half"} | texts | numbers | noises)
    model = UDiT(case["model_config"])
    model.load_state_dict(name_seeded_state_dict(model.state_dict()))
    model = fuse(model.eval())
    whole = Chain.linear()
    chain = whole.respaced(space_timesteps(len(whole), str(case["steps"])))
    name, shape = case["z"]
    x = seeded_input(name, tuple(shape)).repeat(2, 1, 1, 1)
    y = torch.tensor(case["y"] + [case["null_class"]] * len(case["y"]))
    recorded = dict(case["after"])
    for i in reversed(range(len(chain))):
        t = torch.full((len(x),), i)
        with torch.no_grad():
            output = model.forward_with_cfg(x, chain.timesteps[t], y, case["cfg_scale"])
        noise_name = case["noise_name"].partition("<")[0] + str(i)
        noise = seeded_input(noise_name, tuple(case["noise_shape"]))
        x = p_sample(chain, output, x, t, noise)
        if i in recorded:
            yield f"after {i}", fingerprint_error(x, recorded[i]), limit
    yield "final", fingerprint_error(x[: len(x) // 2], case["final_first_half"]), limit
