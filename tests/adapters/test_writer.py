"""The output is there whole or not at all, whatever fails and whenever."""

import hashlib
import json
import logging
import os
import re
import shutil
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file

from samerge.adapters import atomic, writer
from samerge.adapters.atomic import atomic_file, atomic_folder
from samerge.adapters.writer import write_adapter
from samerge.errors import AdapterError, OutputExistsError

FILES = ["README.md", "adapter_config.json", "adapter_model.safetensors", "samerge.json"]
A, B = "base_model.model.proj.lora_A.weight", "base_model.model.proj.lora_B.weight"
RECORD = {"method": "linear", "inputs": [{"name": "é"}], "layers": {"proj": {"norm": 1.5}}}


def tensors():
    generator = torch.Generator().manual_seed(0)
    return {B: torch.randn(6, 2, generator=generator), A: torch.randn(2, 4, generator=generator)}


def write(folder, **changes):
    arguments = {"tensors": tensors(), "config": {"r": 2, "bias": "none"}, "record": RECORD, "card": "# card\n"}
    return write_adapter(folder, **{**arguments, **changes})


def tree(folder):
    """Everything below a folder, by path: the bytes of files, the targets of links, None for folders."""
    return {
        path.relative_to(folder).as_posix(): (
            os.readlink(path) if path.is_symlink() else path.read_bytes() if path.is_file() else None
        )
        for path in sorted(folder.rglob("*"))
    }


class TestContent:
    def test_the_files(self, tmp_path):
        out = write(tmp_path / "out")
        assert out == tmp_path / "out"
        assert sorted(path.name for path in out.iterdir()) == FILES
        loaded = load_file(out / "adapter_model.safetensors")
        assert loaded.keys() == {A, B}
        assert all(torch.equal(loaded[key], value) for key, value in tensors().items())
        with safe_open(out / "adapter_model.safetensors", "pt") as file:
            assert file.metadata() == {"format": "pt"}
        assert (out / "adapter_config.json").read_text() == '{\n  "bias": "none",\n  "r": 2\n}\n'
        files = {
            name: hashlib.sha256((out / name).read_bytes()).hexdigest() for name in FILES if name != "samerge.json"
        }
        assert json.loads((out / "samerge.json").read_text(encoding="utf-8")) == {**RECORD, "files": files}
        assert (out / "README.md").read_bytes() == b"# card\n"

    def test_the_same_bytes_whatever_the_order(self, tmp_path):
        first = write(tmp_path / "a", config={"r": 2, "target_modules": list("abcdefgh")})
        swapped = dict(reversed(tensors().items()))
        second = write(
            tmp_path / "b",
            tensors=swapped,
            config={"target_modules": set("hgfedcba"), "r": 2},
            record=dict(reversed(RECORD.items())),
        )
        assert tree(first) == tree(second)

    def test_readable_as_the_umask_says(self, tmp_path):
        old = os.umask(0o027)
        try:
            out = write(tmp_path / "out")
        finally:
            os.umask(old)
        assert stat.S_IMODE(out.stat().st_mode) == 0o750
        assert {stat.S_IMODE(path.stat().st_mode) for path in out.iterdir()} == {0o640}

    def test_views_and_shared_tensors(self, tmp_path):
        shared = torch.arange(24.0).reshape(4, 6)
        given = {"a": shared[:2], "b": shared.T, "c": shared, "d": shared[2:], "e": torch.nn.Parameter(shared)}
        given["f"] = torch.arange(6.0).reshape(2, 3).T
        before = {name: (value.detach().clone(), value.stride(), value.data_ptr()) for name, value in given.items()}
        loaded = load_file(write(tmp_path / "out", tensors=given) / "adapter_model.safetensors")
        for name, (value, stride, pointer) in before.items():
            assert torch.equal(loaded[name], value)
            assert (given[name].stride(), given[name].data_ptr()) == (stride, pointer)
            assert torch.equal(given[name].detach(), value)
        assert given["e"].requires_grad

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float8_e4m3fn])
    def test_dtypes(self, tmp_path, dtype):
        value = torch.arange(8.0).reshape(2, 4).to(dtype)
        loaded = load_file(write(tmp_path / "out", tensors={A: value}) / "adapter_model.safetensors")[A]
        assert loaded.dtype == dtype
        assert torch.equal(loaded.float(), value.float())

    def test_numbers_that_json_lacks(self, tmp_path):
        record = {"log_connectivity": {"a": float("-inf"), "b": [float("nan"), 1.0]}}
        text = (write(tmp_path / "out", record=record) / "samerge.json").read_text()
        found = json.loads(text, parse_constant=pytest.fail)
        del found["files"]
        assert found == {"log_connectivity": {"a": None, "b": [None, 1.0]}}

    def test_peft_loads_it(self, tmp_path):
        from peft import PeftModel, get_peft_model_state_dict

        def base():
            torch.manual_seed(0)
            return torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))

        config = LoraConfig(r=2, lora_alpha=2, target_modules=["0", "1"])
        state = get_peft_model_state_dict(get_peft_model(base(), config))
        state = {key: torch.full_like(value, 0.5) for key, value in state.items()}
        out = write(tmp_path / "out", tensors=state, config=config.to_dict())
        loaded = get_peft_model_state_dict(PeftModel.from_pretrained(base(), out))
        assert loaded.keys() == state.keys()
        assert all(torch.equal(loaded[key], state[key]) for key in state)


