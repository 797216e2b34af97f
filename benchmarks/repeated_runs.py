"""Train recipes many times: quiet settings, and a log of results with which an interrupted command continues."""

import json
from pathlib import Path
from typing import Any

# Train without evaluations and checkpoints. The last weights are measured, so that no epoch is selected on the data
# that is scored.
QUIET = ["training.eval_strategy=no", "training.save_strategy=no", "training.report_to=none", "data.test=null"]
QUIET += ["training.disable_tqdm=true", "training.use_cpu=true"]


def read_results(log: Path) -> list[dict[str, Any]]:
    """Read the results of the finished runs; a line that was cut off is left out."""
    lines = log.read_text(encoding="utf-8").splitlines(keepends=True) if log.is_file() else []
    return [json.loads(line) for line in lines if line.endswith("}\n")]


def append_result(log: Path, result: dict[str, Any]) -> None:
    """Append the result of a run as a line."""
    with log.open("a", encoding="utf-8") as file:
        file.write(json.dumps(result) + "\n")
