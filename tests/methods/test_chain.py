"""The chain of a merge: which links a name means, and that links compose as if each were done by hand."""

from __future__ import annotations

import re

import pytest
import torch
from tiny import chain as weights_of_chain
from tiny import chain_factors, write_adapter, write_base

import samerge
from samerge.linalg.factors import LoraFactors
from samerge.linalg.truncation import svd_basis
from samerge.methods import REGISTRY
from samerge.methods.chain import LIGHT_DENSITY, chain
from samerge.report.card import model_card

#: Every method that may come after a selection.
AGGREGATIONS = [name for name, entry in REGISTRY.items() if not entry.needs_base]
#: Those among them that look at the factors as they are, so depend on the basis.
BY_FACTORS = {"lora-lego", "robustmerge"}
RANKS = (6, 4, 5)
MODULES = ("layers.0", "layers.1")


@pytest.fixture(scope="module")
def case(tmp_path_factory):
    """A chain of two layers and three adapters, as (base, adapters, factors by adapter)."""
    folder = tmp_path_factory.mktemp("chain")
    base = weights_of_chain([14, 12, 13])
    tables = {f"e{n}": chain_factors(base, rank, seed=n) for n, rank in enumerate(RANKS)}
    adapters = {name: write_adapter(folder / name, table) for name, table in tables.items()}
    return write_base(folder / "base", base), adapters, tables


def same(one, other, tolerance: float = 2e-5) -> None:
    for module in one.factors:
        a, b = one.delta(module).double(), other.delta(module).double()
        assert float((a - b).norm()) <= tolerance * max(float(b.norm()), 1e-3), module


def kept(merged, module: str) -> dict[str, list[int]]:
    return {name: share["kept"] for name, share in merged.report.record["layers"][module]["experts"].items()}


@pytest.mark.parametrize(
    ("method", "selection", "aggregation", "recipe", "expected"),
    [
        (None, None, None, None, ("tsv", "none", "tsv")),
        ("saliency", None, None, None, ("saliency", "saliency", "sum")),
        ("tsv", None, None, None, ("tsv", "none", "tsv")),
        (None, None, "tsv", None, ("tsv", "none", "tsv")),
        (None, "none", "tsv", None, ("tsv", "none", "tsv")),
        (None, "none", None, None, ("linear", "none", "sum")),
        (None, "norm", None, None, ("norm", "norm", "sum")),
        (None, "saliency", "tsv", None, ("saliency+tsv", "saliency", "tsv")),
        ("saliency", None, "tsv", None, ("saliency+tsv", "saliency", "tsv")),
        ("saliency", "saliency", "sum", None, ("saliency", "saliency", "sum")),
        ("tsv", "saliency", None, None, ("saliency+tsv", "saliency", "tsv")),
        ("tsv", None, "tsv", None, ("tsv", "none", "tsv")),
        ("linear", None, "sum", None, ("linear", "none", "linear")),
        ("cat", "saliency", None, None, ("saliency", "saliency", "cat")),
        ("elementwise", None, None, "paper", ("elementwise", "none", "elementwise")),
        (None, None, None, "paper", ("saliency", "saliency", "sum")),
        (None, None, None, "even", ("tsv", "none", "tsv")),
        (None, "saliency", None, "even", ("saliency+tsv", "saliency", "tsv")),
        ("saliency", None, None, "even", ("saliency+tsv", "saliency", "tsv")),
        ("ties", None, None, "even", ("ties", "none", "ties")),
        (None, "random:3", "ties", None, ("random:3+ties", "random:3", "ties")),
    ],
)
def test_what_names_mean(method, selection, aggregation, recipe, expected):
    found = chain(method, selection, aggregation, recipe)
    assert (found.name, found.selection, found.aggregation) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("saliency", "norm", None, None), "method='saliency' means selection='saliency', and selection='norm'"),
        (("saliency", "none", None, None), "method='saliency' means selection='saliency', and selection='none'"),
        (("tsv", None, "ties", None), "method='tsv' means aggregation='tsv', and aggregation='ties' was given, too"),
        ((None, None, "saliency", None), "aggregation='saliency' is a selection and its sum; give selection="),
        ((None, "saliency", "elementwise", None), "aggregation='elementwise' selects by itself"),
        (("elementwise", "norm", None, None), "aggregation='elementwise' selects by itself"),
        ((None, None, "tzv", None), "aggregation='tzv' is not known; choose one of"),
        ((["tsv"], None, None, None), r"method=.'tsv'. must be text"),
        (("tsv", None, None, "odd"), "recipe='odd' is not known; choose one of paper, even"),
    ],
)
def test_contradictions_are_errors(names, message):
    with pytest.raises(samerge.OptionError, match=message):
        chain(*names)


