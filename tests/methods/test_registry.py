"""Finding methods: by samerge's names, by PEFT's and mergekit's, and those of third parties."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch
from tiny import Beast

import samerge
from samerge.methods import registry
from samerge.methods.linear import begin as begin_sum
from samerge.methods.method import Begun, Method
from samerge.methods.other_names import OTHER_NAMES
from samerge.methods.problem import Problem
from samerge.options.kinds import real
from samerge.options.option import Options, option, table


@dataclass(frozen=True)
class HalvedOptions(Options):
    """Options of a method that is not samerge's."""

    share: float = option(real(0, 1), 0.5, "How much of the sum.")


def begin_halved(problem: Problem, options: HalvedOptions) -> Begun:
    """A share of the weighted sum."""
    inner = begin_sum(problem, Options())

    def layer(site, parts):
        merged = inner.layer(site, parts)
        return type(merged)(merged.update.scaled(options.share), merged.shares)

    return Begun(layer)


HALVED = Method("halved", begin_halved, HalvedOptions, exact=True, summary="a share of the sum")


@pytest.fixture
def halved(monkeypatch: pytest.MonkeyPatch) -> Method:
    monkeypatch.setattr(registry, "_registered", {})
    return samerge.register_method(HALVED)


def test_a_registered_method_is_one_like_others(halved: Method, llama: Beast) -> None:
    assert "halved" in samerge.available_methods()
    assert registry.summaries()["halved"] == "a share of the sum"
    whole = samerge.merge(None, llama.adapters, method="linear", progress=False)
    merged = samerge.merge(None, llama.adapters, method="halved", share="0.25", progress=False)
    assert merged.report.record.options["share"] == 0.25
    for module in whole.factors:
        torch.testing.assert_close(merged.delta(module), whole.delta(module) / 4)
    with pytest.raises(samerge.OptionError, match=r"no option 'shere'; did you mean 'share'\?"):
        samerge.merge(None, llama.adapters, method="halved", shere=0.25, progress=False)


@pytest.mark.parametrize("name", ["ties", "dare_ties"])
def test_a_name_that_is_taken(halved: Method, name: str) -> None:
    with pytest.raises(samerge.OptionError, match=f"'{name}': this name is taken"):
        samerge.register_method(Method(name, begin_halved))
    assert samerge.register_method(HALVED) is HALVED  # the same one once more is no harm


def test_a_method_of_an_installed_package(monkeypatch: pytest.MonkeyPatch) -> None:
    point = EntryPoint("halved", f"{__name__}:HALVED", registry.GROUP)
    monkeypatch.setitem(sys.modules, __name__, sys.modules[__name__])
    monkeypatch.setattr(registry, "_entry_points", lambda: {"halved": point})
    assert registry.find("halved") is HALVED
    assert "halved" in samerge.available_methods()


def test_every_file_of_a_method_is_found_by_its_name() -> None:
    folder = Path(registry.__file__).parent
    files = {file.stem.replace("_", "-") for file in folder.glob("*.py") if "\nMETHOD = " in file.read_text()}
    assert files == set(samerge.available_methods())
    for name in files:
        method = registry.find(name)
        assert method.name == name
        assert all(row.help.endswith(".") for row in table(method.options)), name


@pytest.mark.parametrize("name", OTHER_NAMES)
def test_the_names_of_others_stand_for_a_method_and_its_options(name: str) -> None:
    method, implied = registry.found(name)
    method.options(**implied)


def test_a_name_that_is_nearly_right() -> None:
    with pytest.raises(samerge.OptionError, match=r"method='dare_tie' is not known; did you mean 'dare_ties'\?"):
        registry.find("dare_tie")
    with pytest.raises(samerge.OptionError, match="method=3 must be text"):
        registry.find(3)


def test_names_and_summaries_are_told_without_torch() -> None:
    code = (
        "import sys, samerge; from samerge.methods.registry import summaries; assert len(summaries()) > 20; "
        "assert 'torch' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
