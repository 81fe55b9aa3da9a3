"""Half precision: computed in float32, written in the adapters' dtype."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import samerge
from pitfalls.lab import close, llama, output, quiet

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


def cast(folder: str, dtype: torch.dtype) -> str:
    file = Path(folder) / "adapter_model.safetensors"
    save_file({key: tensor.to(dtype) for key, tensor in load_file(file).items()}, file)
    return folder


def adapters(lab, *dtypes: torch.dtype) -> list[str]:
    return [cast(lab.train(f"a{n}", target_modules=["q_proj"], r=4), dtype) for n, dtype in enumerate(dtypes)]


@pytest.mark.parametrize(
    ("dtypes", "expected"),
    [([F16, F16], F16), ([BF16, BF16], BF16), ([F16, BF16], F32), ([BF16, F32], F32), ([F32, F32], F32)],
    ids=["fp16", "bf16", "fp16 and bf16", "bf16 and fp32", "fp32"],
)
def test_the_widest_is_written(bench, dtypes, expected) -> None:
    lab = bench(llama)
    merged = lab.merge(*adapters(lab, *dtypes))
    assert {tensor.dtype for tensor in merged.tensors().values()} == {expected}
    assert {t.dtype for t in load_file(merged.save(lab.folder / "out") / "adapter_model.safetensors").values()} == {
        expected
    }
    assert merged.report.record.output.dtype == str(expected).removeprefix("torch.")
    said = [text for text in merged.report.warnings if "different dtypes" in text]
    assert bool(said) == (len(set(dtypes)) > 1)
    if said:
        assert all(str(dtype).removeprefix("torch.") in said[0] for dtype in dtypes)


@pytest.mark.parametrize("dtype", [F16, BF16])
def test_the_sum_itself_is_computed_in_float32(bench, dtype) -> None:
    """Rounding happens once, at the end: within half a unit in the last place of each factor."""
    lab = bench(llama)
    folders = adapters(lab, dtype, dtype)
    rounded, exact = lab.merge(*folders), lab.merge(*folders, dtype="float32")
    for name, factors in exact.factors.items():
        assert rounded.factors[name].A.dtype == rounded.factors[name].B.dtype == dtype
        half = torch.finfo(dtype).eps / 2 * (1 + 1e-2)  # what the sum is off by itself, from run to run, is far below
        torch.testing.assert_close(rounded.factors[name].A.float(), factors.A, rtol=half, atol=1e-6)
        torch.testing.assert_close(rounded.factors[name].B.float(), factors.B, rtol=half, atol=1e-6)
    with quiet():
        expected = output(lab.with_adapters(*folders))
        close(output(lab.reloaded(exact)), expected)
        close(output(lab.reloaded(rounded)), expected, tolerance=2e-2)


def test_a_choice_wins(bench) -> None:
    lab = bench(llama)
    merged = lab.merge(*adapters(lab, F32, F32), dtype="bfloat16")
    assert {tensor.dtype for tensor in merged.tensors().values()} == {BF16}


def test_a_half_precision_base_is_read_in_float32(bench) -> None:
    """The flows of a bfloat16 base are those of its values, not of bfloat16 arithmetic."""
    lab = bench(llama)
    folders = adapters(lab, BF16, BF16)
    lab.model.to(BF16)
    half = lab.merge(*folders, density=0.5)
    lab.model.to(F32)
    lab.model.save_pretrained(lab.folder / "wide")
    with quiet():  # another folder is another name
        wide = samerge.merge(str(lab.folder / "wide"), folders, method="paper", density=0.5, scaling=1.0)
    kept = [[list(e.values()) for e in [layer.adapters]] for layer in half.report.record.layers.values()]
    same = [[list(e.values()) for e in [layer.adapters]] for layer in wide.report.record.layers.values()]
    assert kept == same


def test_live_layers_keep_their_dtype(bench) -> None:
    """PEFT holds adapters of a half-precision base in float32 unless told otherwise; the merged one is like them."""
    lab = bench(llama)
    folders = adapters(lab, BF16, BF16)
    for autocast, dtype in ((True, F32), (False, BF16)):
        with quiet():
            model = lab.fresh().to(BF16)
            from peft import PeftModel

            model = PeftModel.from_pretrained(model, folders[0], "first", autocast_adapter_dtype=autocast)
            model.load_adapter(folders[1], "second", autocast_adapter_dtype=autocast)
            samerge.add_weighted_adapter(
                model, ["first", "second"], None, "merged", combination_type="paper", density=1.0, scaling=1.0
            )
            model.set_adapter("merged")
            output(model)
        found = {p.dtype for name, p in model.named_parameters() if ".merged." in name}
        assert found == {dtype}
