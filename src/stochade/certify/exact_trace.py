"""The graph of a model's forward (`torch.fx`), for models whose graph says all that the forward does.

A trace records calls, so what changes a value without a call that returns it would be lost: in-place operators,
attributes of tensors that are set, forwards of single instances, hooks, state that a forward keeps. All are refused.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

import torch
from torch import Tensor, fx, nn
from torch.nn.modules import module as torch_modules

from stochade.errors import ModelError, StochadeError
from stochade.nn.discrete import Discrete

_CALLS = ("forward", "__call__", "_call_impl", "_wrapped_call_impl", "_slow_forward")
_IN_PLACE = (
    "add",
    "sub",
    "mul",
    "truediv",
    "floordiv",
    "mod",
    "pow",
    "matmul",
    "and",
    "or",
    "xor",
    "lshift",
    "rshift",
)


def check_layers(model: nn.Module) -> None:
    """ModelError for random layers, hooks, forwards that are swapped, and calls under autocast or where differences
    of small numbers become 0."""
    if torch.is_autocast_enabled("cpu"):
        raise ModelError("sums in the images' own precision", "autocast", "leave torch.autocast first")
    if float(torch.full((1,), torch.finfo(torch.float32).tiny) / 2) == 0:
        raise ModelError(
            "numbers that underflow gradually", "small ones flushed to zero", "torch.set_flush_denormal(False)"
        )
    if torch_modules._global_forward_hooks or torch_modules._global_forward_pre_hooks:
        raise ModelError(
            "layers without hooks", "a hook on all modules", "remove it: it may change what a layer gives"
        )
    for name, module in model.named_modules():
        _check(name or type(module).__name__, module)


def _check(name: str, module: nn.Module) -> None:
    if module._forward_hooks or module._forward_pre_hooks:
        raise ModelError(
            "layers without hooks", f"a hook on {name}", "remove it: a hook may change what a layer gives"
        )
    shadowed = [
        key for key in vars(module) if key in _CALLS or (_leaf(module) and callable(getattr(type(module), key, None)))
    ]
    if shadowed:
        raise ModelError(
            "layers that compute what their class says", f"an own {shadowed[0]} of the instance {name}",
            "write a class with that forward",
        )  # fmt: skip
    if type(module).__call__ is not nn.Module.__call__ or getattr(module, "_compiled_call_impl", None) is not None:
        raise ModelError(
            "layers that are called as nn.Module is", f"{type(module).__name__} ({name}) with an own call"
        )
    if isinstance(module, Discrete):
        if module._forward is not None:
            raise ModelError("layers with their own forward", f"a relaxed one in {name}", "leave forward_as first")
        if module.scope != "none":
            raise ModelError(
                "a deterministic network", f"{type(module).__name__} ({name}), which draws",
                "exact verification is about one function: certify random networks by smoothing",
            )  # fmt: skip


def _leaf(module: nn.Module) -> bool:
    if isinstance(module, nn.Sequential):
        return False
    return isinstance(module, Discrete) or type(module).__module__.startswith(("torch.nn.", "stochade.nn."))


@contextmanager
def unchanged(model: nn.Module) -> Iterator[None]:
    """ModelError where the block, which calls the model, changes its parameters or buffers."""
    before = {name: tensor.clone() for name, tensor in _tensors(model)}
    yield
    after = dict(_tensors(model))
    for name in sorted(before.keys() | after.keys()):
        if name not in before or name not in after or not _same(before[name], after[name]):
            raise ModelError("a forward that leaves the model as it is", f"one that changes {name}")


def _tensors(model: nn.Module) -> list[tuple[str, Tensor]]:
    return [*model.named_parameters(), *model.named_buffers()]


def _same(a: Tensor, b: Tensor) -> bool:
    return a.dtype == b.dtype and a.shape == b.shape and torch.allclose(a, b, rtol=0, atol=0, equal_nan=True)


def trace(model: nn.Module) -> fx.Graph:
    """The calls of a forward with one argument, the images.

    Raises:
        ModelError: a forward with branches, more arguments, in-place operators, or tensors made in it.
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
    inputs = [str(node.target) for node in graph.nodes if node.op == "placeholder"]
    if len(inputs) != 1 or inputs[0].startswith("*"):
        raise ModelError(
            "a forward of the images alone",
            f"forward({', '.join(inputs)})",
            "wrap it: forward(self, x) of one argument",
        )
    return graph


class _Proxy(fx.Proxy):
    """A traced value that nothing may change in place: a trace would read `h -= c` as a new value beside h."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name not in ("tracer", "node"):
            _refuse(f"tensor.{name} = ...")
        super().__setattr__(name, value)


def _refuse(what: str) -> NoReturn:
    raise ModelError("a forward that changes no tensor in place", what, "write h = h - c for h -= c")


def _in_place(name: str) -> Any:
    def refused(self: Any, other: Any) -> NoReturn:
        _refuse(f"an in-place operator ({name})")

    return refused


for _name in _IN_PLACE:
    setattr(_Proxy, f"__i{_name}__", _in_place(f"__i{_name}__"))


class _Tracer(fx.Tracer):
    def proxy(self, node: fx.Node) -> fx.Proxy:
        return _Proxy(node, self)

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
        return _leaf(m)
