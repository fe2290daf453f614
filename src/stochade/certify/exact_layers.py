"""Reads a network into the few operations that a verifier knows: sums, elementwise maps, steps, pools, stacks.

The forward is traced (`torch.fx`), so any module whose forward is straight-line code over known layers is read:
dense and convolutional layers, binarised ones, batch norm in eval mode, ReLU, sign and threshold units, flatten, zero
padding, max pooling behind a step, and arithmetic with constants. Everything else is refused by name. Elementwise
maps are kept until a step folds them into thresholds (`exact_fold`), or until something else needs their values.
"""

import math
import operator
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from scipy import sparse
from torch import Tensor, fx, nn

from stochade.certify.exact_fold import Chain, Cut, Cuts, Norm, Relu, fold
from stochade.errors import ModelError, StochadeError
from stochade.nn.binarised import BinaryConv2d, BinaryLinear, ScaledReLU
from stochade.nn.discrete import Discrete
from stochade.nn.quantise import Quantise
from stochade.nn.wide_linear import WideLinear

_HINT = (
    "known: Linear, Conv2d, BinaryLinear, BinaryConv2d, BatchNorm, ReLU, ScaledReLU, Sign, DeterministicBinary, "
    "Threshold, Quantise(2), Flatten, ZeroPad2d, MaxPool2d behind a step, + - * / with constants"
)


@dataclass(frozen=True)
class Sum:
    """matrix @ v + shift; `exact`: every output is one input as it is, or zero."""

    matrix: sparse.csr_array
    shift: np.ndarray
    exact: bool = False


@dataclass(frozen=True)
class Step:
    """`values[1]` where the cut says high, `values[0]` where it says low."""

    cuts: Cuts
    values: tuple[float, float]


@dataclass(frozen=True)
class Pool:
    """The largest of some units of two levels: windows[i] are the inputs of output i."""

    windows: tuple[np.ndarray, ...]


@dataclass(frozen=True)
class Op:
    """One operation on the states of earlier ones. part: Sum, Norm, Relu, Step, Pool, or "stack".

    Attributes:
        sources: positions of its inputs in the program; -1 is the image. shape: of its output, one example.
    """

    part: Any
    sources: tuple[int, ...]
    shape: tuple[int, ...]


def read(model: nn.Module, shape: tuple[int, ...], unit: Fraction) -> list[Op]:
    """The operations of a model for images of this shape; the last one gives the logits.

    Args:
        unit: unit roundoff of the model's numbers.

    Raises:
        ModelError: layers that are unknown, or a forward with branches.
    """
    try:
        graph = _Tracer().trace(model)
    except StochadeError:
        raise
    except Exception as problem:
        raise ModelError(
            "a forward of known layers without branches", f"{type(problem).__name__}: {str(problem).splitlines()[0]}",
            "put the layers into an nn.Sequential",
        ) from problem  # fmt: skip
    reader = _Reader(model, graph, shape, unit)
    last = next(node for node in graph.nodes if node.op == "output").args[0]
    value = reader.settled(reader.of(last))
    if len(value.shape) != 1:
        raise ModelError("logits [N,K]", f"an output of {list(value.shape)} for each example")
    return reader.ops


def check_layers(model: nn.Module) -> None:
    """ModelError for random layers, hooks, and forwards that are swapped at the moment."""
    for name, module in model.named_modules():
        _check(name or type(model).__name__, module)


