"""Small random networks with the truth about them, found without the verifier, for tests/test_certify_exact.py."""

import itertools

import numpy as np
import torch
from scipy.optimize import linprog
from torch import nn

from stochade.attacks.threats import L0, Linf
from stochade.nn import DeterministicBinary, Sign
from stochade.nn.binarised import BinaryConv2d, BinaryLinear, ScaledReLU
from stochade.nn.quantise import Quantise


def norm(layer, generator, plain=False):
    """A batch norm with statistics at random; plain: mean 0 and shift 0, which sums of +-1 often meet exactly."""
    with torch.no_grad():
        layer.weight.normal_(generator=generator)
        layer.running_var.uniform_(0.3, 2, generator=generator)
        if not plain:
            layer.bias.normal_(generator=generator)
            layer.running_mean.normal_(generator=generator)
    return layer


def weights(model, generator):
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | BinaryLinear | BinaryConv2d):
                module.weight.normal_(generator=generator)
                if getattr(module, "bias", None) is not None:
                    module.bias.normal_(0, 0.5, generator=generator)
    return model.eval()


def dense(generator, inputs=5, first=3, second=4, classes=3, plain=False, dtype=torch.float64):
    """Real dense layer -> batch norm -> sign -> +-1 layer -> batch norm -> sign -> +-1 layer."""
    layers = [
        nn.Flatten(), nn.Linear(inputs, first), norm(nn.BatchNorm1d(first), generator), Sign(),
        BinaryLinear(first, second), norm(nn.BatchNorm1d(second), generator, plain), Sign(),
        BinaryLinear(second, classes),
    ]  # fmt: skip
    return weights(nn.Sequential(*layers), generator).to(dtype)


def behind_threshold(generator, kind, plain):
    """Networks on 3 x 3 images thresholded at 1/2, which have 512 cases."""
    start = [Quantise(2)]
    if kind == "pool":
        scaled = ScaledReLU(-0.2 if plain else 0.3)
        body = [nn.Conv2d(1, 3, 2, padding=1), norm(nn.BatchNorm2d(3), generator, plain), Sign(),
                nn.MaxPool2d(2, 2), BinaryConv2d(3, 4, 2), scaled, nn.Flatten()]  # fmt: skip
        head = [norm(nn.BatchNorm1d(4), generator, plain), Sign(), nn.Linear(4, 3, bias=not plain)]
    elif kind == "padded":
        middle = norm(nn.BatchNorm2d(2), generator, plain)
        body = [nn.ZeroPad2d((1, 0, 0, 1)), BinaryConv2d(1, 2, 3, padding=1), middle, Sign(),
                BinaryConv2d(2, 2, 2, stride=2), nn.ReLU(), nn.Flatten()]  # fmt: skip
        head = [nn.Linear(8, 3)]
    elif kind == "relu":
        body = [nn.Conv2d(1, 2, 2), nn.ReLU(), nn.Flatten()]
        head = [nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 3)]
    else:
        body = [nn.Flatten(), BinaryLinear(9, 6), DeterministicBinary()]
        head = [BinaryLinear(6, 4), DeterministicBinary(), BinaryLinear(4, 3)]
    return weights(nn.Sequential(*start, *body, *head), generator).double()


KINDS = ("pool", "padded", "relu", "binary")
ALL = torch.tensor(list(itertools.product([0.0, 1.0], repeat=9)), dtype=torch.float64).view(-1, 1, 3, 3)


def truth_by_cases(answers, x, label, threat):
    """Whether every thresholded image that the threat reaches from x [1,3,3] has the label; answers [512]."""
    bits = (x > 0.5).double()
    flips = (bits != ALL).flatten(1)
    if isinstance(threat, L0):
        inside = flips.sum(1) <= threat.eps
    else:
        far = ((x - 0.5).abs() > threat.eps).flatten()
        inside = ~(flips & far).any(1)
    return bool((answers[inside] == label).all())


def truth_by_patterns(model, x, label, threat):
    """The same for `dense` networks: every pattern of the first signs that some image of the threat has, by linear
    programs over subsets of pixels, then the rest of the network on the pattern. Also the least margin that decided:
    near zero, the answer hangs on rounding."""
    linear, batch = model[1], model[2]
    scale = (batch.weight / (batch.running_var + batch.eps).sqrt()).detach().numpy()
    w = linear.weight.detach().numpy() * scale[:, None]
    b = (linear.bias.detach().numpy() - batch.running_mean.numpy()) * scale + batch.bias.detach().numpy()
    pixels = x.flatten().numpy()
    patterns = torch.tensor(list(itertools.product([-1.0, 1.0], repeat=len(w))), dtype=x.dtype)
    wrong = model[4:](patterns).argmax(1) != label
    if isinstance(threat, Linf):
        boxes = [(np.clip(pixels - threat.eps, 0, 1), np.clip(pixels + threat.eps, 0, 1))]
    else:
        boxes = []
        for chosen in itertools.combinations(range(len(pixels)), int(threat.eps)):
            free = np.isin(np.arange(len(pixels)), chosen)
            boxes.append((np.where(free, 0.0, pixels), np.where(free, 1.0, pixels)))
    robust, closest = True, np.inf
    for signs in patterns[wrong].numpy():
        for low, high in boxes:  # max t with signs * (w x + b) >= t
            rows = np.hstack([-signs[:, None] * w, np.ones((len(w), 1))])
            limits = [*zip(low, high, strict=True), (None, 10)]
            t = -linprog(np.append(np.zeros(len(pixels)), -1.0), rows, signs * b, bounds=limits).fun
            robust, closest = robust and t < 0, min(closest, abs(t))
    return robust, closest
