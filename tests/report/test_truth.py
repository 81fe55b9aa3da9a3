"""Every figure that a user sees, against dense matrices from the files that were written."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace
from io import StringIO

import pytest
import torch
from rich.console import Console

import samerge
from samerge.report.heat import heats, kept_by_place
from samerge.report.report import read_report
from samerge.report.stored import AdapterInLayer, LayerRecord

from .dense import best_mean_cosine, cosine, flat, interference, updates
from .records import RECORD

WEIGHTS = {"math": 1.0, "code": 0.5, "talk": -0.3}


@pytest.fixture(scope="module")
def trained(zoo):
    """The adapters' own updates, by name and module."""
    beast = zoo("llama")
    return {name: updates(beast, folder) for name, folder in beast.adapters.items()}


def close(value, tolerance=2e-3):
    return pytest.approx(value, rel=tolerance, abs=tolerance)


def check(record, merged, trained, weights, tolerance=2e-3):
    """Layers, adapters and the whole."""
    modules = sorted(merged)
    for module, layer in record.layers.items():
        assert layer.norm == close(float(merged[module].norm()), tolerance)
        shares = torch.linalg.svdvals(merged[module]).square()
        if layer.norm > 1e-6:
            assert layer.effective_rank == close(float(shares.sum() ** 2 / shares.square().sum()), 10 * tolerance)
        assert set(layer.adapters) == {name for name, own in trained.items() if module in own}
        for name, one in layer.adapters.items():
            tau = trained[name][module]
            assert one.norm == close(float(tau.norm()), tolerance), (module, name)
            assert one.cosine == close(cosine(merged[module], tau), tolerance), (module, name)
            assert one.interference == close(interference(merged[module], tau), tolerance), (module, name)
    means = []
    for name, own in trained.items():
        told = record.adapters[name]
        size = float(flat(own, modules, merged).norm())
        assert told.norm == close(size, tolerance)
        assert told.cosine == close(cosine(flat(merged, modules, merged), flat(own, modules, merged)), tolerance)
        errors = [(interference(merged[m], tau) * float(tau.norm())) ** 2 for m, tau in own.items()]
        assert told.interference == close(sum(errors) ** 0.5 / size, tolerance)
        assert abs(told.cosine) <= 1
        means.append(told.cosine if weights[name] > 0 else -told.cosine)
    assert record.whole.norm == close(float(flat(merged, modules, merged).norm()), tolerance)
    assert record.whole.cosine == close(sum(means) / len(means), tolerance)
    assert record.whole.best_cosine == close(best_mean_cosine(trained, weights, record.output.rank), tolerance)
    assert record.whole.cosine <= record.whole.best_cosine + tolerance


@pytest.mark.parametrize("balance", ["none", "norm"])
@pytest.mark.parametrize("method", sorted(samerge.available_methods()))
def test_every_method(llama, trained, tmp_path, method, balance):
    options = {"weights": WEIGHTS, "balance": balance, "rank": 4, "dtype": "bfloat16"}
    merged = samerge.merge(llama.base, llama.adapters, method=method, progress=False, **options)
    record = read_report(merged.save(tmp_path / "out")).record
    assert replace(record, files=None) == merged.report.record
    assert "adapter_model.safetensors" in record.files
    check(record, updates(llama, tmp_path / "out"), trained, WEIGHTS)


def test_adapters_of_very_different_norms(llama, trained, tmp_path):
    """Balance, weights and truncation together; the norms of the report are those as trained."""
    loud = tiny_times(llama, tmp_path, 9.0)
    own = {**trained, "math": {m: 9 * tau for m, tau in trained["math"].items()}}
    merged = samerge.merge(llama.base, loud, weights=[1.0, 0.5, -0.3], rank=3, progress=False)
    record = read_report(merged.save(tmp_path / "out")).record
    check(record, updates(llama, tmp_path / "out"), own, WEIGHTS)
    balanced = [layer for layer in record.layers.values() if len(layer.adapters) > 1]
    assert balanced
    for layer in balanced:
        after = [one.norm * one.balance for one in layer.adapters.values()]
        assert after == pytest.approx([sum(one.norm for one in layer.adapters.values()) / len(after)] * len(after))


def tiny_times(beast, folder, factor):
    """The adapters with the first one louder."""
    from safetensors.torch import load_file, save_file

    name, source = next(iter(beast.adapters.items()))
    target = folder / name
    target.mkdir()
    shutil.copy(f"{source}/adapter_config.json", target)
    tensors = load_file(f"{source}/adapter_model.safetensors")
    save_file({k: v * factor if "lora_B" in k else v for k, v in tensors.items()}, target / "adapter_model.safetensors")
    return {**beast.adapters, name: str(target)}


