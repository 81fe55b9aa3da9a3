"""The least that the sweeps can take on this machine: what their products cost, and what reading the base costs."""

from __future__ import annotations

import time


def thin_products(weights: int, experts: int, ranks: list[int]) -> float:
    """Seconds of the thin products and matrix-vector products alone, at the rate that torch reaches here and now.

    Each weight, expert and iteration takes two rank-r updates, one product with the signs and two matrix-vector
    products, on tiles that stay in a core's cache. One thread measures; the work is divided among all.

    Args:
        weights: entries of the base's matrices in the graph.
        experts: adapters.
        ranks: of each expert, in each iteration.
    """
    import torch

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    most, m, d = max(ranks), 64, 2048
    left, right, columns = torch.randn(m, most), torch.randn(most, d), torch.randn(d, most)
    weight, flow = torch.randn(m, d), torch.rand(d)
    out = torch.empty(m, d)

    def products(r: int) -> float:
        times = []
        for _ in range(15):
            start = time.thread_time()
            for _ in range(20):
                torch.mm(left[:, :r], right[:r], out=out)
                torch.mm(left[:, :r], right[:r], out=out)
                torch.mm(weight, columns[:, :r])
                torch.mv(weight, flow)
                torch.mv(weight, flow)
            times.append((time.thread_time() - start) / 20)
        return sorted(times)[len(times) // 2] / (m * d)

    seconds = sum(products(r) for r in ranks) * weights * experts
    torch.set_num_threads(threads)
    return seconds / threads


def bandwidth() -> float:
    """Bytes a second that all threads together read from memory: the best of five sums over 512 MiB."""
    import torch

    block = torch.ones(2**27)
    times = []
    for _ in range(6):
        start = time.perf_counter()
        block.sum()
        times.append(time.perf_counter() - start)
    return block.numel() * block.element_size() / min(times[1:])


def ranks_by_iteration(rank: int, final: int, iterations: int) -> list[int]:
    """The rank that each expert has while an iteration scores: it falls geometrically from `rank` to `final`."""
    return [max(1, round(rank * (final / rank) ** (t / iterations))) for t in range(iterations)]


def floor(weights: int, stored_bytes: int, experts: int, iterations: int, rank: int, final: int) -> dict[str, float]:
    """The floor of the scoring: the larger of its two parts.

    Args:
        weights: entries of the base's matrices in the graph.
        stored_bytes: what these take on disk; every iteration reads them twice.
        experts: adapters.
        iterations: of scoring and pruning.
        rank: of each adapter.
        final: what each keeps on average.
    """
    products = thin_products(weights, experts, ranks_by_iteration(rank, final, iterations))
    rate = bandwidth()
    reading = 2 * iterations * stored_bytes / rate
    return {
        "products_seconds": round(products, 3),
        "reading_seconds": round(reading, 3),
        "gb_per_second": round(rate / 1e9, 1),
        "seconds": round(max(products, reading), 3),
    }
