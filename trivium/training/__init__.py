"""Train a model from a recipe, with exact resumption, token-budget batches and callbacks for any Trainer."""

from trivium.training.data_report import DataReport, report_data
from trivium.training.prepare import prepare
from trivium.training.train import load_or_build, train
from trivium.training.trainer import RunTrainer

__all__ = ["DataReport", "RunTrainer", "load_or_build", "prepare", "report_data", "train"]
