"""A tiny random model of every family in the table of graphs, made from its configuration alone.

Widths differ wherever the family allows it, so that a weight read the wrong way round cannot fit: hidden 16, query
heads 24 in all (4 x 6) with 2 key/value heads, MLP 20 or 24.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
import torch
import transformers
from transformers import AutoConfig, AutoModel

_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_LM = _SPECIAL | {
    "vocab_size": 40,
    "hidden_size": 16,
    "intermediate_size": 20,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 32,
}
_GQA = _LM | {"num_key_value_heads": 2}
_WIDE = _GQA | {"head_dim": 6}
_GPT2 = {"vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 4, "n_positions": 32, "n_inner": 20} | _SPECIAL
_NEOX = {"vocab_size": 40, "hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4} | _SPECIAL
_T5 = {"vocab_size": 40, "d_model": 16, "d_kv": 6, "d_ff": 20, "num_layers": 2, "num_decoder_layers": 3}
_T5 |= {"num_heads": 4, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}
_BART = _SPECIAL | {
    "vocab_size": 40,
    "d_model": 16,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 20,
    "max_position_embeddings": 32,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": None,
}
_WHISPER = {key: value for key, value in _BART.items() if key != "max_position_embeddings"}
_WHISPER |= {"num_mel_bins": 8, "max_source_positions": 6, "max_target_positions": 32}
_WHISPER |= {"suppress_tokens": None, "begin_suppress_tokens": None}
_IMAGE = {"hidden_size": 16, "intermediate_size": 20, "num_hidden_layers": 2, "num_attention_heads": 4}
_IMAGE |= {"image_size": 8, "patch_size": 4}
_PATCHES = {key: value for key, value in _IMAGE.items() if key != "image_size"} | {"num_patches": 4}
_TOWERS = {"text_config": _LM, "vision_config": _IMAGE}

_EYE = _IMAGE | {"hidden_size": 12, "num_attention_heads": 2}
_QWEN_EYE = {"depth": 2, "hidden_size": 12, "intermediate_size": 20, "num_heads": 2, "patch_size": 4}
_QWEN_VL = _GQA | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 0]}}

_POOLER = ("pooler.dense.weight",)
_SIGLIP_HEAD = ("head.attention.out_proj.weight", "head.mlp.fc1.weight", "head.mlp.fc2.weight")


def _each_layer(*names: str) -> tuple[str, ...]:
    return tuple(name.format(i=i) for i in range(2) for name in names)


@dataclass(frozen=True)
class Animal:
    """A model to build: what it is called in a test, its model_type, its configuration.

    `outside` names every linear weight of the bare model that must NOT be in the graph; all others must be. A name that
    ends in a dot stands for all that begin so.
    """

    name: str
    model_type: str
    config: dict[str, Any] = field(repr=False)
    outside: tuple[str, ...] = ()

    def make_config(self) -> transformers.PretrainedConfig:
        return AutoConfig.for_model(self.model_type, **self.config)

    def build(self) -> transformers.PreTrainedModel:
        """The bare model, with weights large enough that everything matters."""
        torch.manual_seed(0)
        config = self.make_config()
        # AutoModel does not know the text tower of SigLIP.
        make = {
            "siglip_text_model": transformers.SiglipTextModel,
            "siglip2_text_model": transformers.Siglip2TextModel,
        }.get(self.model_type)
        model = AutoModel.from_config(config) if make is None else make(config)
        model = model.float().eval()
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                is_norm = parameter.dim() == 1 and name.endswith("weight")
                parameter.normal_(1.0 if is_norm else 0.0, 0.3)
        return model


def _animals(config: dict[str, Any], *model_types: str, outside: tuple[str, ...] = ()) -> list[Animal]:
    return [Animal(model_type, model_type, config, outside) for model_type in model_types]


_EXPERTS = {"num_experts": 3, "num_experts_per_tok": 2, "moe_intermediate_size": 12}
_LOCAL = {"num_local_experts": 3, "num_experts_per_tok": 2}

ZOO: tuple[Animal, ...] = (
    # ---- decoders
    *_animals(_WIDE, "llama", "mistral", "qwen3", "gemma", "gemma2", "gemma3_text", "ministral", "hunyuan_v1_dense"),
    *_animals(_WIDE, "seed_oss", "ernie4_5", "internlm3", "glm", "glm4"),
    *_animals(_GQA, "qwen2", "olmo", "olmo2", "olmo3", "granite", "smollm3", "exaone4", "cohere", "cohere2"),
    *_animals(_GQA | {"head_dim": 4}, "helium"),
    *_animals(_GQA, "stablelm", "nemotron", "arcee", "apertus", "starcoder2", "phi", "phi3"),
    Animal("cohere with norms", "cohere", _GQA | {"use_qk_norm": True}),
    Animal("stablelm parallel", "stablelm", _GQA | {"use_parallel_residual": True}),
    *_animals(_GPT2, "gpt2"),
    *_animals(_GPT2 | {"rotary_dim": 4}, "gptj"),
    Animal("gpt_bigcode multi-query", "gpt_bigcode", _GPT2 | {"multi_query": True}),
    Animal("gpt_bigcode", "gpt_bigcode", _GPT2 | {"multi_query": False}),
    *_animals(
        {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 20, "num_layers": 2, "num_heads": 4}
        | {"attention_types": [[["global", "local"], 1]], "max_position_embeddings": 32}
        | _SPECIAL,
        "gpt_neo",
    ),
    Animal("gpt_neox", "gpt_neox", _NEOX | {"intermediate_size": 20}),
    Animal("gpt_neox sequential", "gpt_neox", _NEOX | {"intermediate_size": 20, "use_parallel_residual": False}),
    *_animals(_LM, "persimmon"),
    *_animals({"vocab_size": 40, "hidden_size": 16, "n_layer": 2, "n_head": 4} | _SPECIAL, "bloom"),
    Animal("falcon new", "falcon", _NEOX | {"new_decoder_architecture": True, "num_kv_heads": 2}),
    Animal("falcon multi-query", "falcon", _NEOX | {"multi_query": True, "alibi": False}),
    Animal("falcon alibi", "falcon", _NEOX | {"multi_query": False, "alibi": True, "parallel_attn": False}),
    *_animals({"vocab_size": 40, "d_model": 16, "n_heads": 4, "n_layers": 2}, "mpt"),
    Animal(
        "opt",
        "opt",
        _NEOX | {"ffn_dim": 20, "max_position_embeddings": 32, "word_embed_proj_dim": 8, "do_layer_norm_before": False},
        ("decoder.project_in.weight", "decoder.project_out.weight"),
    ),
    *_animals(
        _SPECIAL | {"vocab_size": 40, "d_model": 16, "ffn_dim": 20, "num_layers": 2, "attention_heads": 4}, "xglm"
    ),
    *_animals(_LM, "biogpt"),
    *_animals(_WIDE | _LOCAL, "mixtral", outside=_each_layer("layers.{i}.mlp.gate.weight")),
    *_animals(_GQA | _LOCAL, "phimoe", outside=_each_layer("layers.{i}.mlp.router.weight")),
    *_animals(_GQA | _LOCAL, "granitemoe", outside=_each_layer("layers.{i}.block_sparse_moe.router.weight")),
    *_animals(
        _WIDE | _LOCAL | {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4}},
        "gpt_oss",
        outside=_each_layer("layers.{i}.mlp.router.weight"),
    ),
    *_animals(_WIDE | _EXPERTS, "qwen3_moe", outside=_each_layer("layers.{i}.mlp.gate.weight")),
    *_animals(_GQA | _EXPERTS, "olmoe", outside=_each_layer("layers.{i}.mlp.gate.weight")),
    Animal(
        "qwen2_moe, first layer dense",
        "qwen2_moe",
        _GQA | _EXPERTS | {"shared_expert_intermediate_size": 8, "mlp_only_layers": [0]},
        ("layers.1.mlp.gate.weight", "layers.1.mlp.shared_expert_gate.weight"),
    ),
    # ---- encoders
    *_animals(_LM, "bert", "roberta", "xlm-roberta", "camembert", "ernie", "data2vec-text", outside=_POOLER),
    *_animals(_LM, "megatron-bert", "layoutlm", "mpnet", outside=_POOLER),
    *_animals(_LM | {"embedding_size": 8}, "electra", outside=("embeddings_project.weight",)),
    *_animals(
        {"vocab_size": 40, "dim": 16, "hidden_dim": 20, "n_layers": 2, "n_heads": 4, "max_position_embeddings": 32},
        "distilbert",
    ),
    *_animals(
        _LM | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"]},
        "deberta",
        outside=_each_layer(
            "encoder.layer.{i}.attention.self.pos_proj.weight", "encoder.layer.{i}.attention.self.pos_q_proj.weight"
        ),
    ),
    *_animals(
        _LM | {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "share_att_key": False},
        "deberta-v2",
        outside=_each_layer(
            "encoder.layer.{i}.attention.self.pos_key_proj.weight",
            "encoder.layer.{i}.attention.self.pos_query_proj.weight",
        ),
    ),
    Animal(
        "albert",
        "albert",
        _LM | {"embedding_size": 8, "num_hidden_layers": 4, "num_hidden_groups": 2, "inner_group_num": 2},
        ("encoder.embedding_hidden_mapping_in.weight", "pooler.weight"),
    ),
    *_animals(_LM | {"cls_token_id": 1, "sep_token_id": 2, "mask_token_id": 3}, "modernbert"),
    *_animals(_GQA, "eurobert"),
    # ---- encoders with decoders
    *_animals(_T5, "t5"),
    Animal("flan-t5", "t5", _T5 | {"feed_forward_proj": "gated-gelu"}),
    *_animals(_T5 | {"feed_forward_proj": "gated-gelu"}, "mt5", "umt5"),
    *_animals(_BART, "bart", "mbart", "pegasus", "marian", "m2m_100", "blenderbot", "blenderbot-small", "plbart"),
    *_animals(_WHISPER, "whisper"),
    # ---- images
    *_animals(_IMAGE, "vit", "deit", outside=_POOLER),
    *_animals(_IMAGE, "vit_msn", "ijepa", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip_vision_model"),
    Animal("dinov2 gated", "dinov2", _IMAGE | {"use_swiglu_ffn": True}),
    Animal("dinov3 gated", "dinov3_vit", _IMAGE | {"use_gated_mlp": True}),
    *_animals(_LM, "clip_text_model"),
    *_animals(_LM, "siglip_text_model", "siglip2_text_model", outside=("head.weight",)),
    *_animals(_IMAGE, "siglip_vision_model", outside=_SIGLIP_HEAD),
    *_animals(_PATCHES, "siglip2_vision_model", outside=("embeddings.patch_embedding.weight", *_SIGLIP_HEAD)),
    *_animals(_TOWERS | {"projection_dim": 8}, "clip", outside=("text_projection.weight", "visual_projection.weight")),
    *_animals(
        _TOWERS,
        "siglip",
        outside=("text_model.head.weight", *(f"vision_model.{name}" for name in _SIGLIP_HEAD)),
    ),
    *_animals(
        {"text_config": _LM, "vision_config": _PATCHES},
        "siglip2",
        outside=(
            "text_model.head.weight",
            "vision_model.embeddings.patch_embedding.weight",
            *(f"vision_model.{name}" for name in _SIGLIP_HEAD),
        ),
    ),
    # ---- language models that read images
    *_animals(
        {"text_config": _WIDE | {"model_type": "llama"}, "vision_config": _EYE | {"model_type": "clip_vision_model"}}
        | {"image_token_index": 39},
        "llava",
        "llava_next",
        outside=("vision_tower.", "multi_modal_projector."),
    ),
    *_animals(
        {"text_config": _WIDE | {"model_type": "mistral"}, "vision_config": _EYE | {"model_type": "clip_vision_model"}}
        | {"image_token_index": 39},
        "mistral3",
        outside=("vision_tower.", "multi_modal_projector."),
    ),
    *_animals(
        {"text_config": _WIDE, "vision_config": _EYE, "mm_tokens_per_image": 4}, "gemma3", outside=("vision_tower.",)
    ),
    *_animals(
        {"text_config": _WIDE | {"model_type": "gemma"}, "vision_config": _EYE | {"model_type": "siglip_vision_model"}},
        "paligemma",
        outside=("vision_tower.", "multi_modal_projector."),
    ),
    *_animals(
        {"text_config": _QWEN_VL, "vision_config": _QWEN_EYE | {"embed_dim": 12, "hidden_size": 16, "mlp_ratio": 2}},
        "qwen2_vl",
        outside=("visual.",),
    ),
    *_animals(
        {"text_config": _QWEN_VL, "vision_config": _QWEN_EYE | {"out_hidden_size": 16, "fullatt_block_indexes": [1]}},
        "qwen2_5_vl",
        outside=("visual.",),
    ),
    *_animals(
        {"text_config": _QWEN_VL | {"head_dim": 4}}
        | {"vision_config": _QWEN_EYE | {"out_hidden_size": 16, "deepstack_visual_indexes": [0]}},
        "qwen3_vl",
        outside=("visual.",),
    ),
)


def inputs_of(model: transformers.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Something for the model to read: three tokens, an image, a sound."""
    generator = torch.Generator().manual_seed(1)
    config = model.config
    tokens = torch.tensor([[5, 9, 12]])
    image = torch.randn(1, 3, 8, 8, generator=generator)
    if config.model_type == "whisper":
        sound = torch.randn(1, 8, 12, generator=generator)
        return {"input_features": sound, "decoder_input_ids": tokens}
    if config.model_type.startswith("siglip2"):
        patches = {
            "pixel_values": torch.randn(1, 4, 48, generator=generator),
            "pixel_attention_mask": torch.ones(1, 4),
            "spatial_shapes": torch.tensor([[2, 2]]),
        }
        if config.model_type == "siglip2":
            return {"input_ids": tokens, **patches}
        return patches if model.main_input_name == "pixel_values" else {"input_ids": tokens}
    if config.model_type in ("clip", "siglip"):
        return {"input_ids": tokens, "pixel_values": image}
    if model.main_input_name == "pixel_values" and not hasattr(config, "text_config"):
        return {"pixel_values": image}
    if config.is_encoder_decoder:
        return {"input_ids": torch.tensor([[7, 3]]), "decoder_input_ids": tokens}
    return {"input_ids": tokens}


def saved(model: transformers.PreTrainedModel) -> dict[str, np.ndarray]:
    """What `save_pretrained` writes."""
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return safetensors.numpy.load_file(Path(folder) / "model.safetensors")