@pytest.mark.parametrize("method", ["saliency", "even"])
def test_energy_of_kept_components(llama, trained, method):
    record = samerge.merge(llama.base, llama.adapters, method=method, rank=5, progress=False).report.record
    totals = {name: [0.0, 0.0] for name in trained}
    for module, layer in record.layers.items():
        for name, one in layer.adapters.items():
            squares = torch.linalg.svdvals(trained[name][module]).square()
            kept = squares.sum() if one.kept is None else squares[list(one.kept)].sum()
            assert one.energy_kept == pytest.approx(float(kept / squares.sum()), abs=1e-4)
            totals[name][0] += float(kept)
            totals[name][1] += float(squares.sum())
    for name, (kept, total) in totals.items():
        assert record.adapters[name].energy_kept == pytest.approx(kept / total, abs=1e-4)


@pytest.mark.parametrize("basis", ["native", "svd"])
def test_energy_of_components_as_trained(llama, basis):
    record = samerge.merge(
        llama.base, llama.adapters, method="paper", basis=basis, density=0.3, progress=False
    ).report.record
    model = llama.peft_model()
    for module, layer in record.layers.items():
        for name, one in layer.adapters.items():
            lora = model.get_submodule(f"base_model.model.{module}")
            A, B = (part[name].weight.double() for part in (lora.lora_A, lora.lora_B))
            if basis == "svd":
                U, S, Vh = torch.linalg.svd(B @ A, full_matrices=False)
                A, B = Vh, U * S
            kept = list(one.kept)
            energy = float(((B[:, kept] @ A[kept]).norm() / (B @ A).norm()) ** 2)
            assert one.energy_kept == pytest.approx(energy, abs=1e-4)


def test_energy_of_kept_elements(llama, trained):
    """`magnitude-prune` keeps the largest elements; what stays is told before any rescaling."""
    merge = {"method": "magnitude-prune", "density": 0.3, "weights": WEIGHTS}
    record = samerge.merge(None, llama.adapters, progress=False, **merge).report.record
    for name, own in trained.items():
        kept = total = 0.0
        for tau in own.values():
            squares = tau.square().flatten().sort(descending=True).values
            count = round(0.3 * len(squares))
            kept, total = kept + float(squares[:count].sum()), total + float(squares.sum())
        assert record.adapters[name].energy_kept == pytest.approx(kept / total, abs=2e-3)


@pytest.mark.parametrize("method", ["linear", "svd", "ties", "tsv", "magnitude-prune"])
def test_what_truncation_lost(llama, method):
    """Against the norm of the same merge without it."""
    options = {"method": method, "weights": WEIGHTS, "progress": False}
    cut = samerge.merge(None, llama.adapters, rank=3, **options)
    whole = samerge.merge(None, llama.adapters, rank=32, **options)
    total = left = 0.0
    for module, layer in cut.report.record.layers.items():
        before, after = (float(one.delta(module).double().norm()) ** 2 for one in (whole, cut))
        assert layer.lost == pytest.approx(1 - after / before, abs=2e-3)
        total, left = total + before, left + after
    assert cut.report.whole.lost == pytest.approx(1 - left / total, abs=2e-3)
    lost = {module: layer.lost for module, layer in cut.report.record.layers.items()}
    assert cut.report.whole.most_lost == lost[cut.report.whole.most_lost_in] == max(lost.values())


def test_the_best_cosine_is_reached(llama, trained):
    """The truncated sum of the adapters' directions has it."""
    weights = {n: 1 / sum(float(t.norm()) ** 2 for t in own.values()) ** 0.5 for n, own in trained.items()}
    merged = samerge.merge(None, llama.adapters, method="svd", weights=weights, rank=4, progress=False)
    assert merged.report.whole.cosine == pytest.approx(merged.report.whole.best_cosine, abs=1e-4)


def test_compress(llama, trained, tmp_path):
    made = samerge.compress_adapter(llama.adapters["talk"], rank=3, dtype="bfloat16", progress=False)
    record = read_report(made.save(tmp_path / "out")).record
    check(record, updates(llama, tmp_path / "out"), {"talk": trained["talk"]}, {"talk": 1.0}, 5e-3)
    squares = [torch.linalg.svdvals(tau).square() for tau in trained["talk"].values()]
    lost = 1 - sum(float(s[:3].sum()) for s in squares) / sum(float(s.sum()) for s in squares)
    assert record.whole.lost == pytest.approx(lost, abs=2e-3)
    assert record.whole.lost > 0.2


def fine_tuned(beast, folder, seed):
    """A whole checkpoint: the base and a random change of every weight of its layers. Its differences, by module."""
    model, generator, found = beast.model(), torch.Generator().manual_seed(seed), {}
    for name, parameter in model.named_parameters():
        if "proj" in name:
            change = torch.randn(parameter.shape, generator=generator) * 0.05
            found[name.removesuffix(".weight")] = change.double()
            parameter.data.add_(change)
    model.save_pretrained(folder)
    return found


