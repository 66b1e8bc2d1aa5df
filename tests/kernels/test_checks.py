"""Bad input: a ValueError that names the argument, what was expected and what came."""

import re

import pytest
import torch

from merc_kernels import (
    FocalContrastiveLoss,
    KDDivergence,
    class_balanced_weights,
    focal_contrastive_loss,
    kd_divergence,
    reference,
)
from merc_kernels._shared import checks

X, Y = torch.randn(4, 3), torch.tensor([0, 1, 0, 1])
X3, Y2 = torch.randn(2, 4, 3), Y.expand(2, 4)
PROTOTYPES, NAN = torch.randn(2, 3), float("nan")
REFS = {"ref_embeddings": torch.randn(5, 3), "ref_labels": torch.zeros(5, dtype=torch.int64)}
META = torch.empty(4, 3, device="meta")

FOCAL = [
    # what is passed, the argument named, what was expected, what came
    ({"embeddings": [[1.0]]}, "embeddings", "tensor of shape (N, D) or (G, N, D)", "[[1.0]]"),
    ({"embeddings": X.long()}, "embeddings", "float64, float32, bfloat16 or float16", "int64 tensor of shape (4, 3)"),
    ({"embeddings": X.to(torch.complex64)}, "embeddings", "float32", "complex64"),
    ({"embeddings": X[0]}, "embeddings", "(N, D) or (G, N, D)", "shape (3,)"),
    ({"embeddings": X[None, None]}, "embeddings", "(N, D) or (G, N, D)", "shape (1, 1, 4, 3)"),
    ({"embeddings": X[:, :0]}, "embeddings", "D > 0", "shape (4, 0)"),
    ({"labels": Y.int()}, "labels", "int64 tensor of shape (4,)", "int32 tensor of shape (4,)"),
    ({"labels": Y.float()}, "labels", "int64", "float32"),
    ({"labels": Y[:3]}, "labels", "shape (4,)", "shape (3,)"),
    ({"labels": Y[:, None]}, "labels", "shape (4,)", "shape (4, 1)"),
    ({"labels": Y.tolist()}, "labels", "int64 tensor", "[0, 1, 0, 1]"),
    ({"labels": Y.to("meta")}, "labels", "on cpu", "on meta"),
    ({"embeddings": X3, "labels": Y2.T}, "labels", "shape (4,) or (2, 4)", "shape (4, 2)"),
    ({"temperature": 0}, "temperature", "a finite number > 0", "0"),
    ({"temperature": -0.1}, "temperature", "> 0", "-0.1"),
    ({"temperature": NAN}, "temperature", "finite", "nan"),
    ({"temperature": float("inf")}, "temperature", "finite", "inf"),
    ({"temperature": True}, "temperature", "number", "True"),
    ({"temperature": "0.1"}, "temperature", "number", "'0.1'"),
    ({"temperature": None}, "temperature", "number", "None"),
    ({"temperature": torch.ones(1)}, "temperature", "shape ()", "shape (1,)"),
    ({"temperature": torch.tensor(1)}, "temperature", "float32", "int64"),
    ({"temperature": torch.tensor(0.0)}, "temperature", "> 0", "0.0"),
    ({"temperature": torch.tensor(NAN)}, "temperature", "finite", "nan"),
    ({"gamma": -1.0}, "gamma", "a finite number >= 0", "-1.0"),
    ({"gamma": NAN}, "gamma", "finite", "nan"),
    ({"gamma": float("inf")}, "gamma", "finite", "inf"),
    ({"gamma": torch.tensor(2.0)}, "gamma", "number", "tensor of shape ()"),
    ({"focal": "cosine"}, "focal", "'similarity' or 'probability'", "'cosine'"),
    ({"focal": None}, "focal", "'similarity' or 'probability'", "None"),
    ({"detach_focal": 1}, "detach_focal", "True or False", "1"),
    ({"normalize": None}, "normalize", "True or False", "None"),
    ({"ref_only": "yes", **REFS}, "ref_only", "True or False", "'yes'"),
    ({"prototype_anchors": 0}, "prototype_anchors", "True or False", "0"),
    ({"ignore_index": -100.0}, "ignore_index", "an int", "-100.0"),
    ({"ignore_index": False}, "ignore_index", "an int", "False"),
    ({"reduction": "avg"}, "reduction", "'mean' or 'batchmean' or 'sum' or 'none'", "'avg'"),
    ({"reduction": None}, "reduction", "'none'", "None"),
    ({"temperature": 1e-46}, "temperature", "from 1e-09 to 1e+09", "1e-46"),
    ({"temperature": 1e300}, "temperature", "from 1e-09 to 1e+09", "1e+300"),
    ({"temperature": torch.tensor(1e30)}, "temperature", "from 1e-09 to 1e+09", "e+30"),
    ({"class_weights": torch.tensor([1.0, NAN])}, "class_weights", "numbers >= 0", "nan"),
    ({"class_weights": torch.tensor([-1.0, 1.0])}, "class_weights", "numbers >= 0", "-1.0"),
    ({"class_weights": [1.0, 2.0]}, "class_weights", "tensor of shape (C,)", "[1.0, 2.0]"),
    ({"class_weights": torch.ones(2, 1)}, "class_weights", "shape (C,)", "shape (2, 1)"),
    ({"class_weights": torch.ones(0)}, "class_weights", "C > 0", "shape (0,)"),
    ({"class_weights": torch.ones(2).long()}, "class_weights", "float32", "int64"),
    ({"class_weights": torch.ones(1)}, "labels", "labels in [0, 1) or ignore_index=-100", "1"),
    ({"class_weights": torch.ones(3), "prototypes": PROTOTYPES}, "class_weights", "shape (2,)", "shape (3,)"),
    ({"prototypes": torch.ones(2, 4)}, "prototypes", "shape (C, 3)", "shape (2, 4)"),
    ({"prototypes": X3}, "prototypes", "shape (C, 3)", "shape (2, 4, 3)"),
    ({"prototypes": torch.ones(0, 3)}, "prototypes", "C > 0", "shape (0, 3)"),
    ({"prototypes": META}, "prototypes", "on cpu", "on meta"),
    ({"prototypes": PROTOTYPES[:1]}, "labels", "labels in [0, 1)", "1"),
    ({"embeddings": X3, "prototypes": X3[:1]}, "prototypes", "(C, 3) or (2, C, 3)", "(1, 4, 3)"),
    ({"prototype_anchors": True}, "prototypes", "as prototype_anchors=True", "None"),
    (
        {"prototypes": PROTOTYPES, "prototype_anchors": True, "reduction": "none"},
        "prototype_anchors",
        'False with reduction="none"',
        "True",
    ),
    ({"ref_embeddings": REFS["ref_embeddings"]}, "ref_labels", "shape (5,)", "None"),
    ({"ref_labels": REFS["ref_labels"]}, "ref_embeddings", "as ref_labels is given", "None"),
    ({"ref_only": True}, "ref_embeddings", "as ref_only=True", "None"),
    ({**REFS, "ref_only": True, "prototypes": PROTOTYPES}, "prototypes", "None with ref_only=True", "shape (2, 3)"),
    ({**REFS, "ref_embeddings": torch.ones(5, 4)}, "ref_embeddings", "shape (M, 3)", "shape (5, 4)"),
    ({**REFS, "ref_labels": Y}, "ref_labels", "shape (5,)", "shape (4,)"),
    ({**REFS, "ref_labels": REFS["ref_labels"] + 2, "prototypes": PROTOTYPES}, "ref_labels", "labels in [0, 2)", "2"),
    ({"backend": "gpu"}, "backend", "'reference'", "'gpu'"),
    ({"backend": "cuda"}, "backend", "on", "'cuda'"),
    ({"backend": 1}, "backend", "'reference'", "1"),
]

