"""Push and pull against a Hub on the loopback interface; nothing else can be reached."""

import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import huggingface_hub
import pytest
import torch
from hub_server import HubServer, Repo
from huggingface_hub import ModelCard, constants
from safetensors.torch import load_file

import samerge
from samerge.adapters.writer import write_adapter
from samerge.errors import AdapterError, BaseModelError, HubError, OptionError
from samerge.report.card import model_card
from samerge.report.reading import read_record
from samerge.report.record import Record
from samerge.report.stored import Base, Input, Output
from samerge.weights.hub import files_beside, resolve_adapter, resolve_base, resolve_record
from samerge.weights.published import Card
from samerge.weights.pushing import push_folder

# huggingface_hub's own, on its way through LFS
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "samerge.json"]
CONFIG = {
    "base_model_name_or_path": None,
    "bias": "none",
    "lora_alpha": 2,
    "peft_type": "LORA",
    "r": 2,
    "target_modules": ["q_proj", "v_proj"],
    "task_type": "CAUSAL_LM",
}


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """The loopback Hub, with a cache of its own, no token but what a test passes, and no way to any other machine."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
    connect = socket.socket.connect

    def loopback_only(self, address):
        assert address[0] == "127.0.0.1", f"a test tried to reach {address}"
        return connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", loopback_only)
    # huggingface_hub waits between tries; nothing here gets better by waiting
    clock = SimpleNamespace(**{**vars(time), "sleep": lambda seconds: None})
    monkeypatch.setattr("huggingface_hub.utils._http.time", clock)
    server = HubServer()
    # as HF_ENDPOINT has it, which huggingface_hub reads when it is imported
    monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
    address = server.endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address)
    yield server
    server.close()
    huggingface_hub.close_session()


def written(path, seed=0):
    """An adapter of ours."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(2):
        for module in ("q_proj", "v_proj"):
            key = f"base_model.model.model.layers.{layer}.self_attn.{module}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(2, 16, generator=generator)
            tensors[f"{key}.lora_B.weight"] = torch.randn(16, 2, generator=generator)
    output = Output(kind="adapter", dtype="float32", modules=4, parameters=256, rank=2)
    record = Record("linear", (Input("math", "ada/math"),), output, {}, Base("ada/tiny", "llama"))
    return write_adapter(path, tensors, CONFIG, record.json(), model_card(record))


@pytest.fixture
def folder(tmp_path):
    return written(tmp_path / "merged")


def bytes_of(folder, names=FILES):
    return {name: (folder / name).read_bytes() for name in names}


def add_repo(hub, repo_id, files, **kind):
    hub.repos[repo_id] = Repo(**kind)
    return hub.repos[repo_id].commit(files)


ADAPTER = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"weights"}


