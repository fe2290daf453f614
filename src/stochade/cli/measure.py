"""`stochade measure`: what a spiking network does beside classifying."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated

from tyro.conf import OmitArgPrefixes, Positional, PositionalMetavarFromFieldName

from stochade.cli import common
from stochade.errors import UsageError


@dataclass
class Measure:
    """What a spiking TARGET does beside classifying: spikes per neuron and step, operations and energy per image,
    accuracy after every time step.

    Examples:

    stochade measure runs/snn --data digits

    stochade measure runs/vggsnn --data cifar10 --examples 1000 --draws 5 --to runs/vggsnn/spikes.json
    """

    target: Annotated[str, Positional, PositionalMetavarFromFieldName]
    """A checkpoint folder, module:function or file.py:function with an encoder and spiking neurons."""
    to: Path | None = None
    """A JSON file for the numbers and their provenance."""
    seed: int = 0
    """Of the encodings."""
    draws: int = 1
    """Encodings per image for the accuracies."""
    device: str = "cpu"
    """Where the model runs: cpu, cuda, cuda:1, mps."""
    quiet: bool = False
    """No progress."""
    images: OmitArgPrefixes[common.DataOptions] = field(default_factory=common.DataOptions)

    def run(self) -> None:
        import torch

        from stochade.describe import provenance
        from stochade.evaluate.store import write_json
        from stochade.metrics import accuracy_by_latency, energy, operations, spike_rates
        from stochade.progress import progress
        from stochade.targets import load_target

        if self.draws < 1:
            raise UsageError("--draws of at least 1", str(self.draws))
        common.check_device(self.device)
        found = load_target(self.target, seed=0, device=self.device, show_progress=not self.quiet)
        images, labels, facts = common.load_images(self.images, found.data, self.seed)
        x, y = images[:] if labels is None else (images, labels)
        x, y = (torch.as_tensor(part).to(self.device) for part in (x, y))
        with progress("measuring", 3, not self.quiet) as tick:
            rates = spike_rates(found.model, x, seed=self.seed)
            tick(1, "operations")
            counted = operations(found.model, x, seed=self.seed)
            tick(1, "latencies")
            accuracies = accuracy_by_latency(found.model, x, y, draws=self.draws, seed=self.seed)
            tick(1)
        spent = energy(counted)
        print(f"{found.name} on {facts['data']}: {len(x)} images, {self.draws} encoding(s) each")
        _table("spikes per neuron and step", [(name, f"{rate:.4f}") for name, rate in rates.items()])
        rows = [(o.layer, f"{o.active:,.0f} of {o.dense:,.0f}{'' if o.spikes else ' (not spikes)'}") for o in counted]
        _table("operations per image", rows)
        _table(
            "energy per image by arithmetic alone, 45 nm",
            [("spiking", f"{spent['spiking']:.3f} uJ"), ("without spikes, every step", f"{spent['dense']:.3f} uJ")],
        )
        _table("accuracy after step", [(str(t), f"{100 * a:.1f} %") for t, a in enumerate(accuracies, 1)])
        if self.to is not None:
            told = {
                "target": found.name, "images": len(x), "draws": self.draws, "seed": self.seed, **facts,
                "spike rates": rates, "operations": [asdict(o) for o in counted], "microjoules": spent,
                "accuracy by latency": accuracies, "provenance": provenance(),
            }  # fmt: skip
            self.to.parent.mkdir(parents=True, exist_ok=True)
            write_json(self.to, told)
            print(f"numbers: {self.to}")


def _table(title: str, rows: list[tuple[str, str]]) -> None:
    width = max(len(name) for name, _ in rows)
    print(f"\n{title}:")
    for name, value in rows:
        print(f"  {name:{width}}  {value}")
