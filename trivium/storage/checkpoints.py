"""Checkpoints of a run: which of them are whole, and how one is written whole or not at all."""

import json
import logging
import math
import shutil
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from trivium.training.callbacks.ema import ExponentialAverage
from trivium.storage.names import checkpoints_of
from trivium.training.callbacks.non_finite import NonFiniteGuard, has_finite_weights, is_finite, refuse_non_finite
from trivium.storage.atomic import sync
from trivium.storage.checksums import find_changed_file, write_checksums
from trivium.storage.manifest import BROKEN, ROOM, delete_checkpoint, record, run_files
from trivium.storage.names import STATE_FILE, model_files_in
from trivium.storage.pickles import PICKLE_SUFFIXES, SHARD_FOLDERS, check_pickles, read_shards

__all__ = ["BROKEN", "STATE_FILE", "ResumableTrainer", "checkpoints_of", "find_defect", "last_whole_checkpoint"]

logger = logging.getLogger(__name__)

# What training goes on from, and the files or folders that have it: of one process, FSDP or DeepSpeed.
PARTS = {
    "weights": ("model.safetensors", "*.index.json", "**/adapter_model.safetensors", "pytorch_model*", "global_step*"),
    "optimizer": ("optimizer*", "global_step*"),
    "schedule": ("scheduler.pt", "global_step*"),
    "random states": ("rng_state*.pth",),
}


def find_defect(checkpoint: Path, others: Iterable[str] = ()) -> str | None:
    """Return why training cannot go on from a checkpoint, or None if it can.

    Missing and truncated files come first, which a killed process or a full disk leave; then files that differ from
    their checksums, which all files are read for; then weights that are not finite.

    Args:
        checkpoint: Its folder.
        others: Names of files that there must be beside those of the Trainer.

    Raises:
        OSError: A file is there, but cannot be read.
        UnsafePickleError: A list of shards names what is no part of one.
    """
    if not (checkpoint / STATE_FILE).exists():
        return f"it has no {STATE_FILE}"
    try:
        if not isinstance(json.loads((checkpoint / STATE_FILE).read_text(encoding="utf-8"))["global_step"], int):
            return f"{STATE_FILE} has no global_step"
    except (ValueError, TypeError, KeyError):
        return f"{STATE_FILE} is no whole JSON"
    missing = [part for part, names in PARTS.items() if not any(any(checkpoint.glob(name)) for name in names)]
    if missing == list(PARTS)[1:]:
        return "it has a model, but not what training goes on from, as training.save_only_model asks for"
    if missing:
        return f"it has no {missing[0]}"
    for name in [*others, *_shards_of(checkpoint)]:
        if not (checkpoint / name).exists():
            return f"it has no {name}"
    for path in sorted(checkpoint.rglob("*")):
        if not has_end(path):
            return f"{path.relative_to(checkpoint)} has no end"
    if defect := find_changed_file(checkpoint):
        return defect
    for folder in [folder for pattern in SHARD_FOLDERS for folder in sorted(checkpoint.glob(f"{pattern}/"))]:
        if defect := _find_missing_piece(folder):
            return defect
    return _find_non_finite(checkpoint)


def _shards_of(folder: Path) -> set[str]:
    """The files that a model's index names; an index that is cut off names one that cannot be there."""
    try:
        indices = [json.loads(path.read_text(encoding="utf-8")) for path in folder.glob("*.index.json")]
        return {name for index in indices for name in index["weight_map"].values()}
    except (ValueError, KeyError):
        return {"whole index of its weights"}


def _find_missing_piece(folder: Path) -> str | None:
    """Return what is missing of FSDP's pieces of a model or an optimizer, by their own list, which is written last."""
    try:
        shards = read_shards(folder / ".metadata")
    except (FileNotFoundError, EOFError):
        return f"{folder.name} has no whole .metadata"
    for shard in shards:
        if not shard.is_complete:
            return f"{folder.name}/{shard.path.name} is not all there"
    return None


def _find_non_finite(checkpoint: Path) -> str | None:
    """Return which weights of a checkpoint are not finite, or None."""
    for path in sorted(checkpoint.rglob("*.safetensors")):
        with safe_open(path, framework="pt") as file:
            for name in file.keys():  # noqa: SIM118, it is no dictionary
                if not is_finite(file.get_tensor(name)):
                    return f"{path.name} has weights that are not finite ({name})"
    for folder in checkpoint.glob("pytorch_model_fsdp_*/"):
        for shard in read_shards(folder / ".metadata"):
            if shard.is_tensor and not is_finite(shard.load()):
                return f"{folder.name} has weights that are not finite ({shard.name})"
    return None


