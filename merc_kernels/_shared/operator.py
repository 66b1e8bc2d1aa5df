"""An operator, for every backend but the reference: schema, fake, autograd, eager calls; made of a `Description`.

A forward operator ``merc::name`` gives the loss, what the reduction divided by, and what ``merc::name_backward`` needs
beside the inputs. Those of the compiled extension are defined in csrc/library.cpp, for the devices it was compiled
for; a backend in Python has operators ``merc::name_BACKEND`` of the same schema. Each has a first derivative only.
"""

import importlib
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from merc_kernels._shared import backends, checks, torch_private
from merc_kernels._shared.once import differentiable_once, refuse
from merc_kernels._shared.options import Options

COMPILED = "compiled"


@dataclass(frozen=True)
class Description:
    """What is particular to an operator.

    Attributes:
        name: of the operator.
        tensors: its tensors in the schema, in order.
        options: their numbers follow in the schema, a reduction last, which the forward pass alone takes.
        kept: what the forward pass gives beside the loss and the divisor.
        differentiable: places of the tensors that may get a gradient.
        needed: places of the tensors that the backward pass takes.
        fake: shapes and dtypes of the loss and of ``kept``, from tensors, numbers and the backend.
        python: the modules of the backends in Python, which hold ``forward`` and ``backward``.
        more_numbers: what follows the options in the schema, for the forward pass alone.
        backward_numbers: what follows the wanted gradients in the schema of the backward pass, for who calls that by
            itself; autograd gives 0 for each.
        needed_by: the same as ``needed``, from the numbers, where these decide it.
        already: the gradients, where the forward pass with these numbers has kept them; None where it has not.
    """

    name: str
    tensors: tuple[str, ...]
    options: type[Options]
    kept: tuple[str, ...]
    differentiable: tuple[int, ...]
    needed: tuple[int, ...]
    fake: Callable[[Sequence[Any], Sequence[Any], str], list[Tensor]]
    python: dict[str, str]
    more_numbers: tuple[str, ...] = ()
    backward_numbers: tuple[str, ...] = ()
    needed_by: Callable[[Sequence[Any]], tuple[int, ...]] | None = None
    already: Callable[[Sequence[Any], Sequence[Tensor]], list[Tensor | None] | None] = lambda numbers, kept: None

    def forward_schema(self) -> str:
        """Arguments and results of the forward operator."""
        results = ", ".join(f"Tensor {name}" for name in ("loss", "divisor", *self.kept))
        return f"({', '.join((*self.tensors, *self.options.schema(), *self.more_numbers))}) -> ({results})"

    def backward_schema(self) -> str:
        """Arguments and results of the backward operator."""
        kept = [f"Tensor {name}" for name in ("grad", "divisor", *self.kept)]
        gradients = [f"{self.tensors[i].split()[-1]}_grad" for i in self.differentiable]
        numbers = self.options.schema()[:-1]  # without the reduction
        arguments = [*kept, *(self.tensors[i] for i in self.needed), *numbers, *(f"bool {x}" for x in gradients)]
        arguments += self.backward_numbers
        return f"({', '.join(arguments)}) -> ({', '.join(f'Tensor {x}' for x in gradients)})"

    def parts_of_backward(self, arguments: tuple[Any, ...]) -> tuple[tuple[Any, ...], ...]:
        """Tensors, numbers of the options, wanted gradients, and the ``backward_numbers`` of the backward pass."""
        lengths = (2 + len(self.kept) + len(self.needed), len(self.options.columns) - 1, len(self.differentiable))
        ends = (0, *itertools.accumulate(lengths), len(arguments))
        return tuple(arguments[begin:end] for begin, end in itertools.pairwise(ends))


def accumulate(*tensors: Tensor | None) -> torch.dtype:
    """The dtype that a loss of these tensors is computed in."""
    double = any(x is not None and x.dtype == torch.float64 for x in tensors)
    return torch.float64 if double else torch.float32


