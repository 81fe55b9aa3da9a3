"""Tile kernels: what is computed on one tile of a base weight.

`tiles` is plain torch, for any device and dtype, and what the others are checked against; `native` is the same in C for
the CPU, compiled when it is first needed; `triton_tiles` and `triton_kernel` for GPUs; `backend` chooses.
"""