def _check(name: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise ModelError(
            "layers without hooks", f"a hook on {name}", "remove it: a hook may change what a layer gives"
        )
    if isinstance(module, Discrete):
        if module._forward is not None:
            raise ModelError("layers with their own forward", f"a relaxed one in {name}", "leave forward_as first")
        if module.scope != "none":
            raise ModelError(
                "a deterministic network", f"{type(module).__name__} ({name}), which draws",
                "exact verification is about one function: certify random networks by smoothing",
            )  # fmt: skip


class _Tracer(fx.Tracer):
    def create_arg(self, a: Any) -> Any:
        if isinstance(a, Tensor) and not isinstance(a, nn.Parameter):
            held = [*self.root.buffers(), *getattr(self, "tensor_attrs", {})]
            if not any(a is tensor for tensor in held):
                raise ModelError(
                    "constants that the model holds",
                    "a tensor made in its forward",
                    "make it a buffer; if it is drawn, the network is random: certify it by smoothing",
                )
        return super().create_arg(a)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        inside = isinstance(m, nn.Sequential)
        return not inside and (
            isinstance(m, Discrete) or type(m).__module__.startswith(("torch.nn.", "stochade.nn."))
        )


@dataclass(frozen=True)
class _Value:
    """A value while reading: an operation's output behind elementwise maps that wait."""

    at: int
    shape: tuple[int, ...]
    chain: Chain = ()


class _Reader:
    def __init__(self, model: nn.Module, graph: fx.Graph, shape: tuple[int, ...], unit: Fraction):
        self.modules, self.unit, self.model = dict(model.named_modules()), unit, model
        self.shape, self.ops, self.known = shape, [], {}
        self.graph = graph

    def of(self, node: Any) -> Any:
        """The value of a node: a _Value, or a constant."""
        if not isinstance(node, fx.Node):
            return node
        if node not in self.known:
            for earlier in self.graph.nodes:  # in order, so that deep networks need no deep recursion
                if earlier not in self.known and earlier.op != "output":
                    self.known[earlier] = self._read(earlier)
        return self.known[node]

    def _read(self, node: fx.Node) -> Any:
        if node.op == "placeholder":
            return _Value(-1, self.shape)
        if node.op == "get_attr":
            found: Any = self.model
            for part in str(node.target).split("."):
                found = getattr(found, part)
            return found.detach() if isinstance(found, Tensor) else found
        arguments = [self.of(a) for a in node.args]
        if node.op == "call_module":
            return self._layer(str(node.target), self.modules[str(node.target)], arguments[0])
        name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        return self._function(str(name), node.target, arguments, dict(node.kwargs))

    def _layer(self, name: str, layer: nn.Module, value: _Value) -> _Value:
        kind = type(layer)
        if kind in (nn.Identity, nn.Dropout, nn.Dropout2d):
            if getattr(layer, "training", False) and getattr(layer, "p", 0):
                raise ModelError("a model in eval mode", f"active dropout in {name}", "call model.eval()")
            return value
        if kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            return _Value(value.at, (math.prod(value.shape),), value.chain)
        if kind is nn.Linear or kind is WideLinear:
            return self._dense(value, layer.weight, layer.bias)  # type: ignore[arg-type]
        if isinstance(layer, BinaryLinear) and kind is BinaryLinear:
            return self._dense(value, layer.binary.hard(layer.weight), None)
        if kind is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):  # type: ignore[union-attr]
            return self._convolve(value, layer.weight, layer.bias, layer)  # type: ignore[arg-type]
        if isinstance(layer, BinaryConv2d) and kind is BinaryConv2d:
            return self._convolve(value, layer.binary.hard(layer.weight), None, layer)
        if kind in (nn.BatchNorm1d, nn.BatchNorm2d):
            return self._batch_norm(value, layer)
        if kind is nn.ReLU:
            return _Value(value.at, value.shape, (*value.chain, Relu()))
        if isinstance(layer, ScaledReLU) and kind is ScaledReLU:
            return self._affine(_Value(value.at, value.shape, (*value.chain, Relu())), gamma=layer.scale)
        if kind is nn.ZeroPad2d:
            return self._pad(value, layer.padding)  # type: ignore[arg-type]
        if kind is nn.MaxPool2d:
            return self._pool(value, layer)
        if kind is Quantise and layer.levels == 2:
            return self._step(value, Cut(Fraction(1, 2), Fraction(1, 2), strict=True), (0.0, 1.0))
        made = _STEPS.get(f"{kind.__module__}.{kind.__name__}")
        if made is not None:
            return self._step(value, *made(self.unit))
        raise ModelError("layers that are verified exactly", f"{kind.__name__} ({name})", _HINT)

    def _function(self, name: str, target: Any, arguments: list[Any], options: dict) -> Any:
        first = arguments[0] if arguments else None
        if isinstance(first, _Value) and (name, *arguments[1:]) in (("size", 0), ("getattr", "shape"), ("size",)):
            return _Sizes()
        if isinstance(first, _Sizes) and (name, *arguments[1:]) == ("getitem", 0):
            return first
        if name in ("relu", "relu_"):
            return _Value(first.at, first.shape, (*first.chain, Relu()))  # type: ignore[union-attr]
        flat = (
            (name == "flatten" and arguments[1:] == [1])
            or (name == "flatten" and options == {"start_dim": 1})
            or (name in ("view", "reshape") and isinstance(arguments[1], _Sizes) and arguments[2:] == [-1])
        )
        if flat and isinstance(first, _Value):
            return _Value(first.at, (math.prod(first.shape),), first.chain)
        if target in (F.linear,) and isinstance(first, _Value):
            given: list[Any] = [*arguments[1:], options.get("bias")]
            return self._dense(first, given[0], given[1])
        if name == "matmul" and isinstance(first, _Value) and isinstance(arguments[1], Tensor):
            weight = arguments[1]
            out = self._dense(first, weight.t() if weight.dim() == 2 else weight[None], None)
            return out if weight.dim() == 2 else _Value(out.at, (), out.chain)
        if name == "stack" and [*arguments[1:], *options.values()] == [1] and isinstance(first, list | tuple):
            parts = [self.settled(self.of(part)) for part in first]
            if all(part.shape == () for part in parts):
                return self._add("stack", tuple(part.at for part in parts), (len(parts),))
        if name == "neg" and isinstance(first, _Value):
            return self._affine(first, gamma=-1)
        made = self._arithmetic(target, arguments)
        if made is not None:
            return made
        raise ModelError("operations that are verified exactly", name, _HINT)

    def _arithmetic(self, target: Any, arguments: list[Any]) -> _Value | None:
        if len(arguments) != 2:
            return None
        value, constant = arguments
        if isinstance(constant, _Value) and target in (operator.add, operator.mul):
            value, constant = constant, value
        if not isinstance(value, _Value) or not isinstance(constant, int | float | Tensor):
            return None
        if target in (operator.add, torch.add):
            return self._affine(value, beta=constant)
        if target in (operator.sub, torch.sub):
            return self._affine(value, mean=constant)
        if target in (operator.mul, torch.mul):
            return self._affine(value, gamma=constant)
        if target in (operator.truediv, torch.div):
            return self._affine(value, gamma=constant, invert=True)
        return None

    def _affine(self, value: _Value, gamma: Any = 1, mean: Any = 0, beta: Any = 0, invert: bool = False) -> _Value:
        """gamma (v - mean) + beta with constants that broadcast over one example."""
        columns = [_spread(c, value.shape) for c in (gamma, mean, beta)]
        rows, index = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
        if invert and (rows[:, 0] == 0).any():
            raise ModelError("a divisor that is not zero", "zero")
        table = tuple(
            (1 / Fraction(g) if invert else Fraction(g), Fraction(m), Fraction(1), Fraction(b)) for g, m, b in rows
        )
        return _Value(value.at, value.shape, (*value.chain, Norm(table, index.reshape(-1))))

    def _batch_norm(self, value: _Value, layer: Any) -> _Value:
        count = layer.num_features
        ones, zeros = torch.ones(count), torch.zeros(count)
        gamma, beta = (ones, zeros) if layer.weight is None else (layer.weight, layer.bias)
        numbers = [_fractions(t) for t in (gamma, layer.running_mean, layer.running_var, beta)]
        eps = Fraction(float(layer.eps))
        table = tuple((g, m, v + eps, b) for g, m, v, b in zip(*numbers, strict=True))
        index = np.repeat(np.arange(count), math.prod(value.shape[1:]))
        return _Value(value.at, value.shape, (*value.chain, Norm(table, index)))

    def _step(self, value: _Value, cut: Cut, values: tuple[float, float]) -> _Value:
        units = math.prod(value.shape)
        return self._add(Step(fold(cut, value.chain, units, self.unit), values), (value.at,), value.shape)

    def settled(self, value: _Value) -> _Value:
        """The value with its waiting maps as operations of their own."""
        for part in value.chain:
            value = self._add(part, (value.at,), value.shape)
        return _Value(value.at, value.shape)

    def _add(self, part: Any, sources: tuple[int, ...], shape: tuple[int, ...]) -> _Value:
        self.ops.append(Op(part, sources, shape))
        return _Value(len(self.ops) - 1, shape)

    def _dense(self, value: _Value, weight: Tensor, bias: Tensor | None) -> _Value:
        value = self.settled(value)
        if len(value.shape) != 1:
            raise ModelError(
                "a flat input before a dense layer", f"shape {list(value.shape)}", "put an nn.Flatten first"
            )
        matrix = sparse.csr_array(weight.detach().double().numpy())
        shift = np.zeros(len(weight)) if bias is None else bias.detach().double().numpy()
        return self._add(Sum(matrix, shift), (value.at,), (len(weight),))

    def _convolve(self, value: _Value, weight: Tensor, bias: Tensor | None, layer: Any) -> _Value:
        value = self.settled(value)
        pairs = [(v, v) if isinstance(v, int) else v for v in (layer.padding, layer.stride)]
        dilation, groups = getattr(layer, "dilation", (1, 1)), getattr(layer, "groups", 1)
        channels, size = weight.shape[0] // groups, value.shape[0] // groups
        places = torch.arange(1, math.prod(value.shape) + 1).double().view(1, *value.shape)
        kernels = weight.detach().double().flatten(1).numpy()
        rows, columns, entries, area = [], [], [], 0
        for group in range(groups):
            part = places[:, group * size : (group + 1) * size]
            field = F.unfold(part, weight.shape[2:], dilation, *pairs)[0].long().numpy()  # type: ignore[arg-type]
            inside, area = field > 0, field.shape[1]
            for out in range(group * channels, (group + 1) * channels):
                rows.append(out * area + np.nonzero(inside)[1])
                columns.append(field[inside] - 1)
                entries.append(np.broadcast_to(kernels[out][:, None], field.shape)[inside])
        shape = (len(weight) * area, math.prod(value.shape))
        where = (np.concatenate(rows), np.concatenate(columns))
        matrix = sparse.csr_array((np.concatenate(entries), where), shape=shape)
        shift = np.zeros(len(weight)) if bias is None else bias.detach().double().numpy()
        (ph, pw), (sh, sw) = pairs
        height = (value.shape[1] + 2 * ph - dilation[0] * (weight.shape[2] - 1) - 1) // sh + 1
        width = (value.shape[2] + 2 * pw - dilation[1] * (weight.shape[3] - 1) - 1) // sw + 1
        return self._add(Sum(matrix, np.repeat(shift, area)), (value.at,), (len(weight), height, width))

    def _pad(self, value: _Value, padding: tuple[int, int, int, int]) -> _Value:
        value = self.settled(value)
        places = torch.arange(1, math.prod(value.shape) + 1).double().view(1, *value.shape)
        padded = F.pad(places, padding)[0].long()
        flat = padded.flatten().numpy()
        here = np.nonzero(flat)[0]
        matrix = sparse.csr_array(
            (np.ones(len(here)), (here, flat[here] - 1)), shape=(len(flat), math.prod(value.shape))
        )
        return self._add(Sum(matrix, np.zeros(len(flat)), exact=True), (value.at,), tuple(padded.shape))

    def _pool(self, value: _Value, layer: Any) -> _Value:
        steps = value.at >= 0 and isinstance(self.ops[value.at].part, Step | Pool) and not value.chain
        if not steps or layer.return_indices or layer.ceil_mode:
            raise ModelError(
                "max pooling directly behind a step", "MaxPool2d elsewhere", "put the sign before the pool"
            )
        places = torch.arange(1, math.prod(value.shape) + 1).double().view(value.shape[0], 1, *value.shape[1:])
        sizes = (layer.kernel_size, layer.dilation, layer.padding, layer.stride)
        kernel, dilation, padding, stride = ((v, v) if isinstance(v, int) else v for v in sizes)
        field = F.unfold(places, kernel, dilation, padding, stride).long()
        out = F.max_pool2d(places, kernel, stride, padding, dilation)
        windows = tuple(w[w > 0] - 1 for w in field.transpose(1, 2).reshape(-1, field.shape[1]).numpy())
        return self._add(Pool(windows), (value.at,), (out.shape[0], *out.shape[2:]))


