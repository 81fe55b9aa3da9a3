"""Reading safetensors by hand, against the safetensors library."""

from __future__ import annotations

import hashlib
import json
import os
import re
from random import Random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from samerge.errors import SamergeError
from samerge.weights.tensorfile import TensorFile

DTYPES = [
    torch.float64,
    torch.float32,
    torch.float16,
    torch.bfloat16,
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.int64,
    torch.int32,
    torch.int16,
    torch.int8,
    torch.uint8,
    torch.bool,
]


@pytest.fixture(scope="module")
def file(tmp_path_factory):
    path = tmp_path_factory.mktemp("file") / "x.safetensors"
    tensors = {f"{dtype}": torch.arange(12).reshape(4, 3).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(7.0), "none": torch.zeros(0, 3), "stack": torch.arange(24.0).reshape(2, 4, 3)}
    tensors |= {"vector": torch.arange(5.0), "kernel": torch.arange(48.0).reshape(4, 3, 2, 2)}
    save_file(tensors, path, metadata={"format": "pt"})
    return path


def test_every_tensor_and_dtype(file):
    mine, theirs = TensorFile(file), load_file(file)
    assert set(mine.entries) == set(theirs)
    for name, tensor in theirs.items():
        read = mine.read(name)
        assert (read.dtype, read.shape) == (tensor.dtype, tensor.shape)
        assert mine.dtype(name) == tensor.dtype
        assert torch.equal(read.view(torch.uint8), tensor.view(torch.uint8)) if read.ndim else read == tensor


@given(start=st.integers(0, 3), length=st.integers(0, 9))
def test_rows(file, start, length):
    for name in ("torch.float16", "kernel", "torch.bool"):
        assert torch.equal(
            TensorFile(file).read(name, start, start + length), load_file(file)[name][start : start + length]
        )
    assert torch.equal(
        TensorFile(file).read("stack", start, start + length, 1), load_file(file)["stack"][1, start : start + length]
    )


def header(table) -> bytes:
    text = table if isinstance(table, bytes) else json.dumps(table).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a safetensors file, or truncated"),
        (b"\x01\x02", "not a safetensors file, or truncated"),
        (b"PK\x03\x04 a zip file, as torch.save writes", "its header claims"),
        (header(b"{not json"), "not a sound safetensors file"),
        (header([1, 2]), "not a sound safetensors file"),
        (header({"w": {"dtype": "F32"}}), "not a sound safetensors file"),
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"\0" * 4, "broken or truncated"),
        (header({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}) + b"\0" * 8, "not a sound"),
    ],
)
def test_a_broken_file(tmp_path, content, words):
    path = tmp_path / "broken.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=words) as caught:
        TensorFile(path)
    assert "broken.safetensors" in str(caught.value)


def test_a_dtype_that_torch_lacks(tmp_path):
    path = tmp_path / "x.safetensors"
    path.write_bytes(header({"w": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}) + b"\0")
    with pytest.raises(ValueError, match="tensor 'w' has dtype F4, which cannot be read; known: "):
        TensorFile(path).read("w")


def test_a_file_cut_short_after_it_was_opened(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(1000.0)}, path)
    opened = TensorFile(path)
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(ValueError, match="was truncated while it was read"):
        opened.read("w")


def test_a_file_in_place_of_the_one_that_is_open(tmp_path):
    path, other = tmp_path / "x.safetensors", tmp_path / "y.safetensors"
    save_file({"w": torch.arange(10.0)}, path)
    save_file({"w": torch.arange(10.0) + 1}, other)
    opened = TensorFile(path)
    assert torch.equal(opened.read("w", 2, 4), torch.tensor([2.0, 3.0]))
    other.replace(path)
    with pytest.raises(ValueError, match="was replaced or written to while it was read"):
        opened.read("w")


def test_a_file_that_is_gone(tmp_path):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(10.0)}, path)
    opened = TensorFile(path)
    opened.read("w")
    path.unlink()
    with pytest.raises(ValueError, match=r"x\.safetensors cannot be opened"):
        opened.read("w")


