"""The page of a report: well-formed, safe, whole without the network, and every figure on it is the record's."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise

import pytest

import samerge
from samerge.errors import OptionError, OutputExistsError
from samerge.report.by_layer import blocks
from samerge.report.facts import number, percent
from samerge.report.heat import heats, kept_by_place
from samerge.report.page.figures import kept
from samerge.report.page.page import fragment, page
from samerge.report.picture import STEPS, Heat, check_picture
from samerge.report.record import Record
from samerge.report.report import Report
from samerge.report.stored import AdapterInLayer, Base, Input, LayerRecord, Output

from .records import RECORD

#: Elements that are never closed.
VOID = {"meta", "link", "wbr"}
EVIL = (
    *("<script>alert(1)</script>", '"><img src=x onerror=alert(1)>', "'; onclick='x", "&lt;b&gt;", "</title><b>"),
    *("`[a](https://evil.example/)`", "a\u202eb", "</style><script>", "--><!--", "a\nb"),
)


class Page(HTMLParser):
    """A tree is not needed: what is open, every element with its attributes, its own text, and the tables."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.words: dict[int, list[str]] = {}
        self.tables: dict[str, list[list[str]]] = {}
        self.places: list[int] = []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes), list(self.open)))
        if tag == "table":
            self.rows: list[list[str]] = []
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
        if tag == "caption":
            self.caption = ""
        if tag not in VOID:
            self.open.append(tag)
            self.places.append(len(self.elements) - 1)

    def handle_startendtag(self, tag, attributes) -> None:
        self.elements.append((tag, dict(attributes), list(self.open)))

    def handle_endtag(self, tag) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag, f"</{tag}> closes another"
        self.places.pop()
        if tag == "table":
            assert self.caption.strip() not in self.tables, self.caption
            self.tables[self.caption.strip()] = self.rows

    def handle_data(self, data) -> None:
        for place in self.places:
            self.words.setdefault(place, []).append(data)
        if self.open and self.open[-1] == "caption":
            self.caption += data
        elif {"td", "th"} & set(self.open):
            self.rows[-1][-1] += data

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for found, attributes, _ in self.elements if found == tag]

    def text_of(self, tag: str) -> list[str]:
        return ["".join(self.words.get(n, [])) for n, (found, _, _) in enumerate(self.elements) if found == tag]


def record_of(names: list[str], **changes) -> Record:
    """A record of two blocks with these adapters."""
    layers = {}
    for n in range(4):
        adapters = {
            name: AdapterInLayer(
                1.0 + k / 10,
                0.5 + n / 10,
                8,
                tuple(range((k + n) % 4 + 1)),
                balance=1.1,
                cosine=(0.4, -0.3)[k % 2] + n / 50,
                interference=0.6 + n / 50,
                sign_conflict=0.4,
            )
            for k, name in enumerate(names)
        }
        layers[f"model.layers.{n // 2}.{'qv'[n % 2]}_proj"] = LayerRecord(
            adapters, 2.0 + n, 8, lost=0.1 * n, reach=0.6, effective_rank=5.0 + n / 4,
            sign_conflict=0.5, sign_conflict_after=0.4, signs_left=0.9, sampled=(100, 1000),
        )  # fmt: skip
    return replace(
        RECORD,
        method="saliency",
        inputs=tuple(Input(name, f"ada/lora-{n}", 1.0, 8, 4, "float16") for n, name in enumerate(names)),
        output=Output("adapter", "float16", 4, 1234, 8, task_type="CAUSAL_LM"),
        layers=layers,
        log_connectivity={},
        **changes,
    )


@pytest.fixture(scope="module", params=["hand", "llama", "linear", "elementwise", "one", "many"])
def record(request, zoo) -> Record:
    if request.param == "hand":
        return RECORD
    if request.param == "many":
        return record_of([f"adapter-{n}" for n in range(64)])
    llama = zoo("llama")
    adapters = dict(list(llama.adapters.items())[:1]) if request.param == "one" else llama.adapters
    method = {"llama": None, "one": None}.get(request.param, request.param)
    return samerge.merge(llama.base, adapters, method=method, rank=4, progress=False).report.record


