"""DiT-SR, ResShift's U-net and TAD-SR's one step, at full size with random weights; on a CPU.

``python benchmarks/resshift_family.py [--quick]`` prints tables and writes
results/bench/resshift_family.json. Candidates take turns within one run; a time is a median, a
ratio the median of the ratios within a round.

Chains: one step of TAD-SR against the fifteen of its teacher, which is the same network; the
network alone, and from photo to picture (enlarging, encoding 256x256 by VQ-f4, the chain,
decoding), beside the ratio of the multiply-accumulates.

Networks: one step at the nominal latent, batch 1; peak memory is beyond weights and inputs.

Forms: DiT-SR's forward pass as one would write it down, then with what this library does instead,
one thing after the other. Plain: contiguous maps; each block cuts them into windows by permuted
copies; attention by softmax between two products; AdaFM by Fourier transforms. The forms share
weights and the cached shift masks, and give the same output. A profile says where the time goes.
torch.compile is left out: the cached masks of shifted windows break its graph, and it compiled for
18 minutes beside other work on two cores.
"""

from __future__ import annotations

import argparse
import copy
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile, record_function

from dit_sr import model as dit_sr
from papers_shared.complexity import count_macs, count_parameters, peak_memory
from papers_shared.diffusion import vq
from papers_shared.diffusion.reproduce import autoencoder_counts, denoiser_inputs
from papers_shared.diffusion.scheduler import ResShiftScheduler
from papers_shared.diffusion.swin import SwinStage, WindowAttention, Windows, shift_mask
from papers_shared.diffusion.swin_unet import SwinUNetConfig, UNetModelSwin
from papers_shared.tables.benchmark import save_benchmark, timed
from tad_sr.family import SCHEDULERS
from tad_sr.pipeline import TADSRPipeline, UNetModelSwinModel

TINY: Mapping[str, Any] = {
    "image_size": 16,
    "lq_size": 16,
    "model_channels": 32,
    "channel_mult": (1, 2),
    "attention_resolutions": (16, 8),
    "swin_depth": 2,
    "swin_embed_dim": 64,
    "mlp_ratio": 2,
    "norm_groups": 8,
}
TOLERANCE = 1e-4  # between the forms, relative to the largest output


Config = dit_sr.Config | SwinUNetConfig


def networks(quick: bool) -> dict[str, Config]:
    """Name to configuration; the first is the one whose forms are compared."""
    if quick:
        return {
            "DiT-SR": dit_sr.Config(**TINY),
            "DiT-SR-Lite": dit_sr.Config(**{**TINY, "swin_embed_dim": 32}),
            "ResShift": SwinUNetConfig(**TINY, num_res_blocks=(1, 1)),
        }
    variants = dit_sr.VARIANTS
    return {
        "DiT-SR": variants["realsr"],
        "DiT-SR-Lite": variants["realsr_lite"],
        "ResShift": SwinUNetConfig(),
    }


def build(config: Config) -> nn.Module:
    """Random weights, eval mode; gains of AdaFM near 1, so that every branch of a block counts."""
    torch.manual_seed(0)
    if isinstance(config, SwinUNetConfig):
        return vq.freeze(UNetModelSwin(config))
    network = dit_sr.build(config)
    for name, parameter in network.named_parameters():
        if ".adaLN_scale_" in name and name.endswith("bias"):
            nn.init.normal_(parameter, mean=1.0, std=0.2)
    return vq.freeze(network)


def inputs_of(config: Config) -> list[Tensor]:
    """Latent, step and low-quality picture of the nominal size."""
    generator = torch.Generator().manual_seed(1)
    latent, _, lq = (torch.randn(x.shape, generator=generator) for x in denoiser_inputs(config))
    return [latent, torch.tensor([7.0]), lq.tanh()]


# ---- fifteen steps and one


def chains(config: SwinUNetConfig, autoencoder: dict[str, Any], *, rounds: int) -> dict[str, Any]:
    """Student and teacher: the network alone, and from photo to picture."""
    torch.manual_seed(0)
    pipeline = TADSRPipeline(
        unet=vq.freeze(UNetModelSwinModel(**config.to_dict())),
        vae=vq.freeze(vq.build(autoencoder)),
        scheduler=ResShiftScheduler(**SCHEDULERS["realsr"]),
    )
    inputs, side = inputs_of(config), config.lq_size
    photo = torch.rand(3, side, side)

    def network(steps: int) -> None:
        for _ in range(steps):
            pipeline.unet(*inputs)

    def picture(steps: int) -> None:
        pipeline.enlarge(photo, steps, tile=side)

    counts = autoencoder_counts(autoencoder, side=4 * side)
    fixed = sum(counts[part]["macs"] for part in ("encoder", "decoder"))
    step = count_macs(UNetModelSwin(config), inputs, rule="flop_counter").total / 2e9
    bounds = {"network": 15.0, "picture": (fixed + 15 * step) / (fixed + step)}
    results: dict[str, Any] = {}
    for run in (network, picture):
        name, functions = run.__name__, {"15 steps": partial(run, 15), "1 step": partial(run, 1)}
        results[name] = timed(functions, baseline="15 steps", rounds=rounds)
        results[name]["ratio_of_macs"] = bounds[name]
        ms, faster = results[name]["milliseconds"], results[name]["times_faster"]
        print(
            f"{name}: 15 steps {ms['15 steps']:.0f} ms, 1 step {ms['1 step']:.0f} ms, "
            f"{faster['1 step']:.2f}x faster; ratio of multiply-accumulates {bounds[name]:.2f}",
            flush=True,
        )
    return {**results, "gmacs": {"step": step, "autoencoder": fixed}}


