"""The exact gradient of one loss over a batch that the encoder cannot take at once (GradCache, Gao et al. 2021).

The chunks are encoded without a graph; the loss of all embeddings gives the gradient of each; the chunks are encoded
again, one at a time with its graph, and hand that gradient on. It costs one more forward pass of the encoder.
"""

import contextlib
import copy
import random
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from merc_kernels._shared import checks

Encoder = Callable[..., Any]


def cached_backward(
    encoder: Encoder | Sequence[Encoder],
    inputs: Any,
    loss: Callable[..., Tensor],
    *,
    chunk_size: int | Sequence[int],
    backward: Callable[[Tensor], object] = Tensor.backward,
) -> Tensor:
    """``loss(encoder(inputs)).backward()``, with the activations of ``chunk_size`` rows in memory at a time.

    For a batch of several inputs, give several encoders (the same one twice, for two views)::

        value = cached_backward([image, text], [pixels, tokens], lambda a, b: clip_loss(a, b, labels), chunk_size=64)

    Both passes of a chunk see the same random numbers (torch's on each device in use, Python's and NumPy's), so the
    same dropout, and the autocast of the caller. What the loss itself learns (a temperature, prototypes) gets its
    gradient too. Buffers that a module changes as it runs end as after one pass; batch norm, though, normalises each
    chunk by itself. Under DDP the gradients are averaged once, with the last chunk.

    Args:
        encoder: a module or function that gives a tensor of a row for each row of its input, or a tuple, list or
            mapping of such; or a list of encoders. Give a module as such, not a function around it, for its buffers,
            for `no_sync` of DDP, and for random numbers on a GPU that no input lies on.
        inputs: a tensor; a tuple or list, handed over as arguments; or a mapping, as arguments by keyword; or, for a
            list of encoders, a list of these. Tensors in it, at any depth, are cut along their first dimension; all
            else, and tensors of no dimension, goes to each chunk as it is.
        loss: gives a scalar of what the encoders give of all rows, one argument for each encoder.
        chunk_size: rows that are encoded at a time; a list, where encoders differ.
        backward: sends the loss back, as ``lambda loss: scaler.scale(loss).backward()`` or ``accelerator.backward``.

    Returns:
        The loss, detached. Gradients are added to ``.grad``, as by `backward`.

    Raises:
        ValueError: a ``chunk_size`` below 1, inputs without a tensor or of different lengths or that need a gradient
            through a graph of their own, an encoder that gives no row for each row, a loss that is no scalar or needs
            no gradient; or gradients are off.
    """
    if not torch.is_grad_enabled():
        raise ValueError("cached_backward: expected gradients to be on, got a call under torch.no_grad()")
    several = isinstance(encoder, (list, tuple, nn.ModuleList))
    encoders: Sequence[Encoder] = list(encoder) if several else [encoder]  # type: ignore[arg-type, list-item]
    batches = list(inputs) if several else [inputs]
    sizes = list(chunk_size) if isinstance(chunk_size, Sequence) else [chunk_size] * len(encoders)
    for name, given in (("inputs", batches), ("chunk_size", sizes)):
        if len(given) != len(encoders):
            checks.fail(name, f"one for each of {len(encoders)} encoders", len(given))
    towers = [_Tower(*each) for each in zip(encoders, batches, sizes, strict=True)]
    buffers = _Buffers(encoders)
    with torch.no_grad():
        outputs = [tower.encode() for tower in towers]
    buffers.note_changes()

    value = loss(*outputs)
    if not (isinstance(value, Tensor) and value.dim() == 0 and value.requires_grad):
        checks.fail("loss", "a function that gives a scalar which requires a gradient", value)
    with _without_autocast(value):
        backward(value)

    torch.clear_autocast_cache()  # of weights cast in the first pass, which have no graph
    buffers.set_back()
    for number, tower in enumerate(towers):
        tower.send_back(synchronize=all(other.encoder is not tower.encoder for other in towers[number + 1 :]))
    buffers.set_forth()
    return value.detach()


