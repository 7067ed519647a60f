"""The losses: what vanishes, what flows where, and the switches of code, text and ablations."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tad_sr import claims, losses
from tad_sr.discriminator import discriminator_for
from tad_sr.losses import LossConfig, Noising


def at_step(batch, t: int, noise: str = "uniform") -> Noising:
    kind = torch.rand_like if noise == "uniform" else torch.randn_like
    return Noising(batch.z_y, batch.lq, torch.full((2,), t), kind(batch.z_y))


# ---- the claims that hold for any weights


@pytest.mark.parametrize("noise", ["uniform", "gaussian"])
@pytest.mark.parametrize("t", [0, 2, 13])
def test_hsd_vanishes_at_the_target_and_sds_does_not(teacher, scheduler, batch, t, noise) -> None:
    hsd, sds = claims.gradients_at_target(teacher, scheduler, batch.z_gt, at_step(batch, t, noise))
    assert hsd == 0
    assert sds > 0.1


@pytest.mark.parametrize("t", [0, 2, 13])
def test_hsd_is_a_difference_of_clean_latents(teacher, scheduler, batch, t) -> None:
    z_stu = batch.z_gt + 0.1 * torch.randn_like(batch.z_gt)
    gap = claims.identity_gap(
        teacher, scheduler, z_stu=z_stu, z_ref=batch.z_gt, at=at_step(batch, t)
    )
    assert gap < 1e-4


def test_the_weight_of_hsd_falls_with_the_noise(scheduler) -> None:
    etas = scheduler.training_tables.etas
    weights = (1 - etas) / (2 * etas.sqrt())
    assert weights[:3].tolist() == pytest.approx([24.990, 4.209, 2.748], abs=1e-3)
    assert (weights.diff() < 0).all()


def test_no_adversarial_gradient_before_the_discriminator_has_moved(
    teacher, scheduler, batch, tiny
) -> None:
    discriminator = discriminator_for(tiny, c_dim=8)
    at, z_stu = batch.draws.for_discriminator(batch.z_y, batch.lq), torch.randn_like(batch.z_y)
    before = claims.adversarial_gradient(teacher, discriminator, scheduler, z_stu, at)
    assert before.abs().max() == 0

    optimizer = torch.optim.AdamW(discriminator.parameters(), lr=5e-5, weight_decay=0)
    judged = [
        discriminator(losses.noised_features(teacher, scheduler, z, at), at.timesteps)
        for z in (batch.z_gt, z_stu)
    ]
    losses.discriminator_loss(*judged).mean().backward()
    optimizer.step()
    after = claims.adversarial_gradient(teacher, discriminator, scheduler, z_stu, at)
    assert after.abs().max() > 0


# ---- teacher and student


def test_the_teachers_chain_is_the_schedulers_deterministic_one(teacher, batch) -> None:
    from papers_shared.diffusion.scheduler import CAP, ResShiftScheduler

    chain = ResShiftScheduler(algorithm_type="ddim", sqrt_eta_start_cap=CAP)
    z = losses.start(chain, batch.z_y, batch.draws.noise)
    target = losses.teacher_target(teacher, chain, z_T=z, z_y=batch.z_y, lq=batch.lq, t=14)
    with torch.no_grad():
        for t in chain.timesteps.tolist():
            steps = torch.full((2,), t)
            output = teacher(chain.scale_model_input(z, t), steps, batch.lq)
            z = chain.step(output, t, z, batch.z_y).prev_sample
    assert torch.allclose(target, z, atol=1e-5)
    assert not target.requires_grad


def test_the_start_has_the_noise_of_the_last_step(scheduler, batch) -> None:
    z_T = losses.start(scheduler, batch.z_y, batch.draws.noise)
    assert torch.allclose(z_T, batch.z_y + 1.98 * batch.draws.noise, atol=1e-5)


# ---- all together


def step(config, teacher, student, discriminator, scheduler, batch):
    """The student's losses and output in one training step."""
    z_y, lq, draws = batch.z_y, batch.lq, batch.draws
    z_T = losses.start(scheduler, z_y, draws.noise)
    starts = {"z_T": z_T, "z_y": z_y, "lq": lq, "t": draws.t_student}
    z_stu = losses.student_output(student, scheduler, **starts)
    z_stu.retain_grad()
    fake = losses.noised_features(teacher, scheduler, z_stu, draws.for_discriminator(z_y, lq))
    z_tea = losses.teacher_target(teacher, scheduler, **starts)
    terms = losses.student_losses(
        config, teacher, discriminator, scheduler, z_stu=z_stu, z_tea=z_tea, z_gt=batch.z_gt,
        z_y=z_y, lq=lq, fake_features=fake, draws=draws,
    )  # fmt: skip
    return terms, z_stu, z_tea


def test_gradients_reach_the_student_alone(teacher, student, scheduler, batch, tiny) -> None:
    discriminator = discriminator_for(tiny, c_dim=8)
    torch.nn.init.normal_(discriminator.get_parameter("out_layers.0.3.weight"), std=0.1)
    terms, z_stu, _ = step(LossConfig(), teacher, student, discriminator, scheduler, batch)
    assert list(terms) == ["mse", "mse_hsd", "GAN_loss", "loss"]
    (adversarial,) = torch.autograd.grad(terms["GAN_loss"].mean(), z_stu, retain_graph=True)
    assert adversarial.abs().max() > 0
    terms["loss"].mean().backward()
    assert all(p.grad is not None for p in student.parameters())
    assert all(p.grad is None for p in teacher.parameters())


