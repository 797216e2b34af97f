"""Tune fields of a recipe with Optuna: sample values, train each trial, prune the poor ones, keep the best."""

import math
import shlex
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from huggingface_hub.errors import StrictDataclassError
from omegaconf import OmegaConf
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from trivium.recipe import Recipe, load_recipe
from trivium.storage.manifest import ROOM
from trivium.training.callbacks.non_finite import NonFiniteError
from trivium.training.distributed import lock_run
from trivium.training.ranges import Range, split_ranges
from trivium.training.study import (
    REASON,
    SECONDS,
    STUDY_FILE,
    check_completed,
    discard_weights,
    finished_trials,
    folder_of,
    make_sampler,
    open_study,
    row_of,
    write_tables,
)
from trivium.training.train import check_arguments, train

if TYPE_CHECKING:
    from optuna import Study, Trial

PICTURE = "trials.png"

Direction = Literal["minimize", "maximize"]


@dataclass(frozen=True)
class Search:
    """Result of a search.

    Attributes:
        trials: All trials, as rows of the table: number, state, value, seconds, reason of a failure, and the fields.
        best: Number of the best trial.
        value: Its metric.
        folder: Its run folder, the only one with weights.
        command: Command line that trains with its settings.
    """

    trials: list[dict[str, Any]]
    best: int
    value: float
    folder: Path
    command: str


class ReportEvaluations(TrainerCallback):
    """Report the evaluations of a training run to a trial, and stop the run if the trial is pruned.

    Attributes:
        values: The metric at each evaluation, by step.
    """

    def __init__(self, trial: "Trial", metric: str) -> None:
        self.trial, self.metric, self.values = trial, metric, dict[int, float]()

    def on_evaluate(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        metrics: dict[str, float],
        **kwargs: Any,
    ) -> None:
        """Report the metric.

        Raises:
            ValueError: An evaluation does not compute the metric.
            TrialPruned: The trial is worse than the median of the others at this evaluation.
        """
        from optuna import TrialPruned

        if self.metric not in metrics:
            known = ", ".join(name for name, value in metrics.items() if isinstance(value, int | float))
            raise ValueError(f"metric is {self.metric!r}, but the evaluations of this recipe have {known}.")
        self.values[state.global_step] = metrics[self.metric]
        # Count evaluations, not steps: trials with different batch sizes evaluate after different steps.
        self.trial.report(metrics[self.metric], len(self.values))
        if state.global_step < state.max_steps and self.trial.should_prune():
            raise TrialPruned(f"worse than the median at evaluation {len(self.values)}")


def tune(
    recipe: str | Path,
    arguments: Sequence[str],
    output: str | Path,
    *,
    trials: int = 20,
    seed: int = 0,
    metric: str | None = None,
    direction: Direction | None = None,
    timeout: float | None = None,
    startup: int = 5,
    on_trial: Callable[[dict[str, Any]], None] | None = None,
) -> Search:
    """Search for the best values of fields of a recipe, with one training run for each trial.

    The search samples with Optuna's TPE, and prunes trials that are worse than the median of the others at the same
    evaluation. A repeated call with the same arguments resumes it; a trial that was interrupted is repeated. Only the
    best trial keeps its weights and checkpoints.

    Args:
        recipe: Name of a bundled recipe, path of a YAML file, or run folder.
        arguments: Fields to search, as `model.dropout=float(0,0.4)`, with `float`, `log`, `int` or `choice`; and
            overrides of other fields, as `section.field=value`.
        output: Folder of the search, new or of the same search: `study.db`, `trials.csv`, `trials.md`, `trials.png`,
            and a run folder for each trial.
        trials: Number of trials, including those of earlier calls, but not interrupted ones.
        seed: Seed of the sampled values.
        metric: Metric of an evaluation, such as `eval_loss`; None for `training.metric_for_best_model`, or the loss.
        direction: "minimize" or "maximize"; None for `training.greater_is_better`, or by the name of the metric.
        timeout: Start no trial after this many seconds.
        startup: Number of trials that are sampled at random, and completed before any trial is pruned.
        on_trial: Called with the table row of each finished trial.

    Raises:
        ImportError: Optuna is not installed.
        OSError: The recipe, `init_from` or the data cannot be read.
        ValueError: A range or field is not valid, the recipe has no evaluations, the folder holds other files or
            another search, or no trial was completed.
    """
    _check_optuna()
    ranges, overrides = split_ranges(arguments)
    output = Path(output)
    base = _check_search(recipe, ranges, overrides, output)
    metric, direction = _objective(base.training_arguments(), metric, direction)
    if output.exists() and not (output / STUDY_FILE).is_file() and any(path.name != ROOM for path in output.iterdir()):
        raise ValueError(f"output is {output}, which is not empty and holds no search. Choose a new or empty folder.")
    settings = {
        "ranges": [f"{entry.field}={entry.kind}({','.join(map(str, entry.values))})" for entry in ranges],
        "recipe": OmegaConf.to_yaml(OmegaConf.structured(base)),
        **{"metric": metric, "direction": direction, "seed": seed, "startup": startup},
    }
    distributions = {entry.field: entry.distribution() for entry in ranges}
    stop_at = math.inf if timeout is None else time.monotonic() + timeout
    with lock_run(output):
        study = open_study(output, settings, startup)
        while len(finished_trials(study)) < trials and time.monotonic() < stop_at:
            study.sampler = make_sampler(seed, startup, len(finished_trials(study)))
            trial = study.ask(distributions)
            report = ReportEvaluations(trial, metric)
            _record_trial(study, trial, partial(_run_trial, trial, recipe, ranges, overrides, output, report))
            discard_weights(study, output)
            write_tables(study, output)
            if on_trial is not None:
                on_trial(row_of(study.trials[trial.number]))
        discard_weights(study, output)
        check_completed(study, output)
        from trivium.inspection import save_figure  # deferred: it imports the plotting libraries
        from trivium.inspection.tuning import plot_trials

        write_tables(study, output)
        rows = [row_of(trial) for trial in study.trials]
        save_figure(plot_trials(rows, metric, direction), output / PICTURE)
    best = study.best_trial
    chosen = [entry.override(best.params[entry.field]) for entry in ranges]
    return Search(
        trials=rows,
        best=best.number,
        value=study.best_value,
        folder=folder_of(output, best.number),
        command=shlex.join(["trivium", "train", str(recipe), *overrides, *chosen]),
    )


