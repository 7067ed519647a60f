"""The SeeSR variant over diffusers' own networks, tiny and with random weights."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from tad_sr import seesr
from tad_sr.discriminator import TimeAwareDiscriminator
from tad_sr.seesr import Condition, SeeSR

STAND_IN = ("attn2", "controlnet_cond_embedding")  # diffusers' own have no image_attentions


def network(layers: int = 1) -> SeeSR:
    from diffusers import ControlNetModel, UNet2DConditionModel

    unet = UNet2DConditionModel(
        block_out_channels=(8, 16),
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
        layers_per_block=layers,
        cross_attention_dim=8,
        attention_head_dim=4,
        norm_num_groups=4,
        sample_size=8,
    )
    controlnet = ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=(4, 4, 4, 4))
    for parameter in controlnet.parameters():
        if not parameter.any():
            nn.init.normal_(parameter, std=0.1)  # a new ControlNet adds nothing
    return SeeSR(unet, controlnet)


def discriminator() -> TimeAwareDiscriminator:
    return TimeAwareDiscriminator(4, 8, (1, 2), norm_groups=4)


@pytest.fixture
def alphas() -> Tensor:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", num_train_timesteps=1000
    )
    return scheduler.alphas_cumprod


def condition(batch: int = 2) -> Condition:
    return Condition(text=torch.randn(batch, 5, 8), image=torch.rand(batch, 3, 64, 64))


def vae() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        norm_num_groups=4,
    ).eval()


# ---- features and trainable parameters


@pytest.mark.parametrize(("layers", "places"), [(1, [1, 3]), (2, [2, 5])])
def test_features_are_the_decoders_skips_with_the_controlnets_part(layers, places) -> None:
    model, told = network(layers).eval(), condition()
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([20, 880])
    seen: list[Tensor] = []

    def record(_module, _args, kwargs) -> None:
        seen[:0] = kwargs["res_hidden_states_tuple"]

    for block in model.unet.up_blocks:
        block.register_forward_pre_hook(record, with_kwargs=True)
    with torch.no_grad():
        model(x, t, told)
        features = model.features(x, t, told)
    assert len(features) == 2
    for feature, place in zip(features, places, strict=True):
        assert torch.allclose(feature, seen[place], atol=1e-6)


def test_stable_diffusion_2s_features_fit_the_discriminator() -> None:
    from diffusers import ControlNetModel, UNet2DConditionModel

    with torch.device("meta"):
        unet = UNet2DConditionModel(
            cross_attention_dim=1024,
            attention_head_dim=(5, 10, 20, 20),
            use_linear_projection=True,
            sample_size=64,
        )
        model = SeeSR(unet, ControlNetModel.from_unet(unet, load_weights_from_unet=False))
        told = Condition(text=torch.empty(1, 77, 1024), image=torch.empty(1, 3, 512, 512))
        features = model.features(torch.empty(1, 4, 64, 64), torch.zeros(1), told)
        logits = TimeAwareDiscriminator()(features, torch.zeros(1))
    assert [tuple(f.shape[1:]) for f in features] == [
        (320, 64, 64), (640, 32, 32), (1280, 16, 16), (1280, 8, 8),
    ]  # fmt: skip
    assert len(logits) == 4


def test_only_modules_of_the_given_names_are_trained() -> None:
    model = network()
    trained = seesr.select_trainable(model, STAND_IN)
    names = [name for name, _ in trained]
    assert all(".attn2." in name or "controlnet_cond_embedding." in name for name in names)
    assert any(name.startswith("unet.") for name in names)
    assert any(name.startswith("controlnet.") for name in names)
    frozen = [p for p in model.parameters() if not p.requires_grad]
    assert len(frozen) + len(trained) == len(list(model.parameters()))


def test_image_attentions_are_selected_where_they_exist() -> None:
    model = network()
    model.unet.down_blocks[0].image_attentions = nn.ModuleList([nn.Linear(8, 8)])
    names = [name for name, _ in seesr.select_trainable(model)]
    assert "unet.down_blocks.0.image_attentions.0.weight" in names
    assert not any("attn2" in name for name in names)


def test_diffusers_own_networks_have_no_image_attentions() -> None:
    with pytest.raises(ValueError, match=r"'image_attentions'.*name other suffixes"):
        seesr.select_trainable(network())


def test_further_conditions_reach_every_network() -> None:
    model, plain, value = network(), condition(), torch.randn(2, 3, 8)
    told = Condition(plain.text, plain.image, extra={"image_encoder_hidden_states": value})
    reached = []

    def taker(name: str):
        def take(_module, args, kwargs):
            # Taken away again: diffusers' own networks do not know it.
            if kwargs.pop("image_encoder_hidden_states", None) is value:
                reached.append(name)
            return args, kwargs

        return take

    for name in ("unet", "controlnet", "unet.down_blocks.0"):
        model.get_submodule(name).register_forward_pre_hook(taker(name), with_kwargs=True)
    x, t = torch.randn(2, 4, 8, 8), torch.tensor([20, 20])
    model(x, t, told)
    assert reached == ["controlnet", "unet"]
    reached.clear()
    model.features(x, t, told)
    assert sorted(reached) == ["controlnet", "unet.down_blocks.0"]


# ---- conversions and losses


def test_noise_and_clean_latents_convert_into_each_other(alphas) -> None:
    z, noise = torch.randn(2, 2, 4, 8, 8)
    for t in (20, 880, seesr.LAST):
        x = seesr.add_noise(alphas, z, noise, t)
        assert torch.allclose(seesr.clean_latent(alphas, x, noise, t), z, atol=1e-4)
    assert alphas[seesr.LAST].item() == pytest.approx(0.00466, abs=1e-5)


def test_hsd_vanishes_at_the_target(alphas) -> None:
    teacher, z = network(), torch.randn(2, 4, 8, 8)
    same: dict[str, Any] = {"t": 40, "noise": torch.randn_like(z), "condition": condition()}
    zero = seesr.hsd_gradient(teacher, alphas, z_stu=z, z_ref=z.clone(), **same)
    other = seesr.hsd_gradient(teacher, alphas, z_stu=z, z_ref=z + 1, **same)
    assert zero.abs().max() == 0
    assert other.abs().max() > 0


def test_draws_are_multiples_of_20_and_normal() -> None:
    drawn = [seesr.draw(torch.zeros(2, 4, 4, 4)) for _ in range(600)]
    steps = {d.t_dis for d in drawn} | {d.t_hsd for d in drawn}
    assert steps == set(range(20, 900, 20))
    noise = torch.stack([d.noise_hsd for d in drawn])
    assert noise.std().item() == pytest.approx(1, abs=0.02)
    one, two = (
        seesr.draw(torch.zeros(1, 4, 4, 4), generator=torch.Generator().manual_seed(1))
        for _ in range(2)
    )
    assert torch.equal(one.noise_dis, two.noise_dis)
    assert (one.t_dis, one.t_hsd) == (two.t_dis, two.t_hsd)


def setting(alphas: Tensor, suffixes: tuple[str, ...] = STAND_IN) -> dict[str, Any]:
    """Arguments of a training step; the student starts as the teacher's copy."""
    teacher, student, judge = network(), network(), discriminator()
    student.load_state_dict(teacher.state_dict())
    teacher.requires_grad_(False)
    trained = [p for _, p in seesr.select_trainable(student, suffixes)]
    z_gt, z_tch = 0.5 * torch.randn(2, 2, 4, 8, 8)
    return {
        "teacher": teacher,
        "student": student,
        "discriminator": judge,
        "student_optimizer": seesr.make_optimizer(trained),
        "discriminator_optimizer": seesr.make_optimizer(list(judge.parameters())),
        "alphas_cumprod": alphas,
        "batch": seesr.SeeSRBatch(z_gt, z_tch, condition(), condition()),
        "draws": seesr.draw(z_gt),
    }


