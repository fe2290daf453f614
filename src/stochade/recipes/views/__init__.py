"""The figures of recipes, by the names that recipes give them. A view is one function and one line here."""

from collections.abc import Callable

from stochade.recipes.result import Reproduction
from stochade.recipes.views.confidence import confidence
from stochade.recipes.views.curves import accuracy_over_budget, train_test_gap
from stochade.recipes.views.gates import gates
from stochade.recipes.views.gradients import gradients
from stochade.recipes.views.pictures import distances, perturbations
from stochade.report.document import Strip
from stochade.report.figures import Figure

View = Callable[[Reproduction], list[Figure] | list[Strip] | list[Figure | Strip]]

VIEWS: dict[str, View] = {
    "accuracy-over-budget": accuracy_over_budget,
    "confidence": confidence,
    "distances": distances,
    "gates": gates,
    "gradients": gradients,
    "perturbations": perturbations,
    "train-test-gap": train_test_gap,
}
