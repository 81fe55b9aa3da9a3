"""The keys of diffusers' files, of all its releases."""

from __future__ import annotations

import re

from samerge.adapters.formats.components import in_files

#: The parts of a module that are A and B, as one release or another calls them.
STYLES = (
    ("lora_A.weight", "lora_B.weight"),
    ("lora.down.weight", "lora.up.weight"),
    ("lora_linear_layer.down.weight", "lora_linear_layer.up.weight"),
)
KEY = re.compile(
    r"(?P<module>.+?)\.(?P<part>lora_[AB]\.weight|lora(?:_linear_layer)?\.(?:down|up)\.weight|lora_magnitude_vector"
    r"|lora_magnitude_vector\.weight|alpha)"
)
#: Keys of the time when LoRA was in the attention's processor; of text encoders, whose layers have other names.
_PROCESSOR = re.compile(r"(?P<path>.+?)(?:\.processor)?\.(?P<leaf>to_[qkv]|to_out)_lora\.(?P<part>(?:down|up)\.weight)")
_LEAVES = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}


def today(key: str) -> str:
    """A key of the time when LoRA was in diffusers' attention processors, as one of today."""
    key = in_files(key)
    found = _PROCESSOR.fullmatch(key)
    if found is None:
        return key
    leaf = "to_out.0" if found["leaf"] == "to_out" else found["leaf"]
    if found["path"].endswith(".self_attn"):
        leaf = _LEAVES[found["leaf"]]
    return f"{found['path']}.{leaf}.lora.{found['part']}"
