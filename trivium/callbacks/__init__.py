"""What goes along with a training, in any Trainer."""

from trivium.callbacks.averaging import ExponentialAverage
from trivium.callbacks.facts import RunFacts
from trivium.callbacks.non_finite import NonFiniteGuard
from trivium.callbacks.pushing import CompletePush
from trivium.callbacks.throughput import Throughput

__all__ = ["CompletePush", "ExponentialAverage", "NonFiniteGuard", "RunFacts", "Throughput"]
