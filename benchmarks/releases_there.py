"""What an old release of PEFT and transformers does, for `benchmarks/releases.py`, which runs this file in it.

    python releases_there.py write KIND FOLDER      # a base, the adapters a and b, and what they say together
    python releases_there.py load KIND FOLDER MERGED    # what the base says with a merged adapter

Only torch, PEFT, transformers and safetensors are imported, of whatever release.
"""

from __future__ import annotations

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file

warnings.simplefilter("ignore")
transformers.utils.logging.set_verbosity_error()

_SIZES = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
_TEXT = {**_SIZES, "vocab_size": 60, "num_key_value_heads": 2, "initializer_range": 0.3}
_BERT = {**_SIZES, "vocab_size": 60, "initializer_range": 0.3, "num_labels": 3}
_VISION = {**_SIZES, "image_size": 16, "patch_size": 4}


def llava() -> Any:
    return transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            text_config=transformers.LlamaConfig(**_TEXT),
            vision_config=transformers.CLIPVisionConfig(**_VISION),
            image_token_index=50,
        )
    )


#: A kind whose adapters hold copies of the base's embedding and head, which are one weight.
EMBEDDINGS_SAVED = "tied, embeddings saved"

#: Kind -> the model, and the settings of the two adapters.
KINDS: dict[str, tuple[Any, tuple[dict[str, Any], dict[str, Any]]]] = {
    "decoder": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TEXT)),
        ({"target_modules": ["q_proj", "v_proj"]}, {"target_modules": ["v_proj", "down_proj"]}),
    ),
    "rank and alpha patterns": (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TEXT)),
        (
            {"target_modules": ["q_proj", "v_proj"], "rank_pattern": {"q_proj": 2}, "alpha_pattern": {"v_proj": 3}},
            {"target_modules": ["v_proj"], "use_rslora": True},
        ),
    ),
    "GPT-2": (
        lambda: transformers.GPT2LMHeadModel(
            transformers.GPT2Config(vocab_size=60, n_embd=32, n_layer=2, n_head=4, initializer_range=0.3)
        ),
        ({"target_modules": ["c_attn"], "fan_in_fan_out": True},) * 2,
    ),
    EMBEDDINGS_SAVED: (
        lambda: transformers.LlamaForCausalLM(transformers.LlamaConfig(**_TEXT, tie_word_embeddings=True)),
        ({"target_modules": ["q_proj"]},) * 2,
    ),
    "classifier": (
        lambda: transformers.BertForSequenceClassification(transformers.BertConfig(**_BERT)),
        ({"target_modules": ["query", "value"], "task_type": "SEQ_CLS"},) * 2,
    ),
    "token classifier": (
        lambda: transformers.BertForTokenClassification(transformers.BertConfig(**_BERT)),
        ({"target_modules": ["query", "key"], "task_type": "TOKEN_CLS"},) * 2,
    ),
    "vision-language": (
        llava,
        (
            {"target_modules": r"^(?!.*(?:vision_tower|multi_modal_projector)).*(?:q_proj|up_proj)$"},
            {"target_modules": r".*language_model.*(?:q_proj|v_proj)"},
        ),
    ),
    "experts": (
        lambda: transformers.MixtralForCausalLM(
            transformers.MixtralConfig(**_TEXT, num_local_experts=3, num_experts_per_tok=2)
        ),
        ({"target_modules": ["q_proj", "w1", "w2", "w3"]},) * 2,
    ),
}


def said(model: Any) -> torch.Tensor:
    with torch.no_grad():
        return model.eval()(input_ids=torch.tensor([[5, 6, 7, 8, 9]])).logits.float().contiguous()


def write(kind: str, folder: Path) -> None:
    make, both = KINDS[kind]
    torch.manual_seed(0)
    base = make()
    base.save_pretrained(folder / "base")
    base = type(base).from_pretrained(folder / "base")
    before = {name: tensor.clone() for name, tensor in base.state_dict().items()}
    states = []
    for number, settings in enumerate(both):
        model = get_peft_model(copy.deepcopy(base), LoraConfig(r=4, lora_alpha=8, **settings))
        generator = torch.Generator().manual_seed(number + 1)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * 0.2)
            elif "modules_to_save" in name:
                parameter.data.add_(torch.randn(parameter.shape, generator=generator) * 0.2)
        model.save_pretrained(folder / "ab"[number], save_embedding_layers=kind == EMBEDDINGS_SAVED or "auto")
        loaded = PeftModel.from_pretrained(copy.deepcopy(base), folder / "ab"[number])
        states.append(loaded.merge_and_unload().state_dict())
    heads = ("classifier.", "score.")
    for name, tensor in base.state_dict().items():
        if name.startswith(heads):
            tensor.copy_(torch.stack([state[name] for state in states]).mean(0))
        elif tensor.is_floating_point() and name in states[0]:
            tensor.copy_(before[name] + sum(state[name] - before[name] for state in states))
    plain = type(base).from_pretrained(folder / "base")
    save_file({"base": said(plain), "merged": said(base)}, str(folder / "said.safetensors"))


def load(kind: str, folder: Path, merged: Path) -> None:
    base = type(KINDS[kind][0]()).from_pretrained(folder / "base")
    save_file({"merged": said(PeftModel.from_pretrained(base, merged))}, str(merged) + ".said.safetensors")


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "write":
        write(sys.argv[2], Path(sys.argv[3]))
    else:
        load(sys.argv[2], Path(sys.argv[3]), Path(sys.argv[4]))
