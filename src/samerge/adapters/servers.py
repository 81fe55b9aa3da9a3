"""Whether a LoRA adapter can be served by vLLM, SGLang, LoRAX and llama.cpp as it is, and why not.

- vLLM 0.33: rank at most 512, and `--max-lora-rank` to allow it. Patterns and rsLoRA are honoured; embeddings, output
  heads and the trained heads `classifier` and `score` are served; fused experts are read in PEFT's own layout.
- SGLang 0.5.23: one rank and one alpha for all, alpha / r without rsLoRA; q and v together, q wherever k is,
  gate wherever up is; no fused experts, no `added_tokens.json`.
- LoRAX (from its source, not run): one rank in all layers of a type of module, and every layer there, or the type is
  dropped; no experts.
- llama.cpp (as in llama-cpp-python 0.3.36): one alpha for all, alpha / r whatever `use_rslora` says; embeddings are
  converted, fused experts are not.

None of them serves DoRA, aLoRA, QA-LoRA, block-diagonal LoRA, replicated layers, biases, other trained modules, base
weights that an initialisation changed, or adapters of diffusion models. `benchmarks/consumers.py` runs the servers' own
code, as far as it installs on a CPU.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from samerge.adapters.checks import MUTATING
from samerge.adapters.config import pattern_value, scaling
from samerge.adapters.formats.components import is_maker, is_stem
from samerge.adapters.servable import partners
from samerge.options.module_names import expert_of, layer_numbers, module_type

#: What the rules were read from, or run with.
VERSIONS: Mapping[str, str] = {
    "vLLM": "0.33",
    "SGLang": "0.5.23",
    "LoRAX": "its source",
    "llama.cpp": "llama-cpp-python 0.3.36",
}
#: Ranks that vLLM's `--max-lora-rank` may be, and its default.
VLLM_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)
VLLM_DEFAULT = 16
#: Fields that make more of a LoRA than lora_A and lora_B, for no server.
_VARIANTS = {
    "layer_replication": "layer_replication, which no server does to its base",
    "alora_invocation_tokens": "an activated LoRA (aLoRA), which works only behind its invocation tokens",
    "use_qalora": "QA-LoRA, which pools the input before lora_A",
    "use_bdlora": "block-diagonal LoRA (BD-LoRA), whose factors are stored in blocks",
}
#: Parts of names in models of pictures: UNets and diffusion transformers.
_DIFFUSION = re.compile(
    r"(^|\.)(down_blocks|up_blocks|mid_block|(single_)?transformer_blocks|joint_blocks)(\.|$)"
    r"|^text_encoder(_\d)?\.text_model\."
)


@dataclass(frozen=True)
class Served:
    """What an adapter looks like to a server.

    Args:
        config: its `adapter_config.json`.
        ranks: the rank of each adapted module, by name.
        beside: what it has that is neither lora_A nor lora_B, by kind ("embedding", "copies", "head", "biases", "dora",
            "tokens", "other"), in words; empty for a plain LoRA.
        missing: modules of the adapted types in layers that it does not adapt.
        files: names of the files that lie beside it.
    """

    config: Mapping[str, Any]
    ranks: Mapping[str, int]
    beside: Mapping[str, Sequence[str]] = field(default_factory=dict)
    missing: Sequence[str] = ()
    files: Sequence[str] = ()


def servability(adapter: Served) -> dict[str, list[str]]:
    """For each server the reasons why it cannot serve an adapter right; none where it can."""
    common = _common(adapter)
    return {
        server: [
            *common,
            *(words for kind, said in adapter.beside.items() if kind not in _SERVED_TOO[server] for words in said),
            *rule(adapter),
        ]
        for server, rule in _RULES.items()
    }


def hints(adapter: Served) -> list[str]:
    """What must be said to a server for it to serve the adapter."""
    allowed = vllm_rank(max(adapter.ranks.values(), default=0))
    return [f"vLLM: start it with --max-lora-rank {allowed}"] if allowed and allowed > VLLM_DEFAULT else []


def vllm_rank(rank: int) -> int | None:
    """What vLLM's `--max-lora-rank` must be for an adapter of some rank; None where it allows no such rank.

    Example:
        >>> vllm_rank(16), vllm_rank(17), vllm_rank(1000)
        (16, 32, None)
    """
    return next((allowed for allowed in VLLM_RANKS if allowed >= rank), None)


def _common(adapter: Served) -> list[str]:
    found = []
    kind = str(adapter.config.get("peft_type"))
    if kind != "LORA":
        found.append(f"it is a {kind} adapter, not a LoRA")
    initial = str(adapter.config.get("init_lora_weights", True)).lower()
    if initial.startswith((*MUTATING, "loftq")):
        found.append(f"init_lora_weights={initial!r} changed the base weights, which a server does not know")
    found += [f"it is {words}" for name, words in _VARIANTS.items() if adapter.config.get(name)]
    return found + of_pictures(adapter.ranks)


def of_pictures(modules: Iterable[str]) -> list[str]:
    """Why no server of language models serves an adapter of these modules, if they are a diffusion model's."""
    painted = next((m for m in modules if _DIFFUSION.search(m) or is_stem(m) or is_maker(m)), None)
    if painted is None:
        return []
    return [f"it is an adapter of a diffusion model ({painted}), and this server serves language models"]


