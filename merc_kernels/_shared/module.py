"""The losses as modules: options in the constructor, tensors in ``forward``."""

from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from torch import nn

from merc_kernels._shared import backends
from merc_kernels._shared.options import Options


class LossModule(nn.Module):
    """A loss of certain ``options``; each of them can be read, and set, under its own name as well."""

    options: Any  # a dataclass of `Options`

    def __init__(self, options: Options, backend: str | None) -> None:
        super().__init__()
        backends.check(backend)
        self.options = options
        self.backend = backend

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
