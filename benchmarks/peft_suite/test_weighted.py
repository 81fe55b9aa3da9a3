"""PEFT's helper `_test_weighted_combination_of_adapters` on tiny local models of four families.

It is run from PEFT's `tests` folder, whose `testing_common` it takes the helper from. PEFT's own calls of it load tiny
models from the Hub; these are the same kinds of model, random, and need no network.
"""

from __future__ import annotations

from contextlib import nullcontext

import pytest
import torch
import transformers
from peft import LoraConfig

from . import testing_common
from .testing_common import PeftCommonTester

# No dimension is below 20, the largest rank of the helper: PEFT's SVD types break above min(d_in, d_out).
_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
IDS = torch.tensor([[1, 1, 1], [1, 2, 1]])
MASK = torch.tensor([[1, 1, 1], [1, 0, 1]])
MODELS = {
    "llama": (
        "LlamaForCausalLM",
        transformers.LlamaConfig(**_SIZES, vocab_size=64),
        {"task_type": "CAUSAL_LM"},
    ),
    "gpt2": (
        "GPT2LMHeadModel",
        transformers.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=32, vocab_size=64),
        {"task_type": "CAUSAL_LM", "fan_in_fan_out": True},
    ),
    "t5": (
        "T5ForConditionalGeneration",
        transformers.T5Config(
            d_model=32, d_kv=8, d_ff=64, num_layers=2, num_heads=4, vocab_size=64, decoder_start_token_id=0
        ),
        {"task_type": "SEQ_2_SEQ_LM"},
    ),
    "bert": ("BertModel", transformers.BertConfig(**_SIZES, vocab_size=64), {"task_type": "FEATURE_EXTRACTION"}),
}
#: From PEFT's ALL_CONFIGS: what it gives LoRA in these tests.
LORA = {"r": 8, "lora_alpha": 32, "lora_dropout": 0.05, "bias": "none", "init_lora_weights": False}


class Loads:
    """Stands for a transformers class: the tiny model of a name."""

    @staticmethod
    def from_pretrained(model_id: str) -> torch.nn.Module:
        name, config, _ = MODELS[model_id]
        torch.manual_seed(0)
        return getattr(transformers, name)(config)


class TestWeighted(PeftCommonTester):
    transformers_class = Loads
    torch_device = torch.device("cpu")
    model_id = ""

    def prepare_inputs_for_testing(self) -> dict[str, torch.Tensor]:
        if self.model_id == "t5":
            return {"input_ids": IDS, "decoder_input_ids": IDS, "attention_mask": MASK}
        return {"input_ids": IDS, "attention_mask": MASK}

    @pytest.mark.parametrize("model_id", sorted(MODELS))
    def test_weighted_combination_of_adapters(self, model_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(testing_common, "hub_online_once", lambda name: nullcontext())
        self.model_id = model_id
        self._test_weighted_combination_of_adapters(model_id, LoraConfig, LORA | MODELS[model_id][2])
