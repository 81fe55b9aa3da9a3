"""Tiny pipelines of diffusers with random weights, and adapters on them."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn


def unet(**settings: Any) -> nn.Module:
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    sizes: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "sample_size": 8,
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 8,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**sizes, **settings}).eval()


def flux() -> nn.Module:
    from diffusers import FluxTransformer2DModel

    torch.manual_seed(0)
    sizes = {"in_channels": 4, "num_layers": 1, "num_single_layers": 1, "attention_head_dim": 16}
    more = {"num_attention_heads": 2, "joint_attention_dim": 16, "pooled_projection_dim": 16}
    return FluxTransformer2DModel(**sizes, **more, axes_dims_rope=[4, 4, 8]).eval()


def sd3() -> nn.Module:
    from diffusers import SD3Transformer2DModel

    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "out_channels": 4, "num_layers": 2}
    sizes |= {
        "attention_head_dim": 8,
        "num_attention_heads": 2,
        "joint_attention_dim": 16,
        "caption_projection_dim": 16,
    }
    return SD3Transformer2DModel(**sizes, pooled_projection_dim=16, pos_embed_max_size=8).eval()


def dit() -> nn.Module:
    from diffusers import DiTTransformer2DModel

    torch.manual_seed(0)
    sizes = {"sample_size": 8, "patch_size": 2, "in_channels": 4, "num_layers": 2, "norm_num_groups": 4}
    return DiTTransformer2DModel(**sizes, num_attention_heads=2, attention_head_dim=8, num_embeds_ada_norm=10).eval()


def text_encoder(projection: bool = False, width: int = 16) -> nn.Module:
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    torch.manual_seed(0)
    sizes = {"hidden_size": width, "intermediate_size": 20, "num_attention_heads": 2, "num_hidden_layers": 2}
    ends = {"bos_token_id": 0, "eos_token_id": 39, "pad_token_id": 1}
    config = CLIPTextConfig(**sizes, **ends, vocab_size=40, max_position_embeddings=16, projection_dim=16)
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config).eval()


def stable_diffusion() -> Any:
    from diffusers import AutoencoderKL, DDIMScheduler, StableDiffusionPipeline

    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
    )
    return StableDiffusionPipeline(
        unet=unet(),
        text_encoder=text_encoder(),
        vae=vae,
        tokenizer=None,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    """Two text encoders, of other widths, and a UNet whose blocks have two layers each, as SDXL's."""
    from diffusers import DDIMScheduler, StableDiffusionXLPipeline

    added = {"addition_embed_type": "text_time", "addition_time_embed_dim": 4}
    model = unet(layers_per_block=2, **added, projection_class_embeddings_input_dim=16 + 6 * 4)
    return StableDiffusionXLPipeline(
        vae=None,
        text_encoder=text_encoder(),
        text_encoder_2=text_encoder(True, 24),
        tokenizer=None,
        tokenizer_2=None,
        unet=model,
        scheduler=DDIMScheduler(clip_sample=False, steps_offset=1),
        add_watermarker=False,
    )


def flux_pipeline() -> Any:
    from diffusers import FlowMatchEulerDiscreteScheduler, FluxPipeline

    parts = {"text_encoder": text_encoder(), "transformer": flux(), "scheduler": FlowMatchEulerDiscreteScheduler()}
    return FluxPipeline(**parts, vae=None, tokenizer=None, text_encoder_2=None, tokenizer_2=None)


def put_on(model: Any, name: str, seed: int, targets: Sequence[str], **settings: Any) -> None:
    """An adapter with random values on a live model, beside those that it has."""
    given = {"r": 4, "lora_alpha": 8, **settings}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")
        config = LoraConfig(target_modules=list(targets), **given)
        if hasattr(model, "add_adapter"):
            model.add_adapter(config, adapter_name=name)
        else:  # a DiT of diffusers
            inject_adapter_in_model(config, model, name)
    generator = torch.Generator().manual_seed(seed)
    for key, parameter in model.named_parameters():
        if f".{name}." in key and "lora_" in key:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.1


def painted(model: Any) -> Tensor:
    """What a UNet, a transformer or a text encoder says to a fixed input."""
    generator = torch.Generator().manual_seed(5)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    kind = type(model).__name__
    with torch.no_grad():
        if kind.startswith("CLIPTextModel"):
            return model(torch.arange(7)[None]).last_hidden_state
        if kind == "FluxTransformer2DModel":
            places = {"img_ids": torch.zeros(6, 3), "txt_ids": torch.zeros(5, 3), "timestep": torch.tensor([0.5])}
            return model(draw(1, 6, 4), draw(1, 5, 16), draw(1, 16), **places, return_dict=False)[0]
        if kind == "SD3Transformer2DModel":
            return model(draw(1, 4, 8, 8), draw(1, 5, 16), draw(1, 16), torch.tensor([3])).sample
        if kind == "DiTTransformer2DModel":
            return model(draw(1, 4, 8, 8), torch.tensor([3]), torch.tensor([1])).sample
        more = {"text_embeds": draw(1, 16), "time_ids": draw(1, 6)} if model.config.addition_embed_type else None
        return model(draw(1, 4, 8, 8), 3, draw(1, 7, 16), added_cond_kwargs=more).sample
