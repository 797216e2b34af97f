"""Training: from a recipe to a trained model, with exact resume, token batches and callbacks for any Trainer."""

from trivium.training.train import load_or_build, train
from trivium.training.trainer import RunTrainer

__all__ = ["RunTrainer", "load_or_build", "train"]
