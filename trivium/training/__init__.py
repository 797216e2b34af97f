"""Train a model from a recipe, with exact resumption, token batches and callbacks; search for good settings."""

from trivium.training.data_report import DataReport, report_data
from trivium.training.initial_model import load_or_build
from trivium.training.prepare import prepare
from trivium.training.train import train
from trivium.training.trainer import RunTrainer
from trivium.training.tuning import Search, tune

__all__ = ["DataReport", "RunTrainer", "Search", "load_or_build", "prepare", "report_data", "train", "tune"]
