"""The losses as modules: options in the constructor, tensors in ``forward``."""

from collections.abc import Callable
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from merc_kernels._shared import backends, checks
from merc_kernels._shared.options import Options


class LossModule(nn.Module):
    """A loss of certain ``options``; each of them can be read, and set, under its own name as well.

    A temperature may be an ``nn.Parameter`` of no dimension, to be learned.
    """

    options: Any  # a dataclass of `Options`

    def __init__(
        self, options: Callable[..., Options], backend: str | None, *, temperature: float | nn.Parameter, **others: Any
    ) -> None:
        super().__init__()
        backends.check(backend)
        learned = temperature if isinstance(temperature, nn.Parameter) else None
        if learned is not None:
            checks.tensor("temperature", learned, checks.FLOAT, None, ())
        elif isinstance(temperature, Tensor):
            checks.fail("temperature", "a number or an nn.Parameter", temperature)
        self.options = options(temperature=1.0 if learned is not None else temperature, **others)
        if learned is not None:
            self.temperature = learned
        self.backend = backend

    @property
    def learned_temperature(self) -> Tensor | None:
        """The temperature where it is a tensor, which stands in for that of the options."""
        temperature = self.temperature
        return temperature if isinstance(temperature, Tensor) else None

    if TYPE_CHECKING:

        def __getattr__(self, name: str) -> Any:
            """An option."""

    def __setattr__(self, name: str, value: Any) -> None:
        parameters = self.__dict__.get("_parameters", {})  # a temperature that is learned
        if name == "options":
            names = [field.name for field in fields(value) if field.name not in parameters]
            self.__dict__.update({name: getattr(value, name) for name in names})
        elif name in _names(self) and name not in parameters and not isinstance(value, nn.Parameter):
            self.options = replace(self.options, **{name: value})
            return
        super().__setattr__(name, value)

    def extra_repr(self) -> str:
        """The options, as in the constructor."""
        shown: dict[str, object] = {name: getattr(self, name) for name in _names(self)}
        shown |= {name: None if x is None else tuple(x.shape) for name, x in self._buffers.items()}
        shown["backend"] = self.backend
        return ", ".join(f"{name}={'Parameter' if name in self._parameters else repr(x)}" for name, x in shown.items())


def _names(module: LossModule) -> list[str]:
    options = module.__dict__.get("options")
    return [] if options is None else [field.name for field in fields(options)]
