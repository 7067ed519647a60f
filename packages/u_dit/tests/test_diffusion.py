"""ADM's diffusion against the schedulers of diffusers, and what its losses teach."""

from __future__ import annotations

import pytest
import torch

from papers_shared.diffusion.adm import (
    Chain,
    ddim_sample,
    p_sample,
    q_sample,
    space_timesteps,
    training_losses,
)
from u_dit.pipeline import make_scheduler

X, OUTPUT, NOISE = torch.randn(3, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
OUTPUT = torch.cat([OUTPUT, OUTPUT.flip(-1) / 2], dim=1)


def test_steps_of_diffusers_are_the_same() -> None:
    scheduler, kept = make_scheduler("ddpm"), space_timesteps(1000, "250")
    scheduler.set_timesteps(timesteps=kept[::-1])
    chain = Chain.linear().respaced(kept)
    for place in (249, 100, 1):
        t = torch.full((2,), place)
        zero = p_sample(chain, OUTPUT, X, t, torch.zeros_like(X))
        generator = torch.Generator().manual_seed(1)
        theirs = scheduler.step(OUTPUT, torch.tensor(kept[place]), X, generator=generator)
        noise = torch.randn(X.shape, generator=torch.Generator().manual_seed(1))
        ours = p_sample(chain, OUTPUT, X, t, noise)
        assert (theirs.prev_sample - ours).abs().max() < 1e-4
        assert (ours - zero).abs().max() > 1e-3


def test_ddim_of_diffusers_is_the_same() -> None:
    scheduler = make_scheduler("ddim")
    scheduler.set_timesteps(50)
    kept = space_timesteps(1000, "ddim50")
    assert scheduler.timesteps.tolist() == kept[::-1]
    chain = Chain.linear().respaced(kept)
    for place in (49, 20, 0):
        t = torch.full((2,), place)
        ours = ddim_sample(chain, OUTPUT, X, t, NOISE)
        theirs = scheduler.step(OUTPUT[:, :4], torch.tensor(kept[place]), X).prev_sample
        assert (theirs - ours).abs().max() < 1e-4 * ours.abs().max()


def test_the_bound_teaches_the_variance_alone() -> None:
    output = OUTPUT.clone().requires_grad_()
    t = torch.tensor([0, 500])
    chain = Chain.linear()
    losses = training_losses(chain, output, X, q_sample(chain, X, t, NOISE), t, NOISE)
    losses["vb"].sum().backward()
    assert output.grad is not None
    assert output.grad[:, :4].abs().max() == 0
    assert (output.grad[:, 4:].abs().amax((1, 2, 3)) > 0).all()


def test_the_bound_is_zero_bits_at_the_true_step() -> None:
    chain, t = Chain.linear(), torch.tensor([500, 20])
    x = q_sample(chain, X, t, NOISE)
    smallest = torch.full_like(NOISE, -1.0)  # v = -1: the posterior's own variance
    losses = training_losses(chain, torch.cat([NOISE, smallest], 1), X, x, t, NOISE)
    assert losses["mse"].abs().max() == 0
    assert losses["vb"].abs().max() < 1e-5


def test_without_a_learned_variance_there_is_one_loss() -> None:
    chain, t = Chain.linear(), torch.tensor([3, 4])
    assert set(training_losses(chain, NOISE, X, X, t, NOISE)) == {"mse", "loss"}
    with pytest.raises(ValueError, match="8, are expected"):
        training_losses(chain, OUTPUT[:, :6], X, X, t, NOISE)


@pytest.mark.parametrize("respacing", ["", "0", "abc", "2000", "ddim3x", "ddim999"])
def test_unreadable_respacings_are_refused(respacing: str) -> None:
    with pytest.raises(ValueError, match=r"respacing|stride"):
        space_timesteps(1000, respacing)
