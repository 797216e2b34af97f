"""The Optuna study of a search: its storage in the output folder, its trials, and their tables."""

import csv
import io
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trivium.storage.atomic import write_whole
from trivium.storage.manifest import RunFolder
from trivium.storage.names import checkpoints_of

if TYPE_CHECKING:
    from optuna import Study
    from optuna.trial import FrozenTrial

STUDY_FILE = "study.db"
TABLE, MARKDOWN = "trials.csv", "trials.md"
SETTINGS = "trivium"  # user attribute of the study with the settings that a resumed search must keep
SECONDS, REASON = "seconds", "reason"  # user attributes of a trial


def make_sampler(seed: int, startup: int, number: int) -> Any:
    """Return the sampler of the trial after `number` finished ones; a resumed search samples the same values."""
    from optuna.samplers import TPESampler

    return TPESampler(n_startup_trials=startup, seed=seed + number)


def open_study(output: Path, settings: dict[str, Any], startup: int) -> "Study":
    """Create the study, or open it and enqueue the values of interrupted trials again.

    Raises:
        ValueError: The folder holds a search with other settings.
    """
    import optuna
    from sqlalchemy import URL

    url = URL.create("sqlite", database=str((output / STUDY_FILE).resolve()))
    study = optuna.create_study(
        storage=url.render_as_string(),
        study_name=SETTINGS,
        direction=settings["direction"],
        pruner=optuna.pruners.MedianPruner(n_startup_trials=startup),
        load_if_exists=True,
    )
    saved = study.user_attrs.get(SETTINGS)
    if saved is None:
        study.set_user_attr(SETTINGS, settings)
        saved = settings
    for name, value in settings.items():
        if saved[name] != value:
            before, now = (saved[name], value) if name != "recipe" else _first_difference(saved[name], value)
            raise ValueError(
                f"{output} holds a search that cannot be resumed with a changed {name}: it was {before!r}, is now "
                f"{now!r}. Revert the change, or choose another folder."
            )
    for trial in study.get_trials(states=[optuna.trial.TrialState.RUNNING]):
        # The lock of the folder is held, so the process of this trial has ended.
        study.enqueue_trial(trial.params)
        study.tell(trial.number, state=optuna.trial.TrialState.FAIL)
    return study


def _first_difference(before: str, now: str) -> tuple[str, str]:
    """Return the first line of each of two recipes that the other one does not have."""
    old, new = ([line.strip() for line in text.splitlines()] for text in (before, now))
    removed = next((line for line in old if line not in new), "not set")
    return removed, next((line for line in new if line not in old), "not set")


def finished_trials(study: "Study") -> "list[FrozenTrial]":
    """Return the trials that ended by themselves: completed, pruned, or failed for a reason."""
    return [trial for trial in study.trials if trial.state.is_finished() and SECONDS in trial.user_attrs]


def check_completed(study: "Study", output: Path) -> None:
    """Raise a ValueError if no trial was completed; the message has the reason of the last trial, if there is one."""
    from optuna.trial import TrialState

    if not study.get_trials(states=[TrialState.COMPLETE]):
        reasons = [trial.user_attrs[REASON] for trial in study.trials if REASON in trial.user_attrs]
        last = f" The last one ended with: {reasons[-1]}" if reasons else " Allow more trials, or a longer timeout."
        raise ValueError(f"No trial of {output} was completed, so there are no best settings.{last}")


def folder_of(output: Path, number: int) -> Path:
    """Return the run folder of a trial."""
    return output / f"trial-{number:04d}"


def discard_weights(study: "Study", output: Path) -> None:
    """Delete the weights and checkpoints of all trials but the best one; their recipes and logs stay."""
    from optuna.trial import TrialState

    completed = study.get_trials(states=[TrialState.COMPLETE])
    best = study.best_trial.number if completed else None
    for trial in study.trials:
        folder = folder_of(output, trial.number)
        if trial.number == best or not trial.state.is_finished() or not folder.is_dir():
            continue
        checkpoints = {path.name for path in checkpoints_of(folder)}
        run = RunFolder(folder)
        run.delete(path for path in run.own if path.parts[0] in checkpoints or path.suffix == ".safetensors")


def write_tables(study: "Study", output: Path) -> None:
    """Write the table of trials as CSV and as Markdown."""
    rows = [row_of(trial) for trial in study.trials]
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    write_whole(output / TABLE, table.getvalue())
    lines = ["| " + " | ".join(names) + " |", "|" + " --- |" * len(names)]
    lines += ["| " + " | ".join(_cell(row.get(name)) for name in names) + " |" for row in rows]
    write_whole(output / MARKDOWN, "\n".join(lines) + "\n")


def row_of(trial: "FrozenTrial") -> dict[str, Any]:
    """Return a trial as a row of the table; a pruned trial has the value of its last evaluation."""
    value = trial.value if trial.value is not None else trial.intermediate_values.get(trial.last_step or 0)
    return {
        "trial": trial.number,
        "state": trial.state.name.lower(),
        "value": value,
        SECONDS: trial.user_attrs.get(SECONDS),
        **trial.params,
        REASON: trial.user_attrs.get(REASON),
    }


def _cell(value: Any) -> str:
    text = "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
