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


@pytest.fixture
def teacher() -> MercModel:
    torch.manual_seed(1)
    return MercModel(DIMS, LABEL_NAMES, small_config()).eval()


def test_the_total_is_the_weighted_sum_of_the_terms(model: MercModel, teacher: MercModel, batch: Batch) -> None:
    weights = {"modality_ce": 0.2, "kd": 0.7, "feature_kd": 0.4, "fcl": 0.9}
    config = small_config(**{f"{name}_weight": weight for name, weight in weights.items()}, kd_warmup=0.5)
    for share, scale in ((0.1, 0.2), (0.5, 1.0), (0.9, 1.0)):
        terms = Objective(config, COUNTS)(model, teacher, batch, share=share)
        expected = terms["ce_loss"] + sum(
            weight * terms[f"{name}_loss"] * (scale if "kd" in name else 1) for name, weight in weights.items()
        )
        torch.testing.assert_close(terms["loss"], expected)


def test_each_term_is_what_its_formula_says(model: MercModel, teacher: MercModel, batch: Batch) -> None:
    config = small_config(
        label_smoothing=0.0,
        class_balance=1.0,
        kd_temperature=3.0,
        feature_kd_temperature=0.5,
    )
    real = batch.utterance_mask
    labels = batch.labels[real]
    output = model(batch)
    terms = Objective(config, COUNTS)(model, teacher, batch)

    weights = class_balanced_weights(COUNTS, 1.0)

    def cross_entropy(logits: torch.Tensor) -> torch.Tensor:
        log_p = logits[real].log_softmax(-1)
        return -(weights[labels] * log_p.gather(1, labels[:, None])[:, 0]).mean().detach()

    torch.testing.assert_close(terms["ce_loss"], cross_entropy(output.logits))
    heads = [cross_entropy(logits) for logits in output.modality_logits.values()]
    torch.testing.assert_close(terms["modality_ce_loss"], torch.stack(heads).sum())

    teacher_hidden, teacher_logits = (values[real] for values in teacher.encode("text", batch))
    responses, relations = torch.zeros(()), torch.zeros(())
    for student in ("audio", "visual"):
        log_q = (output.modality_logits[student][real] / 3).log_softmax(-1)
        responses += 9 * F.kl_div(log_q, (teacher_logits / 3).softmax(-1), reduction="batchmean").detach()
        unit_teacher = F.normalize(teacher_hidden, dim=-1)
        unit_student = F.normalize(output.hidden[student][real], dim=-1)
        p = (unit_teacher @ unit_teacher.T / 0.5).softmax(-1)
        log_q = (unit_teacher @ unit_student.T / 0.5).log_softmax(-1)
        relations += F.kl_div(log_q, p, reduction="batchmean").detach()
    torch.testing.assert_close(terms["kd_loss"], responses)
    torch.testing.assert_close(terms["feature_kd_loss"], relations)

    contrastive = reference.focal_contrastive_loss(
        output.embeddings[real],
        labels,
        temperature=config.fcl_temperature,
        gamma=config.fcl_gamma,
        class_weights=class_balanced_weights(COUNTS, config.fcl_class_balance),
        prototypes=model.prototypes,
    )
    torch.testing.assert_close(terms["fcl_loss"], contrastive.detach())


@pytest.mark.parametrize("switch", ["kd", "feature_kd", "fcl"])
def test_a_part_that_is_off_is_no_term(model: MercModel, teacher: MercModel, batch: Batch, switch: str) -> None:
    terms = Objective(small_config(), COUNTS)(model, teacher, batch)
    without = Objective(small_config(**{switch: False}), COUNTS)(model, teacher, batch)
    assert terms.keys() - without.keys() == {f"{switch}_loss"}


def test_distillation_reaches_the_students_alone(model: MercModel, teacher: MercModel, batch: Batch) -> None:
    gradients = []
    for kd in (True, False):
        model.zero_grad()
        Objective(small_config(kd=kd, feature_kd=kd), COUNTS)(model, teacher, batch)["loss"].backward()
        gradients.append({name: parameter.grad.clone() for name, parameter in model.named_parameters()})
    changed = {name for name, value in gradients[0].items() if not torch.equal(value, gradients[1][name])}
    assert changed
    assert all(
        name.startswith(("encoders.audio", "encoders.visual", "heads.audio", "heads.visual")) for name in changed
    )
    assert all(parameter.grad is None for parameter in teacher.parameters())


def test_the_teacher_has_the_text_that_the_students_side_lost(
    model: MercModel, teacher: MercModel, batch: Batch
) -> None:
    objective = Objective(small_config(), COUNTS)
    thinned, whole = objective(model, teacher, batch.without("text"), whole=batch), objective(model, teacher, batch)
    for name in ("kd_loss", "feature_kd_loss"):
        torch.testing.assert_close(thinned[name], whole[name], atol=0, rtol=0)


@pytest.mark.parametrize("elcl", [True, False])
def test_prototypes_learn_through_elcl_alone(model: MercModel, teacher: MercModel, batch: Batch, elcl: bool) -> None:
    Objective(small_config(elcl=elcl), COUNTS)(model, teacher, batch)["loss"].backward()
    assert (model.prototypes.grad is not None) == elcl
