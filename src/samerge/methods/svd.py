"""`svd`: the exact weighted sum, truncated to rank (the largest source rank by default).

The best approximation of the sum of `linear` in Frobenius norm (Eckart and Young 1936), through the factors: two QRs
and an SVD of the small core, never the dense update.
"""

from __future__ import annotations

from samerge.methods.linear import begin
from samerge.methods.method import Method

METHOD = Method("svd", begin)