class TestBadInput:
    """Found before anything is on the disk, or with nothing left there."""

    @pytest.mark.parametrize(
        ("changes", "error", "words"),
        [
            ({"tensors": {}}, AdapterError, "not one tensor"),
            ({"tensors": {A: torch.empty(2, device="meta")}}, AdapterError, "meta device"),
            ({"config": {"r": object()}}, TypeError, r"writing adapter_config\.json"),
            ({"record": {"dtype": torch.float32}}, TypeError, r"writing samerge\.json"),
        ],
    )
    def test_it(self, tmp_path, changes, error, words):
        with pytest.raises(error, match=words):
            write(tmp_path / "new" / "deep" / "out", **changes)
        assert tree(tmp_path) == {}


class TestTarget:
    def test_parents_are_created(self, tmp_path):
        assert sorted(tree(write(tmp_path / "a" / "b" / "out"))) == FILES

    def test_relative_and_home(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("HOME", str(tmp_path / "home"))
        assert write("out") == Path("out")
        assert write("~/out") == tmp_path / "home" / "out"
        with atomic_folder("~/other"):
            pass
        assert sorted(tree(tmp_path)) == sorted(
            [
                "home",
                "home/other",
                "home/out",
                "out",
                *(f"{out}/{name}" for out in ("home/out", "out") for name in FILES),
            ]
        )

    @pytest.mark.parametrize("kind", ["adapter", "empty", "file", "link", "dangling link"])
    def test_taken_is_refused_before_anything_is_done(self, tmp_path, monkeypatch, kind):
        target = tmp_path / "out"
        make(kind, target)
        before = tree(tmp_path)
        monkeypatch.setattr(writer, "save_file", lambda *_, **__: pytest.fail("it began to write"))
        monkeypatch.setattr(Path, "mkdir", lambda *_, **__: pytest.fail("it created a folder"))
        with pytest.raises(OutputExistsError, match=r"out: it exists already.*overwrite=True") as caught:
            write(target)
        assert str(target) in str(caught.value)
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("kind", ["adapter", "empty", "adapter with cache"])
    def test_overwrite(self, tmp_path, kind):
        target = tmp_path / "out"
        make(kind, target)
        write(target, overwrite=True)
        assert tree(tmp_path) == {"out": None} | {f"out/{k}": v for k, v in tree(write(tmp_path / "fresh")).items()}

    def test_overwrite_what_is_not_there(self, tmp_path):
        assert sorted(tree(write(tmp_path / "out", overwrite=True))) == FILES

    @pytest.mark.parametrize(
        ("kind", "words"),
        [
            ("file", "it is a file, not a folder"),
            ("link", "symbolic link.*real"),
            ("dangling link", "symbolic link"),
            ("home", r"holds no adapter_config\.json, so it is left alone \(it holds 'thesis.tex'\)"),
            ("several adapters", "it holds the folder 'second', which would be lost"),
        ],
    )
    def test_overwrite_is_refused(self, tmp_path, kind, words):
        target = tmp_path / "out"
        make(kind, target)
        before = tree(tmp_path)
        with pytest.raises(OutputExistsError, match=words):
            write(target, overwrite=True)
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("target", [".", "..", "../out", "../../{}/out"])
    def test_the_current_folder_is_not_replaced(self, tmp_path, monkeypatch, target):
        make("adapter", tmp_path / "out")
        monkeypatch.chdir(tmp_path / "out")
        with pytest.raises(OutputExistsError):
            write(target.format(tmp_path.name), overwrite=True)
        with pytest.raises(OutputExistsError, match="current folder"):
            write(tmp_path / "out", overwrite=True)
        assert sorted(tree(tmp_path)) == ["out", "out/adapter_config.json"]

    @pytest.mark.parametrize("path", ["file/out", "file/deep/out"])
    def test_a_parent_that_is_a_file(self, tmp_path, path):
        (tmp_path / "file").write_text("x")
        with pytest.raises(OutputExistsError, match=r"file is a file and cannot hold folders"):
            write(tmp_path / path)
        assert tree(tmp_path) == {"file": b"x"}

    def test_through_a_parent_that_is_a_link(self, tmp_path):
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        write(tmp_path / "link" / "out")
        assert sorted(path.name for path in (tmp_path / "real").iterdir()) == ["out"]

    def test_another_kind_of_folder(self, tmp_path):
        (tmp_path / "model").mkdir()
        (tmp_path / "model" / "config.json").write_text("old")
        with atomic_folder(tmp_path / "model", overwrite=True, marker="config.json") as temporary:
            (temporary / "config.json").write_text("new")
        assert tree(tmp_path) == {"model": None, "model/config.json": b"new"}

    def test_a_long_name(self, tmp_path):
        name = "m" * 250
        write(tmp_path / name)
        write(tmp_path / name, overwrite=True)
        assert [path.name for path in tmp_path.iterdir()] == [name]


def make(kind, target):
    if kind == "file":
        target.write_text("x")
    elif kind == "link":
        target.with_name("real").mkdir()
        (target.with_name("real") / "adapter_config.json").write_text("old")
        target.symlink_to(target.with_name("real"))
    elif kind == "dangling link":
        target.symlink_to(target.with_name("nowhere"))
    else:
        target.mkdir()
        if kind == "home":
            (target / "thesis.tex").write_text("x")
        elif kind != "empty":
            (target / "adapter_config.json").write_text("old")
        if kind == "several adapters":
            (target / "second").mkdir()
        if kind == "adapter with cache":
            (target / ".cache" / "huggingface").mkdir(parents=True)


WHERE = ["save_file", "write_text", "first mkdir", "last mkdir", "fsync", "folder fsync", "chmod"]
FAILURES = [OSError(28, "No space left on device"), KeyboardInterrupt(), SystemExit(1), RuntimeError("boom")]


def fail(monkeypatch, owner, name, error, at=1, after=False):
    """Make the call number `at` of a function raise, before or after it has done its work."""
    real, calls = getattr(owner, name), []

    def wrapper(*args, **kwargs):
        calls.append(args)
        if len(calls) != at:
            return real(*args, **kwargs)
        if after:
            real(*args, **kwargs)
        raise error

    monkeypatch.setattr(owner, name, wrapper)
    return calls


class TestFailure:
    @pytest.mark.parametrize("old", [None, "adapter"])
    @pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
    @pytest.mark.parametrize("where", WHERE)
    def test_while_filling(self, tmp_path, monkeypatch, where, after, error, old):
        target = tmp_path / "parent" / "out"
        if old:
            target.parent.mkdir()
            make(old, target)
        before = tree(tmp_path)
        owner, name, at = {
            "save_file": (writer, "save_file", 1),
            "write_text": (Path, "write_text", 2),
            # without an old output, the first folder that is made is the parent
            "first mkdir": (Path, "mkdir", 1),
            "last mkdir": (Path, "mkdir", 1 if old else 2),
            "fsync": (os, "fsync", 1),
            "folder fsync": (atomic, "_sync_folder", 1),
            "chmod": (os, "chmod", 1),
        }[where]
        calls = fail(monkeypatch, owner, name, error, at, after)
        with pytest.raises(type(error)) as caught:
            write(target, overwrite=True)
        monkeypatch.undo()
        assert caught.value is error
        assert len(calls) >= at
        assert tree(tmp_path) == before

    @pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize(
        ("at", "after", "stays"),
        [(1, False, "old"), (1, True, "old"), (2, False, "old"), (2, True, "new")],
        ids=["before moving aside", "after moving aside", "before moving in", "after moving in"],
    )
    def test_while_replacing(self, tmp_path, monkeypatch, at, after, stays, error):
        target = tmp_path / "out"
        make("adapter", target)
        before = tree(tmp_path)
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)
        fail(monkeypatch, os, "rename", error, at, after)
        with pytest.raises(type(error)) as caught:
            write(target, overwrite=True)
        monkeypatch.undo()
        assert caught.value is error
        if stays == "old":
            assert tree(tmp_path) == before
        else:
            assert sorted(tree(tmp_path)) == ["out", *(f"out/{name}" for name in FILES)]

    @pytest.mark.parametrize("error", FAILURES, ids=lambda error: type(error).__name__)
    @pytest.mark.parametrize("after", [False, True])
    def test_while_exchanging(self, tmp_path, monkeypatch, after, error):
        target = tmp_path / "out"
        make("adapter", target)
        before = tree(tmp_path)
        monkeypatch.setattr(os, "rename", lambda *_: pytest.fail("one name after the other"))
        fail(monkeypatch, atomic, "exchange", error, 1, after)
        with pytest.raises(type(error)) as caught:
            write(target, overwrite=True)
        monkeypatch.undo()
        assert caught.value is error
        assert (
            tree(tmp_path) == before if not after else sorted(tree(tmp_path)) == ["out", *(f"out/{n}" for n in FILES)]
        )

    @pytest.mark.parametrize("after", [False, True])
    def test_while_moving_in_for_the_first_time(self, tmp_path, monkeypatch, after):
        fail(monkeypatch, os, "rename", KeyboardInterrupt(), after=after)
        with pytest.raises(KeyboardInterrupt):
            write(tmp_path / "new" / "out")
        # complete under its own name, or nothing, not even the parent that was made for it
        assert sorted(tree(tmp_path)) == (["new", "new/out", *(f"new/out/{name}" for name in FILES)] if after else [])

    def test_the_old_output_cannot_be_put_back(self, tmp_path, monkeypatch, caplog):
        target = tmp_path / "out"
        make("adapter", target)
        real, calls = os.rename, []
        monkeypatch.setattr(atomic, "exchange", lambda *_: False)

        def only_the_first(source, destination):
            calls.append(source)
            if len(calls) > 1:
                raise OSError(5, "Input/output error")
            real(source, destination)

        monkeypatch.setattr(os, "rename", only_the_first)
        with caplog.at_level(logging.WARNING, "samerge"), pytest.raises(OSError, match="Input/output"):
            write(target, overwrite=True)
        kept = [path for path in tmp_path.iterdir() if path.name.endswith(".old")]
        assert [path.name for path in tmp_path.iterdir()] == [kept[0].name]
        assert (kept[0] / "adapter_config.json").read_text() == "old"
        assert str(kept[0]) in caplog.text

    def test_another_process_was_faster(self, tmp_path, monkeypatch):
        target = tmp_path / "out"
        with pytest.raises(OutputExistsError, match="exists already"), atomic_folder(target):
            make("adapter", target)
        assert tree(tmp_path) == {"out": None, "out/adapter_config.json": b"old"}

    def test_an_interrupt_while_the_old_one_is_removed(self, tmp_path, monkeypatch):
        target = tmp_path / "out"
        make("adapter", target)
        fail(monkeypatch, shutil, "rmtree", KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt), atomic_folder(target, overwrite=True) as folder:
            (folder / "adapter_config.json").write_text("new")
        assert tree(tmp_path) == {"out": None, "out/adapter_config.json": b"new"}

    @pytest.mark.parametrize("moment", ["after the last check", "before the rename"])
    def test_another_process_was_faster_at_the_last_moment(self, tmp_path, monkeypatch, moment):
        target = tmp_path / "out"
        check, rename, checks = atomic.check_free, os.rename, []

        def checking(*args):
            check(*args)
            checks.append(args)
            if len(checks) == 2:
                make("adapter", target)

        def renaming(source, destination):
            make("adapter", target)
            rename(source, destination)

        if moment == "before the rename":
            monkeypatch.setattr(os, "rename", renaming)
        else:
            monkeypatch.setattr(atomic, "check_free", checking)
        with pytest.raises(OutputExistsError, match="another process"):
            write(target)
        assert tree(tmp_path) == {"out": None, "out/adapter_config.json": b"old"}

    def test_a_file_put_into_the_old_folder_meanwhile_is_not_lost(self, tmp_path):
        target = tmp_path / "out"
        make("empty", target)
        refused = pytest.raises(OutputExistsError, match=r"holds no adapter_config\.json")
        with refused, atomic_folder(target, overwrite=True):
            (target / "thesis.tex").write_text("x")
        assert tree(tmp_path) == {"out": None, "out/thesis.tex": b"x"}


