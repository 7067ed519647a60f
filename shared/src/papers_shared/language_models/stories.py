"""stories260K: a trained Llama of 260,032 parameters (TinyStories), small enough for tests.

Source: karpathy/tinyllamas (MIT), in llama2.c's own file layout.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papers_shared import assets

BOS, EOS = 1, 2
_SPECIAL = ["<none>", "<s>", "</s>"]  # not "<unk>", which WikiText-2 holds as text
_SPACE = "\u2581"  # how tokenizers write a space inside a token


def read_tokenizer(path: Path) -> Any:
    """``tok512.bin`` as transformers' fast tokenizer: byte-pair merges, the best-scored first.

    A space is put in front of a text, as in training; characters without a token become bytes.

    Args:
        path: the longest length, then score, length and bytes of each token.
    """
    from tokenizers import Tokenizer, decoders, normalizers, pre_tokenizers
    from tokenizers.models import BPE
    from tokenizers.processors import TemplateProcessing
    from transformers import PreTrainedTokenizerFast

    data = path.read_bytes()
    pieces, scores, at = list[str](), list[float](), 4
    while at < len(data):
        score, length = struct.unpack_from("<fi", data, at)
        pieces.append(data[at + 8 : at + 8 + length].decode().replace(" ", _SPACE))
        scores.append(score)
        at += 8 + length
    pieces[: len(_SPECIAL)] = _SPECIAL
    ids = {piece: index for index, piece in enumerate(pieces)}
    merges = [
        (-scores[index], piece[:cut], piece[cut:])
        for index, piece in enumerate(pieces[256 + len(_SPECIAL) :], 256 + len(_SPECIAL))
        for cut in range(1, len(piece))
        if piece[:cut] in ids and piece[cut:] in ids
    ]
    ordered = [(left, right) for _, left, right in sorted(merges, key=lambda merge: merge[0])]
    tokenizer = Tokenizer(BPE(ids, ordered, unk_token=_SPECIAL[0], byte_fallback=True))
    tokenizer.normalizer = normalizers.Prepend(" ")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(_SPACE, prepend_scheme="never")
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace(_SPACE, " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    tokenizer.post_processor = TemplateProcessing(
        single=f"{_SPECIAL[BOS]} $A", special_tokens=[(_SPECIAL[BOS], BOS)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=_SPECIAL[BOS], eos_token=_SPECIAL[EOS]
    )


def load_stories(path: Path | None = None) -> tuple[Any, Any]:
    """The network as transformers' Llama, and its tokenizer.

    Args:
        path: folder of the two files; default: the asset ``stories260k``.

    Raises:
        FileNotFoundError: the files are not here; the message says how to get them.
    """
    from transformers import LlamaConfig, LlamaForCausalLM

    files = assets.fetch("stories260k", path=path).files
    raw = np.fromfile(files["stories260K.bin"], dtype=np.uint8)
    dim, hidden, layers, heads, kv_heads, vocabulary, context = raw[:28].view("<i4").tolist()
    values = torch.from_numpy(raw[28:].view("<f4").copy())
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=dim,
        intermediate_size=hidden,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=kv_heads,
        max_position_embeddings=context,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=BOS,
        eos_token_id=EOS,
    )
    head = dim // heads

    def half_split(weight: Tensor) -> Tensor:
        # The file rotates adjacent pairs; transformers rotates the two halves of a head.
        return weight.unflatten(0, (-1, head // 2, 2)).transpose(1, 2).flatten(0, 2)

    kv = kv_heads * head
    shapes = {
        "input_layernorm": (dim,),
        "self_attn.q_proj": (dim, dim),
        "self_attn.k_proj": (kv, dim),
        "self_attn.v_proj": (kv, dim),
        "self_attn.o_proj": (dim, dim),
        "post_attention_layernorm": (dim,),
        "mlp.gate_proj": (hidden, dim),
        "mlp.down_proj": (dim, hidden),
        "mlp.up_proj": (hidden, dim),
    }
    at = 0

    def take(*shape: int) -> Tensor:
        nonlocal at
        count = int(np.prod(shape))
        at += count
        return values[at - count : at].reshape(shape)

    state = {"model.embed_tokens.weight": take(vocabulary, dim)}
    for name, shape in shapes.items():
        for layer, weight in enumerate(take(layers, *shape)):
            rotated = name.endswith(("q_proj", "k_proj"))
            full = f"model.layers.{layer}.{name}.weight"
            state[full] = half_split(weight) if rotated else weight
    state["model.norm.weight"] = take(dim)
    state["lm_head.weight"] = state["model.embed_tokens.weight"]
    model = LlamaForCausalLM(config)
    model.load_state_dict(state)
    return model.eval(), read_tokenizer(files["stories260K_tok512.bin"])
