"""The attacks of an audit on codes: the paper's one step, what more steps, starts, objectives, targets, draws and
backwards add to it, flips without sight of the encoding, and random flips as the baseline."""

from dataclasses import replace

from torch import nn

from stochade.attacks import SEA, Attack, Backprop, FixedFlips, Flips, MaskedSampling, ObliviousSEA, margin
from stochade.attacks.noise import RandomSearch, UniformNoise
from stochade.attacks.targeted import Targeted
from stochade.audit.plan import Effort, Names, alternatives

ONE_STEP, OWN, AVERAGED, MARGIN = "sea", "sea iterated", "sea averaged", "sea margin"
RESTARTED, TARGETED = "sea restarts", "sea to the runner-up"
OBLIVIOUS, MASKED = "sea without sight of the encoding", "masked sampling, any number of flips"
FLIPS, SEARCH = "random flips", "random search"
BACKWARD, FORWARD = "sea backward=", "sea forward="

NAMES = Names(
    one_step=ONE_STEP, own=OWN, averaged=AVERAGED, single=OWN, margin=MARGIN, restarted=RESTARTED, search=SEARCH,
    backward=BACKWARD, forward=FORWARD, noises=(FLIPS,), own_gradient=(OWN, AVERAGED, MARGIN, RESTARTED, TARGETED),
    entry="letter",
)  # fmt: skip
BUDGETS = (0.5, 1, 2), (1,)  # of the threat's, on the curve: every point is attacked anew in every draw
LEFT_OUT = {
    "the image as it is attacked": "noise on pixels, Square, HopSkipJump, minimum-norm attacks: a code has no "
    "space between letters, and no smallest change below one flip",
    "gradients by queries": "x + sigma u is no code",
    "frozen noise": "attacks on a realised code know the encoding; only the network's own noise is fresh",
    "the active test and the threshold baseline": "they plant and train on images",
    "traces": "each draw is another search, so no trace belongs to a score",
    "rounding to grey levels": "letters are exact",
}


def steps_of(effort: Effort) -> int:
    """Gradients of an iterated attack: half of those on images, since it runs anew in every draw."""
    return max(5, effort.steps // 2)


def code_attacks(
    network: nn.Module, threat: Flips, noisy: bool, differentiable: bool, effort: Effort
) -> dict[str, Attack]:
    """The first round: everything that could be the strongest attack, and the baselines it must beat.

    Args:
        network: codes -> logits. noisy: whether it is random given the code.
    """
    table: dict[str, Attack] = {
        FLIPS: UniformNoise(threat),
        SEARCH: RandomSearch(threat, effort.samples, max(1, effort.draws // 4) if noisy else 1),
    }
    if not differentiable:
        return table
    steps, averaged = steps_of(effort), Backprop(effort.draws if noisy else 1)
    own = SEA(threat, steps, gradient=averaged, objective=margin)
    fixed = FixedFlips(threat.eps, threat.alphabet, threat.per)
    table = {
        ONE_STEP: SEA(threat),
        OWN: SEA(threat, steps),
        **({AVERAGED: SEA(threat, steps, gradient=averaged)} if noisy else {}),
        MARGIN: own,
        RESTARTED: replace(own, restarts=10 if effort.full else 3),
        TARGETED: Targeted(own, "runner-up"),
        OBLIVIOUS: ObliviousSEA(fixed, 4, effort.draws, margin, restarts=3 if effort.full else 1),
        MASKED: MaskedSampling(threat.resized(float("inf")), steps),
        **table,
    }
    backwards, forwards = alternatives(network)
    for name in backwards:
        gradient = Backprop(averaged.draws, substitutes=name)
        table[BACKWARD + name] = SEA(threat, steps, gradient=gradient, objective=margin)
    for name in forwards:
        table[FORWARD + name] = SEA(threat, steps, gradient=Backprop(1, relaxed=name), objective=margin)
    return table