@pytest.mark.parametrize("name", ["svd", "size", "random:x", "random:-1"])
def test_unknown_selections_are_errors(case, name):
    _, adapters, _ = case
    with pytest.raises(samerge.OptionError, match=r"selection=.* is not known; choose one of none, saliency"):
        samerge.merge(None, adapters, selection=name)


def by_hand(tables, picked, folder, basis: str = "svd"):
    """Adapters of the picked components on disk."""
    made = {}
    for name, table in tables.items():
        factors = {}
        for module, (A, B) in table.items():
            f = svd_basis(LoraFactors(A, B)) if basis == "svd" else LoraFactors(A, B)
            f = f.select(torch.tensor(picked(module, name, f.rank)))
            factors[module] = (f.A, f.B)
        made[name] = write_adapter(folder / name, factors, alpha=None)
    return made


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_selection_then_aggregation_is_each_by_hand(case, aggregation, tmp_path):
    """By norm in the svd basis, half of the components: a truncated SVD of every expert."""
    _, adapters, tables = case
    options = {"weights": [1.0, -0.5, 2.0], "scaling": 1.0, "rank": 4}
    merged = samerge.merge(None, adapters, selection="norm", aggregation=aggregation, **halved(options, aggregation))
    half = by_hand(tables, lambda module, name, rank: range(round(rank / 2)), tmp_path)
    if aggregation in ("linear", "cat"):
        del options["rank"]
    second = samerge.merge(None, half, aggregation=aggregation, **options)
    same(merged, second)
    layer = merged.report.record["layers"]["layers.0"]["experts"]
    A, B = tables["e0"]["layers.0"]
    s = torch.linalg.svdvals(B.double() @ A.double())
    assert layer["e0"]["components"] == 6
    assert layer["e0"]["kept"] == [0, 1, 2]
    assert layer["e0"]["norm"] == pytest.approx(float(s.norm()), rel=1e-5)
    share = float(s[:3].square().sum() / s.square().sum())
    after = second.report.record["layers"]["layers.0"]["experts"]["e0"]["energy"]
    assert layer["e0"]["energy"] == pytest.approx(share * after, rel=1e-4)
    assert layer["e0"].get("elements") == second.report.record["layers"]["layers.0"]["experts"]["e0"].get("elements")


def halved(options, aggregation):
    """The sum takes a density or a rank, every other aggregation both."""
    options = {**options, "density": 0.5}
    if aggregation in ("linear", "cat"):
        del options["rank"]
    return options


@pytest.mark.parametrize("aggregation", ["tsv", "ties", "svd"])
def test_saliency_then_aggregation_is_each_by_hand(case, aggregation, tmp_path):
    base, adapters, tables = case
    options = {"connectivity": "local", "density": 0.4, "iterations": 3, "basis": "native"}
    alone = samerge.merge(base, adapters, method="saliency", **options)
    merged = samerge.merge(base, adapters, selection="saliency", aggregation=aggregation, rank=5, **options)
    assert all(kept(alone, module) == kept(merged, module) for module in MODULES)
    chosen = by_hand(tables, lambda module, name, rank: kept(alone, module)[name], tmp_path, "native")
    plain = samerge.merge(None, chosen, aggregation=aggregation, rank=5, scaling=1.0)
    for module in MODULES:
        a, b = merged.delta(module).double(), plain.delta(module).double()
        norms = [float((B.double() @ A.double()).norm()) for A, B in (tables[name][module] for name in tables)]
        assert float(a.norm()) == pytest.approx(1.3 * sum(norms) / 3, rel=1e-4)  # of the experts before the selection
        assert float((a / a.norm() - b / b.norm()).norm()) < 1e-4


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
@pytest.mark.parametrize("selection", ["saliency", "norm"])
def test_density_one_selects_everything(case, selection, aggregation):
    base, adapters, _ = case
    options = {"connectivity": "local"} if selection == "saliency" else {}
    basis = "native" if aggregation in BY_FACTORS else "svd"
    merged = samerge.merge(
        base, adapters, selection=selection, aggregation=aggregation, density=1.0, basis=basis, scaling=0.5, **options
    )
    same(merged, samerge.merge(base, adapters, method=aggregation, scaling=0.5))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_zero_adapters_take_no_part(case, aggregation, tmp_path):
    """Also where a whole layer has nothing but zeros."""
    _, _adapters, tables = case
    zero = {m: (A, torch.zeros_like(B)) for m, (A, B) in tables["e1"].items()}
    half = {"layers.0": zero["layers.0"], "layers.1": tables["e2"]["layers.1"]}
    folders = {
        "zero": write_adapter(tmp_path / "zero", zero),
        "half": write_adapter(tmp_path / "half", half),
    }
    options = {"selection": "agreement", "aggregation": aggregation, "density": 0.5, "spectrum": "flat"}
    merged = samerge.merge(None, folders, balance="norm", **options)
    assert not merged.delta("layers.0").any()
    assert torch.isfinite(merged.delta("layers.1")).all()
    assert merged.delta("layers.1").any()


