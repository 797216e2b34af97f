"""Training tasks: their models and data columns, text encoding, collation and labels."""

from trivium.data.packing import pack
from trivium.tasks.collate import make_collator
from trivium.tasks.encode import InputArguments, prompts_of, windows_of_rows
from trivium.tasks.label_facts import encode_label, label_facts, labels_of_logits, labels_of_row, labels_of_targets
from trivium.tasks.tags import score_tags, tags_of_targets, tags_of_words
from trivium.tasks.task import TASKS, Task, encode_data, encode_rows, encode_stream

__all__ = [
    "TASKS",
    "InputArguments",
    "Task",
    "encode_data",
    "encode_label",
    "encode_rows",
    "encode_stream",
    "label_facts",
    "labels_of_logits",
    "labels_of_row",
    "labels_of_targets",
    "make_collator",
    "pack",
    "prompts_of",
    "score_tags",
    "tags_of_targets",
    "tags_of_words",
    "windows_of_rows",
]
