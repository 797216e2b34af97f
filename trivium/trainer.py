"""transformers' Trainer, with what a run of ours needs beside it: batches by tokens, and the model's card."""

import inspect
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import create_branch
from torch import nn
from torch.distributed.fsdp import StateDictType
from torch.utils.data import DataLoader
from transformers import Seq2SeqTrainingArguments

from trivium.batching import BatchReport, TokenBatchSampler, lengths_of
from trivium.checkpoints import ResumableTrainer
from trivium.devices import tied_weights_together
from trivium.files import write_whole


class RunTrainer(ResumableTrainer):
    """A Trainer with batches by tokens, which pushes the card of `trivium.hub.card`, and to a branch as yet unmade.

    Args:
        max_tokens: What a batch of each device may have, as `TokenBatchSampler` counts it; None: batches are of
            `per_device_train_batch_size` rows.
    """

    def __init__(self, *args: Any, max_tokens: int | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batches: TokenBatchSampler | None = None
        if max_tokens is not None:
            columns = ["input_ids", "labels"] if self.model.config.is_encoder_decoder else ["input_ids"]
            self.batches = TokenBatchSampler(
                [lengths_of(self.train_dataset, column) for column in columns],
                max_tokens * max(1, self.args.n_gpu),  # those of this process, among which a batch is split
                seed=self.args.seed if self.args.data_seed is None else self.args.data_seed,
                epoch=lambda: int(self.state.epoch or 0),
            )
            self.add_callback(BatchReport(self.batches, self.log))

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, DataLoader]:
        with tied_weights_together(self.model):
            return super()._prepare_for_training(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """The Trainer's; with the shards of FSDP, of which it saves none here, all that a model is but its weights."""
        super().save_model(output_dir, _internal_call)
        if self.has_shards and self.args.should_save:
            self.model.config.architectures = [type(self.model).__name__.removeprefix("FSDP")]
            self.model.config.save_pretrained(output_dir)
            if self.model.can_generate():
                self.model.generation_config.save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)

    @property
    def has_shards(self) -> bool:
        """Whether checkpoints have weights in the pieces that each process has of them."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return plugin is not None and plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT

    def get_train_dataloader(self) -> DataLoader:
        """The Trainer's, but for the batches."""
        if self.batches is None:
            return super().get_train_dataloader()
        loader = DataLoader(
            self.train_dataset,
            batch_sampler=self.batches,
            collate_fn=self.data_collator,
            num_workers=self.args.dataloader_num_workers,
            pin_memory=self.args.dataloader_pin_memory,
            persistent_workers=self.args.dataloader_persistent_workers,
            prefetch_factor=self.args.dataloader_prefetch_factor,
            multiprocessing_context=self.args.dataloader_multiprocessing_context,
        )
        return self.accelerator.prepare(loader)

    def get_total_train_batch_size(self, args: Seq2SeqTrainingArguments) -> int:
        """Rows of a step, by which the Trainer reckons how many it learns from in a second."""
        rows = super().get_total_train_batch_size(args)
        return rows if self.batches is None else round(rows / self._train_batch_size * self.batches.mean_rows)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """The Trainer's, but where only the loss is wanted, logits of a vocabulary are not made."""
        if prediction_loss_only and "skip_logits" in inspect.signature(self.model.forward).parameters:
            inputs = {**inputs, "skip_logits": True}
        return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository and the branch before training, not to fail after it."""
        super().init_hf_repo(*args, **kwargs)
        if self.args.hub_revision and self.is_world_process_zero():
            create_branch(self.hub_model_id, branch=self.args.hub_revision, exist_ok=True)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the card, and its picture, into the output folder, unless somebody wrote another there."""
        from trivium.hub.card import has_own_card, render_card  # here: it draws, and needs the libraries for it

        folder = Path(self.args.output_dir)
        if self.is_world_process_zero() and not has_own_card(folder):
            for name, content in render_card(folder, self.hub_model_id).items():
                write_whole(folder / name, content)
