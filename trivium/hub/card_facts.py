"""Collect the facts about a saved model that its card states, from the files of the model and its run."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from huggingface_hub import get_local_safetensors_metadata, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError
from transformers import GenerationConfig, TrainerState

from trivium.configuration import TriviumConfig
from trivium.data.arguments import SPLITS
from trivium.data.columns import PAIR
from trivium.data.directions import split_directions, tags_of
from trivium.hub.card_examples import validation_texts
from trivium.hub.checking import weights_of
from trivium.hub.public import data_name, load_card_arguments
from trivium.hub.usage import Usage, usage_of
from trivium.recipe import Recipe, load_recipe
from trivium.recipe_sections import CardArguments
from trivium.storage.names import RECIPE_FILE
from trivium.storage.saved_model import check_model_files
from trivium.tasks import prompts_of


@dataclass(frozen=True)
class CardFacts:
    """Facts about a saved model; fields about the training are None or empty if there is no record of it.

    Attributes:
        folder: Folder of the saved model.
        config: Configuration of the model.
        usage: Task of the model on the Hub, with its pipeline and example.
        parameters: Number of parameters.
        card: Metadata from the recipe's `card:` section.
        recipe: Recipe of the run, or None.
        evaluations: Content of `evaluation_{split}.json` by split.
        state: State of the Trainer at the end of the run, or None.
        generation: Generation defaults saved with the model, or None.
        validation_texts: Example inputs from the validation data, if the card has none.
    """

    folder: Path
    config: TriviumConfig
    usage: Usage
    parameters: int
    card: CardArguments
    recipe: Recipe | None
    evaluations: dict[str, dict[str, Any]]
    state: TrainerState | None
    generation: GenerationConfig | None
    validation_texts: list[str]

    @property
    def own_examples(self) -> list[str]:
        """Return the examples of the card, or else texts from the validation split."""
        return self.card.examples or self.validation_texts

    @property
    def architecture(self) -> str:
        """Return "encoder-decoder", "encoder-only" or "decoder-only"."""
        if self.config.is_encoder_decoder:
            return "encoder-decoder"
        return "encoder-only" if self.config.encoder_layers else "decoder-only"

    @property
    def examples(self) -> list[str]:
        """Return example inputs in the format that the model was trained on."""
        examples = self.own_examples or [self.usage.example]
        if self.usage.task == "fill-mask":
            examples = [text for text in examples if "<mask>" in text] or [self.usage.example]
        if self.recipe and self.recipe.task == "completion":
            examples = prompts_of(examples, self.recipe.inputs)
        if tags := tuple(tags_of(self.recipe.data)) if self.recipe else ():
            examples = [text if text.startswith(tags) else tags[0] + text for text in examples]
        return examples

    @property
    def example(self) -> str:
        """Return the first example."""
        return self.examples[0]

    def title(self, name: str) -> str:
        """Return the title of a model named `name` as one line of plain text."""
        return " ".join((self.card.title or name.rsplit("/", 1)[-1]).split())

    @property
    def languages(self) -> list[str]:
        """Return the languages of the card, or else the two-letter codes of the recipe's directions."""
        if self.card.languages or not self.recipe or self.recipe.kind.columns != PAIR:
            return self.card.languages
        parts = split_directions(self.recipe.data)
        names = dict.fromkeys(name for part in parts for name in (part.source, part.target))
        return [name for name in names if re.fullmatch("[a-z]{2}", name)]

    @property
    def run(self) -> dict[str, Any]:
        """Return the run metadata: `seconds`, `hardware`, `versions`, `processes`, `data`, `seed`."""
        return self._state_of("RunFacts")

    @property
    def work(self) -> dict[str, Any]:
        """Return the total training compute: `tokens`, `padded`, `flops`, `seconds`."""
        return self._state_of("Throughput").get("work", {})

    def _state_of(self, callback: str) -> dict[str, Any]:
        callbacks = self.state.stateful_callbacks if self.state else None
        return (callbacks or {}).get(callback, {}).get("attributes", {})


def read_facts(folder: Path, overrides: Sequence[str]) -> CardFacts:
    """Read the facts from the folder of a saved model.

    Raises:
        FileNotFoundError: The folder has no model or no weights.
        ValueError: A file is invalid, or an override is not of the form `card.field=value`.
    """
    check_model_files(folder)
    if invalid := [text for text in overrides if not re.match(r"card\.\w+=", text)]:
        raise ValueError(f"overrides has {invalid[0]!r}, but must have card.field=value, such as card.license=mit.")
    weights_of(folder)  # raises a FileNotFoundError if there are no weights
    config = TriviumConfig.from_pretrained(folder)
    recipe = load_recipe(folder, overrides) if (folder / RECIPE_FILE).is_file() else None
    evaluations = {}
    for split in SPLITS:
        path = folder / f"evaluation_{split}.json"
        if path.is_file():
            evaluations[split] = json.loads(path.read_text(encoding="utf-8"))
            if "scores" not in evaluations[split]:
                raise ValueError(
                    f"{path} was written by an older version: run `trivium evaluate` again, or delete it."
                )
    card = recipe.card if recipe else load_card_arguments(overrides)
    state, generation = folder / "trainer_state.json", folder / "generation_config.json"
    return CardFacts(
        folder=folder,
        config=config,
        usage=usage_of(config),
        parameters=sum(get_local_safetensors_metadata(folder).parameter_count.values()),
        card=card,
        recipe=recipe,
        evaluations=evaluations,
        state=TrainerState.load_from_json(str(state)) if state.is_file() else None,
        generation=GenerationConfig.from_pretrained(folder) if generation.is_file() else None,
        validation_texts=validation_texts(recipe) if recipe and not card.examples else [],
    )


def hub_data_set(facts: CardFacts, split: str) -> str | None:
    """Return the Hub name of the evaluation data if it comes from the recipe and the card names it."""
    own = facts.recipe and facts.evaluations[split]["data"] == data_name(facts.recipe.data, split)
    return facts.card.datasets[0] if own and facts.card.datasets else None


def hub_model(recipe: Recipe | None) -> str | None:
    """Return the Hub name of the initial model, if it was loaded from the Hub.

    A local path such as `runs/words` looks like a Hub name, so it must not exist here and must be in the Hub cache.
    """
    if recipe is None or recipe.init_from is None or Path(recipe.init_from).exists():
        return None
    try:
        loaded = try_to_load_from_cache(recipe.init_from, "config.json")
    except HFValidationError:
        return None
    return recipe.init_from if isinstance(loaded, str) else None