class TestWhatIsOnIt:
    def test_every_picture_is_a_table_of_the_records_figures(self, record):
        tables = Page(page(record)).tables
        found = heats(record)
        assert found
        for heat in found:
            head, *rows = tables[heat.title]
            assert head[1:] == list(heat.columns)
            assert [row[0] for row in rows] == list(heat.rows)
            for row, values in zip(rows, heat.values, strict=True):
                assert row[1:] == [heat.shown(value) for value in values]

    def test_the_adapters_and_what_they_lost(self, record):
        tables = Page(page(record)).tables
        head, *rows = next(rows for title, rows in tables.items() if title.startswith(f"{record.method}: "))
        assert [row[0] for row in rows] == list(record.adapters)
        for row, one in zip(rows, record.adapters.values(), strict=True):
            told = dict(zip(head, row, strict=True))
            assert told["weight"] == f"{one.weight:g}"
            assert told["norm"] == f"{one.norm:.3g}"
            for key, value in (
                ("energy kept", percent(one.energy_kept)),
                ("cosine", number(one.cosine)),
                ("interference", number(one.interference)),
            ):
                assert told.get(key, value) == value

    def test_agreement_before_and_after(self, record):
        whole, tables = record.whole, Page(page(record)).tables
        rows = {row[0].split(",")[0]: row[1:] for row in tables["Before the merge and after it"][1:]}
        assert rows["interference"] == ["1", number(whole.interference), "0"]
        best = "1" if whole.best_cosine is None else number(whole.best_cosine)
        assert rows["cosine of the merge with an adapter"] == ["0", number(whole.cosine), best]
        assert ("opposite signs" in rows) == (whole.sign_conflict is not None)
        if whole.sign_conflict is not None:
            assert rows["opposite signs"] == [percent(whole.sign_conflict), percent(whole.sign_conflict_after), "-"]

    def test_blocks_and_layers(self, record):
        tables = Page(page(record)).tables
        head, *rows = tables["By block of the model"]
        for row, block in zip(rows, blocks(record.layers), strict=True):
            told = dict(zip(head, row, strict=True))
            assert (told["block"], told["layers"]) == (block.name, str(block.layers))
            assert told["norm"] == f"{block.norm:.3g}"
            assert told["lost"] == percent(block.lost)
        head, *rows = tables["Every layer"]
        assert [row[0] for row in rows] == list(record.layers)
        for row, layer in zip(rows, record.layers.values(), strict=True):
            told = dict(zip(head, row, strict=True))
            assert told["norm"] == f"{layer.norm:.3g}"
            for name in record.adapters:
                assert told[name] == (kept(layer.adapters[name]) if name in layer.adapters else "")

    def test_bars(self, record):
        text = page(record)
        told = Page(text).text_of("desc")
        places = kept_by_place(record)
        assert any("Place" in one for one in told) == bool(places)
        if places:
            (one,) = (one for one in told if "Place" in one)
            assert one.endswith("Place: " + "; ".join(f"{n}: {v:.0%}" for n, v in places.items()) + ".")
            heights = [float(h) for h in re.findall(r'height="([\d.]+)"><title>Place', text)]
            assert heights == pytest.approx([120 * v for v in places.values()], abs=0.06)
        (one,) = (one for one in told if "Block" in one)
        shown = "; ".join(f"{row.name}: {row.norm:.3g}" for row in blocks(record.layers))
        assert one.endswith(f"Block: {shown}.")

    def test_words_options_timings_warnings(self, record):
        found = Page(page(record))
        words = " ".join("".join(found.words[0]).split())
        for warning in record.warnings:
            assert " ".join(warning.split()) in words
        options = {row[0]: row[1] for row in found.tables["Options"][1:]}
        assert set(record.options) <= set(options)
        assert [row[0] for row in found.tables["Timings"][1:]] == list(record.timings)
        assert f"{record.output.parameters:,} parameters" in words
        assert "nothing here was measured on a task" in words

    def test_a_record_too_large_for_every_layer_says_where_it_is(self):
        record = record_of([f"a{n}" for n in range(64)])
        layers = {f"h.{n}.q": layer for n, layer in enumerate(list(record.layers.values()) * 20)}
        text = page(replace(record, layers=layers))
        assert "Every layer" not in Page(text).tables
        assert "Every layer by itself is in samerge.json" in text


