"""The grids that the tests of the kernels take their cases from."""

import itertools

from tests.kernels import grid

OPTIONS = {"a": [1, 2, 3], "b": [None, False, 0.5, "c"], "d": [True, False], "e": ["x", "y"]}


def pairs(cases):
    return {pair for case in cases for pair in itertools.combinations(case.items(), 2)}


def test_a_cover_holds_every_pair_that_may_stand_together():
    def valid(case):
        return case["a"] != 2 or case["d"]

    whole = [dict(zip(OPTIONS, values, strict=True)) for values in itertools.product(*OPTIONS.values())]
    cases = grid.cover(OPTIONS, valid)
    assert all(map(valid, cases))
    assert pairs(cases) == pairs(filter(valid, whole))
    assert len(cases) < len(whole) / 2


def test_half_of_a_product_holds_every_pair_and_the_rest_is_marked():
    parameters = grid.halved(*OPTIONS.values())
    whole = list(itertools.product(*OPTIONS.values()))
    assert sorted(map(str, whole)) == sorted(str(tuple(one.values)) for one in parameters)
    kept = [dict(zip(OPTIONS, one.values, strict=True)) for one in parameters if not one.marks]
    assert len(kept) == len(whole) / 2
    assert pairs(kept) == pairs(dict(zip(OPTIONS, values, strict=True)) for values in whole)
