"""A text encoder fine-tuned on the words of the training dialogues; its features, frozen, are then the corpus's text.

An utterance is read after those before it, each with its speaker, and is what its own tokens' mean says: the way in
which `merc_model.extract` makes features, so that a run's encoder reads new words as it read those it learnt from.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from tqdm.auto import tqdm

from merc_model.checkpoint import ENCODER, Record, RunFolder
from merc_model.config import IGNORE_INDEX, TEACHER, Config
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.extract.cache import Cache, identity
from merc_model.extract.rows import Work, read_texts, text_rows
from merc_model.extract.settings import Settings
from merc_model.extract.table import Utterance
from merc_model.extract.text import TextEncoder
from merc_model.files import write_folder

_STATE = "finetune.pt"
_CACHE = "text.cache"
_WARMUP = 0.1  # share of the steps
_WEIGHT_DECAY = 0.01
_ALIKE = 16  # batches whose utterances are sorted by length, so that little is padded


def recorded(record: Record, corpus: Corpus) -> Record:
    """The record of a run that fine-tunes, with the width and the settings of the features it will have.

    Raises:
        UserError: no words to learn from, no encoder, or no peft where adapters are asked for.
    """
    config = record.config
    name = _encoder_name(config, corpus)
    if corpus.transcript is None:
        raise UserError(f"corpus {corpus.name}: has no transcript, so finetune_text has no words to learn from")
    if not len(_learnt_from(corpus)):
        raise UserError(f"corpus {corpus.name}: no labelled utterance with words in split 'train', to fine-tune on")
    encoder = TextEncoder(name)
    if config.finetune_lora:
        _peft()
    width = encoder.states(["so"], [""]).shape[1]
    dims = {TEACHER: width} | {modality: dim for modality, dim in corpus.dims.items() if modality != TEACHER}
    extraction = _settings(corpus.extraction, config).json()
    return replace(record, corpus=record.corpus | {"dims": dims, "extraction": extraction})


def tuned(folder: RunFolder, record: Record, corpus: Corpus, device: torch.device) -> Corpus:
    """The corpus with the features of the run's encoder, which is trained first where it is not there yet."""
    target = folder.encoder
    if not target.is_dir():
        encoder = TextEncoder(_encoder_name(record.config, corpus), device=str(device))
        _train(folder, record, corpus, encoder, device)
        _save(encoder, target)
    (folder.path / _STATE).unlink(missing_ok=True)
    return retold(folder, record, corpus, device)


def settings(folder: RunFolder, record: Record) -> Settings:
    """How features are made with the encoder in a run folder, wherever that lies now."""
    encoder = folder.encoder
    if not encoder.is_dir():
        raise UserError(f"{encoder}: is not there: the text encoder that the run has fine-tuned")
    recorded = Settings.of(record.corpus["extraction"])
    contents = recorded.contents | {TEACHER: identity(str(encoder))}
    return replace(recorded, text=str(encoder.resolve()), contents=contents)


def retold(folder: RunFolder, record: Record, corpus: Corpus, device: torch.device) -> Corpus:
    """A corpus, or a conversation, whose text features the run's encoder makes anew from its words."""
    if corpus.transcript is None or not (corpus.transcript != "").any():
        if TEACHER in corpus.features:
            raise UserError(f"{corpus.name}: has no transcript, and the run reads text with an encoder of its own")
        return corpus
    own = corpus.fingerprint() == record.corpus["sha256"]
    cache = Cache(folder.path / _CACHE if own else Path(":memory:"))
    rows = text_rows(_utterances(corpus), settings(folder, record), Work(cache, device=str(device)))
    cache.close()
    others = {modality: values for modality, values in corpus.features.items() if modality != TEACHER}
    extraction = None if corpus.extraction is None else _settings(corpus.extraction, record.config).json()
    return replace(corpus, features={TEACHER: rows, **others}, extraction=extraction)


def _train(folder: RunFolder, record: Record, corpus: Corpus, encoder: TextEncoder, device: torch.device) -> None:
    """Cross entropy of a linear head on the encoder; the state is saved after each epoch, and gone on from."""
    config = record.config
    rows = _learnt_from(corpus)
    texts, contexts = read_texts(_utterances(corpus), _settings(None, config))
    lengths = np.array([len(texts[row]) + len(contexts[row]) for row in rows])
    torch.manual_seed(record.seed)
    model = encoder.model = _prepared(encoder.model.float(), config)
    head = nn.Linear(record.corpus["dims"][TEACHER], corpus.num_classes).to(device)
    learnt = [parameter for parameter in model.parameters() if parameter.requires_grad]
    groups: list[dict[str, Any]] = [
        {"params": learnt, "lr": config.finetune_learning_rate},
        {"params": list(head.parameters())},
    ]
    optimizer = torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=_WEIGHT_DECAY)
    steps = config.finetune_epochs * math.ceil(len(rows) / config.finetune_batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _share_of_rate(step / steps))
    parts = {"model": model, "head": head, "optimizer": optimizer, "schedule": schedule}
    model.train()
    for epoch in range(_restored(folder, parts), config.finetune_epochs):
        seed = np.random.SeedSequence((record.seed, epoch)).generate_state(2, np.uint64)
        torch.manual_seed(int(seed[0]))
        total = torch.zeros((), device=device)
        batches = _batches(rows, lengths, config.finetune_batch, np.random.default_rng(seed[1]))
        for batch in tqdm(batches, desc=f"fine-tuning {epoch + 1}/{config.finetune_epochs}", disable=None):
            labels = torch.from_numpy(corpus.labels[batch]).to(device)
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                logits = head(encoder.states([texts[row] for row in batch], [contexts[row] for row in batch]))
            loss = nn.functional.cross_entropy(logits.float(), labels, label_smoothing=config.label_smoothing)
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            nn.utils.clip_grad_norm_([*learnt, *head.parameters()], config.clip_norm)
            optimizer.step()
            schedule.step()
            total += loss.detach() * len(batch)
        mean = float(total) / len(rows)
        if not math.isfinite(mean):
            raise UserError(f"fine-tuning, epoch {epoch + 1}: the loss is {mean}; lower finetune_learning_rate")
        tqdm.write(f"fine-tuning: epoch {epoch + 1} of {config.finetune_epochs}, loss {mean:.3f}", file=sys.stderr)
        folder.write_state({name: part.state_dict() for name, part in parts.items()} | {"epoch": epoch + 1}, _STATE)
    encoder.model = model.merge_and_unload() if config.finetune_lora else model


