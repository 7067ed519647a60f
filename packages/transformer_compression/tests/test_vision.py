"""The small vision transformer: sizes, data, training, methods in turn, recipes."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any

import pytest
import torch

from papers_shared.complexity import count_macs
from papers_shared.data.cifar10 import Cifar10
from papers_shared.language_models import tiny_llama
from papers_shared.tables.recipe import Context, Needs
from transformer_compression.compressing import compress_in_turn
from transformer_compression.core import Data
from transformer_compression.measure import vision_quality
from transformer_compression.methods import METHODS
from transformer_compression.models import Loaded, vision_data
from transformer_compression.quantize.vision import PREPARED, prepare
from transformer_compression.vision import recipes
from transformer_compression.vision.config import VisionTrainConfig
from transformer_compression.vision.data import accuracy, augment, normalise
from transformer_compression.vision.reproduce import TABLES
from transformer_compression.vision.train import learning_rate_factor, main, train
from transformer_compression.vision.vit import SHIPPED, SMALL_VITS, build_vit, load_vit, path_of

needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)


@pytest.mark.parametrize(
    ("name", "parameters", "mega"), [("vit_128", 1_205_898, 83.6), ("vit_192", 2_693_578, 182.8)]
)
def test_sizes_are_the_sheets(name: str, parameters: int, mega: float) -> None:
    model = build_vit(**SMALL_VITS[name])
    assert sum(p.numel() for p in model.parameters()) == parameters
    macs = count_macs(model, (1, 3, 32, 32), rule="flop_counter").total / 2e6
    assert macs == pytest.approx(mega, abs=0.05)


def test_augmentation_crops_and_flips_as_the_generator_says() -> None:
    images = torch.arange(3 * 8 * 8).reshape(1, 3, 8, 8).to(torch.uint8).repeat(64, 1, 1, 1)
    draw = torch.Generator().manual_seed(0)
    made = augment(images, draw, margin=2)
    assert torch.equal(made, augment(images, torch.Generator().manual_seed(0), margin=2))
    crops = {
        (t, x, f): torch.nn.functional.pad(images[0], (2,) * 4)[:, t : t + 8, x : x + 8]
        for t in range(5) for x in range(5) for f in (0, 1)
    }  # fmt: skip
    crops = {k: v.flip(-1) if k[2] else v for k, v in crops.items()}
    found = {next(k for k, v in crops.items() if torch.equal(v, one)) for one in made}
    assert len(found) > 20
    assert normalise(images).abs().max() < 5


def test_pictures_and_fresh_parts_are_where_the_model_is(monkeypatch: pytest.MonkeyPatch) -> None:
    class Elsewhere(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.empty(1, device="meta"))
            self.seen: list[str] = []

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            self.seen.append(x.device.type)
            return torch.eye(10)[: len(x)]

    # Autocast does not know this device.
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    model = Elsewhere()
    images = torch.zeros(4, 3, 32, 32, dtype=torch.uint8)
    assert accuracy(model, images, torch.arange(4)).right == 4
    assert model.seen == ["meta"]
    for method in PREPARED:
        vit = build_vit(depth=1).to("meta")
        prepare(vit, method, {"bits": 4})
        assert {t.device.type for t in [*vit.parameters(), *vit.buffers()]} == {"meta"}
    for name in ("mixer_local", "moe"):
        vit = METHODS[name](build_vit(depth=1).to("meta"), Data()).model
        assert {t.device.type for t in vit.parameters()} == {"meta"}


@needs_mirror
def test_calibration_pictures_are_where_the_model_is() -> None:
    data = vision_data(Loaded(build_vit(depth=1).to("meta"), "vision"), pictures=40, seed=0)
    assert {t.device.type for t in [*data.batches, *data.labels]} == {"meta"}


@pytest.mark.parametrize("options", [{"image_size": 64}, {"num_classes": 100}])
def test_a_model_of_other_pictures_is_refused(options: dict[str, int]) -> None:
    model = build_vit(depth=1, **options)
    with pytest.raises(ValueError, match="32 x 32 and 10 classes"):
        vision_data(Loaded(model, "vision"), pictures=1, seed=0)
    with pytest.raises(ValueError, match="32 x 32 and 10 classes"):
        vision_quality(model, pictures=1)


def test_the_rate_rises_then_falls_to_zero() -> None:
    rates = [learning_rate_factor(s, steps=100, warmup=0.1) for s in range(101)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[10] == 1
    assert rates[100] == pytest.approx(0)


def few_pictures(split: str, **_: Any) -> Cifar10:
    """Noise in CIFAR-10's place, which takes seconds to unpack."""
    draw = torch.Generator().manual_seed(len(split))
    images = torch.randint(0, 256, (96, 3, 32, 32), generator=draw).to(torch.uint8)
    return Cifar10(images, torch.arange(96) % 10, torch.ones(96, dtype=torch.bool), "mirror", {})