S, T = torch.randn(4, 3), torch.randn(4, 3)
KD = [
    ({"student_logits": S[0]}, "student_logits", "(N, C) or (G, N, C)", "shape (3,)"),
    ({"student_logits": S.int()}, "student_logits", "float32", "int32"),
    ({"student_logits": S[:, :0], "teacher_logits": T[:, :0]}, "student_logits", "C > 0", "shape (4, 0)"),
    ({"teacher_logits": None}, "teacher_logits", "tensor of shape (4, 3)", "None"),
    ({"teacher_logits": T[:3]}, "teacher_logits", "shape (4, 3)", "shape (3, 3)"),
    ({"teacher_logits": T[:1]}, "teacher_logits", "shape (4, 3)", "shape (1, 3)"),
    ({"teacher_logits": T.expand(2, 4, 3)}, "teacher_logits", "shape (4, 3)", "shape (2, 4, 3)"),
    (
        {"student_logits": S.expand(2, 4, 3), "teacher_logits": T[None]},
        "teacher_logits",
        "(4, 3) or (2, 4, 3)",
        "(1, 4",
    ),
    ({"teacher_logits": META}, "teacher_logits", "on cpu", "on meta"),
    ({"temperature": 0.0}, "temperature", "a finite number > 0", "0.0"),
    ({"temperature": -1}, "temperature", "> 0", "-1"),
    ({"temperature": float("inf")}, "temperature", "finite", "inf"),
    ({"temperature": 1e-46}, "temperature", "from 1e-09 to 1e+09", "1e-46"),
    ({"temperature": 1e300}, "temperature", "from 1e-09 to 1e+09", "1e+300"),
    ({"temperature": torch.tensor(1e-30)}, "temperature", "from 1e-09 to 1e+09", "e-30"),
    ({"temperature": torch.tensor([1.0, 2.0, 1e30, 4.0])}, "temperature", "from 1e-09 to 1e+09", "e+30"),
    ({"temperature": torch.ones(3)}, "temperature", "shape () or (4,)", "shape (3,)"),
    ({"temperature": torch.tensor([1.0, 2.0, -3.0, 4.0])}, "temperature", "> 0", "-3.0"),
    ({"temperature": torch.tensor([1.0, NAN, 3.0, 4.0])}, "temperature", "finite", "nan"),
    ({"direction": "kl"}, "direction", "'forward' or 'reverse' or 'js'", "'kl'"),
    ({"beta": 0}, "beta", "a finite number > 0 and < 1", "0"),
    ({"beta": 1.0}, "beta", "< 1", "1.0"),
    ({"beta": NAN}, "beta", "finite", "nan"),
    ({"beta": "half"}, "beta", "number", "'half'"),
    ({"ce_weight": -0.5}, "ce_weight", ">= 0", "-0.5"),
    ({"ce_weight": NAN}, "ce_weight", "finite", "nan"),
    ({"ce_weight": 0.5}, "labels", "as ce_weight=0.5", "None"),
    ({"labels": Y[:3]}, "labels", "shape (4,)", "shape (3,)"),
    ({"labels": Y2}, "labels", "shape (4,)", "shape (2, 4)"),
    ({"labels": Y.short()}, "labels", "int64", "int16"),
    ({"labels": Y + 2}, "labels", "labels in [0, 3) or ignore_index=-100", "3"),
    ({"labels": Y - 1, "ce_weight": 1.0}, "labels", "labels in [0, 3)", "-1"),
    ({"labels": Y - 100, "ignore_index": -99}, "labels", "ignore_index=-99", "-100"),
    ({"row_weights": torch.ones(3)}, "row_weights", "shape (4,)", "shape (3,)"),
    ({"row_weights": torch.ones(4, 1)}, "row_weights", "shape (4,)", "shape (4, 1)"),
    ({"row_weights": Y}, "row_weights", "float32", "int64"),
    ({"teacher_grad": "no"}, "teacher_grad", "True or False", "'no'"),
    ({"scale_by_t2": 2}, "scale_by_t2", "True or False", "2"),
    ({"ignore_index": "x"}, "ignore_index", "an int", "'x'"),
    ({"reduction": "mean"}, "reduction", "'batchmean' or 'sum' or 'none'", "'mean'"),
    ({"backend": "cuda"}, "backend", "on", "'cuda'"),
]

