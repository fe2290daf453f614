"""The thesis' views against numbers computed independently on tiny networks."""

import base64
import io
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from stochade.data import Images
from stochade.models.sgbn import SGBN, GatedRegression
from stochade.randomness import forked, seed_for
from stochade.recipes import catalogue
from stochade.recipes.schema import Attacked
from stochade.recipes.views import probes, toy
from stochade.recipes.views.crafting import accuracy, predicted
from stochade.recipes.views.dropped import Dropped
from stochade.recipes.views.dropped import measured as dropping
from stochade.recipes.views.gates import gated_layers, gates, seen_by, tinted
from stochade.recipes.views.gates import measured as gates_of
from stochade.recipes.views.gradients import gradients, measured
from stochade.recipes.views.pictures import distances, enlarged, perturbations
from stochade.recipes.views.tsne import agreement, embedded, tsne
from stochade.registry import build


class Linear(nn.Module):
    """W x + b on flat images: input gradients in closed form, W' (softmax - onehot)."""

    scope = "none"

    def __init__(self, weight: torch.Tensor):
        super().__init__()
        self.weight = nn.Parameter(weight)

    def forward(self, x):
        return x.flatten(1) @ self.weight.T


def images(n: int = 12, side: int = 4, classes: int = 3) -> Images:
    made = torch.Generator().manual_seed(1)
    pixels = torch.rand(n, 1, side, side, generator=made).numpy()
    return Images(pixels, np.arange(n) % classes, "toy", [str(k) for k in range(classes)])


def reproduction(models: dict[str, nn.Module], attacks: Any = (), test: Images | None = None) -> Any:
    """As much of a Reproduction as views look at."""
    nets = {name: SimpleNamespace(name=name, model=model.eval(), seed=0, facts={}) for name, model in models.items()}
    return SimpleNamespace(
        networks=nets, test=test or images(), validation=images(6), settings=SimpleNamespace(budgets=1.0),
        recipe=SimpleNamespace(attack=list(attacks)), scale="smoke", show_progress=False, train=images(30, 8),
    )  # fmt: skip


@pytest.fixture
def linear() -> Linear:
    return Linear(torch.randn(3, 16, generator=torch.Generator().manual_seed(0)))


class TestGradients:
    def test_values_are_the_closed_form(self, linear):
        x, y = images()[:]
        values, facts = measured(linear, x, y)
        p = torch.softmax(x.flatten(1) @ linear.weight.T, 1) - torch.eye(3)[y]
        expected = (p @ linear.weight).detach().flatten().numpy()
        np.testing.assert_allclose(values, expected, atol=1e-6)
        assert facts["mean"] == pytest.approx(expected.mean(), abs=1e-6)
        assert facts["deviation"] == pytest.approx(expected.std(), rel=1e-4)
        assert facts["zeros"] == 0
        assert facts["cosine"] == pytest.approx(1)

    def test_noise_shows_in_the_cosine_between_draws(self, linear):
        class Noisy(nn.Module):
            scope = "example"

            def forward(self, x):
                return (x.flatten(1) * torch.randn_like(x.flatten(1))) @ linear.weight.T

        x, y = images()[:]
        assert measured(Noisy(), x, y)[1]["cosine"] < 0.5

    def test_the_figure_counts_every_pixel_and_leaves_the_model_alone(self, linear):
        linear.train()
        r = reproduction({"a": linear, "b": Linear(3 * linear.weight.detach())})
        r.networks["a"].model.train()
        before = torch.get_rng_state()
        histogram, bars = gradients(r)
        assert torch.equal(before, torch.get_rng_state())
        assert linear.training
        assert linear.weight.grad is None
        for trace in histogram.data:
            assert sum(v or 0 for v in trace["y"]) == pytest.approx(1)
        assert bars.data[0]["x"] == ["a", "b"]
        assert bars.data[0]["y"][1] > bars.data[0]["y"][0]


def pixels(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))), dtype=float) / 255