def test_a_training_writes_what_loads_and_goes_on_from(tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr("papers_shared.data.cifar10.load_cifar10", few_pictures)
    tiny = {"embed_dim": 16, "depth": 1, "num_heads": 2, "limit": 64, "batch_size": 32}
    common: Any = {**tiny, "test_limit": 50, "mixed_precision": "no", "log_every": 1}
    first = VisionTrainConfig(output=tmp_path / "a", epochs=2, whole_epochs=1, **common)
    assert train(first) == 0
    model = load_vit(str(tmp_path / "a" / "model.safetensors"))
    assert model(torch.zeros(1, 3, 32, 32)).shape == (1, 10)
    again = VisionTrainConfig(
        output=tmp_path / "b", epochs=1, whole_epochs=0, init=tmp_path / "a/model.safetensors",
        lr=0.0, weight_decay=0.0, **common,
    )  # fmt: skip
    assert train(again) == 0
    same = load_vit(str(tmp_path / "b" / "model.safetensors"))
    torch.testing.assert_close(same.state_dict(), model.state_dict())


def test_wrong_arguments_end_with_2(capsys: Any) -> None:
    assert main(["--no-such-option"]) == 2
    assert main(["--epochs", "1", "--whole-epochs", "3"]) == 2
    assert "whole-epochs" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError):
        load_vit("no-such.safetensors")


# --- methods in turn -----------------------------------------------------------------------------


def bits(*steps: tuple[str, dict[str, Any]]) -> tuple[float, int]:
    """Bits a weight of the blocks' matrices, and how many have codes."""
    tokens = torch.randint(0, 97, (4, 40), generator=torch.Generator().manual_seed(0))
    model, report = compress_in_turn(tiny_llama(), steps, [tokens])
    inside = sum(p.numel() for n, p in model.named_parameters() if "_proj" in n)
    return 8 * (report.bytes - 2 * (report.parameters - inside)) / inside, len(report.quantized)


def test_bytes_of_methods_in_turn_follow_the_rule() -> None:
    four, codes = bits(("gptq", {}))
    assert codes == 21
    # A mask bit and half of the codes; scales and zeros as before.
    for pair in ([("wanda", {}), ("gptq", {})], [("gptq", {}), ("wanda", {})]):
        both, codes = bits(*pair)
        assert codes == 21
        assert both == pytest.approx(four - 4 + 1 + 2, abs=0.01)
    # 2:4: two codes and two places of two bits for four weights.
    both, _ = bits(("wanda_2_4", {}), ("rtn", {}))
    assert both == pytest.approx(four - 4 + 3, abs=0.01)


def test_what_a_later_method_undoes_is_not_counted() -> None:
    after, codes = bits(("gptq", {}), ("sparsegpt", {}))  # corrections leave the grid
    assert codes == 0
    assert after == pytest.approx(9, abs=0.05)


# --- recipes -------------------------------------------------------------------------------------


@pytest.fixture
def small(monkeypatch: Any) -> None:
    """Fresh weights in the shipped network's place, for recipes' plumbing."""

    def fresh() -> Any:
        torch.manual_seed(0)
        return build_vit(embed_dim=32, depth=3, num_heads=4).eval()

    monkeypatch.setattr(recipes, "shipped_vit", fresh)
    monkeypatch.setattr(recipes, "_split", few_pictures)


@pytest.mark.parametrize("row", ["sparsegpt_50_then_gptq_w4", "random_merging_4", "student_ce"])
def test_recipes_give_every_column(small: None, tmp_path: Path, row: str) -> None:
    recipe = TABLES["vision"].recipes[row]
    settings = {**recipe.settings, "pictures": 20, "calibration": 8, "draws": 2, "batch": 4}
    settings |= {"steps": 2, "blocks": (0, 2)} if row == "student_ce" else {}
    found = recipe.run(Context("cpu", 0, tmp_path, settings))
    assert found["top1"].n == 2
    assert found["top1"].std is not None
    assert found["megabytes"].value > 0
    assert found["milliseconds"].value > 0


def test_a_checkout_without_the_network_says_what_to_run(monkeypatch: Any) -> None:
    monkeypatch.setattr(recipes, "path_of", lambda name: Path("nowhere"))
    with pytest.raises(Needs, match=r"vision\.train"):
        recipes.shipped_vit()


@needs_mirror
@pytest.mark.skipif(not path_of(SHIPPED).is_file(), reason=f"{SHIPPED} is not in this checkout")
def test_the_shipped_network_knows_cifar() -> None:
    from transformer_compression.vision.data import exact_test_pictures

    assert accuracy(load_vit(), *exact_test_pictures(limit=300)).percent > 45
