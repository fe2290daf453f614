"""Reads a network into the few operations that a verifier knows: sums, elementwise maps, steps, pools, stacks.

The forward is traced (`torch.fx`), so any module whose forward is straight-line code over known layers is read:
dense and convolutional layers, binarised ones, batch norm in eval mode, ReLU, sign and threshold units, flatten, zero
padding, max pooling behind a step, and arithmetic with constants. Everything else is refused by name, also an
argument of a known function that is not read. Elementwise maps are kept until a step folds them into thresholds
(`exact_fold`), or until something else needs their values.
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
from stochade.certify.exact_planes import convolution, windows, zero_padding
from stochade.certify.exact_trace import trace
from stochade.errors import ModelError
from stochade.models.known_answer import Threshold
from stochade.nn.binarised import BinaryConv2d, BinaryLinear, BinaryWeight, ScaledReLU
from stochade.nn.binary import DeterministicBinary, Sign
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
    """`values[1]` where the cut says high, `values[0]` where it says low; `chain` is what the cut has folded in."""

    cuts: Cuts
    values: tuple[float, float]
    chain: Chain = ()


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


def read(model: nn.Module, shape: tuple[int, ...], dtype: torch.dtype) -> list[Op]:
    """The operations of a model for images of this shape and type; the last one gives the logits.

    Raises:
        ModelError: layers, operations or arguments that are not read, or a forward with branches.
    """
    graph = trace(model)
    reader = _Reader(model, graph, shape, dtype)
    last = next(node for node in graph.nodes if node.op == "output").args[0]
    value = reader.of(last)
    if not isinstance(value, _Value) or len(value.shape) != 1:
        came = f"an output of {list(value.shape)} for each example" if isinstance(value, _Value) else "another output"
        raise ModelError("logits [N,K]", came)
    reader.settled(value)
    return reader.ops


@dataclass(frozen=True)
class _Value:
    """A value while reading: an operation's output behind elementwise maps that wait."""

    at: int
    shape: tuple[int, ...]
    chain: Chain = ()


