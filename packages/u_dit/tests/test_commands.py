"""Training, sampling and evaluating, as a user does it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from papers_shared.checkpoints import load_state_dict, save_state_dict
from papers_shared.diffusion.class_pipeline import guided_channels
from papers_shared.diffusion.examples import load_examples
from u_dit.cli import main
from u_dit.model import build
from u_dit.official import METADATA, load_checkpoint
from u_dit.pipeline import UDiTModel, UDiTPipeline, as_model, load_pipeline, make_scheduler

from .conftest import TINY

NETWORK = ["--variant", "U-DiT-T-all", "--hidden-size", "8", "--num-heads", "2"]
NETWORK += ["--depth", "1", "1", "1", "1", "1"]


def training(folder: Path, output: Path, steps: int) -> list[str]:
    return [
        *("train", "--data", str(folder), "--image-size", "8", "--output", str(output), *NETWORK),
        *("--steps", str(steps), "--batch-size", "4", "--lr", "0.01", "--ema-decay", "0.5"),
        *("--save-every", "2", "--log-every", "1"),
    ]


def random_network(**changes: object):
    model = build({**TINY, **changes}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model


def pipeline(**changes: object) -> UDiTPipeline:
    made = UDiTPipeline(as_model(random_network(**changes)), None, make_scheduler("ddpm"))
    made.set_progress_bar_config(disable=True)
    return made


def test_a_network_is_trained_resumed_sampled_from_and_measured(folder, tmp_path, capsys) -> None:
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    assert main(training(folder, whole, 4)) == 0
    assert main(training(folder, cut, 2)) == 0
    assert main(training(folder, cut, 4)) == 0
    for name in ("model", "model_ema"):
        first, second = (load_state_dict(run / f"{name}.safetensors") for run in (whole, cut))
        assert all(torch.equal(value, second[key]) for key, value in first.items())
    weights = str(whole / "model_ema.safetensors")
    model, facts = load_checkpoint(weights)
    assert facts["data"] == "pixels"
    assert facts["classes"] == ["blue", "green", "red"]
    assert model.options.num_classes == 3

    for output, extra in (("a", []), ("b", ["--batch-size", "1"])):
        command = ["sample", "--weights", weights, "-o", str(tmp_path / output), "--count", "3"]
        assert main([*command, "--steps", "3", "--classes", "0", "2", *extra]) == 0
    for i in range(3):
        a, b = (np.asarray(Image.open(tmp_path / x / f"{i:06d}.png")).astype(int) for x in "ab")
        assert a.shape == (8, 8, 3)
        assert abs(a - b).max() <= 1

    command = ["sample", "--weights", weights, "-o", str(tmp_path / "each"), "--steps", "2"]
    assert main([*command, "--class", "2", "0", "1", "2", "--cfg", "1"]) == 0
    assert len(list((tmp_path / "each").glob("*.png"))) == 4  # one a class that was named

    small = str(tmp_path / "small.safetensors")
    assert main(["export", weights, "-o", small]) == 0
    assert load_state_dict(small)["latent.0.mlp1.dwconv.weight"].dtype == torch.float16
    command = ["sample", "--weights", small, "-o", str(tmp_path / "c"), "--count", "1"]
    assert main([*command, "--steps", "3", "--classes", "0"]) == 0
    a, c = (np.asarray(Image.open(tmp_path / x / "000000.png")).astype(int) for x in "ac")
    assert abs(a - c).mean() < 2

    capsys.readouterr()
    scores = tmp_path / "scores.json"
    command = ["eval", "--weights", weights, "--data", str(folder), "--output", str(scores)]
    assert main(command) == 0
    assert 0 < json.loads(scores.read_text())["noise_mse"] < 3
    (folder / "green").rename(folder / "grey")
    assert main(command) == 2
    assert "class 1 of the data is 'grey', of the network 'green'" in capsys.readouterr().err
    # The label of one class more would be the network's for no class.
    shutil.copytree(folder / "red", folder / "violet")
    assert main(command) == 2
    assert "the data have 4 classes, the network 3" in capsys.readouterr().err


def test_a_few_examples_of_a_folder_are_of_all_classes(folder) -> None:
    few = load_examples(str(folder), image_size=8, limit=6)
    assert len(few) == 6
    assert set(few.labels.tolist()) == {0, 1, 2}
    again = load_examples(str(folder), image_size=8, limit=6)
    whole = load_examples(str(folder), image_size=8)
    assert torch.equal(few.labels, again.labels)
    same = [i for i in range(len(whole)) if any(torch.equal(whole[i][0], x) for x, _ in few)]
    assert [int(whole.labels[i]) for i in same] == few.labels.tolist()


def test_a_picture_depends_on_its_class_and_seed_alone() -> None:
    made = pipeline()
    options = {"num_inference_steps": 3, "output_type": "latent"}
    three = made([0, 1, 2], seeds=[5, 6, 7], **options).images
    alone = made([1], seeds=[6], **options).images
    torch.testing.assert_close(three[1:2], alone, rtol=1e-4, atol=1e-4)
    other = made([1], seeds=[7], **options).images
    assert (other - alone).abs().max() > 0.1


def test_guidance_is_the_networks_own_on_the_channels_asked_for() -> None:
    made = pipeline(in_channels=4)
    network, labels = made.transformer, torch.tensor([0, 2])
    x, t = torch.randn(2, 4, 8, 8), torch.tensor(500)
    null, steps = torch.tensor([3, 3]), torch.full((4,), 500)
    with torch.no_grad():
        ours = made._predict(x, t, labels, 1.5, 3)
        doubled = torch.cat([x, x])
        theirs = network.forward_with_cfg(doubled, steps, torch.cat([labels, null]), 1.5)[:2]
        plain = network(x, steps[:2], labels)
    torch.testing.assert_close(ours, theirs)
    assert torch.allclose(ours[:, 3:], plain[:, 3:], atol=1e-5)
    assert not torch.allclose(ours[:, :3], plain[:, :3], atol=1e-3)


def test_other_latents_than_the_authors_are_guided_whole() -> None:
    assert [guided_channels(n) for n in (1, 3, 4, 32)] == [1, 3, 3, 32]
    assert guided_channels(32, 4) == 4
    with pytest.raises(ValueError, match="33 channels to guide, expected 1 to 32"):
        guided_channels(32, 33)
    made = pipeline(in_channels=8)
    options = {"seeds": [1], "num_inference_steps": 2, "output_type": "latent"}
    whole = made([0], 4.0, guidance_channels=8, **options).images
    assert torch.equal(made([0], 4.0, **options).images, whole)
    assert not torch.equal(made([0], 4.0, guidance_channels=3, **options).images, whole)


@pytest.mark.parametrize("sampler", ["ddim", "dpm"])
def test_other_samplers_take_the_noise_alone(sampler) -> None:
    made = UDiTPipeline(as_model(random_network()), None, make_scheduler(sampler))
    made.set_progress_bar_config(disable=True)
    images = made([0], 1.0, num_inference_steps=4, seeds=[0], output_type="pt").images
    assert images.shape == (1, 3, 8, 8)
    assert images.isfinite().all()


def test_a_pipeline_is_saved_and_loaded_as_diffusers_does(tmp_path) -> None:
    made = pipeline()
    made.save_pretrained(tmp_path)
    again = load_pipeline(tmp_path)
    assert isinstance(again.transformer, UDiTModel)
    assert again.vae is None
    again.set_progress_bar_config(disable=True)
    options = {"seeds": [1], "num_inference_steps": 2, "output_type": "latent"}
    assert torch.equal(made([2], **options).images, again([2], **options).images)
    other = load_pipeline(tmp_path, sampler="dpm")
    assert isinstance(other.scheduler, type(make_scheduler("dpm")))
    with pytest.raises(ValueError, match="tells its network itself"):
        load_pipeline(tmp_path, variant="U-DiT-S")
    with pytest.raises(FileNotFoundError, match="no folder of an autoencoder"):
        load_pipeline(tmp_path, vae="nowhere")


def test_merged_and_plain_networks_make_the_same_pictures(tmp_path) -> None:
    model = random_network()
    path = tmp_path / "network.safetensors"
    facts = json.dumps({"config": model.options.to_dict(), "data": "pixels"})
    save_state_dict(model.state_dict(), path, metadata={METADATA: facts})
    options = {"seeds": [1], "num_inference_steps": 3, "output_type": "latent"}
    results = []
    for merge in (True, False):
        made = load_pipeline(path, merge=merge)
        made.set_progress_bar_config(disable=True)
        results.append(made([2], **options).images)
    assert (results[0] - results[1]).abs().max() < 1e-3 * results[1].abs().max()


def test_what_cannot_be_sampled_is_refused() -> None:
    made, options = pipeline(), {"num_inference_steps": 2}
    with pytest.raises(ValueError, match=r"expected one or more of 0 \.\. 2"):
        made([3], **options)
    with pytest.raises(ValueError, match="2 seeds for 1 pictures"):
        made([0], seeds=[1, 2], **options)
    with pytest.raises(ValueError, match="cannot be guided"):
        pipeline(class_dropout_prob=0.0)([0], **options)
    with pytest.raises(ValueError, match="need their autoencoder"):
        pipeline(in_channels=4)([0], **options)


def test_latents_are_read_in_the_authors_order(tmp_path) -> None:
    for part in ("features", "labels"):
        (tmp_path / f"imagenet256_{part}").mkdir()
    for value, name in enumerate(("0_0", "0_1", "1_0", "10_0")):
        np.save(tmp_path / f"imagenet256_features/{name}.npy", np.full((1, 4, 8, 8), value / 2))
        np.save(tmp_path / f"imagenet256_labels/{name}.npy", np.array([value + 5]))
    examples = load_examples(str(tmp_path))
    assert (examples.kind, examples.side, examples.channels) == ("latents", 8, 4)
    assert examples.labels.tolist() == [5, 6, 7, 8]
    assert [examples[i][0].mean().item() for i in range(4)] == [0, 0.5, 1, 1.5]
    assert len(examples.classes) == 1000


def test_class_folders_of_latents_are_examples_too(tmp_path) -> None:
    for label in ("a", "b"):
        (tmp_path / label).mkdir()
        np.save(tmp_path / label / "0.npy", np.ones((4, 8, 8), dtype=np.float32))
    examples = load_examples(str(tmp_path), limit=1)
    assert (len(examples), examples.classes, examples.channels) == (1, ("a", "b"), 4)


@pytest.mark.parametrize(
    ("command", "message"),
    [
        (["sample", "--weights", "nothing.pt"], "no checkpoint at nothing.pt"),
        (["train", "--data", "nowhere"], "nowhere is no folder"),
        (["eval"], "give --samples and --reference, or --weights"),
        (["eval", "--samples", "x"], "go together"),
        (["sample", "--weights", "U-DiT-B-400k"], "U-DiT-B-400k.pt"),
    ],
)
def test_errors_say_what_to_do(command, message, capsys) -> None:
    assert main(command) == 2
    assert message in capsys.readouterr().err


def test_a_trained_network_is_fine_tuned_on_other_classes(folder, tmp_path, capsys) -> None:
    assert main(training(folder, tmp_path / "first", 2)) == 0
    fewer = tmp_path / "fewer"
    fewer.mkdir()
    (folder / "red").rename(fewer / "red")
    weights = str(tmp_path / "first/model_ema.safetensors")
    command = training(fewer, tmp_path / "second", 1)
    assert main([*command, "--init", weights, "--batch-size", "2"]) == 0
    assert "y_embedder_1.embedding_table.weight" in capsys.readouterr().out
    before, after = (
        load_state_dict(tmp_path / run / "model.safetensors") for run in ("first", "second")
    )
    assert after["y_embedder_1.embedding_table.weight"].shape[0] == 2
    name = "latent.0.attn1.to_qkv.weight"
    assert (before[name] - after[name]).abs().max() < 0.1
    capsys.readouterr()
    other = [*command[:-1], "1", "--hidden-size", "16", "--init", weights]
    assert main([*other, "--output", str(tmp_path / "third")]) == 2
    assert "is another network" in capsys.readouterr().err


def test_recomputed_activations_give_the_same_gradients() -> None:
    from papers_shared.diffusion.class_train import recompute_blocks

    model = random_network().train()
    x, t, y = torch.randn(2, 3, 8, 8), torch.tensor([3, 500]), torch.tensor([0, 2])
    found = []
    for again in (False, True):
        if again:
            recompute_blocks(model)
        model.zero_grad()
        torch.manual_seed(1)
        model(x, t, y).square().sum().backward()
        found.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    for plain, recomputed in zip(*found, strict=True):
        torch.testing.assert_close(recomputed, plain, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "options", "message"),
    [
        ({}, ["--classes", "3"], "class 3: this network has 0 .. 2"),
        ({"in_channels": 4}, [], "name their autoencoder with --vae"),
        ({"in_channels": 4}, ["--vae", "nowhere"], "nowhere is no folder of an autoencoder"),
    ],
)
def test_wrong_classes_and_missing_autoencoders_are_told(
    changes, options, message, tmp_path, capsys
) -> None:
    model = random_network(**changes)
    path = tmp_path / "network.safetensors"
    facts = json.dumps({"config": model.options.to_dict(), "data": "pixels"})
    save_state_dict(model.state_dict(), path, metadata={METADATA: facts})
    assert main(["sample", "--weights", str(path), *options]) == 2
    assert message in capsys.readouterr().err


def test_data_of_a_side_that_does_not_divide_are_refused(folder, tmp_path, capsys) -> None:
    command = training(folder, tmp_path / "run", 1)
    command[command.index("--image-size") + 1] = "12"
    assert main(command) == 2
    assert "examples of 12x12: U-DiT-T-all needs a multiple of 8" in capsys.readouterr().err
