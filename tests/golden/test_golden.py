"""What merged before merges now, to the same dense update."""

from __future__ import annotations

import pytest
import torch

from golden.calls import ALL, recorded


@pytest.mark.parametrize("name", ALL)
def test_the_same_dense_update_as_recorded(name: str) -> None:
    expected, found = recorded(name), ALL[name]()
    assert set(found) == set(expected)
    size = max(float(torch.linalg.vector_norm(tensor)) for tensor in expected.values())
    for module, tensor in expected.items():
        torch.testing.assert_close(
            found[module], tensor, rtol=1e-5, atol=1e-6 * size, msg=lambda m, at=module: f"{at}: {m}"
        )
