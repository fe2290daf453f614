"""Seeds, per-example random streams, and the caller's generators left as they were.

Two kinds of randomness never mix. A model draws from the global generators, which `forked` seeds for a block
and then restores. An attack draws from a `Stream`: a counter-based function of (seed, identity of the
example), so an image gets the same numbers whatever else is in its batch and on whatever device.
"""

import hashlib
import math
import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

_MASK63 = (1 << 63) - 1
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as int64, the increment of splitmix64
_MIX1 = -4658895280553007687  # 0xBF58476D1CE4E5B9
_MIX2 = -7723592293110705685  # 0x94D049BB133111EB


def seed_for(*parts: object) -> int:
    """A 63-bit seed that depends on every part and its place: `seed_for(seed, "pgd", chunk)`."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in parts)
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") & _MASK63


def identities(images: Tensor, labels: Tensor) -> Tensor:
    """The identity [N] (int64) of each example: a hash of its image and label, bit for bit."""
    pixels = images.detach().cpu().contiguous().flatten(1).view(torch.uint8).numpy()  # NumPy has no bfloat16
    values = labels.detach().cpu().numpy()
    digests = [
        hashlib.blake2b(row.tobytes() + int(y).to_bytes(8, "little", signed=True), digest_size=8).digest()
        for row, y in zip(pixels, values, strict=True)
    ]
    return torch.from_numpy(np.frombuffer(b"".join(digests), dtype="<i8").copy())


def _shift(z: Tensor, bits: int) -> Tensor:
    """Logical right shift of int64 (torch shifts arithmetically)."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def _mix(z: Tensor) -> Tensor:
    """The output function of splitmix64 (Steele, Lea, Flood 2014); int64 wraps around."""
    z = (z ^ _shift(z, 30)) * _MIX1
    z = (z ^ _shift(z, 27)) * _MIX2
    return z ^ _shift(z, 31)


