"""Stochade: build, attack, certify and audit classifiers whose defence is randomness or discreteness."""

__version__ = "0.1.0"
