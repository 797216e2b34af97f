"""What goes along with a training, in any Trainer."""

from trivium.training.callbacks.ema import ExponentialAverage
from trivium.training.callbacks.non_finite import NonFiniteGuard
from trivium.training.callbacks.push import CompletePush
from trivium.training.callbacks.run_facts import RunFacts
from trivium.training.callbacks.throughput import Throughput

__all__ = ["CompletePush", "ExponentialAverage", "NonFiniteGuard", "RunFacts", "Throughput"]