class _Tower:
    """An encoder with its chunks, and what it gave of all of them."""

    def __init__(self, encoder: Encoder, inputs: Any, size: int) -> None:
        checks.integer("chunk_size", size)
        if size < 1:
            checks.fail("chunk_size", "an int >= 1", size)
        tensors = [x for x in _tensors(inputs) if x.dim()]
        if not tensors or any(len(x) != len(tensors[0]) for x in tensors):
            checks.fail("inputs", "tensors of the same number of rows", [tuple(x.shape) for x in tensors])
        if any(x.requires_grad and not x.is_leaf for x in tensors):
            checks.fail("inputs", "tensors without a graph of their own (detach them)", "one with a grad_fn")
        self.encoder, self.inputs = encoder, inputs
        self.rows = len(tensors[0])
        self.chunks = [slice(start, start + size) for start in range(0, max(self.rows, 1), size)]
        self.devices = {x.device for x in [*tensors, *_parameters(encoder)]}
        self.states: list[_RandomState] = []
        self.outputs: list[Tensor] = []  # of all rows; the loss gives them their gradients

    def encode(self) -> Any:
        """Encode all rows without a graph; what comes of it, ready to be differentiated by."""
        parts = []
        for chunk in self.chunks:
            self.states.append(_RandomState(self.devices))
            parts.append(self._encoded(chunk))
        pieces = [[x.detach() for x in _tensors(part)] for part in parts]
        whole = [x[0] if len(x) == 1 else torch.cat(x) for x in zip(*pieces, strict=True)]
        self.outputs = [x.requires_grad_(x.is_floating_point() or x.is_complex()) for x in whole]
        left = iter(self.outputs)
        return _mapped(parts[0], lambda _: next(left))

    def send_back(self, synchronize: bool) -> None:
        """Encode once more, chunk by chunk with a graph, and send the gradients of the outputs through it."""
        with _RandomState(self.devices).kept():
            for chunk, state in zip(self.chunks, self.states, strict=True):
                last = chunk is self.chunks[-1]
                no_sync = getattr(self.encoder, "no_sync", None)
                with contextlib.nullcontext() if no_sync is None or (last and synchronize) else no_sync():
                    state.restore()
                    again = _tensors(self._encoded(chunk))
                    pairs = [pair for pair in zip(again, self.outputs, strict=True) if pair[0].requires_grad]
                    if not pairs:  # nothing is learned there
                        return
                    gradients = [torch.zeros_like(x) if y.grad is None else y.grad[chunk] for x, y in pairs]
                    with _without_autocast(pairs[0][0]):
                        torch.autograd.backward([x for x, _ in pairs], gradients)

    def _encoded(self, chunk: slice) -> Any:
        part = _mapped(self.inputs, lambda x: x[chunk] if x.dim() else x)
        if isinstance(part, Mapping):
            output = self.encoder(**part)
        else:
            output = self.encoder(*part) if isinstance(part, (tuple, list)) else self.encoder(part)
        rows = len(range(*chunk.indices(self.rows)))
        shapes = [tuple(x.shape) for x in _tensors(output)]
        if not shapes or any(shape[:1] != (rows,) for shape in shapes):
            checks.fail("encoder", f"a row for each of {rows} rows", shapes)
        return output


class _RandomState:
    """Where the random numbers stand: torch's on the CPU and ``devices``, Python's, and NumPy's if it is in use."""

    def __init__(self, devices: set[torch.device]) -> None:
        self._torch = torch.get_rng_state()
        self._devices = {}
        for device in devices - {torch.device("cpu")}:
            self._devices[device] = torch.get_device_module(device).get_rng_state(*_place(device))
        self._python = random.getstate()
        self._numpy = numpy.random.get_state() if (numpy := sys.modules.get("numpy")) else None

    def restore(self) -> None:
        """Go back to it."""
        torch.set_rng_state(self._torch)
        for device, state in self._devices.items():
            torch.get_device_module(device).set_rng_state(state, *_place(device))
        random.setstate(self._python)
        if self._numpy is not None:
            sys.modules["numpy"].random.set_state(self._numpy)

    @contextlib.contextmanager
    def kept(self) -> Iterator[None]:
        """Go back to it at the end of the block."""
        try:
            yield
        finally:
            self.restore()


def _place(device: torch.device) -> tuple[torch.device, ...]:
    return () if device.type == "mps" else (device,)  # of which there is one


class _Buffers:
    """What the encoders keep in buffers: the second pass begins with what the first found, and leaves what it left."""

    def __init__(self, encoders: Sequence[Encoder]) -> None:
        modules = {module for encoder in encoders for module in _modules(encoder)}
        buffers = [(m, name, x) for m in modules for name, x in m.named_buffers(recurse=False)]
        self._before = [(m, name, x, x.clone()) for m, name, x in buffers]
        self._after: list[tuple[nn.Module, str, Tensor, Tensor]] = []

    def note_changes(self) -> None:
        """The first pass is done: only what it changed counts from now on."""
        self._before = [x for x in self._before if not torch.equal(x[0].get_buffer(x[1]), x[3])]
        self._after = [(m, name, x := m.get_buffer(name), x.clone()) for m, name, *_ in self._before]

    def set_back(self) -> None:
        """As it was before the first pass."""
        _set(self._before)

    def set_forth(self) -> None:
        """As the first pass left it."""
        _set(self._after)


@torch.no_grad()
def _set(buffers: Sequence[tuple[nn.Module, str, Tensor, Tensor]]) -> None:
    for module, name, buffer, value in buffers:
        setattr(module, name, buffer.copy_(value))


def _modules(encoder: Encoder) -> Iterator[nn.Module]:
    """Those of a module, or of the one whose method it is."""
    owner = getattr(encoder, "__self__", encoder)
    return owner.modules() if isinstance(owner, nn.Module) else iter(())


def _parameters(encoder: Encoder) -> Iterator[Tensor]:
    return (x for module in _modules(encoder) for x in module.parameters(recurse=False))


@contextlib.contextmanager
def _without_autocast(tensor: Tensor) -> Iterator[None]:
    """A backward pass runs outside autocast, in the types of the forward pass."""
    with torch.autocast(tensor.device.type, enabled=False):
        yield


def _tensors(tree: Any) -> list[Tensor]:
    """The tensors in tuples, lists and mappings, in order."""
    if isinstance(tree, Tensor):
        return [tree]
    parts = tree.values() if isinstance(tree, Mapping) else tree if isinstance(tree, (tuple, list)) else ()
    return [x for part in parts for x in _tensors(part)]


def _mapped(tree: Any, change: Callable[[Tensor], Any]) -> Any:
    """The same tree with every tensor changed."""
    if isinstance(tree, Tensor):
        return change(tree)
    if isinstance(tree, Mapping):
        changed: Any = copy.copy(tree)  # of its own type: the outputs and batches of Hugging Face
        for name in tree:
            changed[name] = _mapped(tree[name], change)
        return changed
    if isinstance(tree, (tuple, list)):
        parts = [_mapped(x, change) for x in tree]
        return type(tree)(*parts) if hasattr(tree, "_fields") else type(tree)(parts)
    return tree
