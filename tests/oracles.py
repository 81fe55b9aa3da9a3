"""Slow, obvious, dense references, in float64 and by autograd. Nothing here is shared with the library."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

Weights = Mapping[str, Tensor]
#: (A, B, scale) by the name of the weight.
Expert = Mapping[str, tuple[Tensor, Tensor, float]]
Network = Callable[[Weights], Tensor]


# ---- networks written out by hand: R as a function of the weights


def chain_network(names: Sequence[str]) -> Network:
    def strength(weights: Weights) -> Tensor:
        x = torch.ones(weights[names[0]].shape[1], dtype=torch.float64)
        for name in names:
            x = weights[name].abs() @ x
        return x.sum()

    return strength


def llama_network(layers: int, heads: int, groups: int, residual: bool) -> Network:
    def spread(x: Tensor) -> Tensor:
        return x.view(groups, -1).repeat_interleave(heads // groups, dim=0).reshape(-1)

    def strength(weights: Weights) -> Tensor:
        x = torch.ones(weights["model.layers.0.self_attn.q_proj.weight"].shape[1], dtype=torch.float64)
        for i in range(layers):
            w = {
                name: weights[f"model.layers.{i}.{part}.{name}_proj.weight"].abs()
                for part, names in {"self_attn": "qkvo", "mlp": ("gate", "up", "down")}.items()
                for name in names
            }
            y = w["o"] @ (w["q"] @ x + spread(w["k"] @ x) + spread(w["v"] @ x)) + residual * x
            x = w["down"] @ (w["gate"] @ y + w["up"] @ y) + residual * y
        return x.sum()

    return strength


def bert_network(layers: int, residual: bool, prefix: str = "bert.") -> Network:
    def strength(weights: Weights) -> Tensor:
        x = torch.ones(weights[f"{prefix}encoder.layer.0.attention.self.query.weight"].shape[1], dtype=torch.float64)
        for i in range(layers):
            at = f"{prefix}encoder.layer.{i}"
            inner = sum(weights[f"{at}.attention.self.{n}.weight"].abs() @ x for n in ("query", "key", "value"))
            y = weights[f"{at}.attention.output.dense.weight"].abs() @ inner + residual * x
            x = weights[f"{at}.output.dense.weight"].abs() @ (weights[f"{at}.intermediate.dense.weight"].abs() @ y)
            x = x + residual * y
        return x.sum()

    return strength


def gpt2_network(layers: int, residual: bool) -> Network:
    def strength(weights: Weights) -> Tensor:
        x = torch.ones(weights["transformer.h.0.attn.c_attn.weight"].shape[0], dtype=torch.float64)
        for i in range(layers):  # Conv1D: (in, out)
            at = f"transformer.h.{i}"
            q, k, v = (x @ weights[f"{at}.attn.c_attn.weight"].abs()).chunk(3)
            y = (q + k + v) @ weights[f"{at}.attn.c_proj.weight"].abs() + residual * x
            x = y @ weights[f"{at}.mlp.c_fc.weight"].abs() @ weights[f"{at}.mlp.c_proj.weight"].abs() + residual * y
        return x.sum()

    return strength


def t5_network(layers: int, residual: bool) -> Network:
    def attention(w: Weights, at: str, x: Tensor, memory: Tensor) -> Tensor:
        inner = w[f"{at}.q.weight"].abs() @ x + (w[f"{at}.k.weight"].abs() + w[f"{at}.v.weight"].abs()) @ memory
        return w[f"{at}.o.weight"].abs() @ inner + residual * x

    def mlp(w: Weights, at: str, x: Tensor) -> Tensor:
        return w[f"{at}.wo.weight"].abs() @ (w[f"{at}.wi.weight"].abs() @ x) + residual * x

    def strength(w: Weights) -> Tensor:
        width = w["encoder.block.0.layer.0.SelfAttention.q.weight"].shape[1]
        memory = torch.ones(width, dtype=torch.float64)
        for i in range(layers):
            memory = attention(w, f"encoder.block.{i}.layer.0.SelfAttention", memory, memory)
            memory = mlp(w, f"encoder.block.{i}.layer.1.DenseReluDense", memory)
        x = torch.ones(width, dtype=torch.float64)
        for i in range(layers):
            x = attention(w, f"decoder.block.{i}.layer.0.SelfAttention", x, x)
            x = attention(w, f"decoder.block.{i}.layer.1.EncDecAttention", x, memory)
            x = mlp(w, f"decoder.block.{i}.layer.2.DenseReluDense", x)
        return x.sum()

    return strength


def local_network(weights: Weights) -> Tensor:
    """Every weight by itself, between ones."""
    return sum((weight.abs().sum() for weight in weights.values()), torch.zeros((), dtype=torch.float64))


def graph_network(graph) -> Network:
    """Any `FlowGraph`, walked recursively from its outputs."""

    def strength(weights: Weights) -> Tensor:
        def into(edge) -> Tensor:
            x = stream(edge.source)
            if hasattr(edge, "tensor"):
                weight = weights[edge.tensor] if edge.expert is None else weights[edge.tensor][edge.expert]
                return (weight.T if edge.transposed else weight).abs() @ x
            return x if edge.index is None else x[torch.as_tensor(edge.index)]

        def stream(name: str) -> Tensor:
            if name not in seen:
                if name in graph.inputs:
                    width = next(
                        weights[e.tensor].shape[-2 if e.transposed else -1]
                        for e in graph.edges
                        if e.source == name and hasattr(e, "tensor")
                    )
                    seen[name] = torch.ones(width, dtype=torch.float64)
                else:
                    seen[name] = sum(into(edge) for edge in graph.edges if edge.target == name)
            return seen[name]

        seen: dict[str, Tensor] = {}
        return sum(stream(name).sum() for name in graph.outputs)

    return strength


# ---- gradients


def effective(base: Weights, expert: Expert, transposed: bool = False) -> dict[str, Tensor]:
    """theta0 + s B A for every weight, in float64."""
    weights = {name: tensor.double() for name, tensor in base.items()}
    for name, (A, B, s) in expert.items():
        update = s * B.double() @ A.double()
        weights[name] = weights[name] + (update.T if transposed else update)
    return weights


def dense_gradient(
    network: Network, base: Weights, expert: Expert, transposed: bool = False
) -> tuple[dict[str, Tensor], float]:
    """dR/dW of every adapted weight, as (out, in), and R."""
    weights = effective(base, expert, transposed)
    leaves = {name: weights[name].requires_grad_() for name in expert}
    R = network({**weights, **leaves})
    found = torch.autograd.grad(R, list(leaves.values()), allow_unused=True) if leaves else ()
    gradients = {name: g for name, g in zip(leaves, found, strict=True) if g is not None}
    return {name: g.T if transposed else g for name, g in gradients.items()}, float(R.detach())


def dense_gamma(
    network: Network, base: Weights, expert: Expert, transposed: bool = False
) -> tuple[dict[str, Tensor], float]:
    """gamma_k = s b_k^T (dR/dW) a_k of every component, and R."""
    gradients, R = dense_gradient(network, base, expert, transposed)
    gamma = {}
    for name, G in gradients.items():
        A, B, s = expert[name]
        gamma[name] = torch.stack([s * B[:, k].double() @ G @ A[k].double() for k in range(A.shape[0])])
    return gamma, R


def dense_eta(own: tuple[Tensor, Tensor, float], aggregate: Tensor) -> Tensor:
    """eta_k = s b_k^T M a_k."""
    A, B, s = own
    return torch.stack([s * B[:, k].double() @ aggregate @ A[k].double() for k in range(A.shape[0])])


# ---- the paper's Algorithm 2 for LoRA, literally


def paper_merge(
    network: Network,
    base: Weights,
    experts: Sequence[Expert],
    weights: Sequence[float],
    density: float = 0.1,
    iterations: int = 10,
) -> tuple[dict[str, Tensor], list[dict[str, list[int]]]]:
    """SA-Merging on the components as trained, with dense tensors and masks.

    Returns:
        The dense merged update of every adapted weight, and which components each expert kept.
    """
    names = sorted({name for expert in experts for name in expert})
    masks = [{name: torch.ones(expert[name][0].shape[0], dtype=torch.bool) for name in expert} for expert in experts]

    def masked(n: int) -> dict[str, tuple[Tensor, Tensor, float]]:
        return {
            name: (A.double() * masks[n][name][:, None], B.double() * masks[n][name], s)
            for name, (A, B, s) in experts[n].items()
        }

    def aggregate(name: str) -> Tensor:
        parts = [(w, *masked(n)[name]) for n, w in enumerate(weights) if name in experts[n]]
        return sum((w * s * B @ A for w, A, B, s in parts), torch.zeros((), dtype=torch.float64))

    for t in range(1, iterations + 1):
        merged = {name: aggregate(name) for name in names}
        after = [dict(table) for table in masks]
        gammas = [dense_gamma(network, base, masked(n))[0] for n in range(len(experts))]
        for n, expert in enumerate(experts):
            gamma = gammas[n]
            for name, (A, _, _) in expert.items():
                if name not in gamma:
                    continue  # outside R: unpruned
                saliency = (gamma[name] * dense_eta(masked(n)[name], merged[name])).abs()
                saliency[~masks[n][name]] = -1.0
                count = max(1, round(A.shape[0] * density ** (t / iterations)))
                keep = sorted(range(A.shape[0]), key=lambda k: (-float(saliency[k]), k))[:count]
                after[n][name] = torch.zeros(A.shape[0], dtype=torch.bool)
                after[n][name][keep] = True
        masks = after
    kept = [{name: mask.nonzero().flatten().tolist() for name, mask in table.items()} for table in masks]
    return {name: aggregate(name) for name in names}, kept