class Operator:
    """The operators of a `Description`, registered with torch."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self._libraries: list[Any] = []  # a Library that is collected takes its operators along
        self.traced: dict[str, Any] = {}  # backend -> the operator, with the autograd registered for it
        self.eager: dict[str, Callable[..., Tensor]] = {}  # backend -> the same in less time, the loss alone
        self.forward: dict[str, Callable[..., Any]] = {}  # backend -> the operator without autograd
        self.backward: dict[str, Any] = {}  # backend -> the operator of the backward pass
        if backends.extension() is not None:
            self._register(COMPILED, description.name)
        for backend, module in description.python.items():
            name = f"{description.name}_{backend}"
            self._define(name, module)
            self._register(backend, name)

    def _define(self, name: str, module: str) -> None:
        """The operators of a backend in Python, whose module is imported when it first runs."""
        described = self.description
        count, rest = len(described.tensors), len(described.more_numbers)

        def forward(*arguments: Any) -> Any:
            numbers = arguments[count : len(arguments) - rest]
            options = described.options.of_numbers(numbers)
            kernels = importlib.import_module(module)
            return kernels.forward(*arguments[:count], options, *arguments[len(arguments) - rest :])

        def backward(*arguments: Any) -> Any:
            tensors, numbers, wanted, more = described.parts_of_backward(arguments)
            options = described.options.of_numbers(numbers)
            return importlib.import_module(module).backward(*tensors, options, wanted, *more)

        library: Any = torch.library.Library("merc", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define(name + described.forward_schema())
        library.define(f"{name}_backward{described.backward_schema()}")
        library.impl(name, forward, "CompositeExplicitAutograd")
        library.impl(f"{name}_backward", backward, "CompositeExplicitAutograd")
        self._libraries.append(library)

    def _register(self, backend: str, name: str) -> None:
        """Fakes and autograd of ``merc::name`` and ``merc::name_backward``."""
        described = self.description
        forward = getattr(torch.ops.merc, name).default
        self.backward[backend] = getattr(torch.ops.merc, f"{name}_backward").default
        gradients = _gradients(described, self.backward[backend])
        tensors = len(described.tensors)

        def fake(*arguments: Any) -> tuple[Tensor, ...]:
            loss, *kept = described.fake(arguments[:tensors], arguments[tensors:], backend)
            return loss, loss.new_empty(()), *kept

        def fake_backward(*arguments: Any) -> tuple[Tensor, ...]:
            given, _, wanted, _ = described.parts_of_backward(arguments)
            needed = given[2 + len(described.kept) :]
            inputs = [needed[described.needed.index(i)] for i in described.differentiable]
            absent = arguments[0].new_empty(0, dtype=accumulate(*inputs))
            return tuple(
                absent.clone() if x is None else x.new_empty(x.shape if want else 0)
                for x, want in zip(inputs, wanted, strict=True)
            )

        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
            _keep(described, ctx, inputs[:tensors], inputs[tensors:], output)
            ctx.mark_non_differentiable(*output[1:])

        def backward(ctx: Any, grad: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
            return *gradients(ctx, grad, ctx.needs_input_grad), *(None,) * len(ctx.numbers)

        torch.library.register_fake(f"merc::{name}", fake)
        torch.library.register_fake(f"merc::{name}_backward", fake_backward)
        torch.library.register_autograd(f"merc::{name}", backward, setup_context=setup_context)
        torch.library.register_autograd(f"merc::{name}_backward", refuse, setup_context=_nothing_kept)
        self.traced[backend] = forward
        self.forward[backend] = torch_private.below_autograd(forward)
        self.eager[backend] = _function(described, self.forward[backend], gradients)

    def __call__(self, backend: str, plain: bool, tensors: Sequence[Any], numbers: tuple[Any, ...]) -> Tensor:
        """The loss on ``backend``; ``plain`` where nothing traces, transforms or fakes the tensors."""
        backend = self.backend_of(backend)
        if plain and torch.is_grad_enabled():
            return self.eager[backend](*tensors, numbers)
        loss: Tensor = (self.forward if plain else self.traced)[backend](*tensors, *numbers)[0]
        return loss

    def backend_of(self, name: str) -> str:
        """The key of a backend here: those of the extension are one."""
        return name if name in self.traced else COMPILED


def _nothing_kept(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    """A second derivative needs nothing saved: it raises."""


def _keep(described: Description, ctx: Any, tensors: Sequence[Any], numbers: Sequence[Any], output: Any) -> None:
    ctx.numbers = numbers
    ctx.set_materialize_grads(False)
    needed = described.needed if described.needed_by is None else described.needed_by(numbers)
    ctx.save_for_backward(*output[1:], *(tensors[i] for i in needed))


def _gradients(described: Description, operator: Any) -> Callable[..., list[Tensor | None]]:
    """The backward pass, of a registered operator and of the Function that stands for it in eager mode alike."""
    kept, ends = 1 + len(described.kept), 1 + len(described.more_numbers)

    def gradients(ctx: Any, grad: Tensor | None, needs: Sequence[bool]) -> list[Tensor | None]:
        """Of every tensor of the forward pass."""
        results: list[Tensor | None] = [None] * len(described.tensors)
        if grad is None:
            return results
        saved, inputs = ctx.saved_tensors[:kept], ctx.saved_tensors[kept:]
        made = described.already(ctx.numbers, saved)
        if made is None:
            wanted = [needs[i] for i in described.differentiable]
            more = (0,) * len(described.backward_numbers)
            made = operator(grad.contiguous(), *saved, *inputs, *ctx.numbers[:-ends], *wanted, *more)
        else:
            made = [None if x is None else (x * grad).to(x.dtype) for x in made]
        for i, x in zip(described.differentiable, made, strict=True):
            if needs[i] and x is not None:
                results[i] = differentiable_once(x, (grad, *inputs)) if torch.is_grad_enabled() else x
        return results

    return gradients


def _function(described: Description, operator: Any, gradients: Any) -> Callable[..., Tensor]:
    """The operator as an autograd.Function, at a third of the overhead that registered autograd has.

    It takes the tensors, and then the numbers as one tuple.
    """

    class Fused(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            *tensors, numbers = arguments
            output = operator(*tensors, *numbers)
            _keep(described, ctx, tensors, numbers, output)
            loss: Tensor = output[0]
            return loss

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
            return *gradients(ctx, grad, ctx.needs_input_grad), None

    return torch_private.apply_of(Fused)


def with_gradients(
    both: Callable[..., tuple[Tensor, Sequence[Tensor | None]]], in_place: Callable[..., None] | None = None
) -> Callable[..., Tensor]:
    """A Function whose forward pass makes the gradients as well, for a gradient of the loss of 1.

    It takes the tensors, and then the numbers as one tuple. ``both`` takes the tensors, the numbers, and which tensors
    need a gradient; it gives the loss, and for every tensor its gradient or None. Where the host cannot look at the
    loss's own gradient, ``in_place`` multiplies those gradients by it: of them, it, the tensors and the numbers.
    """

    class FusedWithGradients(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *arguments: Any) -> Tensor:
            tensors, ctx.numbers = arguments[:-1], arguments[-1]
            loss, ctx.gradients = both(tensors, ctx.numbers, ctx.needs_input_grad)
            ctx.set_materialize_grads(False)
            ctx.save_for_backward(*tensors)
            return loss

        @staticmethod
        def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, ...]:
            if grad is None:
                return (None,) * len(ctx.needs_input_grad)
            gradients, ctx.gradients = ctx.gradients, None
            if gradients is None:
                gradients = both(ctx.saved_tensors, ctx.numbers, ctx.needs_input_grad)[1]
            plain = checks.eager(grad) and not torch_private.no_memory(grad)
            if plain and in_place is not None:  # as they are then, they are their owner's
                in_place(gradients, grad, ctx.saved_tensors, ctx.numbers)
            elif not (plain and grad.item() == 1):
                ctx.gradients, gradients = gradients, [None if x is None else (x * grad).to(x.dtype) for x in gradients]
            if torch.is_grad_enabled():
                inputs = (grad, *ctx.saved_tensors)
                gradients = [None if x is None else differentiable_once(x, inputs) for x in gradients]
            return *gradients, None

    return torch_private.apply_of(FusedWithGradients)