def _objective(args: TrainingArguments, metric: str | None, direction: Direction | None) -> tuple[str, Direction]:
    """Return the metric to optimize, as evaluations name it, and the direction; None selects those of the recipe."""
    if metric is None:
        metric = args.metric_for_best_model or "loss"
        if direction is None and args.greater_is_better is not None:
            direction = "maximize" if args.greater_is_better else "minimize"
    metric = metric if metric.startswith("eval_") else f"eval_{metric}"
    return metric, direction or ("minimize" if metric.endswith("loss") else "maximize")


class _UnusableError(ValueError):
    """Sampled values that are valid one by one, but not together."""


def _check_optuna() -> None:
    try:
        import optuna
    except ImportError as error:
        raise ImportError("A search needs Optuna: `pip install 'trivium[tune]'`, or `pip install optuna`.") from error
    optuna.logging.set_verbosity(optuna.logging.WARNING)


def _check_search(recipe: str | Path, ranges: list[Range], overrides: list[str], output: Path) -> Recipe:
    """Check the bounds and choices of each range, and return the recipe with the first value of every range."""
    fixed = [*overrides, f"training.output_dir={output}"]
    first = [entry.override(entry.values[0]) for entry in ranges]
    base = _load(recipe, [*fixed, *first])
    for entry in ranges:
        for value in entry.values:
            _load(recipe, [*fixed, *first, entry.override(value)])
    args = check_arguments(base)
    if args.eval_strategy == "no":
        raise ValueError(
            "training.eval_strategy is no, but a search compares evaluations. Set training.eval_strategy=epoch, or "
            "steps with training.eval_steps."
        )
    if args.push_to_hub:
        raise ValueError("training.push_to_hub is True, but trials are not published. Set training.push_to_hub=false.")
    return base


def _load(recipe: str | Path, overrides: list[str]) -> Recipe:
    """Load a recipe and check its model, which `load_recipe` leaves to training.

    Raises:
        ValueError: A field is unknown, or its value is not allowed.
    """
    loaded = load_recipe(recipe, overrides)
    if not loaded.init_from:
        try:
            loaded.model_config()
        except StrictDataclassError as error:  # wraps the message in one about its validator
            raise ValueError(str(error.__cause__ or error)) from error
    return loaded


def _run_trial(
    trial: "Trial",
    recipe: str | Path,
    ranges: list[Range],
    overrides: list[str],
    output: Path,
    report: ReportEvaluations,
) -> float:
    """Train with the values of a trial, and return the metric of the weights that the run keeps."""
    folder = folder_of(output, trial.number)
    sampled = [entry.override(trial.params[entry.field]) for entry in ranges]
    try:
        loaded = _load(recipe, [*overrides, *sampled, f"training.output_dir={folder}"])
    except ValueError as error:
        raise _UnusableError(str(error)) from error
    trainer = train(loaded, callbacks=[report])
    if not report.values:
        raise ValueError(f"{folder} was never evaluated. Set training.eval_steps below training.max_steps.")
    kept = trainer.state.best_global_step if trainer.args.load_best_model_at_end else None
    return report.values[kept if kept in report.values else max(report.values)]


def _record_trial(study: "Study", trial: "Trial", run: Callable[[], float]) -> None:
    """Run a trial, and record its duration and its value, or the reason why it failed or was pruned."""
    from optuna import TrialPruned
    from optuna.trial import TrialState

    began = time.monotonic()
    value, state, reason = None, TrialState.COMPLETE, None
    try:
        value = run()
    except (NonFiniteError, _UnusableError) as error:
        state, reason = TrialState.FAIL, str(error)
    except TrialPruned as error:
        state, reason = TrialState.PRUNED, str(error)
    if reason is not None:
        trial.set_user_attr(REASON, reason)
    trial.set_user_attr(SECONDS, round(time.monotonic() - began, 1))
    study.tell(trial, value, state)