def test_the_rank_is_that_of_the_result(case):
    base, adapters, _ = case

    def rank(merged) -> list[int]:
        return [int(torch.linalg.matrix_rank(merged.delta(m).double(), rtol=1e-5)) for m in MODULES]

    local = {"method": "saliency", "connectivity": "local"}
    assert rank(samerge.merge(base, adapters, rank=4, **local)) == [4, 4]
    assert rank(samerge.merge(base, adapters, rank=4, aggregation="tsv", **local)) == [4, 4]
    assert rank(samerge.merge(None, adapters, rank=4, method="tsv")) == [4, 4]
    assert rank(samerge.merge(None, adapters, rank=4, recipe="even")) == [4, 4]
    assert rank(samerge.merge(None, adapters, rank=4, method="lora-lego")) == [4, 4]
    assert rank(samerge.merge(None, adapters, rank=4, selection="norm", aggregation="lora-lego")) == [4, 4]
    assert rank(samerge.merge(None, adapters, rank=4, method="ties", selection="norm", density=0.5)) == [4, 4]
    # without a rank and a density: the largest source rank
    assert rank(samerge.merge(base, adapters, **local)) == [6, 6]
    assert rank(samerge.merge(None, adapters, selection="norm", aggregation="tsv")) == [6, 6]
    assert rank(samerge.merge(None, adapters, recipe="even", selection="norm", density=1.0)) == [6, 6]
    # with a density: whatever it leaves
    assert rank(samerge.merge(None, adapters, selection="norm", aggregation="tsv", density=1.0)) == [12, 12]
    assert rank(samerge.merge(None, adapters, selection="norm", aggregation="tsv", density=0.5)) == [7, 7]


def test_a_light_selection_by_default(case):
    _, adapters, _ = case
    merged = samerge.merge(None, adapters, selection="norm", aggregation="tsv")
    assert merged.report.record["options"]["density"] == LIGHT_DENSITY
    assert [len(k) for k in kept(merged, "layers.0").values()] == [4, 3, 4]  # of 6, 4, 5


def test_an_adaptive_selection_before_another_aggregation(case):
    """On the mean it keeps the share that was asked for, layer by layer another one."""
    _, adapters, _ = case
    merged = samerge.merge(None, adapters, selection="norm", aggregation="tsv", density="adaptive:0.5")
    counts = {name: [len(kept(merged, module)[name]) for module in MODULES] for name in adapters}
    assert [sum(count) for count in counts.values()] == [6, 4, 5]


def test_rank_twice_is_an_error(case):
    _, adapters, _ = case
    with pytest.raises(samerge.OptionError, match="rank=4 and svd_rank=3 together: with method='tsv' both are the"):
        samerge.merge(None, adapters, method="tsv", rank=4, svd_rank=3)
    with pytest.raises(samerge.OptionError, match=r"rank=4 and density=0\.5 together"):
        samerge.merge(None, adapters, selection="norm", rank=4, density=0.5)


@pytest.mark.parametrize("links", [{}, {"method": "tsv"}, {"method": "svd"}, {"selection": "norm"}])
@pytest.mark.parametrize("rank", [0, -1, 1.5])
def test_a_rank_that_is_none_is_told_by_its_own_name(case, links, rank):
    _, adapters, _ = case
    with pytest.raises(samerge.OptionError, match=f"^rank={rank} must be a whole number of at least 1"):
        samerge.merge(None, adapters, rank=rank, **links)


COMMON = {
    *("method", "recipe", "selection", "aggregation", "balance", "spectrum", "scaling", "svd_rank", "fit"),
    *("dtype", "device", "modules_to_save", "dora"),
}
SELECTING = {"rank", "density", "iterations", "basis", "scope"}
READING = {"connectivity", "residual", "prune_outside", "refresh", "precision"}


