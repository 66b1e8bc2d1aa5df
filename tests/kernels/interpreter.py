"""What makes Triton's interpreter slow and changes no value: it makes its language and its types anew all the time."""

import functools
from typing import Any

import pytest
import triton
from triton.runtime import interpreter

core, semantic = triton.language.core, triton.language.semantic.TritonSemantic


def hasten(patch: pytest.MonkeyPatch) -> None:
    """The language is patched at the first launch and stays so; types, and shapes of values, are made once."""
    _patch_once(patch)
    patch.setattr(interpreter, "_get_np_dtype", _by_name(interpreter._get_np_dtype))
    patch.setattr(core.block_type, "__init__", _of_block(core.block_type.__init__))
    patch.setattr(core.tensor, "__init__", _of_value)
    patch.setattr(semantic, "broadcast_impl_value", _unless_alike(semantic.broadcast_impl_value))


def _patch_once(patch: pytest.MonkeyPatch) -> None:
    """Not for each launch, and not for each function called inside."""
    scope, original = interpreter._LangPatchScope, interpreter._patch_lang

    def once(fn: Any) -> Any:
        used = [x for x in fn.__globals__.values() if x is core or x is interpreter.tl]
        if not all(x.static_print is print for x in used):
            original(fn)  # and never restored: this process does nothing else
        return scope()

    patch.setattr(interpreter, "_patch_lang", once)


def _by_name(original: Any) -> Any:
    known: dict[str, Any] = {}

    def np_dtype(of: Any) -> Any:
        if of.name not in known:
            known[of.name] = original(of)
        return known[of.name]

    return np_dtype


def _of_block(original: Any) -> Any:
    known: dict[tuple[Any, ...], dict[str, Any]] = {}

    def init(self: Any, element_ty: Any, shape: Any) -> None:
        key = (element_ty.name, *[getattr(x, "value", x) for x in shape])
        if key not in known:
            original(self, element_ty, shape)
            known[key] = vars(self).copy()
        vars(self).update(known[key])

    return init


@functools.cache
def _shape(*sizes: int) -> tuple[Any, Any]:
    """Its product, and the shape that the language knows."""
    numel = functools.reduce(lambda x, y: x * y, sizes, 1)
    return core.constexpr(numel), core.tuple([core.constexpr(x) for x in sizes])


def _of_value(self: Any, handle: Any, type: Any) -> None:
    """`tensor.__init__`."""
    self.handle, self.type, self.dtype = handle, type, type.scalar
    self.numel, self.shape = _shape(*type.shape.values) if type.is_block() else _shape()


def _unless_alike(original: Any) -> Any:
    def broadcast(self: Any, one: Any, other: Any) -> Any:
        if one.type.is_block() and other.type.is_block() and one.type.shape.values == other.type.shape.values:
            return one, other
        return original(self, one, other)

    return broadcast