class _Sizes:
    """A size of the input, which only a reshape may use."""


def _fractions(t: Tensor) -> list[Fraction]:
    return [Fraction(v) for v in t.detach().double().tolist()]


def _spread(constant: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A constant as float64 over the units of one example, [M]."""
    numbers = torch.as_tensor(constant, dtype=torch.float64).detach()
    if numbers.dim() > len(shape):
        if numbers.dim() != len(shape) + 1 or numbers.shape[0] != 1:
            raise ModelError(f"constants that fit one example of {list(shape)}", f"shape {list(numbers.shape)}")
        numbers = numbers[0]
    return numbers.expand(shape).reshape(-1).numpy()


_Made = tuple[Cut, tuple[float, float]]
_ZERO = Fraction(0)
_STEPS: dict[str, Callable[[Fraction], _Made]] = {
    "stochade.nn.binary.Sign": lambda unit: (Cut(_ZERO, _ZERO), (-1.0, 1.0)),
    "stochade.models.known_answer.Threshold": lambda unit: (Cut(_ZERO, _ZERO), (0.0, 1.0)),
    # round(sigmoid(a)): 1 above 0; but sigmoid rounds to 1/2, and that to 0, for the least positive numbers
    "stochade.nn.binary.DeterministicBinary": lambda unit: (Cut(Fraction(1, 1 << 1100), 16 * unit), (0.0, 1.0)),
}
