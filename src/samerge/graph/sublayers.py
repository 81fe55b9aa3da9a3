"""Sub-layers and layouts that several rows of the table have in common."""

from __future__ import annotations

from collections.abc import Mapping

from samerge.graph.blocks import Attention, Experts, Family, Mlp, OneOf, Stack, StackedExperts, Sublayer


def row(
    *model_types: str,
    layers: str | tuple[str, ...],
    attention: Sublayer,
    mlp: Sublayer,
    outside: tuple[str, ...] = (),
    parallel: bool | Mapping[str, bool] = False,
    shared: bool = False,
) -> Family:
    """A family of one stack, whose layers are attention and then an MLP; the arguments are those of `Stack`."""
    names = (layers,) if isinstance(layers, str) else layers
    sublayers = {"attention": attention, "mlp": mlp}
    return Family(model_types, (Stack(names, sublayers, outside=outside, parallel=parallel, shared=shared),))


LLAMA_ATTENTION = Attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
LLAMA_MLP = Mlp(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")

# In memory the experts are stacked; on disk, and in memory before transformers 5, each has tensors of its own.
STACKED_EXPERTS = StackedExperts("mlp.experts.gate_up_proj", "mlp.experts.down_proj")
QWEN_EXPERTS = OneOf(
    STACKED_EXPERTS,
    Experts(("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"), "mlp.experts.{e}.down_proj"),
)
MIXTRAL_EXPERTS = OneOf(
    STACKED_EXPERTS,
    Experts(("block_sparse_moe.experts.{e}.w1", "block_sparse_moe.experts.{e}.w3"), "block_sparse_moe.experts.{e}.w2"),
)

# Fairseq's names: BART and what came after it, OPT, CLIP.
FAIRSEQ_ATTENTION = Attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
FAIRSEQ_CROSS = Attention(
    "encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj", "encoder_attn.out_proj", cross=True
)
FAIRSEQ_MLP = Mlp(("fc1",), "fc2")

BERT_MLP = Mlp(("intermediate.dense",), "output.dense")
FC_MLP = Mlp(("mlp.fc1",), "mlp.fc2")
NEOX_MLP = Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h")
