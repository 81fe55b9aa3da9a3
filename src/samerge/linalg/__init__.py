"""Linear algebra on low-rank factors and the order statistics of merging: pure functions on tensors."""
