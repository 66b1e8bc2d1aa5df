from __future__ import annotations

import pytest

from merc_model.config import Config, load_preset, parse_settings, presets
from merc_model.errors import UserError


def test_presets_load() -> None:
    assert presets() == ["iemocap", "meld", "synthetic"]
    assert all(isinstance(load_preset(name), Config) for name in presets())
    with pytest.raises(UserError, match="no preset 'nope'; there are: iemocap, meld, synthetic"):
        load_preset("nope")


def test_settings_are_read_as_toml_and_words_as_they_are() -> None:
    settings = parse_settings(["epochs=3", "dropout=0.1", "kd=false", "fcl_focal=probability", "learning_rate=1e-3"])
    assert settings == {
        "epochs": 3, "dropout": 0.1, "kd": False, "fcl_focal": "probability", "learning_rate": 1e-3,
    }  # fmt: skip
    assert Config().changed(settings).fcl_focal == "probability"


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("epochs", "expected key=value"),
        ("=3", "expected key=value"),
        ("epoch=3", "no setting 'epoch'; there are: hidden_dim"),
        ("epochs=three", "epochs: expected int, got 'three'"),
        ("epochs=1.5", "epochs: expected int, got 1.5"),
        ("epochs=true", "epochs: expected int, got True"),
        ("epochs=0", "epochs: expected > 0 and finite, got 0"),
        ("kd=1", "kd: expected bool, got 1"),
        ("dropout=1", "dropout: expected < 1, got 1"),
        ("dropout=-0.1", "dropout: expected >= 0 and finite"),
        ("learning_rate=nan", "learning_rate: expected > 0 and finite"),
        ("fcl_focal=distance", "fcl_focal: expected one of similarity, probability, got 'distance'"),
        ("layers=1000000", "layers: expected at most 1000, got 1e\\+06"),
        ("batch_dialogues=9223372036854775808", "batch_dialogues: expected at most 1e\\+09"),
        ("hidden_dim=15", "hidden_dim: expected an even multiple of heads"),
    ],
)
def test_a_setting_that_does_not_fit_is_said(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Config().changed(parse_settings([setting]))
