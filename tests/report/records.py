"""A record made by hand."""

from __future__ import annotations

from samerge.report.record import Record
from samerge.report.stored import AdapterInLayer, Base, Input, LayerRecord, Output

LAYERS = {
    "model.layers.0.q": LayerRecord(
        {
            "math": AdapterInLayer(2.0, 0.9, 16, (0, 1, 3), cosine=0.5, interference=0.6, balance=1.5),
            "co|de": AdapterInLayer(3.0, 0.5, 8, (0, 5), cosine=0.2, interference=1.1),
        },
        norm=1.5,
        rank=5,
        lost=0.25,
        outside=True,
    ),
    "model.layers.1.q": LayerRecord(
        {"math": AdapterInLayer(1.0, 0.4, 16, (2,), cosine=0.9, interference=0.3)}, norm=1.0, rank=1
    ),
}
RECORD = Record(
    method="paper",
    inputs=(
        Input("math", "ada/math-lora", 1.0, 16, 2, "float16", sha256={"x.safetensors": "ab12" * 16}),
        Input("co|de", "bob/code-lora", 0.8, 8, 1, "float16"),
    ),
    output=Output("adapter", "float16", 2, 123456, 16),
    layers=LAYERS,
    base=Base("ada/llama-tiny", "llama"),
    options={"svd_rank": None, "density": 0.1, "connectivity": "flow"},
    log_connectivity={"math": 12.5},
    samerge="0.2.0",
    created="2026-01-02T03:04:05Z",
    versions={"torch": "2.9", "python": "3.12"},
    timings={"reading": 0.5},
    notes=("a note",),
    warnings=("the adapter 'math' has a\nbias",),
)
