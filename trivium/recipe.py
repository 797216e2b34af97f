"""Recipes: the configuration of a run, from data and tokenizer to training and metrics."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from importlib import resources
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from transformers import Seq2SeqTrainingArguments
from yaml import YAMLError

from trivium.configuration import PRESETS, TriviumConfig, preset_config
from trivium.data import DataArguments
from trivium.recipe_checks import SECTION_CHECKS, refuse_unknown, strategy_fields
from trivium.recipe_sections import CardArguments, DistillationArguments, LearningArguments, TokenizerArguments
from trivium.storage.atomic import write_whole
from trivium.storage.names import RECIPE_FILE
from trivium.tasks import TASKS, InputArguments, Task

NO_MODEL = "model=null"  # the override that drops the model fields of a file


@dataclass
class Recipe:
    """Complete configuration of a run, from which it can be reproduced. Unknown fields are rejected in all sections.

    Attributes:
        task: Key of `trivium.tasks.TASKS`.
        data: Source of the training, validation and test data.
        tokenizer: Arguments of `train_tokenizer`.
        inputs: Encoding of text as model inputs.
        model: `preset`, the name of a preset, and fields of `TriviumConfig` that override it; null selects the first
            preset. A task uses only the layers of the preset that it needs: `masked-lm` only the encoder.
        training: Fields of `Seq2SeqTrainingArguments`; null selects the default.
        learning: Methods that learn more from the same data.
        generation: Fields of `GenerationConfig`, which are saved with the model as its defaults.
        metrics: Names of metrics, as accepted by `trivium.metrics.load_metric`; None for the task's default.
        early_stopping_patience: Stop after this many evaluations without improvement; None to disable.
        ema_decay: Decay of an exponential moving average (EMA) of the weights, which becomes the trained model. It
            covers about the last 1 / (1 - ema_decay) steps; 0.999 is typical. None to disable.
        init_from: Saved model to start from, with its tokenizer, instead of a new model. A task uses only the half of
            an encoder-decoder that it needs. `model` may then set only fields that do not change the shape of the
            parameters, such as dropout; the override `model=null` drops those of a recipe.
        distillation: Distillation of the model from a teacher, by its probabilities.
        card: Model card metadata that cannot be derived from the run.
    """

    task: str = "translation"
    data: DataArguments = field(default_factory=DataArguments)
    tokenizer: TokenizerArguments = field(default_factory=TokenizerArguments)
    inputs: InputArguments = field(default_factory=InputArguments)
    model: dict[str, Any] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    learning: LearningArguments = field(default_factory=LearningArguments)
    generation: dict[str, Any] = field(default_factory=dict)
    metrics: list[str] | None = None
    early_stopping_patience: int | None = None
    ema_decay: float | None = None
    init_from: str | None = None
    distillation: DistillationArguments = field(default_factory=DistillationArguments)
    card: CardArguments = field(default_factory=CardArguments)

    def __post_init__(self) -> None:
        """Check every section, and the sections against each other.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        refuse_interpolation(asdict(self))
        for check in SECTION_CHECKS:
            check(self)

    @property
    def kind(self) -> Task:
        """Return the entry of `task` in `trivium.tasks.TASKS`."""
        return TASKS[self.task]

    def training_arguments(self) -> Seq2SeqTrainingArguments:
        """Return the `training:` section as training arguments."""
        values = {name: value for name, value in self.training.items() if value is not None}
        # Without a GPU, torch warns about pinned memory, which is the default of transformers.
        return Seq2SeqTrainingArguments(**{"dataloader_pin_memory": torch.accelerator.is_available(), **values})

    def model_config(self, **facts: Any) -> TriviumConfig:
        """Return the `model:` section as a configuration, with defaults in `facts` from the tokenizer and the data."""
        return preset_config(self.model.get("preset") or next(iter(PRESETS)), **{**facts, **self.config_fields})

    @property
    def config_fields(self) -> dict[str, Any]:
        """Return the fields of `TriviumConfig` in the `model:` section, without `preset`."""
        return {name: value for name, value in self.model.items() if name != "preset"}

    def check_start(self) -> None:
        """Raise a FileNotFoundError if a model to load is neither a folder nor a valid name of a model on the Hub."""
        for name, value in (("init_from", self.init_from), ("distillation.teacher", self.distillation.teacher)):
            if value is None or Path(value).is_dir():
                continue
            try:
                validate_repo_id(value)
            except HFValidationError as error:
                raise FileNotFoundError(
                    f"{name} is {value!r}, but there is no such folder. Set it to the folder of a saved model, or to "
                    "the name of a model on the Hub."
                ) from error

    def save(self, folder: str | Path) -> None:
        """Write the recipe to `recipe.yaml` in a folder."""
        write_whole(Path(folder) / RECIPE_FILE, OmegaConf.to_yaml(OmegaConf.structured(self)))


