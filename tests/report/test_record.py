"""The record: its sums, its way through JSON, and what becomes of files that hold something else."""

from __future__ import annotations

import copy
import json
import math
from dataclasses import replace
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console

from samerge.errors import AdapterError
from samerge.report.card import model_card
from samerge.report.reading import RECORD_NAME, read_record
from samerge.report.record import Record, weighted_mean
from samerge.report.report import read_report
from samerge.report.stored import AdapterInLayer, LayerRecord

from .records import LAYERS, RECORD


def put(folder: Path, told: object) -> Path:
    (folder / RECORD_NAME).write_text(told if isinstance(told, str) else json.dumps(told))
    return folder


def test_what_is_said_of_an_adapter_follows_from_its_layers():
    math_, code = RECORD.adapters["math"], RECORD.adapters["co|de"]
    assert math_.norm == pytest.approx(math.sqrt(5))
    assert (math_.layers, math_.components, math_.kept) == (2, 32, 4)
    merged = math.sqrt(1.5**2 + 1)
    assert math_.cosine == pytest.approx((0.5 * 2 * 1.5 + 0.9 * 1 * 1) / (math.sqrt(5) * merged))
    assert math_.interference == pytest.approx(math.sqrt((0.6**2 * 4 + 0.3**2) / 5))
    assert math_.energy_kept == pytest.approx((0.9 * 4 + 0.4) / 5)
    assert math_.balance == pytest.approx(math.sqrt((1.5**2 * 4 + 1) / 5))
    assert math_.log_connectivity == 12.5
    assert code.cosine == pytest.approx(0.2 * 3 * 1.5 / (3 * merged))
    assert RECORD.whole.norm == pytest.approx(merged)
    assert RECORD.whole.cosine == pytest.approx((math_.cosine + code.cosine) / 2)
    before = 1.5**2 / 0.75
    assert RECORD.whole.lost == pytest.approx(0.25 * before / (before + 1))
    assert (RECORD.whole.most_lost, RECORD.whole.most_lost_in) == (0.25, "model.layers.0.q")
    assert RECORD.whole.best_cosine is None


def test_an_adapter_of_negative_weight_counts_the_other_way():
    inputs = (RECORD.inputs[0], replace(RECORD.inputs[1], weight=-0.8))
    turned = replace(RECORD, inputs=inputs)
    math_, code = (RECORD.adapters[name].cosine for name in ("math", "co|de"))
    assert turned.whole.cosine == pytest.approx((math_ - code) / 2)
    assert turned.adapters["co|de"].cosine == pytest.approx(code)


def test_what_nobody_looked_at_is_not_known():
    layer = replace(LAYERS["model.layers.1.q"], adapters={"math": AdapterInLayer(1.0)})
    found = replace(RECORD, layers={**LAYERS, "model.layers.1.q": layer})
    assert found.adapters["math"].cosine is None
    assert found.adapters["math"].interference is None
    assert found.whole.cosine is None
    nothing = Record("linear", RECORD.inputs, RECORD.output, {"q": LayerRecord({"math": AdapterInLayer(0.0)}, 0.0)})
    assert nothing.adapters["math"].energy_kept is None
    assert nothing.adapters["co|de"].layers == 0
    assert nothing.whole.lost is None


def test_weighted_mean():
    assert weighted_mean([(1.0, 1.0), (None, 9.0), (4.0, 2.0)]) == 3.0
    assert weighted_mean([(None, 1.0)]) is None


def test_there_and_back(tmp_path):
    assert read_record(put(tmp_path, RECORD.json())) == RECORD
    assert json.dumps(RECORD.json(), sort_keys=True) == json.dumps(read_record(tmp_path).json(), sort_keys=True)


def test_figures_of_a_file_that_disagree_with_its_layers_are_not_believed(tmp_path):
    told = RECORD.json()
    told["adapters"]["math"]["cosine"] = 0.999
    told["whole"] = {"cosine": 1.0}
    assert read_record(put(tmp_path, told)).adapters == RECORD.adapters


def broken():
    """A good record, each of its values in turn replaced by something of another kind, or removed."""
    whole = RECORD.json()

    def places(value, way=()):
        if isinstance(value, dict):
            for key, item in value.items():
                yield (*way, key)
                yield from places(item, (*way, key))
        elif isinstance(value, list):
            for key, item in enumerate(value):
                yield (*way, key)
                yield from places(item, (*way, key))

    for way in places(whole):
        for wrong in (None, "text", [1, "a"], {"a": {}}, -5, 1e300, True, 10**30, "remove"):
            told = copy.deepcopy(whole)
            inner = told
            for key in way[:-1]:
                inner = inner[key]
            if wrong == "remove":
                del inner[way[-1]]
            else:
                inner[way[-1]] = wrong
            yield told


@pytest.mark.slow
def test_a_broken_file_is_an_error_or_a_record_that_shows(tmp_path):
    read, refused = 0, []
    for told in broken():
        put(tmp_path, told)
        try:
            report = read_report(tmp_path)
        except AdapterError as error:
            refused.append(str(error))
            continue
        read += 1
        console = Console(width=80, file=StringIO())
        for view in (report.table(), report.layers_table()):
            console.print(view)
        report._repr_html_()
        model_card(report.record)
    assert len(refused) > 300
    assert all("record" in text and len(text) < 600 for text in refused)
    assert read > 100


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("{", "not valid JSON"),
        ("[]", "no object"),
        ("[" * 100_000, "nested deeper"),
        ('{"format": 2}', "format is 2"),
        ("{}", "missing"),
        ('{"format": 1, "method": NaN}', "not"),
        ('{"format": 1, "method": 1e999}', "not"),
    ],
)
def test_what_is_no_record(tmp_path, told, message):
    with pytest.raises(AdapterError, match=message):
        read_record(put(tmp_path, told))


def test_no_record_at_all(tmp_path):
    with pytest.raises(AdapterError, match=r"there is no samerge\.json"):
        read_record(tmp_path)
    (tmp_path / RECORD_NAME).mkdir()
    with pytest.raises(AdapterError, match="folder"):
        read_record(tmp_path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"cosine": 1.141}, "cosine is 1.141"),
        ({"norm": -1.0}, "norm is"),
        ({"interference": -0.1}, "interference"),
        ({"kept": [99]}, "kept names a component"),
        ({"elements": [5, 3]}, "elements"),
    ],
)
def test_figures_that_cannot_be(tmp_path, change, message):
    told = RECORD.json()
    told["layers"]["model.layers.1.q"]["adapters"]["math"].update(change)
    with pytest.raises(AdapterError, match=rf"layers\.model\.layers\.1\.q\.adapters\.math.*{message}"):
        read_record(put(tmp_path, told))
