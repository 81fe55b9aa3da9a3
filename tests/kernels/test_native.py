"""The kernel in C against dense float64 and against the torch path."""

from __future__ import annotations

import hashlib
import logging
import os
import shutil
import stat
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from samerge.errors import KernelError
from samerge.linalg.factors import LoraFactors
from samerge.saliency.kernels import backend, build
from samerge.saliency.kernels.native import NativeKernel
from samerge.saliency.kernels.tiles import TorchKernel

pytestmark = pytest.mark.skipif(shutil.which("cc") is None, reason="needs a C compiler")

RANKS = [*range(21), 33, 64]


def case(height, width, ranks, dtype=torch.float32, seed=0):
    """A weight, and for each rank an expert (None for no factors) and flows; updates as large as the weight."""
    generator = torch.Generator().manual_seed(seed)

    def rand(*shape):
        return torch.randn(*shape, generator=generator)

    theta = rand(height, width).to(dtype)
    factors = [None if r is None else LoraFactors(rand(r, width) / max(r, 1) ** 0.5, rand(height, r)) for r in ranks]
    return theta, factors, (rand(len(ranks), height).abs(), rand(len(ranks), width).abs())


def dense(theta, factors, flows, along_rows):
    """The product and the gammas from whole matrices in float64."""
    products, gammas = [], []
    for n, own in enumerate(factors):
        u, v = (flow[n].double() for flow in flows)
        weight = theta.double() + (0 if own is None else own.B.double() @ own.A.double())
        products.append(weight.abs() @ v if along_rows else weight.abs().T @ u)
        if own is not None:
            gradient = torch.sign(weight) * torch.outer(u, v)
            gammas.append(torch.einsum("ik,ij,kj->k", own.B.double(), gradient, own.A.double()))
    return torch.stack(products), gammas


def swept(kernel, theta, factors, flows, along_rows, step, sensing=True):
    """All tiles of a weight, summed up."""
    u, v = flows
    wanted = (u, v) if sensing else ((None, v) if along_rows else (u, None))
    sweep = kernel.sweep(factors, False, wanted, along_rows)
    parts, gammas = [], []
    for start in range(0, theta.shape[0], step):
        found, sensed = sweep(theta[start : start + step].to(kernel.tile_dtype(theta.dtype)), start)
        parts.append(found)
        gammas.append(sensed)
    product = torch.cat(parts, 1) if along_rows else torch.stack(parts).sum(0)
    return product, [torch.stack(own).sum(0) for own in zip(*gammas, strict=True)]


def agrees(got, expected, tolerance=2e-5):
    for one, other in zip((got[0], *got[1]), (expected[0], *expected[1]), strict=True):
        assert one.shape == other.shape
        if one.numel():
            assert (one.double() - other).abs().max() <= tolerance * other.abs().max().clamp_min(1e-6)


@pytest.mark.parametrize("along_rows", [True, False])
@pytest.mark.parametrize("rank", RANKS)
def test_every_rank(rank, along_rows):
    theta, factors, flows = case(31, 77, [rank, rank], seed=rank)
    expected = dense(theta, factors, flows, along_rows)
    agrees(swept(NativeKernel(), theta, factors, flows, along_rows, 31), expected)
    agrees(swept(TorchKernel(theta.device, theta.dtype), theta, factors, flows, along_rows, 31), expected)


@pytest.mark.parametrize("along_rows", [True, False])
@pytest.mark.parametrize("sensing", [True, False])
@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (11, 31), (12, 32), (13, 33), (97, 513), (100, 1000)])
def test_every_shape_in_tiles(shape, sensing, along_rows):
    """Sizes about whole blocks and whole strips; experts of several ranks, some that do not adapt the weight."""
    theta, factors, flows = case(*shape, [5, None, 0, 3, 17], seed=shape[1])
    product, gammas = dense(theta, factors, flows, along_rows)
    for step in (7, 24, 1000):
        got = swept(NativeKernel(), theta, factors, flows, along_rows, step, sensing)
        agrees(got, (product, gammas if sensing else []))


@pytest.mark.parametrize("along_rows", [True, False])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_bases_in_other_dtypes(dtype, along_rows):
    theta, factors, flows = case(30, 290, [4, None], dtype)
    expected = dense(theta.float(), factors, flows, along_rows)
    agrees(swept(NativeKernel(), theta, factors, flows, along_rows, 13), expected)


def test_float16_extremes():
    """Subnormal and largest numbers survive the widening."""
    theta = torch.tensor([[6e-8, 65504.0, -6e-8, 0.0]], dtype=torch.float16)
    product, _ = swept(NativeKernel(), theta, [None], (torch.ones(1, 1), torch.ones(1, 4)), False, 1, False)
    assert torch.equal(product, theta.float().abs())


def test_a_view_with_strides():
    theta, factors, flows = case(40, 60, [3])
    wide = torch.randn(40, 200)
    wide[:, 70:130] = theta
    expected = dense(theta, factors, flows, True)
    agrees(swept(NativeKernel(), wide[:, 70:130], factors, flows, True, 16), expected)
    agrees(swept(NativeKernel(), theta.T.contiguous().T, factors, flows, True, 16), expected)