def available_recipes() -> list[str]:
    """Return the names of the bundled recipes."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("trivium.recipes").iterdir()
        if entry.name.endswith(".yaml")
    )


def recipe_path(source: str | Path) -> Path:
    """Return the path of a recipe: the name of a bundled recipe, the path of a YAML file, or a run folder.

    Raises:
        FileNotFoundError: There is no such recipe; the message lists the bundled ones.
    """
    path = Path(source)
    if path.is_dir():
        path = path / RECIPE_FILE
    if not path.is_file() and str(source) in available_recipes():
        path = Path(str(resources.files("trivium.recipes") / f"{source}.yaml"))
    if not path.is_file():
        raise FileNotFoundError(
            f"There is no recipe {str(source)!r}. Allowed are a YAML file, a run folder, or one of "
            f"{', '.join(available_recipes())}."
        )
    return path


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe. Interpolation with `${...}` is refused, never resolved.

    Args:
        source: Name of a bundled recipe, path of a YAML file, or run folder.
        overrides: Fields to override, as `section.field=value` with a YAML value. `model=null` drops the section
            `model` of the file.

    Raises:
        FileNotFoundError: There is no such recipe; the message lists the bundled ones.
        ValueError: A field is missing or unknown, its value is not allowed, or the file is not a recipe.
    """
    path = recipe_path(source)
    with _yaml_errors(f"{path}: "):
        own = _read_file(path)
        if NO_MODEL in overrides:
            own.pop("model", None)
        changes = _read_overrides([override for override in overrides if override != NO_MODEL])
        content = OmegaConf.merge(own, changes)
        if missing := sorted(OmegaConf.missing_keys(content)):
            raise ValueError(
                f"{path} has no value for {', '.join(missing)}. Add {' '.join(f'{name}=...' for name in missing)} "
                "(null for none)."
            )
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), content))
    assert isinstance(recipe, Recipe)  # The schema was built from this class.
    return recipe


@contextmanager
def explain_missing_model(name: str, value: str) -> Iterator[None]:
    """Convert the error of a model that is neither in a folder nor on the Hub to one that names the field `name`."""
    try:
        yield
    except OSError as error:
        if Path(value).is_dir():
            raise
        raise FileNotFoundError(
            f"{name} is {value!r}, but there is no such folder, and no model of this name could be loaded from the "
            "Hub. Set it to the folder of a saved model, or to the name of a model on the Hub."
        ) from error


# --- Reading ---------------------------------------------------------------------------------------------------------


def refuse_interpolation(content: Any, path: str = "") -> None:
    """Raise a ValueError that names the first key or value with `${` in the nested `content`.

    OmegaConf would resolve it, for example from an environment variable, and the result would be saved and published
    with the recipe. `${` cannot be escaped, because OmegaConf does not preserve an escape when it loads and saves.
    """
    if isinstance(content, str | Path) and "${" in str(content):
        raise ValueError(
            f"{path} is {str(content)!r}, but interpolation with `${{...}}` is not allowed in a recipe. Write the "
            "value itself; in Markdown, write `&#36;{` for these characters."
        )
    if isinstance(content, dict):
        for key, value in content.items():
            if "${" in str(key):
                refuse_interpolation(str(key), f"A field name in {path or 'the recipe'}")
            refuse_interpolation(value, f"{path}.{key}".removeprefix("."))
    if isinstance(content, list | tuple):
        for index, value in enumerate(content):
            refuse_interpolation(value, f"{path}[{index}]")


def _read_file(path: Path) -> DictConfig:
    text = path.read_text(encoding="utf-8")
    try:
        content = OmegaConf.load(StringIO(text))
    except (OSError, AssertionError):  # OmegaConf raises these errors for a scalar.
        content = None
    if not isinstance(content, DictConfig):
        raise ValueError(f"{path} is not a recipe. It must be a YAML mapping with sections such as `training:`.")
    return _check_content(content)


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        if not re.match(r"[^=]+=", override):
            raise ValueError(f"{override!r} is not an override. Write section.field=value, such as model.dropout=0.2.")
    return _check_content(OmegaConf.from_dotlist(list(overrides)))


def _check_content(content: DictConfig) -> DictConfig:
    """Reject interpolation and unknown fields in part of a recipe; return it with the string "no" restored."""
    plain: Any = OmegaConf.to_container(content)
    refuse_interpolation(plain)
    refuse_unknown("", plain, [entry.name for entry in fields(Recipe)])
    for section in fields(Recipe):
        values, section_type = plain.get(section.name, {}), section.default_factory
        if section_type is not MISSING and not isinstance(values, dict):
            raise ValueError(f"{section.name} is {values!r}, but must be a mapping from fields to values.")
        if is_dataclass(section_type):
            refuse_unknown(section.name, values, [entry.name for entry in fields(section_type)])
    _restore_no(plain)
    return OmegaConf.create(plain)


def _restore_no(content: dict[str, dict[str, Any]]) -> None:
    """Restore the string "no", which YAML 1.1 parses as false, where it is a choice or a language (Norwegian)."""
    for section, names in {"training": strategy_fields(), "data": ["source", "target"]}.items():
        for name in names:
            if content.get(section, {}).get(name) is False:
                content[section][name] = "no"
    languages = content.get("card", {}).get("languages")
    if isinstance(languages, list):
        content["card"]["languages"] = ["no" if code is False else code for code in languages]


@contextmanager
def _yaml_errors(prefix: str = "") -> Iterator[None]:
    """Convert errors of YAML and OmegaConf to a ValueError with a one-sentence message."""
    try:
        yield
    except GrammarParseError as error:  # OmegaConf parses interpolations eagerly; this one is malformed.
        refuse_interpolation("${", error.full_key or "A field")
    except OmegaConfBaseException as error:
        sentence = str(error.msg or error).splitlines()[0].rstrip(".")
        if error.full_key and "is not a ListConfig" in sentence:
            sentence = f"The value must be a list, such as {error.full_key}=[...]"
        field_name = f"{error.full_key}: " if error.full_key else ""
        raise ValueError(f"{prefix}{field_name}{sentence}.") from error
    except YAMLError as error:
        raise ValueError(f"{prefix}{error}") from error
    except TypeError as error:  # OmegaConf's message does not name the field
        raise ValueError(
            f"{prefix}An override gives a map where the recipe has a list, or a list where it has a map. Write it as "
            "the recipe does."
        ) from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{prefix}byte 0x{error.object[error.start]:02x} is not UTF-8.") from error
    except RecursionError as error:
        raise ValueError(f"{prefix}the values are nested too deeply.") from error