class TestHowItIsMade:
    def test_nothing_is_fetched_and_nothing_runs(self, record):
        for text in (page(record), fragment(record)):
            found = Page(text)
            assert not {"script", "iframe", "img", "object", "embed", "form", "base"} & {e[0] for e in found.elements}
            for tag, attributes, _ in found.elements:
                assert not [key for key in attributes if key.startswith("on") or key in ("src", "srcset")]
                if tag != "a" and "href" in attributes:
                    assert attributes["href"] == "data:,"
            assert all(a["href"].startswith(("https://", "#")) for a in found.all("a"))
            assert not re.search(r"url\(|@import", text)
        policy = [m["content"] for m in Page(page(record)).all("meta") if m.get("http-equiv")]
        assert policy == ["default-src 'none'; style-src 'unsafe-inline'; img-src data:"]

    def test_for_who_does_not_see_it(self, record):
        found = Page(page(record))
        assert found.all("html") == [{"lang": "en"}]
        assert len(found.all("h1")) == len(found.all("main")) == len(found.all("nav")) == 1
        for scope, inside in ((th.get("scope"), path) for tag, th, path in found.elements if tag == "th"):
            assert scope in ("col", "row"), inside
        assert len(found.all("table")) == len(found.all("caption")) == len(found.tables)
        for n, (tag, attributes, _) in enumerate(found.elements):
            if tag == "svg":
                assert attributes["role"] == "img"
                assert [e[0] for e in found.elements[n + 1 : n + 3]] == ["title", "desc"]
            if tag == "table":
                region = next(e for e in reversed(found.elements[:n]) if e[0] == "div")
                assert region[1]["class"] == "scroll"
                assert region[1]["tabindex"] == "0"
                assert region[1]["aria-label"]
        levels = [int(e[0][1]) for e in found.elements if re.fullmatch("h[1-6]", e[0])]
        assert levels[0] == 1
        assert all(after - before <= 1 for before, after in pairwise(levels))
        first = found.elements[next(n for n, e in enumerate(found.elements) if e[0] == "a")]
        assert first[1] == {"class": "skip", "href": "#main"}
        ids = Counter(a["id"] for _, a, _ in found.elements if "id" in a)
        assert set(ids.values()) == {1}
        assert {a["href"][1:] for a in found.all("a") if a["href"].startswith("#")} <= set(ids)

    def test_every_picture_says_how_to_read_it(self, record):
        found = Page(page(record))
        pictures = len(found.all("svg")) + sum(t.get("class") == "heat" for t in found.all("table"))
        told = [
            "".join(found.words[n]) for n, e in enumerate(found.elements) if e[0] == "p" and e[1].get("class") == "how"
        ]
        assert pictures == len(told) > 0
        assert all(len(one) > 60 and one.endswith(".") for one in told)

    def test_a_notebook_has_the_same(self, record):
        whole, part = Page(page(record)), Page(fragment(record))
        assert part.tables == whole.tables
        assert part.text_of("desc") == whole.text_of("desc")
        assert part.text_of("h1") == whole.text_of("h1")
        assert not [a for _, a, _ in part.elements if "id" in a]  # two reports of one notebook do not meet
        assert Report(record)._repr_html_() == fragment(record)


class TestNames:
    @pytest.mark.parametrize("name", EVIL)
    def test_are_letters_and_never_markup(self, name):
        plain = record_of(["b", "other"], warnings=("of b",))
        evil = replace(
            record_of([name, "other"], warnings=(f"of {name}",)),
            base=Base(name, name),
            options={name: name},
            versions={name: name},
            method="saliency",
        )
        for view in (page, fragment):
            text = view(evil)
            kinds = Counter(e[0] for e in Page(view(replace(plain, base=Base("b", "b"), options={"b": "b"}))).elements)
            mine = Counter(e[0] for e in Page(text).elements)
            for tag in ("wbr", "a", "code"):  # where a name may be broken; a base that is a repository is linked
                kinds.pop(tag, None), mine.pop(tag, None)
            assert mine == kinds
            assert "\u202e" not in text
            assert all(a["href"].startswith(("#", "https://arxiv.org/")) for a in Page(text).all("a"))
        rows = next(rows for title, rows in Page(page(evil)).tables.items() if title.startswith("saliency: "))
        assert rows[1][0] == " ".join(name.split()).replace("\u202e", "\\u202e")

    def test_a_way_to_load_quotes_the_place(self):
        text = page(record_of(["a", "b"]), 'out/"; rm -rf /')
        code = " ".join(Page(text).text_of("code"))
        assert 'PeftModel.from_pretrained(base, "out/\\"; rm -rf /")' in code
        assert "samerge convert 'out/\"; rm -rf /' --format gguf" in code

    def test_local_folders_keep_their_last_part(self):
        record = replace(
            record_of(["a", "b"], warnings=("read /home/ada/secret/base, and more",)),
            base=Base("/home/ada/secret/base", "llama"),
            inputs=(Input("a", "/home/ada/secret/a-lora"), Input("b", "./secret/b-lora")),
        )
        text = page(record, "/home/ada/secret/merged")
        assert "secret" not in text
        assert "home" not in text
        assert {"a-lora", "b-lora"} <= {row[1] for row in Page(text).tables["Where they came from"]}
        assert "huggingface.co/base" not in text
        assert any('from_pretrained(base, "path/to/merged")' in code for code in Page(text).text_of("code"))