class TestPush:
    def test_what_is_pushed_comes_back(self, hub, folder):
        url = push_folder(folder, "ada/merged", token="hf_ada")
        assert url == f"{hub.endpoint}/ada/merged"
        stored = hub.repos["ada/merged"]
        assert {k: v for k, v in stored.commits[stored.branches["main"]].items() if k in FILES} == bytes_of(folder)
        assert not stored.private
        assert stored.messages == ["initial commit", "Upload a merged adapter made with samerge"]
        # the weights went through LFS, and the card's metadata through the Hub's check
        assert list(hub.objects.values()) == [(folder / "adapter_model.safetensors").read_bytes()]
        assert hub.cards[-1] == {
            "base_model": "ada/tiny",
            "base_model_relation": "adapter",
            "library_name": "peft",
            "tags": ["peft", "lora", "merge", "samerge"],
        }

        back = resolve_adapter("ada/merged")
        assert back != folder
        assert sorted(path.name for path in back.iterdir()) == [
            *("README.md", "adapter_config.json", "adapter_model.safetensors")
        ]
        names = ["adapter_config.json", "adapter_model.safetensors"]
        assert bytes_of(back, names) == bytes_of(folder, names)

    def test_a_bare_name_is_the_users(self, hub, folder):
        named = []
        url = push_folder(folder, "merged", token="hf_ada", ready=named.append)
        assert url == f"{hub.endpoint}/ada/merged"
        assert named == ["ada/merged"]
        assert list(hub.repos) == ["ada/merged"]

    def test_private_and_again(self, hub, folder, monkeypatch):
        for message in ("one", "two"):
            (folder / "README.md").write_text(f"---\ntags: []\n---\n{message}")
            push_folder(folder, "ada/m", token="hf_ada", private=True, commit_message=message)
        assert hub.repos["ada/m"].private
        assert hub.repos["ada/m"].messages == ["initial commit", "one", "two"]
        with pytest.raises(HubError, match=r"ada/m.*hf auth login"):
            resolve_adapter("ada/m")
        monkeypatch.setenv("HF_TOKEN", "hf_reader")
        assert resolve_adapter("ada/m").is_dir()

    def test_to_a_branch(self, hub, folder):
        for _ in range(2):
            push_folder(folder, "ada/m", token="hf_ada", revision="v2")
        repo = hub.repos["ada/m"]
        assert "adapter_config.json" not in repo.commits[repo.branches["main"]]
        assert "adapter_config.json" in repo.commits[repo.branches["v2"]]
        assert resolve_adapter("ada/m@v2").is_dir()
        with pytest.raises(AdapterError, match=r"no adapter_config\.json"):
            resolve_adapter("ada/m")

    def test_as_a_pull_request_to_anothers(self, hub, folder):
        add_repo(hub, "bob/m", {"README.md": b""})
        url = push_folder(folder, "bob/m", token="hf_ada", create_pr=True)
        assert url == f"{hub.endpoint}/bob/m/discussions/1"
        repo = hub.repos["bob/m"]
        assert list(repo.commits[repo.branches["main"]]) == ["README.md"]
        assert repo.commits[repo.branches["refs/pr/1"]]["samerge.json"] == (folder / "samerge.json").read_bytes()

    @pytest.mark.parametrize("create_pr", [False, True])
    def test_nothing_has_changed(self, hub, folder, create_pr):
        push_folder(folder, "ada/m", token="hf_ada")
        url = push_folder(folder, "ada/m", token="hf_ada", create_pr=create_pr)
        assert url == f"{hub.endpoint}/ada/m"
        assert len(hub.repos["ada/m"].messages) == 2

    @pytest.mark.parametrize(
        ("token", "repo_id", "words"),
        [
            (False, "ada/m", "hf auth login"),
            ("hf_wrong", "ada/m", "the token is not valid: log in with `hf auth login`"),
            ("hf_reader", "ada/m", "may not do that"),
            ("hf_ada", "bob/m", "a namespace of yours"),
            ("hf_ada", "a/b/c", "'user/name'"),
            ("hf_ada", "ada/m--n", "check the name"),
        ],
    )
    def test_refused(self, hub, folder, token, repo_id, words):
        with pytest.raises(HubError, match="pushing merged to") as caught:
            push_folder(folder, repo_id, token=token)
        assert words in str(caught.value)
        assert repr(repo_id) in str(caught.value)
        assert caught.value.__cause__ is not None
        assert hub.repos == {}

    def test_an_upload_that_fails_halfway(self, hub, folder):
        hub.full = True
        with pytest.raises(HubError, match=r"HfHubHTTPError: 403 Forbidden: Storage limit reached.*may not do that"):
            push_folder(folder, "ada/m", token="hf_ada")
        assert hub.repos["ada/m"].messages == ["initial commit"]

    def test_out_of_reach(self, hub, folder):
        hub.close()
        with pytest.raises(HubError, match=r"pushing merged to 'ada/m': ConnectError.*check the connection"):
            push_folder(folder, "ada/m", token="hf_ada")

    def test_offline(self, hub, folder, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(HubError, match="HF_HUB_OFFLINE") as raised:
            push_folder(folder, "ada/m", token="hf_ada")
        assert "nothing was pushed" in str(raised.value)
        assert "samerge push FOLDER ada/m" in str(raised.value)
        assert not any(word in str(raised.value) for word in ("cache", "hf download"))
        assert hub.requests == []

    def test_what_is_no_folder(self, hub, tmp_path):
        with pytest.raises(OptionError, match="no such folder"):
            push_folder(tmp_path / "absent", "ada/m")
        assert hub.requests == []

    def test_pull_request_and_revision(self, hub, folder):
        with pytest.raises(OptionError, match="create_pr"):
            push_folder(folder, "ada/m", create_pr=True, revision="v2")
        assert hub.requests == []


class TestResolveAdapter:
    def test_a_folder_as_it_is(self, hub, folder, monkeypatch):
        assert resolve_adapter(folder) == folder
        monkeypatch.chdir(folder.parent)
        (folder.parent / "ada" / "merged").mkdir(parents=True)
        assert resolve_adapter("ada/merged") == Path("ada/merged")
        assert hub.requests == []

    @pytest.mark.parametrize(
        "source", ["./absent", "/absent/x", "~/absent-x", "a/b/c", "absent/", "a\\b", "", Path("a")]
    )
    def test_a_path_that_is_not_there(self, hub, source):
        with pytest.raises(AdapterError, match="no such folder"):
            resolve_adapter(source)
        assert hub.requests == []

    def test_a_file_and_an_address(self, hub, folder):
        with pytest.raises(AdapterError, match="it is a file; give the folder"):
            resolve_adapter(folder / "adapter_config.json")
        with pytest.raises(AdapterError, match="give the repository id"):
            resolve_adapter("https://huggingface.co/ada/merged")
        assert hub.requests == []

    def test_only_the_adapters_files(self, hub):
        add_repo(hub, "ada/m", {**ADAPTER, "optimizer.pt": b"x", "sub/adapter_config.json": b"{}"})
        folder = resolve_adapter("ada/m")
        assert [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*"))] == sorted(ADAPTER)

    def test_a_subfolder(self, hub):
        add_repo(hub, "ada/m", {f"sub/math/{name}": data for name, data in ADAPTER.items()})
        folder = resolve_adapter("ada/m/sub/math@main")
        assert bytes_of(folder, ADAPTER) == ADAPTER
        with pytest.raises(AdapterError, match="subfolder"):
            resolve_adapter("ada/m")

    def test_a_revision(self, hub):
        first = add_repo(hub, "ada/m", ADAPTER)
        hub.repos["ada/m"].commit({"adapter_model.safetensors": b"newer"})
        newest = resolve_adapter("ada/m")
        older = resolve_adapter(f"ada/m@{first}")
        assert (newest / "adapter_model.safetensors").read_bytes() == b"newer"
        assert (older / "adapter_model.safetensors").read_bytes() == b"weights"

    def test_revision_and_folder_in_one_text(self, hub):
        first = add_repo(hub, "ada/m", {**ADAPTER, **{f"sub/math/{name}": data for name, data in ADAPTER.items()}})
        hub.repos["ada/m"].commit({"adapter_model.safetensors": b"newer"})
        older = resolve_adapter(f"ada/m@{first}")
        assert (older / "adapter_model.safetensors").read_bytes() == b"weights"
        inner = resolve_adapter("ada/m/sub/math@main")
        assert bytes_of(inner, ADAPTER) == ADAPTER
        with pytest.raises(HubError, match=r"'ada/m@v9'.*check the revision"):
            resolve_adapter("ada/m@v9")

    def test_the_files_beside_an_adapter(self, hub, tmp_path):
        add_repo(hub, "ada/m", {**ADAPTER, "vit.safetensors": b"x", "sub/math/value_head.bin": b"x"})
        assert set(files_beside("ada/m")) == {*ADAPTER, "vit.safetensors"}
        assert files_beside("ada/m/sub/math@main") == ("value_head.bin",)
        assert files_beside(tmp_path) == files_beside("ada/absent") == ()

    def test_the_record_alone(self, hub):
        add_repo(hub, "ada/m", {**ADAPTER, "samerge.json": b'{"warnings": []}', "sub/adapter_config.json": b"{}"})
        folder = resolve_record("ada/m")
        assert [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*"))] == ["samerge.json"]
        with pytest.raises(AdapterError, match=r"has no samerge\.json, so samerge did not merge it"):
            resolve_record("ada/m/sub@main")
        with pytest.raises(AdapterError, match="no such folder"):
            resolve_record("./absent")

    def test_a_pickle_is_named_and_left(self, hub):
        add_repo(hub, "ada/m", {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"})
        with pytest.raises(AdapterError, match=r"only adapter_model\.bin, which is in PyTorch's pickle format"):
            resolve_adapter("ada/m")
        assert ("GET", "/ada/m/resolve/main/adapter_model.bin") not in hub.requests
        assert b"pickle" not in hub.objects.values()

    @pytest.mark.parametrize(
        ("how", "words"),
        [
            ("variable", "OfflineModeIsEnabled.*HF_HUB_OFFLINE"),
            ("down", "answered 503; try again later"),
            ("unplugged", "ConnectError.*check the connection"),
        ],
    )
    def test_asking_for_a_pickle_fails(self, hub, monkeypatch, how, words):
        add_repo(hub, "ada/m", {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"})
        with pytest.raises(AdapterError, match="pickle format"):  # the cache has the configuration from here on
            resolve_adapter("ada/m")
        if how == "variable":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        elif how == "down":
            hub.down = True
        else:
            hub.close()
        asked = r"'ada/m' from the Hub: there is no adapter_model\.safetensors, and asking for what else it has fail"
        with pytest.raises(HubError, match=f"{asked}ed: .*{words}") as caught:
            resolve_adapter("ada/m")
        assert caught.value.__cause__ is not None
        assert "Errno" not in str(caught.value)

    def test_a_cache_without_the_weights_asks_no_one(self, hub):
        add_repo(hub, "ada/m", {"adapter_config.json": b"{}", "adapter_model.bin": b"pickle"})
        with pytest.raises(AdapterError, match="pickle format"):
            resolve_adapter("ada/m")
        hub.requests.clear()
        with pytest.raises(AdapterError, match=r"cache: there is no adapter_model\.safetensors.*local_files_only"):
            resolve_adapter("ada/m", local_files_only=True)
        assert hub.requests == []

    @pytest.mark.parametrize(
        ("token", "words"),
        [
            ("", "there is no folder of this name"),
            ("", "check the name, and log in with `hf auth login`"),
            ("hf_ada", "check the name; if the repository is private or gated, log in with `hf auth login`"),
            ("hf_wrong", "the token is not valid: log in with `hf auth login`"),
        ],
    )
    def test_missing(self, hub, token, words, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", token)
        with pytest.raises(HubError, match="'ada/absent'") as caught:
            resolve_adapter("ada/absent")
        assert words in str(caught.value)
        assert isinstance(caught.value.__cause__, huggingface_hub.errors.HfHubHTTPError)

    def test_gated(self, hub, monkeypatch):
        monkeypatch.setenv("HF_TOKEN", "hf_ada")
        add_repo(hub, "bob/m", ADAPTER, gated=True)
        with pytest.raises(HubError, match=r"ask for access on the page of bob/m.*hf auth login"):
            resolve_adapter("bob/m")

    def test_an_invalid_id(self, hub):
        with pytest.raises(HubError, match=r"'user name/m'.*check the name"):
            resolve_adapter("user name/m")
        assert hub.requests == []

    def test_down(self, hub):
        hub.down = True
        with pytest.raises(HubError, match=r"'ada/m'.*answered 503; try again later"):
            resolve_adapter("ada/m")

    @pytest.mark.parametrize("how", ["variable", "argument", "unplugged"])
    def test_from_the_cache(self, hub, monkeypatch, how):
        add_repo(hub, "ada/m", ADAPTER)
        online = resolve_adapter("ada/m")
        if how == "variable":
            monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        if how == "unplugged":
            hub.close()
        hub.requests.clear()
        only = how == "argument"
        assert resolve_adapter("ada/m", local_files_only=only) == online
        with pytest.raises(HubError, match=r"'ada/other'.*not in the cache.*hf download ada/other"):
            resolve_adapter("ada/other", local_files_only=only)
        assert hub.requests == []


class TestResolveBase:
    def test_only_weights_and_config_of_the_top(self, hub):
        wanted = {
            "config.json": b"{}",
            "model-00001-of-00002.safetensors": b"1",
            "model-00002-of-00002.safetensors": b"2",
            "model.safetensors.index.json": b"{}",
        }
        others = ["pytorch_model.bin", "consolidated.safetensors", "original/model.safetensors", "tokenizer.json"]
        add_repo(hub, "ada/base", {**wanted, **dict.fromkeys(others, b"x")})
        folder = resolve_base("ada/base")
        assert bytes_of(folder, wanted) == wanted
        assert len(list(folder.rglob("*"))) == len(wanted)
        hub.close()
        assert resolve_base("ada/base") == folder

    def test_a_model_in_a_folder_of_a_repository(self, hub):
        wanted = {"unet/config.json": b"{}", "unet/diffusion_pytorch_model.safetensors": b"w"}
        others = [
            "model_index.json",
            "sd.safetensors",
            "vae/diffusion_pytorch_model.safetensors",
            "unet/onnx/a.safetensors",
        ]
        add_repo(hub, "ada/sd", {**wanted, **dict.fromkeys(others, b"x")})
        folder = resolve_base("ada/sd/unet@main")
        assert folder.name == "unet"
        assert bytes_of(folder.parent, wanted) == wanted
        assert len([path for path in folder.parent.rglob("*") if path.is_file()]) == len(wanted)
        with pytest.raises(BaseModelError, match=r"no \*\.safetensors in absent/.*given as ada/sd/FOLDER@main"):
            resolve_base("ada/sd/absent@main")
        with pytest.raises(BaseModelError, match=r"no such folder.*'user/name/folder@revision'"):
            resolve_base("ada/sd/unet")

    def test_a_whole_pipeline(self, hub):
        """What adapters can be of, and of it one set of weights; not the file of the whole beside it."""
        wanted = {"model_index.json": b"{}"}
        for part, stem in (("unet", "diffusion_pytorch_model"), ("text_encoder", "model"), ("text_encoder_2", "model")):
            wanted |= {f"{part}/config.json": b"{}", f"{part}/{stem}.safetensors": b"w"}
        others = ["sd_xl.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors", "unet/openvino/a.safetensors"]
        others += ["vae/config.json", "vae/diffusion_pytorch_model.safetensors", "tokenizer/vocab.json"]
        add_repo(hub, "ada/sd", {**wanted, **dict.fromkeys(others, b"x")})
        folder = resolve_base("ada/sd")
        assert bytes_of(folder, wanted) == wanted
        assert len([path for path in folder.rglob("*") if path.is_file()]) == len(wanted)
        hub.close()
        assert resolve_base("ada/sd") == folder

    def test_a_folder_as_it_is(self, hub, tmp_path):
        assert resolve_base(str(tmp_path)) == tmp_path
        with pytest.raises(BaseModelError, match="no such folder"):
            resolve_base(tmp_path / "absent")
        assert hub.requests == []

    def test_without_safetensors(self, hub):
        add_repo(hub, "ada/base", {"config.json": b"{}", "pytorch_model.bin": b"x"})
        with pytest.raises(BaseModelError, match=r"'ada/base'.*no \*\.safetensors"):
            resolve_base("ada/base")

    def test_missing(self, hub):
        with pytest.raises(HubError, match="reading the base model 'ada/absent'"):
            resolve_base("ada/absent")


LOAD = """
import sys, torch
from peft import PeftModel, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import LlamaConfig, LlamaForCausalLM

torch.manual_seed(0)
model = LlamaForCausalLM(LlamaConfig(vocab_size=8, hidden_size=16, intermediate_size=16, num_hidden_layers=2,
                                     num_attention_heads=2, num_key_value_heads=2))
ids = torch.arange(8)[None]
before = model(ids).logits
model = PeftModel.from_pretrained(model, "ada/merged").eval()
assert not torch.equal(before, model(ids).logits)
save_file({k: v.contiguous() for k, v in get_peft_model_state_dict(model).items()}, sys.argv[1])
"""


@pytest.mark.slow
def test_peft_loads_it_from_the_hub(hub, folder, tmp_path):
    push_folder(folder, "ada/merged", token="hf_ada")
    hub.requests.clear()
    environment = {
        **{name: value for name, value in os.environ.items() if not name.upper().endswith(("_PROXY", "_TOKEN"))},
        "HF_ENDPOINT": hub.endpoint,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        # anything but the loopback Hub ends at a port where no one listens
        "HTTP_PROXY": "http://127.0.0.1:9",
        "HTTPS_PROXY": "http://127.0.0.1:9",
        "NO_PROXY": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_HUB_CACHE"):
        environment.pop(name, None)
    loaded = tmp_path / "loaded.safetensors"
    run = subprocess.run([sys.executable, "-c", LOAD, str(loaded)], env=environment, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    ours, theirs = load_file(folder / "adapter_model.safetensors"), load_file(loaded)
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    assert ("GET", "/ada/merged/resolve/main/adapter_config.json") in hub.requests


def test_importing_it_is_light():
    code = "import sys, samerge.weights.hub, json; print(json.dumps(sorted(sys.modules)))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    modules = json.loads(out)
    assert "samerge.weights.hub" in modules
    assert not {"huggingface_hub", "transformers", "peft"} & set(modules)


class TestOneFileOfARepository:
    """Adapters that are one file of any name, as of kohya's scripts."""

    def test_the_only_one(self, hub):
        add_repo(hub, "ada/m", {"style-v2.safetensors": b"x", "README.md": b"#", "model.safetensors": b"no adapter"})
        found = resolve_adapter("ada/m")
        assert found.name == "style-v2.safetensors"
        assert found.read_bytes() == b"x"
        assert not (found.parent / "model.safetensors").exists()
        assert resolve_adapter("ada/m", local_files_only=True) == found
        hub.down = True
        assert resolve_adapter("ada/m") == found

    def test_one_of_several(self, hub):
        files = {"a.safetensors": b"a", "c.gguf": b"c", "inner/b.safetensors": b"b"}
        add_repo(hub, "ada/m", files)
        with pytest.raises(AdapterError, match=r"it has a\.safetensors, c\.gguf, inner/b\.safetensors; .*ada/m/FILE"):
            resolve_adapter("ada/m")
        for name, data in files.items():
            assert resolve_adapter(f"ada/m/{name}").read_bytes() == data
            assert resolve_adapter(f"ada/m/{name}@main").read_bytes() == data
            assert files_beside(f"ada/m/{name}") == ()
        assert resolve_adapter("ada/m/inner@main").name == "b.safetensors"
        with pytest.raises(AdapterError, match=r"no absent\.safetensors; it has a\.safetensors"):
            resolve_adapter("ada/m/absent.safetensors")


class TestWhatIsPublished:
    """From the cards of the sources to that of the merge."""

    CARD = "---\nlicense: {}\npipeline_tag: text-generation\n---\n# One\n"

    @pytest.fixture
    def merged(self, hub, tmp_path):
        def merged(*licences):
            commits = {}
            for seed, (name, licence) in enumerate(zip(("math", "code"), licences, strict=True)):
                folder = written(tmp_path / name, seed)
                files = {file: (folder / file).read_bytes() for file in ADAPTER}
                text = self.CARD.format(licence) if licence else "# One\n"
                commits[f"ada/{folder.name}"] = add_repo(
                    hub, f"ada/{folder.name}", {**files, "README.md": text.encode()}
                )
            made = samerge.merge(None, list(commits), method="linear", weights=[1.0, 0.5], progress=False)
            made.save(tmp_path / "merged")
            text = (tmp_path / "merged" / "README.md").read_text(encoding="utf-8")
            record = read_record(tmp_path / "merged")
            return ModelCard(text), commits, record

        return merged

    def test_what_all_agree_on_is_inherited(self, merged):
        card, commits, record = merged("apache-2.0", "apache-2.0")
        assert (card.data.license, card.data.pipeline_tag) == ("apache-2.0", "text-generation")
        assert card.data.to_dict()["merged_from"] == [
            {"id": name, "revision": commit, "weight": weight}
            for (name, commit), weight in zip(commits.items(), (1.0, 0.5), strict=True)
        ]
        for (name, commit), one in zip(commits.items(), record.inputs, strict=True):
            assert (one.source, one.revision, one.card) == (
                name,
                commit,
                Card("apache-2.0", None, None, "text-generation"),
            )
            assert f"[{name}](https://huggingface.co/{name}/tree/{commit})" in card.text.replace("\\", "")
        assert "licences differ" not in card.text

    @pytest.mark.parametrize("other", ["mit", None])
    def test_what_they_do_not_agree_on_is_left_open(self, merged, other):
        card, _, _ = merged("apache-2.0", other)
        assert card.data.license is None
        assert ("The licences differ" in card.text) == (other is not None)
        assert ("mit" if other else "not said") in card.text
        assert card.data.pipeline_tag == ("text-generation" if other else None)
