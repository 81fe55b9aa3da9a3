"""Rows of the table: text encoders, and encoders with decoders."""

from __future__ import annotations

from samerge.graph.blocks import Attention, Family, FusedAttention, FusedMlp, Mlp, OneOf, Stack
from samerge.graph.sublayers import (
    BERT_MLP,
    FAIRSEQ_ATTENTION,
    FAIRSEQ_CROSS,
    FAIRSEQ_MLP,
    LLAMA_ATTENTION,
    LLAMA_MLP,
    row,
)

# What follows the embeddings and comes before the first layer (Electra's embeddings_project, Albert's
# embedding_hidden_mapping_in) belongs to the embeddings.
ENCODERS = (
    row(
        "bert",
        "roberta",
        "xlm-roberta",
        "camembert",
        "electra",
        "ernie",
        "data2vec-text",
        "megatron-bert",
        "layoutlm",
        layers="encoder.layer.{i}.",
        attention=Attention(
            "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"
        ),
        mlp=BERT_MLP,
    ),
    row(
        "distilbert",
        layers="transformer.layer.{i}.",
        attention=Attention("attention.q_lin", "attention.k_lin", "attention.v_lin", "attention.out_lin"),
        mlp=Mlp(("ffn.lin1",), "ffn.lin2"),
    ),
    row(
        "deberta",
        layers="encoder.layer.{i}.",
        attention=FusedAttention("attention.self.in_proj", "attention.output.dense", "heads"),
        mlp=BERT_MLP,
        outside=(
            "attention.self.pos_proj",
            "attention.self.pos_q_proj",
            "attention.self.head_logits_proj",
            "attention.self.head_weights_proj",
        ),
    ),
    row(
        "deberta-v2",
        layers="encoder.layer.{i}.",
        attention=Attention(
            "attention.self.query_proj",
            "attention.self.key_proj",
            "attention.self.value_proj",
            "attention.output.dense",
        ),
        mlp=BERT_MLP,
        outside=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
    ),
    row(
        "mpnet",
        layers="encoder.layer.{i}.",
        attention=Attention("attention.attn.q", "attention.attn.k", "attention.attn.v", "attention.attn.o"),
        mlp=BERT_MLP,
    ),
    row(
        "albert",
        layers="encoder.albert_layer_groups.{i}.albert_layers.{j}.",
        attention=Attention("attention.query", "attention.key", "attention.value", "attention.dense"),
        mlp=Mlp(("ffn",), "ffn_output"),
        shared=True,
    ),
    row(
        "modernbert",
        layers="layers.{i}.",
        attention=FusedAttention("attn.Wqkv", "attn.Wo", "blocks"),
        mlp=FusedMlp("mlp.Wi", "mlp.Wo"),
    ),
    row("eurobert", layers="layers.{i}.", attention=LLAMA_ATTENTION, mlp=LLAMA_MLP),
)


_T5_ATTENTION = Attention(
    "layer.0.SelfAttention.q", "layer.0.SelfAttention.k", "layer.0.SelfAttention.v", "layer.0.SelfAttention.o"
)
_T5_CROSS = Attention(
    "layer.1.EncDecAttention.q",
    "layer.1.EncDecAttention.k",
    "layer.1.EncDecAttention.v",
    "layer.1.EncDecAttention.o",
    cross=True,
)
_T5_POSITIONS = (
    "layer.0.SelfAttention.relative_attention_bias",
    "layer.1.EncDecAttention.relative_attention_bias",  # an unused relic in the first T5 checkpoints
)


def _t5_mlp(layer: int) -> OneOf:
    at = f"layer.{layer}.DenseReluDense"
    return OneOf(Mlp((f"{at}.wi",), f"{at}.wo"), Mlp((f"{at}.wi_0", f"{at}.wi_1"), f"{at}.wo"))


ENCODER_DECODERS = (
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
                {"attention": FAIRSEQ_ATTENTION, "mlp": FAIRSEQ_MLP},
                depth=("encoder_layers",),
                name="encoder",
            ),
            Stack(
                ("decoder.layers.{i}.",),
                {"attention": FAIRSEQ_ATTENTION, "cross_attention": FAIRSEQ_CROSS, "mlp": FAIRSEQ_MLP},
                depth=("decoder_layers",),
                name="decoder",
            ),
        ),
    ),
)