class TestPictures:
    fgsm = Attacked(name="FGSM", attack="fgsm", budgets=[0.05, 0.1])

    def test_distances_of_fgsm_on_a_linear_model(self, linear):
        """FGSM moves every pixel by the sign of W' (softmax - onehot), up to the box."""
        r = reproduction({"linear": linear}, [self.fgsm])
        x, y = r.test[:]
        p = torch.softmax(x.flatten(1) @ linear.weight.T, 1) - torch.eye(3)[y]
        steps = (p @ linear.weight).detach().sign().view_as(x)
        expected = [float(((x + e * steps).clamp(0, 1) - x).abs().sum() / len(x)) for e in (0.05, 0.1)]
        (figure,) = distances(r)
        assert figure.data[0]["x"] == [0.0, 0.05, 0.1]
        np.testing.assert_allclose(figure.data[0]["y"], [0.0, *expected], rtol=1e-5)
        assert [float(row[2]) for row in figure.rows] == pytest.approx(expected, abs=0.006)

    def test_a_network_without_gradient_moves_nothing(self, linear):
        class Flat(nn.Module):
            def forward(self, x):
                return 0 * x.flatten(1) @ linear.weight.T

        (figure,) = distances(reproduction({"flat": Flat()}, [self.fgsm]))
        assert figure.data[0]["y"] == [0, 0, 0]
        assert figure.rows[-1][-1] == "0.0 %"

    def test_strips_show_the_image_its_change_and_the_sum(self, linear):
        r = reproduction({"linear": linear}, [self.fgsm])
        (strip,) = perturbations(r)
        assert len(strip.images) == 3 * 2  # classes 1 and 0 are there, 4 is not
        (clean, text), (change, _), (perturbed, _) = (strip.images[i] for i in range(3))
        assert "1" in text
        x, y = r.test[np.array([1])]
        p = torch.softmax(x.flatten(1) @ linear.weight.T, 1) - torch.eye(3)[y]
        made = (x + 0.1 * (p @ linear.weight).sign().view_as(x)).clamp(0, 1)
        large = lambda t: np.kron(np.asarray(t.detach())[0, 0], np.ones((21, 21)))  # noqa: E731
        np.testing.assert_allclose(pixels(clean), large(x), atol=0.003)
        np.testing.assert_allclose(pixels(perturbed), large(made), atol=0.003)
        np.testing.assert_allclose(pixels(change), large(0.5 + (made - x) / 0.2), atol=0.003)

    def test_small_images_are_repeated_pixel_by_pixel(self):
        assert pixels(enlarged(torch.eye(2)[None])).shape == (84, 84)


def small_sgbn(head: Any = "full", classes=3, side=8) -> SGBN:
    torch.manual_seed(3)
    return SGBN((1, side, side), classes, (4, 4), hidden=8, width=6, head=head).eval()


class TestGates:
    @pytest.mark.parametrize("head", ["full", "factored"])
    def test_probabilities_are_the_mean_of_the_gates(self, head):
        """2,000 draws: a mean is off by 4.5 of its deviations in one of 7e-6 gates, 144 gates: false alarm 0.1 %."""
        model, x = small_sgbn(head), images(2, 8)[:][0]
        layer = gated_layers(model)[1]
        found = seen_by(model, layer, x)
        torch.manual_seed(0)
        with torch.no_grad():
            drawn = sum(layer.mask(found.inputs).double() for _ in range(2000)) / 2000
        p = found.probabilities.double()
        assert bool(((drawn - p).abs() <= 4.5 * (p * (1 - p) / 2000).sqrt() + 1e-3).all())
        assert set(found.gates.unique().tolist()) <= {0.0, 1.0}

    def test_inputs_and_outputs_are_those_of_the_layer(self):
        model, x = small_sgbn(), images(3, 8)[:][0]
        first = seen_by(model, gated_layers(model)[0], x)
        assert torch.equal(first.inputs, x)
        conv = gated_layers(model)[0].conv
        own = [
            torch.nn.functional.conv2d(x[i : i + 1], first.gates[i] * conv.weight, conv.bias, padding=1)[0]
            for i in range(3)
        ]
        torch.testing.assert_close(first.outputs, torch.stack(own), atol=1e-5, rtol=1e-4)

    def test_histogram_and_facts(self):
        """Logits set by hand: half of the gates at sigmoid(4), half at sigmoid(-1), the same for every image."""
        model = small_sgbn()
        layer = gated_layers(model)[0]
        with torch.no_grad():
            layer.module.head.weight.zero_()
            layer.module.head.bias.copy_(torch.tensor([4.0, -1.0]).repeat(18))
        x, y = images(6, 8)[:]
        share, facts = gates_of(model, layer, x, y, np.linspace(0, 1, 11))
        assert share.tolist() == pytest.approx([0, 0, 0.5, 0, 0, 0, 0, 0, 0, 0.5])
        mean = (1 / (1 + np.exp(-4)) + 1 / (1 + np.exp(1))) / 2
        assert facts == pytest.approx({"on": mean, "sure": 0.5, "same": 0, "other": 0})

    def test_differences_go_to_the_right_side(self):
        """Gates that follow the label: same class 0, other class |sigmoid(2) - sigmoid(-2)|."""
        model = small_sgbn(classes=2)
        layer = gated_layers(model)[0]
        y = torch.tensor([0, 1, 0, 1])
        layer.logits = lambda x: (4.0 * y - 2).view(-1, 1).expand(-1, 36)  # type: ignore[method-assign]
        _, facts = gates_of(model, layer, torch.rand(4, 1, 8, 8), y, np.linspace(0, 1, 11))
        gap = 1 / (1 + np.exp(-2)) - 1 / (1 + np.exp(2))
        assert facts["same"] == pytest.approx(0)
        assert facts["other"] == pytest.approx(gap)

    def test_the_view_skips_networks_without_gates(self, linear):
        r = reproduction(
            {"plain": SGBN((1, 8, 8), 3, (4,), gated=(), hidden=8), "gated": small_sgbn()}, test=images(12, 8)
        )
        shown: list[Any] = gates(r)
        first, _, strip = shown[:3]
        assert [row[0] for row in first.rows] == ["gated"]
        assert "of gated: a 1" in strip.title
        assert len(shown) == 2 + 3

    def test_colours(self):
        picture = tinted(torch.tensor([[[0.0, 0.5, 1.0]], [[1.0, 0.0, 0.0]]]))
        assert picture[:, 0].T.tolist() == [[0, 0, 1], [1, 1, 1], [1, 0, 0]]
        assert picture[:, 2].T.tolist() == [[1, 0, 0], [0, 0, 1], [0, 0, 1]]


