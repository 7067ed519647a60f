"""Reads recordings of the authors' TAD-SR code (see papers_shared.parity).

By content: ``kind`` says what a case is, its configurations build it, ``net_state``,
``discriminator_state`` and ``state`` list the names and shapes it must have, every key of
``outputs`` is compared. Full-size entries say in their own names what they are of.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from papers_shared.diffusion import vq
from papers_shared.diffusion.scheduler import ResShiftScheduler, scheduler_of
from papers_shared.parity import (
    Case,
    Part,
    Run,
    fingerprint_difference,
    name_seeded_state_dict,
    named_cases,
    seeded_input,
)
from tad_sr import losses
from tad_sr.discriminator import ProjectedDiscriminator, TimeAwareDiscriminator
from tad_sr.model import Config, build

DESCRIPTIONS = {"about", "paper", "note", "tolerance", "flops_note"}
DISCRIMINATORS: dict[str, type[ProjectedDiscriminator]] = {
    "ProjectedDiscriminator": ProjectedDiscriminator,
    "Time_Aware_Discriminator": TimeAwareDiscriminator,
}


def checks(recording: Case) -> Iterator[tuple[str, Run]]:
    """Every case of a recording, to be run; sections it does not know fail."""
    limits = Limits(recording.get("tolerance", {}))
    kinds: dict[str, Callable[[Case], Iterable[Part]]] = {
        "training_losses": partial(_training_losses, limits=limits),
        "discriminator": partial(_discriminator, limits=limits),
        "eta_schedule": partial(_eta_schedule, limits=limits),
    }
    yield from named_cases(recording, kinds, full_size=_full_size, descriptions=DESCRIPTIONS)


class Limits:
    """The recording's tolerances: absolute, or in units of the recorded largest magnitude."""

    def __init__(self, tolerance: Mapping[str, Any]) -> None:
        self.of: dict[str, tuple[str, float]] = {}
        for names, limit in tolerance.items():
            if isinstance(limit, Mapping):
                ((kind, value),) = limit.items()
                self.of |= {name.strip(): (kind, value) for name in names.split(",")}

    def compare(self, name: str, ours: Any, recorded: Any) -> Iterator[Part]:
        """Parts of one key; values may be fingerprints, numbers, and lists or mappings of them."""
        if name not in self.of:
            raise ValueError(f"the recording gives no tolerance for {name!r}")
        kind, limit = self.of[name]
        for where, value, record in _leaves(name, ours, recorded):
            if isinstance(record, Mapping):
                error, largest = fingerprint_difference(value, record), record["abs_max"]
            else:
                theirs = torch.tensor(record, dtype=torch.float64).flatten()
                mine = torch.as_tensor(value).detach().double().flatten()
                if mine.shape != theirs.shape:
                    raise ValueError(f"{where} has {len(mine)} values, {len(theirs)} are recorded")
                largest = theirs.abs().max().item()
                error = (mine - theirs).abs().max().item()
            yield where, error / largest if kind == "rtol" else error, limit


def _leaves(where: str, ours: Any, recorded: Any) -> Iterator[tuple[str, Any, Any]]:
    """Pairs of what is compared as one."""
    if isinstance(recorded, Mapping) and "picked" not in recorded:
        for key, value in recorded.items():
            yield from _leaves(f"{where}.{key}", ours[key], value)
    elif isinstance(recorded, list) and recorded and isinstance(recorded[0], Mapping):
        for i, (own, value) in enumerate(zip(ours, recorded, strict=True)):
            yield from _leaves(f"{where}.{i}", own, value)
    else:
        yield where, ours, recorded


def _compare(outputs: Mapping[str, Any], recorded: Case, limits: Limits) -> Iterator[Part]:
    for name, value in recorded.items():
        if name not in outputs:
            raise ValueError(f"no reader for output {name!r}")
        yield from limits.compare(name, outputs[name], value)


def _seed(module: nn.Module, recorded: Iterable[tuple[str, list[int]]], prefix: str = "") -> None:
    """Name-seeded weights for ``module``, whose names and shapes must be the recorded ones."""
    state = module.state_dict()
    ours = {name: list(value.shape) for name, value in state.items()}
    if ours != {name: list(shape) for name, shape in recorded}:
        raise ValueError("names or shapes of the state dict are not the recorded ones")
    kept = [prefix + name for name in state if name.endswith("attn_mask")]
    named = {prefix + name: value for name, value in state.items()}
    seeded = name_seeded_state_dict(named, keep=kept)
    module.load_state_dict({name.removeprefix(prefix): value for name, value in seeded.items()})


