"""Flow graphs: what they are (`flow`), the table of known model families (`families`), and from one to the other."""

from samerge.graph.build import build_graph
from samerge.graph.families import families
from samerge.graph.flow import Edge, FlowGraph, Gather, Weight

__all__ = ["Edge", "FlowGraph", "Gather", "Weight", "build_graph", "families"]
