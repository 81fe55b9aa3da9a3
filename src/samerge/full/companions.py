"""What lies in a model's folder beside its weights: configuration, tokenizer, processor, licence; code on request.

A base's folder is a stranger's. Only files of known names are copied, regular ones that lie inside it: a link out of it
would bring a file of this machine into what is published.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch

from samerge.full.given_models import Opened
from samerge.weights.folder import CONFIG_NAME
from samerge.weights.harmless import may_name_code, without_code
from samerge.weights.inside_peft import unwrap
from samerge.weights.quantised import without_quantization
from samerge.weights.stored import name_of
from samerge.weights.untrusted import Origin, parse_json, read_bytes

#: What models have beside their weights, by name.
_KNOWN = (
    *("generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.json", "vocab.txt", "vocab-src.json", "vocab-tgt.json", "merges.txt", "bpe.codes"),
    *("tokenizer.model", "tokenizer.model.v*", "spiece.model", "sentencepiece.model", "sentencepiece.bpe.model"),
    *("source.spm", "target.spm", "*.tiktoken", "tekken.json", "normalizer.json", "preprocessor_config.json"),
    *("processor_config.json", "image_processor_config.json", "video_preprocessor_config.json"),
    *("feature_extractor_config.json", "chat_template.json", "chat_template.jinja", "modules.json"),
    *("sentence_bert_config.json", "config_sentence_transformers.json", "LICENSE", "LICENSE.*", "NOTICE", "NOTICE.*"),
)
_CODE = "*.py"

#: The largest tokenizers take some 30 MB.
_LARGEST = 100 * 2**20


def write_companions(
    folder: Path,
    base: Opened,
    dtype: torch.dtype | None,
    code: bool = False,
    changes: Mapping[str, Any] | None = None,
) -> list[str]:
    """Write the base's configuration and copy what belongs to it.

    Args:
        folder: the merged model's.
        base: the base.
        dtype: of the output, None for the base's own.
        code: copy the base's own code, too, and what names it.
        changes: fields of the configuration that are others than the base's.

    Returns:
        What the user should know: code that was copied or left out, files that were not copied.

    Raises:
        BaseModelError: a file is larger than such a file may be, or a configuration cannot be read.
    """
    origin = Origin(f"copying what lies beside the weights of {base.name!r}")
    found, notes = _found(base.folder, code) if base.folder is not None else ([], [])
    if base.model is not None:
        inner: Any = unwrap(base.model)
        for part in ("config", "generation_config"):
            settings: Any = getattr(inner, part, None)
            if hasattr(settings, "save_pretrained"):
                settings.save_pretrained(folder)
    for path in found:
        data = read_bytes(path, origin, _LARGEST)
        if not code and path.name.endswith("config.json"):
            data = _without_code(data, path.name, origin)
        (folder / path.name).write_bytes(data)
    config = _settings({**base.source.config, **(changes or {})}, dtype)
    if not code and base.folder is not None:
        config = without_code(config)
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    return notes


def _found(base: Path, code: bool) -> tuple[list[Path], list[str]]:
    """The files to copy, and what there is to say about those of known names that are not."""
    known = [path for path in sorted(base.iterdir()) if any(fnmatchcase(path.name, name) for name in _KNOWN)]
    scripts = sorted(base.glob(_CODE))
    wanted = known + (scripts if code else [])
    inside = [path for path in wanted if _lies_inside(path, base)]
    notes = []
    if len(inside) < len(wanted):
        names = ", ".join(path.name for path in wanted if path not in inside)
        notes.append(f"not copied, since they are no regular files inside the base's folder: {names}")
    if scripts:
        names = ", ".join(path.name for path in scripts)
        notes.append(
            f"the model holds code of its base, which runs when it is loaded with trust_remote_code=True: {names}"
            if code
            else f"the base's own code was left out ({names}); trust_remote_code=True copies it"
        )
    return inside, notes


def _lies_inside(path: Path, folder: Path) -> bool:
    """Whether it is a regular file of the folder, or of the blobs that the Hub's cache keeps for it."""
    real, root = path.resolve(), folder.resolve()
    blobs = root.parent.parent / "blobs" if root.parent.name == "snapshots" else root
    return real.is_file() and (real.is_relative_to(root) or real.parent == blobs)


def _without_code(data: bytes, name: str, origin: Origin) -> bytes:
    """A configuration without the fields that name code; the bytes as they are where there are none."""
    if not may_name_code(data):
        return data
    settings = parse_json(data, name, origin, infinite=True)
    return (json.dumps(without_code(settings), indent=2, ensure_ascii=False) + "\n").encode()


def _settings(config: Mapping[str, Any], dtype: torch.dtype | None) -> dict[str, Any]:
    """The configuration, of the output's dtype, and not quantised."""
    settings = without_quantization(config)
    if dtype is not None:
        keys = [key for key in ("dtype", "torch_dtype") if key in settings] or ["torch_dtype"]
        settings.update(dict.fromkeys(keys, dtype))
    return {k: name_of(v) if isinstance(v, torch.dtype) else v for k, v in settings.items()}
