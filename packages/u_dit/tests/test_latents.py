"""Latents that are written once: sharded, resumed, mirrored, trained on."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
import torch
from PIL import Image

from papers_shared.diffusion import latent_shards
from papers_shared.diffusion.class_options import LatentsConfig
from papers_shared.diffusion.examples import load_examples
from papers_shared.diffusion.latent_shards import write_latents
from papers_shared.diffusion.taef2 import TAEF2
from u_dit.cli import main

MIRROR = pytest.mark.skipif(not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set")


@pytest.fixture
def autoencoder(monkeypatch) -> TAEF2:
    """TAEF2's network with small random weights."""
    made = TAEF2(latent_channels=4).eval().requires_grad_(False)
    monkeypatch.setattr(latent_shards, "load_autoencoder", lambda name: made)
    return made


def test_latents_are_resumed_mirrored_and_trained_on(folder, tmp_path, autoencoder) -> None:
    output = tmp_path / "latents"
    options = LatentsConfig(photos=folder, output=output, image_size=64, shard=5, batch_size=2)
    write_latents(options)
    files = sorted(output.glob("*.safetensors"))
    assert [file.name for file in files] == [f"0000{i}.safetensors" for i in range(3)]
    before = files[0].stat().st_mtime_ns
    files[1].unlink()
    with pytest.raises(ValueError, match=r"lacks 1 of 3 files \(00001"):
        load_examples(str(output))
    write_latents(options)
    assert files[0].stat().st_mtime_ns == before

    examples = load_examples(str(output))
    assert (len(examples), examples.side, examples.channels, examples.vae) == (12, 8, 4, "taef2")
    assert examples.classes == ("blue", "green", "red")
    pictures = load_examples(str(folder), image_size=64)
    for place in (0, 7):
        plain = pictures[place][0]
        both = autoencoder.encode(torch.stack([plain, plain.flip(-1)])).latents
        stored = examples.both()[place][0] * autoencoder.config.scaling_factor**-1
        torch.testing.assert_close(stored, both, rtol=2e-3, atol=2e-3)
        assert torch.equal(examples[place][1], pictures[place][1])

    command = ["train", "--data", str(output), "--output", str(tmp_path / "run"), "--steps", "2"]
    sizes = ["--variant", "U-DiT-mini", "--hidden-size", "8", "--num-heads", "2"]
    more = ["--depth", "1", "1", "1", "1", "1", "--batch-size", "4", "--checkpointing"]
    assert main([*command, *sizes, *more, "--mixed-precision", "bf16"]) == 0


def test_other_settings_need_another_folder(folder, tmp_path, autoencoder) -> None:
    write_latents(LatentsConfig(photos=folder, output=tmp_path / "x", image_size=16))
    with pytest.raises(ValueError, match="begun with another image_size"):
        write_latents(LatentsConfig(photos=folder, output=tmp_path / "x", image_size=32))
    with pytest.raises(ValueError, match="expected a multiple of 8"):
        write_latents(LatentsConfig(photos=folder, output=tmp_path / "y", image_size=20))


def test_two_processes_write_each_its_files(folder, tmp_path, autoencoder, monkeypatch) -> None:
    options = LatentsConfig(photos=folder, output=tmp_path / "x", image_size=16, shard=3)
    monkeypatch.setenv("WORLD_SIZE", "2")
    found = []
    for rank in ("0", "1"):
        monkeypatch.setenv("RANK", rank)
        write_latents(options)
        found.append(sorted(file.stem for file in (tmp_path / "x").glob("*.safetensors")))
    assert found == [["00000", "00002"], ["00000", "00001", "00002", "00003"]]


@MIRROR
def test_taef2_is_the_published_one() -> None:
    """PSNR of Set5's bird after encoding and decoding, as recorded beside the weights."""
    from pathlib import Path

    from papers_shared.diffusion.taef2 import load_taef2

    root = Path(os.environ["PAPERS_MIRROR"].split(os.pathsep)[0]) / "data/sr_bench/Set5"
    file = next(path for path in sorted(root.rglob("*.png")) if path.stem.startswith("bird")
                and Image.open(path).width == 288)  # fmt: skip
    picture = (
        torch.from_numpy(np.array(Image.open(file).convert("RGB"))).permute(2, 0, 1)[None] / 255
    )
    vae = load_taef2()
    decoded = vae.decode(vae.encode(2 * picture - 1).latents).sample / 2 + 0.5
    psnr = -10 * (decoded - picture).square().mean().log10().item()
    assert psnr == pytest.approx(32.463, abs=0.01)
    assert json.loads(vae.to_json_string())["latent_channels"] == 32
