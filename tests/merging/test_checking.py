"""`check_adapter`: what it contains, whether it can be merged, by whom it can be served."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from tiny import randomise, write_adapter
from torch import Tensor

import samerge
from samerge.adapters.servers import Served, gaps, hints, servability
from samerge.merging.checking import AdapterReport, check_adapter

SERVERS = ["vLLM", "SGLang", "LoRAX", "llama.cpp"]


def factors(*modules: str, rank: int = 4, out: int = 32, into: int = 32) -> dict[str, tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    return {
        m: (torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)) for m in modules
    }


def q(layer: int) -> str:
    return f"model.layers.{layer}.self_attn.q_proj"


def saved(beast, tmp_path, **settings) -> AdapterReport:
    """An adapter that PEFT writes, checked against its base."""
    model = get_peft_model(beast.model(), LoraConfig(**{"r": 4, "target_modules": ["q_proj"], **settings}))
    randomise(model)
    model.save_pretrained(tmp_path / "adapter")
    return check_adapter(tmp_path / "adapter", beast.folder)


def test_a_plain_adapter(llama):
    report = check_adapter(llama.adapters["math"], llama.folder)
    assert report.mergeable
    assert (report.name, report.kind, report.ranks, report.scales) == ("math", "LORA", {8: 4}, (2.0,))
    assert report.targets == {"model.layers.*.self_attn.q_proj": 2, "model.layers.*.self_attn.v_proj": 2}
    assert report.dtypes == ("F32",)
    assert report.parameters == 2 * (8 * (32 + 32) + 8 * (32 + 16))
    assert report.variants == ()
    assert report.serving == dict.fromkeys(SERVERS, ())
    assert json.loads(json.dumps(report.to_dict()))["mergeable"] is True


def test_rank_stabilised_with_an_alpha_pattern(llama):
    report = check_adapter(llama.adapters["code"])
    assert report.mergeable
    assert report.variants == ("use_rslora", 'alpha_pattern={"q_proj": 4}')
    assert report.scales == (4 / 8**0.5, 6 / 8**0.5)
    assert any("refuses alpha_pattern where it changes a value" in reason for reason in report.serving["SGLang"])
    assert any("ignores use_rslora" in reason for reason in report.serving["SGLang"])
    assert "ignores rank_pattern and alpha_pattern" in report.serving["vLLM"][0]
    assert "would be scaled by 0.75 in place of" in report.serving["llama.cpp"][0]
    assert report.serving["LoRAX"] == ()


def test_ranks_by_pattern(llama):
    report = check_adapter(llama.adapters["talk"], llama.folder)
    assert report.mergeable
    assert report.ranks == {6: 2, 20: 4}
    assert report.notes == ("vLLM: start it with --max-lora-rank 32",)


@pytest.mark.filterwarnings("ignore:.lora_bias=True. was passed", "ignore:Adapter .default.. 2 LoRA tensor")
@pytest.mark.parametrize(
    ("settings", "problem", "served"),
    [
        ({"use_dora": True}, "--dora exact", "it is a DoRA adapter"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save='average'", "it carries lm_head.weight, which is neither"),
        ({"trainable_token_indices": [1, 2]}, "token rows", "it carries trained token rows"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion", "changed the base weights"),
        ({"lora_bias": True}, None, "it carries biases"),
    ],
)
def test_kinds_of_adapter(llama, tmp_path, settings, problem, served):
    report = saved(llama, tmp_path, **settings)
    assert report.mergeable is (problem is None)
    assert problem is None or problem in report.problems[0]
    assert report.ranks == {4: 2}
    for server in SERVERS:
        assert any(served in reason for reason in report.serving[server]), (server, report.serving)


def test_what_is_no_lora(llama, tmp_path):
    from peft import LoHaConfig

    get_peft_model(llama.model(), LoHaConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    report = check_adapter(tmp_path)
    assert (report.kind, report.mergeable, report.ranks) == ("LOHA", False, {})
    assert "it is a LOHA adapter" in report.problems[0]
    assert report.serving["vLLM"][0] == "it is a LOHA adapter, not a LoRA"


def test_another_base(llama, bert):
    report = check_adapter(llama.adapters["math"], bert.folder)
    assert "does not fit the base model" in report.problems[0]


def test_a_base_of_another_name_is_a_note(llama, tmp_path):
    path = write_adapter(tmp_path / "a", factors(q(0), q(1)), base_model_name_or_path="ada/llama")
    assert check_adapter(path, llama.folder).notes == ()  # a folder of any name may hold a copy of it
    for named, notes in (("ada/llama", 0), ("copies/Llama", 0), ("ada/other", 1)):
        shutil.copytree(llama.folder, tmp_path / "copy", dirs_exist_ok=True)
        config = json.loads((llama.folder / "config.json").read_text())
        (tmp_path / "copy" / "config.json").write_text(json.dumps(config | {"_name_or_path": named}))
        report = check_adapter(path, tmp_path / "copy")
        assert report.mergeable
        assert len(report.notes) == notes
    assert "it was trained on another base than other: a on llama" in report.notes[0]


def test_a_base_of_an_unknown_family_is_a_note(llama, tmp_path):
    shutil.copytree(llama.folder, tmp_path / "strange")
    config = json.loads((tmp_path / "strange" / "config.json").read_text())
    (tmp_path / "strange" / "config.json").write_text(json.dumps(config | {"model_type": "strange"}))
    report = check_adapter(llama.adapters["math"], tmp_path / "strange")
    assert report.mergeable
    assert any("connectivity='local'" in note for note in report.notes)


def test_layers_left_out(llama, tmp_path):
    path = write_adapter(tmp_path / "a", factors(q(1)))
    assert check_adapter(path).serving["LoRAX"] == ()  # without the base nobody knows of layer 0
    told = check_adapter(path, llama.folder)
    assert told.mergeable
    assert told.serving["LoRAX"] == ("drops model.layers.*.self_attn.q_proj: some of its layers are not adapted",)
    path = write_adapter(tmp_path / "b", factors(q(0), q(1), q(0).replace("q_proj", "o_proj")))
    assert check_adapter(path).serving["LoRAX"] == (
        "drops model.layers.*.self_attn.o_proj: some of its layers are not adapted",
    )


def test_broken_values(tmp_path):
    broken = factors(q(0))
    broken[q(0)][1][0, 0] = float("nan")
    report = check_adapter(write_adapter(tmp_path / "a", broken))
    assert "holds NaN or infinite values" in report.problems[0]


def test_no_adapter_there(tmp_path):
    report = check_adapter(tmp_path)
    assert not report.mergeable
    assert "there is no adapter_config.json" in report.problems[0]
    (tmp_path / "adapter_config.json").write_text("[1")
    assert not check_adapter(tmp_path).mergeable
    (tmp_path / "adapter_config.json").write_text("{}")
    assert "adapter_model.safetensors" in check_adapter(tmp_path).problems[0]


def test_a_base_that_cannot_be_read(llama, tmp_path):
    with pytest.raises(samerge.BaseModelError):
        check_adapter(llama.adapters["math"], tmp_path)


@pytest.mark.parametrize(("rank", "told"), [(1, []), (16, []), (17, ["32"]), (300, ["320"]), (512, ["512"]), (513, [])])
def test_what_vllm_must_be_told(rank, told):
    served = Served({"peft_type": "LORA", "r": rank, "lora_alpha": rank}, {"h.0.q": rank})
    assert [hint.rsplit(" ", 1)[1] for hint in hints(served)] == told
    assert bool(servability(served)["vLLM"]) is (rank > 512)


def test_ragged_ranks_of_one_scale():
    config = {"peft_type": "LORA", "r": 8, "lora_alpha": 8, "rank_pattern": {"h.1.q": 4}, "alpha_pattern": {"h.1.q": 4}}
    found = servability(Served(config, {"h.0.q": 8, "h.1.q": 4}))
    assert found["vLLM"] == []
    assert len(found["SGLang"]) == 2
    assert found["LoRAX"] == ["drops h.*.q: its layers have different ranks [4, 8]"]
    assert "h.1.q would be scaled by 2 in place of 1" in found["llama.cpp"][0]


def test_gaps_keep_to_one_stack_of_layers():
    assert gaps(["encoder.0.q", "encoder.1.q", "decoder.0.q", "decoder.0.k", "head"]) == []
    assert gaps(["e.0.x.0.q", "e.1.x.1.q", "e.1.x.1.k"]) == ["e.0.x.0.k"]


def test_merged_adapters_pass(llama, tmp_path):
    """What samerge writes by default is servable everywhere."""
    merged = samerge.merge(str(llama.folder), llama.adapters, method="saliency", progress=False)
    report = check_adapter(merged.save(tmp_path / "merged"), llama.folder)
    assert report.mergeable
    assert report.serving == dict.fromkeys(SERVERS, ())
