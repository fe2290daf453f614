"""Evaluation: model x attacks x data -> records, and what may be concluded from them."""

from stochade.evaluate.intervals import Estimate
from stochade.evaluate.records import AttackRecord, Records

__all__ = ["AttackRecord", "Estimate", "Records"]