def _restored(folder: RunFolder, parts: dict[str, Any]) -> int:
    """The epochs that were done already, whose state the parts then have."""
    state = folder.read_state(torch.device("cpu"), _STATE)
    if state is None:
        return 0
    try:
        for name, part in parts.items():
            part.load_state_dict(state[name])
        return int(state["epoch"])
    except (LookupError, TypeError, ValueError, RuntimeError, AttributeError):
        path = folder.path / _STATE
        raise UserError(f"{path}: is damaged, or not of this run; delete it to start anew") from None


def _prepared(model: Any, config: Config) -> Any:
    """The encoder as it is trained: with adapters, with activations that are not kept."""
    whole = model
    if config.finetune_lora:
        peft = _peft()
        model = peft.get_peft_model(
            model,
            peft.LoraConfig(r=config.finetune_lora, lora_alpha=2 * config.finetune_lora, target_modules="all-linear"),
        )
    if config.finetune_checkpointing:
        enable = getattr(whole, "activation_checkpointing_enable", None) or whole.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    return model


def _save(encoder: TextEncoder, target: Path) -> None:
    def write(folder: Path) -> None:
        encoder.model.save_pretrained(folder)
        encoder.tokenizer.save_pretrained(folder)

    write_folder(target, write)


def _settings(extraction: str | None, config: Config) -> Settings:
    """How the run's features are made: text by its own encoder, all else as before."""
    before = Settings(audio=None) if extraction is None else Settings.of(extraction)
    contents = {name: value for name, value in before.contents.items() if name != TEACHER}
    text: dict[str, Any] = {"text": ENCODER, "text_pooling": "mean", "text_context": config.finetune_context}
    return replace(before, **text, text_speakers=True, contents=contents)


def _encoder_name(config: Config, corpus: Corpus) -> str:
    name = config.finetune_encoder
    if not name and corpus.extraction is not None:
        name = Settings.of(corpus.extraction).text or ""
    if not name:
        raise UserError(
            f"corpus {corpus.name}: was not made with a text encoder; name the one to fine-tune:"
            " --set finetune_text=true finetune_encoder=NAME"
        )
    return name


def _learnt_from(corpus: Corpus) -> NDArray[np.int64]:
    """The labelled training utterances with words."""
    assert corpus.transcript is not None
    rows = corpus.rows(corpus.dialogues("train"))
    learnt: NDArray[np.int64] = rows[(corpus.labels[rows] != IGNORE_INDEX) & (corpus.transcript[rows] != "")]
    return learnt


def _utterances(corpus: Corpus) -> list[Utterance]:
    assert corpus.transcript is not None
    dialogues = np.repeat(corpus.dialogue_ids, np.diff(corpus.offsets)).tolist()
    names = corpus.speaker_names
    speakers = [f"speaker {number}" for number in corpus.speakers] if names is None else names.tolist()
    return [Utterance("", *row) for row in zip(dialogues, speakers, corpus.transcript.tolist(), strict=True)]


def _batches(
    rows: NDArray[np.int64], lengths: NDArray[np.int64], size: int, generator: np.random.Generator
) -> Sequence[NDArray[np.int64]]:
    """The rows in a random order, in batches of texts of like length."""
    order = generator.permutation(len(rows))
    blocks = [order[start : start + _ALIKE * size] for start in range(0, len(order), _ALIKE * size)]
    sorted_blocks = [block[np.argsort(lengths[block], kind="stable")] for block in blocks]
    batches = [rows[block[start : start + size]] for block in sorted_blocks for start in range(0, len(block), size)]
    return [batches[index] for index in generator.permutation(len(batches))]


def _share_of_rate(done: float) -> float:
    """A linear rise over the warm-up, then a line to zero."""
    return max(done / _WARMUP, 0.01) if done < _WARMUP else max(1 - done, 0.0) / (1 - _WARMUP)


def _peft() -> Any:
    try:
        import peft
    except ImportError:
        raise UserError("finetune_lora needs peft: pip install peft") from None
    return peft
