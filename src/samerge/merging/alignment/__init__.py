"""Bringing adapters and their base together: which module of which adapter is which weight, under whose names."""
