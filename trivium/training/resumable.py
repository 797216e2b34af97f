"""A Trainer that writes whole checkpoints and resumes from them exactly."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from trivium.storage.checkpoints import delete_old_checkpoints, failure_explained, logger, partial_of, put_in_place
from trivium.storage.manifest import record, run_files
from trivium.storage.names import STATE_FILE, checkpoints_of, model_files_in
from trivium.training.callbacks.ema import ExponentialAverage
from trivium.training.callbacks.non_finite import NonFiniteGuard, has_finite_weights, refuse_non_finite


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
