"""A Trainer that writes checkpoints atomically and resumes from them exactly."""

import math
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import EarlyStoppingCallback, Seq2SeqTrainer, TrainerState
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, has_length

from trivium.storage.checkpoints import (
    commit_checkpoint,
    delete_old_checkpoints,
    explain_write_failure,
    logger,
    partial_of,
)
from trivium.storage.manifest import record, run_files
from trivium.storage.names import STATE_FILE, checkpoints_of, model_files_in
from trivium.training.callbacks.ema import ExponentialAverage
from trivium.training.callbacks.non_finite import NonFiniteGuard, has_finite_weights, refuse_non_finite


class ResumableTrainer(Seq2SeqTrainer):
    """Trainer that writes checkpoints atomically and resumes from them as if training had not been interrupted.

    A checkpoint is written to a temporary folder and renamed once it is complete and synced to the disk, including the
    files of all processes and, with an `ExponentialAverage`, the trained weights. Only then is it pushed, and older
    checkpoints are deleted.

    On resumption, the state that the Trainer does not restore is restored too: the position in a stream that is past
    its first epoch, and the patience counter of early stopping. The intervals of logging, evaluation and saving come
    from the arguments, not from the checkpoint. Resuming from a checkpoint of the last step runs no further step.

    A checkpoint with non-finite weights is not written, and a run that does not recover is stopped (`NonFiniteGuard`).
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._partial_dir: str | None = None  # parent folder of the checkpoint that is being written
        super().__init__(*args, **kwargs)
        self._guard = NonFiniteGuard(lambda: self.accelerator.optimizer_step_was_skipped)
        self.add_callback(self._guard)

    def training_step(self, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Run a training step, and pass the loss to the guard."""
        loss = super().training_step(*args, **kwargs)
        self._guard.observe(loss)
        return loss

    def _get_grad_norm(self, *args: Any, **kwargs: Any) -> Any:
        norm = super()._get_grad_norm(*args, **kwargs)
        if norm is not None:
            self._guard.observe(norm)
        return norm

    def check_finite(self) -> None:
        """Raise if the trained weights are not finite.

        Raises:
            NonFiniteError: The weights have NaN or infinity.
        """
        if not has_finite_weights(self.model):
            refuse_non_finite(self.args, self.state, "the trained weights are not finite")

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._partial_dir is None else self._partial_dir

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        if not has_finite_weights(self.model):
            logger.warning(
                "No checkpoint is written at step %d, because the weights are not finite.", self.state.global_step
            )
            return
        run = Path(self._get_output_dir(trial))
        checkpoint = run / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        partial = partial_of(checkpoint)
        with explain_write_failure(checkpoint.name, run):
            self._partial_dir = str(partial.parent)
            try:
                super()._save_checkpoint(model, trial)
                self.accelerator.wait_for_everyone()
                if self.state.best_model_checkpoint == str(partial):
                    self.state.best_model_checkpoint = str(checkpoint)
                if self.args.should_save:
                    for callback in self.callback_handler.callbacks:
                        if isinstance(callback, ExponentialAverage):
                            callback.keep_trained(partial, self.state)
                    # Save the state again, because it now contains the final path of the best checkpoint.
                    self.state.save_to_json(str(partial / STATE_FILE))
                    commit_checkpoint(checkpoint)
            except BaseException:
                shutil.rmtree(partial.parent, ignore_errors=True)
                raise
            finally:
                self._partial_dir = None
        self.accelerator.wait_for_everyone()  # until the checkpoint has its final name
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            delete_old_checkpoints(run, self.args.save_total_limit, self.state.best_model_checkpoint)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._partial_dir is not None:
            return
        if self.is_world_process_zero():  # A push copies the model and the tokenizer into the run folder.
            folder, run = Path(checkpoint_folder), Path(self.args.output_dir)
            record(run, *model_files_in(folder), *([] if (run / ".gitignore").exists() else [".gitignore"]))
        super()._push_from_checkpoint(checkpoint_folder)

    def _save(self, output_dir: str | None = None, state_dict: dict[str, Any] | None = None) -> None:
        if self._partial_dir is not None or not self.args.should_save:
            super()._save(output_dir, state_dict)
            return
        with run_files(Path(output_dir or self.args.output_dir)) as partial:
            super()._save(str(partial), state_dict)

    def save_state(self) -> None:
        """Save the trainer state atomically: a failed write leaves the previous file in place."""
        if self.args.should_save:
            with run_files(Path(self.args.output_dir)) as partial:
                self.state.save_to_json(str(partial / STATE_FILE))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        tied = getattr(self.model, "all_tied_weights_keys", {})  # saved under one of their names
        missing = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result._replace(missing_keys=missing))

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
        if saved.best_model_checkpoint is not None:  # The saved path is stale if the run folder has been moved.
            best = Path(self.args.output_dir) / Path(saved.best_model_checkpoint).name
            exists = best in checkpoints_of(Path(self.args.output_dir))
            self.state.best_model_checkpoint = str(best) if exists else None
        run = Path(self.args.output_dir)
        if self.args.should_save and checkpoints_of(run)[-1:] == [Path(resume_from_checkpoint)]:
            # The run may have been killed between writing this checkpoint and deleting the old ones.
            delete_old_checkpoints(run, self.args.save_total_limit, self.state.best_model_checkpoint)
        for callback in self.callback_handler.callbacks:
            if isinstance(callback, EarlyStoppingCallback):
                callback.early_stopping_patience_counter = patience_spent(saved)
        if not has_length(self.train_dataset) and not self.args.ignore_data_skip:
            # For a stream, the Trainer counts one epoch per pass and assumes `max_steps` steps in each, but on
            # resumption it assumes that all steps so far were in the first epoch. An integral `epoch` is the end of an
            # epoch, because no checkpoint is written at the beginning of one.
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
    """Return the early-stopping counter of a saved state: evaluations since the last improvement."""
    callback_state = state.stateful_callbacks.get(EarlyStoppingCallback.__name__, {})
    return callback_state.get("attributes", {}).get("early_stopping_patience_counter", 0)
