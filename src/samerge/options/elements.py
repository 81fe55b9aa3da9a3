"""The options of SA-Merging by single elements: of adapters (`elementwise`) and of checkpoints (`samerge full`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from samerge.options.connectivity import HELP, connectivity
from samerge.options.kinds import flag, rounds, share, word
from samerge.options.option import Options, option

if TYPE_CHECKING:
    from samerge.graph import FlowGraph


@dataclass(frozen=True)
class ElementOptions(Options):
    """How elements are scored, and how many stay."""

    density: float = option(share(), 0.1, "Share of its elements that each input keeps in each weight of the graph.")
    iterations: int = option(rounds(), 10, "Scoring and pruning steps.")
    agreement: str = option(
        word("paper", "task"),
        "paper",
        "paper: dR/dtau times the merge, with its sign; task: elements that disagree with the merge go first.",
    )
    connectivity: str | FlowGraph = option(connectivity(), "flow", HELP)
    residual: bool = option(flag(), True, "Whether the flow graph has the residual edges.")
