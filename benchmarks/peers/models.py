"""The models that stochade and its peers attack: one definition, imported in both environments (torch only)."""

import torch
from torch import Tensor, nn

CLASSES = 10
SIDE = 8


class CoinFlip(nn.Module):
    """A linear classifier whose answer is wrong with probability `error` on every draw, whatever the input.

    Where the linear part has a margin that the budget cannot cross, its robust accuracy is exactly 1 - error: no
    attack can do better than nothing, and one that reports less has counted luck as success. Images [N,C,H,W] ->
    logits [N,K]; a draw is wrong when its logits are rolled by one class. Noise enters per example.
    """

    scope = "example"  # read by stochade only

    def __init__(self, weight: Tensor, error: float = 0.1):
        super().__init__()
        self.linear = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
        with torch.no_grad():
            self.linear.weight.copy_(weight)
        self.error = error

    def forward(self, x: Tensor) -> Tensor:
        logits = self.linear(x.flatten(1))
        wrong = torch.rand(len(x), 1, device=x.device) < self.error
        return torch.where(wrong, logits.roll(1, dims=1), logits)


def coin_flip_problem(count: int = 1000, seed: int = 0) -> tuple[CoinFlip, Tensor, Tensor]:
    """The model, images [count,1,8,8] in [0,1] and labels: noisy copies of ten random prototypes, which the linear
    part tells apart with a wide margin."""
    generator = torch.Generator().manual_seed(seed)
    prototypes = torch.rand(CLASSES, SIDE * SIDE, generator=generator)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    noise = 0.05 * torch.randn(count, SIDE * SIDE, generator=generator)
    images = (prototypes[labels] + noise).clamp(0, 1).view(count, 1, SIDE, SIDE)
    centred = prototypes - prototypes.mean(1, keepdim=True)
    return CoinFlip(centred / centred.norm(dim=1, keepdim=True)), images, labels


@torch.no_grad()
def margin_over_budget(model: CoinFlip, images: Tensor, labels: Tensor, eps: float) -> float:
    """The smallest ratio, over examples and wrong classes, of the linear margin to the most that linf `eps` can take
    off it, eps * |w_y - w_j|_1. Above one no input in the ball changes the linear answer: the accuracy under any
    attack is 1 - error in expectation."""
    weight = model.linear.weight
    logits = model.linear(images.flatten(1))
    margins = logits.gather(1, labels[:, None]) - logits
    reach = eps * (weight[labels][:, None] - weight[None]).abs().sum(-1)
    margins.scatter_(1, labels[:, None], torch.inf)
    return float((margins / reach.clamp_min(1e-30)).min())


class Network(nn.Module):
    """conv32-5x5s2, conv64-5x5s2, fc100, fc10 on [N,1,28,28]: a class of the user's own, as in most code bases."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(1, 32, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(32, 64, 5, stride=2, padding=2), nn.ReLU(),
            nn.Flatten(), nn.Linear(64 * 7 * 7, 100), nn.ReLU(), nn.Linear(100, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class ColourNetwork(nn.Module):
    """conv32-5x5s2, conv64-3x3s2, conv128-3x3s2, fc256, fc10 on [N,3,32,32]."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(3, 32, 5, stride=2, padding=2), nn.ReLU(),
            nn.Conv2d(32, 64, 3, stride=2, padding=1), nn.ReLU(),
            nn.Conv2d(64, 128, 3, stride=2, padding=1), nn.ReLU(),
            nn.Flatten(), nn.Linear(128 * 4 * 4, 256), nn.ReLU(), nn.Linear(256, CLASSES),
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)
