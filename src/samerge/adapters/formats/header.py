"""What goes into the header of a safetensors file beside the tensors: the record of the merge, and what tools read.

| field | what it is |
|---|---|
| `samerge` | the record, as JSON |
| `ss_network_module`, `ss_network_dim`, `ss_network_alpha`, `ss_network_args` | kohya's |
| `sshs_model_hash` | kohya's: sha256 of all behind the header |
| `modelspec.*` | Stability's: title, date, what it was merged from |
| `CARRIED` | what all sources say alike of the model that they are of |
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from samerge.adapters.formats.format import Content
from samerge.adapters.writer import json_text
from samerge.linalg.factors import LoraFactors

#: The field that holds the record.
RECORD_FIELD = "samerge"
#: Bytes of a record that go into a header whole; of a longer one the layers are left out.
MOST_RECORD = 8 * 2**20
#: Fields of the sources' headers that hold for a merge of them, too, where all say the same.
CARRIED = (
    "ss_base_model_version",
    "ss_v2",
    "modelspec.architecture",
    "modelspec.implementation",
    "modelspec.prediction_type",
    "modelspec.resolution",
    "general.architecture",
)


def carried(headers: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """What all headers say alike of the model that the adapters are of.

    Example:
        >>> carried([{"ss_v2": "False"}, {"ss_v2": "False", "ss_epoch": "3"}, {}])
        {}
        >>> carried([{"ss_v2": "False"}, {"ss_v2": "False", "ss_epoch": "3"}])
        {'ss_v2': 'False'}
    """
    common: dict[str, str] = {}
    for name in CARRIED:
        said = {header.get(name) for header in headers}
        if len(said) == 1 and (value := said.pop()) is not None:
            common[name] = value
    return common


def header_of(content: Content, factors: Mapping[str, LoraFactors], title: str) -> dict[str, str]:
    """The fields of one file.

    Args:
        content: what is written.
        factors: by module, as they are written.
        title: what the file is called.
    """
    record = content.record
    linear = [one for module, one in factors.items() if _kernel(content, module) == 1]
    convolutions = [one for module, one in factors.items() if _kernel(content, module) > 1]
    rank, alpha = _usual(linear or convolutions)
    fields = {
        **content.metadata,
        "ss_network_module": "networks.lora",
        "ss_network_dim": str(rank),
        "ss_network_alpha": f"{alpha:g}",
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.title": title,
    }
    if linear and convolutions:
        conv_rank, conv_alpha = _usual(convolutions)
        fields["ss_network_args"] = json.dumps({"conv_dim": str(conv_rank), "conv_alpha": f"{conv_alpha:g}"})
    if record:
        names = [str(one.get("name")) for one in record.get("inputs", ())]
        fields |= {
            "modelspec.date": str(record.get("created", "")),
            "modelspec.merged_from": ", ".join(names),
            RECORD_FIELD: record_text(record),
        }
    return fields


def record_text(record: Mapping[str, Any]) -> str:
    """The record as JSON; without its layers where it would be too long for a header."""
    text = json_text(record, RECORD_FIELD, lines=False)
    if len(text.encode()) <= MOST_RECORD:
        return text
    note = "the layers are not in this record, which would be too long for the header of a file"
    return json_text({**record, "layers": {}, "notes": [*record.get("notes", ()), note]}, RECORD_FIELD, lines=False)


def _kernel(content: Content, module: str) -> int:
    return math.prod(content.layouts[module].kernel[1:])


def _usual(factors: Sequence[LoraFactors]) -> tuple[int, float]:
    """The rank and alpha that most modules have, the larger of two that are as frequent."""
    counts = Counter((one.rank, one.scale * one.rank) for one in factors)
    return max(counts, key=lambda pair: (counts[pair], pair))