def test_extract(llama, tmp_path):
    taus = fine_tuned(llama, tmp_path / "tuned", 1)
    made = samerge.extract_adapter(llama.base, tmp_path / "tuned", rank=4, progress=False)
    record = read_report(made.save(tmp_path / "out")).record
    merged = updates(llama, tmp_path / "out")
    for module, layer in record.layers.items():
        [one] = layer.adapters.values()
        assert one.norm == close(float(taus[module].norm()))
        assert one.cosine == close(cosine(merged[module], taus[module]))
        assert one.interference == close(float((merged[module] - taus[module]).norm() / taus[module].norm()))
        assert layer.lost == close(1 - float(merged[module].norm() / taus[module].norm()) ** 2)
    [told] = record.adapters.values()
    left = sum(float(merged[m].norm()) ** 2 for m in taus) / sum(float(t.norm()) ** 2 for t in taus.values())
    assert record.whole.lost == close(1 - left)
    assert told.cosine == close(left**0.5)
    assert record.whole.lost > 0.2
    assert any("lost over" in warning for warning in record.warnings)


@pytest.mark.parametrize("density", [1.0, 0.3])
def test_full(llama, tmp_path, density):
    taus = {name: fine_tuned(llama, tmp_path / name, seed) for seed, name in enumerate(("one", "two"))}
    weights = {"one": 1.0, "two": -0.5}
    models = {name: str(tmp_path / name) for name in taus}
    model = samerge.merge_full(llama.base, models, weights=weights, density=density, progress=False)
    record = read_report(model.save(tmp_path / "out")).record
    base = llama.model().state_dict()
    merged = {m: model.tensor(f"{m}.weight").double() - base[f"{m}.weight"].double() for m in record.layers}
    modules = sorted(merged)
    assert record.whole.norm == close(float(flat(merged, modules, merged).norm()))
    for name, own in taus.items():
        told = record.adapters[name]
        assert told.norm == close(float(flat(own, modules, merged).norm()))
        assert told.cosine == close(cosine(flat(merged, modules, merged), flat(own, modules, merged)))
        assert told.components is None
        assert told.elements[0] / told.elements[1] == pytest.approx(density, abs=0.01)
        for module, layer in record.layers.items():
            if module in own:
                assert layer.adapters[name].cosine == close(cosine(merged[module], own[module]))
            else:  # nothing was trained there
                assert layer.adapters[name].cosine is None
                assert layer.norm == 0
    lora = model.as_lora(rank=2)
    told = read_report(lora.save(tmp_path / "lora")).record
    cut = updates(llama, tmp_path / "lora")
    left = sum(float(one.norm()) ** 2 for one in cut.values()) / sum(float(one.norm()) ** 2 for one in merged.values())
    assert told.whole.lost == close(1 - left, 5e-3)
    assert told.whole.lost > 0.2
    assert told.adapters["one"].cosine is None
    assert "Truncation lost" in drawn(read_report(tmp_path / "lora").table())


def drawn(table, width=120):
    console = Console(width=width, file=StringIO())
    console.print(table)
    return " ".join(console.file.getvalue().split())


def test_all_views_say_the_same(llama, tmp_path):
    """Table, card, HTML and JSON."""
    merged = samerge.merge(llama.base, llama.adapters, weights=WEIGHTS, rank=4, progress=False)
    folder = merged.save(tmp_path / "out")
    told = json.loads((folder / "samerge.json").read_text())
    card, page = (folder / "README.md").read_text(), merged.report._repr_html_()
    text = drawn(merged.report.table())
    for name, one in merged.report.adapters.items():
        row = told["adapters"][name]
        assert row["cosine"] == one.cosine
        assert row["energy_kept"] == one.energy_kept
        cells = [f"{one.norm:.3g}", f"{one.kept}/{one.components}", f"{one.energy_kept:.1%}", f"{one.cosine:.2f}"]
        assert re.search(rf"{name}\b.*{'.*'.join(map(re.escape, cells))}", text)
        assert re.search(rf"`{name}` \|.*{'.*'.join(map(re.escape, cells))}", card.split("What became")[1])
        assert re.search(rf">{name}</span></th>.*{'.*'.join(map(re.escape, cells))}", page)
    assert told["whole"]["cosine"] == merged.report.whole.cosine
    for view in (text, card, page):
        assert f"{merged.report.whole.cosine:.2f} on the mean" in view
        assert f"can have more than {merged.report.whole.best_cosine:.2f}" in view
        assert f"Truncation lost {merged.report.whole.lost:.1%}" in view.replace("&#x27;", "'")


