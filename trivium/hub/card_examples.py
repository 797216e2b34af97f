"""Example texts for a model card, from the validation split of the run's data."""

from dataclasses import replace

from trivium.data.loading import load_split
from trivium.recipe import Recipe

MAX_EXAMPLES = 3
MAX_READ_ROWS = 100
MAX_CHARACTERS = 200
MAX_PROMPT_WORDS = 5


def validation_texts(recipe: Recipe) -> list[str]:
    """Return a few short texts of the validation split, or none if the data is not on this machine.

    For a language model, return only the first words of each text, which the model continues. A masked language model
    has no such examples, because they would need a mask.
    """
    data, columns = recipe.data, recipe.kind.columns
    is_here = data.name == "numbers" or (data.name is None and data.validation is not None)
    if not is_here or recipe.task == "masked-lm":
        return []
    first_rows = replace(data, streaming=True, max_validation_samples=MAX_READ_ROWS)
    try:
        texts = [" ".join(row[columns[0]].split()) for row in load_split(first_rows, "validation", columns)]
    except (OSError, ValueError):  # The files were moved or changed after training.
        return []
    if recipe.task == "causal-lm":
        texts = [" ".join(text.split()[:MAX_PROMPT_WORDS]) for text in texts]
    return [text for text in dict.fromkeys(texts) if len(text) <= MAX_CHARACTERS][:MAX_EXAMPLES]