def test_the_losses_gradient_is_regression_plus_score(teacher, student, scheduler, batch) -> None:
    config = LossConfig(use_gan=False, hsd_weight=0.5)
    terms, z_stu, z_tea = step(config, teacher, student, None, scheduler, batch)
    terms["loss"].sum().backward()
    at = batch.draws.for_score(batch.z_y, batch.lq)
    g = losses.hsd_gradient(teacher, scheduler, z_stu=z_stu.detach(), z_ref=z_tea, at=at)
    expected = (2 * (z_stu.detach() - z_tea) + 0.5 * g) / z_stu[0].numel()
    assert torch.allclose(z_stu.grad, expected, atol=1e-7)


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({"distill_type": "none", "use_gan": False}, ["mse", "loss"]),
        ({"distill_type": "SDS", "use_gan": False}, ["mse", "mse_sds", "loss"]),
        ({"distill_type": "none"}, ["mse", "GAN_loss", "loss"]),
    ],
)
def test_ablations_leave_terms_out(
    teacher, student, scheduler, batch, tiny, changes, names
) -> None:
    judge = discriminator_for(tiny, c_dim=8)
    terms, *_ = step(LossConfig(**changes), teacher, student, judge, scheduler, batch)
    assert list(terms) == names
    total = sum(terms[name] for name in names[:-1])
    assert torch.allclose(terms["loss"], total)


def test_the_reference_may_be_the_ground_truth(teacher, scheduler, batch) -> None:
    config = LossConfig(score_distill_target="gt", use_gan=False)
    terms = losses.student_losses(
        config, teacher, None, scheduler, z_stu=batch.z_gt, z_tea=batch.z_y, z_gt=batch.z_gt,
        z_y=batch.z_y, lq=batch.lq, fake_features=None, draws=batch.draws,
    )  # fmt: skip
    assert terms["mse_hsd"].abs().max() == 0


def test_scaling_twice_changes_the_score_little(teacher, scheduler, batch) -> None:
    at = at_step(batch, 2)
    once, twice = (
        losses.hsd_gradient(
            teacher, scheduler, z_stu=batch.z_y, z_ref=batch.z_gt, at=at, double_scale=double
        )
        for double in (False, True)
    )
    relative = (once - twice).norm() / twice.norm()
    assert 1e-3 < relative < 0.5


def test_hinge_losses() -> None:
    real, fake = [torch.tensor([[2.0, 0.0]])], [torch.tensor([[-3.0, 1.0]])]
    assert losses.discriminator_loss(real, fake).tolist() == [0.5 + 1.0]
    assert losses.adversarial_loss(fake).tolist() == [1.0]
    # The mean is over all logits of all maps together, not map by map.
    assert losses.adversarial_loss([torch.zeros(1, 3), torch.ones(1, 1)]).tolist() == [-0.25]


# ---- draws


def test_draws_keep_to_their_ranges_and_kinds() -> None:
    like = torch.zeros(4000, 1, 2, 2)
    drawn = losses.draw(LossConfig(), like, total=15)
    assert drawn.t_student == 14
    assert sorted(set(drawn.t_dis.tolist())) == list(range(14))
    assert sorted(set(drawn.t_hsd.tolist())) == [0, 1, 2]
    assert drawn.noise_hsd.min() >= 0
    assert drawn.noise_dis.max() < 1
    assert drawn.noise.min() < -1
    wide = losses.draw(LossConfig(uniform_sampling=True, noise="gaussian"), like, total=15)
    assert sorted(set(wide.t_hsd.tolist())) == list(range(14))
    assert wide.noise_hsd.min() < -1
    faces = losses.draw(LossConfig(), like, total=4)
    assert sorted(set(faces.t_dis.tolist())) == sorted(set(faces.t_hsd.tolist())) == [0, 1, 2]


def test_the_student_may_start_at_one_of_four_steps() -> None:
    like = torch.zeros(1, 1, 2, 2)
    config = LossConfig(use_fixed_time=False)
    assert {losses.draw(config, like, total=15).t_student for _ in range(100)} == {3, 7, 11, 14}
    with pytest.raises(ValueError, match="from 0 to 3"):
        losses.draw(config, like, total=4)


def test_a_generator_decides_every_draw() -> None:
    like = torch.zeros(3, 4, 8, 8)
    one, two = (
        losses.draw(LossConfig(), like, total=15, generator=torch.Generator().manual_seed(3))
        for _ in range(2)
    )
    for field in dataclasses.fields(one):
        ours, theirs = getattr(one, field.name), getattr(two, field.name)
        assert torch.equal(torch.as_tensor(ours), torch.as_tensor(theirs))


# ---- errors


def test_unknown_switches_are_refused() -> None:
    with pytest.raises(ValueError, match="distill_type 'DMD' is none of HSD, SDS, none"):
        LossConfig(distill_type="DMD")  # type: ignore[arg-type]


def test_the_adversarial_loss_needs_a_discriminator(teacher, scheduler, batch) -> None:
    with pytest.raises(ValueError, match="needs a discriminator"):
        losses.student_losses(
            LossConfig(distill_type="none"), teacher, None, scheduler, z_stu=batch.z_y,
            z_tea=batch.z_y, z_gt=batch.z_gt, z_y=batch.z_y, lq=batch.lq, fake_features=None,
            draws=batch.draws,
        )  # fmt: skip
