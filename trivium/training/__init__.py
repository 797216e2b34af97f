"""Train a model from a recipe, with exact resumption, token-budget batches and callbacks for any Trainer."""

from trivium.training.prepare import prepare
from trivium.training.train import load_or_build, train
from trivium.training.trainer import RunTrainer

__all__ = ["RunTrainer", "load_or_build", "prepare", "train"]
