"""Compiled competitions between two units: their noise has its law, and their draws are those of ATen's operations.

Laws are tested at a false-alarm rate of 1e-4 each, with fixed seeds.
"""

import numpy as np
import pytest
import torch
from scipy import stats

from stochade.native import competition as native
from stochade.native.build import load
from stochade.nn.lwta import LWTA, _applied, _shares

needs_kernels = pytest.mark.skipif(load("competition") is None, reason="no C compiler")
ALARM = 1e-4


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def same_draw(x: torch.Tensor, temperature: float) -> tuple[torch.Tensor, torch.Tensor]:
    """A kernel's draw, and ATen's from the kernel's noise of the same seed."""
    state = torch.get_rng_state()
    ours = native.draw(x, temperature)
    torch.set_rng_state(state)
    return ours, _applied(x, _shares(x, 2, temperature, native.noise(x)))


@needs_kernels
def test_the_noise_is_logistic():
    noise = native.noise(torch.empty(50, 8, 32, 32)).flatten().numpy()
    assert len(noise) == 50 * 4 * 1024
    assert np.isfinite(noise).all()
    assert stats.kstest(noise, "logistic").pvalue > ALARM
    for part in (noise > 8, noise < -8):  # the tails, where a bad logarithm would show
        expected = stats.logistic.sf(8)
        assert stats.binomtest(int(part.sum()), len(noise), expected).pvalue > ALARM


@needs_kernels
def test_the_logarithm_is_exact_on_the_grid_of_uniform_numbers():
    noise = native.noise(torch.empty(100, 8, 64, 64)).flatten().double()
    low = noise[noise < -7]
    grid = torch.sigmoid(low) * 2**23 - 0.5  # k of u = (k + 1/2) / 2^23, where rounding of the noise moves k little
    assert len(low) > 1000
    assert float((grid - grid.round()).abs().max()) < 0.02


@needs_kernels
def test_noise_is_independent_of_its_neighbours_of_other_blocks_and_of_other_calls():
    x = torch.empty(40, 16, 16, 16)
    ranks = torch.from_numpy(stats.logistic.cdf(native.noise(x).double().numpy())).flatten() - 0.5
    other = torch.from_numpy(stats.logistic.cdf(native.noise(x).double().numpy())).flatten() - 0.5
    scale = 12 * len(ranks) ** 0.5 / len(ranks)  # of a sum of products of two uniform variables
    for lag in (1, 2, 3, 15, 16, 17, 32, 64, 256, 4096, 4096 + 16, 2 * 4096):
        assert abs(float((ranks[lag:] * ranks[:-lag]).sum()) * scale) < 4.5, lag
        assert abs(float((ranks[lag:].abs() - 0.25) @ (ranks[:-lag].abs() - 0.25))) * 4 * scale < 4.5, lag
    assert abs(float(ranks @ other) * scale) < 4.5


@needs_kernels
@pytest.mark.parametrize("shape", [(1, 2, 16), (3, 6, 17), (5, 4, 7, 7), (2, 8, 32, 32), (70, 2, 9, 9)])
@pytest.mark.parametrize("temperature", [0.01, 0.67, 1.0, 30.0])
def test_a_draw_is_that_of_plain_operations_with_the_same_noise(shape, temperature):
    x = 3 * torch.randn(shape)
    ours, theirs = same_draw(x, temperature)
    # at a low temperature a rounding error of the noise moves a share by 0.25 / temperature times as much
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6 + 2e-6 / temperature)


@needs_kernels
def test_layouts_do_not_matter():
    x = torch.randn(6, 8, 5, 9).to(memory_format=torch.channels_last)
    for image in (x, x[::2], x.transpose(2, 3)):
        ours, theirs = same_draw(image, 0.5)
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


@needs_kernels
def test_far_units_and_broken_ones():
    x = torch.zeros(1, 6, 20)
    x[0, 0], x[0, 3], x[0, 4], x[0, 5] = 1e30, torch.inf, torch.nan, 2.0
    ours = native.draw(x, 0.01)[0]
    assert (ours[0] == 1e30).all()
    assert (ours[1] == 0).all()
    assert torch.isinf(ours[3]).all()
    assert torch.isnan(ours[4]).all()


@needs_kernels
def test_a_layer_draws_the_same_with_and_without_a_record():
    x, layer = torch.randn(4, 6, 6, 6), LWTA(2).eval()
    state = torch.get_rng_state()
    with torch.no_grad():
        without = layer(x)
    torch.set_rng_state(state)
    torch.testing.assert_close(layer(x.clone().requires_grad_()).detach(), without, rtol=1e-4, atol=1e-3)
    assert not torch.equal(layer(x), without)


@needs_kernels
def test_winners_are_as_frequent_as_the_softmax_says():
    x = torch.tensor([0.3, -0.9]).view(1, 2, 1, 1).expand(1, 2, 200, 200).contiguous()
    with torch.no_grad():
        first = LWTA(2).eval()(x)[0, 0] > 0.15
    expected = torch.softmax(x[0, :, 0, 0], 0)[0].item()
    assert stats.binomtest(int(first.sum()), first.numel(), expected).pvalue > ALARM


@needs_kernels
def test_threads_do_not_change_the_numbers(monkeypatch):
    x = torch.randn(40, 32, 16, 16)
    state, answers = torch.get_rng_state(), []
    for threads in (1, 2, 3):
        monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
        torch.set_rng_state(state)
        answers.append(native.draw(x, 0.67))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


def test_what_the_kernels_do_not_take_goes_the_ordinary_way():
    image = torch.zeros(2, 4, 4, 4)
    assert native.suits(image) == (load("competition") is not None)
    for other in (image.double(), image[..., :3, :3], image[:0], image[:, :, 0, 0], image.half()):
        assert not native.suits(other)
    assert LWTA(2).eval()(image[:0]).shape == (0, 4, 4, 4)


def test_without_kernels_a_layer_draws_by_plain_operations(monkeypatch):
    monkeypatch.setattr(native, "load", lambda name: None)
    x = torch.randn(2, 4, 8, 8)
    with torch.no_grad():
        out = LWTA(2).eval()(x)
    assert out.shape == x.shape
    assert not torch.equal(out, x)


@needs_kernels
@pytest.mark.filterwarnings("ignore")
def test_what_is_recorded_or_means_something_else_goes_the_ordinary_way():
    x = torch.randn(2, 4, 8, 8)
    assert not native.suits(torch._neg_view(x))
    traced = torch.jit.trace(LWTA(2).eval(), x, check_trace=False)
    out = traced(x)
    assert out.shape == x.shape
    assert bool(((out == 0) | (out.sign() == x.sign())).all())  # not memory that nobody wrote
    seen = []
    torch.func.vmap(lambda part: seen.append(native.suits(part)) or part)(x[None])
    assert seen == [False]
