"""The table: one row for each family of models.

To add a family, write a row; nothing else changes. A row is checked against the tensors that a checkpoint holds, so a
family that shares the names of a row but has weights of its own fails with a message instead of being misread.
"""

from __future__ import annotations

from collections.abc import Mapping

from samerge.graph.blocks import (
    Attention,
    Experts,
    Family,
    FusedAttention,
    FusedMlp,
    Mlp,
    OneOf,
    Stack,
    StackedExperts,
    Sublayer,
    Together,
)

# ---- sub-layers that several families have in common

_LLAMA_ATTENTION = Attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
_LLAMA_MLP = Mlp(("mlp.gate_proj", "mlp.up_proj"), "mlp.down_proj")
_LLAMA: Mapping[str, Sublayer] = {"attention": _LLAMA_ATTENTION, "mlp": _LLAMA_MLP}

# In memory the experts are stacked; on disk, and in memory before transformers 5, each has its own tensors.
_QWEN_EXPERTS = OneOf(
    StackedExperts("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    Experts(("mlp.experts.{e}.gate_proj", "mlp.experts.{e}.up_proj"), "mlp.experts.{e}.down_proj"),
)
_MIXTRAL_EXPERTS = OneOf(
    StackedExperts("mlp.experts.gate_up_proj", "mlp.experts.down_proj"),
    Experts(("block_sparse_moe.experts.{e}.w1", "block_sparse_moe.experts.{e}.w3"), "block_sparse_moe.experts.{e}.w2"),
)

_BERT: Mapping[str, Sublayer] = {
    "attention": Attention(
        "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"
    ),
    "mlp": Mlp(("intermediate.dense",), "output.dense"),
}

_FAIRSEQ_ATTENTION = Attention("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
_FAIRSEQ_CROSS = Attention(
    "encoder_attn.q_proj", "encoder_attn.k_proj", "encoder_attn.v_proj", "encoder_attn.out_proj", cross=True
)
_FAIRSEQ_MLP = Mlp(("fc1",), "fc2")

_T5_ATTENTION = Attention(*(f"layer.0.SelfAttention.{name}" for name in "qkvo"))
_T5_CROSS = Attention(*(f"layer.1.EncDecAttention.{name}" for name in "qkvo"), cross=True)
_T5_POSITIONS = (
    "layer.0.SelfAttention.relative_attention_bias",
    "layer.1.EncDecAttention.relative_attention_bias",  # an unused relic in the first T5 checkpoints
)


def _t5_mlp(layer: int) -> OneOf:
    at = f"layer.{layer}.DenseReluDense"
    return OneOf(Mlp((f"{at}.wi",), f"{at}.wo"), Mlp((f"{at}.wi_0", f"{at}.wi_1"), f"{at}.wo"))


# Old names (all checkpoints on disk) after the new ones.
_VIT_ATTENTION = OneOf(
    Attention("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj"),
    Attention(
        "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"
    ),
)

_CLIP: Mapping[str, Sublayer] = {"attention": _FAIRSEQ_ATTENTION, "mlp": Mlp(("mlp.fc1",), "mlp.fc2")}


# ---- the rows

_DECODERS = (
    Family(
        (
            "llama",
            "mistral",
            "qwen2",
            "qwen3",
            "gemma",
            "gemma2",
            "gemma3_text",
            "olmo",
            "olmo2",
            "olmo3",
            "granite",
            "smollm3",
            "ministral",
            "seed_oss",
            "exaone4",
            "hunyuan_v1_dense",
        ),
        (Stack(("layers.{i}.",), _LLAMA),),
    ),
    Family(("cohere", "cohere2"), (Stack(("layers.{i}.",), _LLAMA, parallel=True),)),
    Family(("stablelm",), (Stack(("layers.{i}.",), _LLAMA, parallel={"use_parallel_residual": False}),)),
    Family(
        ("starcoder2",),
        (Stack(("layers.{i}.",), {"attention": _LLAMA_ATTENTION, "mlp": Mlp(("mlp.c_fc",), "mlp.c_proj")}),),
    ),
    Family(
        ("phi3",),
        (
            Stack(
                ("layers.{i}.",),
                {
                    "attention": FusedAttention("self_attn.qkv_proj", "self_attn.o_proj", "blocks"),
                    "mlp": FusedMlp("mlp.gate_up_proj", "mlp.down_proj"),
                },
            ),
        ),
    ),
    Family(
        ("phi",),
        (
            Stack(
                ("layers.{i}.",),
                {
                    "attention": Attention(
                        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.dense"
                    ),
                    "mlp": Mlp(("mlp.fc1",), "mlp.fc2"),
                },
                parallel=True,
            ),
        ),
    ),
    Family(
        ("gpt2",),
        (
            Stack(
                ("h.{i}.",),
                {
                    "attention": FusedAttention("attn.c_attn", "attn.c_proj", "blocks", transposed=True),
                    "mlp": Mlp(("mlp.c_fc",), "mlp.c_proj", transposed=True),
                },
            ),
        ),
    ),
    Family(
        ("gptj",),
        (
            Stack(
                ("h.{i}.",),
                {
                    "attention": Attention("attn.q_proj", "attn.k_proj", "attn.v_proj", "attn.out_proj"),
                    "mlp": Mlp(("mlp.fc_in",), "mlp.fc_out"),
                },
                parallel=True,
            ),
        ),
    ),
    Family(
        ("gpt_neox",),
        (
            Stack(
                ("layers.{i}.",),
                {
                    "attention": FusedAttention("attention.query_key_value", "attention.dense", "heads"),
                    "mlp": Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
                },
                parallel={"use_parallel_residual": True},
            ),
        ),
    ),
    *(
        Family(
            (model_type,),
            (
                Stack(
                    ("h.{i}.",),
                    {
                        "attention": FusedAttention("self_attention.query_key_value", "self_attention.dense", "heads"),
                        "mlp": Mlp(("mlp.dense_h_to_4h",), "mlp.dense_4h_to_h"),
                    },
                    parallel=parallel,
                ),
            ),
        )
        for model_type, parallel in (
            ("bloom", False),
            ("falcon", {"new_decoder_architecture": False, "parallel_attn": True}),
        )
    ),
    # project_in stands before the positions are added, project_out after the last layer: neither lies on R's paths.
    Family(("opt",), (Stack(("decoder.layers.{i}.",), {"attention": _FAIRSEQ_ATTENTION, "mlp": _FAIRSEQ_MLP}),)),
    Family(
        ("mixtral",),
        (
            Stack(
                ("layers.{i}.",),
                {"attention": _LLAMA_ATTENTION, "mlp": _MIXTRAL_EXPERTS},
                outside=("mlp.gate", "block_sparse_moe.gate"),
            ),
        ),
    ),
    Family(
        ("qwen2_moe",),
        (
            Stack(
                ("layers.{i}.",),
                {
                    "attention": _LLAMA_ATTENTION,
                    "mlp": OneOf(
                        _LLAMA_MLP,
                        Together(
                            _QWEN_EXPERTS,
                            Mlp(
                                ("mlp.shared_expert.gate_proj", "mlp.shared_expert.up_proj"),
                                "mlp.shared_expert.down_proj",
                            ),
                        ),
                    ),
                },
                outside=("mlp.gate", "mlp.shared_expert_gate"),
            ),
        ),
    ),
    Family(
        ("qwen3_moe", "olmoe"),
        (
            Stack(
                ("layers.{i}.",),
                {"attention": _LLAMA_ATTENTION, "mlp": OneOf(_LLAMA_MLP, _QWEN_EXPERTS)},
                outside=("mlp.gate",),
            ),
        ),
    ),
)

_ENCODERS = (
    # Electra's embeddings_project belongs to the embeddings.
    Family(
        ("bert", "roberta", "xlm-roberta", "camembert", "electra", "ernie", "data2vec-text"),
        (Stack(("encoder.layer.{i}.",), _BERT),),
    ),
    Family(
        ("distilbert",),
        (
            Stack(
                ("transformer.layer.{i}.",),
                {
                    "attention": Attention(
                        "attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"
                    ),
                    "mlp": Mlp(("ffn.lin1",), "ffn.lin2"),
                },
            ),
        ),
    ),
    Family(
        ("deberta",),
        (
            Stack(
                ("encoder.layer.{i}.",),
                {
                    "attention": FusedAttention("attention.self.in_proj", "attention.output.dense", "heads"),
                    "mlp": _BERT["mlp"],
                },
                outside=tuple(
                    f"attention.self.{name}"
                    for name in ("pos_proj", "pos_q_proj", "head_logits_proj", "head_weights_proj")
                ),
            ),
        ),
    ),
    Family(
        ("deberta-v2",),
        (
            Stack(
                ("encoder.layer.{i}.",),
                {
                    "attention": Attention(
                        "attention.self.query_proj",
                        "attention.self.key_proj",
                        "attention.self.value_proj",
                        "attention.output.dense",
                    ),
                    "mlp": _BERT["mlp"],
                },
                outside=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
            ),
        ),
    ),
    Family(
        ("mpnet",),
        (
            Stack(
                ("encoder.layer.{i}.",),
                {"attention": Attention(*(f"attention.attn.{name}" for name in "qkvo")), "mlp": _BERT["mlp"]},
            ),
        ),
    ),
    # embedding_hidden_mapping_in belongs to the embeddings.
    Family(
        ("albert",),
        (
            Stack(
                ("encoder.albert_layer_groups.{i}.albert_layers.{j}.",),
                {
                    "attention": Attention("attention.query", "attention.key", "attention.value", "attention.dense"),
                    "mlp": Mlp(("ffn",), "ffn_output"),
                },
                shared=True,
            ),
        ),
    ),
)

_ENCODER_DECODERS = (
    Family(
        ("t5", "mt5", "umt5"),
        (
            Stack(
                ("encoder.block.{i}.",),
                {"attention": _T5_ATTENTION, "mlp": _t5_mlp(1)},
                depth=("num_layers",),
                name="encoder",
                outside=_T5_POSITIONS,
            ),
            Stack(
                ("decoder.block.{i}.",),
                {"attention": _T5_ATTENTION, "cross_attention": _T5_CROSS, "mlp": _t5_mlp(2)},
                depth=("num_decoder_layers", "num_layers"),
                name="decoder",
                outside=_T5_POSITIONS,
            ),
        ),
    ),
    Family(
        ("bart", "mbart", "pegasus", "marian", "whisper", "m2m_100", "blenderbot", "blenderbot-small", "plbart"),
        (
            Stack(
                ("encoder.layers.{i}.",),
                {"attention": _FAIRSEQ_ATTENTION, "mlp": _FAIRSEQ_MLP},
                depth=("encoder_layers",),
                name="encoder",
            ),
            Stack(
                ("decoder.layers.{i}.",),
                {"attention": _FAIRSEQ_ATTENTION, "cross_attention": _FAIRSEQ_CROSS, "mlp": _FAIRSEQ_MLP},
                depth=("decoder_layers",),
                name="decoder",
            ),
        ),
    ),
)

_VISION = (
    Family(
        ("vit", "deit", "vit_msn", "ijepa"),
        (
            Stack(
                ("layers.{i}.", "encoder.layer.{i}."),
                {
                    "attention": _VIT_ATTENTION,
                    "mlp": OneOf(Mlp(("mlp.fc1",), "mlp.fc2"), Mlp(("intermediate.dense",), "output.dense")),
                },
            ),
        ),
    ),
    Family(
        ("dinov2", "dinov2_with_registers"),
        (
            Stack(
                ("encoder.layer.{i}.",),
                {
                    "attention": _VIT_ATTENTION,
                    "mlp": OneOf(
                        Mlp(("mlp.fc1",), "mlp.fc2"), _LLAMA_MLP, FusedMlp("mlp.weights_in", "mlp.weights_out")
                    ),
                },
            ),
        ),
    ),
    Family(
        ("clip_text_model", "clip_vision_model", "siglip_text_model", "siglip_vision_model"),
        (Stack(("encoder.layers.{i}.",), _CLIP),),
    ),
    Family(
        ("clip", "siglip"),
        tuple(
            Stack((f"{tower}_model.encoder.layers.{{i}}.",), _CLIP, name=tower, config=f"{tower}_config")
            for tower in ("text", "vision")
        ),
    ),
)

FAMILIES: tuple[Family, ...] = (*_DECODERS, *_ENCODERS, *_ENCODER_DECODERS, *_VISION)
"""All rows."""


def families() -> tuple[str, ...]:
    """The `model_type`s that have a row, sorted."""
    return tuple(sorted({model_type for family in FAMILIES for model_type in family.model_types}))


def find_family(model_type: str) -> Family | None:
    """The row of a `model_type`, or None."""
    return next((family for family in FAMILIES if model_type in family.model_types), None)
