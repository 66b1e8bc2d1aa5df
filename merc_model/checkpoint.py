"""The files of a run folder: what is in them, how they are written and read.

config.json        the resolved configuration, the seed, the corpus (name, sizes, hash), versions and machine
model.safetensors  the weights, each feature's mean and sd under ``features.<modality>.standardize``, the memory
history.jsonl      a row an epoch
metrics.json       written last but for the pictures: a folder that has it is a finished run
resume.pt          the trainer's state, there only until the run is finished
encoder/           the fine-tuned text encoder of a run with finetune_text, as transformers saves it
finetune.pt        the state of fine-tuning, there only until the encoder is
text.cache         the encoder's features of the corpus
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import platform
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError

from merc_kernels import __version__
from merc_model.config import Config
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.files import write_whole
from merc_model.model import MercModel
from merc_model.size import build

FORMAT = 2
ENCODER = "encoder"  # of the files of a run folder


@dataclass(frozen=True)
class Record:
    """config.json: what a run was started with.

    Attributes:
        config: the resolved configuration.
        seed: of the run.
        label_names: the C emotions.
        corpus: name, source (path, or None for the embedded one), sha256, dims, extraction (how merc extract made the
            features, or None), utterances and dialogues a split.
    """

    config: Config
    seed: int
    label_names: list[str]
    corpus: dict[str, Any]

    @property
    def source(self) -> Path | None:
        """The file of the corpus, None where it was the embedded one."""
        source: str | None = self.corpus["source"]
        return None if source is None else Path(os.fsdecode(source.encode(errors="surrogateescape")))

    @classmethod
    def of(cls, config: Config, seed: int, corpus: Corpus, source: Path | None) -> Record:
        """The record of a run on ``corpus``, read from ``source`` (None: embedded)."""
        dialogues = {split: corpus.dialogues(split) for split in ("train", "valid", "test")}
        facts = {
            "name": corpus.name,
            "source": None if source is None else os.fsencode(source.resolve()).decode(errors="surrogateescape"),
            "sha256": corpus.fingerprint(),
            "dims": corpus.dims,
            "extraction": corpus.extraction,
            "dialogues": {split: len(indices) for split, indices in dialogues.items()},
            "utterances": {split: len(corpus.rows(indices)) for split, indices in dialogues.items()},
        }
        return cls(config, seed, corpus.label_names.tolist(), facts)


@dataclass(frozen=True)
class RunFolder:
    """A run on disk."""

    path: Path

    @property
    def encoder(self) -> Path:
        """The fine-tuned text encoder, where there is one."""
        return self.path / ENCODER

    @property
    def finished(self) -> bool:
        """Whether the run has ended and all its files are there."""
        return (self.path / "metrics.json").is_file()

    def create(self, record: Record) -> None:
        """Make the folder and its config.json; a UserError where the folder is already there."""
        try:
            self.path.mkdir(parents=True)
        except FileExistsError:
            raise UserError(f"{self.path} exists; go on in it with --resume, or give another --out") from None
        except OSError as error:
            raise UserError(f"{self.path}: cannot be made: {error.strerror or error}") from None
        statistics = "model.safetensors: features.<modality>.standardize.mean and .sd"
        self.write_json(
            "config.json",
            {"format": FORMAT, "environment": environment(), "feature_statistics": statistics}
            | dataclasses.asdict(record),
        )

    def remove_if_empty(self) -> None:
        """Remove the folder where a run has left nothing but a file that it had not yet written whole."""
        if not self.path.is_dir():
            return
        files = list(self.path.iterdir())
        if all(file.name.startswith(".") and file.name.endswith(".partial") for file in files):
            for file in files:
                file.unlink()
            self.path.rmdir()

    def metrics(self) -> dict[str, Any]:
        """metrics.json, read back."""
        values = self.read_json("metrics.json")
        wanted = {"weighted_f1", "macro_f1", "accuracy", "uar", "f1", "confusion", "utterances"}
        shown = values.get("test") or values.get("valid")
        if not isinstance(shown, dict) or not wanted <= shown.keys() or not isinstance(shown["f1"], dict):
            raise UserError(f"{self.path / 'metrics.json'}: the file was changed; train in another folder")
        return values

    def history(self) -> list[dict[str, Any]]:
        """history.jsonl, read back; empty where it cannot be."""
        try:
            lines = (self.path / "history.jsonl").read_text("utf-8").splitlines()
            return [json.loads(line) for line in lines]
        except (OSError, ValueError):
            return []

    def record(self) -> Record:
        """config.json, read back."""
        values = self.read_json("config.json")
        if values.get("format") != FORMAT:
            raise UserError(
                f"{self.path}: run format {values.get('format')!r}; this version reads {FORMAT}: train it again"
            )
        path = self.path / "config.json"
        try:
            config = Config().changed(dict(values["config"]))
            facts = values["corpus"]
            _expect("seed", values["seed"], int)
            _expect("label_names", values["label_names"], list)
            for name in values["label_names"]:
                _expect("label_names", name, str)
            for name, kind in (("name", str), ("sha256", str), ("dims", dict), ("source", str | None)):
                _expect(f"corpus.{name}", facts[name], kind)
            for modality, dim in facts["dims"].items():
                _expect(f"corpus.dims.{modality}", dim, int)
            return Record(config, values["seed"], values["label_names"], facts)
        except KeyError as error:
            raise UserError(f"{path}: no {error.args[0]!r}; the file was changed") from None
        except (UserError, TypeError, ValueError) as error:
            raise UserError(f"{path}: {error}; the file was changed") from None

    def read_json(self, name: str) -> dict[str, Any]:
        """One of the folder's JSON files."""
        path = self.path / name
        try:
            values = json.loads(path.read_text("utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(f"{self.path} is not a run folder: it has no {name}") from None
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
        except ValueError:
            raise UserError(f"{path}: not valid JSON; the file was changed: train in another folder") from None
        if not isinstance(values, dict):
            raise UserError(f"{path}: expected a JSON object; the file was changed")
        return values

    def write_json(self, name: str, values: dict[str, Any]) -> None:
        """One of the folder's JSON files, whole."""
        text = json.dumps(values, indent=2, ensure_ascii=False) + "\n"
        data = text.encode(errors="backslashreplace")  # a path that is no UTF-8 stands as JSON's \\udc.. escapes
        write_whole(self.path / name, lambda file: file.write(data))

    def write_history(self, history: list[dict[str, Any]]) -> None:
        """history.jsonl, whole: it never says more than the run has done."""
        text = "".join(json.dumps(row) + "\n" for row in history)
        write_whole(self.path / "history.jsonl", lambda file: file.write(text.encode()))

    def write_state(self, state: dict[str, Any], name: str = "resume.pt") -> None:
        """resume.pt, or another state."""
        buffer = io.BytesIO()  # torch.save to a file on a full disk raises what is no OSError
        torch.save(state, buffer)
        write_whole(self.path / name, lambda file: file.write(buffer.getbuffer()))

    def read_state(self, device: torch.device, name: str = "resume.pt") -> dict[str, Any] | None:
        """resume.pt or another state, or None where nothing was saved yet."""
        path = self.path / name
        if not path.exists():
            return None
        try:
            content = io.BytesIO(path.read_bytes())  # torch opens no path outside the locale's encoding
            state = torch.load(content, map_location=device, weights_only=True)
        except Exception as error:  # a damaged file can fail in any way inside torch
            raise UserError(f"{path}: cannot be read ({type(error).__name__}); delete it to start anew") from None
        return state if isinstance(state, dict) else {}

    def write_model(self, model: MercModel) -> None:
        """model.safetensors."""
        tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
        data = safetensors.torch.save(tensors, {"format": "pt"})
        write_whole(self.path / "model.safetensors", lambda file: file.write(data))

    def read_model(self, device: torch.device) -> MercModel:
        """The trained model, in evaluation mode."""
        record = self.record()
        path = self.path / "model.safetensors"
        model = build(record.corpus["dims"], record.label_names, record.config, device)
        try:
            model.load_state_dict(safetensors.torch.load(path.read_bytes()))
        except FileNotFoundError:
            raise UserError(
                f"{self.path} has no model yet; finish it with merc train --out {self.path} --resume"
            ) from None
        except (OSError, SafetensorError, RuntimeError) as error:
            first = str(error).splitlines()[0]
            raise UserError(f"{path}: does not hold the weights of this run's config.json: {first}") from None
        return model.to(device).eval()


def _expect(name: str, value: object, kind: Any) -> None:
    """A ValueError unless a value of config.json is of its kind; a count is at least 0."""
    if not isinstance(value, kind) or isinstance(value, bool) or (isinstance(value, int) and value < 0):
        raise ValueError(f"{name}: got {str(value)[:40]!r}")


def environment() -> dict[str, str]:
    """The versions that a run's figures depend on, and the machine."""
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    return {
        "merc-kdc": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu_threads": str(torch.get_num_threads()),
        "gpu": cuda,
    }


def load(run: str | Path, device: str | torch.device = "cpu") -> MercModel:
    """The model of a run folder, ready to predict.

    Args:
        run: a folder that ``merc train`` wrote.
        device: where the model goes.

    Raises:
        UserError: not a run folder, an unfinished run, or damaged files.
    """
    return RunFolder(Path(run)).read_model(torch.device(device))
