"""Train tiny models with the Trainer: quiet arguments, a collator for texts, and the logged losses."""

from pathlib import Path
from typing import Any

import torch
from tiny import PAD
from torch.nn.utils.rnn import pad_sequence
from transformers import Seq2SeqTrainingArguments, Trainer


def quiet_arguments(folder: Path | str, **options: Any) -> Seq2SeqTrainingArguments:
    """Return training arguments for the CPU, without reports and progress bars."""
    return Seq2SeqTrainingArguments(
        output_dir=str(folder), report_to="none", disable_tqdm=True, use_cpu=True, **options
    )


def collate_texts(rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
    """Pad texts on the right; the labels are the texts."""
    ids = pad_sequence([torch.tensor(row["input_ids"]) for row in rows], batch_first=True, padding_value=PAD)
    return {"input_ids": ids, "attention_mask": (ids != PAD).long(), "labels": ids.masked_fill(ids == PAD, -100)}


def losses_of(trainer: Trainer) -> list[float]:
    """Return the logged training losses."""
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
