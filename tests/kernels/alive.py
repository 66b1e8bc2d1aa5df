"""How many bytes are alive of what `Tensor.new_empty` gave."""

import contextlib
import weakref
from collections.abc import Callable, Iterator

import pytest
from torch import Tensor


@contextlib.contextmanager
def counted() -> Iterator[Callable[[], int]]:
    """The most bytes at a time, since the beginning."""
    now = most = 0
    new_empty = Tensor.new_empty

    def gone(size: int) -> None:
        nonlocal now
        now -= size

    def fresh(self: Tensor, *args: object, **kwargs: object) -> Tensor:
        nonlocal now, most
        made = new_empty(self, *args, **kwargs)
        now += made.nbytes
        most = max(most, now)
        weakref.finalize(made, gone, made.nbytes)
        return made

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Tensor, "new_empty", fresh)
        yield lambda: most
