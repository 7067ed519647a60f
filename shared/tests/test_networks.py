"""Published networks: sizes, wrapping, loading, and that released weights give what is recorded."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from papers_shared import checkpoints
from papers_shared._basicsr import basicsr_module
from papers_shared.networks import NETWORKS, SuperResolver, build, load
from papers_shared.networks.elan import _from_windows, _to_windows
from papers_shared.networks.reproduce import TABLES, published_rows
from papers_shared.restoration.benchmarks import SuperResolutionSet
from papers_shared.restoration.protocols import super_resolution
from papers_shared.tables.schema import load as load_reported

needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)
# As the authors count them; ELAN-light's include its frozen shifts.
PARAMETERS = {
    "bsrn_x2": 331_628,
    "bsrn_x3": 340_283,
    "bsrn_x4": 352_400,
    "rlfn_x2": 526_856,
    "rlfn_x4": 543_740,
    "rfdn_aim_x4": 433_448,
    "imdn_baseline_x4": 893_936,
    "efdn_x4": 276_192,
    "carn_m_x2": 414_811,
    "elan_light_x2": 620_916,
    "elan_light_x4": 640_392,
}
THROUGH_SPANDREL = {"dat_light_x2": 553_290, "dat_light_x3": 561_405, "dat_light_x4": 572_766}
THROUGH_BASICSR = {
    "realesrgan_x4plus": 16_697_987,
    "realesr_animevideov3_x4": 621_424,
    "edsr_baseline_x4": 1_517_571,
    "swinir_light_x2": 910_152,
}
OURS = [name for name, entry in NETWORKS.items() if not entry.requires]


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def picture(*size: int) -> Tensor:
    return torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("name", "count"), PARAMETERS.items())
def test_sizes_are_the_published_ones(name: str, count: int) -> None:
    assert parameters(build(name)) == count


def test_sizes_of_networks_through_spandrel() -> None:
    pytest.importorskip("spandrel")
    assert {name: parameters(build(name)) for name in THROUGH_SPANDREL} == THROUGH_SPANDREL
    with torch.inference_mode():
        assert build("span_x4")(picture(16, 20)).shape == (1, 3, 64, 80)


def test_sizes_of_networks_through_basicsr() -> None:
    try:
        basicsr_module("archs.edsr_arch")
    except ImportError as reason:
        pytest.skip(str(reason))
    assert {name: parameters(build(name)) for name in THROUGH_BASICSR} == THROUGH_BASICSR
    with torch.inference_mode():  # sides that are no multiples of the window
        assert build("swinir_light_x2")(picture(13, 18)).shape == (1, 3, 26, 36)


@pytest.mark.parametrize("name", OURS)
def test_any_size_is_enlarged_by_the_scale(name: str) -> None:
    model, scale = build(name), NETWORKS[name].scale
    assert not model.training
    with torch.inference_mode():
        assert model(picture(17, 21)).shape == (1, 3, 17 * scale, 21 * scale)


def test_a_network_sees_its_own_range_and_whole_multiples() -> None:
    seen = []

    class Enlarge(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            seen.append(x)
            return x.repeat_interleave(2, -1).repeat_interleave(2, -2)

    x = picture(6, 9)
    out = SuperResolver(Enlarge(), scale=2, value_range=255.0, multiple=4)(x)
    assert seen[0].shape == (1, 3, 8, 12)
    torch.testing.assert_close(seen[0][..., :6, :9], 255 * x)
    torch.testing.assert_close(seen[0][..., 6, :9], 255 * x[..., 4, :])  # mirrored
    torch.testing.assert_close(out, x.repeat_interleave(2, -1).repeat_interleave(2, -2))


def test_windows_and_back() -> None:
    x = torch.arange(2 * 3 * 8 * 12.0).reshape(2, 3, 8, 12)
    tokens = _to_windows(x, 4)
    assert tokens.shape == (2 * 6, 16, 3)
    assert torch.equal(tokens[1, :, 0], x[0, 0, :4, 4:8].flatten())  # second window of first row
    assert torch.equal(_from_windows(tokens, 4, size=(8, 12)), x)


def test_elan_shares_its_attention_maps() -> None:
    block = build("elan_light_x2").network.get_submodule("body.0")
    first, second = block.get_submodule("gmsa.0"), block.get_submodule("gmsa.1")
    x = torch.rand(1, 60, 16, 16)
    _, maps = first(x)
    assert [m.shape for m in maps] == [(16, 16, 16), (4, 64, 64), (1, 256, 256)]
    assert second(x, maps)[1][0] is maps[0]
    with pytest.raises(ValueError, match="sharing"):
        second(x)


# ------------------------------------------------------------------------------- loading


def test_weights_load_strictly(tmp_path: Path) -> None:
    torch.manual_seed(0)
    state = build("rlfn_x4").network.state_dict()
    checkpoints.save_state_dict(state, tmp_path / "whole.safetensors")
    model = load("rlfn_x4", path=tmp_path / "whole.safetensors")
    assert torch.equal(model.network.state_dict()["conv_1.weight"], state["conv_1.weight"])
    assert not any(p.requires_grad for p in model.parameters())
    del state["block_3.esa.conv4.bias"]
    checkpoints.save_state_dict(state, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=r"part.safetensors \(rlfn_x4\).*block_3.esa.conv4.bias"):
        load("rlfn_x4", path=tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match="does not fit"):
        load("rlfn_x2", path=tmp_path / "whole.safetensors")


def test_of_dat_only_buffers_that_are_computed_may_be_missing(tmp_path: Path) -> None:
    pytest.importorskip("spandrel")
    state = build("dat_light_x4").network.state_dict()
    computed = NETWORKS["dat_light_x4"].recomputed
    kept = {k: v for k, v in state.items() if k.rpartition(".")[2] not in computed}
    assert len(kept) < len(state)
    checkpoints.save_state_dict(kept, tmp_path / "kept.safetensors")
    loaded = load("dat_light_x4", path=tmp_path / "kept.safetensors").network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in state.items())
    del kept["norm.weight"]
    checkpoints.save_state_dict(kept, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match=r"1 missing \(norm.weight\)"):
        load("dat_light_x4", path=tmp_path / "less.safetensors")


def test_unknown_names_and_missing_weights_are_explained() -> None:
    with pytest.raises(ValueError, match="rlfn_x3"):
        load("rlfn_x3")
    with pytest.raises(FileNotFoundError, match="basicsr's model zoo"):
        load("edsr_baseline_x2")


def test_importing_the_networks_loads_no_other_library() -> None:
    code = "import sys, papers_shared.networks; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"spandrel", "basicsr", "torchvision"} & set(out.stdout.split())


# PSNR-Y of Set5's butterfly; the whole set and its published values: table `networks`.
BUTTERFLY = {
    "rlfn_x4": 28.694,
    "bsrn_x4": 29.009,
    "rfdn_aim_x4": 28.644,
    "imdn_baseline_x4": 28.742,
    "efdn_x4": 28.563,
    "carn_m_x4": 27.992,
    "realesr_animevideov3_x4": 23.168,
    "dat_light_x4": 29.284,
}


@needs_mirror
@pytest.mark.parametrize(("name", "psnr"), BUTTERFLY.items())
def test_released_weights_give_the_recorded_psnr(name: str, psnr: float) -> None:
    for module in NETWORKS[name].requires:
        pytest.importorskip(module)
    pair = next(p for p in SuperResolutionSet("set5", 4) if p.name == "butterfly")
    scores = super_resolution(load(name), [pair], scale=4)
    assert scores.means["psnr"] == pytest.approx(psnr, abs=2e-3)


# ------------------------------------------------------------------------------- recipes


def test_printed_values_stand_alike_in_the_registry_and_in_the_table() -> None:
    rows = load_reported(Path(__file__).parents[1] / "reported.yaml").tables["networks"].rows
    assert set(rows) == set(TABLES["networks"].recipes)
    for name, row in rows.items():
        network, _, benchmark = name.rpartition("_")
        published = NETWORKS[network].published.get(benchmark)
        printed = {c: cell.reported[0].value for c, cell in row.cells.items() if cell.reported}
        expected = {"psnr": published.psnr, "ssim": published.ssim} if published else {}
        assert printed == {c: v for c, v in expected.items() if v is not None}, name


def test_recipes_know_what_they_need() -> None:
    recipe = published_rows(["dat_light_x4"], ["bsd100"])["dat_light_x4_bsd100"]
    assert recipe.assets == ("dat_light_x4", "bsd100")
    assert recipe.requires == ("spandrel",)
    assert recipe.seconds > published_rows(["rlfn_x4"], ["set5"])["rlfn_x4_set5"].seconds
    with pytest.raises(ValueError, match="no weights"):
        published_rows(["elan_light_x2"], ["set5"])
    with pytest.raises(ValueError, match="'urban100' is not in the catalogue"):
        published_rows(["rlfn_x4"], ["urban100"])
