"""`check_adapter`: what it contains, whether it can be merged, by whom it can be served."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
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


@pytest.mark.parametrize("zeroed", ["none", "one", "all"])
def test_one_that_was_never_trained(tmp_path, zeroed):
    table = factors(q(0), q(1))
    left = {"none": [], "one": [q(0)], "all": [q(0), q(1)]}[zeroed]
    made = {m: (A, B * 0 if m in left else B) for m, (A, B) in table.items()}
    report = check_adapter(write_adapter(tmp_path / "a", made))
    assert report.mergeable
    assert any("its update is zero in every layer; was it trained?" in note for note in report.notes) == (
        zeroed == "all"
    )


def test_the_file_beside_its_configuration(llama):
    folder = Path(llama.adapters["math"])
    found, whole = (check_adapter(path, name="math") for path in (folder / "adapter_model.safetensors", folder))
    assert found.mergeable
    assert {**found.to_dict(), "source": str(folder)} == whole.to_dict()


def test_a_file_without_its_configuration(llama, tmp_path):
    shutil.copy(Path(llama.adapters["math"], "adapter_model.safetensors"), tmp_path)
    report = check_adapter(tmp_path / "adapter_model.safetensors")
    assert not report.mergeable
    assert "there is no adapter_config.json" in report.problems[0]


def test_what_cannot_be_read_is_served_by_nobody(llama, tmp_path):
    folder = tmp_path / "math"
    shutil.copytree(llama.adapters["math"], folder)
    file = folder / "adapter_model.safetensors"
    save_file({key: tensor.reshape(-1)[:0] for key, tensor in load_file(file).items()}, file)
    report = check_adapter(folder)
    assert "were not gathered" in report.problems[0]
    assert report.serving == dict.fromkeys(SERVERS, ("it cannot be read here, and so nothing can be said of it",))


def test_rank_stabilised_with_an_alpha_pattern(llama):
    report = check_adapter(llama.adapters["code"])
    assert report.mergeable
    assert report.variants == ("use_rslora", 'alpha_pattern={"q_proj": 4}')
    assert report.scales == (4 / 8**0.5, 6 / 8**0.5)
    assert any(
        "does not know alpha_pattern and scales by lora_alpha / r everywhere" in reason
        for reason in report.serving["SGLang"]
    )
    assert any("ignores use_rslora" in reason for reason in report.serving["SGLang"])
    assert report.serving["vLLM"] == ()
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
        ({"use_dora": True}, "dora='exact'", "it is a DoRA adapter"),
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


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"layer_replication": [[0, 2], [0, 2]]}, "layer_replication"),
        ({"alora_invocation_tokens": [1]}, "aLoRA"),
        ({"use_qalora": True}, "QA-LoRA"),
        ({"use_bdlora": {"nblocks": 2}}, "BD-LoRA"),
    ],
)
def test_variants_that_no_server_serves(llama, tmp_path, changes, said):
    shutil.copytree(llama.adapters["math"], tmp_path / "a")
    config = json.loads((tmp_path / "a" / "adapter_config.json").read_text())
    (tmp_path / "a" / "adapter_config.json").write_text(json.dumps(config | changes))
    report = check_adapter(tmp_path / "a")
    for server in SERVERS:
        assert any(said in reason for reason in report.serving[server]), (server, report.serving)


@pytest.mark.filterwarnings("ignore:Setting `save_embedding_layers` to `True`")
def test_what_some_servers_take_beside_the_factors(llama, bert, tmp_path):
    """Embeddings and heads, also with the copies of the base's weights that PEFT saves with them."""
    report = saved(llama, tmp_path, target_modules=["q_proj", "v_proj", "embed_tokens", "lm_head"])
    assert report.serving["vLLM"] == report.serving["llama.cpp"] == ()
    assert any("it adapts an embedding" in reason for reason in report.serving["SGLang"])
    shutil.rmtree(tmp_path / "adapter")
    report = saved(bert, tmp_path, target_modules=["query"], task_type="SEQ_CLS")
    assert report.serving["vLLM"] == ()
    assert any("it carries classifier.weight" in reason for reason in report.serving["llama.cpp"])