WEIGHTS = [
    ({"class_counts": 3}, "class_counts", "a sequence of numbers", "3"),
    ({"class_counts": "31"}, "class_counts", "a sequence of numbers", "'31'"),
    ({"class_counts": []}, "class_counts", "a sequence of numbers", "[]"),
    ({"class_counts": [3, -1]}, "class_counts[1]", ">= 0", "-1"),
    ({"class_counts": [3, NAN]}, "class_counts[1]", "finite", "nan"),
    ({"class_counts": [3, None]}, "class_counts[1]", "number", "None"),
    ({"class_counts": [0, 0.0]}, "class_counts", "not all 0", "[0, 0.0]"),
    ({"class_counts": torch.tensor([3, -1])}, "class_counts", ">= 0", "-1"),
    ({"class_counts": torch.tensor([3, NAN])}, "class_counts", "finite", "nan"),
    ({"class_counts": torch.zeros(3)}, "class_counts", "not all 0", "[0.0, 0.0, 0.0]"),
    ({"class_counts": torch.ones(2, 2)}, "class_counts", "shape (C,)", "shape (2, 2)"),
    ({"class_counts": torch.ones(0)}, "class_counts", "C > 0", "shape (0,)"),
    ({"class_counts": torch.ones(2).bool()}, "class_counts", "integer or floating", "bool"),
    ({"alpha": -1.0}, "alpha", ">= 0", "-1.0"),
    ({"alpha": NAN}, "alpha", "finite", "nan"),
]