def _scheduler(case: Case) -> ResShiftScheduler:
    return scheduler_of(
        dict(case["diffusion"]),
        sqrt_eta_start_cap=case["sqrt_eta_start_cap"],
        clip_sample=case.get("clip_denoised", False),
    )


def _make_discriminator(name: str, config: Case) -> ProjectedDiscriminator:
    if name not in DISCRIMINATORS:
        raise ValueError(f"no reader for discriminator {name!r}")
    return DISCRIMINATORS[name](**config)


def _training_losses(case: Case, limits: Limits) -> Iterator[Part]:
    if case["net_class"] != "UNetModelSwin":
        raise ValueError(f"no reader for network {case['net_class']!r}")
    teacher, student = build(case["net"]), build(case["net"])
    discriminator = _make_discriminator(case["discriminator_class"], case["discriminator"])
    _seed(teacher, case["net_state"])
    _seed(student, case["net_state"], prefix="student.")
    _seed(discriminator, case["discriminator_state"])
    teacher.requires_grad_(False)
    scheduler, config = _scheduler(case), _loss_config(case)
    given = {name: seeded_input(*made) for name, made in case["inputs"].items()}
    z_y, z_gt, lq = given["z_y"], given["z_gt"], 0.5 * given["lq"]
    draws = losses.Draws(
        noise=given["noise"],
        t_student=case["t_student"],
        t_dis=torch.tensor(case["t_dis"]),
        noise_dis=given["noise_dis"],
        t_hsd=torch.tensor(case["t_hsd"]),
        noise_hsd=given["noise_hsd"],
    )
    z_T = losses.start(scheduler, z_y, draws.noise)
    starts: dict[str, Any] = {"z_T": z_T, "z_y": z_y, "lq": lq, "t": draws.t_student}
    z_stu = losses.student_output(student, scheduler, **starts)
    z_stu.retain_grad()
    seen = draws.for_discriminator(z_y, lq)
    with torch.no_grad():
        real = losses.noised_features(teacher, scheduler, z_gt, seen)
    fake = losses.noised_features(teacher, scheduler, z_stu, seen)
    total = len(scheduler)
    outputs: dict[str, Any] = {
        "etas": scheduler.training_tables.etas,
        "sqrt_etas": scheduler.sqrt_etas,
        "z_t": z_T,
        "student_out": z_stu,
        "fake_features": fake,
        "real_features": real,
    }
    real_logits = discriminator(real, draws.t_dis)
    fake_logits = discriminator([f.detach() for f in fake], draws.t_dis)
    outputs["GAN_loss_D"] = losses.discriminator_loss(real_logits, fake_logits)
    outputs["GAN_loss_D"].mean().backward()
    outputs["grad_D_after_loss_D"] = {
        name: parameter.grad.clone()
        for name, parameter in discriminator.named_parameters()
        if parameter.grad is not None
    }
    z_tea = outputs["teacher_z0"] = losses.teacher_target(teacher, scheduler, **starts)
    if config.distill_type != "none":
        z_ref = z_tea if config.score_distill_target == "teacher" else z_gt
        at = draws.for_score(z_y, lq)
        gradient = losses.score_gradient(
            config, teacher, scheduler, z_stu=z_stu, z_ref=z_ref, at=at
        )
        outputs["score_gradient"] = gradient
    terms = losses.student_losses(
        config,
        teacher,
        discriminator,
        scheduler,
        z_stu=z_stu,
        z_tea=z_tea,
        z_gt=z_gt,
        z_y=z_y,
        lq=lq,
        fake_features=fake,
        draws=draws,
    )
    terms["loss"].mean().backward()
    outputs |= {
        "terms": terms,
        "grad_student_out": z_stu.grad,
        "grad_student_params": {name: p.grad for name, p in student.named_parameters()},
        "D_power_iteration_state_after": dict(discriminator.named_buffers()),
    }
    recorded = dict(case["outputs"])
    ranges = [
        losses.discriminator_steps(total),
        losses.score_steps(total, uniform_sampling=config.uniform_sampling),
    ]
    called = [tuple(pair) for pair in recorded.pop("randint_ranges_called", ranges)]
    yield "randint_ranges_called", float(called != ranges), 0
    listed = {name: case[name] for name in ("etas", "sqrt_etas") if name in case}
    yield from _compare(outputs, listed | recorded, limits)


def _loss_config(case: Case) -> losses.LossConfig:
    """From the authors' ``train`` section; what it must not hold is an error."""
    train = dict(case["train"])
    distil = train.pop("use_score_distil", True)
    kind = train.pop("distill_type")
    return losses.LossConfig(
        distill_type=("HSD" if kind == "HSD" else "SDS") if distil else "none",
        use_gan=train.pop("use_GAN_loss", True),
        gan_weight=train.pop("GAN_weight"),
        double_scale=case["hsd_double_scale"],
        **train,
    )


