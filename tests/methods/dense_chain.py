"""The default method, slow and obvious: dense updates, autograd of log R, whole SVDs, in float64.

Nothing here is shared with the library. A layer is merged in the order of the method's definition: balance, the
adapters' own triplets, score, choose, decorrelate, flatten, weigh.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import torch
from oracles import Expert, Network, Weights
from torch import Tensor

#: Singular values below this share of the largest are none.
NOTHING = 1e-6
#: Singular values that are less by no more than this, relative to the first of a block, belong to it.
NEAR = 1e-4
#: Two vectors whose cosine is above 1 - HARDLY count as one.
HARDLY = 0.003
#: A component of which more than this is held by those before it comes after all others.
HELD = 0.9
#: As many kept components as an adapter has are this many times as large as it, where two voices are heard or more.
LOUDNESS, GROWTH = 1.7, 0.25
#: The same of so many adapters in a metric of the inputs.
LOUDNESS_SEEN = {1: 1.7, 2: 1.7, 3: 1.8, 4: 1.9, 5: 2.0}
GROWTH_SEEN = 1 / 6


@dataclass
class DenseLayer:
    """One merged layer.

    Args:
        delta: the dense merged update.
        kept: for each adapter there, the numbers of its own triplets that are in the merge; None where it is alone.
        gap: by how much, relatively, the least salient component that stays is above the most salient that goes.
        level: the strength of all kept components.
    """

    delta: Tensor
    kept: dict[int, list[int]] | None = None
    gap: float = 1.0
    level: float | None = None


@dataclass
class _Own:
    """The triplets of one adapter at one layer, and which of them are left."""

    P: Tensor
    S: Tensor
    Q: Tensor
    left: list[int] = field(default_factory=list)

    def update(self) -> Tensor:
        """What is left, as a dense matrix."""
        return self.P[:, self.left] * self.S[self.left] @ self.Q[:, self.left].T


def triplets(matrix: Tensor, nothing: float = NOTHING) -> tuple[Tensor, Tensor, Tensor]:
    """P, sigma, Q of the singular values that are not zero, by a whole SVD."""
    P, S, Qh = torch.linalg.svd(matrix, full_matrices=False)
    count = int((nothing * S[0] < S).sum())
    return P[:, :count], S[:count], Qh[:count].T


def decorrelate(stack: Tensor) -> Tensor:
    """Columns made orthogonal to one another, but in directions in which hardly any of them differ."""
    X, S, Yh = torch.linalg.svd(stack, full_matrices=False)
    return X * (S**8 / (S**8 + HARDLY**4)) @ Yh


def held(components: Sequence[tuple[Tensor, Tensor]]) -> list[float]:
    """Of each p q^T the share of its energy that is in the spans of those before it."""
    shares = [0.0]
    for k in range(1, len(components)):
        share = 1.0
        for side in (0, 1):
            x = components[k][side]
            before = torch.stack([one[side] for one in components[:k]], dim=1)
            share *= float((before @ torch.linalg.pinv(before, rtol=1e-6) @ x).square().sum())
        shares.append(share)
    return shares


def blocks(S: Tensor) -> list[list[int]]:
    """Blocks of near-equal singular values: no chain of small steps makes one long."""
    found = [[0]]
    for k in range(1, len(S)):
        first = float(S[found[-1][0]])
        if first - float(S[k]) <= NEAR * first:
            found[-1].append(k)
        else:
            found.append([k])
    return found


def settle(P: Tensor, S: Tensor, Q: Tensor, T: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """P and Q with the basis of every block chosen by the merge: what turns both leaves P_b Q_b^T as it is."""
    P, S, Q = P.clone(), S.clone(), Q.clone()
    for block in blocks(S):
        if len(block) > 1:
            seen = P[:, block].T @ T @ Q[:, block]
            values, turn = torch.linalg.eigh((seen + seen.T) / 2)
            turn = turn[:, values.abs().argsort(descending=True)]
            P[:, block], Q[:, block] = P[:, block] @ turn, Q[:, block] @ turn
            S[block] = S[block].square().mean().sqrt()
    return P, S, Q


def voices(updates: Sequence[Tensor]) -> float:
    """How many of them are different."""
    K = torch.tensor([[float((one * other).sum()) for other in updates] for one in updates], dtype=torch.float64)
    return float(K.trace() ** 2 / (K @ K).trace())


def heard(
    own: Mapping[int, _Own], weights: Sequence[float]
) -> tuple[dict[tuple[int, int], float], dict[tuple[int, int], float]]:
    """The weight of every component, its adapter's, and what is left of it; of twins the loudest speaks for all."""
    found = {(n, k): weights[n] for n, one in own.items() for k in range(len(one.S))}
    outer = {(n, k): torch.outer(own[n].P[:, k], own[n].Q[:, k]) for n, k in found}
    sizes, share = {(n, k): float(own[n].S[k]) for n, k in found}, {}
    left = sorted(found, key=lambda place: -abs(weights[place[0]]) * sizes[place])
    while left:
        first, *left = left
        cosines = {other: float((outer[first] * outer[other]).sum()) for other in left}
        twins = [other for other in left if abs(cosines[other]) > 0.9]
        said = found[first] + sum(
            math.copysign(1, cosines[other]) * found[other] * sizes[other] / sizes[first] for other in twins
        )
        most = abs(found[first])
        found[first] = 0.0 if abs(said) <= 1e-5 * most else max(-most, min(most, said))
        share[first] = abs(found[first]) / most
        for other in twins:
            found[other], share[other] = 0.0, share[first]
            left.remove(other)
    return found, share


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The best approximation of a rank."""
    P, S, Q = triplets(matrix)
    return P[:, :rank] * S[:rank] @ Q[:, :rank].T


def log_gradients(network: Network, base: Weights, updates: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """d log R / dW of every updated weight that R reads, by autograd."""
    weights = {name: tensor.double() for name, tensor in base.items()}
    leaves = {name: (weights[name] + tau).requires_grad_() for name, tau in updates.items() if name in weights}
    R = network({**weights, **leaves})
    found = torch.autograd.grad(R.log(), list(leaves.values()), allow_unused=True)
    return {name: G for name, G in zip(leaves, found, strict=True) if G is not None}


def dense_chain(
    network: Network | None,
    base: Weights,
    experts: Sequence[Expert],
    weights: Sequence[float],
    rank: int | None = None,
    density: float | None = None,
    iterations: int = 1,
    outside: Collection[str] = (),
    metrics: Mapping[str, Tensor] | None = None,
) -> dict[str, DenseLayer]:
    """The merge by saliency; without a network by size (`even`).

    Args:
        network: R as a function of the weights.
        base: the base's weights by name.
        experts: (A, B, s) by the name of the weight, for each adapter.
        weights: a strength for each adapter.
        rank: components that stay; the largest rank of any adapter by default.
        density: or the share of all components that stay.
        iterations: in how many rounds.
        outside: names of weights outside of R.
        metrics: S by weight, of those whose updates are merged as tau S.
    """

    def taken_back(name: str, matrix: Tensor) -> Tensor:
        return matrix if metrics is None else matrix @ torch.linalg.inv(metrics[name])

    active = [n for n, w in enumerate(weights) if w != 0]
    taus = {
        n: {name: s * B.double() @ A.double() for name, (A, B, s) in experts[n].items() if (s * B @ A).any()}
        for n in active
    }
    most = max((len(A) for n in active for A, _, _ in experts[n].values()), default=0)
    rank = most if rank is None else rank
    names = sorted({name for n in active for name in experts[n]})
    who = {name: [n for n in active if name in taus[n]] for name in names}

    # 1. balance
    for name, there in who.items():
        norms = {n: float(torch.linalg.matrix_norm(taus[n][name])) for n in there}
        for n in there:
            mean = sum(norms.values()) / len(there)
            taus[n][name] = taus[n][name] * min(mean / norms[n], 10.0)
            taus[n][name] = taus[n][name] if metrics is None else taus[n][name] @ metrics[name]

    # the adapters' own triplets
    own: dict[str, dict[int, _Own]] = {}
    for name, there in who.items():
        if len(there) < 2:
            continue
        T = sum(weights[n] * taus[n][name] for n in there)
        own[name] = {}
        for n in there:
            P, S, Q = triplets(taus[n][name])
            own[name][n] = _Own(*settle(P, S, Q, T), list(range(len(S))))

    # 2. decorrelate
    decorrelated = {}
    for name, there in own.items():
        U = decorrelate(torch.cat([one.P for one in there.values()], dim=1))
        V = decorrelate(torch.cat([one.Q for one in there.values()], dim=1))
        places = [(n, k) for n, one in there.items() for k in range(len(one.S))]
        decorrelated[name] = {place: (U[:, i], V[:, i]) for i, place in enumerate(places)}

    # 3. rank
    gaps = dict.fromkeys(own, 1.0)
    for step in range(1, iterations + 1):
        gradients: dict[int, dict[str, Tensor]] = {}
        if network is not None:
            for n in active:
                state = {m: own[m][n].update() if n in own.get(m, {}) else tau for m, tau in taus[n].items()}
                found = log_gradients(network, base, {m: taken_back(m, tau) for m, tau in state.items()})
                gradients[n] = {m: taken_back(m, G) for m, G in found.items()}
        chosen: dict[str, set[tuple[int, int]]] = {}
        for name, there in own.items():
            total = sum(len(one.S) for one in there.values())
            T = sum(weights[n] * one.update() for n, one in there.items())
            scores, agreements, loud = {}, {}, heard(there, weights)[0]
            for n, one in there.items():
                for k in one.left:
                    p, sigma, q = one.P[:, k], one.S[k], one.Q[:, k]
                    eta = sigma * (p @ T @ q)
                    if network is None:
                        scores[n, k] = float(abs(loud[n, k]) * sigma)
                        agreements[n, k] = float(abs(loud[n, k] * eta))
                        continue
                    gamma = sigma * (p @ gradients[n][name] @ q) if name not in outside else 1.0
                    scores[n, k] = float(abs(loud[n, k] * gamma * eta))
            final = min(total, rank) if density is None else max(1, round(density * total))
            count = final if step == iterations else max(1, round(total * (final / total) ** (step / iterations)))
            order = sorted(scores, key=lambda place, s=scores: (-s[place], place))
            if network is None:  # among near-equal ones those that agree more with the merge
                runs = blocks(torch.tensor([scores[place] for place in order]))
                order = [p for run in runs for p in sorted((order[i] for i in run), key=lambda p, a=agreements: -a[p])]
                tied = next((run for run in runs if count - 1 in run and count in run), None)
            shares = held([(there[n].P[:, k], there[n].Q[:, k]) for n, k in order]) if count < total else []
            late = {place for place, share in zip(order, shares, strict=False) if share > HELD}
            if late:
                gaps[name] = min(gaps[name], *(abs(share - HELD) for share in shares))
                order = [p for p in order if p not in late] + [p for p in order if p in late]
            chosen[name] = set(order[:count])
            if count < len(order) and (order[count - 1] in late) == (order[count] in late):
                judge = agreements if network is None and tied else scores
                above, below = judge[order[count - 1]], judge[order[count]]
                gaps[name] = min(gaps[name], (above - below) / above if above else 0.0)
        for name, there in own.items():
            for n, one in there.items():
                one.left = [k for k in one.left if (n, k) in chosen[name]]

    # 4. flat, 5. weights
    merged = {}
    for name, there in who.items():
        if not there:
            shape = next((len(B), A.shape[1]) for n in active for m, (A, B, _) in experts[n].items() if m == name)
            merged[name] = DenseLayer(torch.zeros(shape, dtype=torch.float64))
        elif len(there) == 1:
            lone = taken_back(name, taus[there[0]][name])
            merged[name] = DenseLayer(weights[there[0]] * truncated(lone, rank))
        else:
            loud, remaining = heard(own[name], weights)
            for n, one in own[name].items():
                one.left = [k for k in one.left if loud[n, k]]
            places = [(n, k) for n, one in own[name].items() for k in one.left]
            kept = {n: one.left for n, one in own[name].items()}
            if not places:
                merged[name] = DenseLayer(torch.zeros_like(taus[there[0]][name]), kept, gaps[name])
                continue
            kept_U, kept_V = (torch.stack([decorrelated[name][p][side] for p in places], dim=1) for side in (0, 1))
            U = decorrelate(kept_U / kept_U.norm(dim=0))
            V = decorrelate(kept_V / kept_V.norm(dim=0))
            sigma = torch.stack([own[name][n].S[k] for n, k in places])
            alone = float(sigma.square().mean())
            sizes = [one.S.square().sum() for one in own[name].values()]
            components = sum(len(one.S) for one in own[name].values()) / len(sizes)
            loudness, growth = (LOUDNESS, GROWTH) if metrics is None else (LOUDNESS_SEEN[len(sizes)], GROWTH_SEEN)
            largest = loudness * float(sum(sizes) / len(sizes)) ** 0.5 * (len(places) / components) ** growth
            spoken = [
                weights[n]
                * sum(remaining[n, k] * one.S[k] * torch.outer(one.P[:, k], one.Q[:, k]) for k in range(len(one.S)))
                for n, one in own[name].items()
            ]
            share = min(1.0, voices(spoken) - 1)
            level = ((1 - share) * alone + share * largest**2 / len(places)) ** 0.5
            signs = torch.tensor([loud[place] for place in places], dtype=torch.float64)
            flat = level * (U * signs) @ V.T
            merged[name] = DenseLayer(taken_back(name, flat), kept, gaps[name], level)
    return merged