class _Reader:
    def __init__(self, model: nn.Module, graph: fx.Graph, shape: tuple[int, ...], dtype: torch.dtype):
        self.modules, self.model, self.dtype = dict(model.named_modules()), model, dtype
        self.unit, self.tiny = Fraction(torch.finfo(dtype).eps) / 2, Fraction(torch.finfo(dtype).tiny)
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
        options = {key: self.of(a) for key, a in node.kwargs.items()}
        if node.op == "call_module":
            name = str(node.target)
            if len(arguments) != 1 or options or not isinstance(arguments[0], _Value):
                raise ModelError("a layer called on one value of the images", f"other arguments of {name}", _HINT)
            if isinstance(self.modules[name], nn.ReLU) and self.modules[name].inplace:
                self._check_owned(node.args[0], f"ReLU(inplace=True) ({name})")
            return self._layer(name, self.modules[name], arguments[0])
        return self._function(node, arguments, options)

    def _check_owned(self, node: Any, name: str) -> None:
        """ModelError unless an in-place operation is the only one that sees its argument's memory."""
        while isinstance(node, fx.Node) and len(node.users) == 1 and node.op == "call_module":
            kind = type(self.modules[str(node.target)])
            if kind in _FRESH:
                return
            if kind not in _VIEWS:
                break
            node = node.args[0]
        raise ModelError(
            "in-place operations directly behind a layer, on what nothing else uses", name, "set inplace=False"
        )

    def _layer(self, name: str, layer: nn.Module, value: _Value) -> _Value:
        kind = type(layer)
        if kind in _VIEWS and kind is not nn.Flatten:
            if getattr(layer, "training", False) and getattr(layer, "p", 0):
                raise ModelError("a model in eval mode", f"active dropout in {name}", "call model.eval()")
            return value
        if kind is nn.Flatten and (layer.start_dim, layer.end_dim) == (1, -1):
            return _flat(value)
        if kind is nn.Linear or kind is WideLinear:
            return self._dense(value, layer.weight, layer.bias)  # type: ignore[arg-type]
        if isinstance(layer, BinaryLinear) and kind is BinaryLinear and type(layer.binary) is BinaryWeight:
            return self._dense(value, layer.binary.hard(layer.weight), None)
        if kind is nn.Conv2d and layer.padding_mode == "zeros" and not isinstance(layer.padding, str):  # type: ignore[union-attr]
            return self._convolve(value, layer.weight, layer.bias, layer)  # type: ignore[arg-type]
        if isinstance(layer, BinaryConv2d) and kind is BinaryConv2d and type(layer.binary) is BinaryWeight:
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
        made = _STEPS.get(kind)
        if made is not None:
            return self._step(value, *made(self.unit))
        raise ModelError("layers that are verified exactly", f"{kind.__name__} ({name})", _HINT)

    def _function(self, node: fx.Node, arguments: list[Any], options: dict[str, Any]) -> Any:
        """A function or a method, by identity and with all of its arguments."""
        target = node.target
        name = target if isinstance(target, str) else getattr(target, "__name__", str(target))
        kind, parameters = _KNOWN.get(target, ("", ()))
        unread = [key for key in options if key not in parameters[len(arguments) :]]
        if kind and (unread or len(arguments) > len(parameters)):
            raise ModelError(
                f"{name}({', '.join(parameters)})", f"another argument of {name}" + "".join(f", {k}" for k in unread),
                "only these are verified exactly",
            )  # fmt: skip
        given = {**dict(zip(parameters, arguments, strict=False)), **options}
        found = self._known(kind, node, given) if kind else None
        if found is None:
            raise ModelError("operations that are verified exactly", f"{name} of these arguments", _HINT)
        return found

    def _known(self, kind: str, node: fx.Node, given: dict[str, Any]) -> Any:
        """What a known function gives; None for arguments that are not read."""
        value, other = given.get("input"), given.get("other")
        if kind == "getitem":
            return value if isinstance(value, _Sizes) and _is(other, 0) else None
        if kind == "stack":
            parts = given.get("tensors")
            read = list(parts) if _is(given.get("dim"), 1) and isinstance(parts, list | tuple) else [None]
            read = [self.of(part) for part in read]
            if not all(isinstance(part, _Value) and part.shape == () for part in read):
                return None
            read = [self.settled(part) for part in read]
            return self._add("stack", tuple(part.at for part in read), (len(read),))
        if kind in ("add", "mul") and isinstance(other, _Value) and not isinstance(value, _Value):
            value, other = other, value
        if not isinstance(value, _Value):
            return None
        if kind in ("add", "sub", "mul", "div"):
            return self._arithmetic(kind, value, other)
        if kind == "size":
            return _Sizes() if "dim" not in given or _is(given["dim"], 0) else None
        if kind == "getattr":
            return _Sizes() if other == "shape" else None
        if kind in ("relu", "relu_"):
            if kind == "relu_" or given.get("inplace", False) is not False:
                self._check_owned(node.args[0] if node.args else None, "an in-place relu")
            return _Value(value.at, value.shape, (*value.chain, Relu()))
        if kind == "flatten":
            whole = _is(given.get("start_dim"), 1) and _is(given.get("end_dim", -1), -1)
            return _flat(value) if whole else None
        if kind == "view":
            return _flat(value) if isinstance(given.get("first"), _Sizes) and _is(given.get("second"), -1) else None
        if kind == "linear":
            weight, bias = given.get("weight"), given.get("bias")
            if not isinstance(weight, Tensor) or not (bias is None or isinstance(bias, Tensor)):
                return None
            return self._dense(value, weight, bias) if weight.dim() == 2 else None
        if kind == "matmul":
            if not isinstance(other, Tensor) or other.dim() not in (1, 2):
                return None
            out = self._dense(value, other.t() if other.dim() == 2 else other[None], None)
            return out if other.dim() == 2 else _Value(out.at, (), out.chain)
        return self._affine(value, gamma=-1)  # neg

    def _arithmetic(self, kind: str, value: _Value, constant: Any) -> _Value | None:
        if not isinstance(constant, int | float | Tensor):
            return None
        if kind == "add":
            return self._affine(value, beta=constant)
        if kind == "sub":
            return self._affine(value, mean=constant)
        return self._affine(value, gamma=constant, invert=kind == "div")

    def _affine(self, value: _Value, gamma: Any = 1, mean: Any = 0, beta: Any = 0, invert: bool = False) -> _Value:
        """gamma (v - mean) + beta with constants that broadcast over one example."""
        columns = [self._spread(c, value.shape) for c in (gamma, mean, beta)]
        rows, index = np.unique(np.stack(columns, 1), axis=0, return_inverse=True)
        if invert and (rows[:, 0] == 0).any():
            raise ModelError("a divisor that is not zero", "zero")
        table = tuple(
            (1 / Fraction(g) if invert else Fraction(g), Fraction(m), Fraction(1), Fraction(b)) for g, m, b in rows
        )
        return _Value(value.at, value.shape, (*value.chain, Norm(table, index.reshape(-1))))

    def _batch_norm(self, value: _Value, layer: Any) -> _Value:
        count = layer.num_features
        if layer.training or layer.running_mean is None or layer.running_var is None:
            raise ModelError("batch norm by running statistics", "statistics of the batch", "call model.eval()")
        if not value.shape or value.shape[0] != count:
            raise ModelError(f"{count} channels before a batch norm", f"shape {list(value.shape)}")
        gamma = torch.ones(count, dtype=self.dtype) if layer.weight is None else layer.weight
        beta = torch.zeros(count, dtype=self.dtype) if layer.bias is None else layer.bias
        tensors = (gamma, layer.running_mean, layer.running_var, beta)
        numbers = [[Fraction(v) for v in self._numbers(t).tolist()] for t in tensors]
        eps = Fraction(float(layer.eps))
        table = tuple((g, m, v + eps, b) for g, m, v, b in zip(*numbers, strict=True))
        least = min(q for _, _, q, _ in table)
        if least < self.tiny:
            raise ModelError("variances above 0 in a batch norm, eps added", f"{float(least)}")
        index = np.repeat(np.arange(count), math.prod(value.shape[1:]))
        return _Value(value.at, value.shape, (*value.chain, Norm(table, index)))

    def _step(self, value: _Value, cut: Cut, values: tuple[float, float]) -> _Value:
        cuts = fold(cut, value.chain, math.prod(value.shape), self.unit, self.tiny)
        return self._add(Step(cuts, values, value.chain), (value.at,), value.shape)

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
        if weight.shape[1] != value.shape[0] or (bias is not None and bias.shape != weight.shape[:1]):
            raise ModelError(f"weights [O,{value.shape[0]}] and a bias [O]", f"weights {list(weight.shape)}")
        matrix = sparse.csr_array(self._numbers(weight).numpy())
        shift = np.zeros(len(weight)) if bias is None else self._numbers(bias).numpy()
        return self._add(Sum(matrix, shift), (value.at,), (len(weight),))

    def _convolve(self, value: _Value, weight: Tensor, bias: Tensor | None, layer: Any) -> _Value:
        value = self.settled(value)
        dilation, groups = (1, 1) if type(layer) is BinaryConv2d else (layer.dilation, layer.groups)
        numbers = self._numbers(weight)
        matrix, shape = convolution(value.shape, numbers, layer.padding, layer.stride, dilation, groups)
        shift = np.zeros(len(weight)) if bias is None else self._numbers(bias).numpy()
        return self._add(Sum(matrix, np.repeat(shift, math.prod(shape[1:]))), (value.at,), shape)

    def _pad(self, value: _Value, padding: tuple[int, int, int, int]) -> _Value:
        value = self.settled(value)
        matrix, shape = zero_padding(value.shape, padding)
        return self._add(Sum(matrix, np.zeros(math.prod(shape)), exact=True), (value.at,), shape)

    def _pool(self, value: _Value, layer: Any) -> _Value:
        steps = value.at >= 0 and isinstance(self.ops[value.at].part, Step | Pool) and not value.chain
        if not steps or layer.return_indices or layer.ceil_mode:
            raise ModelError(
                "max pooling directly behind a step", "MaxPool2d elsewhere", "put the sign before the pool"
            )
        found, shape = windows(value.shape, layer)
        return self._add(Pool(found), (value.at,), shape)

    def _numbers(self, constant: Any) -> Tensor:
        """A constant in float64, as the model uses it: rounded to the images' type."""
        if isinstance(constant, Tensor):
            numbers = constant.detach()
            if numbers.dim() and numbers.is_floating_point() and numbers.dtype != self.dtype:  # others are rounded
                raise ModelError(
                    f"constants of the images' type, {self.dtype}", str(numbers.dtype), "convert the model"
                )
        else:
            numbers = torch.tensor(float(constant), dtype=torch.float64)
        numbers = numbers.to(self.dtype).double()
        if not bool(numbers.isfinite().all()):
            raise ModelError("finite constants and parameters", "nan or infinite ones")
        return numbers

    def _spread(self, constant: Any, shape: tuple[int, ...]) -> np.ndarray:
        """A constant as float64 over the units of one example, [M]."""
        numbers = self._numbers(constant)
        if numbers.dim() == len(shape) + 1 and numbers.shape[0] == 1:
            numbers = numbers[0]
        fits = numbers.dim() <= len(shape) and all(
            a in (1, b) for a, b in zip(reversed(numbers.shape), reversed(shape), strict=False)
        )
        if not fits:
            raise ModelError(f"constants that fit one example of {list(shape)}", f"shape {list(numbers.shape)}")
        return numbers.expand(shape).reshape(-1).numpy()


