"""Example texts for a model card, from the validation part of the run's data."""

from dataclasses import replace

from trivium.data.loading import load_split
from trivium.recipe import Recipe

MAX_EXAMPLES = 3
MAX_READ_ROWS = 100
MAX_CHARACTERS = 200
MAX_PROMPT_WORDS = 5


def validation_texts(recipe: Recipe) -> list[str]:
    """Return a few short texts of the validation part, or none if it is not on this machine.

    Of a language model's texts, only the first words are returned, to be continued. A masked language model has no
    such examples, because they need a mask.
    """
    data, columns = recipe.data, recipe.kind.columns
    is_here = data.name == "numbers" or (data.name is None and data.validation is not None)
    if not is_here or recipe.task == "masked-lm":
        return []
    first_rows = replace(data, streaming=True, max_validation_samples=MAX_READ_ROWS)
    try:
        texts = [" ".join(row[columns[0]].split()) for row in load_split(first_rows, "validation", columns)]
    except (OSError, ValueError):  # The files were moved or changed after the training.
        return []
    if recipe.task == "causal-lm":
        texts = [" ".join(text.split()[:MAX_PROMPT_WORDS]) for text in texts]
    return [text for text in dict.fromkeys(texts) if len(text) <= MAX_CHARACTERS][:MAX_EXAMPLES]
