"""Benchmark, evaluation and export of restoration networks."""

import builtins
import importlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from papers_shared.images import read_image, write_image
from papers_shared.restoration import evaluate, export
from papers_shared.restoration.benchmark import run_benchmark
from papers_shared.restoration.evaluate import DEFAULTS, restore_function, run_eval
from papers_shared.restoration.family import Restorer
from papers_shared.restoration.prepare import open_restorer
from papers_shared.restoration.protocols import add_gaussian_noise, measure
from papers_shared.restoration.restore_commands import BenchmarkConfig, EvalConfig, ExportConfig
from papers_shared.restoration.task import Task

sys.path.insert(0, str(Path(__file__).parent / "scripts"))
toy = importlib.import_module("toy_restoration")


@pytest.fixture
def weights(tmp_path):
    return toy.write(tmp_path / "weights.safetensors", Task("denoise", level=25))


@pytest.fixture
def own(tmp_path):
    """A folder of three pictures."""
    folder = tmp_path / "own"
    folder.mkdir()
    for i in range(3):
        generator = torch.Generator().manual_seed(i)
        write_image(torch.rand(3, 24, 36 - 6 * i, generator=generator), folder / f"{i}.png")
    return folder


def test_options_load_no_torch():
    code = (
        "import sys, papers_shared.restoration.restore_commands as c; c.BenchmarkConfig();"
        "print('torch' in sys.modules)"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert out.stdout.strip() == "False"


# --------------------------------------------------------------------------- benchmark


def benchmark(**options):
    options = {"device": "cpu", "size": (64, 32), "runs": 3, "warmup": 1, **options}
    return run_benchmark(BenchmarkConfig(**options), toy.FAMILY)


def test_a_variant_is_timed_form_by_form(tmp_path, capsys):
    path = tmp_path / "times.json"
    options = {"unmerged": True, "channels_last": True, "threads": 1, "output": path}
    assert benchmark(variant="toy", scale=2, **options) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "toy, x2, result of 64 x 32, float32, 3 runs on CPU" in lines[0]
    assert "1 threads" in lines[0]
    told = json.loads(path.read_text())
    names = ["training form", "merged", "merged, channels last"]
    assert [form["form"] for form in told["forms"]] == names
    assert told["task"]["scale"] == 2
    for line, form in zip(lines[2:5], told["forms"], strict=True):
        assert line.split("  ")[1].strip() == form["form"]
        assert form["p10"] <= form["median"] <= form["p90"]
        assert form["per_second"] == pytest.approx(1 / form["median"])
        # At least the result, 3 x 64 x 32 floats.
        assert form["peak_bytes"] >= 3 * 64 * 32 * 4
    training, merged, _ = told["forms"]
    assert training["speedup"] == 1
    # The merged form lacks the 1x1 convolution of 8 to 8 channels with bias.
    assert training["parameters"] - merged["parameters"] == 8 * 8 + 8


def test_weights_are_timed_and_what_does_not_fit_is_refused(tmp_path, weights, capsys):
    assert benchmark(weights=weights) == 0
    assert "weights.safetensors, x1, result of 64 x 32" in capsys.readouterr().out
    for options, message in (
        ({}, "either --weights or --variant, of which there are: toy, attend"),
        ({"weights": weights, "variant": "toy"}, "either --weights or --variant"),
        ({"weights": weights, "scale": 2}, "--scale is for --variant"),
        ({"variant": "other"}, "no variant 'other'"),
        ({"variant": "toy", "size": (0, 5)}, "expected a positive size"),
        ({"variant": "toy", "runs": 0}, "expected a positive size"),
        ({"variant": "toy", "threads": 0}, "--threads 0"),
    ):
        with pytest.raises(ValueError, match=message):
            benchmark(**options)
    open_restorer(toy.FAMILY, weights).save_pretrained(tmp_path / "merged", merged=True)
    with pytest.raises(ValueError, match="merged already"):
        benchmark(weights=str(tmp_path / "merged"), unmerged=True)


# --------------------------------------------------------------------------- evaluation


def evaluated(weights, data, **options):
    config = EvalConfig(weights=weights, data=[str(d) for d in data], device="cpu", **options)
    return run_eval(config, toy.FAMILY)


def test_own_pictures_are_measured_by_the_protocol(tmp_path, weights, own, capsys):
    path = tmp_path / "scores.json"
    assert evaluated(weights, [own], output=path) == 0
    wanted = measure(
        open_restorer(toy.FAMILY, weights), Task("denoise", level=25), "own", folder=own
    )
    out = capsys.readouterr().out
    assert "colour denoising, sigma 25" in out
    assert f"psnr: {wanted.means['psnr']:.4f}  ({wanted.protocols['psnr']})" in out
    told = json.loads(path.read_text())
    for name, values in told["sets"][str(own)]["images"].items():
        assert values == pytest.approx(wanted.images[name], abs=1e-4)
    assert len(wanted.images) == 3
    assert told["task"]["level"] == 25


def test_other_levels_seeds_and_fewer_pictures(weights, own, capsys):
    assert evaluated(weights, [own], first=2, level=50, seed=3) == 0
    out = capsys.readouterr().out
    assert "sigma 50" in out
    assert "own, 2 pictures" in out
    restorer, mse = open_restorer(toy.FAMILY, weights), []
    for name in "01":
        clean = read_image(own / f"{name}.png")
        noisy = add_gaussian_noise(clean, sigma=50, seed=3)
        with torch.no_grad():
            result = restorer(noisy[None])[0].clamp(0, 1).mul(255).round() / 255
        mse.append((result.double() - clean).square().mean())
    psnr = sum(-10 * torch.log10(m) for m in mse) / 2
    assert f"psnr: {psnr:.3f}" in out
    with pytest.raises(ValueError, match="--first 0"):
        evaluated(weights, [own], first=0)


def test_super_resolution_of_reduced_own_pictures_by_colour_and_by_luma(tmp_path, own, capsys):
    for channels in (3, 1):
        weights = toy.write(tmp_path / f"{channels}.safetensors", Task("sr", 2, channels=channels))
        assert evaluated(weights, [own]) == 0
        out = capsys.readouterr().out
        assert "x2 super-resolution" in out
        assert "psnr: " in out
        assert "own, 3 pictures" in out


def test_tiles_change_little(weights, own):
    restorer = open_restorer(toy.FAMILY, weights)
    x = read_image(own / "0.png")[None]
    with torch.no_grad():
        whole = restore_function(restorer)(x)
    tiled = restore_function(restorer, tile=20)(x)
    assert (tiled - whole.clamp(0, 1)).abs().max() < 1e-5


def test_a_set_that_is_missing_says_where_it_is_had(weights, own, capsys):
    assert evaluated(weights, ["mcmaster", own]) == 1
    captured = capsys.readouterr()
    assert "McMaster is not in the catalogue; get it from" in captured.err
    assert "own, 3 pictures" in captured.out
    with pytest.raises(FileNotFoundError, match=r"none of the test sets.*McMaster"):
        evaluated(weights, ["mcmaster"])
    with pytest.raises(ValueError, match=r"neither a folder nor a test set.*set5"):
        evaluated(weights, ["set55"])


def test_a_named_set_may_lie_in_a_folder_of_the_users(tmp_path, weights, own):
    assert evaluate.named_set(f"kodak24={own}") == ("kodak24", own)
    with pytest.raises(ValueError, match=r"Kodak24 has 24 pictures, .* has 3"):
        evaluated(weights, [f"kodak24={own}"])
    assert all(evaluate.named_set(name)[1] is None for sets in DEFAULTS.values() for name in sets)


# --------------------------------------------------------------------------- export


def restorer(**options):
    task = options.pop("task", Task("sr", 2))
    config = toy.ToyConfig(scale=task.scale, colors=task.channels, **options)
    made = Restorer(toy.network(config), config=config, task=task, family=toy.FAMILY)
    return made.eval()


def test_an_exported_network_with_windows_is_pytorchs_at_any_size(tmp_path):
    onnx = pytest.importorskip("onnx")
    runtime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    weights = toy.write(tmp_path / "w.safetensors", Task("sr", 2), attend=True)
    path = tmp_path / "model.onnx"
    export.run_export(ExportConfig(weights=weights, output=path), toy.FAMILY)
    model = onnx.load(path)
    told = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(told["task"]) == Task("sr", 2).to_dict()
    assert json.loads(told["network"])["deploy"] is True
    assert (told["paper"], told["range"], told["scale"]) == ("papers_shared", "0..1", "2")
    assert "point" not in str([tensor.name for tensor in model.graph.initializer])
    sides = [d.dim_param or d.dim_value for d in model.graph.input[0].type.tensor_type.shape.dim]
    assert sides == ["N", 3, "H", "W"]
    session = runtime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    network = open_restorer(toy.FAMILY, weights)
    for shape in ((1, 3, 1, 1), (2, 3, 2, 7), (1, 3, 4, 4), (3, 3, 5, 33), (1, 3, 40, 23)):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(shape[3]))
        with torch.no_grad():
            wanted = network(x)
        (made,) = session.run(None, {"image": x.numpy()})
        torch.testing.assert_close(torch.from_numpy(made), wanted, atol=1e-5, rtol=0)

    # The same file beside other weights: what the check is for.
    data = path.read_bytes()
    assert export.check_onnx(data, network.merge()) <= 1e-5
    other = restorer(attend=True)
    with torch.no_grad():
        other.network.tail.bias += 0.01
    with pytest.raises(ValueError, match=r"differ by .* of the range on a picture of"):
        export.check_onnx(data, other)