def test_pictures_of_what_was_ranked_and_kept(llama, tmp_path):
    report = samerge.merge(llama.base, llama.adapters, rank=4, progress=False).report
    taken, places, cosines = heats(report.record)
    assert list(taken.rows) == list(places.rows) == list(cosines.rows) == list(llama.adapters)
    assert list(taken.columns) == list(cosines.columns) == ["0", "1"]
    layers = report.record.layers
    for j, block in enumerate(taken.columns):
        counts = {}
        for module, layer in layers.items():
            for name, one in layer.adapters.items():
                if f".{block}." in module:
                    left = one.components if one.kept is None else len(one.kept)
                    counts[name] = counts.get(name, 0) + left
        for i, name in enumerate(taken.rows):
            assert taken.values[i][j] == pytest.approx(counts[name] / sum(counts.values()))
    assert [sum(column) for column in zip(*taken.values, strict=True)] == pytest.approx([1.0, 1.0])
    assert taken.middle == pytest.approx(1 / len(taken.rows))
    seen = {place: [] for place in range(len(places.columns))}
    for i, name in enumerate(places.rows):
        own = [layer.adapters[name] for layer in layers.values() if name in layer.adapters]
        for place in seen:
            there = [one.kept is None or place in one.kept for one in own if one.components > place]
            seen[place] += there
            assert places.values[i][place] == (pytest.approx(sum(there) / len(there)) if there else None)
    assert list(kept_by_place(report.record).values()) == pytest.approx([sum(v) / len(v) for v in seen.values()])
    assert list(kept_by_place(report.record)) == list(places.columns) == [str(place + 1) for place in seen]
    assert len({value for row in places.values for value in row}) > 2  # it says something
    for one in (taken, places, cosines):
        assert one.how.startswith("A row is an adapter, a column")
    assert report.picture(tmp_path / "kept.png").read_bytes().startswith(b"\x89PNG")


def test_a_picture_of_one_number_is_left_out(llama):
    """As many of each adapter everywhere; and components as they were trained, which are in no order of size."""
    one = AdapterInLayer(1.0, components=4, kept=(1, 3), cosine=0.5)
    layers = {f"h.{n}.q": LayerRecord({"math": one, "co|de": one}, norm=1.0) for n in range(3)}
    record = replace(RECORD, layers=layers, options={"basis": "native"})
    assert [one.title for one in heats(record)] == ["Cosine between the merge and each adapter"]
    assert kept_by_place(record) is None
    by_size = replace(record, options={"basis": "svd"})
    assert heats(by_size)[0].values == [[0.0, 1.0, 0.0, 1.0]] * 2
    assert kept_by_place(by_size) == {"1": 0.0, "2": 1.0, "3": 0.0, "4": 1.0}
    record = samerge.merge(llama.base, llama.adapters, method="elementwise", density=0.1, progress=False).report.record
    assert [one.percent for one in heats(record)] == [False]


def test_many_components_share_a_column(llama):
    record = samerge.merge(None, llama.adapters, rank=4, progress=False).report.record
    many = {
        module: replace(
            layer,
            adapters={name: replace(one, components=70, kept=(0, 1, 2, 69)) for name, one in layer.adapters.items()},
        )
        for module, layer in record.layers.items()
    }
    places = next(one for one in heats(replace(record, layers=many)) if "size" in one.title)
    assert list(places.columns) == [*(f"{n}-{n + 2}" for n in range(1, 70, 3)), "70"]
    for row in places.values:
        assert row == [1.0, *[0.0] * 22, 1.0]


def test_picture_of_cosines(llama, trained, tmp_path):
    merged = samerge.merge(None, llama.adapters, method="linear", weights=WEIGHTS, progress=False)
    (found,) = heats(merged.report.record)
    dense = updates(llama, merged.save(tmp_path / "out"))
    for i, name in enumerate(found.rows):
        for j, block in enumerate(found.columns):
            here = [m for m in sorted(dense) if f".{block}." in m]
            own = {m: tau for m, tau in trained[name].items() if m in here}
            expected = cosine(flat(dense, here, dense), flat(own, here, dense)) if own else None
            assert found.values[i][j] == (expected if expected is None else close(expected))
    assert "red" in found.how


@pytest.mark.parametrize("method", ["saliency", "paper"])
def test_nothing_is_said_of_an_adapter_of_weight_0(llama, method):
    """It was not read: its norm is not 0, it has layers, and log R is not that of the base alone."""
    merged = samerge.merge(llama.base, llama.adapters, weights=[0.0, 1.0, 1.0], method=method, progress=False)
    record = merged.report.record
    assert record.adapters["math"].log_connectivity is None
    assert all(record.adapters[name].log_connectivity is not None for name in ("code", "talk"))
    shown = merged.report.table()
    titles = [column.title for column in shown.columns]
    [row] = [row for row in shown.rows if row[0] == "math"]
    assert dict(zip(titles, row, strict=True))["weight"] == "0"
    assert set(row[2:]) == {"-"}
