"""A run as a file: which task, what data, which tokenizer and model, how to train, to generate and to measure."""

import inspect
from collections.abc import Sequence
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
from trivium.metrics import METRICS
from trivium.tasks import TASKS, InputArguments, Task

RECIPE_FILE = "recipe.yaml"
CLASSIFIER_FIELDS = ("problem_type", "label2id", "id2label", "num_labels")


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
class Recipe:
    """All that it takes to repeat a run. Unknown fields are refused, wherever they are.

    Attributes:
        task: What is to be learned: a key of `trivium.tasks.TASKS`.
        data: Where the texts, pairs or labelled texts come from.
        tokenizer: How the vocabulary is made.
        inputs: How text becomes the inputs of the model.
        model: `preset`, the name of a preset, and fields of `TriviumConfig` that replace its own. A task takes of a
            preset the layers that it needs: only the encoder's for `masked-lm`.
        training: Fields of `Seq2SeqTrainingArguments`.
        generation: Fields of `GenerationConfig`; they are saved with the model, as its defaults.
        metrics: What is measured, by the names of `trivium.metrics.load_metric`; None: what is usual for the task.
        early_stopping_patience: Stop after so many evaluations without a better one; None: never.
        init_from: A saved model to go on from, with its own tokenizer, instead of a new one. Of an encoder-decoder a
            task takes the half that it needs. `model` may then say what does not change its parameters, as dropout.
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
    init_from: str | None = None

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
        return Seq2SeqTrainingArguments(**self.training)

    def model_config(self, **facts: Any) -> TriviumConfig:
        """The `model:` section as a configuration, completed by `facts` that the tokenizer knows."""
        options = dict(self.model)
        return preset_config(options.pop("preset", next(iter(PRESETS))), **{**facts, **options})

    def save(self, folder: str | Path) -> None:
        """Write the recipe to `folder`, as `recipe.yaml`."""
        path = Path(folder) / RECIPE_FILE
        partial = path.with_suffix(".partial")
        OmegaConf.save(OmegaConf.structured(self), partial)
        partial.replace(path)


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


def _refuse_unknown(section: str, given: Sequence[str] | dict[str, Any], allowed: list[str]) -> None:
    for name in given:
        if name not in allowed:
            close = get_close_matches(name, allowed)
            hint = f" Did you mean {' or '.join(close)}?" if close else ""
            raise ValueError(f"{section} says {name!r}, but can only say {', '.join(sorted(allowed))}.{hint}")
