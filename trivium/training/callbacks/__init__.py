"""Trainer callbacks: EMA, run metadata, Hub push, throughput, and a guard against non-finite losses."""

from trivium.training.callbacks.ema import ExponentialAverage
from trivium.training.callbacks.non_finite import NonFiniteGuard
from trivium.training.callbacks.push import CompletePush
from trivium.training.callbacks.run_facts import RunFacts
from trivium.training.callbacks.throughput import Throughput

__all__ = ["CompletePush", "ExponentialAverage", "NonFiniteGuard", "RunFacts", "Throughput"]
