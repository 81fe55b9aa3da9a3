"""Adapters compared with each other, against dense matrices in float64."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import tiny
import torch
from full_disk import filled
from methods.dense import updates

from samerge.linalg.factors import LoraFactors
from samerge.merging.between_adapters import conflicts
from samerge.merging.inputs import open_adapters
from samerge.merging.reading_conflicts import reading


def write(folder, name: str, factors: dict[str, LoraFactors]):
    return tiny.write_adapter(folder / name, {m: (f.A.float(), f.B.float()) for m, f in factors.items()})


def test_conflicts_are_those_of_dense_matrices(tmp_path):
    drawn = {module: updates(10, 16, (2, 3, 4), seed) for seed, module in enumerate(("h.0.q", "h.1.q"))}
    folders = {n: write(tmp_path, n, {m: parts[i] for m, parts in drawn.items()}) for i, n in enumerate("abc")}
    adapters = open_adapters(None, folders)
    found = conflicts(adapters)
    dense = [{m: a.modules[m].load().delta().double() for m in drawn} for a in adapters]
    whole = [torch.cat([one[m].flatten() for m in drawn]) for one in dense]
    for i, j in itertools.product(range(3), repeat=2):
        assert found.cosine[i][j] == pytest.approx(
            float(torch.dot(whole[i], whole[j]) / whole[i].norm() / whole[j].norm()), abs=1e-6
        )
        rows, columns = [], []
        for m in drawn:
            (u, s, v), (x, t, y) = (torch.linalg.svd(one[m], full_matrices=False) for one in (dense[i], dense[j]))
            k, n = int((s > 1e-6 * s[0]).sum()), int((t > 1e-6 * t[0]).sum())
            rows.append(float((v[:k] @ y[:n].T).norm() ** 2) / min(k, n))
            columns.append(float((u[:, :k].T @ x[:, :n]).norm() ** 2) / min(k, n))
        assert found.rows[i][j] == pytest.approx(sum(rows) / 2, abs=1e-5)
        assert found.columns[i][j] == pytest.approx(sum(columns) / 2, abs=1e-5)
        assert found.sign_conflict[i][j] == pytest.approx(
            float((whole[i].sign() * whole[j].sign() < 0).double().mean()), abs=1e-9
        )
    assert found.norms == pytest.approx([float(one.norm()) for one in whole], rel=1e-6)
    worst = found.worst(1)[0]
    i, j = ("abc".index(name) for name in worst["adapters"])
    one, other = dense[i][worst["module"]], dense[j][worst["module"]]
    assert worst["cosine"] == pytest.approx(float((one * other).sum() / one.norm() / other.norm()), abs=1e-6)
    assert worst["cosine"] == min(value for own in found.layers.values() for value in own.values())


@pytest.mark.parametrize("size", [1e-14, 1e14])
def test_conflicts_of_very_small_and_large_updates(tmp_path, size):
    """Their squares are beyond float32."""
    generator = torch.Generator().manual_seed(0)
    A, B = torch.randn(2, 6, generator=generator), torch.randn(5, 2, generator=generator)
    one = tiny.write_adapter(tmp_path / "a", {"layer": (A, B)})
    other = tiny.write_adapter(tmp_path / "b", {"layer": (A * size, -B * size)})
    found = conflicts(open_adapters(None, [one, other]))
    assert found.norms[1] / found.norms[0] == pytest.approx(size**2)
    assert found.cosine[0][1] == pytest.approx(-1.0)
    assert found.columns[0][1] == pytest.approx(1.0)
    assert "nearly cancel" in reading(found)


def test_the_reading_says_what_is_wrong(tmp_path):
    part, other, third = updates(10, 16, (2, 2, 2))
    folders = {
        "one": write(tmp_path, "one", {"q": part}),
        "anti": write(tmp_path, "anti", {"q": LoraFactors(part.A, -part.B)}),
        "twin": write(tmp_path, "twin", {"q": LoraFactors(part.A, part.B * 1.1)}),
        "huge": write(tmp_path, "huge", {"q": LoraFactors(other.A, other.B * 50)}),
        "same-inputs": write(tmp_path, "same-inputs", {"q": LoraFactors(part.A, third.B)}),
    }
    text = reading(conflicts(open_adapters(None, folders)))
    assert "one and anti nearly cancel (cosine -1.00)" in text
    assert "one and twin are nearly the same (cosine 1.00)" in text
    assert "x larger than the others" in text
    assert "the default brings all of them to one norm in each layer" in text
    assert "consider" not in text
    assert "one and same-inputs react to the same inputs" in text


def test_names_that_begin_otherwise_are_the_same_modules(tmp_path):
    part, other = updates(10, 16, (2, 2))
    plain = write(tmp_path, "plain", {"model.layers.0.q": part})
    wrapped = write(tmp_path, "wrapped", {"policy.model.layers.0.q": other})
    found, alike = (
        conflicts(open_adapters(None, [plain, folder]))
        for folder in (wrapped, write(tmp_path, "alike", {"model.layers.0.q": other}))
    )
    assert found.rows[0][1] is not None
    assert found.record() == {**alike.record(), "adapters": ["plain", "wrapped"]}


def test_adapters_without_a_common_layer(tmp_path):
    part, other = updates(10, 16, (2, 2))
    found = conflicts(
        open_adapters(None, {"a": write(tmp_path, "a", {"q": part}), "b": write(tmp_path, "b", {"k": other})})
    )
    assert found.cosine[0][1] == 0
    assert found.rows[0][1] is None
    assert found.sign_conflict[0][1] is None
    assert reading(found) == (
        "a and b adapt no layer in common: there is nothing to compare; are they adapters of one base?"
    )


def test_the_picture_shows_the_cosines(tmp_path):
    part, other = updates(10, 16, (2, 2))
    folders = {"a": write(tmp_path, "a", {"q": part}), "b": write(tmp_path, "b", {"q": other})}
    found = conflicts(open_adapters(None, folders))
    assert found.heat().values == found.cosine
    assert "red" in found.heat().how
    assert found.picture(tmp_path / "cosines.png").read_bytes().startswith(b"\x89PNG")


def test_a_full_disk_leaves_no_part_of_a_picture(tmp_path, monkeypatch):
    part, other = updates(10, 16, (2, 2))
    folders = {"a": write(tmp_path, "a", {"q": part}), "b": write(tmp_path, "b", {"q": other})}
    found = conflicts(open_adapters(None, folders))
    drawn = tmp_path / "pictures"
    drawn.mkdir()
    monkeypatch.setattr("pathlib.Path.write_bytes", filled(Path.write_bytes))
    with pytest.raises(OSError, match="No space left"):
        found.picture(drawn / "cosines.png")
    assert not list(drawn.iterdir())