@pytest.mark.parametrize("along_rows", [True, False])
def test_the_sign_of_zero_is_zero(along_rows):
    """Where an update takes a weight to exactly 0, it moves nothing: whole numbers, so that it is exact."""
    theta, _, flows = case(24, 64, [2])
    generator = torch.Generator().manual_seed(1)
    A = torch.randint(-3, 4, (2, 64), generator=generator).float()
    B = torch.randint(-3, 4, (24, 2), generator=generator).float()
    theta = torch.where(theta > 0, -(B @ A), theta)
    factors = [LoraFactors(A, B)]
    gone = (theta + B @ A == 0) & ((B.abs() @ A.abs()) > 0)
    assert gone.sum() > 100
    agrees(swept(NativeKernel(), theta, factors, flows, along_rows, 24), dense(theta, factors, flows, along_rows))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("along_rows", [True, False])
def test_nan_and_infinity_get_through(value, along_rows):
    theta, factors, flows = case(30, 70, [3, None])
    theta[17, 41] = value
    product, _ = swept(NativeKernel(), theta, factors, flows, along_rows, 12)
    place = 17 if along_rows else 41
    others = torch.arange(product.shape[1]) != place
    assert not torch.isfinite(product[:, place]).any()
    assert torch.isfinite(product[:, others]).all()
    assert torch.isnan(product[:, place]).all() == (value != value)


