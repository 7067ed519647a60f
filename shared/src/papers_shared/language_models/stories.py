"""stories260K: a trained Llama of 260,032 parameters (TinyStories), small enough for tests.

Source: karpathy/tinyllamas (MIT), in llama2.c's own file layout.
"""

from __future__ import annotations

import struct
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from papers_shared import assets

BOS, EOS = 1, 2
_BYTES = 3  # token 3 + b is the byte b


class StoriesTokenizer:
    """llama2.c's byte-pair tokenizer: the best-scored merge first.

    Args:
        pieces: bytes of each token.
        scores: of each token; a merge with a higher score comes first.
    """

    def __init__(self, pieces: list[bytes], scores: list[float]) -> None:
        self.pieces, self.scores = pieces, scores
        self.ids = {piece: index for index, piece in enumerate(pieces)}
        self.bos_token_id, self.eos_token_id = BOS, EOS
        self._words: dict[str, list[int]] = {}  # a text has few different words

    @classmethod
    def read(cls, path: Path) -> StoriesTokenizer:
        """Read ``tok512.bin``: the longest length, then score, length, bytes of each token."""
        data = path.read_bytes()
        pieces, scores, at = [], [], 4
        while at < len(data):
            score, length = struct.unpack_from("<fi", data, at)
            pieces.append(data[at + 8 : at + 8 + length])
            scores.append(score)
            at += 8 + length
        return cls(pieces, scores)

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids; a space is put in front, as in training. Words are merged one by one."""
        ids = [BOS] if add_special_tokens else []
        words = (" " + text).replace(" ", "\0 ").split("\0")[1:]
        for word in words:
            if word not in self._words:
                self._words[word] = self._merge(word)
            ids += self._words[word]
        return ids

    def _merge(self, word: str) -> list[int]:
        ids: list[int] = []
        for character in word:
            raw = character.encode()
            known = self.ids.get(raw)
            ids += [known] if known is not None else [_BYTES + byte for byte in raw]
        while len(ids) > 1:
            found = [
                (self.scores[merged], -place, merged)
                for place, (a, b) in enumerate(pairwise(ids))
                if (merged := self.ids.get(self.pieces[a] + self.pieces[b])) is not None
            ]
            if not found:
                return ids
            _, place, merged = max(found)
            ids[-place : -place + 2] = [merged]
        return ids

    def decode(self, ids: list[int]) -> str:
        """The text of token ids; special tokens are left out."""
        raw = b"".join(
            bytes([i - _BYTES]) if _BYTES <= i < _BYTES + 256 else self.pieces[i]
            for i in ids
            if i not in (BOS, EOS)
        )
        return raw.decode(errors="replace").removeprefix(" ")


def load_stories(path: Path | None = None) -> tuple[Any, StoriesTokenizer]:
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
    return model.eval(), StoriesTokenizer.read(files["stories260K_tok512.bin"])
