"""The pages of the documentation: every code block runs as it stands, or is marked as not run, with the reason.

A mark is a comment on the line before the block: `<!-- not run: why -->`. Names of the pages are folders of tiny models
and adapters here. Of a shell block the commands of samerge run; a block with others needs a mark.
"""

from __future__ import annotations

import re
import shlex
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from tiny import words
from typer.testing import CliRunner

from docs import render_supported
from samerge.cli import app
from samerge.methods import registry

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs"
#: Written by a benchmark, whose commands their blocks are; the blocks of `diagnostics.md` write over one another.
OTHERS = {"evidence.md", "evidence-tables.md", "diagnostics.md"}
PAGES = sorted(str(page.relative_to(DOCS)) for page in DOCS.rglob("*.md") if page.name not in OTHERS)
BLOCK = re.compile(
    r"(?:^<!-- not run: (?P<why>[^>]+) -->\n)?^```(?P<kind>sh|python|yaml)\n(?P<code>.*?)^```",
    flags=re.MULTILINE | re.DOTALL,
)


def blocks(page: str) -> list[tuple[str, str]]:
    """Those that run: kind and code."""
    found = BLOCK.finditer((DOCS / page).read_text(encoding="utf-8"))
    return [(one["kind"], one["code"]) for one in found if one["why"] is None]


RUN = [page for page in PAGES if any(kind != "yaml" for kind, _ in blocks(page))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from peft import LoraConfig, get_peft_model
    from transformers import LlamaConfig, LlamaForCausalLM

    root = tmp_path_factory.mktemp("docs")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
    )
    with warnings.catch_warnings(), pytest.MonkeyPatch.context() as patch:
        warnings.simplefilter("ignore")
        patch.chdir(root)
        base = "meta-llama/Llama-3.1-8B"
        LlamaForCausalLM(config).save_pretrained(base)
        words(Path(base), 32)
        Path("texts.jsonl").write_text('{"text": "w5 w6 w7 w5 w4 w3"}\n{"text": "w8 w9"}\n')
        for rank, adapter in ((4, "ada/math-lora"), (8, "code-lora"), (4, "ada/prose-lora")):
            lora = LoraConfig(r=rank, target_modules="all-linear", init_lora_weights=False)
            get_peft_model(LlamaForCausalLM.from_pretrained(base), lora).save_pretrained(adapter)
        LlamaForCausalLM(config).save_pretrained("ada/base")
        for name in ("ada/base-math", "base-code", "my-fine-tune"):
            tuned = LlamaForCausalLM.from_pretrained(base if name == "my-fine-tune" else "ada/base")
            with torch.no_grad():
                for weight in tuned.parameters():
                    weight += 0.01 * torch.randn_like(weight)
            tuned.save_pretrained(name)
        for name in ("style", "figure"):
            stem = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_"
            parts = {"lora_down.weight": torch.randn(4, 16), "lora_up.weight": torch.randn(16, 4)}
            parts["alpha"] = torch.tensor(4.0)
            tensors = {f"{stem}{to}.{part}": x.clone() for to in "qv" for part, x in parts.items()}
            save_file(tensors, f"{name}.safetensors")
        other_names = {"BASE": base, "math": "ada/math-lora", "code": "code-lora", "math-lora": "ada/math-lora"}
        for name, source in other_names.items():
            Path(name).symlink_to(source)
    return root


@pytest.mark.parametrize("page", RUN)
def test_blocks(page: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for one in folder.iterdir():
        if one.name != "merged":
            (tmp_path / one.name).symlink_to(one)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(registry, "_registered", {})  # what a page makes known is not known to other tests
    space: dict[str, object] = {}
    for kind, code in blocks(page):
        if kind == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                exec(code, space)
        elif kind == "sh":
            for line in re.split(r"(?<!\\)\n", code.strip()):
                words = shlex.split(line.replace("\\\n", " "), comments=True)
                if not words:
                    continue
                assert words[0] == "samerge", f"{page}: mark this block as not run, with the reason: {line}"
                words, _, target = " ".join(map(shlex.quote, words)).partition(" '>' ")
                done = CliRunner().invoke(app, shlex.split(words)[1:])
                assert done.exit_code == 0, (page, line, done.output)
                if target:
                    Path(target).write_text(done.stdout, encoding="utf-8")


@pytest.mark.parametrize("page", PAGES)
def test_links_lead_somewhere(page: str) -> None:
    path = DOCS / page
    for target in re.findall(r"\]\(([^)#:]+)\)", path.read_text(encoding="utf-8")):
        assert (path.parent / target).exists(), target


def test_what_is_supported_is_that_of_the_tables() -> None:
    assert (DOCS / "supported.md").read_text(encoding="utf-8") == render_supported.supported()
    assert (DOCS / "api.md").read_text(encoding="utf-8") == render_supported.api()


def test_every_page_stands_in_the_navigation() -> None:
    nav = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    for page in (*PAGES, *OTHERS):
        assert re.search(rf": {re.escape(page)}$", nav, flags=re.MULTILINE), page


def test_the_readme_is_short() -> None:
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) < 120
