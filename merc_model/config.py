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
        layers: dialogue layers of a modality's encoder.
        fusion_layers: dialogue layers over the fused states.
        heads: attention heads of a layer.
        dropout: inside the dialogue layers, on the projected features and before every classifier.
        feature_dropout: on the features themselves.
        speaker_relative: audio and visual features are given a second time, relative to their speaker's own mean and
            sd in the dialogue.
        fusion: ``late``: an encoder per modality, then fused; ``early``: the control without teacher and students,
            which concatenates the features before one encoder.
        text_leading: text asks the others over the dialogue and is completed by them (False: the present
            modalities are averaged) (stated; the form ours).
        causal: an utterance sees only itself and what came before it, in every part, as it must be where answers are
            wanted while people still speak (``merc predict --stream``).
        projection_dim: width of the embeddings that the contrastive loss sees.
        memory: the training utterances most like an utterance have a say in its prediction (ours, after
            kNN-LM).
        memory_weight: of their evidence beside the logits.
        memory_temperature: τ of the softmax over similarities; the smaller, the fewer neighbours count.
        memory_reach: distance in utterances at which the weight of what was found for the speaker's other
            utterances falls to 1/e; 0: each utterance asks for itself alone.
        linear: logistic regression on an utterance's features and on means of those around it has a say in its
            prediction (ours).
        linear_weight: of its log-probabilities beside the logits.
        linear_penalty: scikit-learn's C of it, the inverse of the penalty.
        epochs: of training.
        batch_dialogues: dialogues per batch.
        learning_rate: of AdamW, reached after the warm-up.
        weight_decay: of AdamW, on matrices.
        warmup: share of the epochs in which the learning rate rises; it then falls as a cosine.
        clip_norm: largest gradient norm.
        average_decay: decay of the running average of the weights, which is what is kept and what teaches; 0 takes
            the weights themselves.
        label_smoothing: of every cross entropy.
        class_balance: α of the cross entropies' class weights (N/n_c)^α; 0 weighs classes alike (form:
            MultiEMO).
        prior_adjustment: how much of the logarithm of each class's share is taken from the fused logits at
            prediction, so that a rare class is not given up for its rarity (Menon et al. 2021).
        modality_dropout: chance that a dialogue loses a modality in a training step; it never loses all.
        modality_ce_weight: λ of the cross entropy on each modality's own head (SDT).
        kd: distil the text teacher's responses into the students (stated).
        kd_weight: λ of it.
        kd_temperature: T of it (TelME).
        kd_warmup: share of training over which both distillations grow to their weight, as the teacher learns.
        feature_kd: distil the relations between the teacher's hidden states of a batch (TelME).
        feature_kd_weight: λ of it.
        feature_kd_temperature: T of its softmax over cosines.
        fcl: focal contrastive loss on the fused states (stated).
        fcl_weight: λ of it.
        fcl_temperature: τ of it.
        fcl_gamma: γ of it; 0 is the supervised contrastive loss.
        fcl_focal: the focal factor, ``similarity`` or ``probability`` (stated in words; `probability`:
            MultiEMO).
        fcl_class_balance: α of its class weights (form: MultiEMO).
        elcl: one learnable prototype per class joins the contrastive batch (stated; the form: SSLCL, EACL).
        prototype_anchors: the prototypes are anchors too, not candidates alone.
        select_on: which epoch is kept: the ``last``, and then no validation set is cut off where a corpus has
            none; or the best on ``valid``, or on ``test``, for comparison with papers that did so.
        validation_fraction: share of the training dialogues cut off under ``valid`` where a corpus has no such set.
        finetune_text: first fine-tune a text encoder on the words of the training dialogues; its features, frozen,
            take the place of the corpus's own (``merc train`` alone).
        finetune_encoder: which, by name or folder; empty: the one that the corpus was extracted with.
        finetune_context: utterances before it, each with its speaker, that the encoder sees.
        finetune_epochs: of fine-tuning.
        finetune_batch: utterances per batch.
        finetune_learning_rate: of the encoder; its linear head has learning_rate.
        finetune_lora: rank of low-rank adapters that are learnt (LoRA, with peft) instead of the encoder's own weights;
            0: the weights.
        finetune_checkpointing: compute activations again in the backward pass, which needs less memory and more time.
    """

    hidden_dim: int = 128
    layers: int = 1
    fusion_layers: int = 1
    heads: int = 4
    dropout: float = 0.3
    feature_dropout: float = 0.3
    speaker_relative: bool = True
    fusion: Literal["late", "early"] = "late"
    text_leading: bool = True
    causal: bool = False
    projection_dim: int = 128
    memory: bool = True
    memory_weight: float = 0.5
    memory_temperature: float = 0.05
    memory_reach: float = 4.0
    linear: bool = True
    linear_weight: float = 0.5
    linear_penalty: float = 0.005
    epochs: int = 24
    batch_dialogues: int = 8
    learning_rate: float = 1e-3
    weight_decay: float = 0.05
    warmup: float = 0.1
    clip_norm: float = 1.0
    average_decay: float = 0.97
    label_smoothing: float = 0.1
    class_balance: float = 0.0
    prior_adjustment: float = 0.0
    modality_dropout: float = 0.1
    modality_ce_weight: float = 1.0
    kd: bool = True
    kd_weight: float = 0.1
    kd_temperature: float = 2.0
    kd_warmup: float = 0.3
    feature_kd: bool = True
    feature_kd_weight: float = 0.1
    feature_kd_temperature: float = 0.1
    fcl: bool = True
    fcl_weight: float = 0.3
    fcl_temperature: float = 0.3
    fcl_gamma: float = 1.0
    fcl_focal: Literal["similarity", "probability"] = "similarity"
    fcl_class_balance: float = 0.5
    elcl: bool = True
    prototype_anchors: bool = False
    select_on: Literal["last", "valid", "test"] = "last"
    validation_fraction: float = 0.15
    finetune_text: bool = False
    finetune_encoder: str = ""
    finetune_context: int = 4
    finetune_epochs: int = 3
    finetune_batch: int = 16
    finetune_learning_rate: float = 2e-5
    finetune_lora: int = 0
    finetune_checkpointing: bool = False

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
    *("hidden_dim", "layers", "heads", "projection_dim", "epochs", "batch_dialogues"),
    *("learning_rate", "clip_norm", "linear_penalty", "memory_temperature", "kd_temperature", "kd_warmup"),
    *("feature_kd_temperature", "fcl_temperature"),
    *("finetune_epochs", "finetune_batch", "finetune_learning_rate"),
}
_BELOW_ONE = {
    *("dropout", "feature_dropout", "warmup", "average_decay", "label_smoothing", "modality_dropout"),
    "validation_fraction",
}


_MOST = {"layers": 1000}  # of integers; whether the model fits into the memory is seen when it is built


def _problem(name: str, value: object, hint: Any) -> str | None:
    """What is wrong with a field's value, in words, or None."""
    if get_origin(hint) is Literal:
        return None if value in get_args(hint) else f"expected one of {', '.join(get_args(hint))}, got {value!r}"
    if hint is str:
        return None if isinstance(value, str) else f"expected a text, got {value!r}"
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    fits = isinstance(value, bool) if hint is bool else number and (hint is float or isinstance(value, int))
    if not fits:
        return f"expected {hint.__name__}, got {value!r}"
    if hint is bool:
        return None
    assert isinstance(value, (int, float))
    if abs(value) > 1e300 or math.isnan(value) or value < 0 or (name in _POSITIVE and value == 0):
        return f"expected {'> 0' if name in _POSITIVE else '>= 0'} and finite, got {value}"
    most = _MOST.get(name, 1e9)
    if isinstance(value, int) and value > most:
        return f"expected at most {most:g}, got {value:g}"
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
