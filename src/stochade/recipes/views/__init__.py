"""The figures of recipes, by the names that recipes give them. A view is one function and one line here."""

from collections.abc import Callable

from stochade.recipes.result import Reproduction
from stochade.recipes.views.attacked import amplified, attack_pictures
from stochade.recipes.views.black_box import black_box
from stochade.recipes.views.averages import average_over_attacks, pairs_of_attacks
from stochade.recipes.views.boundaries import decision_regions, toy_regions
from stochade.recipes.views.codes import code_transfer, label_leaking
from stochade.recipes.views.coding import coded_images, covariances, similar_codes
from stochade.recipes.views.confidence import confidence
from stochade.recipes.views.curves import accuracy_over_budget, train_test_gap
from stochade.recipes.views.dropped import dropped
from stochade.recipes.views.equivalent import equivalent_budgets
from stochade.recipes.views.flagged import flagged
from stochade.recipes.views.gates import gates
from stochade.recipes.views.gradients import gradients
from stochade.recipes.views.landscapes import loss_landscape
from stochade.recipes.views.linear import robust_linear
from stochade.recipes.views.obfuscation import obfuscation
from stochade.recipes.views.patterns import activation_patterns
from stochade.recipes.views.pictures import distances, perturbations
from stochade.recipes.views.probabilities import predicted_probabilities
from stochade.recipes.views.probes import gate_probes
from stochade.recipes.views.randomness import centring, randomness, signed_rates
from stochade.recipes.views.sea_pictures import code_pictures
from stochade.recipes.views.spiking import latencies, spike_rate_table
from stochade.recipes.views.steps import accuracy_by_attack, added_norms
from stochade.recipes.views.timing import time_per_image
from stochade.recipes.views.toy import toy_gates
from stochade.recipes.views.tradeoff import tradeoffs
from stochade.recipes.views.trainings import training_curves
from stochade.recipes.views.tsne import tsne
from stochade.report.document import Strip
from stochade.report.figures import Figure

View = Callable[[Reproduction], list[Figure] | list[Strip] | list[Figure | Strip]]

VIEWS: dict[str, View] = {
    "accuracy-by-attack": accuracy_by_attack,
    "activation-patterns": activation_patterns,
    "added-norms": added_norms,
    "amplified": amplified,
    "black-box": black_box,
    "average-over-attacks": average_over_attacks,
    "centring": centring,
    "code-pictures": code_pictures,
    "code-transfer": code_transfer,
    "equivalent-budgets": equivalent_budgets,
    "pairs-of-attacks": pairs_of_attacks,
    "randomness": randomness,
    "signed-rates": signed_rates,
    "training-curves": training_curves,
    "coded-images": coded_images,
    "covariances": covariances,
    "obfuscation": obfuscation,
    "similar-codes": similar_codes,
    "tradeoff": tradeoffs,
    "label-leaking": label_leaking,
    "latencies": latencies,
    "spike-rates": spike_rate_table,
    "attack-pictures": attack_pictures,
    "decision-regions": decision_regions,
    "loss-landscape": loss_landscape,
    "predicted-probabilities": predicted_probabilities,
    "robust-linear": robust_linear,
    "time-per-image": time_per_image,
    "toy-regions": toy_regions,
    "accuracy-over-budget": accuracy_over_budget,
    "confidence": confidence,
    "distances": distances,
    "dropped": dropped,
    "flagged": flagged,
    "gate-probes": gate_probes,
    "gates": gates,
    "gradients": gradients,
    "perturbations": perturbations,
    "train-test-gap": train_test_gap,
    "toy-gates": toy_gates,
    "tsne": tsne,
}
