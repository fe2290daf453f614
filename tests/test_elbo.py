"""The evidence lower bound: its parts against sums by hand, and that it leaves nothing on the model."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from sklearn.datasets import load_digits
from torch import nn

from stochade.data import Images
from stochade.errors import BudgetError, UsageError
from stochade.nn import LWTA
from stochade.nn.bayesian import BlockUtility, GaussianLinear
from stochade.nn.lwta import _blocks
from stochade.train import train
from stochade.train.elbo import ELBO, adversarial_elbo, lwta_pgd, parameter_kl, winners_kl


class Record(nn.Module):
    """Passes its input on and keeps the last one, for the test to see."""

    def forward(self, x):
        self.seen = x.detach()
        return x


def network(bayesian=True):
    torch.manual_seed(0)
    dense = GaussianLinear(4 * 16, 6) if bayesian else nn.Linear(4 * 16, 6)
    middle = [BlockUtility(3)] if bayesian else []
    layers = [nn.Conv2d(1, 4, 3, padding=1), Record(), LWTA(), nn.Flatten(), dense, *middle, Record(), LWTA(3)]
    return nn.Sequential(*layers, nn.Linear(6, 3))


def batch(n=5):
    g = torch.Generator().manual_seed(1)
    return torch.rand(n, 1, 4, 4, generator=g), torch.arange(n) % 3


def by_hand(a, units):
    """Summed over blocks of one example and position: sum q log q U."""
    q = torch.softmax(_blocks(a, units), 2)
    return (q * (q * units).log()).sum((1, 2))


@pytest.mark.parametrize("positions", ["mean", "sum"])
def test_parts_are_those_of_the_formula_and_add_up(positions):
    model, (x, y) = network(), batch()
    bound = ELBO(0.5, 0.25, 2.0, 0.125, positions)
    torch.manual_seed(3)
    loss, logits, terms = bound(model, x, y, model=model, seed=0)
    assert list(terms) == ["ce", "kl_xi", "kl_z", "kl_u", "kl_w"]
    torch.testing.assert_close(loss, sum(terms.values()))
    torch.testing.assert_close(terms["ce"], F.cross_entropy(logits, y))
    conv, dense = by_hand(model[1].seen, 2).flatten(1), by_hand(model[6].seen, 3)
    conv = conv.mean(1) if positions == "mean" else conv.sum(1)
    torch.testing.assert_close(terms["kl_xi"], 0.5 * (conv + dense).mean())
    torch.testing.assert_close(terms["kl_u"], 2.0 * model[5].kl_sticks())
    torch.testing.assert_close(terms["kl_w"], 0.125 * model[4].kl_weights())
    torch.manual_seed(3)
    model(x)  # KL_z draws its sticks after the forward
    torch.testing.assert_close(terms["kl_z"], 0.25 * model[5].kl_utilities())
    assert all(t.ndim == 0 and t.item() >= 0 for t in terms.values())


def test_gradients_of_every_part_reach_their_parameters():
    model, (x, y) = network(), batch()
    ELBO(1.0, 1.0, 1.0, 1.0)(model, x, y, model=model, seed=0)[0].backward()
    assert all(p.grad is not None and p.grad.ne(0).any() for p in model.parameters())


def test_winners_divergence_alone_makes_winners_even():
    """Minimised without the cross-entropy it takes the activations of a block to the same value."""
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(4, 6), LWTA(2)), torch.randn(20, 4)
    optimizer, first = torch.optim.Adam(model.parameters(), 0.05), None
    for _ in range(200):
        with winners_kl(model) as told:
            model(x)
        first = first or told[0].item()
        optimizer.zero_grad()
        told[0].backward()
        optimizer.step()
    assert told[0].item() < 0.01 * first


def test_nothing_stays_on_the_model():
    model, (x, y) = network(), batch()
    before = {name: set(vars(m)) for name, m in model.named_modules()}
    bound = ELBO()
    for _ in range(3):
        bound(model, x, y, model=model, seed=0)
    model(x)
    with pytest.raises(RuntimeError, match="halt"), winners_kl(model) as told:
        model(x)
        raise RuntimeError("halt")
    assert len(told) == 2
    model(x)
    assert len(told) == 2
    assert all(not m._forward_hooks for m in model.modules())
    after = {name: set(vars(m)) - {"seen"} for name, m in model.named_modules()}
    assert after == {name: kept - {"seen"} for name, kept in before.items()}


def test_parts_that_a_network_lacks_or_that_weigh_nothing_are_left_out():
    x, y = batch()
    plain = network(bayesian=False)
    assert list(ELBO()(plain, x, y, model=plain, seed=0)[2]) == ["ce", "kl_xi"]
    assert parameter_kl(plain) == {}
    model = network()
    assert list(ELBO(0, 0, 1, 0)(model, x, y, model=model, seed=0)[2]) == ["ce", "kl_u"]
    assert list(ELBO(0, 0, 0, 0)(model, x, y, model=model, seed=0)[2]) == ["ce"]
    ancestor = nn.Sequential(nn.Flatten(), nn.Linear(16, 4), LWTA(stochastic=False))
    assert list(ELBO()(ancestor, x, y, model=ancestor, seed=0)[2]) == ["ce"]  # no posterior, no divergence


def test_half_precision_activations():
    model, x = nn.Sequential(nn.Linear(4, 6), LWTA(2)).bfloat16(), torch.randn(20, 4).bfloat16()
    with winners_kl(model) as told:
        model(x)
    assert told[0].dtype == torch.float32


def test_the_exact_bound_counts_winners_in_full_and_parameters_once():
    assert ELBO.exact(1000) == ELBO(1.0, 1e-3, 1e-3, 1e-3, "sum")


@pytest.mark.parametrize("craft", ["eval", "train", "mean-field"])
def test_crafting_sees_the_temperature_it_is_told(craft):
    """Which competition PGD runs through: nearly hard winners at the test temperature only, noise in all but one."""
    model, (x, y) = network(bayesian=False), batch()
    model.eval()
    shares = []
    model[6].register_forward_hook(lambda _, i, o: shares.append((o / i[0]).unflatten(1, (2, 3)).amax(2)))
    attack = lwta_pgd(craft, eps=0.1, steps=3, step=0.05)
    with attack.gradient.swapped(model):
        model(x.repeat(50, 1, 1, 1))
    assert (shares[0].mean() > 0.97) == (craft == "eval")
    rows = shares[0].unflatten(0, (50, 5))
    assert (rows.std(0).max() > 1e-3) == (craft != "mean-field")
    moved = (attack(model, x, y, seed=0) - x).abs().max()
    assert 0.04 < moved <= 0.1 + 1e-6


def test_train_crafting_keeps_batch_norm_statistics():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), LWTA(), nn.Flatten(), nn.Linear(16, 3)).train()
    x, y = batch()
    bound, kept = adversarial_elbo(craft="train"), model[1].running_mean.clone()
    bound(model, x, y, model=model, seed=0)
    assert model[1].num_batches_tracked == 1  # the training pass alone
    assert not torch.equal(model[1].running_mean, kept)


def test_adversarial_bound_learns_and_tells_its_parts():
    """Digits through the loop: the crafted images enter the bound, every epoch tells its terms."""
    digits = load_digits()
    images = (digits.images[:, None] / 16).astype(np.float32)
    parts = [Images(images[a:b], digits.target[a:b]) for a, b in ((0, 800), (800, 1000))]
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Flatten(), GaussianLinear(64, 64), BlockUtility(32), LWTA(), GaussianLinear(64, 10, sampling="local")
    )
    objective = adversarial_elbo(ELBO(), "mean-field", clean=0.5)
    history = train(model, *parts, epochs=6, lr=1e-2, objective=objective, progress=False)
    assert history.best_accuracy > 0.7
    told = history.epochs[-1].terms
    assert list(told) == ["ce", "kl_xi", "kl_z", "kl_u", "kl_w"]
    assert sum(told.values()) == pytest.approx(history.epochs[-1].train_loss, rel=1e-3)


def test_errors():
    for name in ("winners", "utilities", "sticks", "weights"):
        with pytest.raises(BudgetError, match=name):
            ELBO(**{name: -1.0})
    with pytest.raises(UsageError, match="positions"):
        ELBO(positions="none")  # type: ignore[arg-type]
    with pytest.raises(BudgetError, match="at least one image"):
        ELBO.exact(0)
    with pytest.raises(UsageError, match="crafting"):
        lwta_pgd("hot")  # type: ignore[arg-type]
