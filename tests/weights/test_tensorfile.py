"""Reading safetensors by hand, against the safetensors library."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

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
        (header(b"{not json"), "its header cannot be read"),
        (header([1, 2]), "its header cannot be read"),
        (header({"w": {"dtype": "F32"}}), "its header cannot be read"),
        (header({"w": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}) + b"\0" * 4, "truncated, tensor 'w'"),
        (header({"w": {"dtype": "F32", "shape": [9], "data_offsets": [0, 8]}}) + b"\0" * 8, "cannot lie in 8 bytes"),
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
    with pytest.raises(ValueError, match="tensor 'w' ends early; the file is truncated"):
        opened.read("w")
