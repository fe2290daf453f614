"""What tests of training share: small data sets and models, short runs, an objective that dies, an attack."""

from dataclasses import asdict

import numpy as np
import torch
import torch.nn.functional as F

from stochade.registry import build
from stochade.train import Standard, train


class Few:
    """The least that training asks of a data set."""

    def __init__(self, pixels, labels):
        self.pixels, self.labels = pixels, labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.as_tensor(self.pixels[index]), self.labels[index]


def digits(start, stop):
    from sklearn.datasets import load_digits

    bunch = load_digits()
    order = np.random.default_rng(0).permutation(len(bunch.target))[start:stop]
    return Few((bunch.images[order, None] / 16).astype(np.float32), bunch.target[order])


def squares(n=60, seed=0):
    """Two classes that a line divides; small enough for many runs."""
    rng = np.random.default_rng(seed)
    pixels = rng.random((n, 1, 4, 4), dtype=np.float32)
    return Few(pixels, (pixels[:, 0, 0].sum(1) > pixels[:, 0, 3].sum(1)).astype(np.int64))


def small(name="mlp-stochastic", **options):
    torch.manual_seed(0)
    return build(name, (1, 4, 4), 2, **options)


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def told(history):
    return [{k: v for k, v in asdict(e).items() if k != "seconds"} for e in history.epochs]


def sign_step(model, x, y, *, seed, size=0.1):
    x = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), x)
    return (x.detach() + size * gradient.sign()).clamp(0, 1)


SETTINGS = {"batch": 16, "lr": 1e-2, "progress": False}


def run(model, epochs=3, **changes):
    return train(model, squares(), squares(40, 1), epochs=epochs, **{**SETTINGS, **changes})


class Stop(Exception):
    pass


class Dying:
    """The standard objective, dying at the n-th batch of its life."""

    def __init__(self, batches):
        self.left = batches

    def __call__(self, forward, x, y, *, model, seed):
        self.left -= 1
        if self.left < 0:
            raise Stop
        return Standard()(forward, x, y, model=model, seed=seed)
