"""The Trainer of a run: transformers' Trainer with token batches, throughput metrics and Hub pushes with a card."""

import inspect
import json
import logging
import time
from collections.abc import Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import prepare_data_loader
from accelerate.utils import send_to_device
from datasets import IterableDataset
from huggingface_hub import create_branch, run_as_future
from torch import nn
from torch.distributed.fsdp import StateDictType
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Seq2SeqTrainer, Seq2SeqTrainingArguments
from transformers.trainer_pt_utils import BatchRebalanceSampler, LengthGroupedSampler
from transformers.trainer_utils import HubStrategy, SaveStrategy
from transformers.utils import PushInProgress

from trivium.data.batch_stream import BatchStream, PlacedBatch
from trivium.data.length_grouped import SeededBatchRebalanceSampler, SeededLengthGroupedSampler
from trivium.data.shares import EncodedStream
from trivium.data.token_batches import TokenBatchSampler, lengths_of, token_columns
from trivium.modeling.loss import IGNORE_INDEX
from trivium.storage.atomic import write_whole
from trivium.training.callbacks import Throughput
from trivium.training.callbacks.throughput import DataReport
from trivium.training.distillation import Distillation
from trivium.training.distributed import tied_weights_together
from trivium.training.r_drop import RDrop
from trivium.training.resumable import ResumableTrainer
from trivium.training.streaming import FILLER, PLACE, EpochOffset, StreamSteps

logger = logging.getLogger(__name__)


