"""Merge methods: one small file each, what they are given (`problem`), what they are (`method`), and their registry."""