class _Sizes:
    """A size of the input, which only a reshape may use."""


def _is(value: Any, number: int) -> bool:
    return type(value) is int and value == number


def _flat(value: _Value) -> _Value:
    return _Value(value.at, (math.prod(value.shape),), value.chain)


_VIEWS = (nn.Identity, nn.Dropout, nn.Dropout2d, nn.Flatten)  # may give their input itself
_FRESH = (nn.Linear, WideLinear, BinaryLinear, nn.Conv2d, BinaryConv2d, nn.BatchNorm1d, nn.BatchNorm2d)
_TWO = ("input", "other")
_KNOWN: dict[Any, tuple[str, tuple[str, ...]]] = {
    **dict.fromkeys((operator.add, torch.add), ("add", _TWO)),
    **dict.fromkeys((operator.sub, torch.sub), ("sub", _TWO)),
    **dict.fromkeys((operator.mul, torch.mul), ("mul", _TWO)),
    **dict.fromkeys((operator.truediv, torch.div), ("div", _TWO)),
    **dict.fromkeys((operator.matmul, torch.matmul, "matmul"), ("matmul", _TWO)),
    **dict.fromkeys((operator.neg, torch.neg, "neg"), ("neg", ("input",))),
    **dict.fromkeys((torch.relu, "relu"), ("relu", ("input",))),
    **dict.fromkeys((torch.relu_, "relu_"), ("relu_", ("input",))),
    **dict.fromkeys((torch.flatten, "flatten"), ("flatten", ("input", "start_dim", "end_dim"))),
    **dict.fromkeys(("view", "reshape"), ("view", ("input", "first", "second"))),
    F.relu: ("relu", ("input", "inplace")),
    F.linear: ("linear", ("input", "weight", "bias")),
    torch.stack: ("stack", ("tensors", "dim")),
    "size": ("size", ("input", "dim")),
    getattr: ("getattr", _TWO),
    operator.getitem: ("getitem", _TWO),
}
_Made = tuple[Cut, tuple[float, float]]
_ZERO = Fraction(0)
_STEPS: dict[type, Callable[[Fraction], _Made]] = {
    Sign: lambda unit: (Cut(_ZERO, _ZERO), (-1.0, 1.0)),
    Threshold: lambda unit: (Cut(_ZERO, _ZERO), (0.0, 1.0)),
    # round(sigmoid(a)): 1 above 0; but sigmoid rounds to 1/2, and that to 0, for the least positive numbers
    DeterministicBinary: lambda unit: (Cut(Fraction(1, 1 << 1100), 16 * unit), (0.0, 1.0)),
}