class PublishingTrainer(Seq2SeqTrainer):
    """Trainer that pushes the same files as `trivium push`, without pickles or local paths."""

    push_in_progress: PushInProgress | None

    def init_hf_repo(self, *args: Any, **kwargs: Any) -> None:
        """Create the repository and the branch before training, so that a missing permission fails early."""
        super().init_hf_repo(*args, **kwargs)
        if self.args.hub_revision and self.is_world_process_zero():
            create_branch(self.hub_model_id, branch=self.args.hub_revision, exist_ok=True)

    def push_to_hub(
        self,
        commit_message: str | None = "End of training",
        blocking: bool = True,
        token: str | None = None,
        revision: str | None = None,
        private: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Save the model, and push the output folder in a single commit, as `trivium push` does.

        Returns:
            The `trivium.hub.Push`, or a Future of it unless `blocking`; None on processes other than the main one.
        """
        from trivium.hub.pushing import plan, send  # deferred: they import the plotting libraries

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        token = token or self.args.hub_token
        if self.hub_model_id is None:
            self.init_hf_repo(token=token, private=private)
        self.save_model(_internal_call=True)
        if not self.is_world_process_zero():
            return None
        self._finish_current_push()
        revision = revision or self.args.hub_revision
        planned = plan(Path(self.args.output_dir), self.hub_model_id, revision=revision, token=token)
        if blocking:
            return send(planned, message=commit_message, token=token)
        return run_as_future(send, planned, message=commit_message, token=token)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if not self.is_world_process_zero() or self.args.hub_strategy == HubStrategy.END:
            return
        is_pushing = self.push_in_progress is not None and not self.push_in_progress.is_done()
        if is_pushing and not self.args.hub_always_push:
            return
        from trivium.hub.pushing import Push, published_checkpoint, send_in_background

        self.callback_handler.on_push_begin(self.args, self.state, self.control)
        checkpoint = Path(checkpoint_folder)
        if not any(checkpoint.glob("model*.safetensors")):
            logger.warning("%s is not pushed, because its weights are FSDP shards.", checkpoint.name)
            return
        planned = Push(
            repo_id=self.hub_model_id,
            revision=self.args.hub_revision or "main",
            files=published_checkpoint(checkpoint),
            deletions=[],
            head=None,
            creates=None,
            private=None,
        )
        saved_by_steps = self.args.save_strategy == SaveStrategy.STEPS
        progress = f"step {self.state.global_step}" if saved_by_steps else f"epoch {int(self.state.epoch or 0)}"
        message = f"Training in progress, {progress}"
        job = send_in_background(planned, checkpoint.parent, message=message, token=self.args.hub_token)
        jobs = [] if self.push_in_progress is None else self.push_in_progress.jobs
        self.push_in_progress = PushInProgress([*jobs, job])


class RunTrainer(ResumableTrainer, PublishingTrainer):
    """Trainer with token batches and throughput logs that pushes the model with the card of `trivium.hub.card`.

    Args:
        max_tokens: Maximum number of tokens per batch and device, as counted by `TokenBatchSampler`; None for batches
            of `per_device_train_batch_size` rows.
        buffer_size: Number of rows to buffer for token batches of a stream; required in this case.
        r_drop: Forward pass of R-Drop, for training steps; None for that of the model.
        distillation: The teacher, whose probabilities are part of the training loss; None for none.

    A stream (`EncodedStream` or `datasets.IterableDataset`) is divided among the processes, and resumed at the saved
    position (`trivium.training.streaming`).
    """

    def __init__(
        self,
        *args: Any,
        max_tokens: int | None = None,
        buffer_size: int | None = None,
        r_drop: RDrop | None = None,
        distillation: Distillation | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self._r_drop = r_drop
        self.distillation = distillation
        if distillation is not None:
            distillation.teacher.to(self.args.device)
        self.batches: TokenBatchSampler | None = None
        self.batch_stream: BatchStream | None = None
        self._steps: StreamSteps | None = None
        self._stream_epoch: int | None = None  # epoch of the batch that is being collated
        self._filler: dict[str, Any] | None = None
        self._rng_checkpoint: str | None = None
        self._epoch_offset = EpochOffset()
        self.add_callback(self._epoch_offset)
        self.add_callback(Throughput())
        columns = token_columns(self.model.config)
        if max_tokens is not None:
            max_tokens *= max(1, self.args.n_gpu)  # DataParallel splits each batch across the GPUs of this process.
        if isinstance(self.train_dataset, EncodedStream | IterableDataset):
            stream = self.train_dataset
            rows = stream if isinstance(stream, EncodedStream) else EncodedStream(stream)
            size = self._train_batch_size if max_tokens is None else buffer_size
            assert size is not None  # A recipe always sets it.
            self.batch_stream = BatchStream(rows, size, max_tokens, columns, self._data_seed)
            # With tensor or context parallelism, several processes read the same data.
            processes = super().get_total_train_batch_size(self.args) // self._train_batch_size
            processes //= self.args.gradient_accumulation_steps
            rank = self.args.process_index // (self.args.world_size // processes)
            self._steps = StreamSteps(self.batch_stream, rank, processes, self.args.dataloader_num_workers)
        elif max_tokens is not None:
            lengths = [lengths_of(self.train_dataset, column) for column in columns]
            self.batches = TokenBatchSampler(lengths, max_tokens, self._data_seed, self._current_epoch)
        if self.batches is not None:
            statistics = {"batches_per_epoch": len(self.batches), "tokens_per_batch": self.batches.mean_tokens}
            self.add_callback(DataReport({**statistics, "padding": self.batches.padding}, self.log))

    @property
    def _data_seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def current_epoch(self) -> int:
        """Return the epoch of the batch being collated, or else the epoch of training."""
        return int(self.state.epoch or 0) if self._stream_epoch is None else self._stream_epoch

    def _current_epoch(self) -> int:
        return self.current_epoch

    def _prepare_for_training(self, *args: Any, **kwargs: Any) -> tuple[nn.Module, DataLoader]:
        with tied_weights_together(self.model) if self.is_fsdp_enabled else nullcontext():
            return super()._prepare_for_training(*args, **kwargs)

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Save the model; with FSDP's sharded state dict, save the configuration and the tokenizer without weights."""
        super().save_model(output_dir, _internal_call)
        if self.has_shards and self.args.should_save:
            self.model.config.architectures = [type(self.model).__name__.removeprefix("FSDP")]
            self.model.config.save_pretrained(output_dir)
            if self.model.can_generate():
                self.model.generation_config.save_pretrained(output_dir)
            self.processing_class.save_pretrained(output_dir)

    @property
    def has_shards(self) -> bool:
        """Return True if FSDP saves checkpoints as shards, one per process."""
        plugin = getattr(self.accelerator.state, "fsdp_plugin", None)
        return plugin is not None and plugin.state_dict_type == StateDictType.SHARDED_STATE_DICT

    def get_train_dataloader(self) -> DataLoader:
        """Return the training dataloader, with token batches if `max_tokens` is set."""
        options = {
            "num_workers": self.args.dataloader_num_workers,
            "pin_memory": self.args.dataloader_pin_memory,
            "persistent_workers": self.args.dataloader_persistent_workers,
            "prefetch_factor": self.args.dataloader_prefetch_factor,
            "multiprocessing_context": self.args.dataloader_multiprocessing_context,
        }
        if self.batches is not None:
            return self.accelerator.prepare(
                DataLoader(self.train_dataset, batch_sampler=self.batches, collate_fn=self.data_collator, **options)
            )
        if self.batch_stream is None:
            return super().get_train_dataloader()
        # Accelerate sees each batch as a single row, and must not distribute these rows: every process reads its own.
        return prepare_data_loader(
            DataLoader(self.batch_stream, batch_size=1, collate_fn=self._collate_placed, **options),
            self.accelerator.device,
            num_processes=1,
            process_index=0,
            put_on_device=True,
            dispatch_batches=False,
        )

    def _collate_placed(self, batches: list[PlacedBatch]) -> dict[str, Any]:
        """Collate the rows of the single batch, and add its position."""
        [batch] = batches
        self._stream_epoch = batch.place["epoch"]
        collated = dict(self.data_collator(batch.rows))
        self._stream_epoch = None
        return {**collated, PLACE: json.dumps(batch.place)}

    def _make_filler(self) -> dict[str, Any]:
        """Return a batch of weight zero, made of the first row of the stream."""
        if self._filler is None:
            assert self.batch_stream is not None
            row = self.batch_stream.rows.first_row()
            self._filler = dict(send_to_device(self.data_collator([row]), self.accelerator.device))
        return {**self._filler, FILLER: True}

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
        if self._steps is None or resume_from_checkpoint is None or self.args.ignore_data_skip:
            return epochs, batches
        if not self._steps.load(Path(resume_from_checkpoint)):
            return epochs, batches  # written by an earlier version: the batches are read again and skipped
        if self._steps.is_epoch_done:
            return epochs + 1, 0
        # The Trainer must not skip batches, so it is made to count from the beginning of the epoch.
        self._epoch_offset.offset = (self.state.epoch or 0) - epochs
        self._rng_checkpoint = resume_from_checkpoint
        return epochs, 0

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        if self._steps is not None:
            self._steps.begin_epoch(kwargs["epoch"])
        super()._run_epoch(*args, **kwargs)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        if self._steps is not None:
            self._steps.save(Path(output_dir))

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        sampler = super()._get_train_sampler(train_dataset)
        seed, epoch = self._data_seed, self._current_epoch
        if isinstance(sampler, LengthGroupedSampler):
            return SeededLengthGroupedSampler(sampler.lengths, sampler.batch_size, seed, epoch)
        if isinstance(sampler, BatchRebalanceSampler):
            return SeededBatchRebalanceSampler(
                sampler.lengths,
                sampler.effective_batch_size,
                sampler.dp_size,
                sampler.grad_accum,
                seed=seed,
                rank=sampler.rank,
                drop_last=sampler.drop_last,
                epoch=epoch,
            )
        return sampler

    def get_total_train_batch_size(self, args: Seq2SeqTrainingArguments) -> int:
        """Return the mean number of rows per step, from which the Trainer computes samples per second."""
        rows = super().get_total_train_batch_size(args)
        return rows if self.batches is None else round(rows / self._train_batch_size * self.batches.mean_rows)

    def compute_loss(
        self, model: nn.Module, inputs: dict[str, Any], return_outputs: bool = False, **kwargs: Any
    ) -> Any:
        """Compute the loss, without materializing the logits unless the outputs are returned."""
        weight = 0.0 if inputs.get(FILLER) else 1.0
        inputs = {name: value for name, value in inputs.items() if name != FILLER}
        forward: Any = model
        if self._r_drop is not None and model.training:
            forward = partial(self._r_drop, model)
        elif self.distillation is not None and model.training:
            forward = partial(self.distillation, model, self.accelerator.autocast())
        elif not return_outputs:
            inputs = self._add_skip_logits(inputs)
        loss = super().compute_loss(forward, inputs, return_outputs, **kwargs)
        return loss if weight else weight * loss

    @property
    def throughput(self) -> Throughput:
        """Return the throughput callback, which the Trainer may have replaced when restoring callback states."""
        return next(callback for callback in self.callback_handler.callbacks if isinstance(callback, Throughput))

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[list[Any], torch.Tensor | int | None]:
        """Return the batches of an optimizer step, and count their tokens."""
        start = time.perf_counter()
        if self._steps is not None:
            state = self.accelerator.gradient_state
            taken = self._steps.take(epoch_iterator, num_batches, lambda: state.end_of_dataloader, self._make_filler)
            epoch_iterator = iter(taken)
        batches, num_items_in_batch = super().get_batch_samples(epoch_iterator, num_batches, device)
        if self._rng_checkpoint is not None:  # restore the random state, which the DataLoader has advanced
            self._load_rng_state(self._rng_checkpoint)
            self._rng_checkpoint = None
        self.throughput.begin_step(batches, start)
        return batches, num_items_in_batch

    def _get_num_items_in_batch(
        self, batch_samples: list[dict[str, Any]], device: torch.device
    ) -> torch.Tensor | int | None:
        weighed = [
            {**batch, "labels": torch.full_like(batch["labels"], IGNORE_INDEX)} if FILLER in batch else batch
            for batch in batch_samples
        ]
        return super()._get_num_items_in_batch(weighed, device)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the throughput to logs with a loss; for streams, whose batch sizes vary, drop samples per second."""
        if "loss" in logs:
            logs.update(self.throughput.since_last_log())
        if self.batch_stream is not None:
            logs.pop("train_samples_per_second", None)
        super().log(logs, start_time)

    def prediction_step(
        self, model: nn.Module, inputs: dict[str, Any], prediction_loss_only: bool, *args: Any, **kwargs: Any
    ) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
        """Run an evaluation step, without materializing the logits if only the loss is needed."""
        if prediction_loss_only:
            inputs = self._add_skip_logits(inputs)
        return super().prediction_step(model, inputs, prediction_loss_only, *args, **kwargs)

    def _add_skip_logits(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """Add `skip_logits=True` to the model's inputs if its `forward` accepts it."""
        can_skip = "skip_logits" in inspect.signature(self.model.forward).parameters
        return {**inputs, "skip_logits": True} if can_skip else inputs

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write the model card and its figure to the output folder, unless a custom card is already there."""
        from trivium.hub.card import has_own_card, render_card  # deferred: it imports the plotting libraries

        folder = Path(self.args.output_dir)
        if self.is_world_process_zero() and not has_own_card(folder):
            for name, content in render_card(folder, self.hub_model_id).items():
                write_whole(folder / name, content)
