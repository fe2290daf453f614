"""Audit: findings with evidence, and the lowest accuracy found."""

from stochade.audit.active_test import ActiveTest, active_test
from stochade.audit.baseline import Baseline
from stochade.audit.checks import CHECKS
from stochade.audit.draws import StableDraws, draws_until_stable
from stochade.audit.findings import Finding
from stochade.audit.plan import EFFORTS, Effort
from stochade.audit.result import Audit
from stochade.audit.run import audit

__all__ = [
    "CHECKS", "EFFORTS", "ActiveTest", "Audit", "Baseline", "Effort", "Finding", "StableDraws", "active_test",
    "audit", "draws_until_stable",
]  # fmt: skip