# ---- one step of each network


def steps(configs: Mapping[str, Config], *, rounds: int) -> dict[str, Any]:
    """Parameters, multiply-accumulates, time and peak memory of one step."""
    built = {name: build(config) for name, config in configs.items()}
    functions = {name: partial(built[name], *inputs_of(configs[name])) for name in configs}
    measured = timed(functions, baseline="ResShift", rounds=rounds)
    rows = {}
    print(f"\n{'network':12} {'params, M':>9} {'GMACs':>7} {'ms':>8} {'faster':>7} {'peak, MB':>9}")
    for name, function in functions.items():
        counts = count_macs(built[name], inputs_of(configs[name]), rule="flop_counter")
        rows[name] = {
            "parameters": count_parameters(built[name]),
            "gmacs": counts.total / 2e9,
            "peak_bytes": peak_memory(function).bytes,
        }
        print(
            f"{name:12} {rows[name]['parameters'] / 1e6:9.2f} {rows[name]['gmacs']:7.2f} "
            f"{measured['milliseconds'][name]:8.1f} {measured['times_faster'][name]:6.2f}x "
            f"{rows[name]['peak_bytes'] / 1e6:9.1f}",
            flush=True,
        )
    return {**measured, "networks": rows}


# ---- forms of one forward pass


@dataclass(frozen=True)
class Form:
    """What a form has of this library; all: the network as it is."""

    windowed_tokens: bool = False
    fused_attention: bool = False
    adafm_matrix: bool = False
    channels_last: bool = False


FORMS: dict[str, Form] = {
    "plain": Form(),
    "windowed tokens": Form(True),
    "fused attention": Form(True, True),
    "AdaFM as a matrix": Form(True, True, True),
    "channels last": Form(True, True, True, True),
}


def in_form(network: nn.Module, form: Form) -> nn.Module:
    """A copy of the network that shares its weights and computes in another form."""
    shared = {id(t): t for t in network.state_dict(keep_vars=True).values()}
    made: Any = copy.deepcopy(network, shared)
    if not form.channels_last:  # the network itself asks for it before its first convolution
        made.input_blocks[0].register_forward_pre_hook(lambda _, x: (x[0].contiguous(), *x[1:]))
    for module in made.modules():
        replaced: Any = module
        if isinstance(module, dit_sr.DiTBlock):
            module.backend = "matrix" if form.adafm_matrix else "reference"
        if isinstance(module, WindowAttention) and not form.fused_attention:
            replaced.forward = partial(plain_attention, module)
        if isinstance(module, SwinStage) and not form.windowed_tokens:
            replaced.forward = partial(plain_stage, module)
        elif isinstance(module, SwinStage) and not form.channels_last:
            module.register_forward_hook(lambda _, __, y: y.contiguous())
    return made


