"""The figures of recipes, by the names that recipes give them. A view is one function and one line here."""

from collections.abc import Callable

from stochade.recipes.result import Reproduction
from stochade.recipes.views.attacked import amplified, attack_pictures
from stochade.recipes.views.averages import average_over_attacks, pairs_of_attacks
from stochade.recipes.views.black_box import black_box
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
    "accuracy-over-budget": accuracy_over_budget,
    "activation-patterns": activation_patterns,
    "added-norms": added_norms,
    "amplified": amplified,
    "attack-pictures": attack_pictures,
    "average-over-attacks": average_over_attacks,
    "black-box": black_box,
    "centring": centring,
    "code-pictures": code_pictures,
    "code-transfer": code_transfer,
    "coded-images": coded_images,
    "confidence": confidence,
    "covariances": covariances,
    "decision-regions": decision_regions,
    "distances": distances,
    "dropped": dropped,
    "equivalent-budgets": equivalent_budgets,
    "flagged": flagged,
    "gate-probes": gate_probes,
    "gates": gates,
    "gradients": gradients,
    "label-leaking": label_leaking,
    "latencies": latencies,
    "loss-landscape": loss_landscape,
    "obfuscation": obfuscation,
    "pairs-of-attacks": pairs_of_attacks,
    "perturbations": perturbations,
    "predicted-probabilities": predicted_probabilities,
    "randomness": randomness,
    "robust-linear": robust_linear,
    "signed-rates": signed_rates,
    "similar-codes": similar_codes,
    "spike-rates": spike_rate_table,
    "time-per-image": time_per_image,
    "toy-gates": toy_gates,
    "toy-regions": toy_regions,
    "tradeoff": tradeoffs,
    "train-test-gap": train_test_gap,
    "training-curves": training_curves,
    "tsne": tsne,
}
