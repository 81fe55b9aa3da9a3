"""The README's examples, run as they stand: its names are folders of tiny models and adapters here."""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

import samerge
from samerge.cli import app
from samerge.graph import families

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


def tiny_models():
    from transformers import (
        BertConfig,
        BertForMaskedLM,
        LlamaConfig,
        LlamaForCausalLM,
        T5Config,
        T5ForConditionalGeneration,
    )

    small = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 16, "intermediate_size": 24}
    llama = LlamaConfig(vocab_size=32, num_key_value_heads=1, **small)
    bert = BertConfig(vocab_size=32, max_position_embeddings=16, **small)
    t5 = T5Config(vocab_size=32, d_model=16, d_kv=8, d_ff=24, num_layers=2, num_heads=2, feed_forward_proj="gated-gelu")
    return {
        "meta-llama/Llama-3.1-8B": (LlamaForCausalLM, llama, ["ada/math-lora", "code-lora"], "all-linear"),
        "google-bert/bert-base-uncased": (
            BertForMaskedLM,
            bert,
            ["ada/medical-lora", "ada/legal-lora"],
            ["query", "value"],
        ),
        "google/flan-t5-base": (T5ForConditionalGeneration, t5, ["ada/summary-lora", "ada/title-lora"], ["q", "v"]),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model

    root = tmp_path_factory.mktemp("readme")
    torch.manual_seed(0)
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.chdir(root)
        for base, (cls, config, adapters, modules) in tiny_models().items():
            cls(config).save_pretrained(base)
            for rank, adapter in zip((4, 8), adapters, strict=True):
                lora = LoraConfig(r=rank, target_modules=modules, init_lora_weights=False)
                get_peft_model(cls.from_pretrained(base), lora).save_pretrained(adapter)
    return root


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    return folder


def test_shell(here: Path) -> None:
    from peft import PeftModel

    commands = [
        shlex.split(line.replace("\\\n", " "), comments=True)
        for block in blocks("sh")
        for line in re.split(r"(?<!\\)\n", block)
        if line.startswith("samerge ")
    ]
    assert len(commands) >= 5
    for words in commands:
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, (words, result.output)
    for base, out in zip(tiny_models(), ("merged/llama", "merged/bert", "merged/t5"), strict=True):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loaded = PeftModel.from_pretrained(tiny_models()[base][0].from_pretrained(base), out)
        assert loaded.peft_config["default"].r == {"merged/bert": 12, "merged/t5": 6}.get(out, 8)


def test_recipe(here: Path) -> None:
    (recipe,) = blocks("yaml")
    Path("recipe.yaml").write_text(recipe, encoding="utf-8")
    result = CliRunner().invoke(app, ["run", "recipe.yaml"])
    assert result.exit_code == 0, result.output
    assert Path("merged/from-recipe/samerge.json").is_file()


def test_python(here: Path) -> None:
    space: dict[str, object] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for block in blocks("python"):
            exec(block, space)
    assert "merged" in space["model"].peft_config  # type: ignore[attr-defined]
    assert Path("merged/python/adapter_model.safetensors").is_file()


def test_the_methods_that_it_names_exist() -> None:
    assert len(families()) > 100
    named = set(re.findall(r"--method ([a-z-]+)", README))
    assert named
    assert named <= set(samerge.available_methods())


@pytest.mark.parametrize(
    "page", ["README.md", "CONTRIBUTING.md", *sorted(p.name for p in (ROOT / "docs").glob("*.md"))]
)
def test_links_lead_somewhere(page: str) -> None:
    path = ROOT / page if (ROOT / page).exists() else ROOT / "docs" / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target
