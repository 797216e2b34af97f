"""Recipes: the configuration of a run, from data and tokenizer to training and metrics, and its checks."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from difflib import get_close_matches
from enum import Enum
from importlib import resources
from io import StringIO
from math import inf
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import GrammarParseError, OmegaConfBaseException
from transformers import GenerationConfig, Seq2SeqTrainingArguments
from yaml import YAMLError

from trivium.configuration import PRESETS, TriviumConfig, preset_config
from trivium.data import DataArguments
from trivium.metrics import METRICS
from trivium.storage.atomic import write_whole
from trivium.storage.names import RECIPE_FILE
from trivium.tasks import TASKS, InputArguments, Task
from trivium.tokenization.tokenization_backends import SPECIAL_TOKENS

# Arguments of TriviumConfig besides its fields.
CONFIG_ARGUMENTS = ("problem_type", "label2id", "id2label", "num_labels", "rope_theta")
ENCODER_DECODER_TASKS = ("translation", "summarization")
# Training arguments that apply only to batches of rows, and the values that they may have with token batches.
ROW_BATCH_ARGUMENTS: tuple[tuple[str, list[Any]], ...] = (
    ("per_device_train_batch_size", [None]),
    ("train_sampling_strategy", [None, "random"]),
    ("auto_find_batch_size", [None, False]),
    ("dataloader_drop_last", [None, False]),
)


@dataclass
class TokenizerArguments:
    """Arguments of `train_tokenizer`: the `tokenizer:` section of a recipe.

    Attributes:
        sample: Number of training rows to train the tokenizer on, taken from the start; None for all.
        vocab_size: Number of tokens in each vocabulary.
        shared: Share one vocabulary between both languages, instead of training one for each.
        algorithm: "bpe", "wordpiece", "unigram" or "char".
        byte_fallback: Train BPE on characters, with a fallback to bytes for unknown characters, instead of on bytes.
        normalization: Unicode normalization: "NFC", "NFKC" or None.
        lowercase: Lowercase the text.
        add_bos_token: Add `<s>` at the start of texts; None for the default of the task.
        add_eos_token: Add `</s>` at the end of texts; None for the default of the task.
        special_tokens: Further special tokens, such as `<bt>` at the start of back-translated sources. They are added
            to the source vocabulary, are never split, and do not occur in decoded texts.
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
    special_tokens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the further special tokens.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        for token in self.special_tokens:
            if (
                not re.fullmatch(r"\S+", token)
                or token in SPECIAL_TOKENS.values()
                or self.special_tokens.count(token) > 1
            ):
                raise ValueError(
                    f"tokenizer.special_tokens has {token!r}, but may contain only different tokens without spaces, "
                    f"such as <bt>, and none of {', '.join(SPECIAL_TOKENS.values())}."
                )


@dataclass
class DistillationArguments:
    """Distillation from a teacher by its probabilities: the `distillation:` section of a recipe.

    Attributes:
        teacher: Saved model for the same task, larger than the student, which has the teacher's tokenizer: without
            `init_from` and `data.prepared`, the `tokenizer` section is not used. None for no distillation.
        weight: Weight of the divergence from the teacher, the Kullback-Leibler divergence per token; the cross entropy
            has the weight 1 - `weight`. Evaluations have only the cross entropy.
        temperature: Softmax temperature of both distributions; the divergence is multiplied by its square.
    """

    teacher: str | None = None
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        if not 0 < self.weight <= 1:
            raise ValueError(f"distillation.weight is {self.weight}, but must be above 0 and at most 1.")
        if not 0 < self.temperature < inf:
            raise ValueError(f"distillation.temperature is {self.temperature}, but must be above 0.")
        for name, default in (("weight", 0.5), ("temperature", 1.0)):
            if self.teacher is None and getattr(self, name) != default:
                raise ValueError(
                    f"distillation.{name} is {getattr(self, name)}, but there is no teacher. Set "
                    "distillation.teacher, or leave it out."
                )


