"""Compare Muon with AdamW: optimizer steps and CPU seconds to the same validation loss, at equal tuning budgets.

Trains the recipe `shakespeare` (4 layers of width 128, 12 rows of 64 characters, the shape of nanoGPT's CPU preset) on
the first 90 % of a text, and evaluates on the start of the rest. AdamW trains with several learning rates; then Muon
trains with as many, each a multiple of AdamW's best, which stays the rate of the other parameters. The target is the
best final loss of AdamW.

Seconds are CPU time of the training steps of this process, without evaluation. Curves are those of whole runs, so
reaching the target early includes that the learning rate is not yet at its minimum.

    OMP_NUM_THREADS=1 python benchmarks/muon.py --text input.txt
"""

import os
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import TrainerCallback
from transformers.utils.logging import disable_progress_bar, set_verbosity_error

from trivium.recipe import load_recipe
from trivium.training.train import Start, build_trainer, check_arguments

TRAINING_SHARE = 0.9


class Clock(TrainerCallback):
    """Add up the CPU time of training steps, and note it at each evaluation."""

    def __init__(self) -> None:
        self.seconds, self.started = 0.0, 0.0
        self.at_evaluations: list[float] = []

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Start the clock."""
        self.started = time.process_time()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Stop the clock."""
        self.seconds += time.process_time() - self.started

    def on_evaluate(self, *args: Any, **kwargs: Any) -> None:
        """Note the time so far."""
        self.at_evaluations.append(self.seconds)


@dataclass
class Curve:
    """Validation losses of a run, with the steps and CPU seconds before each."""

    steps: list[int]
    seconds: list[float]
    losses: list[float]

    def reach(self, target: float) -> tuple[float, float] | None:
        """Return the interpolated step and second at which the loss falls to `target`; None if it never does."""
        for i, loss in enumerate(self.losses):
            if loss <= target:
                if i == 0:
                    return self.steps[0], self.seconds[0]
                share = (self.losses[i - 1] - target) / (self.losses[i - 1] - loss)
                step = self.steps[i - 1] + share * (self.steps[i] - self.steps[i - 1])
                return step, self.seconds[i - 1] + share * (self.seconds[i] - self.seconds[i - 1])
        return None


def train_once(files: list[str], overrides: list[str], steps: int, evaluations: int) -> Curve:
    """Train once and return the validation curve."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [
            *(f"training.output_dir={folder}/run", f"training.max_steps={steps}", "training.save_strategy=no"),
            *(f"training.eval_steps={steps // evaluations}", f"training.warmup_steps={steps // 20}"),
            *("training.report_to=none", "training.disable_tqdm=true", "training.use_cpu=true"),
            *(f"training.logging_steps={steps}", *files, *overrides),
        ]
        recipe = load_recipe("shakespeare", settings)
        args = check_arguments(recipe)
        trainer = build_trainer(recipe, args, Start(Path(args.output_dir), None, []))
        clock = Clock()
        trainer.add_callback(clock)
        trainer.log = lambda logs, start_time=None: trainer.state.log_history.append(  # without printing
            {**logs, "step": trainer.state.global_step}
        )
        trainer.train()
    entries = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    return Curve([entry["step"] for entry in entries], clock.at_evaluations, [entry["eval_loss"] for entry in entries])


def main(
    text: Annotated[Path, typer.Option(help="Text file, such as Tiny Shakespeare.")],
    steps: Annotated[int, typer.Option(help="Optimizer steps of each run; the recipe has 2,000.")] = 2000,
    evaluations: Annotated[int, typer.Option(help="Evaluations during each run.")] = 20,
    adamw_rates: Annotated[str, typer.Option(help="Learning rates of AdamW.")] = "1e-3,2e-3,4e-3,8e-3",
    muon_factors: Annotated[str, typer.Option(help="Learning rates of Muon, as multiples.")] = "1,2,4,8",
    # With the token at the end, rows of 64: the Trainer's loss is a mean over batches, so that a last batch of a few
    # tokens would count as much as a full one.
    validation_characters: Annotated[int, typer.Option(help="Characters to evaluate on.")] = 32767,
    override: Annotated[list[str] | None, typer.Option(help="Field of the recipe to replace.")] = None,
) -> None:
    """Train with both optimizers and print the tables."""
    set_verbosity_error()
    disable_progress_bar()
    content = text.read_text(encoding="utf-8")
    split = int(len(content) * TRAINING_SHARE)
    with tempfile.TemporaryDirectory() as folder:
        parts = {"train": content[:split], "validation": content[split : split + validation_characters]}
        for name, part in parts.items():
            (Path(folder) / f"{name}.txt").write_text(part, encoding="utf-8")
        files = [*(f"data.{name}={folder}/{name}.txt" for name in parts), *(override or [])]
        curves: dict[tuple[str, float], Curve] = {}

        def run(optimizer: str, rate: float, *overrides: str) -> None:
            curve = train_once(files, list(overrides), steps, evaluations)
            curves[optimizer, rate] = curve
            print(f"{optimizer} {rate:.3g}: loss {curve.losses[-1]:.4f}, {curve.seconds[-1]:.1f} s", flush=True)

        for rate in map(float, adamw_rates.split(",")):
            run("AdamW", rate, f"training.learning_rate={rate}", min_rate(rate))
        best = min(curves, key=lambda key: curves[key].losses[-1])
        adamw = best[1]
        for rate in (adamw * float(factor) for factor in muon_factors.split(",")):
            run(
                "Muon", rate, f"training.learning_rate={adamw}", min_rate(adamw), f"learning.muon_learning_rate={rate}"
            )
    target = curves[best].losses[-1]
    print(f"\nTarget: loss {target:.4f}, of AdamW with {adamw:.3g}\n")
    print("| optimizer | learning rate | final loss | seconds per step | steps to target | CPU seconds to target |")
    print("| --- | --- | --- | --- | --- | --- |")
    for (optimizer, rate), curve in curves.items():
        reached = curve.reach(target)
        when = "| not reached | not reached |" if reached is None else f"| {reached[0]:,.0f} | {reached[1]:,.0f} |"
        step = curve.seconds[-1] / curve.steps[-1]
        print(f"| {optimizer} | {rate:.3g} | {curve.losses[-1]:.4f} | {step:.4f} {when}")
    print(f"\n{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")


def min_rate(rate: float) -> str:
    """Return the override that ends the cosine at a tenth of the learning rate, as the recipe does."""
    return f"training.lr_scheduler_kwargs.min_lr={rate / 10}"


if __name__ == "__main__":
    typer.run(main)