def mutated(data: bytes, random: Random) -> bytes:
    """A sound file with something done to it: bytes, or the header and its length kept right."""
    kind = random.randrange(8)
    at = random.randrange(len(data))
    if kind == 0:
        return data[:at] + bytes([random.randrange(256)]) + data[at + 1 :]
    if kind == 1:
        return data[:at] + random.randbytes(random.choice((1, 4, 8))) + data[at:]
    if kind == 2:
        return data[:at]
    if kind == 3:
        return data + random.randbytes(random.choice((1, 4096)))
    length = int.from_bytes(data[:8], "little")
    text, body = data[8 : 8 + length], data[8 + length :]
    if kind == 4:
        text = random.choice((b"\xef\xbb\xbf", b" ", b"\0")) + text
    elif kind == 5:
        text = text.decode().encode(random.choice(("utf-16", "utf-16-le", "utf-8")))
    elif kind == 6:  # a number in the header
        numbers = list(re.finditer(rb"\d+", text))
        found = random.choice(numbers)
        other = random.choice((b"0", b"-4096", b"4", b"99999999999999999999", b"1.0", b"null", b"[]"))
        text = text[: found.start()] + other + text[found.end() :]
    else:
        old = random.choice((b"F32", b"F16", b"I64", b"vector", b"stack", b"data_offsets", b"shape"))
        text = text.replace(old, random.choice((b"F32", b"I32", b"U16", b"F4", b"BOOL", b"XX", b"vector")), 1)
    return len(text).to_bytes(8, "little") + text + body


@pytest.mark.parametrize("seed", range(8))
def test_what_the_library_refuses_is_refused(file, tmp_path, seed):
    """And what it takes is taken, but for one key twice, which it answers with the last."""
    random, sound = Random(seed), file.read_bytes()
    path = tmp_path / "x.safetensors"
    taken = refused = 0
    for _ in range(100):
        path.write_bytes(mutated(sound, random))
        try:
            with safe_open(path, "pt") as theirs:
                known = sorted(theirs.keys())
        except (SafetensorError, OSError):
            known = None
        if known is None:
            with pytest.raises(SamergeError):
                TensorFile(path)
            refused += 1
            continue
        try:
            assert sorted(TensorFile(path).entries) == known
            taken += 1
        except SamergeError as error:
            if "stands there twice" not in str(error):
                raise
    assert taken
    assert refused


@pytest.mark.parametrize("change", ["bytes", "other file", "longer", "gone"])
def test_a_file_that_is_written_to_after_it_was_opened_is_noticed(tmp_path, change):
    path = tmp_path / "x.safetensors"
    save_file({"w": torch.arange(10.0)}, path)
    opened = TensorFile(path)
    digest = opened.sha256()
    assert digest == hashlib.sha256(path.read_bytes()).hexdigest()
    data = path.read_bytes()
    if change == "bytes":
        with open(path, "r+b") as stream:
            stream.seek(-4, 2)
            stream.write(b"abcd")
        os.utime(path, ns=(0, 0))  # the clock of a file system may tick more slowly than this test runs
    elif change == "other file":
        (tmp_path / "y").write_bytes(data)
        os.replace(tmp_path / "y", path)
    elif change == "longer":
        path.write_bytes(data + b"x")
    else:
        path.unlink()
    for use in (lambda: opened.read("w"), opened.sha256):
        with pytest.raises(SamergeError, match=r"while it was read|cannot be opened: No such file"):
            use()


def test_a_header_without_end_is_not_read(tmp_path):
    path = tmp_path / "x.safetensors"
    with open(path, "wb") as stream:
        stream.write((3 * 2**30).to_bytes(8, "little"))
        stream.truncate(4 * 2**30)  # sparse
    with pytest.raises(SamergeError, match="its header claims 3221225472 bytes, more than"):
        TensorFile(path)


@pytest.mark.parametrize("name", ["layers." + "9" * 5000, "layers.99999999.q", "x" * 1001])
def test_a_name_that_no_layer_has(tmp_path, name):
    path = tmp_path / "x.safetensors"
    save_file({name: torch.zeros(2), "layers.31.q": torch.zeros(2)}, path)
    with pytest.raises(SamergeError, match="which is no name of a layer"):
        TensorFile(path)
