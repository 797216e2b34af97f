"""A run as a file: which task, what data, which tokenizer and model, how to train, to generate and to measure."""

import inspect
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from importlib import resources
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from transformers import GenerationConfig, Seq2SeqTrainingArguments
from yaml import YAMLError

from trivium.configuration import PRESETS, TriviumConfig, preset_config
from trivium.data import DataArguments
from trivium.files import write_whole
from trivium.metrics import METRICS
from trivium.tasks import TASKS, InputArguments, Task

RECIPE_FILE = "recipe.yaml"
CLASSIFIER_FIELDS = ("problem_type", "label2id", "id2label", "num_labels")
# Of the Trainer, and what they may be where batches are not of rows but of tokens.
OF_BATCHES_OF_ROWS: tuple[tuple[str, list[Any]], ...] = (
    ("per_device_train_batch_size", [None]),
    ("train_sampling_strategy", [None, "random"]),
    ("auto_find_batch_size", [None, False]),
    ("dataloader_drop_last", [None, False]),
)


@dataclass
class TokenizerArguments:
    """What `train_tokenizer` takes, and how much of the training data it sees: the `tokenizer:` section of a recipe.

    Attributes:
        sample: Train on the first so many rows; None for all.
        vocab_size: Tokens in each vocabulary.
        shared: One vocabulary for both languages, or one each.
        algorithm: "bpe", "wordpiece", "unigram" or "char".
        byte_fallback: BPE over characters, with bytes for unknown ones, instead of over bytes.
        normalization: "NFC", "NFKC" or None.
        lowercase: Whether text is lower-cased.
        add_bos_token: Whether a text begins with `<s>`; None: as is usual for the task.
        add_eos_token: Whether a text ends with `</s>`; None: as is usual for the task.
    """

    sample: int | None = None
    vocab_size: int = 8000
    shared: bool = True
    algorithm: str = "bpe"
    byte_fallback: bool = False
    normalization: str | None = "NFC"
    lowercase: bool = False
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None