def test_everything_is_synced_before_the_name_is_given(tmp_path, monkeypatch):
    """Each file and its folder reach the disk first, then the rename happens, then the parent is synced."""
    events, opened = [], {}
    real_open, real_rename = os.open, os.rename

    def opening(path, *args, **kwargs):
        descriptor = real_open(path, *args, **kwargs)
        opened[descriptor] = Path(path)
        return descriptor

    def rename(source, destination):
        events.append(("rename", Path(destination).name))
        real_rename(source, destination)

    monkeypatch.setattr(os, "open", opening)
    monkeypatch.setattr(os, "fsync", lambda descriptor: events.append(("sync", opened[descriptor].name)))
    monkeypatch.setattr(os, "rename", rename)
    write(tmp_path / "out")
    renamed = events.index(("rename", "out"))
    assert sorted(name for _, name in events[: renamed - 1]) == FILES
    assert re.fullmatch(r"\.out\..*\.tmp", events[renamed - 1][1])
    assert events[renamed + 1 :] == [("sync", tmp_path.name)]


class TestLeftovers:
    """What a killed run left is finished or removed by the next one; what a living one has is left alone."""

    @pytest.fixture
    def killed(self, tmp_path, monkeypatch):
        """Die in a child process, by a signal that cannot be caught, at a call of the writer."""

        def kill(owner: str, name: str, at: int, setup: str = "") -> None:
            code = (
                "import os, signal, torch\nfrom pathlib import Path\nfrom samerge.adapters import atomic, writer\n"
                f"{setup}\n"
                f"real, calls = {owner}.{name}, []\n"
                "def wrapper(*args, **kwargs):\n"
                "    calls.append(1)\n"
                f"    if len(calls) == {at}:\n        os.kill(os.getpid(), signal.SIGKILL)\n"
                "    return real(*args, **kwargs)\n"
                f"{owner}.{name} = wrapper\n"
                f"writer.write_adapter({str(tmp_path / 'out')!r}, {{'a': torch.ones(2)}}, {{}}, {{}}, '#', True)\n"
            )
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
            assert done.returncode == -signal.SIGKILL, done.stderr

        return kill

    @pytest.mark.parametrize(("owner", "name"), [("writer", "_save"), ("atomic", "_sync"), ("atomic", "exchange")])
    def test_a_temporary_folder(self, tmp_path, killed, owner, name):
        make("adapter", tmp_path / "out")
        before = tree(tmp_path)
        killed(owner, name, 1)
        left = tree(tmp_path)
        assert left.items() > before.items()
        write(tmp_path / "other")
        assert left.keys() <= tree(tmp_path).keys()  # another target's run leaves it alone
        with pytest.raises(OutputExistsError, match="exists already"):
            write(tmp_path / "out")
        assert {key: value for key, value in tree(tmp_path).items() if not key.startswith("other")} == before

    def test_an_old_output_without_its_name(self, tmp_path, killed, caplog):
        make("adapter", tmp_path / "out")
        before = tree(tmp_path)
        killed("os", "rename", 2, "atomic.exchange = lambda *_: False")
        assert not (tmp_path / "out").exists()
        with caplog.at_level(logging.WARNING, "samerge"), pytest.raises(OutputExistsError, match="exists already"):
            write(tmp_path / "out")
        assert tree(tmp_path) == before
        assert "out is back: a run that was to replace it had been killed" in caplog.text

    def test_a_living_run(self, tmp_path):
        with atomic_folder(tmp_path / "out") as temporary:
            (temporary / "x").write_text("mine")
            write(tmp_path / "out")
            assert (temporary / "x").read_text() == "mine"
            shutil.rmtree(tmp_path / "out")
        assert tree(tmp_path) == {"out": None, "out/x": b"mine"}

    def test_what_only_looks_like_one(self, tmp_path):
        for name in (".out.tmp", ".out.0123456789ab.tmpx", ".output.0123456789ab.tmp", "out.0123456789ab.tmp"):
            (tmp_path / name).mkdir()
        (tmp_path / "real").mkdir()
        (tmp_path / ".out.0123456789ab.old").symlink_to(tmp_path / "real")
        before = tree(tmp_path)
        write(tmp_path / "out")
        assert {key: value for key, value in tree(tmp_path).items() if not key.startswith("out/") and key != "out"} == (
            before
        )


