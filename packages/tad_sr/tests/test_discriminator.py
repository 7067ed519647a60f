"""The discriminator: its layout, its normalisation, and what it takes the noise level for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from tad_sr.discriminator import (
    MultipleDiscriminators,
    ProjectedDiscriminator,
    SNConv1d,
    TimeAwareDiscriminator,
    discriminator_for,
)
from tad_sr.model import VARIANTS


def small(**options) -> ProjectedDiscriminator:
    return ProjectedDiscriminator(8, 16, (1, 2, 2), norm_groups=4, **options)


def features(batch: int = 2) -> list[Tensor]:
    return [
        torch.randn(batch, 16, 8, 8),
        torch.randn(batch, 32, 4, 4),
        torch.randn(batch, 32, 4, 4),
    ]


def opened(model: nn.Module) -> nn.Module:
    """Random values where a new discriminator's convolutions are zero."""
    for name, parameter in model.named_parameters():
        if "out_layers" in name and name.endswith("3.weight"):
            nn.init.normal_(parameter, std=0.1)
    return model


@pytest.mark.parametrize(
    ("kind", "parameters", "entries"),
    [(ProjectedDiscriminator, 20_764_320, 110), (TimeAwareDiscriminator, 75_406_400, 88)],
)
def test_parameters_and_entries_are_the_authors(kind: type, parameters: int, entries: int) -> None:
    with torch.device("meta"):
        model = kind()
    assert sum(p.numel() for p in model.parameters()) == parameters
    assert len(model.state_dict()) == entries


def test_logits_of_the_first_map_are_most_of_all() -> None:
    with torch.device("meta"):
        model = ProjectedDiscriminator().eval()
        shapes = [(160, 32), (320, 16), (320, 8), (640, 8), (640, 8)]
        maps = [torch.empty(1, c, s, s) for c, s in shapes]
        counts = [logits.shape[1] for logits in model(maps, torch.zeros(1))]
    assert counts == [65536, 16384, 4096, 4096, 4096]


def test_spectral_norm_is_torchs_old_one_in_names_and_values() -> None:
    ours = SNConv1d(6, 5, 9)
    theirs: Any = nn.utils.spectral_norm(nn.Conv1d(6, 5, 9, padding=4, padding_mode="circular"))
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 6, 16)
    for _ in range(2):
        assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    ours.eval(), theirs.eval()
    assert torch.allclose(ours(x), theirs(x), atol=1e-6)
    assert torch.allclose(ours.weight_u, theirs.weight_u, atol=1e-6)
    one, other = (
        torch.autograd.grad(conv(x).square().sum(), conv.weight_orig)[0] for conv in (ours, theirs)
    )
    assert torch.allclose(one, other, atol=1e-4)


def test_power_iteration_runs_in_training_alone_and_finds_the_singular_value() -> None:
    conv = SNConv1d(6, 5, 1)
    before = conv.weight_u.clone()
    conv.eval().weight()
    assert torch.equal(conv.weight_u, before)
    conv.train()
    for _ in range(200):
        weight = conv.weight()
    assert torch.linalg.matrix_norm(weight.flatten(1), ord=2).item() == pytest.approx(1, abs=1e-4)


def test_two_passes_wait_for_one_backward_and_the_network_can_be_copied() -> None:
    model = small()
    loss = sum(
        logits.sum() for _ in range(2) for logits in model(features(), torch.tensor([0, 13]))
    )
    loss.backward()
    twin = copy.deepcopy(model).eval()
    x, t = features(), torch.tensor([3, 3])
    for ours, theirs in zip(model.eval()(x, t), twin(x, t), strict=True):
        assert torch.equal(ours, theirs)


def test_a_new_discriminator_does_not_see_its_input() -> None:
    model, t = small().eval(), torch.tensor([0, 5])
    for one, other in zip(model(features(), t), model(features(), t), strict=True):
        assert torch.equal(one, other)


def test_the_noise_level_counts_only_where_it_is_asked_for() -> None:
    x = features()
    for aware in (True, False):
        model = opened(small(time_aware=aware)).eval()
        early, late = model(x, torch.tensor([0, 0])), model(x, torch.tensor([13, 13]))
        assert torch.equal(early[0], late[0]) != aware
    names = small(time_aware=False).state_dict()
    assert not any(name.startswith("emb_layers") for name in names)


def test_multiple_discriminators_keep_the_order_of_the_samples() -> None:
    model = MultipleDiscriminators(3, c_dim=8, embed_dim=16, multipliers=(1, 2, 2), norm_groups=4)
    opened(model).eval()
    x, t = features(4), torch.tensor([2, 0, 2, 1])
    together = model(x, t)
    for b, level in enumerate(t.tolist()):
        alone = model.levels[level]([f[b : b + 1] for f in x], t[b : b + 1])
        for k, logits in enumerate(alone):
            assert torch.allclose(together[k][b], logits[0], atol=1e-5)


def test_it_fits_every_variants_features() -> None:
    for config in VARIANTS.values():
        with torch.device("meta"):
            from tad_sr.model import build

            side, lq = config.image_size, config.lq_size
            latent = torch.empty(1, config.in_channels, side, side)
            t = torch.zeros(1)
            maps = build(config).features(latent, t, torch.empty(1, config.lq_channels, lq, lq))
            assert len(discriminator_for(config)(maps, t)) == len(config.channel_mult) + 1


def test_other_features_and_widths_are_refused() -> None:
    with pytest.raises(
        ValueError, match=r"expected features with \[16, 32, 32\] channels, got \[16\]"
    ):
        small()(features()[:1], torch.tensor([0, 0]))
    with pytest.raises(ValueError, match="norm_groups 32"):
        ProjectedDiscriminator(8, 48)
