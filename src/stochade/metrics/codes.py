"""What encoders do to images: how alike codes are, and the covariance of a linear layer that reads them (wu2024)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from stochade.errors import BudgetError, ImagesError, UsageError
from stochade.randomness import reseed, untouched


@torch.no_grad()
def code_similarity(first: nn.Module, second: nn.Module, images: Tensor, *, draws: int = 1, seed: int = 0) -> Tensor:
    """Cosine between the codes that two encoders give of the same image, [N], mean over draws (wu2024, figure 2b and
    observation 3.5). Encoders: images [N,...] -> codes [N,T,...], drawn independently; a code of zeros has cosine 0.

    A high cosine is no sign of equal robustness: codes of one image are alike because its mean is in both.

    Raises:
        ImagesError: codes of different shapes. BudgetError: fewer than one draw.
    """
    _whole(draws)
    total = torch.zeros(len(images), dtype=torch.float64, device=images.device)
    with untouched(first), untouched(second):
        reseed(seed)
        first.eval()
        second.eval()
        for _ in range(draws):
            a, b = first(images).flatten(1).double(), second(images).flatten(1).double()
            if a.shape != b.shape:
                shapes = f"{list(a.shape)} and {list(b.shape)}"
                raise ImagesError("codes of one shape", shapes, "give both as many steps")
            total += F.cosine_similarity(a, b, 1, 1e-12)
    return total / draws


def linear_covariance(weight: Tensor, x: Tensor, kind: str, sigma: float = 0.0, clamp: bool = True) -> Tensor:
    """Covariance [M, M] of W z for one frame z of the code of one image: W diag(variance of every pixel) W^T.

    kind "poisson": z ~ Ber(x), variance x (1 - x) (wu2024, theorem 3.2; after an attack, at x + delta, that is x (1 -
    x) + delta (1 - 2 x) - delta^2). kind "rs": z = clip(x + sigma n, 0, 1). Theorem 3.3 and proposition 3.4 have
    sigma^2 whatever x is, before the clipping of equation 10 (`clamp=False`). After it the variance falls towards the
    borders, to 0.34 sigma^2 at x = 0 and 1 for small sigma, so the invariance that the paper argues with does not
    hold for the code that it uses.

    Args:
        weight: W [M, d]. x: the pixels [...] of one image, d in all. sigma: standard deviation of "rs".

    Raises:
        UsageError: another kind, or a weight that is no matrix. BudgetError: sigma below 0. ImagesError: pixels
            outside [0, 1] or not d of them.
    """
    if kind not in ("poisson", "rs"):
        raise UsageError('kind "poisson" or "rs"', repr(kind))
    if isinstance(sigma, bool) or not isinstance(sigma, int | float) or not 0 <= sigma < math.inf:
        raise BudgetError("a standard deviation >= 0", repr(sigma))
    _fitting(weight, x)
    w, pixels = weight.double(), x.double().flatten()
    if kind == "poisson":
        variance = pixels * (1 - pixels)
    elif clamp and sigma > 0:
        variance = _clipped_variance(pixels, float(sigma))
    else:
        variance = torch.full_like(pixels, float(sigma) ** 2)
    return (w * variance) @ w.T


def _clipped_variance(x: Tensor, sigma: float) -> Tensor:
    """Variance of clip(x + sigma n, 0, 1), n standard normal, by its first two moments."""
    low, high = -x / sigma, (1 - x) / sigma
    below, above = torch.special.ndtr(low), torch.special.ndtr(-high)
    inside = 1 - below - above
    density_low, density_high = (torch.exp(-0.5 * z * z) / math.sqrt(2 * math.pi) for z in (low, high))
    first = density_low - density_high  # E[n; inside]
    second = inside + low * density_low - high * density_high  # E[n^2; inside]
    mean = x * inside + sigma * first + above
    square = x * x * inside + 2 * x * sigma * first + sigma**2 * second + above
    return (square - mean * mean).clamp_min(0)


@torch.no_grad()
def sampled_covariance(encoder: nn.Module, weight: Tensor, x: Tensor, draws: int, seed: int = 0) -> Tensor:
    """Covariance [M, M] of W z over `draws` codes of one image, z its first frame; the measurement beside
    `linear_covariance`.

    Args:
        encoder: images [N,...] -> codes [N,T,...] with draws of their own for every image. x: one image, [...].

    Raises:
        BudgetError: fewer than two draws.
    """
    _whole(draws, 2)
    _fitting(weight, x)
    with untouched(encoder):
        reseed(seed)
        encoder.eval()
        codes = encoder(x.expand(draws, *x.shape))[:, 0].flatten(1).double()
    return torch.atleast_2d(torch.cov((codes @ weight.double().T).T))


def _fitting(weight: Tensor, x: Tensor) -> None:
    """Raises unless the weight is a matrix and x has as many pixels in [0, 1] as it has columns."""
    if weight.dim() != 2:
        raise UsageError("a weight [M, d]", f"{list(weight.shape)}")
    if weight.shape[1] != x.numel() or not bool(((x >= 0) & (x <= 1)).all()):
        got = f"{list(x.shape)}" + (", values outside" if weight.shape[1] == x.numel() else "")
        raise ImagesError(f"one image of {weight.shape[1]} pixels in [0, 1] for a weight {list(weight.shape)}", got)


def tradeoff(clean: float, attacked: float, budget: float) -> float:
    """Quantification trade-off estimation, |(b - a)(A(b) + A(a)) / 2| from no attack to a budget (wu2024, equation
    6): the area under a straight line between two accuracies. In its tables budgets count grey levels (8) and
    accuracies are shares, so 90.69 % clean and 20.75 % attacked give 4.46.

    It rewards clean accuracy and robust accuracy alike; a network that nothing protects keeps half of the best value.

    Raises:
        BudgetError: accuracies outside [0, 1] (divide percent by 100), or a budget below 0.
    """
    for value in (clean, attacked):
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
            raise BudgetError("accuracies in [0, 1]", repr(value), "divide percent by 100")
    if isinstance(budget, bool) or not isinstance(budget, int | float) or not 0 <= budget < math.inf:
        raise BudgetError("a budget >= 0", repr(budget))
    return abs(budget * (clean + attacked) / 2)


def _whole(draws: int, least: int = 1) -> None:
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < least:
        raise BudgetError(f"at least {least} draws", repr(draws))
