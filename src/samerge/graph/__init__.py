"""Flow graphs: what they are (`flow`), and the table of known model families (`families`)."""

from samerge.graph.flow import Edge, FlowGraph, Gather, Weight

__all__ = ["Edge", "FlowGraph", "Gather", "Weight"]
