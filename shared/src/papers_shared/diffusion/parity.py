"""Reads recordings of ResShift's code (``resshift.json``), and what DiT-SR's have in common.

By content: ``kind`` says what a case is, ``model`` which class, ``config`` builds it.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from papers_shared.complexity import count_macs
from papers_shared.data.parity import degradation_parts
from papers_shared.diffusion import vq
from papers_shared.diffusion.scheduler import ResShiftScheduler, Tables, scheduler_of
from papers_shared.diffusion.swin import SwinBlock, Windows
from papers_shared.diffusion.swin_unet import UNetModelSwin
from papers_shared.diffusion.training import resshift_loss
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

Build = Callable[[Mapping[str, Any]], nn.Module]
TRANSFORMS = {"tanh of the seeded input": torch.tanh}


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; what it does not know fails."""
    kinds: dict[str, Callable[..., Iterable[Part]]] = {
        "network": partial(network, {"UNetModelSwin": UNetModelSwin}),
        "full_size": partial(full_size, {"UNetModelSwin": UNetModelSwin}),
        "autoencoder": _autoencoder,
        "schedule": _schedule,
        "chain": _chain,
        "degradation": _degradation,
    }
    yield from cases(recording, kinds)


def cases(
    recording: Case, kinds: Mapping[str, Callable[..., Iterable[Part]]]
) -> Iterator[tuple[str, Run]]:
    """(name, run) for every mapping with a ``kind``, at whatever depth of sections it lies.

    Args:
        recording: the parsed file.
        kinds: kind -> reader, called with the case and ``limit`` (a name -> tolerance function).
    """
    tolerances = recording["tolerance_values"]

    def limit(name: str) -> float:
        return float(tolerances[name])

    for section, content in recording.items():
        if isinstance(content, str) or section == "tolerance_values":
            continue
        found = list(_find(section, content))
        if not found:
            yield section, partial(no_reader, f"section {section!r}")
        for name, case in found:
            kind = case["kind"]
            if kind in kinds:
                yield name, partial(kinds[kind], case, limit=limit)
            else:
                yield name, partial(no_reader, f"kind {kind!r}")


def _find(name: str, content: Any) -> Iterator[tuple[str, Case]]:
    if isinstance(content, Mapping) and "kind" in content:
        yield f"{content['kind']} {content.get('name', name)}", content
    elif isinstance(content, Mapping):
        for key, value in content.items():
            yield from _find(key, value)
    elif isinstance(content, list):
        for i, value in enumerate(content):
            yield from _find(f"{name}[{i}]", value)
    else:
        yield name, {"kind": f"{type(content).__name__} where a case was expected"}


def equal(ours: Any, recorded: Any) -> float:
    """0, or 1 where the two differ."""
    return float(ours != recorded)


# ---- networks


def build_of(case: Case, builders: Mapping[str, Build]) -> Build:
    """The builder of a case's class.

    Raises:
        ValueError: there is none.
    """
    if case["model"] not in builders:
        raise ValueError(f"no reader for class {case['model']!r}; known: {', '.join(builders)}")
    return builders[case["model"]]


def seeded(model: nn.Module, recorded: Mapping[str, Any] | None = None) -> nn.Module:
    """Name-seeded weights, in eval mode; names and shapes must be the recorded ones."""
    state = model.state_dict()
    if recorded is not None:
        ours = {name: list(value.shape) for name, value in state.items()}
        if ours != {name: list(shape) for name, shape in recorded.items()}:
            raise ValueError("names or shapes of the state dict are not the recorded ones")
    keep = [name for name in state if name.endswith("attn_mask")]
    model.load_state_dict(name_seeded_state_dict(state, keep=keep))
    return model.eval()


def inputs_of(case: Case) -> dict[str, Tensor]:
    """The inputs by name: seeded ones, transformed where the case says so, and literal steps."""
    out = {}
    for name, given in case["inputs"].items():
        if isinstance(given, list):
            out[name] = torch.tensor(given)
        else:
            value = seeded_input(given["name"], tuple(given["shape"]))
            out[name] = TRANSFORMS[given["transform"]](value) if "transform" in given else value
    return out


def network(
    builders: Mapping[str, Build], case: Case, *, limit: Callable[[str], float]
) -> Iterator[Part]:
    """Output, outputs of modules, and number of parameters of a network."""
    model = seeded(build_of(case, builders)(case["config"]), case["state_dict"])
    yield "params", equal(sum(p.numel() for p in model.parameters()), case["params"]), 0.0
    made: dict[str, Tensor] = {}
    for name in case.get("intermediate", {}):
        model.get_submodule(name).register_forward_hook(partial(_keep, made, name))
    with torch.no_grad():
        made["output"] = model(**inputs_of(case))
    recorded = {**case.get("intermediate", {}), "output": case["output"]}
    for name, fingerprint in recorded.items():
        yield name, fingerprint_error(made[name], fingerprint), limit("network")


