"""How alike codes of an image are, and what an attack does to the covariance behind them (wu2024, section 3.3)."""

from itertools import combinations

import torch
from torch import Tensor, nn

from stochade.metrics import code_similarity, linear_covariance, sampled_covariance
from stochade.nn import RSC, BernoulliRate
from stochade.randomness import Stream, reseed, seed_for, untouched
from stochade.recipes.result import Reproduction
from stochade.recipes.views.looking import attack_of, device_of
from stochade.recipes.views.pictures import enlarged
from stochade.report.document import Strip
from stochade.report.figures import Figure

SIMILAR, PICTURED, MEASURED = 500, 3, 20  # images
OUTPUTS = 10  # of the linear layer
SAMPLES = {"smoke": 500, "small": 4000, "paper": 4000}  # codes for one measured covariance


class _OfTheNext(nn.Module):
    """An encoder that is given, in place of each image, the next one of the batch."""

    scope = "composite"

    def __init__(self, encoder: nn.Module):
        super().__init__()
        self.encoder = encoder

    def forward(self, x: Tensor) -> Tensor:
        return self.encoder(x.roll(-1, 0))


def encoders_of(r: Reproduction) -> dict[str, nn.Module]:
    """The encoders of the recipe's networks by the name of their row."""
    found = {name: getattr(net.model, "encoder", None) for name, net in r.networks.items()}
    return {name: encoder for name, encoder in found.items() if isinstance(encoder, nn.Module)}


def similar_codes(r: Reproduction) -> list[Figure]:
    """Mean cosine between the codes of the same image by every two encoders of the recipe (wu2024, figure 2b), and,
    which the paper leaves out, between codes of different images."""
    assert r.test is not None
    images, _ = r.test[:SIMILAR]
    rows, same, other, names = [], [], [], []
    for (first, a), (second, b) in combinations(encoders_of(r).items(), 2):
        here = images.to(device_of(r.networks[first].model))
        alike = code_similarity(a, b, here, draws=r.settings.draws).mean()
        apart = code_similarity(a, _OfTheNext(b), here, draws=r.settings.draws).mean()
        names.append(f"{first} and {second}")
        same.append(float(alike))
        other.append(float(apart))
        rows.append([names[-1], f"{same[-1]:.3f}", f"{other[-1]:.3f}"])
    data = [
        {"type": "bar", "name": "same image", "x": names, "y": same, "meta": {"colour": "single"}},
        {"type": "bar", "name": "different images", "x": names, "y": other, "meta": {"colour": "vote"}},
    ]
    layout = {"barmode": "group", "yaxis": {"title": {"text": "cosine similarity"}, "range": [0, 1]}}
    note = (
        f"{len(images)} test images, {r.settings.draws} draws. Codes of different images have the mean of all images "
        f"in common; only what lies above their cosine is the image's own."
    )
    columns = ["codes", "same image", "different images"]
    return [Figure("similar", "Cosine similarity of codes", note, data, layout, columns, rows, True)]


def coded_images(r: Reproduction) -> list[Strip]:
    """Images beside the first frame of their code by every encoder, and beside its mean over time (wu2024, figure
    2a)."""
    assert r.test is not None
    images, _ = r.test[:PICTURED]
    shown: list[list[tuple[str, str]]] = [[(enlarged(x), "as it is")] for x in images]
    for name, encoder in encoders_of(r).items():
        with untouched(encoder), torch.no_grad():
            reseed(seed_for(0, "view", "coded", name))
            codes = encoder(images.to(device_of(r.networks[name].model))).cpu()
        for number, code in enumerate(codes):
            shown[number] += [(enlarged(code[0]), f"{name}, one step"), (enlarged(code.mean(0)), f"{name}, mean")]
    return [Strip(f"Codes of image {number + 1}", strip) for number, strip in enumerate(shown)]


