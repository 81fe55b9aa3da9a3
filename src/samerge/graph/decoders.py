"""Rows of the table: language models with a decoder alone."""

from __future__ import annotations

from samerge.graph.blocks import Attention, FusedAttention, FusedMlp, Mlp, OneOf, StackedExperts, Together
from samerge.graph.sublayers import (
    FAIRSEQ_ATTENTION,
    FAIRSEQ_MLP,
    FC_MLP,
    LLAMA_ATTENTION,
    LLAMA_MLP,
    MIXTRAL_EXPERTS,
    NEOX_MLP,
    QWEN_EXPERTS,
    row,
)

# fmt: off
_LIKE_LLAMA = (
    "llama", "mistral", "qwen2", "qwen3", "gemma", "gemma2", "gemma3_text", "olmo", "olmo2", "olmo3", "granite",
    "smollm3", "ministral", "seed_oss", "exaone4", "ernie4_5", "hunyuan_v1_dense", "helium", "internlm3",
)
# fmt: on

DECODERS = (
    row(*_LIKE_LLAMA, layers="layers.{i}.", attention=LLAMA_ATTENTION, mlp=LLAMA_MLP),
    row("cohere", "cohere2", layers="layers.{i}.", attention=LLAMA_ATTENTION, mlp=LLAMA_MLP, parallel=True),
    row(
        "stablelm",
        layers="layers.{i}.",
        attention=LLAMA_ATTENTION,
        mlp=LLAMA_MLP,
        parallel={"use_parallel_residual": False},
    ),
    row(
        "nemotron",
        "arcee",
        "apertus",
        layers="layers.{i}.",
        attention=LLAMA_ATTENTION,
        mlp=Mlp(("mlp.up_proj",), "mlp.down_proj"),
    ),
    row("starcoder2", layers="layers.{i}.", attention=LLAMA_ATTENTION, mlp=Mlp(("mlp.c_fc",), "mlp.c_proj")),
    row(
        "phi",
        layers="layers.{i}.",
        attention=Attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"),
        mlp=FC_MLP,
        parallel=True,
    ),
    row(
        "phi3",
        layers="layers.{i}.",
        attention=FusedAttention("self_attn.qkv_proj", "self_attn.o_proj", "blocks"),
        mlp=FusedMlp("mlp.gate_up_proj", "mlp.down_proj"),
    ),
    row(
        "glm",
        "glm4",
        layers="layers.{i}.",
        attention=LLAMA_ATTENTION,
        mlp=FusedMlp("mlp.gate_up_proj", "mlp.down_proj"),
    ),
    row(
        "gpt2",
        layers="h.{i}.",
        attention=FusedAttention("attn.c_attn", "attn.c_proj", "blocks", transposed=True),
        mlp=Mlp(("mlp.c_fc",), "mlp.c_proj", transposed=True),
    ),
    # One key/value head behind all query heads, or each head's q, k, v together: both are the layout "heads".
    row(
        "gpt_bigcode",
        layers="h.{i}.",
        attention=FusedAttention("attn.c_attn", "attn.c_proj", "heads"),
        mlp=Mlp(("mlp.c_fc",), "mlp.c_proj"),
    ),
    row(
        "gpt_neo",
        layers="h.{i}.",
        attention=Attention(
            "attn.attention.q_proj", "attn.attention.k_proj", "attn.attention.v_proj", "attn.attention.out_proj"
        ),
        mlp=Mlp(("mlp.c_fc",), "mlp.c_proj"),
    ),
    row(
        "gptj",
        layers="h.{i}.",
        attention=Attention("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"),
        mlp=Mlp(("mlp.fc_in",), "mlp.fc_out"),
        parallel=True,
    ),
    row(
        "gpt_neox",
        layers="layers.{i}.",
        attention=FusedAttention("attention.query_key_value", "attention.dense", "heads"),
        mlp=NEOX_MLP,
        parallel={"use_parallel_residual": True},
    ),
    row(
        "persimmon",
        layers="layers.{i}.",
        attention=FusedAttention("self_attn.query_key_value", "self_attn.dense", "heads"),
        mlp=NEOX_MLP,
    ),
    row(
        "bloom",
        layers="h.{i}.",
        attention=FusedAttention("self_attention.query_key_value", "self_attention.dense", "heads"),
        mlp=NEOX_MLP,
    ),
    row(
        "falcon",
        layers="h.{i}.",
        attention=FusedAttention("self_attention.query_key_value", "self_attention.dense", "heads"),
        mlp=NEOX_MLP,
        parallel={"new_decoder_architecture": False, "parallel_attn": True},
    ),
    row(
        "mpt",
        layers="blocks.{i}.",
        attention=FusedAttention("attn.Wqkv", "attn.out_proj", "blocks"),
        mlp=Mlp(("ffn.up_proj",), "ffn.down_proj"),
    ),
    # project_in stands before the positions are added, project_out after the last layer: neither is on R's paths.
    row("opt", layers="decoder.layers.{i}.", attention=FAIRSEQ_ATTENTION, mlp=FAIRSEQ_MLP),
    row("xglm", "biogpt", layers="layers.{i}.", attention=FAIRSEQ_ATTENTION, mlp=FAIRSEQ_MLP),
    # ---- mixtures of experts; the routers are outside
    row(
        "mixtral",
        "phimoe",
        layers="layers.{i}.",
        attention=LLAMA_ATTENTION,
        mlp=MIXTRAL_EXPERTS,
        outside=("mlp.gate", "mlp.router", "block_sparse_moe.gate"),
    ),
    row(
        "qwen2_moe",
        layers="layers.{i}.",
        attention=LLAMA_ATTENTION,
        mlp=OneOf(
            LLAMA_MLP,
            Together(
                QWEN_EXPERTS,
                Mlp(("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"), "mlp.shared_expert.down_proj"),
            ),
        ),
        outside=("mlp.gate", "mlp.shared_expert_gate"),
    ),
    row(
        "qwen3_moe",
        "olmoe",
        layers="layers.{i}.",
        attention=LLAMA_ATTENTION,
        mlp=OneOf(LLAMA_MLP, QWEN_EXPERTS),
        outside=("mlp.gate",),
    ),
    row(
        "granitemoe",
        layers="layers.{i}.",
        attention=LLAMA_ATTENTION,
        mlp=OneOf(
            StackedExperts("block_sparse_moe.experts.gate_up_proj", "block_sparse_moe.experts.down_proj"),
            StackedExperts("block_sparse_moe.input_linear.weight", "block_sparse_moe.output_linear.weight"),
        ),
        outside=("block_sparse_moe.router", "block_sparse_moe.router.layer"),
    ),
    row(
        "gpt_oss",
        layers="layers.{i}.",
        attention=LLAMA_ATTENTION,
        mlp=StackedExperts("mlp.experts.gate_up_proj", "mlp.experts.down_proj", transposed=True, interleaved=True),
        outside=("mlp.router",),
    ),
)
