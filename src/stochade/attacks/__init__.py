"""Attacks: threat x objective x gradient x search."""

from stochade.attacks import suites
from stochade.attacks.adaptive_suite import Adaptive
from stochade.attacks.apgd import APGD, APGDTargeted
from stochade.attacks.base import Attack, Attempt, FromProbabilities, keep_dropout
from stochade.attacks.codes import CodeAttempt, attack_codes
from stochade.attacks.cw import CW
from stochade.attacks.deepfool import DeepFool
from stochade.attacks.descent import BIM, FGSM, ILL, MIFGSM, PGD, WHOLE, Descent, sweep
from stochade.attacks.ensemble import Ensemble
from stochade.attacks.expectation import Averaged
from stochade.attacks.fab import FAB
from stochade.attacks.finite_differences import NES, SPSA, Spsa
from stochade.attacks.flips import BINARY, SIGNED, Flips
from stochade.attacks.fmn import FMN
from stochade.attacks.frozen import Frozen
from stochade.attacks.gradients import Backprop, Evolution, Gradient, Pass
from stochade.attacks.hopskipjump import HopSkipJump
from stochade.attacks.jsma import JSMA
from stochade.attacks.lbfgs import LBFGS
from stochade.attacks.noise import Custom, GaussianNoise, RandomSearch, UniformNoise, kubo2019_bim
from stochade.attacks.objectives import OBJECTIVES, cross_entropy, dlr, margin
from stochade.attacks.oblivious import FixedFlips, ObliviousSEA
from stochade.attacks.sa_pgd import SAPGD
from stochade.attacks.sea import SEA, CodeDescent, MaskedSampling
from stochade.attacks.sigma_zero import SigmaZero
from stochade.attacks.square import Square
from stochade.attacks.suites import Suite
from stochade.attacks.targeted import Targeted
from stochade.attacks.threats import L0, L1, L2, THREATS, Linf, Threat, parse_threat
from stochade.attacks.transfer import EnsembleModel, Transfer
from stochade.attacks.transforms import Brightness, Rotate, Scale, Shift, Transform, Transforms, UniformJitter

__all__ = [
    "APGD",
    "BIM",
    "BINARY",
    "CW",
    "FAB",
    "FGSM",
    "FMN",
    "ILL",
    "JSMA",
    "L0",
    "L1",
    "L2",
    "LBFGS",
    "MIFGSM",
    "NES",
    "OBJECTIVES",
    "PGD",
    "SAPGD",
    "SEA",
    "SIGNED",
    "SPSA",
    "THREATS",
    "WHOLE",
    "APGDTargeted",
    "Adaptive",
    "Attack",
    "Attempt",
    "Averaged",
    "Backprop",
    "Brightness",
    "CodeAttempt",
    "CodeDescent",
    "Custom",
    "DeepFool",
    "Descent",
    "Ensemble",
    "EnsembleModel",
    "Evolution",
    "FixedFlips",
    "Flips",
    "FromProbabilities",
    "Frozen",
    "GaussianNoise",
    "Gradient",
    "HopSkipJump",
    "Linf",
    "MaskedSampling",
    "ObliviousSEA",
    "Pass",
    "RandomSearch",
    "Rotate",
    "Scale",
    "Shift",
    "SigmaZero",
    "Spsa",
    "Square",
    "Suite",
    "Targeted",
    "Threat",
    "Transfer",
    "Transform",
    "Transforms",
    "UniformJitter",
    "UniformNoise",
    "attack_codes",
    "cross_entropy",
    "dlr",
    "keep_dropout",
    "kubo2019_bim",
    "margin",
    "parse_threat",
    "suites",
    "sweep",
]  # fmt: skip
