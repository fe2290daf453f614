"""Stochade: build, attack, certify and audit classifiers whose defence is randomness or discreteness.

>>> import stochade
>>> result = stochade.audit(model, images, labels, stochade.Linf(8 / 255))
>>> print(result.claimed, result.found)
"""

from stochade.attacks import (
    BIM,
    FGSM,
    ILL,
    JSMA,
    L0,
    L1,
    L2,
    MIFGSM,
    PGD,
    Attack,
    Attempt,
    Averaged,
    Backprop,
    Brightness,
    Custom,
    Descent,
    Ensemble,
    Evolution,
    FromProbabilities,
    Frozen,
    GaussianNoise,
    Linf,
    RandomSearch,
    Rotate,
    Scale,
    Shift,
    SigmaZero,
    Transforms,
    UniformJitter,
    UniformNoise,
    cross_entropy,
    dlr,
    keep_dropout,
    kubo2019_bim,
    margin,
    sweep,
)
from stochade.audit import Audit, Finding, audit, draws_until_stable
from stochade.data import ClassMap, Images, Normalized
from stochade.errors import StochadeError
from stochade.evaluate import Estimate, Records, compare_runs, evaluate
from stochade.nn import Discrete, Surrogate, backward_as, forward_as, scope_of
from stochade.randomness import FrozenNoise

__version__ = "0.1.0"

__all__ = [
    "BIM", "FGSM", "ILL", "JSMA", "L0", "L1", "L2", "MIFGSM", "PGD", "Attack", "Attempt", "Audit", "Averaged",
    "Backprop", "Brightness", "ClassMap", "Custom", "Descent", "Discrete", "Ensemble", "Estimate", "Evolution",
    "Finding", "FromProbabilities", "Frozen", "FrozenNoise", "GaussianNoise", "Images", "Linf", "Normalized",
    "RandomSearch", "Records", "Rotate", "Scale", "Shift", "SigmaZero", "StochadeError", "Surrogate", "Transforms",
    "UniformJitter", "UniformNoise", "audit", "backward_as", "compare_runs", "cross_entropy", "dlr",
    "draws_until_stable", "evaluate", "forward_as", "keep_dropout", "kubo2019_bim", "margin", "scope_of", "sweep",
]  # fmt: skip