@dataclass
class CardArguments:
    """Model card metadata that cannot be derived from the run: the `card:` section of a recipe.

    Attributes:
        title: Title of the card; None for the name of the repository.
        summary: One or two sentences about the model, in Markdown.
        license: License identifier of the Hub, such as "apache-2.0", "cc-by-4.0" or "other".
        languages: ISO 639 codes, such as "en". For sentence pairs, they default to `data.source` and `data.target` if
            those are two-letter codes.
        datasets: Names of the training datasets on the Hub; the first is also listed as the evaluation dataset.
        examples: Example inputs for the widget, with `<mask>` for a masked language model; the first is also used for
            the figure.
        intended_use: Intended use, in Markdown.
        limitations: Limitations, in Markdown.
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
        """Check the metadata that the Hub validates.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ValueError(
                f"card.license is {self.license!r}, but must be a license identifier of the Hub, such as apache-2.0. "
                "See the list at https://huggingface.co/docs/hub/repositories-licenses."
            )
        for code in self.languages:
            if not re.fullmatch(r"[a-z]{2,3}|multilingual", code):
                raise ValueError(
                    f"card.languages has {code!r}, but may contain only ISO 639 codes of two or three lowercase "
                    "letters, such as en, or multilingual."
                )
        for name in self.datasets:
            if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name):
                raise ValueError(
                    f"card.datasets has {name!r}, but may contain only dataset names on the Hub, such as owner/name."
                )
        if not all(text.strip() for text in self.examples):
            raise ValueError(f"card.examples is {self.examples}, but an example must not be blank.")


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
        generation: Fields of `GenerationConfig`, which are saved with the model as its defaults.
        metrics: Names of metrics, as accepted by `trivium.metrics.load_metric`; None for the task's default.
        early_stopping_patience: Stop after this many evaluations without improvement; None to disable.
        ema_decay: Decay of an exponential moving average (EMA) of the weights, which becomes the trained model. It
            covers about the last 1 / (1 - ema_decay) steps; 0.999 is typical. None to disable.
        init_from: Saved model to start from, with its tokenizer, instead of a new model. A task uses only the half of
            an encoder-decoder that it needs. `model` may then set only fields that do not change the shape of the
            parameters, such as dropout.
        distillation: Distillation of the model from a teacher, by its probabilities.
        card: Model card metadata that cannot be derived from the run.
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
        return Seq2SeqTrainingArguments(**{name: value for name, value in self.training.items() if value is not None})

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
        overrides: Fields to override, as `section.field=value` with a YAML value.

    Raises:
        FileNotFoundError: There is no such recipe; the message lists the bundled ones.
        ValueError: A field is missing or unknown, its value is not allowed, or the file is not a recipe.
    """
    path = recipe_path(source)
    with _yaml_errors(f"{path}: "):
        content = OmegaConf.merge(_read_file(path), _read_overrides(overrides))
        if missing := sorted(OmegaConf.missing_keys(content)):
            raise ValueError(
                f"{path} has no value for {', '.join(missing)}. Add {' '.join(f'{name}=...' for name in missing)} "
                "(null for none)."
            )
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), content))
    assert isinstance(recipe, Recipe)  # The schema was built from this class.
    return recipe


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
    _refuse_unknown("", plain, [entry.name for entry in fields(Recipe)])
    for section in fields(Recipe):
        values, section_type = plain.get(section.name, {}), section.default_factory
        if section_type is not MISSING and not isinstance(values, dict):
            raise ValueError(f"{section.name} is {values!r}, but must be a mapping from fields to values.")
        if is_dataclass(section_type):
            _refuse_unknown(section.name, values, [entry.name for entry in fields(section_type)])
    _restore_no(plain)
    return OmegaConf.create(plain)


def _restore_no(content: dict[str, dict[str, Any]]) -> None:
    """Restore the string "no", which YAML 1.1 parses as false, where it is a choice or a language (Norwegian)."""
    for section, names in {"training": _strategies(), "data": ["source", "target"]}.items():
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


# --- Checks of the sections ------------------------------------------------------------------------------------------

TYPE_NAMES = {
    int: "an integer",
    float: "a number",
    bool: "true or false",
    str: "a string",
    list: "a list",
    dict: "a mapping",
}
GENERATION_TYPES: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("num_beams", "max_length", "max_new_tokens", "min_length", "min_new_tokens"), (int,)),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "num_return_sequences"), (int,)),
    **dict.fromkeys(("temperature", "top_p", "min_p", "length_penalty", "repetition_penalty"), (float,)),
    **dict.fromkeys(("do_sample", "use_cache"), (bool,)),
    "early_stopping": (bool, str),
}


def _check_task(recipe: Recipe) -> None:
    _check_choice("task", recipe.task, list(TASKS))


def _check_model(recipe: Recipe) -> None:
    _refuse_unknown("model", recipe.model, ["preset", *(f.name for f in fields(TriviumConfig)), *CONFIG_ARGUMENTS])
    preset = recipe.model.get("preset")
    if recipe.init_from and preset is not None:
        raise ValueError(
            f"init_from is {recipe.init_from!r} and model.preset is {preset!r}, but a saved model has its own "
            "configuration. Set model.preset=null or init_from=null."
        )


def _check_training(recipe: Recipe) -> None:
    hints = get_type_hints(Seq2SeqTrainingArguments)
    _refuse_unknown("training", recipe.training, list(inspect.signature(Seq2SeqTrainingArguments).parameters))
    for name, value in recipe.training.items():
        types = get_args(hints[name]) if get_origin(hints[name]) in (Union, UnionType) else (hints[name],)
        if choices := _choices(types):
            _check_choice(f"training.{name}", getattr(value, "value", value), [*choices, None])
        # `fsdp` is annotated as a string, but also takes true.
        elif name != "fsdp" and not any(get_origin(kind) is Literal for kind in types):
            _check_type(f"training.{name}", value, tuple(get_origin(kind) or kind for kind in types))
    if not recipe.training.get("output_dir"):
        raise ValueError("training.output_dir is missing. Set it to the folder of the run.")
    generates = recipe.training.get("predict_with_generate", False)
    if recipe.task not in ENCODER_DECODER_TASKS and generates:
        raise ValueError(
            f"training.predict_with_generate is {generates}, but is only for {' and '.join(ENCODER_DECODER_TASKS)}; "
            f"the task is {recipe.task}."
        )


def _check_generation(recipe: Recipe) -> None:
    _refuse_unknown("generation", recipe.generation, list(GenerationConfig().to_dict()))
    for name, value in recipe.generation.items():
        if name in GENERATION_TYPES:
            _check_type(f"generation.{name}", value, GENERATION_TYPES[name])


def _check_metrics(recipe: Recipe) -> None:
    for name in recipe.metrics or []:
        _check_choice("metrics", name, list(METRICS))
    recipe.kind.check_metrics(recipe.metrics or [])


def _check_inputs(recipe: Recipe) -> None:
    for name, default in vars(InputArguments()).items():
        value = getattr(recipe.inputs, name)
        tasks = [task for task, entry in TASKS.items() if name in entry.inputs]
        if tasks and recipe.task not in tasks and value != default:
            raise ValueError(
                f"inputs.{name} is {value}, but is only for {', '.join(tasks)}; the task is {recipe.task}."
            )
    if recipe.inputs.packing_strategy != InputArguments.packing_strategy and not recipe.inputs.packing:
        raise ValueError(
            f"inputs.packing_strategy is {recipe.inputs.packing_strategy}, but is only for packed texts. Set "
            "inputs.packing=true, or leave it out."
        )


def _check_prepared(recipe: Recipe) -> None:
    if recipe.data.prepared is not None and recipe.data.streaming:
        raise ValueError(
            f"data.prepared is {recipe.data.prepared!r} and data.streaming is True, but prepared data are read from "
            "the disk. Set data.streaming=false."
        )


def _check_tokenizer(recipe: Recipe) -> None:
    if recipe.task not in ENCODER_DECODER_TASKS and not recipe.tokenizer.shared:
        raise ValueError(
            f"tokenizer.shared is False, but separate vocabularies are only for {' and '.join(ENCODER_DECODER_TASKS)};"
            f" the task is {recipe.task}."
        )


def _check_token_batches(recipe: Recipe) -> None:
    """Check the fields that conflict with token batches (`inputs.max_tokens`), or that require them."""
    max_tokens, training = recipe.inputs.max_tokens, recipe.training
    if max_tokens is not None:
        for name, value, allowed in (
            ("inputs.packing", recipe.inputs.packing, [False]),  # Packed rows all have the same length.
            *((f"training.{name}", training.get(name), allowed) for name, allowed in ROW_BATCH_ARGUMENTS),
        ):
            if value not in allowed:
                raise ValueError(
                    f"inputs.max_tokens is {max_tokens}, but {name} is {value}, which cannot be combined with token "
                    f"batches. Set {name}={json.dumps(allowed[0])}, or inputs.max_tokens=null."
                )
    is_buffered = max_tokens is not None and recipe.data.streaming
    if not is_buffered and recipe.inputs.buffer_size != InputArguments.buffer_size:
        raise ValueError(
            f"inputs.buffer_size is {recipe.inputs.buffer_size}, but is only for data.streaming=true with "
            "inputs.max_tokens. Leave it out."
        )


def _check_averaging(recipe: Recipe) -> None:
    if recipe.ema_decay is not None and not 0 < recipe.ema_decay < 1:
        raise ValueError(f"ema_decay is {recipe.ema_decay}, but must be greater than 0 and less than 1, or null.")


def _check_distillation(recipe: Recipe) -> None:
    tasks = [name for name, task in TASKS.items() if "perplexity" in task.metrics]  # those that predict tokens
    if recipe.distillation.teacher is not None and recipe.task not in tasks:
        raise ValueError(
            f"distillation.teacher is {recipe.distillation.teacher!r}, but is only for {', '.join(tasks)}; the task "
            f"is {recipe.task}."
        )
    if recipe.distillation.teacher is not None and (smoothing := recipe.training.get("label_smoothing_factor")):
        raise ValueError(
            f"training.label_smoothing_factor is {smoothing}, but with distillation.teacher it must be 0. Set "
            "model.label_smoothing instead."
        )


SECTION_CHECKS = (
    _check_task,
    _check_metrics,
    _check_inputs,
    _check_prepared,
    _check_tokenizer,
    _check_model,
    _check_training,
    _check_generation,
    # Checks across sections come last.
    _check_token_batches,
    _check_averaging,
    _check_distillation,
)


def _check_type(name: str, value: Any, types: tuple[type, ...]) -> None:
    """Raise a ValueError unless a value has one of the types, or is null; integers are accepted as floats."""
    is_number = float in types and isinstance(value, int) and not isinstance(value, bool)
    accepted = (*types, Path) if str in types else types
    is_nan = value != value
    is_wrong = not isinstance(value, accepted) or (isinstance(value, bool) and bool not in types) or is_nan
    if value is not None and not is_number and is_wrong:
        allowed = " or ".join(TYPE_NAMES.get(kind, kind.__name__) for kind in types if kind is not NoneType)
        raise ValueError(f"{name} is {value!r}, but must be {allowed}.")


def _choices(types: Sequence[Any]) -> list[str]:
    """Return the values of all enumerations in `types`; empty if `types` has no enumeration."""
    return [choice.value for kind in types if isinstance(kind, type) and issubclass(kind, Enum) for choice in kind]


def _strategies() -> list[str]:
    """Return the fields of the `training:` section for which "no" is an allowed value."""
    hints = get_type_hints(Seq2SeqTrainingArguments)
    return [name for name, hint in hints.items() if "no" in _choices(get_args(hint))]


def _check_choice(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        listed = ", ".join(str(choice) for choice in allowed if choice is not None)
        raise ValueError(f"{name} is {value!r}, but must be one of {listed}.{_hint(value, allowed)}")


def _refuse_unknown(section: str, values: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for name in values:
        if name not in allowed:
            unknown = f"{section}.{name}".removeprefix(".")
            raise ValueError(
                f"{unknown} is unknown.{_hint(name, allowed)} Allowed in {section or 'a recipe'} are "
                f"{', '.join(sorted(allowed))}."
            )


def _hint(name: Any, allowed: Sequence[Any]) -> str:
    close = get_close_matches(str(name), [choice for choice in allowed if isinstance(choice, str)])
    return f" Did you mean {' or '.join(close)}?" if close else ""
