"""MERC-KDC: emotion recognition in conversation by distillation and focal contrastive learning."""

from merc_model.checkpoint import load
from merc_model.config import Config
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError
from merc_model.evaluation import predict
from merc_model.model import MercModel

__all__ = ["Config", "Corpus", "MercModel", "UserError", "load", "predict"]
