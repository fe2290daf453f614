"""Preprocessing: geometry against second implementations, real JPEG files, what draws, what attackers may put."""

import copy
import io
import math
import pickle

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from scipy.fft import dctn, idctn
from scipy.stats import chisquare, kstest
from torch import nn

from stochade import checkpoint
from stochade.attacks import transforms
from stochade.errors import ModelError, UsageError
from stochade.models.preprocessed import PREPROCESSORS, behind
from stochade.nn import Quantise, backward_as, discrete_layers, forward_as, scope_of
from stochade.nn.preprocess import (
    JPEG,
    GaussianSmoothing,
    RandomResizePad,
    RandomRotation,
    RandomShift,
    bit_depth,
    placed,
    rotated,
    shifted,
)
from stochade.registry import build

RANDOM = [RandomShift(2), RandomRotation(40), RandomResizePad((1, 8, 8), 0.5), RandomResizePad((1, 8, 8), 1, 1.5)]
FIXED = [GaussianSmoothing(0.7), JPEG(20)]
NAMES = {
    "shift-cnn": ({"pixels": 1}, "example"),
    "rotation-cnn": ({"degrees": 30.0}, "example"),
    "random-resize-cnn": ({"low": 0.7, "high": 1.2}, "example"),
    "smoothed-cnn": ({"sigma": 0.5}, "none"),
    "jpeg-cnn": ({"quality": 30}, "none"),
    "bit-depth-cnn": ({"bits": 2}, "none"),
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def test_shifts_move_whole_pixels():
    """Against slices of a padded image, every shift up to beyond the image."""
    x = torch.rand(1, 2, 3, 5)
    for down in range(-4, 5):
        for right in range(-6, 7):
            out = shifted(x, torch.tensor([down]), torch.tensor([right]))
            padded = F.pad(x, (6, 6, 6, 6))
            assert torch.equal(out, padded[..., 6 - down : 9 - down, 6 - right : 11 - right])
    mixed = shifted(x.expand(2, -1, -1, -1), torch.tensor([1, 0]), torch.tensor([0, -2]))
    assert torch.equal(mixed[:1], shifted(x, torch.tensor([1]), torch.tensor([0])))
    assert torch.equal(mixed[1:], shifted(x, torch.tensor([0]), torch.tensor([-2])))


def test_rotations_against_quarter_turns_and_the_attacker_s_own():
    x = torch.rand(2, 3, 6, 6, dtype=torch.float64)
    for turns in range(-2, 3):
        angle = torch.full((2,), turns * math.pi / 2, dtype=torch.float64)
        torch.testing.assert_close(rotated(x, angle), torch.rot90(x, turns, (2, 3)), atol=1e-9, rtol=0)
    for shape in ((2, 1, 6, 6), (2, 3, 9, 5)):
        x, angle = torch.rand(shape, dtype=torch.float64), torch.tensor([0.3, -1.1], dtype=torch.float64)
        torch.testing.assert_close(rotated(x, angle), transforms.rotated(x, angle))


@pytest.mark.parametrize("canvas", [(8, 6), (11, 9), (5, 5)])
def test_placing_is_interpolating_and_pasting(canvas):
    """Second implementation: torch's own resizing, image by image."""
    x = torch.rand(12, 2, 8, 6, dtype=torch.float64)
    size = torch.stack([torch.randint(1, side + 1, (12,)) for side in canvas], 1)
    corner = torch.stack([torch.randint(0, 20, (12,)) % (s - size[:, a] + 1) for a, s in enumerate(canvas)], 1)
    expected = torch.zeros(12, 2, *canvas, dtype=torch.float64)
    for n in range(12):
        (h, w), (top, left) = size[n].tolist(), corner[n].tolist()
        expected[n, :, top : top + h, left : left + w] = F.interpolate(x[n : n + 1], (h, w), mode="bilinear")[0]
    torch.testing.assert_close(placed(x, size, corner, canvas), expected, atol=1e-6, rtol=0)


def test_shifts_are_uniform_and_independent_of_each_other():
    """A chi-square test over all 25 shifts at 1e-6: one bright pixel tells where it went."""
    x = torch.zeros(20000, 1, 5, 5)
    x[:, :, 2, 2] = 1
    places = RandomShift(2)(x).flatten(1).argmax(1)
    assert chisquare(np.bincount(places.numpy(), minlength=25)).pvalue > 1e-6
    assert torch.equal(RandomShift(0)(x), x)


def test_angles_are_uniform():
    """The angle of a bright pixel far from the centre, read back from linear interpolation's centre of mass."""
    x = torch.zeros(3000, 1, 41, 41, dtype=torch.float64)
    x[:, :, 20, 36] = 1
    out = RandomRotation(30)(x)[:, 0]
    place = torch.arange(41, dtype=torch.float64) - 20
    up, right = -(out.sum(2) * place).sum(1), (out.sum(1) * place).sum(1)
    angles = torch.atan2(up, right).rad2deg().numpy()
    assert kstest(angles, "uniform", (-30, 60)).pvalue > 1e-6
    torch.testing.assert_close(RandomRotation(0)(x), x, atol=1e-5, rtol=0)


def test_sizes_and_places_are_uniform_over_whole_numbers():
    """White images: the box of ones tells size and corner. Chi-square tests at 1e-6."""
    out = RandomResizePad((1, 8, 6), 0.5, 1.5)(torch.ones(20000, 1, 8, 6))[:, 0]
    assert out.shape == (20000, 12, 9)
    torch.testing.assert_close(out, out.round())
    out = out.round()
    heights, widths = out.amax(2).sum(1).long(), out.amax(1).sum(1).long()
    assert chisquare(np.bincount(heights.numpy())[4:]).pvalue > 1e-6
    assert np.bincount(heights.numpy()).nonzero()[0].tolist() == list(range(4, 13))
    assert widths.unique().tolist() == list(range(3, 10))
    tops = out.amax(2).argmax(1)[heights == 10]
    assert chisquare(np.bincount(tops.numpy(), minlength=3)).pvalue > 1e-6
    least = (heights == 4) & (widths == 3)  # 9 x 7 places, each as likely as the others
    pairs = 7 * out.amax(2).argmax(1)[least] + out.amax(1).argmax(1)[least]
    assert chisquare(np.bincount(pairs.numpy(), minlength=63)).pvalue > 1e-6
    sizes = RandomResizePad((1, 8, 6), 0.7, 1)(torch.ones(500, 1, 8, 6))[:, 0].amax(2).round().sum(1)
    assert sizes.min() == 6  # round(5.6)
    assert np.corrcoef(heights.numpy(), widths.numpy())[0, 1] > 0.97
    x = torch.rand(3, 1, 8, 6)
    torch.testing.assert_close(RandomResizePad((1, 8, 6), 1, 1)(x), x)


def test_smoothing_is_a_normalised_gaussian():
    """Second implementation: a loop over the kernel, edges repeated."""
    x = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    sigma, radius = 0.8, 3
    weights = [[math.exp(-(i * i + j * j) / (2 * sigma**2)) for j in range(-3, 4)] for i in range(-3, 4)]
    padded = F.pad(x, (radius,) * 4, mode="replicate")
    expected = sum(weights[i][j] * padded[..., i : i + 5, j : j + 7] for i in range(7) for j in range(7)) / sum(
        map(sum, weights)
    )
    torch.testing.assert_close(GaussianSmoothing(sigma)(x), expected, atol=1e-6, rtol=0)
    assert torch.equal(GaussianSmoothing(0)(x), x)


@pytest.mark.parametrize("quality", [5, 50, 95])
def test_jpeg_against_the_standard_s_arithmetic(quality):
    """One grey block of 8 x 8 by hand: DCT, the standard's table at that quality, rounding, and back. Encoders work
    in integers, so a level may differ by one or two."""
    rows = (
        "16 11 10 16 24 40 51 61 12 12 14 19 26 58 60 55 14 13 16 24 40 57 69 56 14 17 22 29 51 87 80 62 "
        "18 22 37 56 68 109 103 77 24 35 55 64 81 104 113 92 49 64 78 87 103 121 120 101 72 92 95 98 112 100 103 99"
    )
    table = np.array([int(number) for number in rows.split()]).reshape(8, 8)
    scale = 5000 // quality if quality < 50 else 200 - 2 * quality
    table = np.clip((table * scale + 50) // 100, 1, 255)
    smooth = torch.linspace(0, 1, 8).view(1, 1, 8, 1) * torch.linspace(0.2, 0.9, 8).view(1, 1, 1, 8)
    x = torch.cat([smooth, (smooth + 0.05 * torch.randn(1, 1, 8, 8)).clamp(0, 1)])
    got = JPEG(quality)(x) * 255
    for image, out in zip(x, got, strict=True):
        levels = np.round(image[0].double().numpy() * 255) - 128
        back = idctn(np.round(dctn(levels, norm="ortho") / table) * table, norm="ortho") + 128
        assert np.abs(np.clip(np.round(back), 0, 255) - out[0].numpy()).max() <= 2
    assert quality == 95 or (got / 255 - x).abs().max() > 0.01


def test_jpeg_of_colours_is_pillow_s_file():
    x = torch.rand(3, 3, 9, 11)
    out = JPEG(60)(x)
    for image, got in zip(x, out, strict=True):
        file = io.BytesIO()
        levels = (image * 255).round().byte().permute(1, 2, 0).numpy()
        Image.fromarray(levels, "RGB").save(file, "JPEG", quality=60)
        assert np.array_equal(np.asarray(Image.open(file)), (got * 255).round().byte().permute(1, 2, 0).numpy())
    assert JPEG()(torch.zeros(0, 3, 4, 4)).shape == (0, 3, 4, 4)
    assert torch.equal(JPEG(60)(x - 5), JPEG(60)(torch.zeros_like(x)))
    assert JPEG()(x.double()).dtype == torch.float64


@pytest.mark.parametrize("layer", RANDOM, ids=str)
def test_random_ones_draw_for_every_example_also_in_evaluation(layer):
    layer = pickle.loads(pickle.dumps(copy.deepcopy(layer))).eval()
    x = torch.rand(1, 1, 8, 8).expand(32, 1, 8, 8)
    assert len(layer(x).flatten(1).unique(dim=0)) > 5
    assert scope_of(layer) == "example"
    torch.manual_seed(3)
    first = layer(x)
    torch.manual_seed(3)
    assert torch.equal(layer(x), first)


@pytest.mark.parametrize("layer", [*RANDOM, GaussianSmoothing(0.7)], ids=str)
def test_own_gradient_is_that_of_the_very_draw(layer):
    """These layers are linear in the image, so <gradient, x> is the output, draw by draw; the same draw with the
    identity in its place has the same value and another gradient."""
    x = torch.rand(4, 1, 8, 8, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    out = layer(x)
    weights = torch.rand_like(out)
    (gradient,) = torch.autograd.grad((out * weights).sum(), x)
    torch.testing.assert_close((gradient * x).sum((1, 2, 3)), (out * weights).sum((1, 2, 3)), atol=1e-5, rtol=1e-5)
    torch.manual_seed(5)
    with backward_as(layer, {"*": "identity"}):
        swapped = layer(x)
        (other,) = torch.autograd.grad((swapped * weights).sum(), x)
    assert torch.equal(swapped, out)
    assert not torch.allclose(other, gradient)
    if out.shape == x.shape:
        assert torch.equal(other, weights)
    with forward_as(layer, {"*": "dense"}):
        dense = layer(x)
    expected = x if out.shape == x.shape else F.interpolate(x, out.shape[2:], mode="bilinear")
    torch.testing.assert_close(dense, expected)


def test_jpeg_hides_its_gradient_until_the_identity_takes_its_place():
    layer, x = JPEG(30), torch.rand(2, 1, 8, 8, requires_grad=True)
    assert torch.autograd.grad(layer(x).sum(), x)[0].eq(0).all()
    for name in ("identity", "ste"):
        with backward_as(layer, {"*": name}):
            out = layer(x)
            assert torch.autograd.grad(out.sum(), x)[0].eq(1).all()
        assert torch.equal(out, layer(x))
    with forward_as(layer, {"*": "dense"}):
        assert torch.equal(layer(x), x)


def test_bit_depth_is_quantisation():
    x = torch.rand(3, 1, 4, 4)
    assert torch.equal(bit_depth(2)(x), Quantise(4)(x))
    assert len(bit_depth(1)(x).unique()) == 2


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 9, 7)])
def test_by_name_around_any_network(name, shape, tmp_path):
    options, scope = NAMES[name]
    model = build(name, shape, 4, network="mlp", **options).eval()
    assert scope_of(model) == scope
    assert model.network.description["model"] == "mlp"
    again = checkpoint.load(checkpoint.save(model, tmp_path))
    x = torch.rand(5, *shape)
    torch.manual_seed(0)
    first = model(x)
    torch.manual_seed(0)
    assert torch.equal(again(x), first)
    assert first.shape == (5, 4)
    with forward_as(model, {"*": "dense"}):
        plain = model(x)
    assert not torch.equal(plain, first)
    assert torch.equal(plain, model.network(next(iter(discrete_layers(model).values())).relaxed["dense"](x)))