class TestLoading:
    def ways(self, **changes) -> dict[str, str]:
        record = record_of(["a", "b"])
        base = changes.pop("base", record.base)
        layers = changes.pop("layers", record.layers)
        text = page(replace(record, output=replace(record.output, **changes), base=base, layers=layers), "merged")
        found = Page(text[text.index('<section id="load"') : text.index('<section id="options"')])
        return dict(zip(found.text_of("h3"), found.text_of("code"), strict=True))

    def test_a_language_model(self):
        found = self.ways()
        assert list(found) == ["PEFT", "vLLM", "llama.cpp"]
        assert "--max-lora-rank 8" in found["vLLM"]
        assert "merged=merged" in found["vLLM"]

    def test_a_rank_that_vllm_rounds_up_and_one_that_it_refuses(self):
        assert "--max-lora-rank 32" in self.ways(rank=24)["vLLM"]
        assert list(self.ways(rank=600)) == ["PEFT", "llama.cpp"]

    def test_an_encoder(self):
        assert list(self.ways(task_type="FEATURE_EXTRACTION")) == ["PEFT"]
        assert list(self.ways(task_type=None, base=Base(None, None))) == ["PEFT"]

    def test_a_diffusion_model(self):
        layers = {f"down_blocks.0.attn.{m}": layer for m, layer in record_of(["a", "b"]).layers.items()}
        assert list(self.ways(layers=layers)) == ["diffusers"]

    @pytest.mark.parametrize(
        ("format", "word"), [("gguf", "llama-cli"), ("diffusers", "load_lora_weights"), ("kohya", "ComfyUI")]
    )
    def test_other_formats(self, format, word):
        ((_, told),) = self.ways(format=format).items()
        assert word in told

    def test_a_whole_model(self):
        found = self.ways(kind="model", tensors=9)
        assert list(found) == ["transformers", "vLLM"]


class TestFile:
    def test_it_is_written_and_written_anew(self, tmp_path):
        report = Report(RECORD)
        file = tmp_path / "sub" / "report.html"
        assert report.to_html(file) == file.read_text(encoding="utf-8")
        assert report.to_html(file, "elsewhere") == file.read_text(encoding="utf-8")
        assert [path.name for path in file.parent.iterdir()] == ["report.html"]

    def test_what_is_refused(self, tmp_path):
        with pytest.raises(OptionError, match=r"ends in \.html"):
            Report(RECORD).to_html(tmp_path / "weights.safetensors")
        (tmp_path / "folder.html").mkdir()
        with pytest.raises(OutputExistsError):
            Report(RECORD).to_html(tmp_path / "folder.html")

    def test_a_name_that_is_no_text(self, tmp_path):
        Report(record_of(["\ud800", "b"])).to_html(tmp_path / "a.html")
        assert "\\ud800" in (tmp_path / "a.html").read_text(encoding="utf-8")


def test_colours_are_steps():
    heat = Heat("", ["a"], ["b"], [[0.3]], -1.0, 1.0, "")
    assert [heat.level(v) for v in (-2.0, -1.0, -0.09, 0.0, 0.1, 0.29, 0.31, 1.0, None)] == [
        *(-STEPS, -STEPS, 0, 0, 1, 1, 2, STEPS, 0)
    ]
    assert Heat("", ["a"], ["b"], [[0.0]], 0.0, 0.0, "").level(0.0) == 0


def test_one_that_takes_no_part_has_no_share_of_the_places(llama) -> None:
    """Of three adapters, one of weight 0, an even share is a half."""
    merged = samerge.merge(llama.base, llama.adapters, weights=[1.0, 1.0, 0.0], progress=False)
    places = next(heat for heat in heats(merged.report.record) if heat.title == "Who got the places in the merge")
    assert "an even share, 50.0%" in places.how


def test_a_picture_in_the_home_is_looked_for_there(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    check_picture("~/free.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OutputExistsError, match=r"taken.png: it is there and no regular file"):
        check_picture("~/taken.png")