class Stream:
    """A stream of random numbers per example: row i depends on the seed, on ids[i] and on how many draws were
    made before, and on nothing else (not on the batch, its order, or the device).

    Args:
        seed: the attack's seed.
        ids: [N] int64, identity of each example (`identities`, or the caller's own numbering).
    """

    def __init__(self, seed: int, ids: Tensor, _key: Tensor | None = None):
        self.seed, self.ids = seed, ids
        base = seed_for(seed) - (1 << 62)
        self._key = _mix(_mix(ids + base) * _GOLDEN + base) if _key is None else _key
        self._drawn = 0

    def __len__(self) -> int:
        return len(self.ids)

    def _bits(self, shape: Sequence[int]) -> Tensor:
        n = math.prod(shape)
        counter = torch.arange(self._drawn + 1, self._drawn + n + 1, device=self._key.device)
        self._drawn += n
        return _mix(self._key[:, None] + counter[None, :] * _GOLDEN).view(len(self.ids), *shape)

    def uniform(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Uniform numbers in the open interval (0, 1), [N, *shape]."""
        return ((_shift(self._bits(shape), 40).to(torch.float64) + 0.5) * 2.0**-24).to(dtype).clamp_(max=1 - 2.0**-24)

    def normal(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Standard normal numbers [N, *shape], by the inverse of the distribution function."""
        bits = self._bits(shape)
        u = (_shift(bits, 11).to(torch.float64) + 0.5) * 2.0**-53
        return torch.special.ndtri(u).to(dtype)

    def exponential(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Exponential numbers of mean one [N, *shape]."""
        u = (_shift(self._bits(shape), 11).to(torch.float64) + 0.5) * 2.0**-53
        return (-torch.log(u)).to(dtype)

    def signs(self, shape: Sequence[int], dtype: torch.dtype = torch.float32) -> Tensor:
        """Fair signs in {-1, 1}, [N, *shape]."""
        return (_shift(self._bits(shape), 63).to(dtype) * 2) - 1

    def subset(self, index: Tensor) -> "Stream":
        """The streams of some examples, going on where this one stands."""
        part = Stream(self.seed, self.ids[index], self._key[index])
        part._drawn = self._drawn
        return part

    @property
    def drawn(self) -> int:
        """How many numbers every example has drawn."""
        return self._drawn

    def skip(self, count: int) -> None:
        """As if so many numbers more had been drawn."""
        self._drawn += count

    def ahead(self, copies: int, pace: int) -> "Stream":
        """[copies * N] streams: copy j of an example gives what this one gives after j * pace numbers more. This one
        stays where it is."""
        shift = (torch.arange(copies, device=self._key.device) * pace * _GOLDEN).repeat_interleave(len(self))
        whole = Stream(self.seed, self.ids.repeat(copies), self._key.repeat(copies) + shift)
        whole._drawn = self._drawn
        return whole

    @staticmethod
    def joined(streams: Sequence["Stream"]) -> "Stream":
        """Rows of several streams, each of which goes on with its own numbers. All must have drawn alike; what comes
        out can be drawn from and made smaller, not forked."""
        if len({stream._drawn for stream in streams}) != 1:
            raise RuntimeError("streams that are joined must have drawn as much")
        whole = Stream(streams[0].seed, torch.cat([s.ids for s in streams]), torch.cat([s._key for s in streams]))
        whole._drawn = streams[0]._drawn
        return whole

    def fork(self, *purpose: object) -> "Stream":
        """Independent streams of the same examples for another purpose."""
        return Stream(seed_for(self.seed, "fork", *purpose), self.ids)


def _accelerator_states() -> dict[str, list[Tensor] | Tensor]:
    states: dict[str, list[Tensor] | Tensor] = {}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        states["cuda"] = torch.cuda.get_rng_state_all()
    if torch.backends.mps.is_available():
        states["mps"] = torch.mps.get_rng_state()
    return states


@contextmanager
def forked(seed: int | None = None) -> Iterator[None]:
    """Leaves torch's, NumPy's and Python's global generators as they were, also after an exception.

    Args:
        seed: seeds all of them inside the block; None lets them go on from where they stand.
    """
    saved = torch.get_rng_state(), _accelerator_states(), np.random.get_state(), random.getstate()  # noqa: NPY002
    try:
        if seed is not None:
            reseed(seed)
        yield
    finally:
        torch.set_rng_state(saved[0])
        if "cuda" in saved[1]:
            torch.cuda.set_rng_state_all(saved[1]["cuda"])  # type: ignore[arg-type]
        if "mps" in saved[1]:
            torch.mps.set_rng_state(saved[1]["mps"])  # type: ignore[arg-type]
        np.random.set_state(saved[2])  # noqa: NPY002
        random.setstate(saved[3])


def reseed(seed: int) -> None:
    """Seed every global generator a model may draw from. Only inside `forked`."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)  # noqa: NPY002
    random.seed(seed)


def fingerprint() -> tuple:
    """The state of the global generators, comparable: equal before and after means nothing was drawn."""
    numpy_state = np.random.get_state()  # noqa: NPY002
    accelerators = [
        state.numpy().tobytes()
        for value in _accelerator_states().values()
        for state in (value if isinstance(value, list) else [value])
    ]
    return (
        torch.get_rng_state().numpy().tobytes(),
        numpy_state[1].tobytes(),  # type: ignore[union-attr]
        numpy_state[2],  # type: ignore[index]
        random.getstate(),
        *accelerators,
    )


class FrozenNoise(nn.Module):
    """The model with its noise frozen: every call draws the same numbers, by reseeding inside a fork.

    This is the attacker who knows the generator's seed. Equal inputs give equal outputs only at an equal
    batch composition.
    """

    def __init__(self, model: nn.Module, seed: int):
        super().__init__()
        self.model, self.seed = model, seed

    def forward(self, x: Tensor) -> Tensor:
        with forked(self.seed):
            return self.model(x)


@contextmanager
def untouched(model: object) -> Iterator[None]:
    """Leaves the model as it was, also after an exception: modes, gradients, buffers and the tensors a stateful
    module keeps as plain attributes, and the global generators.

    Parameters take no gradient inside the block, which saves their share of every backward pass.
    """
    with forked():
        if not isinstance(model, nn.Module):
            yield
            return
        modes = [(m, m.training) for m in model.modules()]
        flags = [(p, p.requires_grad) for p in model.parameters()]
        gradients = [(p, p.grad) for p in model.parameters()]
        buffers = [
            (m, name, b, None if b is None else b.detach().clone())
            for m in model.modules()
            for name, b in m._buffers.items()
        ]
        state = [(m, _state(m)) for m in model.modules()]
        try:
            for p, _ in flags:
                p.requires_grad_(False)
            yield
        finally:
            for m, training in modes:
                m.training = training
            for p, flag in flags:
                p.requires_grad_(flag)
            for p, gradient in gradients:
                p.grad = gradient
            for m, name, buffer, copy in buffers:
                m._buffers[name] = buffer
                _put_back(buffer, copy)
            for m, attributes in state:
                for name in [k for k in m.__dict__ if k not in attributes and _kept(k, m.__dict__[k])]:
                    del m.__dict__[name]
                for name, (value, copy) in attributes.items():
                    m.__dict__[name] = value
                    _put_back(value, copy)


_TORCH_OWN = frozenset(nn.Module().__dict__)  # parameters, buffers, children and hooks have rules of their own


def _kept(name: str, value: object) -> bool:
    """Whether an attribute may be state: tensors (not weights), numbers, None, and lists or dicts of such."""
    if name in _TORCH_OWN or isinstance(value, nn.Parameter):
        return False
    if isinstance(value, list | tuple | dict):
        items = value.values() if isinstance(value, dict) else value
        return all(item is None or isinstance(item, Tensor | int | float) for item in items) and not any(
            isinstance(item, nn.Parameter) for item in items
        )
    return value is None or isinstance(value, Tensor | int | float)


def _copied(value: object) -> object:
    """What a forward may overwrite in place, apart from the object itself."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, list | tuple):
        return [(item, _copied(item)) for item in value]
    if isinstance(value, dict):
        return {key: (item, _copied(item)) for key, item in value.items()}
    return None


def _state(module: nn.Module) -> dict[str, tuple[object, object]]:
    """Plain attributes that stateful layers keep (membrane tensors, counters, None before the first call, lists
    and dicts of them), each with a copy."""
    return {name: (value, _copied(value)) for name, value in module.__dict__.items() if _kept(name, value)}


def _put_back(value: object, copy: object) -> None:
    if isinstance(value, Tensor) and isinstance(copy, Tensor):
        if not _same(value, copy):  # an untouched tensor is left alone: a caller's pending backward may need it
            with torch.no_grad():
                value.copy_(copy)
    elif isinstance(value, list | tuple) and isinstance(copy, list):
        if isinstance(value, list):
            value[:] = [item for item, _ in copy]
        for item, before in copy:
            _put_back(item, before)
    elif isinstance(value, dict) and isinstance(copy, dict):
        for key in [key for key in value if key not in copy]:
            del value[key]
        for key, (item, before) in copy.items():
            value[key] = item
            _put_back(item, before)


def _same(value: Tensor, copy: Tensor) -> bool:
    if value.is_floating_point() or value.is_complex():
        return value.shape == copy.shape and bool(((value == copy) | (value.isnan() & copy.isnan())).all())
    return torch.equal(value, copy)
