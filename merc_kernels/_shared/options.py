"""What the options of every operator have in common: a frozen dataclass of checked values, with a number for each."""

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any, ClassVar, Literal, NamedTuple, Self, TypeVar, cast, get_args, get_origin, get_type_hints

import torch

from merc_kernels._shared import checks

REDUCTIONS = ("none", "sum", "mean", "batchmean")  # the number of a reduction, here and in csrc, is its place
_TYPES = {float: "float", bool: "bool", int: "int"}

T = TypeVar("T")


class Column(NamedTuple):
    """An option in an operator's schema."""

    name: str
    type: str  # float, bool or int
    choices: tuple[str, ...]  # of an option that is a string: its number is its place here

    def number(self, value: Any) -> Any:
        """What the operator is given."""
        if self.choices:
            return self.choices.index(value)
        return float(value) if self.type == "float" else value

    def value(self, number: Any) -> Any:
        """What the option was."""
        if not self.choices:
            return number
        if not 0 <= number < len(self.choices):
            checks.fail(self.name, f"a number from 0 to {len(self.choices) - 1}", number)
        return self.choices[number]


class Options:
    """Base of an operator's dataclass. Its fields are, in this order, numbers in the operator's schema.

    Attributes:
        numbers: what the operators are given.
    """

    numbers: tuple[Any, ...]
    columns: ClassVar[tuple[Column, ...]]
    not_in_schema: ClassVar[tuple[str, ...]] = ()  # fields that are dealt with before an operator is called

    def __init_subclass__(cls) -> None:
        hints = {name: x for name, x in get_type_hints(cls).items() if get_origin(x) is not ClassVar}
        names = [name for name in hints if name not in ("numbers", *cls.not_in_schema)]
        cls.columns = tuple(_column(name, hints[name]) for name in names)

    def __post_init__(self) -> None:
        self.check()
        numbers = [column.number(getattr(self, column.name)) for column in self.columns]
        object.__setattr__(self, "numbers", tuple(numbers))

    def check(self) -> None:
        """Every value is in its range, or a ValueError says which is not."""
        raise NotImplementedError

    @classmethod
    def schema(cls) -> list[str]:
        """The options in an operator's schema."""
        return [f"{column.type} {column.name}" for column in cls.columns]

    @classmethod
    def of_numbers(cls, numbers: tuple[Any, ...]) -> Self:
        """The options of which these are the first ``numbers``; the others have their defaults."""
        return cls(**{column.name: column.value(x) for column, x in zip(cls.columns, numbers, strict=False)})


def _column(name: str, hint: Any) -> Column:
    if get_origin(hint) is Literal:
        return Column(name, "int", REDUCTIONS if name == "reduction" else get_args(hint))
    return Column(name, _TYPES[hint], ())


def remembered(options: type[T]) -> Callable[..., T]:
    """Makes ``options`` of values in the order of its fields, and remembers them: small batches feel a microsecond."""
    names = [field.name for field in fields(cast(Any, options))]

    def build(*values: object) -> T:
        return options(**dict(zip(names, values, strict=True)))

    seen: Any = functools.lru_cache(typed=True)(build)  # typed: True is not 1

    def built(*values: object) -> T:
        if torch.compiler.is_compiling():
            return build(*values)
        try:
            known: T = seen(*values)
        except TypeError:  # not hashable
            return build(*values)
        return known

    return built


def described(options: type[Options]) -> Callable[[T], T]:
    """In a docstring the line ``**options: ...`` becomes what the dataclass says of each option."""

    def fill(documented: T) -> T:
        if documented.__doc__ and options.__doc__:  # neither is there under python -OO
            texts = inspect.cleandoc(options.__doc__).partition("Attributes:\n")[2]
            lines = inspect.cleandoc(documented.__doc__).splitlines()
            lines = [texts.rstrip() if line.startswith("    **options:") else line for line in lines]
            documented.__doc__ = "\n".join(lines)
        return documented

    return fill