def has_end(path: Path) -> bool:
    """Whether a file of safetensors or torch was written to its end; others, and folders, are taken to have one.

    Raises:
        OSError: It cannot be read.
    """
    if path.suffix not in (".safetensors", *PICKLE_SUFFIXES):
        return True
    path.open("rb").close()  # safetensors and zipfile do not tell what cannot be read from what has no end
    if path.suffix != ".safetensors":
        return zipfile.is_zipfile(path)  # torch saves archives, whose directory comes last
    try:
        with safe_open(path, framework="pt"):
            return True
    except SafetensorError:
        return False


def last_whole_checkpoint(run: Path, others: Iterable[str] = ()) -> tuple[Path | None, dict[Path, str]]:
    """Return the checkpoint to resume from, or None, and of each later one why it cannot be resumed from.

    Args:
        run: The folder of the run.
        others: Names of files that each must have beside those of the Trainer.

    Raises:
        OSError: A file of a checkpoint is there, but cannot be read.
        UnsafePickleError: The checkpoint has a pickle that could run code.
        ValueError: There are checkpoints, but none is whole.
    """
    defects: dict[Path, str] = {}
    for checkpoint in reversed(checkpoints_of(run)):
        defect = find_defect(checkpoint, others)
        if defect is None:
            check_pickles(checkpoint)
            return checkpoint, defects
        defects[checkpoint] = defect
    if defects:
        found = "; ".join(f"{path.name}: {defect}" for path, defect in defects.items())
        raise ValueError(
            f"No checkpoint in {run} is whole ({found}), and nothing was changed: start the run again (--overwrite, "
            "overwrite=True), or set another training.output_dir."
        )
    return None, defects


def set_aside(checkpoints: Iterable[Path]) -> None:
    """Move checkpoints that cannot be used to `_broken/`, beside what lies there already."""
    for checkpoint in checkpoints:
        folder = checkpoint.parent / BROKEN
        folder.mkdir(exist_ok=True)
        place, count = folder / checkpoint.name, 1
        while place.exists():
            count += 1
            place = folder / f"{checkpoint.name}-{count}"
        checkpoint.rename(place)


def delete_old_checkpoints(run: Path, limit: int | None, best: str | None) -> None:
    """Delete the oldest checkpoints beyond a limit, but never the last one, the best one or foreign files."""
    found = checkpoints_of(run)
    if not limit or limit < 0 or not found:
        return
    protected = {found[-1], *([] if best is None else [run / Path(best).name])} & set(found)
    surplus = len(found) - max(limit, len(protected))
    for checkpoint in [checkpoint for checkpoint in found if checkpoint not in protected][: max(0, surplus)]:
        delete_checkpoint(checkpoint)


def partial_of(checkpoint: Path) -> Path:
    """Where a checkpoint is written until it is whole."""
    return checkpoint.parent / ROOM / "partial" / checkpoint.name


def put_in_place(checkpoint: Path) -> None:
    """Give a checkpoint its checksums and its name, now that all of it is on the disk and not on its way there."""
    partial = partial_of(checkpoint)
    write_checksums(partial)
    for path in (*partial.rglob("*"), partial):
        sync(path)
    if checkpoint.exists():  # not a whole one, or the run would have gone on from it
        checkpoint.rename(partial.with_name("old"))
    partial.rename(checkpoint)
    sync(checkpoint.parent)
    shutil.rmtree(partial.parent)
    with suppress(OSError):  # a Trainer without a manifest leaves no empty folder
        partial.parent.parent.rmdir()


@contextmanager
def failure_explained(what: str, run: Path) -> Iterator[None]:
    """Say of an error in writing what was written, how much space there is, and how the run goes on.

    Raises:
        OSError: Instead of those that a full disk makes: of the system, of safetensors, and torch's RuntimeError.
    """
    try:
        yield
    except (OSError, RuntimeError, SafetensorError) as error:
        free = shutil.disk_usage(run).free / 1e6
        way = "there is no checkpoint yet: start again"
        if found := checkpoints_of(run):
            way = f"{found[-1].name} is whole: go on from it with --resume (resume=True)"
        raise OSError(
            f"{what} could not be written to {run}: {error}. {free:,.1f} MB are free on its disk. Nothing "
            f"half-written is left. When there is room, {way}."
        ) from error


