"""What a `FlowGraph` accepts, what it refuses, and what it derives from its edges."""

import itertools

import numpy as np
import pytest

from samerge.errors import GraphError, SamergeError
from samerge.graph import FlowGraph, Gather, Weight

CHAIN = (Weight("x", "h", "up.weight"), Weight("h", "y", "down.weight"), Gather("x", "y"))


def test_streams_stand_in_an_order_in_which_every_source_precedes_its_target():
    for edges in itertools.permutations((*CHAIN, Gather("y", "z"), Weight("x", "z", "skip.weight"))):
        graph = FlowGraph(edges, ["x"], ["z"])
        place = {name: number for number, name in enumerate(graph.streams)}
        assert sorted(place) == ["h", "x", "y", "z"]
        assert all(place[edge.source] < place[edge.target] for edge in graph.edges)


def test_incoming_has_all_edges_of_a_stream_and_nothing_else():
    graph = FlowGraph(CHAIN, ["x"], ["y"])
    assert graph.incoming == {"x": (), "h": CHAIN[:1], "y": CHAIN[1:]}


def test_tensors_are_sorted_and_each_named_once():
    edges = [Weight("x", "a", "w"), Weight("a", "b", "w"), Weight("b", "y", "a"), Gather("x", "y")]
    assert FlowGraph(edges, ["x"], ["y"]).tensors == ("a", "w")


def test_an_edge_into_an_unread_stream_is_allowed():
    assert FlowGraph([*CHAIN, Gather("h", "unread")], ["x"], ["y"]).outputs == ("y",)


def test_gather_edges_compare_by_their_streams():
    assert Gather("a", "b", np.arange(3)) == Gather("a", "b", np.arange(4))
    assert Gather("a", "b") != Gather("a", "c")


@pytest.mark.parametrize(
    ("edges", "inputs", "outputs", "said"),
    [
        (CHAIN, [], ["y"], "at least one input"),
        (CHAIN, ["x"], [], "at least one input"),
        ((*CHAIN, Gather("y", "h")), ["x"], ["y"], "cycle through the streams"),
        ((*CHAIN, Gather("h", "h")), ["x"], ["y"], "cycle through the streams h -> h"),
        (CHAIN, ["x", "h"], ["y"], "input stream 'h' has an edge leading into it"),
        ((*CHAIN, Gather("lost", "found")), ["x"], ["y"], "reaches the stream 'lost'"),
        (CHAIN, ["x"], ["z"], "output stream 'z' is not in the graph"),
    ],
)
def test_malformed_graphs_are_refused(edges, inputs, outputs, said):
    with pytest.raises(GraphError, match=said):
        FlowGraph(edges, inputs, outputs)


def test_graph_errors_are_value_errors_of_samerge():
    assert issubclass(GraphError, SamergeError)
    assert issubclass(GraphError, ValueError)
