"""Flows through the graph, gamma and eta, the scores of components and of single elements."""