@pytest.mark.parametrize(
    ("options", "more"),
    [
        ({}, {"density"}),
        ({"recipe": "even"}, {"density"}),
        ({"method": "linear"}, set()),
        ({"method": "svd", "rank": 3}, set()),
        ({"method": "linear", "scaling": "interference"}, {"basis"}),
        ({"method": "linear", "weights": "auto"}, {"basis", "weights"}),
        ({"method": "ties"}, {"density", "method_options"}),
        ({"method": "lora-lego"}, {"rank", "method_options"}),
        ({"selection": "norm"}, SELECTING),
        ({"selection": "agreement"}, SELECTING | {"agreement"}),
        ({"selection": "norm", "aggregation": "tsv"}, SELECTING - {"rank"} | {"aggregation_density"}),
        ({"method": "saliency"}, SELECTING | READING | {"agreement"}),
        ({"method": "saliency", "connectivity": "local"}, SELECTING | READING - {"residual"} | {"agreement"}),
        ({"recipe": "paper", "connectivity": "local"}, SELECTING | READING - {"residual"} | {"agreement"}),
        (
            {"method": "elementwise", "connectivity": "local"},
            {"density", "iterations", "agreement", "connectivity", "prune_outside"},
        ),
    ],
)
def test_the_record_has_the_options_that_mean_something(llama, options, more):
    """And no others: whatever is in it took part."""
    merged = samerge.merge(llama.base, llama.adapters, progress=False, **options)
    assert set(merged.report.record["options"]) == COMMON | more
    configuration = model_card(merged.report.record).partition("## Configuration")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| `(\w+)`", configuration, re.M)) == COMMON | more


def test_each_link_has_its_own_density(case, tmp_path):
    _, adapters, tables = case
    merged = samerge.merge(
        None,
        adapters,
        selection="norm",
        aggregation="ties",
        density=0.5,
        rank=5,
        scaling=1.0,
        method_options={"density": "0.4", "trim": "layer"},
    )
    half = by_hand(tables, lambda module, name, rank: range(round(rank / 2)), tmp_path)
    same(merged, samerge.merge(None, half, method="ties", density=0.4, rank=5, method_options={"trim": "layer"}))
    assert merged.report.record["options"]["aggregation_density"] == 0.4
    default = samerge.merge(None, adapters, selection="norm", aggregation="ties")
    assert default.report.record["options"]["aggregation_density"] == 0.2
    with pytest.raises(samerge.OptionError, match="density='many' must lie in"):
        samerge.merge(None, adapters, selection="norm", aggregation="ties", method_options={"density": "many"})
    with pytest.raises(samerge.OptionError, match="density='adaptive': method='tsv' knows no adaptive density"):
        samerge.merge(None, adapters, selection="norm", aggregation="tsv", method_options={"density": "adaptive"})
    with pytest.raises(samerge.OptionError, match="method='tsv' has no option 'density' of its own"):
        samerge.merge(None, adapters, aggregation="tsv", method_options={"density": 0.5})


@pytest.mark.parametrize(
    ("selection", "option"),
    [
        ("norm", {"agreement": "signed"}),
        ("sensitivity", {"agreement": "signed"}),
        ("agreement", {"connectivity": "local"}),
        ("random", {"residual": False}),
        ("norm", {"recipe": "paper"}),
    ],
)
def test_options_that_mean_nothing_to_a_criterion_are_refused(case, selection, option):
    base, adapters, _ = case
    (name,) = option
    with pytest.raises(samerge.OptionError, match=f"^selection='{selection}' has no option '{name}'"):
        samerge.merge(base, adapters, selection=selection, **option)


@pytest.mark.parametrize(
    ("links", "option", "told"),
    [
        (
            {"selection": "norm", "aggregation": "tsv"},
            {"agreement": "signed"},
            "selection='norm' with aggregation='tsv'",
        ),
        ({"selection": "norm", "aggregation": "cat"}, {"residual": False}, "selection='norm'"),
        ({"selection": "random:4"}, {"method_options": {"mu": 1}}, "method_options: selection='random:4'"),
        ({"selection": "norm", "aggregation": "tsv"}, {"method_options": {"mu": 1}}, "method_options: method='tsv'"),
        ({"selection": "saliency"}, {"method_options": {"mu": 1}}, "method_options: method='saliency'"),
        ({"aggregation": "tsv"}, {"iterations": 3}, "method='tsv'"),
    ],
)
def test_a_refusal_names_the_links_as_they_are_given(case, links, option, told):
    base, adapters, _ = case
    (name,) = option.get("method_options", option)
    with pytest.raises(samerge.OptionError, match=f"^{told} has no option '{name}'"):
        samerge.merge(base, adapters, **links, **option)