def _keep(made: dict[str, Tensor], name: str, module: nn.Module, given: Any, out: Tensor) -> None:
    if isinstance(module, SwinBlock):  # works on tokens in windows; recordings hold pictures
        windows: Windows = given[2]
        out = windows.join(out).permute(0, 3, 1, 2)
    made[name] = out.contiguous()


def full_size(
    builders: Mapping[str, Build], case: Case, *, limit: Callable[[str], float]
) -> Iterator[Part]:
    """Counts and the checksum of names and shapes; nothing is computed."""
    if case["model"] == "VQModelTorch":
        yield from _full_size_vq(case, limit("full_size"))
        return
    with torch.device("meta"):
        model = build_of(case, builders)(case["config"])
    exact = limit("full_size")
    yield from _layout(model, model.state_dict(), case, exact)
    config = case["config"]
    side, lq = config["image_size"], config["lq_size"]
    shapes = [(1, config["in_channels"], side, side), (1,), (1, 3, lq, lq)]
    given = [torch.empty(shape, device="meta") for shape in shapes]
    as_recorded(model)
    for key, rule in (("calflops_flops", "calflops"), ("flop_counter_mode_flops", "flop_counter")):
        if key in case:
            ours = count_macs(model, given, rule=rule).total  # type: ignore[arg-type]
            yield key, equal(ours, case[key]), exact
    if "calflops_macs" in case:
        ours = count_macs(model, given, rule="conv_linear").total
        yield "calflops_macs", equal(ours, case["calflops_macs"]), exact


def as_recorded(model: nn.Module) -> None:
    """Let AdaFM be Fourier transforms, as in the code that was counted, not a matrix product."""
    for module in model.modules():
        if hasattr(module, "conditioning"):
            setattr(module, "backend", "reference")  # noqa: B010  torch types attributes


def _layout(
    model: nn.Module, state: Mapping[str, Tensor], case: Case, exact: float
) -> Iterator[Part]:
    names = sorted((name, tuple(value.shape)) for name, value in state.items())
    text = "\n".join(f"{name} {shape}" for name, shape in names)
    ours = {
        "params": sum(p.numel() for p in model.parameters()),
        "state_dict_entries": len(state),
        "state_dict_elements": sum(value.numel() for value in state.values()),
        "state_dict_crc32": zlib.crc32(text.encode()),
    }
    for key, value in ours.items():
        if key in case:
            yield key, equal(value, case[key]), exact


def _full_size_vq(case: Case, exact: float) -> Iterator[Part]:
    with torch.device("meta"):
        model = vq.build(case["config"])
    state = vq.to_official(model)
    yield from _layout(model, state, case, exact)
    for part in ("encoder", "decoder"):
        count = sum(p.numel() for p in getattr(model, part).parameters())
        yield part, equal(count, case[part]), exact
    ours = {name: list(value.shape) for name, value in state.items()}
    yield "state_dict", equal(ours, dict(case["state_dict"])), exact


# ---- autoencoders


def _seeded_vq(config: Mapping[str, Any], recorded: Mapping[str, Any] | None = None) -> Any:
    state = vq.to_official(vq.build(config))
    if recorded is not None:
        ours = {name: list(value.shape) for name, value in state.items()}
        if ours != {name: list(shape) for name, shape in recorded.items()}:
            raise ValueError("names or shapes of the state dict are not the recorded ones")
    return vq.load_official(name_seeded_state_dict(state), config)


def _distances(model: Any, z: Tensor) -> Tensor:
    """Squared distances of latent pixels to all codes: (pixels, codes)."""
    flat = z.permute(0, 2, 3, 1).flatten(0, 2)
    codes = model.quantize.embedding.weight
    return flat.square().sum(1, keepdim=True) + codes.square().sum(1) - 2 * flat @ codes.T


def _smallest_margin(model: Any, z: Tensor) -> float:
    best = _distances(model, z).topk(2, dim=1, largest=False).values
    return (best[:, 1] - best[:, 0]).min().item()


