"""Evaluation: model x attacks x data -> records, and what may be concluded from them."""

from stochade.evaluate.diff import compare_runs
from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import AttackRecord, Records
from stochade.evaluate.run import evaluate, expected_seconds

__all__ = ["AttackRecord", "Estimate", "Records", "compare_runs", "evaluate", "expected_seconds"]
