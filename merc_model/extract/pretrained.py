"""Models of Hugging Face's transformers, by name or folder."""

from __future__ import annotations

import sys
from typing import Any

from merc_model.errors import UserError


def load(what: str, name: str, *classes: str) -> list[Any]:
    """A model and what goes with it.

    Args:
        what: it is, in errors.
        name: of a model of the hub, or a folder.
        classes: of transformers, such as ``AutoTokenizer`` and ``AutoModel``.

    Raises:
        UserError: transformers is not installed, or the model cannot be loaded.
    """
    try:
        import transformers
    except ImportError:
        raise UserError(f"the {what} needs transformers: pip install 'merc-kdc[extract]'") from None
    auto: Any = transformers
    if not sys.stderr.isatty():
        auto.utils.logging.disable_progress_bar()
    try:
        return [getattr(auto, each).from_pretrained(name) for each in classes]
    except Exception as error:  # a hub, a network, a folder and a format can fail in any way
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{what} {name!r} cannot be loaded: {reason}") from None


def encoder(model: Any) -> Any:
    """The encoder of a model that has a decoder too (T5, Whisper), or the model."""
    return model.get_encoder() if getattr(model.config, "is_encoder_decoder", False) else model