def test_what_sglang_stacks(llama, tmp_path):
    stem = "model.layers.0.self_attn."
    for adapted, lacking in (
        (("q_proj",), "v_proj"),
        (("v_proj",), "q_proj"),
        (("q_proj", "k_proj"), "v_proj"),
        (("q_proj", "v_proj"), None),
    ):
        served = Served({"peft_type": "LORA", "r": 4, "lora_alpha": 4}, {stem + name: 4 for name in adapted})
        reasons = servability(served)["SGLang"]
        assert reasons == (
            []
            if lacking is None
            else [f"stacks q with v and gate with up: {stem}{lacking} is not adapted where its partner is"]
        )
        assert servability(served)["vLLM"] == []
    up = Served({"peft_type": "LORA", "r": 4, "lora_alpha": 4}, {"h.0.mlp.up_proj": 4})
    assert "h.0.mlp.gate_proj" in servability(up)["SGLang"][0]
    path = write_adapter(tmp_path / "a", factors(q(0), q(0).replace("q_proj", "v_proj")))
    (tmp_path / "a" / "added_tokens.json").write_text("{}")
    assert check_adapter(path).serving["SGLang"] == ("refuses the added_tokens.json that lies beside it",)


def test_fused_experts():
    stack = {f"model.layers.0.mlp.experts.down_proj[{e}]": 4 for e in range(3)}
    found = servability(Served({"peft_type": "LORA", "r": 4, "lora_alpha": 4}, stack))
    assert found["vLLM"] == []
    assert "does not read fused experts: model.layers.0.mlp.experts.down_proj" in found["SGLang"]
    assert "does not convert fused experts: model.layers.0.mlp.experts.down_proj" in found["llama.cpp"]


@pytest.mark.parametrize(
    "module", ["down_blocks.0.attentions.0.to_q", "transformer.single_transformer_blocks.1.attn.to_k"]
)
def test_a_diffusion_models_adapter_is_no_language_models(module):
    found = servability(Served({"peft_type": "LORA", "r": 4, "lora_alpha": 4}, {module: 4}))
    assert all("it is an adapter of a diffusion model" in found[server][0] for server in SERVERS)


def test_partners_are_filled_with_zeros(llama, tmp_path):
    """What a server stacks with an adapted module is there, as zeros: the merge is the same."""
    modules = {f"model.layers.{layer}.{part}": shape for layer in (0, 1) for part, shape in {
        "self_attn.q_proj": (32, 32), "mlp.up_proj": (24, 32)}.items()}  # fmt: skip
    own = {m: factors(m, out=out, into=into)[m] for m, (out, into) in modules.items()}
    path = write_adapter(tmp_path / "a", own)
    assert check_adapter(path).serving["SGLang"]
    merged = samerge.merge(str(llama.folder), {"a": path}, method="linear", progress=False)
    added = set(merged.factors) - set(modules)
    assert {name.rpartition(".")[2] for name in added} == {"v_proj", "gate_proj"}
    assert all(not merged.delta(name).any() for name in added)
    assert merged.delta("model.layers.0.self_attn.v_proj").shape == (16, 32)
    report = check_adapter(merged.save(tmp_path / "out"), llama.folder)
    assert report.serving == dict.fromkeys(SERVERS, ())


def test_what_is_no_lora(llama, tmp_path):
    from peft import VeraConfig

    get_peft_model(llama.model(), VeraConfig(r=2, target_modules=["q_proj"])).save_pretrained(tmp_path)
    report = check_adapter(tmp_path)
    assert (report.kind, report.mergeable, report.ranks) == ("VERA", False, {})
    assert "it is a VERA adapter" in report.problems[0]
    assert report.serving["vLLM"][0] == "it is a VERA adapter, not a LoRA"


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
    assert len([reason for reason in found["SGLang"] if "does not know" in reason]) == 2
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
