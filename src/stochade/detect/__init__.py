"""Detectors of adversarial examples, and attacks that know them."""

from stochade.detect.attack import InTheLoop, LogitMatching
from stochade.detect.bank import PAPER, Noise, bank, parse_bank
from stochade.detect.odds import Calibration, Detector, Verdict

__all__ = ["PAPER", "Calibration", "Detector", "InTheLoop", "LogitMatching", "Noise", "Verdict", "bank", "parse_bank"]