def test_a_training_step_moves_the_selected_parameters_alone(alphas) -> None:
    given = setting(alphas)
    names = ("teacher", "student", "discriminator")
    before = {n: {k: v.clone() for k, v in given[n].state_dict().items()} for n in names}
    losses = seesr.training_step(seesr.SeeSRLossConfig(), **given)
    moved = {
        name: [
            k for k, v in given[name].state_dict().items() if not torch.equal(v, before[name][k])
        ]
        for name in names
    }
    assert moved["teacher"] == []
    assert moved["discriminator"]
    assert moved["student"]
    assert all(".attn2." in k or "controlnet_cond_embedding." in k for k in moved["student"])
    assert list(losses) == ["GAN_loss_D", "mse", "mse_hsd", "GAN_loss", "loss"]
    parts = losses["mse"] + losses["mse_hsd"] + losses["GAN_loss"]
    assert losses["loss"] == pytest.approx(parts, rel=1e-5)


def test_the_students_gradient_is_clipped(alphas) -> None:
    given = setting(alphas)
    config = seesr.SeeSRLossConfig(regression_weight=100.0, max_grad_norm=0.5)
    seesr.training_step(config, **given)
    gradients = [p.grad for p in given["student"].parameters() if p.grad is not None]
    assert nn.utils.get_total_norm(gradients).item() == pytest.approx(0.5, rel=1e-3)


