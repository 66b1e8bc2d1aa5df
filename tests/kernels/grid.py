"""Option grids: a seeded sample of a product, in which every pair of option values that may stand together stands."""

import itertools
import random
from collections.abc import Callable
from typing import Any

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


def pairs(cases: list[Case]) -> set[Any]:
    """All pairs of option values in ``cases``."""
    return {pair for case in cases for pair in itertools.combinations(case.items(), 2)}


def cover(options: dict[str, list[Any]], valid: Callable[[Case], bool]) -> list[Case]:
    """Few valid cases that hold every pair of option values which may stand together."""
    candidates = sample(options, valid, 20_000)
    missing, cases = pairs(candidates), []
    for least in (24, 16, 8, 4, 2, 1):  # first those that bring many pairs
        for case in candidates:
            if len(missing & pairs([case])) >= least:
                cases.append(case)
                missing -= pairs([case])
    return cases


def title(case: Case) -> str:
    """A test id: the options that are not False or None."""
    return "-".join(
        f"{name}={value}" if value is not True else name
        for name, value in case.items()
        if value is not None and value is not False
    )
