"""The attacker who knows the generator's seed: `Frozen`."""

from dataclasses import dataclass

from stochade.attacks.expectation import Around, check_gradient
from stochade.attacks.gradients import Backprop, Gradient, Pass
from stochade.errors import BudgetError
from stochade.nn.discrete import as_module
from stochade.randomness import FrozenNoise


class _Held(FrozenNoise):
    """The model with its noise frozen, under its layers' own names, so that swaps by name still find them."""

    scope = "unknown"  # draws are looped: a tiled batch has another composition and so other noise

    def named_modules(self, *args, **options):
        return self.model.named_modules(*args, **options)


@dataclass(frozen=True)
class Frozen(Around):
    """The gradient of one known realisation of the noise: every forward inside draws the numbers that follow `seed`.

    Torch's, NumPy's and Python's generators are forked and seeded before each forward and put back after it, so that
    everything else draws as if nothing had happened. An attack with this gradient sees exactly the noise with which
    `FrozenNoise(model, seed)` is scored; that it does worse against fresh noise is what the noise is worth against an
    attacker who cannot predict it.

    Limits. Numbers are drawn for a batch, not for an image: the noise is the same only in calls with the same images
    in the same places. Attack and score one and the same batch (evaluation scores the chunk it attacked), and let
    nobody leave: the pass calls itself relaxed, because its logits say nothing about fresh noise, so attacks keep
    fooled examples of their own accord. Put it around other gradients, not into them; an inner `Averaged` sees
    other noise once some of the examples have stopped. Keep `restarts=1` and `keep="last"`: what an attack looks at
    outside of its gradients is the model with fresh noise. Layers with a generator of their own are not frozen.

    Args:
        inner: any gradient of one draw; a second draw would be the first again.
        seed: of torch's, NumPy's and Python's generators, as in `FrozenNoise`.

    Raises:
        BudgetError: an inner that is no gradient or repeats itself, a seed that is no whole number >= 0.
    """

    inner: Gradient
    seed: int

    def __post_init__(self):
        check_gradient(self.inner)
        if isinstance(self.inner, Backprop) and self.inner.draws > 1:
            raise BudgetError("an inner gradient of one draw", f"draws={self.inner.draws}", "all would be equal")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**63:
            raise BudgetError("a whole number seed >= 0", repr(self.seed), "the seed of FrozenNoise")

    @property
    def draws(self) -> int:
        return getattr(self.inner, "draws", 1)

    @property
    def whole_batch(self) -> bool:
        return True

    @property
    def relaxed(self) -> object:
        return super().relaxed or f"noise of seed {self.seed}"

    @property
    def forwards(self) -> int:
        return self.inner.forwards

    @property
    def backwards(self) -> int:
        return self.inner.backwards

    def __call__(self, model, x, y, objective, *, targets=None, stream=None) -> Pass:
        return self.inner(_Held(as_module(model), self.seed), x, y, objective, targets=targets, stream=stream)
