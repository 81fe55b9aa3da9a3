"""Rows of the table: images, and images with text."""

from __future__ import annotations

from samerge.graph.blocks import Attention, Family, FusedMlp, Mlp, OneOf, Stack
from samerge.graph.sublayers import BERT_MLP, FAIRSEQ_ATTENTION, FC_MLP, LLAMA_ATTENTION, LLAMA_MLP, row

_ATTENTION = Attention("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.o_proj")
# As on disk, and in memory before transformers 5.
_OLD_ATTENTION = Attention(
    "attention.attention.query", "attention.attention.key", "attention.attention.value", "attention.output.dense"
)

VISION = (
    row(
        "vit",
        "deit",
        "vit_msn",
        "ijepa",
        layers=("layers.{i}.", "encoder.layer.{i}."),
        attention=OneOf(_ATTENTION, _OLD_ATTENTION),
        mlp=OneOf(FC_MLP, BERT_MLP),
    ),
    row(
        "dinov2",
        "dinov2_with_registers",
        layers="encoder.layer.{i}.",
        attention=OneOf(_ATTENTION, _OLD_ATTENTION),
        mlp=OneOf(FC_MLP, LLAMA_MLP, FusedMlp("mlp.weights_in", "mlp.weights_out")),
    ),
    row(
        "dinov3_vit",
        layers="layer.{i}.",
        attention=_ATTENTION,
        mlp=OneOf(LLAMA_MLP, Mlp(("mlp.up_proj",), "mlp.down_proj")),
    ),
    row(
        "clip_text_model",
        "clip_vision_model",
        "siglip_text_model",
        "siglip_vision_model",
        "siglip2_text_model",
        "siglip2_vision_model",
        layers="encoder.layers.{i}.",
        attention=FAIRSEQ_ATTENTION,
        mlp=FC_MLP,
    ),
    Family(
        ("clip", "siglip", "siglip2"),
        tuple(
            Stack(
                (f"{tower}_model.encoder.layers.{{i}}.",),
                {"attention": FAIRSEQ_ATTENTION, "mlp": FC_MLP},
                name=tower,
                config=f"{tower}_config",
            )
            for tower in ("text", "vision")
        ),
    ),
    # Language models that read images: an image becomes embeddings among those of the words, so the vision tower and
    # its projector come before the embeddings' output. R is that of the language model.
    Family(
        ("gemma3", "llava", "llava_next", "mistral3", "paligemma"),
        (
            Stack(
                ("language_model.layers.{i}.", "language_model.model.layers.{i}."),
                {"attention": LLAMA_ATTENTION, "mlp": LLAMA_MLP},
                config="text_config",
            ),
        ),
    ),
    Family(
        ("qwen2_vl", "qwen2_5_vl", "qwen3_vl"),
        (Stack(("layers.{i}.",), {"attention": LLAMA_ATTENTION, "mlp": LLAMA_MLP}, config="text_config"),),
    ),
)
