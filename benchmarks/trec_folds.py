"""Compare the recipe `trec` with CNN-rand (trec_cnn.py) by cross-validation on TREC's training questions.

Both see the same folds. One JSON line per finished fold is appended to OUTPUT/folds.jsonl, so that an interrupted
command continues where it stopped, and later commands compare with earlier ones. TREC's own test questions are not
read.

    python benchmarks/trec_folds.py train.txt runs/trec-folds --folds 10 --seeds 1 2 3 --cnn
    python benchmarks/trec_folds.py train.txt runs/trec-folds --folds 10 --seeds 1 2 3 --settings model.dropout=0.3
"""

import argparse
import hashlib
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from repeated_runs import QUIET, append_result, read_results
from trec_cnn import encode, train_and_measure

from trivium.recipe import load_recipe
from trivium.training import train

Question = tuple[str, str]  # text, label


def read_questions(path: Path) -> list[Question]:
    """Read TREC's own format, `LABEL:sublabel text`, in Latin-1."""
    lines = [line.split(" ", 1) for line in path.read_text(encoding="latin-1").splitlines()]
    return [(text.strip(), label.partition(":")[0]) for label, text in lines]


def split_folds(questions: list[Question], folds: int) -> list[tuple[list[Question], list[Question]]]:
    """Return (training, held-out) questions of each fold; the assignment is random, and the same in every call."""
    order = torch.randperm(len(questions), generator=torch.Generator().manual_seed(0)).tolist()
    parts = [order[start::folds] for start in range(folds)]
    return [
        ([questions[i] for other in parts if other is not part for i in other], [questions[i] for i in part])
        for part in parts
    ]


def write_table(path: Path, questions: list[Question]) -> None:
    """Write questions in the format that the recipe reads."""
    path.write_text("text\tlabel\n" + "".join(f"{text}\t{label}\n" for text, label in questions), encoding="utf-8")


def measure_cnn(training: list[Question], held_out: list[Question], seed: int) -> float:
    """Return the accuracy of CNN-rand."""
    columns = [([text for text, _ in rows], [label for _, label in rows]) for rows in (training, held_out)]
    return train_and_measure(*encode(columns[0], columns[1]), seed)


def measure_recipe(
    training: list[Question], held_out: list[Question], fold: int, seed: int, options: argparse.Namespace
) -> float:
    """Return the accuracy of the recipe, after pre-training on the training questions if `--pretrain` is given."""
    with TemporaryDirectory() as folder:
        files = [f"{folder}/{split}.tsv" for split in ("train", "validation")]
        for file, rows in zip(files, (training, held_out), strict=True):
            write_table(Path(file), rows)
        fixed = [f"data.train={files[0]}", f"data.validation={files[1]}", f"training.seed={seed}", *QUIET]
        start = [f"init_from={pretrained(files, fold, options)}"] if options.pretrain is not None else []
        trainer = train(
            load_recipe(options.recipe, [*fixed, f"training.output_dir={folder}/run", *start, *options.settings])
        )
        return trainer.evaluate()["eval_accuracy"]


def pretrained(files: list[str], fold: int, options: argparse.Namespace) -> Path:
    """Return the model pre-trained on the training questions of a fold, which all seeds and settings share."""
    digest = hashlib.sha256(" ".join([options.pretrain, *options.pretrain_settings]).encode()).hexdigest()[:8]
    run = options.output / f"{options.pretrain}-{digest}-fold-{fold}-of-{options.folds}"
    if not (run / "trainer_state.json").is_file():
        data = run.with_suffix(".tsv")  # at a fixed place, so that an interrupted run resumes
        data.write_bytes(Path(files[0]).read_bytes())
        settings = [*QUIET, "training.save_strategy=steps", "training.save_steps=1000", "training.save_total_limit=1"]
        settings += [f"data.train={data}", "data.validation=null", f"training.output_dir={run}"]
        recipe = load_recipe(options.pretrain, [*settings, *options.pretrain_settings])
        train(recipe, resume=any(run.glob("checkpoint-*")), overwrite=not any(run.glob("checkpoint-*")))
    return run


def main() -> None:
    """Run the folds that are missing, and print means and paired differences."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("questions", type=Path, help="TREC's training file")
    parser.add_argument("output", type=Path)
    parser.add_argument("--folds", type=int, default=10)
    parser.add_argument("--only", type=int, help="run only this many folds, for screening")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1])
    parser.add_argument("--cnn", action="store_true", help="run CNN-rand instead of a recipe")
    parser.add_argument("--recipe", default="trec")
    parser.add_argument("--settings", nargs="*", default=[], help="overrides of the recipe")
    parser.add_argument("--pretrain", help="recipe of a pre-training on the training questions of each fold")
    parser.add_argument("--pretrain-settings", nargs="*", default=[])
    options = parser.parse_args()
    torch.set_num_threads(1)
    name = "cnn" if options.cnn else " ".join([options.recipe, *options.settings])
    if options.pretrain is not None:
        name += " after " + " ".join([options.pretrain, *options.pretrain_settings])
    options.output.mkdir(parents=True, exist_ok=True)
    log = options.output / "folds.jsonl"
    results = read_results(log)
    folds = split_folds(read_questions(options.questions), options.folds)[: options.only]
    for seed in options.seeds:
        for number, (training, held_out) in enumerate(folds):
            key = {"name": name, "folds": options.folds, "fold": number, "seed": seed}
            if any(key.items() <= result.items() for result in results):
                continue
            began = time.monotonic()
            accuracy = (
                measure_cnn(training, held_out, seed)
                if options.cnn
                else measure_recipe(training, held_out, number, seed, options)
            )
            results.append({**key, "accuracy": accuracy, "seconds": round(time.monotonic() - began)})
            append_result(log, results[-1])
            print(f"fold {number}, seed {seed}: {accuracy:.4f}, {results[-1]['seconds']} s", flush=True)
    print_summary([result for result in results if result["folds"] == options.folds])


def print_summary(results: list[dict[str, Any]]) -> None:
    """Print the mean of each setting, its spread over folds and seeds, and its difference to CNN-rand, paired.

    Accuracies are averaged over the seeds of a fold first: folds are independent samples of questions, seeds are not.
    """
    by_name: dict[str, dict[tuple[int, int], float]] = {}
    for result in results:
        by_name.setdefault(result["name"], {})[result["fold"], result["seed"]] = 100 * result["accuracy"]
    for name, runs in by_name.items():
        values = list(runs.values())
        spread = f", standard deviation {statistics.stdev(values):.2f}" if len(values) > 1 else ""
        line = f"{name}: mean {statistics.mean(values):.2f} % of {len(values)} runs{spread}"
        shared = runs.keys() & by_name.get("cnn", {}).keys()
        if name != "cnn" and shared:
            per_fold: dict[int, list[float]] = {}
            for key in shared:
                per_fold.setdefault(key[0], []).append(runs[key] - by_name["cnn"][key])
            differences = [statistics.mean(of_fold) for of_fold in per_fold.values()]
            line += f"; minus CNN-rand {statistics.mean(differences):+.2f} on {len(shared)} shared runs"
            if len(differences) > 1:
                line += f", standard error {statistics.stdev(differences) / len(differences) ** 0.5:.2f}"
        print(line)


if __name__ == "__main__":
    main()
