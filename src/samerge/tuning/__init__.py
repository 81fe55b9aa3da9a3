"""`samerge.tune`: the options of a merge found by a search, with labelled data at hand."""

from samerge.tuning.result import TuneResult, TuneTrial
from samerge.tuning.search import tune

__all__ = ["TuneResult", "TuneTrial", "tune"]
