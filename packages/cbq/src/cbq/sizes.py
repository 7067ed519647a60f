"""Exact counts of the models that the paper quantizes: parameters, learned values, bytes. No torch.

Source: sheet 3.4; the models' own configurations.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Host:
    """A decoder: Llama's layout (gated MLP, RMSNorm, no biases) or OPT's (biases, positions).

    Attributes:
        family: ``llama`` or ``opt``.
        hidden, layers, mlp, vocabulary: sizes.
        kv: width of keys and values.
        tied: whether output layer and embedding are one.
        positions: rows of the learned position embedding (OPT: 2048 and an offset of 2).
    """

    family: str
    hidden: int
    layers: int
    mlp: int
    vocabulary: int
    kv: int
    tied: bool = False
    positions: int = 0

    def linears(self) -> list[tuple[int, int]]:
        """(out, in) of the linear layers of a block."""
        h, m, kv = self.hidden, self.mlp, self.kv
        if self.family == "opt":
            return [(h, h)] * 4 + [(m, h), (h, m)]
        return [(h, h), (kv, h), (kv, h), (h, h), (m, h), (m, h), (h, m)]


def _llama(hidden: int, layers: int, mlp: int) -> Host:
    return Host("llama", hidden, layers, mlp, 32000, hidden)


def _opt(hidden: int, layers: int) -> Host:
    return Host("opt", hidden, layers, 4 * hidden, 50272, hidden, tied=True, positions=2050)


HOSTS = {
    "opt_125m": _opt(768, 12),
    "opt_1p3b": _opt(2048, 24),
    "opt_6p7b": _opt(4096, 32),
    "opt_30b": _opt(7168, 48),
    "opt_66b": _opt(9216, 64),
    "llama1_7b": _llama(4096, 32, 11008),
    "llama1_13b": _llama(5120, 40, 13824),
    "llama1_30b": _llama(6656, 60, 17920),
    "llama1_65b": _llama(8192, 80, 22016),
    "smollm2_135m": Host("llama", 576, 30, 1536, 49152, 192, tied=True),
}


def host_parameters(name: str) -> int:
    """All parameters of a host model."""
    host = HOSTS[name]
    h = host.hidden
    block = sum(out * inputs for out, inputs in host.linears())
    if host.family == "opt":
        biases = sum(out for out, _ in host.linears())
        block += biases + 2 * 2 * h  # two LayerNorms
        final = 2 * h
    else:
        block += 2 * h
        final = h
    embeddings = host.vocabulary * h * (1 if host.tied else 2) + host.positions * h
    return host.layers * block + embeddings + final


def linear_weights(name: str) -> int:
    """Weights of the blocks' linear layers; AdaRound learns a logit for each."""
    host = HOSTS[name]
    return host.layers * sum(out * inputs for out, inputs in host.linears())


def lora_rounding_values(name: str, rank: int = 5) -> int:
    """What LoRA-Rounding learns instead: (out + in) rank values a layer."""
    host = HOSTS[name]
    return host.layers * sum((out + inputs) * rank for out, inputs in host.linears())


def quantized_bytes(name: str, bits: int, group: int = -1) -> int:
    """Bytes of the blocks' linear layers: codes, a 16-bit scale and an n-bit zero a group.

    Raises:
        ValueError: the inputs of a layer do not divide into groups.
    """
    host, total = HOSTS[name], 0
    for out, inputs in host.linears():
        size = inputs if group == -1 else group
        if inputs % size:
            raise ValueError(f"{name}: {inputs} inputs do not divide into groups of {group}")
        total += out * inputs * bits + out * (inputs // size) * (16 + bits)
    return host.layers * total // 8