def plain_attention(attn: WindowAttention, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """``WindowAttention.forward``, written out."""
    b, windows, n, c = tokens.shape
    heads = attn.num_heads
    qkv = F.linear(tokens, attn.qkv.weight, attn.qkv.bias)
    q, k, v = qkv.view(b * windows, n, 3, heads, c // heads).permute(2, 0, 3, 1, 4)
    scores = (q * (c // heads) ** -0.5) @ k.transpose(-2, -1)
    index: Any = attn.relative_position_index
    bias = attn.relative_position_bias_table[index.flatten()].view(n, n, heads)
    scores = scores + bias.permute(2, 0, 1)
    if mask is not None:
        scores = (scores.view(b, windows, heads, n, n) + mask[:, None]).view(scores.shape)
    out = scores.softmax(dim=-1) @ v
    out = out.transpose(1, 2).reshape(b, windows, n, c)
    return F.linear(out, attn.proj.weight, attn.proj.bias)


def convolved(layer: nn.Conv2d, x: Tensor) -> Tensor:
    """A 1x1 convolution of a map (B, C, H, W); the layer itself takes tokens."""
    return F.conv2d(x, layer.weight, layer.bias)


def plain_stage(stage: SwinStage, x: Tensor, emb: Tensor) -> Tensor:
    """``SwinStage.forward`` on contiguous maps."""
    windows = Windows(x.shape[2], x.shape[3], stage.window_size)
    x = convolved(stage.patch_embed.proj, x)
    for block in stage.blocks:
        x = plain_block(block, x, emb, windows)
    return convolved(stage.patch_unembed.proj, x)


def plain_block(block: Any, x: Tensor, emb: Tensor, windows: Windows) -> Tensor:
    """``DiTBlock.forward`` on a contiguous map (B, C, H, W)."""
    shift = block.shift

    def adafm(norm: nn.GroupNorm, gains: Tensor) -> Tensor:
        return dit_sr.group_norm_adafm(
            x,
            gains,
            norm.weight,
            norm.bias,
            num_groups=norm.num_groups,
            patch_size=block.patch_size,
            backend=block.backend,
        )

    y = adafm(block.norm1, block.adaLN_scale_msa(emb)).permute(0, 2, 3, 1)
    y = y.roll((-shift, -shift), (1, 2)) if shift else y
    mask = shift_mask(windows, shift, block.mask) if shift else None
    y = windows.join(block.attn(windows.split(y), mask))
    y = y.roll((shift, shift), (1, 2)) if shift else y
    x = x + y.permute(0, 3, 1, 2).contiguous()
    y = adafm(block.norm2, block.adaLN_scale_mlp(emb))
    return x + convolved(block.mlp.fc2, F.gelu(convolved(block.mlp.fc1, y)))


def forms(config: Config, *, rounds: int) -> dict[str, Any]:
    """Milliseconds of each form, how often faster than the plain one, and two profiles."""
    network, inputs = build(config), inputs_of(config)
    made = {name: in_form(network, form) for name, form in FORMS.items()}
    reference = network(*inputs)
    differences = {
        name: ((form(*inputs) - reference).abs().max() / reference.abs().max()).item()
        for name, form in made.items()
    }
    for name, difference in differences.items():
        if difference > TOLERANCE:
            raise SystemExit(f"error: {name} differs from the network by {difference:.1e}")
    functions = {name: partial(form, *inputs) for name, form in made.items()}
    measured = timed(functions, baseline="plain", rounds=rounds)
    print(f"\n{'form':18} {'threads':>7} {'ms':>8} {'faster':>7} {'difference':>10}")
    for name, ms in measured["milliseconds"].items():
        print(
            f"{name:18} {measured['threads']:7d} {ms:8.1f} {measured['times_faster'][name]:6.2f}x "
            f"{differences[name]:10.1e}",
            flush=True,
        )
    profiles = {name: shares(functions[name]) for name in ("plain", "channels last")}
    for name, parts in profiles.items():
        print(f"{name}: " + ", ".join(f"{kind} {100 * s:.0f} %" for kind, s in parts.items()))
    return {**measured, "relative_differences": differences, "profiles": profiles}


# Kind to what an operator's name contains; the first that fits.
KINDS: Mapping[str, tuple[str, ...]] = {
    "group norms": ("group_norm",),
    "convolutions": ("conv",),
    "linear layers": ("addmm", "linear"),
    "attention": ("attention", "softmax", "bmm", "matmul"),
    "copies": ("copy_", "contiguous", "clone", "cat", "index", "roll"),
}
ADAFM = "AdaFM"


def shares(function: Callable[[], Any]) -> dict[str, float]:
    """Kind of operation to its share of the time, the largest first; AdaFM with its copies."""

    def scoped(*args: Any, **options: Any) -> Tensor:
        with record_function(ADAFM):
            return original(*args, **options)

    original = dit_sr.group_norm_adafm
    with (
        mock.patch.object(dit_sr, "group_norm_adafm", scoped),
        profile(activities=[ProfilerActivity.CPU]) as profiler,
    ):
        function()
    times = dict.fromkeys([*KINDS, ADAFM, "other"], 0.0)
    for event in profiler.events() or ():
        times[_kind(event)] += event.self_cpu_time_total
    total = sum(times.values())
    return {k: times[k] / total for k in sorted(times, key=times.__getitem__, reverse=True)}


def _kind(event: Any) -> str:
    kind = next((k for k, words in KINDS.items() if any(w in event.name for w in words)), "other")
    while event is not None and kind != "group norms":
        if event.name == ADAFM:
            return ADAFM
        event = event.cpu_parent
    return kind


@torch.inference_mode()
def main(argv: list[str] | None = None) -> int:
    """Measure, print, and write results/bench/resshift_family.json."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--quick", action="store_true", help="tiny networks, under a minute")
    quick = parser.parse_args(argv).quick
    before, cores = torch.get_num_threads(), os.cpu_count() or 1
    configs = networks(quick)
    student = configs["ResShift"]
    assert isinstance(student, SwinUNetConfig)
    dd = {**vq.F4["ddconfig"], "ch": 32} if quick else vq.F4["ddconfig"]
    torch.set_num_threads(cores)
    results: dict[str, Any] = {"quick": quick, "sides": student.image_size}
    results["chains"] = chains(student, {**vq.F4, "ddconfig": dd}, rounds=3)
    results["networks"], results["forms"] = [], []
    for threads in sorted({1, cores}):
        torch.set_num_threads(threads)
        results["networks"].append(steps(configs, rounds=3))
        results["forms"].append(forms(configs["DiT-SR"], rounds=3))
    torch.set_num_threads(before)
    save_benchmark("resshift_family", results, distributions=["torch", "diffusers"])
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