def test_preprocessors_stack_and_random_networks_stay_random():
    model = build("jpeg-cnn", (1, 8, 8), 3, network="shift-cnn").eval()
    assert [type(m).__name__ for m in discrete_layers(model).values()] == ["JPEG", "RandomShift"]
    assert scope_of(model) == "example"
    assert scope_of(build("jpeg-cnn", network="mlp-stochastic").eval()) == "example"
    assert set(PREPROCESSORS) == {"shift", "rotation", "resize", "smoothing", "jpeg", "bit-depth"}


def test_what_makes_no_sense_is_refused():
    wrong = [
        lambda: RandomShift(-1), lambda: RandomShift(1.5), lambda: RandomRotation(181), lambda: RandomRotation(-1),
        lambda: RandomRotation(float("nan")), lambda: RandomResizePad((1, 8, 8), 0.9, 0.8),
        lambda: RandomResizePad((1, 8, 8), 0.01), lambda: GaussianSmoothing(-1), lambda: JPEG(0), lambda: JPEG(101),
        lambda: JPEG(50.0), lambda: bit_depth(0), lambda: bit_depth(2.5), lambda: build("jpeg-cnn", network="nonet"),
        lambda: behind("crop", nn.Identity, (1, 8, 8)),
    ]  # fmt: skip
    for make in wrong:
        with pytest.raises(UsageError):
            make()
    for call in (
        lambda: JPEG()(torch.rand(2, 2, 8, 8)),
        lambda: JPEG()(torch.rand(8, 8)),
        lambda: RandomShift()(torch.rand(2, 8)),
        lambda: RandomResizePad((1, 8, 8))(torch.rand(2, 1, 7, 8)),
        lambda: build("jpeg-cnn", (2, 8, 8)),
    ):
        with pytest.raises(ModelError):
            call()