def refused(function, arguments, name, expected, actual):
    with pytest.raises(ValueError, match=f"^{re.escape(name)}: expected ") as caught:
        function(**arguments)
    wanted, came = str(caught.value).split(", got ")
    assert expected in wanted
    assert actual in came
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize("module", ["function", "reference"])
@pytest.mark.parametrize(("change", "name", "expected", "actual"), FOCAL)
def test_focal_contrastive_loss(module, change, name, expected, actual):
    function = focal_contrastive_loss if module == "function" else reference.focal_contrastive_loss
    refused(function, {"embeddings": X, "labels": Y, **change}, name, expected, actual)


@pytest.mark.parametrize("module", ["function", "reference"])
@pytest.mark.parametrize(("change", "name", "expected", "actual"), KD)
def test_kd_divergence(module, change, name, expected, actual):
    function = kd_divergence if module == "function" else reference.kd_divergence
    refused(function, {"student_logits": S, "teacher_logits": T, **change}, name, expected, actual)


@pytest.mark.parametrize(("change", "name", "expected", "actual"), WEIGHTS)
def test_class_balanced_weights(change, name, expected, actual):
    refused(class_balanced_weights, {"class_counts": [3, 1], **change}, name, expected, actual)


TENSORS = {"embeddings", "labels", "prototypes", "ref_embeddings", "ref_labels", "student_logits", "teacher_logits"}
MODULES = [
    (module, *row)
    for module, table in ((FocalContrastiveLoss, FOCAL), (KDDivergence, KD))
    for row in table
    if not TENSORS & {*row[0], row[1]} and not any(isinstance(value, torch.Tensor) for value in row[0].values())
]


@pytest.mark.parametrize(("module", "change", "name", "expected", "actual"), MODULES)
def test_modules_check_their_options_at_once(module, change, name, expected, actual):
    refused(module, change, name, expected, actual)


def test_a_module_refuses_a_temperature_that_would_not_move_with_it():
    for module in (FocalContrastiveLoss, KDDivergence):
        refused(module, {"temperature": torch.tensor(0.1)}, "temperature", "nn.Parameter", "shape ()")
        refused(module, {"temperature": torch.nn.Parameter(torch.ones(2))}, "temperature", "()", "(2,)")


def test_what_is_ignored_is_not_checked():
    assert focal_contrastive_loss(X, torch.tensor([0, 77, 0, 1]), prototypes=PROTOTYPES, ignore_index=77) > 0
    temperature = torch.tensor([1.0, -1.0, 1.0, 0.0])
    assert kd_divergence(S, T, labels=torch.tensor([0, -1, 2, -1]), ignore_index=-1, temperature=temperature) > 0
    ignored = torch.tensor([[0, -1, 2, -1], [0, 0, 2, -1]])
    options = {"labels": ignored, "ignore_index": -1, "temperature": temperature}
    refused(
        kd_divergence, {"student_logits": S.expand(2, 4, 3), "teacher_logits": T, **options}, "temperature", "", "-1"
    )


def test_without_classes_any_integer_is_a_label():
    assert focal_contrastive_loss(X, torch.tensor([-1, 10**12, -1, 10**12])) > 0


def test_values_are_read_off_the_cpu_only_when_asked(monkeypatch):
    elsewhere = torch.empty(2, device="meta")
    monkeypatch.delenv("MERC_CHECK", raising=False)
    assert checks.readable(torch.ones(2))
    assert checks.readable(torch.nn.Parameter(torch.ones(2)))
    assert not checks.readable(elsewhere)
    monkeypatch.setenv("MERC_CHECK", "1")
    assert checks.readable(elsewhere)
    monkeypatch.setenv("MERC_CHECK", "0")
    assert not checks.readable(elsewhere)


def test_values_that_are_not_read_count_as_ignored(monkeypatch):
    # as on a GPU
    monkeypatch.setattr(checks, "readable", lambda value: False)
    off, ignored = torch.tensor([0, 7, 0, 1]), torch.tensor([0, -100, 0, 1])
    for options in ({"class_weights": torch.ones(2)}, {"prototypes": PROTOTYPES, "prototype_anchors": True}):
        for reduction in ("mean", "batchmean", "sum"):
            losses = {focal_contrastive_loss(X, y, reduction=reduction, **options).item() for y in (off, ignored)}
            assert len(losses) == 1
        refs = [{**REFS, "ref_labels": torch.tensor([0, y, 1, 1, 0])} for y in (7, -100)]
        assert len({focal_contrastive_loss(X, Y, **options, **ref).item() for ref in refs}) == 1
    for ce_weight in (0.0, 1.0):
        assert len({kd_divergence(S, T, labels=y, ce_weight=ce_weight).item() for y in (off, ignored)}) == 1
