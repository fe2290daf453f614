"""The checks of an audit by name, one short function each: evidence in, a finding or nothing out.

checks_signs      signs of obfuscated gradients          checks_traces   what the searches went through
checks_strength   what stronger attacks bought           checks_model    the model itself
checks_tests      the active test and the threshold baseline
checks_codes      attacks on codes; CODE_CHECKS are these and the others that serve codes
"""

from collections.abc import Callable

from stochade.audit import checks_codes as codes
from stochade.audit import checks_model as model
from stochade.audit import checks_signs as signs
from stochade.audit import checks_strength as strength
from stochade.audit import checks_tests as tests
from stochade.audit import checks_traces as traces
from stochade.audit import plan_codes
from stochade.audit.evidence import Evidence
from stochade.audit.findings import SEVERITIES, Finding

__all__ = ["CHECKS", "CODE_CHECKS", "Evidence", "run_checks"]

Check = Callable[[Evidence], Finding | None]

CHECKS: dict[str, Check] = {
    f.__name__.replace("_", "-"): f
    for f in (
        strength.substituted_backward_wins, strength.averaging_wins,
        signs.one_step_beats_iterated, signs.gradient_free_beats_gradient, signs.random_search_succeeds,
        signs.noise_beats_gradient, signs.unbounded_survives, signs.grey_image_survives, signs.budget_does_not_help,
        strength.frozen_noise_survives, model.zero_gradient, strength.label_leaking,
        strength.iterated_collapses, model.noisy_gradient, model.gradient_size, model.unstable_predictions,
        model.blocked_gradient, model.dynamic_defence, model.state, model.batch_dependence,
        strength.adaptive_search_wins, strength.not_converged, strength.more_does_not_help, strength.restarts_help,
        signs.square_lowers_accuracy,
        strength.transfer_failure, strength.adaptive_loss, strength.far_from_everything,
        traces.silent_success, traces.incomplete_optimisation, traces.loss_goes_up_and_down,
        tests.active_test_fails, tests.active_test_says_nothing, tests.below_threshold_baseline,
        model.randomness, model.retries_help, strength.noise_is_the_defence, strength.averaging_buys_nothing,
        strength.static_baseline, model.probabilities, model.active_dropout, model.few_examples,
        strength.effort_left_out,
    )
}  # fmt: skip

CODE_CHECKS: dict[str, Check] = {
    f.__name__.replace("_", "-"): f
    for f in (
        strength.substituted_backward_wins, strength.averaging_wins,
        signs.one_step_beats_iterated, signs.random_search_succeeds, signs.noise_beats_gradient,
        codes.unseen_flips_beat_seen_ones, codes.random_flips_do_as_well, signs.unbounded_survives,
        signs.budget_does_not_help, model.zero_gradient, strength.label_leaking,
        strength.iterated_collapses, model.noisy_gradient, model.gradient_size,
        model.blocked_gradient, model.dynamic_defence, model.state, model.batch_dependence,
        strength.adaptive_search_wins, strength.not_converged, strength.more_does_not_help, strength.restarts_help,
        model.randomness, model.retries_help, codes.encoding_is_the_defence, codes.one_step_claim,
        model.active_dropout, model.few_examples, codes.left_out_on_codes,
    )
}  # fmt: skip


def run_checks(evidence: Evidence) -> list[Finding]:
    """All findings, masking first."""
    table = CODE_CHECKS if evidence.names == plan_codes.NAMES else CHECKS
    found = [finding for check in table.values() if (finding := check(evidence)) is not None]
    return sorted(found, key=lambda f: SEVERITIES.index(f.severity))
