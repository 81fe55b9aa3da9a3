"""The page: its fields, and what happens when one is used."""

from __future__ import annotations

import contextvars
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gradio as gr
from gradio.utils import get_upload_folder

from samerge.errors import SamergeError
from samerge.merging.merged_adapter import MergedAdapter
from samerge.ui import told, work
from samerge.ui.bar import ToldProgress
from samerge.ui.chosen import density_of, named
from samerge.ui.fields import Fields, laid_out
from samerge.ui.places import Places

logger = logging.getLogger(__name__)

#: Seconds after which files for download, and what strangers had, go; and how many visitors may wait.
_KEPT, _WAITING = 3600, 32
#: One piece of work at a time: it takes the processor's cores, and memory.
_ONE: dict[str, Any] = {"concurrency_limit": 1, "concurrency_id": "work", "api_visibility": "private"}

Update = dict[Any, Any]


def build(places: Places) -> gr.Blocks:
    """The page, not yet served.

    Args:
        places: what a visitor may reach.
    """
    with gr.Blocks(title="samerge", analytics_enabled=False, delete_cache=(600, _KEPT)) as page:
        lasting = None if places.own_login else _KEPT
        looked, result = gr.State(time_to_live=lasting), gr.State(time_to_live=lasting)
        fields = laid_out(places)
        _on_look(fields, places, looked, result)
        _on_merge(fields, looked, result)
        _on_take(fields, places, result)
    page.queue(max_size=_WAITING)
    return page


def _on_look(fields: Fields, places: Places, looked: Any, result: Any) -> None:
    def look(base: str | None, adapters: list[str] | None, progress: Any = gr.Progress()) -> Update:  # noqa: B008
        fresh = _forgotten(fields, looked, result)

        def found() -> Update:
            one = work.look(places, base, adapters, ToldProgress(_teller(progress)))
            sliders = {
                slider: gr.update(label=one.names[n], value=1.0, visible=True)
                for n, slider in enumerate(fields.weights[: len(one.names)])
            }
            ready = {fields.how: gr.update(visible=bool(one.adapters))}
            return {looked: one, fields.looked: told.looked_over(one), **sliders, **ready}

        return {**fresh, **_guarded(found, fields.looked)}

    outputs = [looked, result, fields.looked, fields.how, fields.take, *fields.weights]
    outputs += [fields.merge_notice, fields.take_notice]
    fields.look.click(look, [fields.base, fields.adapters], outputs, show_progress_on=[fields.looked], **_ONE)


def _forgotten(fields: Fields, looked: Any, result: Any) -> Update:
    """The page as before anything was looked at."""
    hidden = {one: gr.update(visible=False) for one in (fields.how, fields.take, *fields.weights)}
    return {looked: None, result: None, fields.looked: "", fields.merge_notice: "", fields.take_notice: "", **hidden}


def _on_merge(fields: Fields, looked: Any, result: Any) -> None:
    options = [fields.method, fields.rank, fields.scaling, fields.density]
    inputs = [looked, result, fields.base, fields.adapters, *options, *fields.weights]
    shown = [result, fields.figures, fields.report, fields.take, fields.merge_notice, fields.zip, fields.take_notice]

    def merge(
        one: work.Looked | None,
        before: MergedAdapter | None,
        base: str | None,
        adapters: list[str] | None,
        method: str,
        rank: str | None,
        scaling: str | None,
        density: str | None,
        *weights: float,
        progress: Any = gr.Progress(),  # noqa: B008
    ) -> Update:
        if one is None or ((base or "").strip(), tuple(dict.fromkeys(adapters or ()))) != (one.base, one.given):
            return {fields.merge_notice: told.notice("Other adapters or another base: look at them first.", wrong=True)}
        options = {"rank": rank, "scaling": scaling, **({"density": density} if density_of(method) else {})}
        given = {name: text.strip() for name, text in options.items() if text and text.strip()}

        def made() -> Update:
            merged = work.merged(one, weights, named(method), given, ToldProgress(_teller(progress)))
            record = merged.report.record
            return {
                result: merged,
                fields.figures: told.figures(record, before.report.record if before else None),
                fields.report: merged.report._repr_html_(),
                fields.take: gr.update(visible=True),
                fields.zip: gr.update(visible=False),
                fields.merge_notice: "",
                fields.take_notice: "",
            }

        return _guarded(made, fields.merge_notice)

    def again(live: bool, *given: Any, progress: Any = gr.Progress()) -> Any:  # noqa: B008
        return merge(*given, progress=progress) if live else gr.skip()

    fields.merge.click(merge, inputs, shown, show_progress_on=[fields.merge_notice], **_ONE)
    changes = [*(one.change for one in (*fields.weights, fields.method)), fields.live.change]
    changes += [event for one in options[1:] for event in (one.submit, one.blur)]
    gr.on(
        changes,
        again,
        [fields.live, *inputs],
        shown,
        trigger_mode="always_last",
        show_progress="minimal",
        show_progress_on=[fields.merge_notice],
        **_ONE,
    )
    fields.method.change(
        _described, [fields.method], [fields.about, fields.density], queue=False, api_visibility="private"
    )


def _on_take(fields: Fields, places: Places, result: Any) -> None:
    def pack(merged: MergedAdapter | None) -> Update:
        def packed() -> Update:
            file = work.packed(_there(merged), Path(get_upload_folder()))
            label = f"Download merged.zip ({_size(file.stat().st_size)})"
            return {fields.zip: gr.update(value=str(file), label=label, visible=True), fields.take_notice: ""}

        return _guarded(packed, fields.take_notice)

    def save(merged: MergedAdapter | None, folder: str) -> Update:
        return _guarded(
            lambda: {fields.take_notice: told.notice(f"Saved in {work.saved(places, _there(merged), folder)}.")},
            fields.take_notice,
        )

    def push(merged: MergedAdapter | None, repository: str, token: str, private: bool) -> Update:
        def pushed() -> Update:
            address = work.pushed(places, _there(merged), repository, token, private)
            return {fields.take_notice: told.notice(f"Pushed to {address}."), fields.token: ""}

        return _guarded(pushed, fields.take_notice)

    fields.pack.click(pack, [result], [fields.zip, fields.take_notice], **_ONE)
    fields.save.click(save, [result, fields.folder], [fields.take_notice], **_ONE)
    fields.push.click(
        push,
        [result, fields.repository, fields.token, fields.private],
        [fields.take_notice, fields.token],
        **_ONE,
    )


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.0f} KiB"


def _there(merged: MergedAdapter | None) -> MergedAdapter:
    if merged is None:
        raise SamergeError("there is no result, or no longer: merge first")
    return merged


def _described(method: str) -> tuple[str, Any]:
    """What a method does, and the field for its density, where it has one."""
    density = density_of(method)
    return told.about(method), gr.update(visible=bool(density), info=density)


def _guarded(do: Callable[[], Update], notice: Any) -> Update:
    """What was done; where it was refused, why. What nobody foresaw is told by its kind; the log has the rest."""
    try:
        return do()
    except (SamergeError, OSError) as error:
        return {notice: told.notice(str(error), wrong=True)}
    except Exception as error:
        logger.exception("the page")
        return {notice: told.notice(f"an error of samerge's own ({type(error).__name__}); the log has it", wrong=True)}


def _teller(progress: Any) -> Callable[[str, int, int], None]:
    """Tells gradio of progress, from any thread: it finds the visitor through the context of the one that called."""
    context = contextvars.copy_context()

    def tell(stage: str, done: int, total: int) -> None:
        context.copy().run(progress, (done, total), desc=stage)

    return tell