LAWS = [
    {"recipe": "even"},
    {"recipe": "even", "selection": "saliency", "connectivity": "local"},
    {"selection": "saliency", "aggregation": "ties", "connectivity": "local", "density": 0.5, "rank": 5},
    {"selection": "random:4", "aggregation": "wudi", "rank": 5, "balance": "global"},
    {"method": "linear", "balance": "norm", "scaling": "interference:layer"},
    {"method": "linear", "weights": "auto", "scaling": "interference"},
]


@pytest.mark.parametrize("options", LAWS)
def test_the_order_of_the_adapters_does_not_matter(case, options):
    base, adapters, _ = case
    turned = {name: adapters[name] for name in ("e2", "e0", "e1")}
    same(samerge.merge(base, adapters, **options), samerge.merge(base, turned, **options), 1e-4)


@pytest.mark.parametrize("options", LAWS)
def test_the_gauge_does_not_matter(case, options, tmp_path):
    base, adapters, tables = case
    generator = torch.Generator().manual_seed(1)
    other = {}
    for name, table in tables.items():
        turned = {}
        for module, (A, B) in table.items():
            Q = torch.randn(len(A), len(A), generator=generator).double() + 3 * torch.eye(len(A)).double()
            turned[module] = (torch.linalg.solve(Q, A.double()).float(), (B.double() @ Q).float())
        other[name] = write_adapter(tmp_path / name, turned)
    same(samerge.merge(base, adapters, **options), samerge.merge(base, other, **options), 1e-3)


def test_two_runs_are_equal_to_the_bit(case):
    base, adapters, _ = case
    for options in LAWS:
        one, other = (samerge.merge(base, adapters, **options).tensors() for _ in range(2))
        assert all(torch.equal(tensor, other[name]) for name, tensor in one.items())


def dense_even(experts: list[torch.Tensor], rank: int) -> torch.Tensor:
    """The recipe with dense matrices, step by step."""
    norms = [float(tau.norm()) for tau in experts]
    mean = sum(norms) / len(norms)
    lefts, values, rights = [], [], []
    for tau, size in zip(experts, norms, strict=True):
        u, s, vh = torch.linalg.svd(tau * mean / size, full_matrices=False)
        alive = s > 1e-9 * s[0]
        lefts.append(u[:, alive])
        values.append(s[alive])
        rights.append(vh[alive])
    polar = []
    for stacked in (torch.cat(lefts, dim=1), torch.cat(rights)):
        x, s, yh = torch.linalg.svd(stacked, full_matrices=False)
        alive = s > 1e-9 * s[0]
        polar.append(x[:, alive] @ yh[alive])
    u, s, vh = torch.linalg.svd((polar[0] * torch.cat(values)) @ polar[1], full_matrices=False)
    flat = u[:, :rank] @ vh[:rank]
    return flat * float(s[:rank].square().mean().sqrt())


@pytest.mark.parametrize("rank", [None, 3])
def test_the_even_recipe_is_its_dense_transcription(case, rank):
    _, adapters, tables = case
    merged = samerge.merge(None, adapters, recipe="even", rank=rank)
    assert merged.settings["r"] == (rank or 6)
    for module in MODULES:
        experts = [B.double() @ A.double() for A, B in (table[module] for table in tables.values())]
        expected = dense_even(experts, rank or 6)
        torch.testing.assert_close(merged.delta(module).double(), expected, rtol=1e-4, atol=1e-5)


def test_a_recipe_with_links_on_a_live_model(llama):
    """By PEFT's argument names, too; the links are in the record and in the card."""
    model = llama.peft_model()
    live = samerge.add_weighted_adapter(
        model, list(llama.adapters), adapter_name="one", recipe="even", selection="saliency", density=0.5
    )
    stored = samerge.merge(llama.base, llama.adapters, recipe="even", method="saliency", density=0.5)
    same(live, stored, 1e-3)
    again = samerge.add_weighted_adapter(
        model,
        list(llama.adapters),
        adapter_name="two",
        combination_type="saliency",
        aggregation="ties",
        majority_sign_method="frequency",
    )
    assert again.report.record["options"]["method_options"]["majority_sign_method"] == "frequency"
    record = stored.report.record
    assert record["method"] == "saliency+tsv"
    assert {key: record["options"][key] for key in ("selection", "aggregation", "balance", "spectrum")} == {
        "selection": "saliency",
        "aggregation": "tsv",
        "balance": "norm",
        "spectrum": "flat",
    }
    stored.report.table()


def test_the_card_names_the_links(case, tmp_path):
    _base, adapters, _ = case
    samerge.merge(None, adapters, selection="norm", aggregation="tsv").save(tmp_path / "out")
    card = (tmp_path / "out" / "README.md").read_text()
    assert "selected by `norm`, combined by `tsv`" in card
