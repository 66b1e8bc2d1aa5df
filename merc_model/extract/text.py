"""Text features: the hidden states of a Hugging Face encoder, pooled, with what was said before as context."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merc_model.errors import UserError
from merc_model.extract import pretrained

POOLINGS = ("mean", "first", "last", "max")


class TextEncoder:
    """An encoder of utterances.

    Args:
        name: of a model, or a folder.
        pooling: mean, first, last or max, over the tokens of the utterance; ``mean`` with no context is what
            sentence-transformers does.
        device: where it runs.

    Attributes:
        tokenizer: of the encoder.
        model: the encoder, in evaluation mode.
    """

    def __init__(self, name: str, pooling: str = "mean", device: str = "cpu") -> None:
        if pooling not in POOLINGS:
            raise UserError(f"--text-pooling: expected one of {', '.join(POOLINGS)}, got {pooling!r}")
        self.tokenizer, model = pretrained.load("text encoder", name, "AutoTokenizer", "AutoModel")
        model = pretrained.encoder(model)
        self.model = model.to(device).eval()
        self._pooling, self._device = pooling, device
        known = [getattr(model.config, "max_position_embeddings", 512), self.tokenizer.model_max_length, 512]
        positions = min(value for value in known if isinstance(value, int) and value > 0)
        self._limit = positions - (2 if getattr(model.config, "model_type", "") in ("roberta", "xlm-roberta") else 0)
        first = self.tokenizer.cls_token_id
        self._first = [first] if first is not None else [i for i in [self.tokenizer.bos_token_id] if i is not None]
        last = self.tokenizer.sep_token_id
        self._last = [last] if last is not None else [i for i in [self.tokenizer.eos_token_id] if i is not None]

    def encode(self, texts: Sequence[str], contexts: Sequence[str]) -> NDArray[np.float32]:
        """``(N, D)``: a row for each text, seen after its context (empty: none)."""
        with torch.inference_mode():
            return self.states(texts, contexts).cpu().numpy().astype(np.float32)

    def states(self, texts: Sequence[str], contexts: Sequence[str]) -> Tensor:
        """What ``encode`` gives, on the device and with a gradient."""
        tokens, spans = zip(*(self._tokens(*pair) for pair in zip(texts, contexts, strict=True)), strict=True)
        width = max(map(len, tokens))
        ids = torch.full((len(tokens), width), self.tokenizer.pad_token_id or 0)
        mask, own = torch.zeros(len(tokens), width), torch.zeros(len(tokens), width, dtype=torch.bool)
        for row, (numbers, begin) in enumerate(zip(tokens, spans, strict=True)):
            ids[row, : len(numbers)] = torch.tensor(numbers)
            mask[row, : len(numbers)] = 1
            own[row, begin : len(numbers)] = True
        answer = self.model(input_ids=ids.to(self._device), attention_mask=mask.to(self._device))
        hidden: Tensor = answer.last_hidden_state.float()  # [N, T, D]
        return self._pooled(hidden, own.to(self._device))

    def _pooled(self, hidden: Tensor, own: Tensor) -> Tensor:
        if self._pooling == "first":
            return hidden[:, 0]
        if self._pooling == "last":
            last = own.shape[1] - 1 - own.flip(1).int().argmax(1)
            return hidden[torch.arange(len(hidden), device=last.device), last]
        if self._pooling == "max":
            return hidden.masked_fill(~own[..., None], -torch.inf).amax(1)
        return (hidden * own[..., None]).sum(1) / own.sum(1, keepdim=True)

    def _tokens(self, text: str, context: str) -> tuple[list[int], int]:
        """The tokens of an utterance behind its context, and where its own begin; the context is cut first."""
        room = self._limit - len(self._first) - 2 * len(self._last)
        own = self._ids(text)[:room]
        before = self._ids(context)[::-1][: room - len(own)][::-1] if context else []
        if not before:
            return self._first + own + self._last, 0
        begin = len(self._first) + len(before) + len(self._last)
        return self._first + before + self._last + own + self._last, begin

    def _ids(self, text: str) -> list[int]:
        ids: list[int] = self.tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]
        return ids
