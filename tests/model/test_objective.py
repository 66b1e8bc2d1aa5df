from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from merc_kernels import class_balanced_weights, reference
from merc_model.data.batch import Batch, collate
from merc_model.model import MercModel
from merc_model.objective import Objective
from tests.model.small import DIMS, LABEL_NAMES, small_config, small_corpus

COUNTS = torch.tensor([10, 20, 5])


@pytest.fixture
def batch() -> Batch:
    return collate(small_corpus(), np.arange(5))


@pytest.fixture
def model() -> MercModel:
    torch.manual_seed(0)
    return MercModel(DIMS, LABEL_NAMES, small_config()).eval()


def test_the_total_is_the_weighted_sum_of_the_terms(model: MercModel, batch: Batch) -> None:
    config = small_config(kd_weight=0.7, feature_kd_weight=0.4, modality_ce_weight=0.2, fcl_weight=0.9)
    objective = Objective(config, COUNTS)
    student = objective.student(model, "audio", batch)
    expected = student["ce_loss"] + 0.7 * student["kd_loss"] + 0.4 * student["feature_kd_loss"]
    torch.testing.assert_close(student["loss"], expected)
    fusion = objective.fusion(model, batch)
    expected = fusion["ce_loss"] + 0.2 * fusion["modality_ce_loss"] + 0.9 * fusion["fcl_loss"]
    torch.testing.assert_close(fusion["loss"], expected)


def test_each_term_is_what_its_formula_says(model: MercModel, batch: Batch) -> None:
    config = small_config(label_smoothing=0.0, class_balance=1.0, kd_temperature=3.0, feature_kd_temperature=0.5)
    objective = Objective(config, COUNTS)
    real = batch.utterance_mask
    labels = batch.labels[real]
    teacher_hidden, teacher_logits = (values[real] for values in model.encode("text", batch))
    hidden, logits = (values[real] for values in model.encode("audio", batch))
    terms = objective.student(model, "audio", batch)

    weights = class_balanced_weights(COUNTS, 1.0)
    cross_entropy = -(weights[labels] * logits.log_softmax(-1).gather(1, labels[:, None])[:, 0]).mean()
    torch.testing.assert_close(terms["ce_loss"], cross_entropy.detach())
    log_q, p = (logits / 3).log_softmax(-1), (teacher_logits / 3).softmax(-1)
    torch.testing.assert_close(terms["kd_loss"], 9 * F.kl_div(log_q, p, reduction="batchmean").detach())
    unit_teacher, unit_student = F.normalize(teacher_hidden, dim=-1), F.normalize(hidden, dim=-1)
    p = (unit_teacher @ unit_teacher.T / 0.5).softmax(-1)
    log_q = (unit_teacher @ unit_student.T / 0.5).log_softmax(-1)
    torch.testing.assert_close(terms["feature_kd_loss"], F.kl_div(log_q, p, reduction="batchmean").detach())

    contrastive = reference.focal_contrastive_loss(
        model(batch).embeddings[real],
        labels,
        temperature=config.fcl_temperature,
        gamma=config.fcl_gamma,
        class_weights=class_balanced_weights(COUNTS, config.fcl_class_balance),
        prototypes=model.prototypes,
    )
    torch.testing.assert_close(objective.fusion(model, batch)["fcl_loss"], contrastive.detach())


def test_no_gradient_reaches_the_teacher_from_a_student(model: MercModel, batch: Batch) -> None:
    Objective(small_config(), COUNTS).student(model, "visual", batch)["loss"].backward()
    assert all(parameter.grad is None for parameter in model.encoders["text"].parameters())
    assert all(parameter.grad is not None for parameter in model.heads["visual"].parameters())


@pytest.mark.parametrize("elcl", [True, False])
def test_prototypes_learn_through_elcl_alone(model: MercModel, batch: Batch, elcl: bool) -> None:
    Objective(small_config(elcl=elcl), COUNTS).fusion(model, batch)["loss"].backward()
    assert (model.prototypes.grad is not None) == elcl
