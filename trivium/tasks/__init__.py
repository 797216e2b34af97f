"""Tasks: what can be trained, how text becomes model inputs, how batches are collated."""

from trivium.tasks.collate import make_collator
from trivium.tasks.encode import InputArguments, pack, prompts_of, windows_of_rows
from trivium.tasks.label_facts import encode_label, label_facts, labels_of_logits, labels_of_row, labels_of_targets
from trivium.tasks.task import TASKS, Task, encode_data, encode_rows

__all__ = [
    "TASKS",
    "InputArguments",
    "Task",
    "encode_data",
    "encode_label",
    "encode_rows",
    "label_facts",
    "labels_of_logits",
    "labels_of_row",
    "labels_of_targets",
    "make_collator",
    "pack",
    "prompts_of",
    "windows_of_rows",
]
