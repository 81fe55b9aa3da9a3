"""`samerge.tune`: the options of a merge found by a search, with labelled data at hand."""

from samerge.merging.tuning.result import TuneResult, TuneTrial
from samerge.merging.tuning.search import tune

__all__ = ["TuneResult", "TuneTrial", "tune"]