def covariances(r: Reproduction) -> list[Figure]:
    """How much an attack changes the covariance of a random linear layer's output, |after - before| / |before|
    (Frobenius), for Poisson codes (theorem 3.2), for Gaussian noise as theorem 3.3 has it, and for the clipped noise
    of equation 10, which is what the networks see; and how far a measurement is from the closed form."""
    assert r.test is not None
    x, y = r.test[:MEASURED]
    weight = layer(x[0].numel())
    rows, data = [], []
    for name, encoder in encoders_of(r).items():
        if not isinstance(encoder, BernoulliRate | RSC):
            continue
        model = r.networks[name].model
        made = attack_of(r)(model, x.to(device_of(model)), y.to(device_of(model))).cpu()
        kinds = (
            [("closed form", True)]
            if isinstance(encoder, BernoulliRate)
            else [("clipped", True), ("before clipping", False)]
        )
        for title, clamp in kinds:
            before, after = ([covariance(encoder, weight, image, clamp) for image in part] for part in (x, made))
            change = _mean([_apart(b, a) for b, a in zip(before, after, strict=True)])
            spread = _mean(
                [float(a.trace() / b.trace()) for b, a in zip(before, after, strict=True) if b.trace() > 0]
            )
            measured = _measured(r, encoder, weight, x, before) if clamp else None
            rows.append(
                [
                    name,
                    title,
                    f"{100 * change:.2f}",
                    f"{spread:.3f}",
                    "–" if measured is None else f"{100 * measured:.1f}",
                ]
            )
            data.append(
                {"type": "bar", "name": f"{name}, {title}", "x": ["change"], "y": [change],
                 "meta": {"colour": ("single", "vote", "all", "claimed")[len(data) % 4]}}
            )  # fmt: skip
    attack = r.recipe.attack[0]
    layout = {
        "barmode": "group",
        "yaxis": {"title": {"text": "relative change of the covariance"}, "tickformat": ".1%"},
    }
    note = (
        f"{len(x)} test images, {OUTPUTS} outputs of random weights, {attack.name} at "
        f"{max(attack.budgets) * r.settings.budgets:.3g}. That nothing changes (proposition 3.4) holds before "
        f"clipping only. The last column is how far the covariance of {SAMPLES[r.scale]} codes of an image as it is "
        f"lies from its closed form, by chance alone where the formula holds."
    )
    columns = ["network", "covariance", "change, %", "variance after / before", "measured off by, %"]
    return [Figure("covariances", "Covariance before and after an attack", note, data, layout, columns, rows, True)]


def layer(inputs: int) -> Tensor:
    """The random weights [OUTPUTS, inputs] of the linear layer, the same in every run."""
    return Stream(seed_for(0, "view", "covariance"), torch.arange(OUTPUTS)).normal((inputs,), torch.float64)


def covariance(encoder: nn.Module, weight: Tensor, image: Tensor, clamp: bool = True) -> Tensor:
    """The closed form for the encoder of a network."""
    if isinstance(encoder, RSC):
        return linear_covariance(weight, image, "rs", encoder.sigma, clamp)
    return linear_covariance(weight, image, "poisson")


def _measured(r: Reproduction, encoder: nn.Module, weight: Tensor, x: Tensor, before: list[Tensor]) -> float:
    device = device_of(
        next(net.model for net in r.networks.values() if getattr(net.model, "encoder", None) is encoder)
    )
    sampled = [
        sampled_covariance(encoder, weight.to(device), image.to(device), SAMPLES[r.scale], seed).cpu()
        for seed, image in enumerate(x[:PICTURED])
    ]
    return _mean([_apart(b, s) for b, s in zip(before, sampled, strict=False)])


def _apart(before: Tensor, after: Tensor) -> float:
    return float((after - before).norm() / before.norm()) if float(before.norm()) > 0 else 0.0


def _mean(values: list[float]) -> float:
    return sum(values) / len(values) if values else 0.0
