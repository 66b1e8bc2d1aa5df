"""Option grids: a seeded sample of a product, in which every pair of option values that may stand together stands."""

import functools
import itertools
import operator
import random
from collections.abc import Callable
from typing import Any

import pytest

Case = dict[str, Any]


def sample(options: dict[str, list[Any]], valid: Callable[[Case], bool], size: int) -> list[Case]:
    """``size`` valid cases."""
    rng = random.Random(0)
    cases: list[Case] = []
    while len(cases) < size:
        case = {name: rng.choice(values) for name, values in options.items()}
        if valid(case):
            cases.append(case)
    return cases


def cover(options: dict[str, list[Any]], valid: Callable[[Case], bool]) -> list[Case]:
    """Few valid cases that hold every pair of option values which may stand together, as 20,000 of them show."""
    candidates = sample(options, valid, 20_000)
    numbers: dict[tuple[str, Any], int] = {}  # of each option's values
    most = sum(map(len, options.values()))

    def pairs(case: Case) -> int:
        """A bit for each pair."""
        held, later = 0, 0
        for item in case.items():
            number = numbers.setdefault(item, len(numbers))
            held |= later << number * most
            later |= 1 << number
        return held

    held = [pairs(case) for case in candidates]
    missing, cases = functools.reduce(operator.or_, held), []
    for least in (24, 16, 8, 4, 2, 1):  # first those that bring many pairs
        for case, of_case in zip(candidates, held, strict=True):
            if (missing & of_case).bit_count() >= least:
                cases.append(case)
                missing &= ~of_case
    return cases


def halved(*options: list[Any]) -> list[Any]:
    """The product of options, as parameters, every other one marked full.

    Of two options the half holds every value, of three or more every pair of values.
    """
    made = []
    for places in itertools.product(*(range(len(values)) for values in options)):
        values = [option[place] for option, place in zip(options, places, strict=True)]
        marks = [pytest.mark.full] if sum(places) % 2 else []
        made.append(pytest.param(*values, marks=marks, id="-".join(map(str, values))))
    return made


def title(case: Case) -> str:
    """A test id: the options that are not False or None."""
    return "-".join(
        f"{name}={value}" if value is not True else name
        for name, value in case.items()
        if value is not None and value is not False
    )
