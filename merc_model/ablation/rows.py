"""The rows of the table: each a set of changes to the configuration that is asked about."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from merc_model.config import Config
from merc_model.errors import UserError
from merc_model.model import MercModel

LOGISTIC, EARLY, CROSS_ENTROPY, FULL = "logistic", "early", "ce", "full"


@dataclass(frozen=True)
class Row:
    """One way of training.

    Attributes:
        name: as ``--rows`` and the files have it.
        title: as the table has it.
        before: the row it is compared with, which differs from it in one thing.
        changes: to the configuration.
    """

    name: str
    title: str
    before: str | None
    changes: Mapping[str, Any] = field(default_factory=dict)


_CE = {"kd": False, "feature_kd": False, "fcl": False, "elcl": False, "memory": False, "linear": False}
_RESPONSES = {**_CE, "kd": True}
_STUDENTS = {**_RESPONSES, "feature_kd": True}
_SCL = {**_STUDENTS, "fcl": True, "fcl_gamma": 0.0, "fcl_class_balance": 0.0}
_SWFC = {**_STUDENTS, "fcl": True, "fcl_focal": "probability"}
_FCL = {**_STUDENTS, "fcl": True, "fcl_focal": "similarity"}

ROWS = (
    Row(LOGISTIC, "logistic regression, with what is said around", None),
    Row(EARLY, "early concatenation, cross entropy", LOGISTIC, {**_CE, "fusion": "early"}),
    Row(CROSS_ENTROPY, "ours, cross entropy alone", EARLY, _CE),
    Row("kd", "+ response KD", CROSS_ENTROPY, _RESPONSES),
    Row("feature-kd", "+ feature KD", "kd", _STUDENTS),
    Row("scl", "+ SCL", "feature-kd", _SCL),
    Row("swfc", "+ SWFC in place of SCL", "scl", _SWFC),
    Row("fcl", "+ FCL in place of SWFC", "swfc", _FCL),
    Row("elcl", "+ ELCL, prototypes as candidates", "fcl", {**_FCL, "elcl": True, "prototype_anchors": False}),
    Row("elcl-anchors", "+ ELCL, prototypes as anchors too", "elcl", {**_FCL, "elcl": True, "prototype_anchors": True}),
    Row("memory", "ours, cross entropy, with the memory", CROSS_ENTROPY, {**_CE, "memory": True}),
    Row(
        "early-extras",
        "early concatenation, memory and linear model",
        EARLY,
        {**_CE, "fusion": "early", "memory": True, "linear": True},
    ),
    Row("extras", "ours, cross entropy, memory and linear model", "memory", {**_CE, "memory": True, "linear": True}),
    Row(FULL, "full: all parts, memory and linear model", "elcl"),
    Row("no-kd", "full without response KD", FULL, {"kd": False}),
    Row("no-feature-kd", "full without feature KD", FULL, {"feature_kd": False}),
    Row("no-fcl", "full without FCL and ELCL", FULL, {"fcl": False, "elcl": False}),
    Row("no-elcl", "full without ELCL", FULL, {"elcl": False}),
    Row("no-memory", "full without the memory", FULL, {"memory": False}),
    Row("no-linear", "full without the linear model", FULL, {"linear": False}),
    Row("no-heads", "full without the modalities' cross entropy", FULL, {"modality_ce_weight": 0.0}),
    Row("no-text-leading", "full without text leading", FULL, {"text_leading": False}),
)


def chosen(names: Sequence[str]) -> tuple[Row, ...]:
    """Some rows by name, in the table's order; all where none is named."""
    known = [row.name for row in ROWS]
    for name in names:
        if name not in known:
            raise UserError(f"--rows: no row {name!r}; there are: {', '.join(known)}")
    return tuple(row for row in ROWS if row.name in names or not names)


def configuration(row: Row, base: Config, dims: Mapping[str, int], label_names: Sequence[str]) -> Config | None:
    """What a row trains; None for logistic regression.

    Early concatenation gets the width at which it has about as many parameters as ``base``.
    """
    if row.name == LOGISTIC:
        return None
    config = base.changed(row.changes)
    return _as_large_as(base, config, dims, label_names) if config.fusion == "early" else config


def _as_large_as(base: Config, config: Config, dims: Mapping[str, int], label_names: Sequence[str]) -> Config:
    """``config`` with the hidden_dim that brings its number of parameters nearest to that of ``base``."""

    def parameters(candidate: Config) -> int:
        with torch.device("meta"):
            return sum(parameter.numel() for parameter in MercModel(dims, label_names, candidate).parameters())

    wanted, step = parameters(base), math.lcm(2, config.heads)
    best, best_gap = config, abs(parameters(config) - wanted)
    for change in (step, -step):
        while best.hidden_dim + change > 0:
            candidate = best.changed({"hidden_dim": best.hidden_dim + change})
            gap = abs(parameters(candidate) - wanted)
            if gap >= best_gap:
                break
            best, best_gap = candidate, gap
    return best