def test_a_disk_that_is_full_under_the_safetensors_library(tmp_path, monkeypatch):
    def full(*_, **__):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(writer, "save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        write(tmp_path / "out")
    assert caught.value.errno == 28
    assert tree(tmp_path) == {}


class TestAtomicFile:
    """One file, with the promises of a folder."""

    def test_a_failure_leaves_what_was_there(self, tmp_path):
        target = tmp_path / "new" / "a.safetensors"
        with pytest.raises(KeyboardInterrupt):
            _fill(target, KeyboardInterrupt())
        assert not target.parent.exists()
        target = tmp_path / "a.safetensors"
        target.write_bytes(b"old")
        with pytest.raises(OSError, match="full"):
            _fill(target, OSError("the disk is full"), overwrite=True)
        assert target.read_bytes() == b"old"
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]

    def test_what_came_meanwhile_is_kept(self, tmp_path):
        target = tmp_path / "a.safetensors"
        with pytest.raises(OutputExistsError, match="exists already"):
            _fill(target, meanwhile=lambda: target.write_bytes(b"theirs"))
        assert target.read_bytes() == b"theirs"

    def test_what_a_killed_run_left_is_removed(self, tmp_path):
        target = tmp_path / "a.safetensors"
        left = tmp_path / ".a.safetensors.0123456789ab.tmp"
        left.mkdir()
        (left / "a.safetensors").write_bytes(b"half")
        with atomic_file(target) as temporary:
            temporary.write_bytes(b"whole")
        assert [path.name for path in tmp_path.iterdir()] == ["a.safetensors"]
        assert target.stat().st_mode & 0o777 == 0o666 & ~_umask()


def _fill(target, error=None, overwrite=False, meanwhile=None) -> None:
    with atomic_file(target, overwrite) as temporary:
        temporary.write_bytes(b"half")
        if meanwhile is not None:
            meanwhile()
        if error is not None:
            raise error


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_record_is_made_plain_once(tmp_path, monkeypatch):
    seen, plain = [], writer.plain
    monkeypatch.setattr(writer, "plain", lambda data, name: seen.append(name) or plain(data, name))
    told = {"found": {"b", "a"}, "lost": float("nan")}
    folder = write_adapter(tmp_path / "out", {"base_model.model.q.lora_A.weight": torch.ones(2, 4)}, {"r": 2}, told, "")
    writer.write_text(folder, told, "")
    assert [name for name in seen if name == "samerge.json"] == ["samerge.json"] * 2
    record = json.loads((folder / "samerge.json").read_text())
    assert (record["found"], record["lost"]) == (["a", "b"], None)
    assert "adapter_config.json" in record["files"]