def _discriminator(case: Case, limits: Limits) -> Iterator[Part]:
    model = _make_discriminator(case["class"], case["config"])
    _seed(model, case["state"])
    yield "params", abs(sum(p.numel() for p in model.parameters()) - case["params"]), 0
    timesteps = torch.tensor(case["t"])
    features = [seeded_input(*made).requires_grad_() for made in case["inputs"]]
    first = model(features, timesteps)
    gradients = torch.autograd.grad(torch.cat(first, 1).mean(), features)
    outputs: dict[str, Any] = {
        "train_call_1": first,
        "grad_features_of_mean_logit_call_1": gradients,
        "train_call_2": model(features, timesteps),
    }
    outputs["weight_u_after_call_2"] = {n: b.clone() for n, b in model.named_buffers()}
    outputs["eval_call_3"] = model.eval()(features, timesteps)
    yield from _compare(outputs, case["outputs"], limits)


def _eta_schedule(case: Case, limits: Limits) -> Iterator[Part]:
    scheduler = _scheduler(case)
    tables = scheduler.training_tables
    outputs = {
        "sqrt_etas": scheduler.sqrt_etas,
        "etas": tables.etas,
        "ddim_k": tables.ddim_original,
        "ddim_m": tables.ddim_sample,
        "ddim_j": tables.ddim_target,
    }
    yield from _compare(outputs, case["outputs"], limits)


# ---- counts at full size, without values


def _full_size(name: str, case: Case) -> Iterator[Part]:
    with torch.device("meta"):
        model, calls = _full_size_model(name)
        ours = {
            "params": sum(p.numel() for p in model.parameters()),
            "state_entries": len(model.state_dict()),
        }
        for key, value in case.items():
            if key in ours:
                counted = ours[key]
            elif key in calls:
                counted = _macs(calls[key])
            else:
                raise ValueError(f"no reader for {key!r}")
            yield key, abs(counted - value), 0


def _macs(call: Callable[[], Any]) -> int:
    # The authors' quantiser gets its distances from a matrix product, diffusers' from cdist.
    distances = (torch.ops.aten._euclidean_dist, torch.ops.aten._cdist_forward)
    counter = FlopCounterMode(
        display=False, custom_mapping=dict.fromkeys(distances, _distance_flops)
    )
    with torch.no_grad(), counter:
        call()
    return counter.get_total_flops() // 2


def _distance_flops(x: Any, y: Any, *_: Any, **__: Any) -> int:
    return 2 * math.prod(x[:-1]) * y[-2] * x[-1]


def _full_size_model(name: str) -> tuple[nn.Module, dict[str, Callable[[], Any]]]:
    """The network that an entry's name describes, and what its recorded MACs are of."""
    numbers = {key: int(value) for key, value in re.findall(r"(\w+)[= ](\d+)", name)}
    if kinds := [kind for kind in DISCRIMINATORS if kind in name]:
        config = {key: numbers[key] for key in ("c_dim", "embed_dim")}
        judge = _make_discriminator(kinds[0], config).eval()
        # Of a 64x64 latent; the last map is the middle's, as large as the one before.
        sides = [32, 16, 8, 8, 8]
        maps = [torch.empty(1, w, s, s) for w, s in zip(judge.widths, sides, strict=False)]
        return judge, {"macs_one_call": lambda: judge(maps, torch.zeros(1))}
    if "VQ-f4" in name:
        vae: Any = vq.build(vq.F4)
        vae.eval()
        image, latent = torch.empty(1, 3, 256, 256), torch.empty(1, 3, 64, 64)
        return vae, {
            "encoder_macs_256": lambda: vae.encode(image),
            "decoder_macs_256": lambda: vae.decode(latent),
        }
    if "UNetModelSwin" in name or "lq_size" in numbers:
        found = re.search(r"in/out (\d+) channels", name)
        channels, side = int(found[1]) if found else 3, numbers["lq_size"]
        net = build(Config(in_channels=channels, out_channels=channels, lq_size=side)).eval()
        inputs = (torch.empty(1, channels, 64, 64), torch.zeros(1), torch.empty(1, 3, side, side))
        return net, {
            "macs_one_forward_latent_64x64": lambda: net(*inputs),
            f"macs_one_forward_latent_64x64_lq_{side}": lambda: net(*inputs),
            "macs_encoder_features_only": lambda: net.features(*inputs),
        }
    raise ValueError(f"no reader for the network {name!r}")