def _vllm(adapter: Served) -> list[str]:
    rank = max(adapter.ranks.values(), default=0)
    if rank > VLLM_RANKS[-1]:
        return [f"rank {rank} is above {VLLM_RANKS[-1]}, the most that --max-lora-rank allows"]
    return []


def _sglang(adapter: Served) -> list[str]:
    found = []
    config = adapter.config
    for pattern, plain, does in (
        ("rank_pattern", config.get("r"), "has one rank for all layers"),
        ("alpha_pattern", config.get("lora_alpha"), "scales by lora_alpha / r everywhere"),
    ):
        changed = [m for m in adapter.ranks if pattern_value(config.get(pattern), m, plain) != plain]
        if changed:
            found.append(f"does not know {pattern} and {does}, also {changed[0]}")
    if config.get("use_rslora") and any(rank != 1 for rank in adapter.ranks.values()):
        found.append("ignores use_rslora, which makes the update too small")
    lacking = partners(adapter.ranks)
    if lacking:
        found.append(f"stacks q with v and gate with up: {lacking[0]} is not adapted where its partner is")
    found += _experts(adapter, "does not read fused experts")
    if "added_tokens.json" in adapter.files:
        found.append("refuses the added_tokens.json that lies beside it")
    return found


def _lorax(adapter: Served) -> list[str]:
    found = []
    by_type: dict[str, set[int]] = {}
    for module, rank in adapter.ranks.items():
        by_type.setdefault(module_type(module), set()).add(rank)
    for kind, ranks in by_type.items():
        if len(ranks) > 1:
            found.append(f"drops {kind}: its layers have different ranks {sorted(ranks)}")
    found += _experts(adapter, "does not read fused experts")
    missing = sorted({module_type(module) for module in adapter.missing})
    found.extend(f"drops {kind}: some of its layers are not adapted" for kind in missing)
    return found


def _llama_cpp(adapter: Served) -> list[str]:
    config, found = adapter.config, _experts(adapter, "does not convert fused experts")
    if not {"r", "lora_alpha"} <= set(config):
        return found
    for module, rank in adapter.ranks.items():
        theirs, ours = float(config["lora_alpha"]) / rank, scaling(config, module)
        if not math.isclose(theirs, ours, rel_tol=1e-6):
            reason = "has one alpha for all, and scales by alpha / r"
            return [*found, f"{reason}: {module} would be scaled by {theirs:.4g} in place of {ours:.4g}"]
    return found


def _experts(adapter: Served, does: str) -> list[str]:
    stack = next((name for name, expert in map(expert_of, adapter.ranks) if expert is not None), None)
    return [f"{does}: {stack}"] if stack else []


def gaps(modules: Sequence[str]) -> list[str]:
    """Modules that a type lacks in layers where other adapted types have theirs; known without a base.

    Example:
        >>> gaps(["h.0.q", "h.1.q", "h.1.k"])
        ['h.0.k']
    """
    by_type: dict[str, dict[tuple[int, ...], str]] = {}
    for module in modules:
        by_type.setdefault(module_type(module), {})[layer_numbers(module)] = module
    found = []
    stacks: dict[tuple[str, int], set[tuple[int, ...]]] = {}
    for kind, layers in by_type.items():
        for numbers in layers:
            stacks.setdefault((kind.split("*")[0], len(numbers)), set()).add(numbers)
    for kind, layers in by_type.items():
        for numbers in sorted(stacks[kind.split("*")[0], kind.count("*")] - set(layers)):
            pieces = kind.split("*")
            found.append("".join(a + b for a, b in zip(pieces, [*map(str, numbers), ""], strict=True)))
    return sorted(found)


_RULES: dict[str, Callable[[Served], list[str]]] = {
    "vLLM": _vllm,
    "SGLang": _sglang,
    "LoRAX": _lorax,
    "llama.cpp": _llama_cpp,
}
#: What a server takes beside lora_A and lora_B, by kind.
_SERVED_TOO: Mapping[str, frozenset[str]] = {
    "vLLM": frozenset({"embedding", "copies", "head"}),
    "SGLang": frozenset(),
    "LoRAX": frozenset(),
    "llama.cpp": frozenset({"embedding", "copies"}),
}