@torch.no_grad()
def _autoencoder(case: Case, *, limit: Callable[[str], float]) -> Iterator[Part]:
    model = _seeded_vq(case["config"], case["state_dict"])
    yield "params", equal(sum(p.numel() for p in model.parameters()), case["params"]), 0.0
    z = model.encode(inputs_of(case)["x"]).latents
    quantized, _, (_, _, codes) = model.quantize(z)
    made = {
        "encode": z,
        "quantized": quantized,
        "decode": model.decode(z).sample,
        "decode_force_not_quantize": model.decode(z, force_not_quantize=True).sample,
    }
    for name, value in made.items():
        yield name, fingerprint_error(value.contiguous(), case[name]), limit("autoencoder")
    recorded = case["codes"]
    codes = codes.flatten().tolist()
    ours = {"count": len(codes), "sum": sum(codes), "first_32": codes[:32]}
    for name, value in ours.items():
        yield f"codes.{name}", equal(value, recorded[name]), limit("codes")
    margin = abs(_smallest_margin(model, z) - recorded["smallest_margin"])
    yield "codes.smallest_margin", margin, limit("smallest_margin")
    again = vq.load_official(vq.to_official(model), case["config"]).state_dict()
    same = all(torch.equal(value, again[name]) for name, value in model.state_dict().items())
    yield "key map there and back", equal(same, True), 0.0


# ---- diffusion


def _schedule(case: Case, *, limit: Callable[[str], float]) -> Iterator[Part]:
    scheduler = scheduler_of(case["params"])
    tables: Tables = scheduler.tables
    kappa = scheduler.config.kappa
    kept = scheduler.timesteps.tolist()[::-1]
    ours = {
        "use_timesteps": kept,
        "timestep_map": kept,
        "sqrt_etas": tables.etas.sqrt(),
        "etas": tables.etas,
        "etas_prev": tables.etas_prev,
        "alpha": tables.alphas,
        "posterior_variance": tables.posterior_variance,
        "posterior_log_variance_clipped": tables.posterior_log_variance,
        "posterior_mean_coef1": tables.coef_sample,
        "posterior_mean_coef2": tables.coef_original,
        "weight_loss_mse": scheduler.loss_weights(),
        "input_std": (tables.etas * kappa**2 + 1).sqrt(),
        "prior_std": kappa * tables.etas[-1].sqrt(),
    }
    for name, recorded in case.items():
        if name not in ("kind", "name", "params"):
            yield name, values_error(ours[name], recorded), limit("schedule")


@torch.no_grad()
def _chain(case: Case, *, limit: Callable[[str], float]) -> Iterator[Part]:
    model = seeded(UNetModelSwin(case["unet_config"]))
    vae = _seeded_vq(case["vq_config"])
    scheduler: ResShiftScheduler = scheduler_of(case["diffusion"])
    given, noises = inputs_of(case), case["noises"]
    lq, scale = given["lq"], scheduler.config.scale_factor
    z_y = vae.encode(F.interpolate(lq, scale_factor=scale, mode="bicubic")).latents

    def noise(name: str) -> Tensor:
        return seeded_input(name, tuple(z_y.shape))

    made = {"encoded_lq": z_y}
    z = scheduler.prior_sample(z_y, noise(noises["prior"]))
    steps = scheduler.timesteps.tolist()
    for t in steps:
        indices = torch.full((len(z),), t)
        output = model(scheduler.scale_model_input(z, t), indices, lq)
        step = scheduler.step(output, t, z, noise=noise(noises["step"][str(t)]))
        z = step.prev_sample
        if t == steps[0]:
            made |= {"pred_xstart_first": step.pred_original_sample, "sample_after_first": z}
    made |= {"final_latent": z, "sr": vae.decode(z).sample.clamp(-1, 1)}
    for name, value in made.items():
        yield name, fingerprint_error(value.contiguous(), case[name]), limit("chain")
    margin = abs(_smallest_margin(vae, z) - case["smallest_code_margin"])
    yield "smallest_code_margin", margin, limit("chain")

    train = case["train"]
    z0, t = vae.encode(given["gt"]).latents, torch.tensor(train["t"])
    drawn = noise(noises["train"])
    mse, predicted = resshift_loss(
        model, scheduler, z0=z0, z_y=z_y, lq=lq, timesteps=t, noise=drawn
    )
    z_t = scheduler.add_noise(z0, drawn, t, z_y=z_y)
    yield "train.z_t", fingerprint_error(z_t, train["z_t"]), limit("chain")
    yield "train.mse", values_error(mse, train["mse"]), limit("chain")
    error = fingerprint_error(predicted.contiguous(), train["pred_zstart"])
    yield "train.pred_zstart", error, limit("chain")


def _degradation(case: Case, *, limit: Callable[[str], float]) -> Iterable[Part]:
    return degradation_parts(case, tolerance=limit("degradation"))
