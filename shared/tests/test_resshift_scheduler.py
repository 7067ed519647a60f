"""ResShift's diffusion: its tables, that forward and backward agree, shorter chains, errors."""

import pytest
import torch

from papers_shared.diffusion.scheduler import CAP, ResShiftScheduler, scheduler_of

FOUR = {"num_train_timesteps": 4, "min_noise_level": 0.2}
KINDS = ("sample", "residual", "epsilon", "epsilon_scale")


def latents(count=3, seed=0):
    """z0, z_y and noise (count, 2, 4, 4), float64."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(3, count, 2, 4, 4, generator=generator, dtype=torch.float64)


def column(values):
    return torch.tensor(values, dtype=torch.float64)


# --------------------------------------------------------------------------- tables


def test_fifteen_steps_have_the_tables_of_the_sheet():
    tables = ResShiftScheduler().tables
    rows = [0, 1, 7, 14]
    for values, expected in (
        (tables.etas.sqrt(), [0.02, 0.117165, 0.475858, 0.99]),
        (tables.etas, [0.0004, 0.013728, 0.226441, 0.9801]),
        (tables.posterior_variance, [0, 0.001553, 0.169415, 0.520675]),
        (tables.coef_sample, [0, 0.029138, 0.750915, 0.842328]),
        (tables.coef_original, [1, 0.970862, 0.249085, 0.157672]),
        ((4 * tables.etas + 1).sqrt(), [1.0008, 1.027088, 1.380494, 2.218197]),
    ):
        torch.testing.assert_close(values[rows], column(expected), atol=6e-7, rtol=0)


def test_the_faces_four_steps_have_the_tables_of_the_sheet():
    tables = ResShiftScheduler(**FOUR).tables
    for values, expected in (
        (tables.etas, [0.01, 0.2705, 0.579703, 0.9801]),
        (tables.posterior_variance, [0, 0.038521, 0.577119, 0.947297]),
        (tables.coef_sample, [0, 0.036969, 0.466619, 0.591473]),
        (tables.coef_original, [1, 0.963031, 0.533381, 0.408527]),
    ):
        torch.testing.assert_close(values, column(expected), atol=6e-7, rtol=0)


def test_the_cap_changes_the_four_step_schedule_only():
    capped = ResShiftScheduler(**FOUR, sqrt_eta_start_cap=CAP)
    assert capped.sqrt_etas[0].item() == pytest.approx(0.001**0.5)
    assert capped.sqrt_etas[-1].item() == pytest.approx(0.99)
    with_cap, without = ResShiftScheduler(sqrt_eta_start_cap=CAP), ResShiftScheduler()
    assert torch.equal(with_cap.sqrt_etas, without.sqrt_etas)


def test_the_first_log_variance_is_the_seconds():
    tables = ResShiftScheduler().tables
    assert tables.posterior_variance[0] == 0
    assert tables.posterior_log_variance[0] == tables.posterior_log_variance[1]
    rest = tables.posterior_log_variance[1:].exp()
    torch.testing.assert_close(rest, tables.posterior_variance[1:])


# --------------------------------------------------------------------------- shorter chains


@pytest.mark.parametrize(
    ("spacing", "steps", "kept"),
    [
        ("leading", 5, [12, 9, 6, 3, 0]),
        ("leading", 4, [11, 7, 3, 0]),
        ("trailing", 5, [14, 11, 8, 5, 2]),
        ("trailing", 1, [14]),
        ("leading", 15, [*range(14, -1, -1)]),
        ("trailing", 15, [*range(14, -1, -1)]),
    ],
)
def test_a_shorter_chain_keeps_evenly_spaced_steps(spacing, steps, kept):
    scheduler = ResShiftScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    assert scheduler.timesteps.tolist() == kept
    assert len(scheduler) == 15


@pytest.mark.parametrize(("spacing", "std"), [("leading", 1.6599), ("trailing", 1.98)])
def test_a_leading_chain_starts_from_less_noise_than_the_full_one(spacing, std):
    scheduler = ResShiftScheduler(timestep_spacing=spacing)
    scheduler.set_timesteps(5)
    z_y, noise = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    start = scheduler.prior_sample(z_y, noise)
    torch.testing.assert_close(start, z_y + std * noise, atol=1e-3, rtol=0)


def test_a_shorter_chain_leaves_training_as_it_was():
    z0, z_y, noise = latents()
    scheduler = ResShiftScheduler()
    before = scheduler.add_noise(z0, noise, 10, z_y=z_y), scheduler.scale_model_input(z0, 10)
    scheduler.set_timesteps(3)
    after = scheduler.add_noise(z0, noise, 10, z_y=z_y), scheduler.scale_model_input(z0, 10)
    assert all(map(torch.equal, before, after))


# --------------------------------------------------------------------------- forward and backward


@pytest.mark.parametrize("steps", [15, 5])
def test_the_posterior_leads_from_one_marginal_to_the_one_before(steps):
    """q(z_t | z0) followed by q(z_{t-1} | z_t, z0) has mean and variance of q(z_{t-1} | z0)."""
    scheduler = ResShiftScheduler()
    scheduler.set_timesteps(steps)
    z0, z_y, _ = latents()
    kappa, etas = 2.0, scheduler.tables.etas
    chain = scheduler.timesteps.tolist()
    for index in range(1, steps):
        t = chain[steps - 1 - index]
        here, before = (etas[i].item() for i in (index, index - 1))
        mean_here = (1 - here) * z0 + here * z_y
        zero, one = torch.zeros_like(z0), torch.ones_like(z0)
        mean = scheduler.step(z0, t, mean_here, noise=zero).prev_sample
        torch.testing.assert_close(mean, (1 - before) * z0 + before * z_y, atol=1e-6, rtol=0)
        added = (scheduler.step(z0, t, mean_here, noise=one).prev_sample - mean).mean().item()
        carried = (scheduler.step(z0, t, mean_here + 1, noise=zero).prev_sample - mean).mean()
        variance = carried.item() ** 2 * kappa**2 * here + added**2
        assert variance == pytest.approx(kappa**2 * before, rel=1e-5)


@pytest.mark.parametrize("spacing", ["leading", "trailing"])
@pytest.mark.parametrize("steps", [15, 4])
def test_the_deterministic_chain_keeps_its_noise_and_ends_at_the_clean_latent(spacing, steps):
    """SinSR: with the true z0 each step lands on the marginal before, with the same noise."""
    scheduler = ResShiftScheduler(algorithm_type="ddim", timestep_spacing=spacing)
    scheduler.set_timesteps(steps)
    z0, z_y, noise = latents()
    chain = scheduler.timesteps.tolist()
    z = scheduler.add_noise(z0, noise, chain[0], z_y=z_y)
    for t, following in zip(chain, [*chain[1:], None], strict=True):
        z = scheduler.step(z0, t, z, z_y).prev_sample
        if following is not None:
            expected = scheduler.add_noise(z0, noise, following, z_y=z_y)
            torch.testing.assert_close(z, expected, atol=1e-6, rtol=0)
    torch.testing.assert_close(z, z0, atol=1e-6, rtol=0)


@pytest.mark.parametrize("steps", [15, 3])
def test_the_stochastic_chain_ends_at_the_predicted_clean_latent_without_noise(steps):
    scheduler = ResShiftScheduler()
    scheduler.set_timesteps(steps)
    z0, z_y, noise = latents()
    z = scheduler.prior_sample(z_y, noise)
    for t in scheduler.timesteps:
        out = scheduler.step(z0, t, z, z_y, generator=torch.Generator().manual_seed(0))
        z = out.prev_sample
    assert torch.equal(z, z0)
    assert torch.equal(out.pred_original_sample, z0)


def test_noise_comes_from_the_generator():
    scheduler, (z0, z_y, z) = ResShiftScheduler(), latents()
    same, again, other = (
        scheduler.step(
            z0, 9, z, z_y, generator=torch.Generator().manual_seed(seed), return_dict=False
        )[0]
        for seed in (1, 1, 2)
    )
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


# --------------------------------------------------------------------------- the network's ends


@pytest.mark.parametrize("kind", KINDS)
def test_every_prediction_type_gives_back_the_clean_latent_from_its_target(kind):
    scheduler = ResShiftScheduler(prediction_type=kind)
    z0, z_y, noise = latents(15)
    steps = torch.arange(15)
    z_t = scheduler.add_noise(z0, noise, steps, z_y=z_y)
    target = scheduler.training_target(z0, z_y, noise, steps)
    original = scheduler.predict_original(target, steps, z_t, z_y)
    torch.testing.assert_close(original, z0, atol=1e-5, rtol=0)
    if kind != "sample":
        assert not torch.allclose(target, z0)


def test_the_noise_in_a_latent_is_found_again():
    scheduler, (z0, z_y, noise) = ResShiftScheduler(), latents(15)
    steps = torch.arange(15)
    z_t = scheduler.add_noise(z0, noise, steps, z_y=z_y)
    found = scheduler.predict_noise(z_t, z0, z_y, steps)
    torch.testing.assert_close(found, noise, atol=1e-5, rtol=0)


def test_steps_of_a_batch_act_on_its_samples():
    scheduler, (z0, z_y, noise) = ResShiftScheduler(), latents()
    steps = torch.tensor([0, 14, 6])
    together = scheduler.add_noise(z0, noise, steps, z_y=z_y)
    scaled = scheduler.scale_model_input(together, steps)
    for i, t in enumerate(steps.tolist()):
        alone = scheduler.add_noise(z0[i], noise[i], t, z_y=z_y[i])
        assert torch.equal(together[i], alone)
        assert torch.equal(scaled[i], scheduler.scale_model_input(alone, t))


@pytest.mark.parametrize("step", [0, 7, 14])
def test_the_networks_input_has_unit_variance_where_the_latent_has(step):
    generator = torch.Generator().manual_seed(0)
    z0, noise = torch.randn(2, 1, 4, 200, 200, generator=generator)
    scheduler = ResShiftScheduler()
    z_t = scheduler.add_noise(z0, noise, step, z_y=z0)
    assert scheduler.scale_model_input(z_t, step).std().item() == pytest.approx(1, abs=0.01)


def test_pixels_are_scaled_by_three_deviations_or_not_at_all():
    sample = torch.ones(1, 3, 2, 2)
    pixels = ResShiftScheduler(latent=False).scale_model_input(sample, 14)
    torch.testing.assert_close(pixels, sample / (1 + 3 * 2 * 0.99))
    assert torch.equal(
        ResShiftScheduler(normalize_input=False).scale_model_input(sample, 14), sample
    )


def test_clipping_keeps_predicted_pixels_in_range():
    scheduler = ResShiftScheduler(clip_sample=True)
    wild = torch.tensor([[[[-3.0, 0.5, 2.0]]]])
    clipped = scheduler.predict_original(wild, 3, wild, None)
    assert clipped.flatten().tolist() == [-1, 0.5, 1]


# --------------------------------------------------------------------------- files, configurations


def test_a_scheduler_survives_saving(tmp_path):
    options = {"timestep_spacing": "trailing", "sqrt_eta_start_cap": CAP, "scale_factor": 1}
    ResShiftScheduler(**FOUR, **options).save_pretrained(tmp_path)
    again = ResShiftScheduler.from_pretrained(tmp_path)
    assert torch.equal(again.sqrt_etas, ResShiftScheduler(**FOUR, **options).sqrt_etas)
    assert {k: again.config[k] for k in options} == options


def test_a_stochastic_configuration_becomes_deterministic_with_one_argument():
    scheduler = ResShiftScheduler.from_config(
        ResShiftScheduler(**FOUR).config, algorithm_type="ddim"
    )
    assert scheduler.config.algorithm_type == "ddim"
    assert len(scheduler) == 4


AUTHORS = {
    "sf": 4,
    "schedule_name": "exponential",
    "schedule_kwargs": {"power": 0.3},
    "etas_end": 0.99,
    "steps": 15,
    "min_noise_level": 0.04,
    "kappa": 2.0,
    "weighted_mse": False,
    "predict_type": "xstart",
    "timestep_respacing": None,
    "scale_factor": 1.0,
    "normalize_input": True,
    "latent_flag": True,
}


def test_the_authors_configuration_is_our_default():
    ours, theirs = ResShiftScheduler(), scheduler_of(AUTHORS)
    assert all(theirs.config[k] == v for k, v in ours.config.items() if not k.startswith("_"))
    respaced = scheduler_of({**AUTHORS, "timestep_respacing": 5})
    assert respaced.timesteps.tolist() == [12, 9, 6, 3, 0]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"schedule_name": "linear"}, "known: exponential"),
        ({"scale_factor": 0.5}, "no release scales its latents"),
        ({"weighted_mse": True}, "weights its loss"),
        ({"predict_type": "v"}, "'v' is none of sample, residual"),
    ],
)
def test_what_no_release_uses_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        scheduler_of({**AUTHORS, **change})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_train_timesteps": 1}, "at least 2"),
        ({"algorithm_type": "dpm"}, "'dpm' is none of ddpm, ddim"),
        ({"timestep_spacing": "linspace"}, "none of leading, trailing"),
        ({"kappa": 0}, "kappa and power must be positive"),
        ({"min_noise_level": 0}, "must rise between 0 and 1"),
        ({"etas_end": 1.0}, "must rise between 0 and 1"),
    ],
)
def test_arguments_without_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        ResShiftScheduler(**options)


@pytest.mark.parametrize("steps", [0, -1, 16])
def test_a_chain_has_as_many_steps_as_the_training_at_most(steps):
    with pytest.raises(ValueError, match=f"from 1 to 15.*got {steps}"):
        ResShiftScheduler().set_timesteps(steps)


def test_one_leading_step_is_refused():
    """It would keep the cleanest step alone; the authors' code fails there, too."""
    with pytest.raises(ValueError, match="trailing"):
        ResShiftScheduler().set_timesteps(1)


def test_a_step_outside_the_chain_is_refused():
    scheduler, (z0, z_y, z) = ResShiftScheduler(), latents()
    scheduler.set_timesteps(5)
    with pytest.raises(ValueError, match=r"timestep 13 is not in this chain: \[12, 9"):
        scheduler.step(z0, 13, z, z_y)


def test_a_missing_low_quality_latent_is_named():
    z0, _, z = latents()
    for scheduler in (
        ResShiftScheduler(algorithm_type="ddim"),
        *(ResShiftScheduler(prediction_type=kind) for kind in KINDS[1:]),
    ):
        with pytest.raises(ValueError, match="needs z_y"):
            scheduler.step(z0, 14, z)
    with pytest.raises(ValueError, match="needs z_y"):
        ResShiftScheduler().add_noise(z0, z, 3)
