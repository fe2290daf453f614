"""Per-example streams, seeds, and the caller's model and generators left as they were."""

import random
import warnings

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import nn

from stochade.attacks import PGD, Backprop, Evolution, Linf
from stochade.randomness import FrozenNoise, Stream, fingerprint, forked, identities, reseed, seed_for, untouched

IDS = torch.tensor([5, -3, 2**62, 0, 7])


def draws(stream: Stream) -> torch.Tensor:
    return torch.cat(
        [stream.uniform((3,)), stream.normal((2, 2)).flatten(1), stream.signs((4,)), stream.exponential((1,))], 1
    )


def test_rows_depend_on_their_own_identity_only():
    whole = draws(Stream(1, IDS))
    for i in range(len(IDS)):
        assert torch.equal(draws(Stream(1, IDS[i : i + 1]))[0], whole[i])
    order = torch.tensor([4, 2, 0, 1, 3])
    assert torch.equal(draws(Stream(1, IDS[order])), whole[order])


def test_subsets_go_on_where_the_whole_stands():
    a, b = Stream(1, IDS), Stream(1, IDS)
    a.uniform((3,))
    b.uniform((3,))
    part = a.subset(torch.tensor([3, 1]))
    assert torch.equal(part.uniform((5,)), b.uniform((5,))[[3, 1]])
    keep = torch.tensor([True, False, True, True, False])
    assert torch.equal(a.subset(keep).fork("x").normal((2,)), b.fork("x").normal((2,))[keep])


def test_seeds_ids_and_purposes_give_other_numbers():
    base = Stream(1, IDS).uniform((50,))
    for stream in (Stream(2, IDS), Stream(1, IDS + 1), Stream(1, IDS).fork("a"), Stream(1, IDS).fork("b", 1)):
        other = stream.uniform((50,))
        assert not bool((other == base).any(1).all())
        assert abs(float(torch.corrcoef(torch.stack([base.flatten(), other.flatten()]))[0, 1])) < 0.25  # 4 s.e.
    assert len(torch.unique(Stream(1, IDS).uniform((4,)), dim=0)) == len(IDS)


@pytest.mark.parametrize("axis", ["draws of one example", "first draws of many examples"])
def test_distributions(axis):
    """Kolmogorov-Smirnov on 20000 numbers at level 1e-4 each, fixed seeds."""
    n = 20000
    ids, shape = (torch.zeros(1, dtype=torch.long), (n,)) if axis.startswith("draws") else (torch.arange(n), ())
    assert kstest(Stream(3, ids).uniform(shape, torch.float64).flatten(), "uniform").pvalue > 1e-4
    assert kstest(Stream(4, ids).normal(shape, torch.float64).flatten(), "norm").pvalue > 1e-4
    assert kstest(Stream(5, ids).exponential(shape, torch.float64).flatten(), "expon").pvalue > 1e-4
    signs = Stream(6, ids).signs(shape)
    assert set(signs.flatten().tolist()) == {-1.0, 1.0}
    assert abs(float(signs.mean())) < 4 / n**0.5  # 4 standard errors: 6e-5
    u = Stream(7, ids).uniform((*shape, 2)).reshape(-1, 2)
    assert abs(float(torch.corrcoef(u.T)[0, 1])) < 4 / n**0.5


def test_uniform_stays_inside_the_open_interval_in_float32():
    u = Stream(0, torch.arange(1000)).uniform((1000,))
    assert float(u.min()) > 0
    assert float(u.max()) < 1


def test_seed_for_tells_parts_their_places_and_types_apart():
    seeds = [seed_for(1, 2), seed_for(2, 1), seed_for(12), seed_for("1", 2), seed_for(1, "2"), seed_for(1, 2, 0)]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= s < 2**63 for s in seeds)
    assert seed_for(0, "pgd", 3) == seed_for(0, "pgd", 3)


def test_identities_see_image_and_label():
    x, y = torch.rand(4, 1, 3, 3), torch.tensor([0, 1, 2, 3])
    ids = identities(x, y)
    assert len(set(ids.tolist())) == 4
    assert torch.equal(identities(x[[2, 0]], y[[2, 0]]), ids[[2, 0]])
    assert bool((identities(x, (y + 1) % 4) != ids).all())
    changed = x.clone()
    changed[1, 0, 0, 0] += 1e-6
    assert (identities(changed, y) != ids).tolist() == [False, True, False, False]
    assert len(set(identities(x.bfloat16(), y).tolist())) == 4  # NumPy has no bfloat16


def test_forked_restores_every_generator_also_after_an_exception():
    before = fingerprint()
    with forked(3):
        torch.rand(3), np.random.rand(2), random.random()  # noqa: NPY002
    assert fingerprint() == before
    with pytest.raises(KeyError), forked():
        torch.rand(3), np.random.rand(2), random.random()  # noqa: NPY002
        raise KeyError
    assert fingerprint() == before


def test_fingerprint_sees_every_generator():
    with forked(1):
        for draw in (lambda: torch.rand(1), lambda: np.random.rand(), random.random):  # noqa: NPY002
            before = fingerprint()
            assert fingerprint() == before
            draw()
            assert fingerprint() != before


