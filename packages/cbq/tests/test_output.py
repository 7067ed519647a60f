"""What is written: every format reloads bit-equal; the commands on a real, tiny model."""

from __future__ import annotations

import json
import os
import re

import pytest
import torch

from cbq import train
from cbq.cli import main
from cbq.output import FORMATS, load_quantized, runtimes, save_quantized

needs_mirror = pytest.mark.skipif(
    not os.environ.get("PAPERS_MIRROR"), reason="PAPERS_MIRROR is not set"
)


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("changes", [{}, {"bits": 3, "group": 32, "act_bits": 4}])
def test_a_folder_reloads_with_equal_weights_and_logits(
    segments, kind, changes, quantize_tiny, quantized, tmp_path
) -> None:
    result = quantize_tiny(**changes) if changes else quantized
    if kind == "gptq" and any((w.grid.zero < 1).any() for w in result.weights.values()):
        with pytest.raises(ValueError, match="gptq_v2"):
            save_quantized(result, tmp_path / "out", kind=kind)
        return
    save_quantized(result, tmp_path / "out", kind=kind)
    model = load_quantized(tmp_path / "out")
    state = model.state_dict()
    for name, weight in result.weights.items():
        assert torch.equal(state[f"{name}.weight"], weight.dequantize()), name
    ids = torch.stack(segments)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, result.model(ids).logits)


def test_plain_transformers_reads_the_compressed_tensors(segments, quantized, tmp_path) -> None:
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    save_quantized(quantized, tmp_path / "out")
    config = CompressedTensorsConfig(dequantize=True)
    model = AutoModelForCausalLM.from_pretrained(
        tmp_path / "out", quantization_config=config, dtype=torch.float32
    )
    ids = torch.stack(segments)
    with torch.no_grad():
        assert torch.equal(model(ids).logits, quantized.model(ids).logits)


def test_what_reads_a_folder_is_said_in_one_line() -> None:
    assert "vLLM" not in runtimes("gptq", 3, 16, symmetric=False)
    assert "vLLM" in runtimes("gptq", 4, 16, symmetric=False)
    assert "dequantize=True" in runtimes("compressed-tensors", 4, 16, symmetric=False)
    assert "alone quantize the activations" in runtimes("gptq", 4, 4, symmetric=False)


def refused(capsys, *arguments) -> str:
    assert main([str(a) for a in arguments]) == 2
    lines = capsys.readouterr().err.splitlines()
    (line,) = [line for line in lines if re.match(r"cbq( \w+)?: error", line)]
    return line


@pytest.fixture
def text(tmp_path):
    path = tmp_path / "calib.txt"
    path.write_text("Once upon a time there was a little girl who loved to play outside. " * 40)
    return path


@needs_mirror
def test_quantize_evaluate_and_generate(tmp_path, text, capsys) -> None:
    out = tmp_path / "out"
    options = ["--calib", text, "--segments", 4, "--length", 32, "--steps", 4, "-o", out]
    assert main([str(a) for a in ["quantize", "stories260k", "--bits", "w4a16", *options]]) == 0
    captured = capsys.readouterr()
    assert "read by: transformers" in captured.out
    assert "window 4 of 4" in captured.err
    assert not (out / "work").exists()

    ppl = {}
    for model in ("stories260k", out):
        command = ["eval", model, "--text", text, "--length", 64, "--windows", 4]
        assert main([str(a) for a in command]) == 0
        ppl[model] = float(re.search(r"perplexity ([\d.]+)", capsys.readouterr().out)[1])
    assert ppl["stories260k"] < ppl[out] < 1.5 * ppl["stories260k"]
    described = json.loads((out / "cbq.json").read_text())
    assert described["settings"]["bits"] == 4
    assert len(described["windows"]) == 4

    assert main(["generate", str(out), "Once upon a time", "--tokens", "12"]) == 0
    story = capsys.readouterr().out
    assert story.startswith("Once upon a time")
    assert len(story) > 30
    assert "holds a quantized model" in refused(capsys, "quantize", "stories260k", *options)


@needs_mirror
def test_what_is_wrong_is_said_in_one_line(tmp_path, text, capsys) -> None:
    out = ["-o", tmp_path / "out"]
    base = ["quantize", "stories260k", "--calib", text, *out]
    assert "fewer --segments" in refused(capsys, *base)
    assert "wNaM" in refused(capsys, *base, "--bits", "4")
    assert "is not UTF-8" not in refused(capsys, "quantize", "stories260k", "--calib", "no", *out)
    assert "not understood" in refused(capsys, *base, "--budget", "soon")
    assert "expected some of" in refused(capsys, *base, "--train", "scales")
    assert "--calib is required" in refused(capsys, "quantize", "stories260k", *out)


def test_a_model_without_a_tokenizer_is_refused(quantized, tmp_path, text, capsys) -> None:
    folder = tmp_path / "model"
    save_quantized(quantized, folder, kind="float")
    assert "no tokenizer" in refused(capsys, "eval", folder, "--text", text)


@needs_mirror
def test_a_full_disk_says_what_is_kept(tmp_path, text, capsys, monkeypatch) -> None:
    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(train, "save_quantized", full)
    options = ["--segments", 2, "--length", 16, "--preset", "rtn", "-o", tmp_path / "out"]
    assert main([str(a) for a in ["train", "stories260k", "--calib", text, *options]]) == 2
    assert "make room and start the same command again" in capsys.readouterr().err
    assert (tmp_path / "out" / "work" / "block_4.safetensors").is_file()
