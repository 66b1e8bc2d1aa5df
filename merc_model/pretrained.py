"""A predictor in a folder to share, with its card, by the conventions of the Hugging Face Hub.

Such a folder is a run folder of three files and the card README.md, and of the text encoder where the run fine-tuned
one. So `merc_model.load` and the command line read it too, without huggingface_hub; and a run folder is one that
`PretrainedPredictor.from_pretrained` reads.
"""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any, Self

from huggingface_hub import EvalResult, ModelCard, ModelCardData, PyTorchModelHubMixin, snapshot_download

from merc_model.card import METRICS, card, measured
from merc_model.checkpoint import ENCODER, RunFolder, load
from merc_model.files import write_folder
from merc_model.model import MercModel
from merc_model.predictor import Predictor

_FILES = ("config.json", "model.safetensors", "metrics.json")


class PretrainedPredictor(Predictor, PyTorchModelHubMixin):
    """A `Predictor` with ``from_pretrained``, ``save_pretrained`` and ``push_to_hub``.

    Args:
        model: a trained model.
        run: the contents of its config.json.
        metrics: the contents of its metrics.json.
        encoder: the folder of its fine-tuned text encoder, which goes along where it is saved; or None.
    """

    def __init__(
        self, model: MercModel, run: dict[str, Any], metrics: dict[str, Any], encoder: Path | None = None
    ) -> None:
        super().__init__(model)
        self.encoder = encoder
        source = run["corpus"]["source"]  # its folder is nobody's business
        self.run = {**run, "corpus": {**run["corpus"], "source": None if source is None else Path(source).name}}
        self.metrics = metrics

    def generate_model_card(self, *args: Any, **kwargs: Any) -> ModelCard:
        """The card, from the run's own configuration and metrics."""
        split, values = measured(self.metrics)
        corpus = self.run["corpus"]["name"]
        facts = ModelCardData(
            library_name="merc-kdc",
            tags=["emotion-recognition", "emotion-recognition-in-conversation", *self.model.modalities],
            model_name=f"merc-kdc-{corpus}",
            eval_results=[
                EvalResult(
                    task_type="emotion-recognition",
                    task_name="emotion recognition in conversation",
                    dataset_type=corpus,
                    dataset_name=corpus,
                    dataset_split=split,
                    metric_type=name,
                    metric_value=values[name],
                )
                for name in METRICS
                if values
            ]
            or None,
        )
        return ModelCard(f"---\n{facts.to_yaml()}\n---\n\n{card(self.run, self.metrics)}")

    def _save_pretrained(self, save_directory: Path) -> None:
        folder = RunFolder(save_directory)
        folder.write_json("config.json", self.run)
        folder.write_model(self.model)
        if self.encoder is not None and self.encoder.resolve() != folder.encoder.resolve():
            shutil.rmtree(folder.encoder, ignore_errors=True)
            write_folder(folder.encoder, partial(shutil.copytree, self.encoder))
        folder.write_json("metrics.json", self.metrics)

    @classmethod
    def _from_pretrained(
        cls,
        *,
        model_id: str,
        revision: str | None,
        cache_dir: str | Path | None,
        force_download: bool,
        local_files_only: bool,
        token: str | bool | None,
        device: str = "cpu",
        **unknown: Any,
    ) -> Self:
        if unknown:
            raise TypeError(f"from_pretrained: no argument {', '.join(unknown)}; besides the Hub's there is device")
        if not Path(model_id).is_dir():
            model_id = snapshot_download(
                model_id,
                revision=revision,
                cache_dir=cache_dir,
                force_download=force_download,
                local_files_only=local_files_only,
                token=token,
                allow_patterns=[*_FILES, f"{ENCODER}/*"],
            )
        folder = RunFolder(Path(model_id))
        config, metrics = folder.read_json("config.json"), folder.read_json("metrics.json")
        encoder = folder.encoder if folder.encoder.is_dir() else None
        return cls(load(folder.path, device), config, metrics, encoder)