def test_reseed_repeats_all_generators():
    def numbers():
        return torch.rand(2).tolist(), np.random.rand(2).tolist(), random.random()  # noqa: NPY002

    with forked():
        reseed(2**63 - 1)
        first = numbers()
        reseed(2**63 - 1)
        assert numbers() == first
        reseed(1)
        assert numbers() != first


def test_frozen_noise_repeats_itself_and_draws_nothing_from_the_caller():
    model, x = FrozenNoise(nn.Sequential(nn.Dropout(0.5)), 3), torch.ones(5, 8)
    model.train()
    before = fingerprint()
    assert torch.equal(model(x), model(x))
    assert not torch.equal(model(x), FrozenNoise(model.model, 4).train()(x))
    assert fingerprint() == before


class Stateful(nn.Module):
    """Everything a forward may leave behind: buffers, tensors, counters, lists, dicts, new attributes."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 3))
        self.register_buffer("calls", torch.zeros(2))
        self.register_buffer("later", None)
        self.register_buffer("odd", torch.tensor([float("nan"), 1.0]))
        self.trace = torch.zeros(3)
        self.membrane = None
        self.count = 0
        self.history = [torch.zeros(2)]
        self._memories = {"v": torch.zeros(2), "t": 0}
        self.fail_after: float = float("inf")

    def forward(self, x):
        self.calls += 1
        self.trace.add_(1)
        self.trace = self.trace + 1
        self.membrane = x.detach()
        self.later = x.detach()
        self.count += 1
        self.history[0].add_(1)
        self.history.append(x.detach())
        self._memories["v"].add_(1)
        self._memories["t"] += 1
        self._memories["new"] = x.detach()
        self.extra = x.detach()
        self.training = not self.training
        self.body[1].train()
        self.body[3].weight.grad = None
        if self.count > self.fail_after:
            raise KeyError("mid-attack")
        return self.body(x) + torch.rand(1) * 0.01


def snapshot(model: Stateful):
    return (
        [m.training for m in model.modules()],
        {k: v.clone() for k, v in model.state_dict().items()},
        [(p.requires_grad, None if p.grad is None else p.grad.clone()) for p in model.parameters()],
        [len(m._forward_hooks) for m in model.modules()],
        (model.trace.clone(), model.membrane, model.count, model.later, hasattr(model, "extra")),
        ([h.clone() for h in model.history], {k: torch.as_tensor(v).clone() for k, v in model._memories.items()}),
    )


def prepared() -> Stateful:
    torch.manual_seed(0)
    model = Stateful().eval()
    model.body[0].training = True
    first, last = model.body[1], model.body[3]
    first.weight.requires_grad_(False)
    last.weight.grad = torch.ones_like(last.weight)
    last.register_forward_hook(_hook)
    return model


def _hook(module, inputs, output):
    return output


ATTACKS = {
    "pgd": PGD(Linf(0.1), steps=4),
    "expectation": PGD(Linf(0.1), steps=3, gradient=Backprop(3), restarts=2),
    "evolution": PGD(Linf(0.1), steps=2, gradient=Evolution(2)),
}


@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.parametrize("fails", [False, True])
def test_an_attack_leaves_the_model_and_the_generators_alone(name, fails):
    with forked(0):
        x, y = torch.rand(4, 1, 3, 3), torch.tensor([0, 1, 2, 0])
        model = prepared()
        objects = (model.trace, model.history, model.history[0], model._memories, model.calls)
        gradient = model.body[3].weight.grad
        filters = list(warnings.filters)
        if fails:
            model.fail_after = 2.5  # after the probe, in the middle of the search
        before, generators, copy = snapshot(model), fingerprint(), x.clone()
        threads, mode = torch.get_num_threads(), torch.is_grad_enabled()
        if fails:
            with pytest.raises(KeyError):
                ATTACKS[name](model, x, y)
        else:
            ATTACKS[name](model, x, y)
        assert warnings.filters == filters
        assert fingerprint() == generators
        after = snapshot(model)
        torch.testing.assert_close(after, before, rtol=0, atol=0, equal_nan=True)
        now = (model.trace, model.history, model.history[0], model._memories, model.calls)
        assert all(a is b for a, b in zip(objects, now, strict=True))
        assert model.body[3].weight.grad is gradient
        assert torch.equal(x, copy)
        assert x.grad is None
        assert not x.requires_grad
        assert (torch.get_num_threads(), torch.is_grad_enabled()) == (threads, mode)


def test_a_pending_backward_of_the_caller_survives_an_attack():
    """Writing back an unchanged buffer would invalidate the caller's graph."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 4), nn.BatchNorm1d(4), nn.Linear(4, 3)).eval()
    x, y = torch.rand(4, 1, 3, 3), torch.tensor([0, 1, 2, 0])
    loss = nn.functional.cross_entropy(model(x), y)
    PGD(Linf(0.1), steps=2)(model, x, y)
    loss.backward()
    assert model[1].weight.grad is not None


def test_untouched_accepts_a_function():
    before = fingerprint()
    with untouched(lambda x: x):
        torch.rand(1)
    assert fingerprint() == before
