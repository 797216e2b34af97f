"""Columns of the tasks, and the fields of the `data:` section that name them in the data."""

TEXT = ("text",)
LABELED_TEXT = ("text", "label")
PAIR = ("source", "target")
TAGGED_WORDS = ("words", "tags")
DOCUMENT = ("document", "references")
QUESTION = ("question", "context", "answers")
# The field of the `data:` section that names each column; by default it has the name of the column.
FIELDS = {"words": "text", "tags": "label", "document": "source", "references": "target"}