class ResumableTrainer(Seq2SeqTrainer):
    """A Trainer that writes whole checkpoints, and goes on from them as if nothing had been.

    A checkpoint is written as `_partial/checkpoint-N` and gets its name when all of it is there and on the disk:
    what every process writes, and the weights beside an `ExponentialAverage`. Only then is it pushed, and are older
    ones deleted. What the Trainer does not take from a checkpoint is added: the place in a stream that was read more
    than once and the patience of early stopping; and taken from the arguments what it would take from there: how
    often to log, to evaluate and to save. From a checkpoint that has all steps it goes to the end without one more.

    A checkpoint whose weights are not finite is not written, and a run that stays so is stopped (`NonFiniteGuard`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._written_to: str | None = None  # while a checkpoint is written: the folder that it lies in
        super().__init__(*args, **kwargs)
        self._guard = NonFiniteGuard(lambda: self.accelerator.optimizer_step_was_skipped)
        self.add_callback(self._guard)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The Trainer's; the guard sees the loss."""
        loss = super().training_step(*args, **kwargs)
        self._guard.observe(loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None:
            self._guard.observe(norm)
        return norm

    def check_finite(self) -> None:
        """Refuse to go on with trained weights that are not finite.

        Raises:
            NonFiniteError: They are not.
        """
        if not has_finite_weights(self.model):
            refuse_non_finite(self.args, self.state, "the trained weights are not finite")

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._written_to is None else self._written_to

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not has_finite_weights(self.model):
            logger.warning(
                "The weights are not finite after step %d: no checkpoint is written.", self.state.global_step
            )
            return
        run = Path(self._get_output_dir(trial))
        checkpoint = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        partial = partial_of(checkpoint)
        with failure_explained(checkpoint.name, run):
            self._written_to = str(partial.parent)
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.state.best_model_checkpoint == str(partial):
                    self.state.best_model_checkpoint = str(checkpoint)
                if self.args.should_save:
                    for callback in self.callback_handler.callbacks:
                        if isinstance(callback, ExponentialAverage):
                            callback.keep_trained(partial, self.state)
                    self.state.save_to_json(str(partial / STATE_FILE))  # again: it names the best checkpoint
                    put_in_place(checkpoint)
            except BaseException:
                shutil.rmtree(partial.parent, ignore_errors=True)
                raise
            finally:
                self._written_to = None
        self.accelerator.wait_for_everyone()  # whatever they do next, it is there
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            delete_old_checkpoints(run, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._written_to is not None:
            return
        if self.is_world_process_zero():  # a push copies model and tokenizer into the run
            folder, run = Path(checkpoint_folder), Path(self.args.output_dir)
            record(run, *model_files_in(folder), *([] if (run / ".gitignore").exists() else [".gitignore"]))
        super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self._written_to is not None or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        with run_files(Path(output_dir or self.args.output_dir)) as partial:
            super()._save(str(partial), state_dict)

    def save_state(self) -> None:
        """The Trainer's, but the file is whole or the one before."""
        if self.args.should_save:
            with run_files(Path(self.args.output_dir)) as partial:
                self.state.save_to_json(str(partial / STATE_FILE))

    def _init_training_state(
        self,
        max_steps: int,
        num_update_steps_per_epoch: int,
        num_train_epochs: int,
        resume_from_checkpoint: str | None,
        trial: Any,
    ) -> tuple[int, int]:
        epochs, batches = super()._init_training_state(
            max_steps, num_update_steps_per_epoch, num_train_epochs, resume_from_checkpoint, trial
        )
        if resume_from_checkpoint is None:
            return epochs, batches
        saved = TrainerState.load_from_json(str(Path(resume_from_checkpoint) / STATE_FILE))
        self.state.compute_steps(self.args, max_steps)
        if saved.best_model_checkpoint is not None:  # where it lay then; the run may have been moved
            best = Path(self.args.output_dir) / Path(saved.best_model_checkpoint).name
            is_there = best in checkpoints_of(Path(self.args.output_dir))
            self.state.best_model_checkpoint = str(best) if is_there else None
        run = Path(self.args.output_dir)
        if self.args.should_save and checkpoints_of(run)[-1:] == [Path(resume_from_checkpoint)]:
            # It may have been killed before it had deleted the old ones.
            delete_old_checkpoints(run, self.args.save_total_limit, self.state.best_model_checkpoint)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = patience_spent(saved)
        if not has_length(self.train_dataset) and not self.args.ignore_data_skip:
            # The Trainer's epochs of a stream are the times it is read; it counts `max_steps` to each, and on resuming
            # takes all for the first one. A whole number is an epoch's end, for no checkpoint is of a beginning.
            epochs = math.ceil(saved.epoch) - 1
            steps = round((saved.epoch - epochs) * saved.max_steps)
            self.state.epoch = epochs + steps / max_steps
            batches = steps * self.args.gradient_accumulation_steps
        return epochs, batches

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self.state.global_step < self.state.max_steps and not any(
            isinstance(callback, EarlyStoppingCallback)
            and callback.early_stopping_patience_counter >= callback.early_stopping_patience
            for callback in self.callback_handler.callbacks
        ):
            super()._run_epoch(*args, **kwargs)
        else:
            self.control.should_training_stop = True


def patience_spent(state: TrainerState) -> int:
    """How many evaluations without a better one early stopping had counted."""
    kept = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
    return kept.get("attributes", {}).get("early_stopping_patience_counter", 0)
