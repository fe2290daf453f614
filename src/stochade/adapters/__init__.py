"""Networks of other spiking libraries as classifiers that attacks, evaluations and audits can trust.

None of these libraries is imported or needed here: their modules are known by what they have.
"""

from torch import nn

from stochade.adapters.canary import check_gradients
from stochade.adapters.norse import Norse
from stochade.adapters.snntorch import SNNTorch
from stochade.adapters.spikes import ForeignSpike
from stochade.adapters.spikingjelly import SpikingJelly
from stochade.adapters.stateful import Adapted
from stochade.errors import ModelError, UsageError

__all__ = ["ADAPTERS", "Adapted", "ForeignSpike", "Norse", "SNNTorch", "SpikingJelly", "adapt", "check_gradients"]

ADAPTERS: dict[str, type[Adapted]] = {"spikingjelly": SpikingJelly, "snntorch": SNNTorch, "norse": Norse}


def adapt(model: nn.Module, *, kind: str | None = None, **options) -> Adapted:
    """A spiking network of another library as a classifier: images [N,C,H,W] -> logits [N,K].

    Args:
        model: the network.
        kind: "spikingjelly", "snntorch" or "norse"; None: told by its neurons.
        options: of `Adapted`: steps, encoder, layout, step, readout, output, scope.

    Raises:
        ModelError: neurons of none or of several of these libraries. UsageError: an unknown kind or options that do
            not fit together.
    """
    if kind is not None and kind not in ADAPTERS:
        raise UsageError(f"a kind, one of {', '.join(ADAPTERS)}", repr(kind))
    if not isinstance(model, nn.Module):
        raise ModelError("a network (nn.Module)", type(model).__name__, "pass the module itself")
    kinds = [kind] if kind else [name for name, library in ADAPTERS.items() if library.neurons(model)]
    if len(kinds) != 1:
        got = f"neurons of {' and '.join(kinds)}" if kinds else "none"
        raise ModelError(f"neurons of one of {', '.join(ADAPTERS)}", got, "say kind=... to choose")
    return ADAPTERS[kinds[0]](model, **options)
