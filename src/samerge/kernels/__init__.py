"""Tile kernels: what is computed on one tile of a base weight. `tiles` is plain torch, for any device."""
