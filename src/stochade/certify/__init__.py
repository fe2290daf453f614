"""Certificates: what is proven about classifiers that are random or discrete."""

from stochade.certify.bernoulli import RateCode, l1_radius
from stochade.certify.exact import LargestRobust, Verdict, largest_robust, verify
from stochade.certify.flips import Encodings, FlipNoise, certify_encodings, in_all
from stochade.certify.gaussian import Gaussian, SmoothingCode, l2_radius
from stochade.certify.linear import linear_radii, train_linear
from stochade.certify.procedure import ABSTAIN, Certificate, certify, certify_one, predict_one
from stochade.certify.quantised import Splitting, certify_quantised
from stochade.certify.sequential import Decision, Largest, certify_sequential, decide, largest
from stochade.certify.smoothing import Smoothing, check_independent

__all__ = [
    "ABSTAIN",
    "Certificate",
    "Decision",
    "Encodings",
    "FlipNoise",
    "Gaussian",
    "Largest",
    "LargestRobust",
    "RateCode",
    "Smoothing",
    "SmoothingCode",
    "Splitting",
    "Verdict",
    "certify",
    "certify_encodings",
    "certify_one",
    "certify_quantised",
    "certify_sequential",
    "check_independent",
    "decide",
    "in_all",
    "l1_radius",
    "l2_radius",
    "largest",
    "largest_robust",
    "linear_radii",
    "predict_one",
    "train_linear",
    "verify",
]
