"""What may be built of a stranger's configuration."""

from __future__ import annotations

import socket

import pytest
import transformers

from samerge.weights.harmless import harmless

LLAMA = {"model_type": "llama", "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 10}


@pytest.mark.parametrize(
    "field", ["attn_implementation", "_attn_implementation", "_attn_implementation_internal", "experts_implementation"]
)
def test_a_kernel_that_is_named_is_not_asked_for(monkeypatch, field: str) -> None:
    monkeypatch.setattr(socket.socket, "connect", lambda *_: pytest.fail("it went to the network"))
    given = {**LLAMA, field: "org/kernel", "text_config": {field: "org/kernel"}}
    config = harmless(given, 20)
    assert config == {**LLAMA, "text_config": {}}
    settings = transformers.LlamaConfig(**{k: v for k, v in config.items() if k not in ("model_type", "text_config")})
    settings._attn_implementation = "eager"
    with __import__("torch").device("meta"):
        transformers.LlamaForCausalLM(settings)


def test_what_is_taken_out_and_what_stays() -> None:
    runs = {
        "auto_map": {"AutoModel": "x.Y"},
        "quantization_config": {},
        "use_pretrained_backbone": True,
        "backbone": "b",
    }
    assert harmless({**LLAMA, **runs, "vision_config": runs}, 20) == {**LLAMA, "vision_config": {}}


@pytest.mark.parametrize(
    "given", [{"num_hidden_layers": 521}, {"n_layer": 10**7}, {"text_config": {"num_experts": 10**6}}, {"depth": 10**9}]
)
def test_counts_that_no_checkpoint_of_this_size_has(given: dict[str, object]) -> None:
    assert harmless(given, 20) is None
    assert harmless(dict.fromkeys(given, 3), 20) is not None


def test_the_limit_of_a_window_is_no_number_of_layers() -> None:
    """Qwen2-VL has `max_window_layers` 80 in a model of two layers."""
    config = {"num_hidden_layers": 2, "max_window_layers": 80}
    assert harmless(config, 40) == config