@dataclass
class CardArguments:
    """What a run cannot know about its model, for the model card: the `card:` section of a recipe.

    Attributes:
        title: The heading; None: the name of the repository.
        summary: What the model does, in a sentence or two of Markdown.
        license: Of the model, as the Hub calls it: "apache-2.0", "cc-by-4.0", "other", ...
        languages: ISO 639 codes, such as "en"; of sentence pairs, if `data.source` and `data.target` are such codes of
            two letters, these need not be said.
        datasets: Names on the Hub of the data that it was trained on, the first one that it was measured on.
        examples: Texts to try it with, for a masked language model with `<mask>`; the first is also drawn.
        intended_use: What it is good for, in Markdown.
        limitations: What it is not good for, in Markdown.
    """

    title: str | None = None
    summary: str | None = None
    license: str | None = None
    languages: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    intended_use: str | None = None
    limitations: str | None = None

    def __post_init__(self) -> None:
        """Refuse what the Hub would refuse.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ValueError(
                f"card.license is {self.license!r}, but must be a name of the Hub's, such as apache-2.0: "
                "https://huggingface.co/docs/hub/repositories-licenses lists them."
            )
        for code in self.languages:
            if not re.fullmatch(r"[a-z]{2,3}|multilingual", code):
                raise ValueError(
                    f"card.languages has {code!r}, but must have ISO 639 codes of two or three small letters, such as "
                    "en, or multilingual."
                )
        for name in self.datasets:
            if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name):
                raise ValueError(f"card.datasets has {name!r}, but must have names on the Hub, such as owner/name.")
        if not all(text.strip() for text in self.examples):
            raise ValueError(f"card.examples is {self.examples}, but an example must not be blank.")


@dataclass
class Recipe:
    """All that it takes to repeat a run. Unknown fields are refused, wherever they are.

    Attributes:
        task: What is to be learned: a key of `trivium.tasks.TASKS`.
        data: Where the texts, pairs or labelled texts come from.
        tokenizer: How the vocabulary is made.
        inputs: How text becomes the inputs of the model.
        model: `preset`, the name of a preset, and fields of `TriviumConfig` that replace its own. A task takes of a
            preset the layers that it needs: only the encoder's for `masked-lm`.
        training: Fields of `Seq2SeqTrainingArguments`; null leaves one at its default.
        generation: Fields of `GenerationConfig`; they are saved with the model, as its defaults.
        metrics: What is measured, by the names of `trivium.metrics.load_metric`; None: what is usual for the task.
        early_stopping_patience: Stop after so many evaluations without a better one; None: never.
        ema_decay: Give the exponential average of the weights after every step instead of those after the last one:
            of about 1 / (1 - ema_decay) steps, such as 0.999; None: do not.
        init_from: A saved model to go on from, with its own tokenizer, instead of a new one. Of an encoder-decoder a
            task takes the half that it needs. `model` may then say what does not change its parameters, as dropout.
        card: What the model card says beside what the run itself can tell.
    """

    task: str = "translation"
    data: DataArguments = field(default_factory=DataArguments)
    tokenizer: TokenizerArguments = field(default_factory=TokenizerArguments)
    inputs: InputArguments = field(default_factory=InputArguments)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    generation: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] | None = None
    early_stopping_patience: int | None = None
    ema_decay: float | None = None
    init_from: str | None = None
    card: CardArguments = field(default_factory=CardArguments)

    def __post_init__(self) -> None:
        """Refuse what no later step would understand.

        Raises:
            ValueError: A field of a section is unknown; the message names it and lists what is allowed.
        """
        _refuse_unknown("task", [self.task], list(TASKS))
        arguments = list(inspect.signature(Seq2SeqTrainingArguments).parameters)
        _refuse_unknown("model", self.model, ["preset", *(f.name for f in fields(TriviumConfig)), *CLASSIFIER_FIELDS])
        _refuse_unknown("training", self.training, arguments)
        _refuse_unknown("generation", self.generation, list(GenerationConfig().to_dict()))
        _refuse_unknown("metrics", self.metrics or [], list(METRICS))
        self.kind.check_metrics(self.metrics or [])
        for name, default in vars(InputArguments()).items():
            given = getattr(self.inputs, name)
            tasks = [task for task, entry in TASKS.items() if name in entry.inputs]
            if tasks and self.task not in tasks and given != default:
                raise ValueError(
                    f"inputs.{name} is {given}, but it is for {', '.join(tasks)}; the task is {self.task}."
                )
        if self.task != "translation":
            for name, given, allowed in (
                ("tokenizer.shared", self.tokenizer.shared, True),
                ("training.predict_with_generate", self.training.get("predict_with_generate", False), False),
            ):
                if given != allowed:
                    raise ValueError(f"{name} is {given}, but it is for translation; the task is {self.task}.")
        if self.inputs.max_tokens is not None:
            for name, given, possible in (
                ("inputs.packing", self.inputs.packing, [False]),  # whose rows are full
                *((f"training.{name}", self.training.get(name), possible) for name, possible in OF_BATCHES_OF_ROWS),
            ):
                if given not in possible:
                    raise ValueError(
                        f"inputs.max_tokens is {self.inputs.max_tokens}, but {name} is {given}, which does not go "
                        f"with batches by tokens: set {name}={json.dumps(possible[0])}, or inputs.max_tokens=null."
                    )
        if self.inputs.max_tokens is not None and self.data.streaming:
            workers = self.training.get("dataloader_num_workers") or 0
            if workers > 1:
                raise ValueError(
                    f"training.dataloader_num_workers is {workers}, but must be 0 or 1 with data.streaming and "
                    "inputs.max_tokens: one worker reads the stream."
                )
        elif self.inputs.buffer_size != InputArguments.buffer_size:
            raise ValueError(
                f"inputs.buffer_size is {self.inputs.buffer_size}, but it is for data.streaming=true with "
                "inputs.max_tokens: leave it out."
            )
        if self.ema_decay is not None and not 0 < self.ema_decay < 1:
            raise ValueError(f"ema_decay is {self.ema_decay}, but must be greater than 0 and less than 1, or null.")
        if not self.training.get("output_dir"):
            raise ValueError("training.output_dir is missing: it says where the run is kept.")
        if self.init_from and "preset" in self.model:
            raise ValueError(
                f"init_from brings its own configuration, but model.preset is {self.model['preset']!r}: leave one out."
            )

    @property
    def kind(self) -> Task:
        """The task, with all that goes with it."""
        return TASKS[self.task]

    def training_arguments(self) -> Seq2SeqTrainingArguments:
        """The `training:` section, as the Trainer takes it."""
        return Seq2SeqTrainingArguments(**{name: given for name, given in self.training.items() if given is not None})

    def model_config(self, **facts: Any) -> TriviumConfig:
        """The `model:` section as a configuration, completed by `facts` that the tokenizer knows."""
        options = dict(self.model)
        return preset_config(options.pop("preset", next(iter(PRESETS))), **{**facts, **options})

    def save(self, folder: str | Path) -> None:
        """Write the recipe to `folder`, as `recipe.yaml`."""
        write_whole(Path(folder) / RECIPE_FILE, OmegaConf.to_yaml(OmegaConf.structured(self)))


def available_recipes() -> list[str]:
    """Names of the recipes that come with the package."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("trivium.recipes").iterdir()
        if entry.name.endswith(".yaml")
    )


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe.

    Args:
        source: The name of one that comes with the package, a YAML file, or a folder that a run was kept in.
        overrides: Single fields to replace, as `section.field=value`, the value as YAML writes it.

    Raises:
        FileNotFoundError: There is no such recipe; the message lists those that come with the package.
        ValueError: The recipe does not say what it must, or says something unknown.
    """
    path = Path(source)
    if path.is_dir():
        path = path / RECIPE_FILE
    if not path.is_file() and str(source) in available_recipes():
        path = Path(str(resources.files("trivium.recipes") / f"{source}.yaml"))
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no recipe {str(source)!r}: give a YAML file, the folder of a run, or one of "
            f"{', '.join(available_recipes())}."
        )
    for override in overrides:
        if "=" not in override:
            raise ValueError(f"{override!r} is not an override: write section.field=value, such as model.dropout=0.2.")
    try:
        content = OmegaConf.merge(OmegaConf.load(path), OmegaConf.from_dotlist(list(overrides)))
        if missing := sorted(OmegaConf.missing_keys(content)):
            raise ValueError(
                f"{path} leaves open what you have to say: add {' '.join(f'{k}=...' for k in missing)} "
                "(null, if there is none)."
            )
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), content))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(f"{path}: {error}") from error
    assert isinstance(recipe, Recipe)  # what the schema is made of
    return recipe


def load_card_arguments(overrides: Sequence[str]) -> CardArguments:
    """The `card:` section for a model that has no recipe, made of nothing but `card.field=value`.

    Raises:
        ValueError: There is no such field, or it cannot have this value.
    """
    try:
        given = OmegaConf.from_dotlist(list(overrides)).get("card", {})
        card = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(CardArguments), given))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ValueError(str(error)) from error
    assert isinstance(card, CardArguments)  # what the schema is made of
    return card


def data_name(data: DataArguments, split: str) -> str:
    """What to call a part of the data: by the data set, or by its file, but not by where that lies on this machine."""
    expression = getattr(data, split)
    if data.name is None:
        return without_home(expression)
    return " ".join(name for name in (without_home(data.name), data.config_name, expression) if name)


def public_recipe(recipe: Recipe) -> str:
    """As YAML what is not as it is by default, without the folders of this machine."""
    default, given = (OmegaConf.to_container(OmegaConf.structured(each)) for each in (Recipe, recipe))
    assert isinstance(default, dict)
    assert isinstance(given, dict)
    return OmegaConf.to_yaml(OmegaConf.create({"task": recipe.task, **_difference(given, default)}))


def _difference(given: Mapping[Any, Any], default: Mapping[Any, Any]) -> dict[Any, Any]:
    difference: dict[Any, Any] = {}
    for name, value in given.items():
        if isinstance(value, dict):
            if inside := _difference(value, default.get(name) or {}):
                difference[name] = inside
        elif name not in default or value != default[name]:
            difference[name] = without_home(value) if isinstance(value, str) else value
    return difference


def without_home(path: str) -> str:
    """Of an absolute path the last two parts, which tell data apart: the others are nobody's business."""
    return Path(*Path(path).parts[1:][-2:]).as_posix() if Path(path).is_absolute() else path


def _refuse_unknown(section: str, given: Sequence[str] | dict[str, Any], allowed: list[str]) -> None:
    for name in given:
        if name not in allowed:
            close = get_close_matches(name, allowed)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"{section} says {name!r}, but can only say {', '.join(sorted(allowed))}.{hint}")