def test_what_differs_is_not_kept(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")

    def core(merged, opset):
        raise ValueError("papers_shared's network cannot be exported: because")

    monkeypatch.setattr(export, "_core", core)
    with pytest.raises(ValueError, match="cannot be exported: because"):
        export.export_onnx(restorer(), tmp_path / "m.onnx")
    assert not list(tmp_path.iterdir())
    for path, opset, message in (
        ("m.onnx", 17, "opset 17: expected 18"),
        ("m.pt", 18, "ends with .onnx"),
    ):
        with pytest.raises(ValueError, match=message):
            export.export_onnx(restorer(), tmp_path / path, opset=opset)
    with pytest.raises(FileNotFoundError, match="create it"):
        export.export_onnx(restorer(), tmp_path / "nothing/m.onnx")


def test_without_onnx_the_command_says_what_to_install(tmp_path, monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.partition(".")[0] == "onnxruntime":
            raise ImportError("no", name=name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ImportError, match=r"onnxruntime: pip install 'papers-shared\[onnx\]'"):
        export.export_onnx(restorer(), tmp_path / "m.onnx")


def test_the_networks_own_alignment_counts():
    made = restorer()
    assert made.multiple == toy.MULTIPLE
    made.network.alignment = 12
    assert made.multiple == 12
    sizes = export.check_sizes(12)
    assert (1, 27, 17) in sizes
    assert any(height < 6 for _, height, _ in sizes)


def test_a_network_with_a_mode_for_export_is_put_into_it():
    network, entered = toy.network(toy.ToyConfig()), []

    class Mode:
        def __enter__(self):
            entered.append(True)

        def __exit__(self, *error):
            entered.append(False)

    with export._export_mode(network):
        pass
    network.export_mode = Mode
    with export._export_mode(network):
        assert entered == [True]
    assert entered == [True, False]
