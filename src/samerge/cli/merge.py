"""`samerge merge`: adapters in, one adapter out."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from samerge.cli.named_adapter import given_adapters, given_weights
from samerge.cli.own_options import own_options
from samerge.cli.request import Request, carry_out
from samerge.cli.shared_options import Adapters, Base, Manner, MethodName, Weights
from samerge.cli.spread import FromTable
from samerge.cli.target import AdapterTarget
from samerge.options.common import CommonOptions


def merge(
    *,
    ctx: typer.Context,
    base: Base = None,
    adapter: Adapters = None,
    weights: Weights = None,
    method: MethodName = None,
    options: Annotated[dict[str, Any], FromTable(CommonOptions)],
    target: AdapterTarget,
    manner: Manner,
) -> None:
    """Merge LoRA adapters of one base model into one. The base is only streamed.

    Two adapters, the second at four fifths of its strength:

        samerge merge --base meta-llama/Llama-3.1-8B --out merged/ \\
            --adapter math=ada/math-lora --adapter code=./code-lora:0.8

    By default each adapter gets one voice, and the components that matter most to the model and the merge are kept.
    Their exact sum instead, which reads no base:

        samerge merge --adapter ./a --adapter ./b --method linear --out sum/

    Four adapters and more of a model that writes text keep more where the base is run once, on tokens drawn at random
    or on texts of yours; only for this it is built, and must fit into memory:

        samerge merge --base meta-llama/Llama-3.1-8B --calibration random \\
            --adapter ./a --adapter ./b --adapter ./c --adapter ./d --out merged/

    A method's own options are given likewise, as in --method ties --density 0.3; `samerge methods ties` lists them.
    """
    own = own_options(ctx, method)
    adapters = given_adapters(adapter)
    request = Request(base, adapters, method, given_weights(weights, adapters), {**options, **own}, target)
    carry_out(request, manner)