@pytest.mark.parametrize("scale", ["small", "paper"])
@pytest.mark.parametrize("name", [name for name in catalogue.names() if name.startswith("kubo2019-")])
def test_networks_of_larger_scales_can_be_built(name, scale):
    """Smoke runs only see 8x8 images."""
    recipe = catalogue.load(name)
    shape = (3, 32, 32) if recipe.dataset == "cifar10" else (1, 28, 28)
    for network in recipe.network:
        options, _ = network.at(scale)
        with torch.device("meta"):
            assert build(network.model, shape, 10, **options) is not None


class TestTsne:
    def test_agreement_by_hand(self):
        """On a line at 0, 1, 2, 10, 11, 12 with two neighbours each: only the classes of the middle decide."""
        points, labels = np.array([[0.0], [1], [2], [10], [11], [12]]), np.array([0, 0, 1, 1, 1, 1])
        assert agreement(points, labels, 2) == pytest.approx((1 + 1 + 0 + 2 + 2 + 2) / 12)

    def test_separate_clouds_stay_separate_and_repeat(self):
        made = np.random.default_rng(0)
        points = np.concatenate([made.normal(0, 0.1, (20, 5)), made.normal(5, 0.1, (20, 5))])
        flat = embedded(points)
        assert agreement(flat, np.arange(40) // 20) == 1
        assert np.array_equal(flat, embedded(points))

    def test_one_figure_for_clean_and_one_for_each_network(self, linear):
        r = reproduction({"linear": linear}, [TestPictures.fgsm])
        clean, perturbed = tsne(r)
        assert clean.title == "Clean images"
        assert perturbed.title == "Examples of linear, FGSM 0.1"
        assert sum(len(trace["x"]) for trace in clean.data) == 12


class TestProbes:
    def test_a_probe_reads_the_gates_of_its_place(self):
        """Deterministic gates of the second layer, computed by hand from the first layers."""
        torch.manual_seed(0)
        model = SGBN((1, 8, 8), 3, (4, 4), hidden=8, width=6, gates="deterministic").eval()
        x = images(3, 8)[:][0]
        between = model.features[:3](x)
        second = gated_layers(model)[1]
        torch.testing.assert_close(probes.Probe(model, 1, 3).seen(x), torch.sigmoid(second.logits(between)))
        seen = probes.Probe(model, 1, 3, "features").seen(x)
        torch.testing.assert_close(second.module.head(seen), second.logits(between))

    def test_only_the_dense_layer_is_trained_and_it_learns(self):
        model = small_sgbn(classes=2)
        layer = gated_layers(model)[0]
        y = np.arange(40) % 2
        bright = Images(
            np.broadcast_to(y[:, None, None, None] * 0.8 + 0.1, (40, 1, 8, 8)).astype(np.float32), y, "toy"
        )
        layer.logits = lambda x: (6 * (x.mean((1, 2, 3)) > 0.5) - 3.0).view(-1, 1).expand(-1, 36)  # type: ignore[method-assign]
        before = {k: v.clone() for k, v in model.state_dict().items()}
        probe = probes.trained_probe(model, 0, bright, 300)
        assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
        assert all(p.requires_grad and p.grad is None for p in model.parameters())
        x, labels = bright[:]
        assert float((predicted(probe, x) == labels).double().mean()) > 0.9

    def test_the_view_scores_every_network_and_module(self):
        torch.manual_seed(1)
        r = reproduction(
            {"gated": small_sgbn(), "plain": SGBN((1, 8, 8), 3, (4,), gated=(), hidden=8)}, [TestPictures.fgsm],
            test=images(12, 8),
        )  # fmt: skip
        r.settings.draws = 2
        shown: list[Any] = probes.gate_probes(r)
        own = shown[0]
        assert [t["name"] for t in own.data] == ["gated", "gated, 1st gate module", "gated, 2nd gate module"]
        assert shown[1].title == "plain under examples of the gate modules"
        assert own.data[0]["y"][0] == pytest.approx(accuracy(r.networks["gated"].model, *r.test[:], draws=2))


class TestToy:
    def test_points_are_those_of_the_thesis(self):
        x, test = toy.points()
        assert sorted(torch.cat([x, test])[:, 0].tolist()) == torch.linspace(-1, 1, 300).tolist()
        assert (len(x), len(test)) == (210, 90)

    def test_training_is_adam_on_the_squared_error(self):
        """Written out again for the network without gates."""
        run = toy.trained("WOGM", 3, 100)
        with forked(seed_for(3, "toy", "WOGM")):
            model = GatedRegression(gates=None)
        x, test = toy.points()
        optimizer, losses = torch.optim.Adam(model.parameters(), 1e-3), []
        for _ in range(100):
            loss = ((model(x) - x.abs()) ** 2).mean()
            losses.append(float(loss.detach()))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        assert run.losses[0] == pytest.approx(losses[0])
        assert run.losses[100] < losses[99]
        assert run.error == pytest.approx(float(((model(test) - test.abs()) ** 2).mean().detach()))

    def test_gates_are_kept_at_every_stage(self):
        run = toy.trained("GMWOW_ST", 0, 20)
        assert sorted(run.stages) == [0, 4, 12, 20]
        hidden = torch.tanh(run.model.first(toy.points()[0]))
        last: Any = run.model.last
        expected = torch.sigmoid(hidden @ last.module[0].weight.T + last.module[0].bias)
        torch.testing.assert_close(run.stages[20], expected.detach())

    def test_figures(self):
        r = reproduction({})
        figures = toy.toy_gates(r)
        assert [f.id for f in figures] == [
            "toy-predictions", "toy-learning", "toy-histogram-0", "toy-histogram-1", "toy-gates-0", "toy-gates-1",
            "toy-gates-2", "toy-gates-3",
        ]  # fmt: skip
        for trace in figures[2].data:
            assert sum(trace["y"]) == pytest.approx(1)


class TestDropped:
    def test_maps_are_the_probabilities_of_the_layer(self):
        torch.manual_seed(2)
        model = build("pruned-cnn", (1, 8, 8), 3, pruning="standout-expected", channels=[3], hidden=4).eval()
        x = images(5, 8)[:][0]
        (layer,) = dropping(model, x)
        z = model.features[0](x).detach()  # type: ignore[index]
        drop, on = 1 - torch.sigmoid(z), z > 0
        np.testing.assert_allclose(layer.every, drop.mean((0, 1)), atol=1e-6)
        np.testing.assert_allclose(layer.alive, on.double().mean((0, 1)), atol=1e-6)
        row, column = map(int, np.argwhere(layer.alive > 0)[0])
        value = drop[:, :, row, column][on[:, :, row, column]].mean()
        assert layer.active[row, column] == pytest.approx(float(value), abs=1e-6)

    def test_centre_and_rest(self):
        values = np.zeros((8, 8))
        values[2:6, 2:6] = 1
        layer = Dropped(values, values, values)
        assert layer.inside(values) == (1, 0)
        assert layer.inside(1 - values) == (0, 1)
