"""What a model is besides its printed form and its tensors: plain attributes, closures, code of its own.

Not everything that a model's answers depend on can be seen (globals, files, functions that functions call): equal
digests do not prove that two models are one.
"""

import inspect
from collections.abc import Mapping
from types import CodeType, FunctionType, MethodType
from typing import Any

from torch import Tensor, nn

from stochade.describe import describe, digest, fingerprint_model

_KNOWN = ("torch", "stochade")  # packages whose versions are in the provenance
_USUAL = frozenset(vars(nn.Module()))


def fingerprint(model: object) -> str:
    """sha256 over `fingerprint_model` and over the plain attributes of every module, the code of modules that are not
    of torch or of this package, and code, defaults and closures of functions."""
    return digest([fingerprint_model(model), _told(model, set())])


def _told(value: Any, seen: set[int]) -> object:
    """A description without addresses; what was met before, or is of another kind, by its type alone."""
    if value is None or isinstance(value, bool | int | float | str | bytes | Tensor):
        return describe(value) if not isinstance(value, bytes) else value.hex()
    if id(value) in seen:
        return type(value).__qualname__
    seen.add(id(value))
    if isinstance(value, nn.Module):
        return [type(value).__qualname__, fingerprint_model(value), *(_module(m, seen) for m in value.modules())]
    if isinstance(value, FunctionType):
        return _function(value, seen)
    if isinstance(value, MethodType):
        return [_function(value.__func__, seen), _told(value.__self__, seen)]
    if isinstance(value, list | tuple):
        return [_told(one, seen) for one in value]
    if isinstance(value, Mapping):
        return [[_told(k, seen), _told(v, seen)] for k, v in value.items()]
    return [type(value).__qualname__, _parts(value, seen), _methods(type(value))]


def _module(module: nn.Module, seen: set[int]) -> object:
    """The attributes and methods of one module, without those below it."""
    plain = {
        name: describe(value)
        for name, value in sorted(vars(module).items())
        if (name == "training" or name not in _USUAL) and isinstance(value, bool | int | float | str)
    }
    own = {n: _told(v, seen) for n, v in sorted(vars(module).items()) if isinstance(v, FunctionType | MethodType)}
    return [type(module).__qualname__, plain, own, _methods(type(module))]


def _parts(value: object, seen: set[int]) -> object:
    """The attributes of an object, such as a partial or one with __call__."""
    parts = {name: _told(part, seen) for name, part in sorted(getattr(value, "__dict__", {}).items())}
    for name in ("func", "args", "keywords"):  # of functools.partial
        if hasattr(value, name):
            parts[name] = _told(getattr(value, name), seen)
    return parts


def _methods(kind: type) -> object:
    """Code of the methods that a class brings or inherits from classes that are no part of a known package."""
    own = [k for k in kind.__mro__ if k.__module__.partition(".")[0] not in (*_KNOWN, "builtins", "functools")]
    return [
        {name: _code(part.__code__) for name, part in sorted(vars(k).items()) if inspect.isfunction(part)}
        for k in own
    ]


def _function(function: FunctionType, seen: set[int]) -> object:
    cells = []
    for cell in function.__closure__ or ():
        try:
            cells.append(_told(cell.cell_contents, seen))
        except ValueError:  # not filled yet
            cells.append(None)
    return [_code(function.__code__), _told(function.__defaults__, seen), _told(function.__kwdefaults__, seen), cells]


def _code(code: CodeType) -> list:
    """Bytes, names and constants, functions in it included; neither lines nor addresses."""
    constants = [_code(one) if isinstance(one, CodeType) else _constant(one) for one in code.co_consts]
    return [code.co_code.hex(), list(code.co_names), list(code.co_freevars), constants]


def _constant(value: object) -> str:
    """Sets have no order of their own."""
    return repr(sorted(map(repr, value))) if isinstance(value, frozenset) else repr(value)
