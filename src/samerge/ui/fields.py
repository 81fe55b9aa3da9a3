"""The fields of the page, and where they stand. What happens when one is used is in `page`."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import gradio as gr

from samerge.options.common import CommonOptions
from samerge.options.option import Option, table
from samerge.ui import told
from samerge.ui.chosen import DEFAULT, density_of, offered
from samerge.ui.offered import adapters_in, bases_in
from samerge.ui.places import Places
from samerge.ui.work import MOST

#: The least and the largest weight of a slider.
_WEIGHTS = (-2.0, 2.0)
_OWN = "the method's own"
#: Pixels below which fields stand below each other and no longer side by side.
_NARROW = 280

_HEAD = """# samerge

Merge several LoRA adapters of one base model into one, from the weights alone. No figure on this page was measured on a
task: try the result on yours."""
_PLACE = "A folder or file of this machine, or a repository of the Hub: user/name, user/name/folder@revision."
_NEW = "A new one, below a folder that samerge ui was started with."
_HUB = "A repository of the Hub: user/name, user/name/folder@revision. Public ones only."


@dataclass(frozen=True)
class Fields:
    """The fields, named by what they hold."""

    base: Any
    adapters: Any
    look: Any
    looked: Any
    how: Any
    weights: tuple[Any, ...]
    method: Any
    about: Any
    rank: Any
    scaling: Any
    density: Any
    live: Any
    merge: Any
    merge_notice: Any
    take: Any
    figures: Any
    report: Any
    pack: Any
    zip: Any
    folder: Any
    save: Any
    repository: Any
    token: Any
    private: Any
    push: Any
    take_notice: Any


def laid_out(places: Places) -> Fields:
    """Make the fields, in the Blocks that is being built."""
    made: dict[str, Any] = {}
    gr.Markdown(_HEAD)
    for part in (_what, _how, _take):
        made |= dict(part(places))
    return Fields(**made)


def _what(places: Places) -> Iterator[tuple[str, Any]]:
    gr.Markdown("## 1. What to merge")
    told = _PLACE if places.folders else _HUB
    with gr.Row():
        yield (
            "base",
            gr.Dropdown(
                bases_in(places.folders),
                value=None,
                allow_custom_value=True,
                label="Base model",
                info=f"{told} Empty for methods that read none.",
                min_width=_NARROW,
                elem_id="base",
            ),
        )
        yield (
            "adapters",
            gr.Dropdown(
                adapters_in(places.folders),
                value=[],
                multiselect=True,
                allow_custom_value=True,
                label="Adapters",
                info=f"{told} Enter after each.",
                min_width=_NARROW,
                elem_id="adapters",
            ),
        )
    yield "look", gr.Button("Look at them", variant="primary", elem_id="look")
    yield "looked", _html("looked")


def _how(places: Places) -> Iterator[tuple[str, Any]]:
    common = {row.name: row for row in table(CommonOptions)}
    with gr.Column(visible=False, elem_id="how") as how:
        gr.Markdown(
            "## 2. How\n\nA weight is a strength: 1 full, 0.5 half, 0 leaves the adapter out, negative subtracts."
        )
        yield "weights", tuple(_weights())
        with gr.Row():
            with gr.Column(min_width=_NARROW):
                yield (
                    "method",
                    gr.Dropdown(
                        offered(),
                        value=DEFAULT,
                        label="Method",
                        elem_id="method",
                    ),
                )
                yield "about", _html("about", told.about(DEFAULT))
            yield (
                "rank",
                gr.Textbox(label="Rank", info=_help(common["rank"]), min_width=_NARROW, elem_id="rank"),
            )
        with gr.Row():
            yield (
                "scaling",
                gr.Textbox(
                    label="Strength",
                    info=_help(common["scaling"]),
                    placeholder=_OWN,
                    min_width=_NARROW,
                    elem_id="scaling",
                ),
            )
            yield (
                "density",
                gr.Textbox(
                    label="Density",
                    info=density_of(DEFAULT),
                    placeholder=_OWN,
                    visible=bool(density_of(DEFAULT)),
                    min_width=_NARROW,
                    elem_id="density",
                ),
            )
        with gr.Row():
            yield "merge", gr.Button("Merge", variant="primary", elem_id="merge")
            yield "live", gr.Checkbox(False, label="Merge again on every change", elem_id="live")
        yield "merge_notice", _html("merge-notice")
    yield "how", how


def _weights() -> Iterator[Any]:
    low, high = _WEIGHTS
    with gr.Row():
        for n in range(MOST):
            yield gr.Slider(
                low, high, 1.0, step=0.05, visible=False, interactive=True, min_width=_NARROW, elem_id=f"weight-{n}"
            )


def _take(places: Places) -> Iterator[tuple[str, Any]]:
    with gr.Column(visible=False, elem_id="take") as take:
        gr.Markdown("## 3. The result")
        yield "figures", _html("figures")
        with gr.Accordion("The whole report", open=False, elem_id="whole"):
            yield "report", _html("report")
        with gr.Row():
            yield "pack", gr.Button("Make a zip file", elem_id="pack")
            yield "zip", gr.DownloadButton("Download", visible=False, variant="primary", elem_id="zip")
        with gr.Accordion("Save on this machine", open=False, visible=bool(places.folders), elem_id="disk"):
            yield "folder", gr.Textbox(label="Folder", info=_NEW, placeholder="merged", elem_id="folder")
            yield "save", gr.Button("Save", elem_id="save")
        with gr.Accordion("Push to the Hub", open=False, elem_id="hub"):
            with gr.Row():
                yield (
                    "repository",
                    gr.Textbox(label="Repository", placeholder="user/name", min_width=_NARROW, elem_id="repository"),
                )
                yield (
                    "token",
                    gr.Textbox(
                        label="Access token",
                        info="One that may write there. "
                        + ("Empty: that of `hf auth login`." if places.own_login else "It is used once, and not kept."),
                        type="password",
                        min_width=_NARROW,
                        elem_id="token",
                    ),
                )
            with gr.Row():
                yield "private", gr.Checkbox(True, label="A new repository is private", elem_id="private")
                yield "push", gr.Button("Push", elem_id="push")
        yield "take_notice", _html("take-notice")
    yield "take", take


def _help(row: Option) -> str:
    return f"{row.help} Empty: {row.told}."


def _html(name: str, value: str = "") -> Any:
    """A place for HTML that brings its own sheet of style."""
    return gr.HTML(value, apply_default_css=False, elem_id=name)