def test_calls_in_many_threads_do_not_meet():
    theta, factors, flows = case(200, 300, [5, 16, None])
    kernel = NativeKernel()
    expected = swept(kernel, theta, factors, flows, False, 48)
    found = [None] * 4

    def run(place):
        for _ in range(5):
            found[place] = swept(kernel, theta, factors, flows, False, 48)

    threads = [threading.Thread(target=run, args=(place,)) for place in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for got in found:
        agrees(got, expected)


def test_many_experts():
    theta, factors, flows = case(25, 40, [1] * 100)
    agrees(swept(NativeKernel(), theta, factors, flows, False, 25), dense(theta, factors, flows, False))


@pytest.fixture
def fresh(monkeypatch, tmp_path):
    """An empty cache, and nothing loaded or warned about."""
    from samerge.saliency.kernels import native

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    native.library.cache_clear()
    backend._warn.cache_clear()
    yield tmp_path / "samerge"
    native.library.cache_clear()
    backend._warn.cache_clear()


@pytest.fixture(autouse=True)
def _no_wishes(monkeypatch):
    """Neither a kernel nor a compiler is asked for from outside."""
    for name in ("SAMERGE_KERNEL", "CC"):
        monkeypatch.delenv(name, raising=False)


CPU = torch.device("cpu")


def test_compiled_once(fresh):
    assert backend.choose(CPU, torch.float32).name == "native"
    (made,) = fresh.iterdir()
    before = made.stat().st_mtime_ns
    source = Path(build.__file__).with_name("sweep.c")
    build.compiled(source)
    assert [path.name for path in fresh.iterdir()] == [made.name]
    assert made.stat().st_mtime_ns == before


def test_another_source_is_another_library(fresh, tmp_path):
    for number in range(2):
        source = tmp_path / "answer.c"
        source.write_text(f"int answer(void) {{ return {number}; }}\n")
        assert build.compiled(source).answer() == number
    assert len(list(fresh.iterdir())) == 2


@pytest.mark.parametrize("damage", ["empty", "half", "garbage", "unloadable"])
def test_a_damaged_library_is_compiled_anew(fresh, monkeypatch, tmp_path, damage):
    """In another folder than the sound one, since a path that this process has loaded is not read again."""
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    build.compiled(source)
    (sound,) = fresh.iterdir()
    data = sound.read_bytes()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "second"))
    damaged = build.cache_folder() / sound.name
    damaged.parent.mkdir(parents=True)
    damaged.write_bytes({"empty": b"", "half": data[: len(data) // 2]}.get(damage, b"garbage"))
    if damage == "unloadable":  # whole, but no library of this machine
        damaged.rename(damaged.with_stem(f"{sound.stem.rpartition('-')[0]}-{build._digest(damaged)}"))
    assert build.compiled(source).answer() == 42
    assert (damaged.parent / sound.name).read_bytes() == data


def test_a_fresh_library_that_cannot_be_loaded(fresh, monkeypatch, tmp_path):
    monkeypatch.setattr(build, "_compile", lambda command, source, target: target.write_text("no library") and target)
    with pytest.raises(KernelError, match=r"cannot be loaded: .*; name another C compiler in CC, or in XDG_CACHE_HOME"):
        build.compiled(Path(build.__file__).with_name("sweep.c"))


@pytest.mark.slow
def test_several_processes_at_once(fresh):
    code = "from samerge.saliency.kernels.native import NativeKernel; print(NativeKernel().name)"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(3)
    ]
    assert [run.communicate()[0].strip() for run in runs] == ["native"] * 3
    assert len(list(fresh.iterdir())) == 1


def test_a_cache_that_cannot_be_written(monkeypatch, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(blocked))  # a file is no folder, for root either
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    assert build.compiled(source).answer() == 42


@pytest.fixture
def answer(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    return source


def planted(source: Path) -> Path:
    """Another's library under the very name that is looked for."""
    assert build.compiled(source).answer() == 42
    [sound] = build.cache_folder().iterdir()
    evil = source.with_name("evil.c")
    evil.write_text("int answer(void) { return 666; }\n")
    build._compile(["cc", "-shared", "-fPIC"], evil, source.with_name("evil.so"))
    data = source.with_name("evil.so").read_bytes()
    stem = sound.stem.rpartition("-")[0]
    sound.unlink()
    found = sound.with_name(f"{stem}-{hashlib.sha256(data).hexdigest()[:24]}.so")
    found.write_bytes(data)
    return found


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no owners of this kind")
@pytest.mark.parametrize("way", ["writable folder", "writable library", "link", "linked folder", "owner"])
def test_a_library_that_another_user_could_have_put_there_is_not_loaded(answer, monkeypatch, way):
    library = planted(answer)
    folder = library.parent
    library.chmod(0o600)
    if way == "writable folder":
        folder.chmod(0o777)
    elif way == "writable library":
        library.chmod(0o622)
    elif way == "link":
        library.rename(answer.with_name("elsewhere.so"))
        library.symlink_to(answer.with_name("elsewhere.so"))
    elif way == "linked folder":
        folder.rename(answer.with_name("elsewhere"))
        folder.symlink_to(answer.with_name("elsewhere"))
    else:
        monkeypatch.setattr(os, "getuid", lambda: 12345)
    assert build.compiled(answer).answer() == 42


@pytest.mark.skipif(not hasattr(os, "getuid"), reason="Windows has no owners of this kind")
def test_the_cache_is_for_its_owner_alone(answer):
    build.compiled(answer)
    assert stat.S_IMODE(build.cache_folder().stat().st_mode) == 0o700


def test_a_user_without_a_home(monkeypatch, tmp_path):
    """As in a container that is run under any number: compiled for this process alone."""

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    source = tmp_path / "answer.c"
    source.write_text("int answer(void) { return 42; }\n")
    assert build.compiled(source).answer() == 42


def test_a_cache_folder_that_is_relative_is_ignored(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", "cache")
    assert build.cache_folder().is_absolute()


@pytest.mark.parametrize(("given", "words"), [("'cc", 'CC="\'cc" cannot be split into words'), (" ", None)])
def test_a_compiler_that_is_no_command(fresh, monkeypatch, given, words):
    monkeypatch.setenv("CC", given)
    if words is None:
        assert backend.choose(CPU, torch.float32).name == "native"
        return
    with pytest.raises(KernelError, match=words):
        build.compiled(Path(build.__file__).with_name("sweep.c"))
    assert backend.choose(CPU, torch.float32).name == "torch"


def test_without_a_compiler(fresh, monkeypatch, caplog):
    """The torch path, said once; an error where native was asked for."""
    monkeypatch.setenv("CC", "no-such-compiler")
    with caplog.at_level(logging.WARNING, "samerge"):
        for _ in range(2):
            assert backend.choose(CPU, torch.float32).name == "torch"
    (record,) = caplog.records
    assert "there is no C compiler 'no-such-compiler'" in record.message
    monkeypatch.setenv("SAMERGE_KERNEL", "native")
    with pytest.raises(
        KernelError, match="SAMERGE_KERNEL=native, and the kernel cannot be had: there is no C compiler"
    ):
        backend.choose(CPU, torch.float32)


def test_a_compiler_that_fails(fresh, monkeypatch, tmp_path):
    broken = tmp_path / "cc"
    broken.write_text("#!/bin/sh\necho 'it does not work' >&2\nexit 3\n")
    broken.chmod(broken.stat().st_mode | stat.S_IXUSR)
    monkeypatch.setenv("CC", str(broken))
    with pytest.raises(KernelError, match="the C compiler failed: it does not work"):
        build.compiled(Path(build.__file__).with_name("sweep.c"))


def test_the_choice(monkeypatch):
    assert backend.choose(CPU, torch.float64).name == "torch"
    monkeypatch.setenv("SAMERGE_KERNEL", "torch")
    assert backend.choose(CPU, torch.float32).name == "torch"
    monkeypatch.setenv("SAMERGE_KERNEL", "native")
    with pytest.raises(KernelError, match="computes in float32 on cpu, not in float64 on cpu"):
        backend.choose(CPU, torch.float64)
    monkeypatch.setenv("SAMERGE_KERNEL", "fast")
    with pytest.raises(
        KernelError,
        match=r"'fast' is not known; choose one of native, triton, .*, torch, auto",
    ):
        backend.choose(CPU, torch.float32)
