"""The whole predictor of a run in one file that needs nothing of this package: ONNX, or PyTorch's exported program.

Dialogues, utterances and speakers may be any number; features go in as they stand in a corpus. What was written is read
back and tried before it is kept.
"""

from __future__ import annotations

import contextlib
import importlib.util
import io
import json
import logging
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from merc_kernels import __version__
from merc_model.errors import UserError
from merc_model.files import write_whole
from merc_model.model import MercModel
from merc_model.predictor import Predictor

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2"}
FACTS = "merc.json"  # among a .pt2's extra files
_TOLERANCE = 1e-5  # of a probability
_LARGEST = 2**31  # bytes of an ONNX file

Inputs = tuple[dict[str, Tensor], Tensor, Tensor]
Answers = Callable[[Inputs], Tensor]


def export(model: MercModel, to: str, path: Path) -> float:
    """Write a model's predictor, and return how far its probabilities are from the model's on made-up dialogues.

    Args:
        model: a trained model, on the CPU.
        to: ``onnx`` or ``torch``.
        path: of the file.

    Raises:
        UserError: packages that are not installed, a model too large for the format, a file that cannot be written, or
            answers that differ by more than 1e-5.
    """
    predictor = Predictor(model)
    with torch.inference_mode(False), torch.no_grad(), _quiet():
        data, answers = (_onnx if to == "onnx" else _program)(predictor, facts(model))
        difference = max(
            float((answers(inputs) - predictor(*inputs)).abs().max())
            for inputs in (_made_up(model, *shape) for shape in ((1, 1), (3, 9), (1, 130)))
        )
    if not difference <= _TOLERANCE:
        raise UserError(
            f"{path}: the exported answers differ by {difference:.0e} from the model's; nothing was written"
        )
    write_whole(path, lambda file: file.write(data))
    return difference


def share(run: Path, folder: Path) -> None:
    """Write a run into a folder as `PretrainedPredictor.save_pretrained` does; a UserError without huggingface_hub."""
    _require("huggingface_hub")
    from merc_model.pretrained import PretrainedPredictor

    PretrainedPredictor.from_pretrained(run).save_pretrained(folder)


def facts(model: MercModel) -> dict[str, Any]:
    """What a reader of the file must know: the emotions in order, each modality's width, whether it looks ahead."""
    return {
        "label_names": model.label_names,
        "dims": model.dims,
        "causal": model.causal,
        "merc-kdc": __version__,
    }


def _program(predictor: Predictor, known: dict[str, Any]) -> tuple[bytes, Answers]:
    program = torch.export.export(predictor, _made_up(predictor.model, 3, 9), dynamic_shapes=_shapes(predictor.model))
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={FACTS: json.dumps(known)})
    written = torch.export.load(io.BytesIO(buffer.getvalue())).module()
    return buffer.getvalue(), lambda inputs: written(*inputs)


def _onnx(predictor: Predictor, known: dict[str, Any]) -> tuple[bytes, Answers]:
    _require("onnx", "onnxscript", "onnxruntime")
    if sum(value.nbytes for value in predictor.state_dict().values()) >= _LARGEST:
        raise UserError("the model is larger than the 2 GiB that an ONNX file holds; export it to torch")
    import onnxruntime

    model = predictor.model
    program = torch.onnx.export(
        predictor,
        _made_up(model, 3, 9),
        dynamo=True,
        dynamic_shapes=_shapes(model),
        input_names=[*model.modalities, "speakers", "utterance_mask"],
        output_names=["probabilities"],
        verbose=False,
    )
    assert program is not None
    written = program.model_proto
    for key, value in known.items():
        written.metadata_props.add(key=key, value=json.dumps(value))
    data: bytes = written.SerializeToString()
    session = onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"])

    def answers(inputs: Inputs) -> Tensor:
        features, speakers, utterance_mask = inputs
        named = {**features, "speakers": speakers, "utterance_mask": utterance_mask}
        return torch.from_numpy(session.run(None, {name: value.numpy() for name, value in named.items()})[0])

    return data, answers


def _shapes(model: MercModel) -> tuple[Any, ...]:
    """Which dimensions of `Inputs` may be any number."""
    free = {0: torch.export.Dim("dialogues"), 1: torch.export.Dim("utterances")}
    return dict.fromkeys(model.modalities, free), free, free


def _made_up(model: MercModel, dialogues: int, length: int) -> Inputs:
    """Dialogues of three speakers, the second shorter and without text; a fifth of the rows is missing."""
    generator = torch.Generator().manual_seed(0)
    features = {}
    for modality, dim in model.dims.items():
        statistics = model.standardize(modality)
        rows = statistics.mean + statistics.sd * torch.randn(dialogues, length, dim, generator=generator)
        lost = torch.rand(dialogues, length, 1, generator=generator) < 0.2
        features[modality] = rows.masked_fill(lost, torch.nan)
    features[model.modalities[0]][1:2] = torch.nan
    speakers = torch.randint(3, (dialogues, length), generator=generator)
    utterance_mask = torch.ones(dialogues, length, dtype=torch.bool)
    utterance_mask[1:2, length // 2 :] = False
    return features, speakers, utterance_mask


def _require(*packages: str) -> None:
    lacking = [package for package in packages if importlib.util.find_spec(package) is None]
    if lacking:
        raise UserError(f"this export needs {' and '.join(lacking)}: pip install 'merc-kdc[export]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters say about themselves."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
