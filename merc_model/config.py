"""Every choice of a run in one place; presets are TOML files beside it in ``presets/``."""

from __future__ import annotations

import dataclasses
import math
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import resources
from typing import Any, Literal, get_args, get_origin, get_type_hints

from merc_model.errors import UserError

MODALITIES = ("text", "audio", "visual")
TEACHER = "text"
IGNORE_INDEX = -100


@dataclass(frozen=True)
class Config:
    """What ``--set key=value`` can set; the defaults suit the IEMOCAP kind of corpus.

    Attributes:
        hidden_dim: width of every encoder and of the fusion.
        layers: transformer layers of an encoder.
        heads: attention heads of a layer.
        dropout: on the projected features and inside the transformer layers.
        speaker_slots: rows of the speaker table; a dialogue with more speakers shares them, index modulo slots.
        fusion: ``late``: an encoder a modality, then fused; ``early``: the control without teacher and students, which
            concatenates the features before one encoder.
        text_leading: text is anchored and the others shift it (False: the present modalities are averaged).
        shift_limit: β, the largest length of the shift beside that of the text vector.
        projection_dim: width of the embeddings that the contrastive loss sees.
        epochs: the most epochs of one stage.
        patience: epochs without a better validation weighted F1 before a stage stops.
        batch_dialogues: dialogues a batch.
        learning_rate: of AdamW, reached after the warm-up.
        encoder_learning_rate_scale: what the encoders' learning rate is multiplied by in the fusion stage.
        weight_decay: of AdamW.
        warmup: share of a stage's epochs in which the learning rate rises; it then falls as a cosine.
        clip_norm: largest gradient norm.
        average_decay: decay of the running average of the weights, which is what is validated and kept; 0 keeps
            the weights themselves.
        label_smoothing: of every cross entropy.
        class_balance: α of the cross entropies' class weights (N/n_c)^α; 0 weighs classes alike.
        modality_dropout: chance that a dialogue loses an audio or visual modality in a fusion step.
        modality_ce_weight: λ of the cross entropy on each modality's own head in the fusion stage.
        kd: distil the teacher's responses into the students.
        kd_weight: λ of it.
        kd_temperature: T of it.
        feature_kd: distil the relations between the teacher's hidden states of a batch.
        feature_kd_weight: λ of it.
        feature_kd_temperature: T of its softmax over cosines.
        fcl: focal contrastive loss in the fusion stage.
        fcl_weight: λ of it.
        fcl_temperature: τ of it.
        fcl_gamma: γ of it; 0 is the supervised contrastive loss.
        fcl_focal: the focal factor, ``similarity`` or ``probability``.
        fcl_class_balance: α of its class weights.
        elcl: one learnable prototype a class joins the contrastive batch.
        prototype_anchors: the prototypes are anchors too, not candidates alone.
        validation_fraction: share of the training dialogues cut off where a corpus has no validation set.
        select_on: where the best epoch is chosen; ``test`` is legacy, for comparison with papers that did so.
    """

    hidden_dim: int = 192
    layers: int = 2
    heads: int = 8
    dropout: float = 0.5
    speaker_slots: int = 10
    fusion: Literal["late", "early"] = "late"
    text_leading: bool = True
    shift_limit: float = 0.5
    projection_dim: int = 128
    epochs: int = 40
    patience: int = 12
    batch_dialogues: int = 16
    learning_rate: float = 5e-4
    encoder_learning_rate_scale: float = 0.3
    weight_decay: float = 0.01
    warmup: float = 0.1
    clip_norm: float = 1.0
    average_decay: float = 0.9
    label_smoothing: float = 0.1
    class_balance: float = 0.0
    modality_dropout: float = 0.1
    modality_ce_weight: float = 0.3
    kd: bool = True
    kd_weight: float = 0.3
    kd_temperature: float = 2.0
    feature_kd: bool = True
    feature_kd_weight: float = 1.0
    feature_kd_temperature: float = 0.1
    fcl: bool = True
    fcl_weight: float = 0.3
    fcl_temperature: float = 0.3
    fcl_gamma: float = 1.0
    fcl_focal: Literal["similarity", "probability"] = "similarity"
    fcl_class_balance: float = 0.5
    elcl: bool = True
    prototype_anchors: bool = False
    validation_fraction: float = 0.15
    select_on: Literal["valid", "test"] = "valid"

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for field in dataclasses.fields(self):
            problem = _problem(field.name, getattr(self, field.name), hints[field.name])
            if problem:
                raise UserError(f"{field.name}: {problem}")
        if self.hidden_dim % self.heads or self.hidden_dim % 2:
            raise UserError(f"hidden_dim: expected an even multiple of heads ({self.heads}), got {self.hidden_dim}")

    def changed(self, values: Mapping[str, Any]) -> Config:
        """A copy with some fields changed; a UserError for an unknown name or a value that does not fit."""
        names = [field.name for field in dataclasses.fields(self)]
        for key in values:
            if key not in names:
                raise UserError(f"no setting {key!r}; there are: {', '.join(names)}")
        return dataclasses.replace(self, **values)


_POSITIVE = {
    *(
        "hidden_dim",
        "layers",
        "heads",
        "speaker_slots",
        "projection_dim",
        "epochs",
        "patience",
        "batch_dialogues",
    ),
    *(
        "learning_rate",
        "clip_norm",
        "kd_temperature",
        "feature_kd_temperature",
        "fcl_temperature",
        "shift_limit",
    ),
}
_BELOW_ONE = {
    "dropout",
    "warmup",
    "average_decay",
    "label_smoothing",
    "modality_dropout",
    "validation_fraction",
}


def _problem(name: str, value: object, hint: Any) -> str | None:
    """What is wrong with a field's value, in words, or None."""
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"expected one of {', '.join(get_args(hint))}, got {value!r}"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = isinstance(value, bool) if hint is bool else number and (hint is float or isinstance(value, int))
    if not fits:
        return f"expected {hint.__name__}, got {value!r}"
    if hint is bool:
        return None
    assert isinstance(value, (int, float))
    if abs(value) > 1e300 or math.isnan(value) or value < 0 or (name in _POSITIVE and value == 0):
        return f"expected {'> 0' if name in _POSITIVE else '>= 0'} and finite, got {value}"
    if name in _BELOW_ONE and value >= 1:
        return f"expected < 1, got {value}"
    return None


def presets() -> list[str]:
    """Names that ``--preset`` takes."""
    folder = resources.files("merc_model").joinpath("presets")
    return sorted(file.name.removesuffix(".toml") for file in folder.iterdir() if file.name.endswith(".toml"))


def load_preset(name: str) -> Config:
    """The configuration of a preset; a UserError for an unknown name."""
    if name not in presets():
        raise UserError(f"no preset {name!r}; there are: {', '.join(presets())}")
    text = resources.files("merc_model").joinpath("presets", f"{name}.toml").read_text("utf-8")
    return Config().changed(tomllib.loads(text))


def parse_settings(settings: Sequence[str]) -> dict[str, Any]:
    """``["lr=1e-3", "kd=false"]`` as a mapping; the values are read as TOML, bare words as strings."""
    values: dict[str, Any] = {}
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise UserError(f"--set {setting}: expected key=value")
        try:
            values[key] = tomllib.loads(f"value = {text}")["value"]
        except (ValueError, RecursionError):
            values[key] = text
    return values