@pytest.mark.parametrize("target", ["tch", "gt"])
def test_the_reference_is_the_teachers_picture_or_the_ground_truth(alphas, target) -> None:
    given = setting(alphas)
    batch = given["batch"]
    with torch.no_grad():
        noise, told = given["draws"].noise, batch.for_student
        z_stu = seesr.student_output(given["student"], alphas, batch.z_gt, noise, told)
    losses = seesr.training_step(seesr.SeeSRLossConfig(target=target), **given)
    reference = batch.z_tch if target == "tch" else batch.z_gt
    expected = 0.2 * (z_stu - reference).square().mean().item()
    assert losses["mse"] == pytest.approx(expected, rel=1e-5)


def test_an_unknown_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="neither tch nor gt"):
        seesr.SeeSRLossConfig(target="hr")  # type: ignore[arg-type]


def test_regression_alone_is_learnt(alphas) -> None:
    given = setting(alphas, suffixes=("unet",))
    for group in given["student_optimizer"].param_groups:
        group["lr"] = 3e-3
    config = seesr.SeeSRLossConfig(hsd_weight=0.0, gan_weight=0.0)
    errors = [seesr.training_step(config, **given)["mse"] for _ in range(30)]
    assert errors[-1] < 0.7 * errors[0]


# ---- sampling


def test_sizes_follow_the_authors_rule() -> None:
    assert seesr.working_size(200, 131) == (800, 520)
    assert seesr.working_size(64, 64) == (512, 512)
    assert seesr.working_size(100, 50) == (1024, 512)
    assert all(min(seesr.working_size(side, 2 * side)) == 512 for side in range(1, 129))


def test_prompts_end_with_the_fixed_words() -> None:
    assert seesr.prompt("dog, grass") == f"dog, grass, {seesr.PROMPT}"
    assert seesr.prompt("dog", "old photo").startswith("dog, old photo, clean")


def test_a_photo_is_enlarged_to_exactly_four_times(alphas) -> None:
    model, autoencoder = network().eval(), vae()
    pixels = np.random.default_rng(0).integers(0, 255, (20, 33, 3), dtype=np.uint8)
    photo, text = Image.fromarray(pixels), torch.randn(1, 5, 8)
    calls = []
    model.unet.register_forward_hook(lambda *_: calls.append(1))
    one = seesr.enhance(model, autoencoder, alphas, photo, text=text, seed=1)
    assert one.size == (132, 80)
    assert len(calls) == 1
    again, other = (
        seesr.enhance(model, autoencoder, alphas, photo, text=text, seed=seed) for seed in (1, 2)
    )
    assert one.tobytes() == again.tobytes() != other.tobytes()


def test_adain_gives_the_photos_mean_colour(alphas) -> None:
    model, autoencoder = network().eval(), vae()
    ramp = np.tile(np.linspace(100, 160, 128).astype(np.uint8), (128, 1))
    pixels = np.stack([ramp, ramp.T, ramp[:, ::-1] - 50], axis=2)
    photo = Image.fromarray(pixels)
    out = seesr.enhance(model, autoencoder, alphas, photo, text=torch.randn(1, 5, 8))
    means = np.asarray(out).reshape(-1, 3).mean(0)
    assert means == pytest.approx(pixels.reshape(-1, 3).mean(0), abs=2)
