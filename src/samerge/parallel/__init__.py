"""Threads, processes and devices: who has what, how sums are made, and what is shown of the progress."""
