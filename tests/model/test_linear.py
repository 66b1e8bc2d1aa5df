from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch

from merc_model.config import IGNORE_INDEX
from merc_model.data.batch import collate
from merc_model.linear import LinearEvidence
from merc_model.model import MercModel
from tests.model.small import DIMS, LABEL_NAMES, small_config, small_corpus


def test_it_learns_what_can_be_learnt_and_leaves_out_what_is_unlabelled() -> None:
    torch.manual_seed(0)
    labels = torch.arange(300) % 3
    inputs = torch.cat((4 * torch.eye(3)[labels], torch.zeros(300, 3)), dim=1) + 0.1 * torch.randn(300, 6)
    model, other = (LinearEvidence({"text": 2}, 3, small_config(linear_penalty=1.0)) for _ in range(2))
    model.fit(inputs, labels)
    right = (inputs @ model.weight.T + model.bias).argmax(dim=1) == labels
    assert right.all()
    wrong = torch.cat((labels, torch.full((50,), IGNORE_INDEX)))
    other.fit(torch.cat((inputs, torch.randn(50, 6))), wrong)
    torch.testing.assert_close(other.weight, model.weight)


def test_two_classes_and_classes_that_never_came() -> None:
    torch.manual_seed(0)
    labels = 2 * (torch.arange(200) % 2)
    inputs = labels[:, None] + 0.1 * torch.randn(200, 3)
    model = LinearEvidence({"text": 1}, 4, small_config(linear_penalty=1.0))
    model.fit(inputs, labels)
    logits = inputs @ model.weight.T + model.bias
    assert (logits.argmax(dim=1) == labels).float().mean() > 0.95
    single = LinearEvidence({"text": 1}, 4, small_config())
    single.fit(inputs, torch.ones_like(labels))
    assert not single.weight.any()


def test_a_model_is_loaded_with_its_linear_model_which_speaks_in_evaluation_mode_and_of_text_alone() -> None:
    torch.manual_seed(0)
    corpus = small_corpus()
    quiet = {"dropout": 0.0, "feature_dropout": 0.0, "memory": False}
    model, without = (MercModel(DIMS, LABEL_NAMES, small_config(linear=linear, **quiet)) for linear in (True, False))
    model.fit_linear([collate(corpus, np.arange(9))])
    without.load_state_dict({k: v for k, v in model.state_dict().items() if not k.startswith("linear")})
    loaded = MercModel(DIMS, LABEL_NAMES, small_config(linear=True, **quiet)).eval()
    loaded.load_state_dict(model.state_dict())
    batch = collate(corpus, np.arange(9, 15))
    torch.testing.assert_close(model(batch).logits, without(batch).logits)
    model, without = model.eval(), without.eval()
    assert not torch.allclose(model(batch).logits, without(batch).logits)
    torch.testing.assert_close(loaded(batch).logits, model(batch).logits, atol=0, rtol=0)
    mute = batch.without("text")
    torch.testing.assert_close(model(mute).logits, without(mute).logits)


def test_padding_changes_nothing() -> None:
    torch.manual_seed(0)
    corpus = small_corpus(lengths=(2, *[5] * 14))
    model = MercModel(DIMS, LABEL_NAMES, small_config()).eval()
    model.fit_linear([collate(corpus, np.arange(9))])
    alone, padded = collate(corpus, np.array([0])), collate(corpus, np.array([0, 1]))
    padded = replace(padded, speakers=padded.speakers.masked_fill(~padded.utterance_mask, 1))
    torch.testing.assert_close(model(padded).logits[:1, :2], model(alone).logits)
