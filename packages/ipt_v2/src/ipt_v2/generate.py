"""Class-conditional generation by the scripts that U-DiT is trained and sampled with, too."""

from __future__ import annotations

if __name__ == "__main__":  # torchrun -m ipt_v2.generate sample ...
    import sys

    from ipt_v2.cli import main as command_line

    raise SystemExit(command_line(sys.argv[1:]))

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ipt_v2.config import GenerationEvalConfig, GenerationSampleConfig, GenerationTrainConfig
from ipt_v2.feedforward import merge
from ipt_v2.generation import GENERATION_VARIANTS, IPTUNet, UNetConfig
from ipt_v2.official import load_official
from papers_shared.diffusion import class_eval, class_sample, class_train
from papers_shared.diffusion.class_family import ClassFamily


def recognise(state: Mapping[str, Tensor]) -> str:
    """The variant whose names and shapes a state dict has, or ''."""
    width = state.get("x_embedder.proj.weight")
    for name, config in GENERATION_VARIANTS.items():
        if width is None or width.shape[0] != config.hidden_size:
            continue
        with torch.device("meta"):
            own = IPTUNet(config).state_dict()
        if {n: v.shape for n, v in own.items()} == {n: v.shape for n, v in state.items()}:
            return name
    return ""


def as_model(network: IPTUNet) -> Any:
    """A network as a diffusers model, sharing its weights."""
    from papers_shared.diffusion.pipeline import as_diffusers_model

    kind = as_diffusers_model(IPTUNet, UNetConfig, module=__name__)
    with torch.device("meta"):
        model = kind(**network.options.to_dict())
    model.load_state_dict(network.state_dict(), assign=True)
    return model.eval().requires_grad_(False)


FAMILY = ClassFamily(
    package="ipt_v2",
    variants=GENERATION_VARIANTS,
    build=IPTUNet,
    load_official=load_official,
    merge=merge,
    as_model=as_model,
    recognise=recognise,
    released="no weights of IPT-V2 were released; train them with `ipt-v2 train-generation`",
)


def sample(config: GenerationSampleConfig) -> int:
    """Write pictures, and say where they lie."""
    return class_sample.sample_and_tell(config, FAMILY)


def train(config: GenerationTrainConfig) -> int:
    """Train, and say where the network lies."""
    return class_train.train_and_tell(config, FAMILY)


def evaluate(config: GenerationEvalConfig) -> int:
    """Print (and with ``output`` write) the scores."""
    return class_eval.evaluate(config, FAMILY)
