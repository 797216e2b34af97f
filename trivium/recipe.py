"""A run as a file: which task, what data, which tokenizer and model, how to train, to generate and to measure."""

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
        """Check every section, alone and against the others.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        refuse_interpolation(asdict(self))
        for check in SECTION_CHECKS:
            check(self)

    @property
    def kind(self) -> Task:
        """The entry of `task` in `trivium.tasks.TASKS`."""
        return TASKS[self.task]

    def training_arguments(self) -> Seq2SeqTrainingArguments:
        """Return the `training:` section as the Trainer takes it."""
        return Seq2SeqTrainingArguments(**{name: given for name, given in self.training.items() if given is not None})

    def model_config(self, **facts: Any) -> TriviumConfig:
        """Return the `model:` section as a configuration, completed by `facts` that the tokenizer knows."""
        options = dict(self.model)
        return preset_config(options.pop("preset", next(iter(PRESETS))), **{**facts, **options})

    def check_start(self) -> None:
        """Raise a FileNotFoundError if `init_from` is neither a folder nor what a model on the Hub can be called."""
        if self.init_from is None or Path(self.init_from).is_dir():
            return
        try:
            validate_repo_id(self.init_from)
        except HFValidationError as error:
            raise FileNotFoundError(
                f"init_from is {self.init_from!r}, but there is no such folder: give the folder of a saved model, or "
                "the name of one on the Hub."
            ) from error

    def save(self, folder: str | Path) -> None:
        """Write the recipe to `folder`, as `recipe.yaml`."""
        write_whole(Path(folder) / RECIPE_FILE, OmegaConf.to_yaml(OmegaConf.structured(self)))


def available_recipes() -> list[str]:
    """Return the names of the bundled recipes."""
    return sorted(
        entry.name.removesuffix(".yaml")
        for entry in resources.files("trivium.recipes").iterdir()
        if entry.name.endswith(".yaml")
    )


def load_recipe(source: str | Path, overrides: Sequence[str] = ()) -> Recipe:
    """Load a recipe. Nothing in it is resolved or looked up: `${...}` is refused wherever it stands.

    Args:
        source: The name of a bundled recipe, a YAML file, or the folder of a run.
        overrides: Single fields to replace, as `section.field=value`, the value as YAML writes it.

    Raises:
        FileNotFoundError: There is no such recipe; the message lists the bundled ones.
        ValueError: A field is missing, unknown or has a value that is not allowed, or the file is not a recipe.
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
    with _yaml_errors(f"{path}: "):
        content = OmegaConf.merge(_read_file(path), _read_overrides(overrides))
        if missing := sorted(OmegaConf.missing_keys(content)):
            raise ValueError(
                f"{path} has no value for {', '.join(missing)}: add {' '.join(f'{name}=...' for name in missing)} "
                "(null for none)."
            )
        recipe = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Recipe), content))
    assert isinstance(recipe, Recipe)  # what the schema is made of
    return recipe


# --- Reading ---------------------------------------------------------------------------------------------------------


def refuse_interpolation(content: Any, path: str = "") -> None:
    """Raise a ValueError that names the first key or value with `${` in `content`, nested as deeply as it may be.

    OmegaConf would resolve it, from the environment for example, and the result would be saved and published with the
    recipe. There is no escape: one that survives neither loading nor saving would be worse than none.
    """
    if isinstance(content, str | Path) and "${" in str(content):
        raise ValueError(
            f"{path} is {str(content)!r}, but a recipe is taken literally: interpolation with `${{...}}` is not "
            "allowed. Write the value itself; a Markdown text can show these characters as `&#36;{`."
        )
    if isinstance(content, dict):
        for key, value in content.items():
            if "${" in str(key):
                refuse_interpolation(str(key), f"The name of a field of {path or 'the recipe'}")
            refuse_interpolation(value, f"{path}.{key}".removeprefix("."))
    if isinstance(content, list | tuple):
        for index, value in enumerate(content):
            refuse_interpolation(value, f"{path}[{index}]")


def _read_file(path: Path) -> DictConfig:
    text = path.read_text(encoding="utf-8")
    try:
        content = OmegaConf.load(StringIO(text))
    except OSError:  # what OmegaConf raises for a scalar
        content = None
    if not isinstance(content, DictConfig):
        raise ValueError(f"{path} is not a recipe: it must hold sections such as `training:`, a map of maps.")
    return _check_content(content)


def _read_overrides(overrides: Sequence[str]) -> DictConfig:
    for override in overrides:
        if not re.match(r"[^=]+=", override):
            raise ValueError(f"{override!r} is not an override: write section.field=value, such as model.dropout=0.2.")
    return _check_content(OmegaConf.from_dotlist(list(overrides)))


def _check_content(content: DictConfig) -> DictConfig:
    """Return a part of a recipe as it is meant: without interpolation or unknown fields, with "no" as a text."""
    plain: Any = OmegaConf.to_container(content)
    refuse_interpolation(plain)
    _refuse_unknown("", plain, [each.name for each in fields(Recipe)])
    for section in fields(Recipe):
        given, kind = plain.get(section.name, {}), section.default_factory
        if kind is not MISSING and not isinstance(given, dict):
            raise ValueError(f"{section.name} is {given!r}, but must be a map of fields to values.")
        if is_dataclass(kind):
            _refuse_unknown(section.name, given, [each.name for each in fields(kind)])
    _restore_no(plain)
    return OmegaConf.create(plain)


def _restore_no(content: dict[str, dict[str, Any]]) -> None:
    """Put the text "no" back where YAML 1.1 has read false, but a choice or a language (Norwegian) is meant."""
    for section, names in {"training": _strategies(), "data": ["source", "target"]}.items():
        for name in names:
            if content.get(section, {}).get(name) is False:
                content[section][name] = "no"
    languages = content.get("card", {}).get("languages")
    if isinstance(languages, list):
        content["card"]["languages"] = ["no" if code is False else code for code in languages]


@contextmanager
def _yaml_errors(prefix: str = "") -> Iterator[None]:
    """Turn what YAML and OmegaConf raise into a ValueError in one sentence."""
    try:
        yield
    except GrammarParseError as error:  # a malformed interpolation, which OmegaConf reads at once
        refuse_interpolation("${", error.full_key or "A field")
    except OmegaConfBaseException as error:
        sentence = str(error.msg or error).splitlines()[0].rstrip(".")
        field_name = f"{error.full_key}: " if error.full_key else ""
        raise ValueError(f"{prefix}{field_name}{sentence}.") from error
    except YAMLError as error:
        raise ValueError(f"{prefix}{error}") from error
    except UnicodeDecodeError as error:
        raise ValueError(f"{prefix}byte 0x{error.object[error.start]:02x} is not UTF-8.") from error
    except RecursionError as error:
        raise ValueError(f"{prefix}the values are nested too deeply.") from error


# --- Checks, one for each section ------------------------------------------------------------------------------------

KINDS = {int: "a whole number", float: "a number", bool: "true or false", str: "a text", list: "a list", dict: "a map"}
GENERATION_KINDS: dict[str, tuple[type, ...]] = {
    **dict.fromkeys(("num_beams", "max_length", "max_new_tokens", "min_length", "min_new_tokens"), (int,)),
    **dict.fromkeys(("top_k", "no_repeat_ngram_size", "num_return_sequences"), (int,)),
    **dict.fromkeys(("temperature", "top_p", "min_p", "length_penalty", "repetition_penalty"), (float,)),
    **dict.fromkeys(("do_sample", "use_cache"), (bool,)),
    "early_stopping": (bool, str),
}


def _check_task(recipe: Recipe) -> None:
    _refuse_other("task", recipe.task, list(TASKS))


def _check_model(recipe: Recipe) -> None:
    _refuse_unknown("model", recipe.model, ["preset", *(f.name for f in fields(TriviumConfig)), *CLASSIFIER_FIELDS])
    if recipe.init_from and "preset" in recipe.model:
        raise ValueError(
            f"init_from brings its own configuration, but model.preset is {recipe.model['preset']!r}: leave one out."
        )


def _check_training(recipe: Recipe) -> None:
    hints = get_type_hints(Seq2SeqTrainingArguments)
    _refuse_unknown("training", recipe.training, list(inspect.signature(Seq2SeqTrainingArguments).parameters))
    for name, value in recipe.training.items():
        kinds = get_args(hints[name]) if get_origin(hints[name]) in (Union, UnionType) else (hints[name],)
        if choices := _choices(kinds):
            _refuse_other(f"training.{name}", getattr(value, "value", value), [*choices, None])
        elif name != "fsdp" and not any(get_origin(kind) is Literal for kind in kinds):  # fsdp says str, takes true
            _check_kind(f"training.{name}", value, tuple(get_origin(kind) or kind for kind in kinds))
    if not recipe.training.get("output_dir"):
        raise ValueError("training.output_dir is missing: it says where the run is kept.")
    generates = recipe.training.get("predict_with_generate", False)
    if recipe.task != "translation" and generates:
        raise ValueError(
            f"training.predict_with_generate is {generates}, but it is for translation; the task is {recipe.task}."
        )


def _check_generation(recipe: Recipe) -> None:
    _refuse_unknown("generation", recipe.generation, list(GenerationConfig().to_dict()))
    for name, value in recipe.generation.items():
        if name in GENERATION_KINDS:
            _check_kind(f"generation.{name}", value, GENERATION_KINDS[name])


def _check_metrics(recipe: Recipe) -> None:
    for name in recipe.metrics or []:
        _refuse_other("metrics", name, list(METRICS))
    recipe.kind.check_metrics(recipe.metrics or [])


def _check_inputs(recipe: Recipe) -> None:
    for name, default in vars(InputArguments()).items():
        given = getattr(recipe.inputs, name)
        tasks = [task for task, entry in TASKS.items() if name in entry.inputs]
        if tasks and recipe.task not in tasks and given != default:
            raise ValueError(f"inputs.{name} is {given}, but it is for {', '.join(tasks)}; the task is {recipe.task}.")


def _check_tokenizer(recipe: Recipe) -> None:
    if recipe.task != "translation" and not recipe.tokenizer.shared:
        raise ValueError(f"tokenizer.shared is False, but it is for translation; the task is {recipe.task}.")


def _check_token_batches(recipe: Recipe) -> None:
    """Check what does not go with batches by tokens, `inputs.max_tokens`, or only with them."""
    max_tokens, training = recipe.inputs.max_tokens, recipe.training
    if max_tokens is not None:
        for name, given, possible in (
            ("inputs.packing", recipe.inputs.packing, [False]),  # whose rows are full
            *((f"training.{name}", training.get(name), possible) for name, possible in OF_BATCHES_OF_ROWS),
        ):
            if given not in possible:
                raise ValueError(
                    f"inputs.max_tokens is {max_tokens}, but {name} is {given}, which does not go with batches by "
                    f"tokens: set {name}={json.dumps(possible[0])}, or inputs.max_tokens=null."
                )
    if max_tokens is not None and recipe.data.streaming:
        workers = training.get("dataloader_num_workers") or 0
        if workers > 1:
            raise ValueError(
                f"training.dataloader_num_workers is {workers}, but must be 0 or 1 with data.streaming and "
                "inputs.max_tokens: one worker reads the stream."
            )
    elif recipe.inputs.buffer_size != InputArguments.buffer_size:
        raise ValueError(
            f"inputs.buffer_size is {recipe.inputs.buffer_size}, but it is for data.streaming=true with "
            "inputs.max_tokens: leave it out."
        )


def _check_averaging(recipe: Recipe) -> None:
    if recipe.ema_decay is not None and not 0 < recipe.ema_decay < 1:
        raise ValueError(f"ema_decay is {recipe.ema_decay}, but must be greater than 0 and less than 1, or null.")


SECTION_CHECKS = (
    *(_check_task, _check_metrics, _check_inputs, _check_tokenizer, _check_model, _check_training, _check_generation),
    *(_check_token_batches, _check_averaging),  # fields of several sections
)


def _check_kind(name: str, value: Any, kinds: tuple[type, ...]) -> None:
    """Raise a ValueError if a value has another type; null is always allowed, and a whole number is a number."""
    is_number = float in kinds and isinstance(value, int) and not isinstance(value, bool)
    classes = (*kinds, Path) if str in kinds else kinds
    is_other = (
        not isinstance(value, classes) or (isinstance(value, bool) and bool not in kinds) or value != value
    )  # NaN
    if value is not None and not is_number and is_other:
        allowed = " or ".join(KINDS.get(kind, kind.__name__) for kind in kinds if kind is not NoneType)
        raise ValueError(f"{name} is {value!r}, but must be {allowed}.")


def _choices(kinds: Sequence[Any]) -> list[str]:
    """Return the values of an enumeration among `kinds`; without one, an empty list."""
    return [choice.value for kind in kinds if isinstance(kind, type) and issubclass(kind, Enum) for choice in kind]


def _strategies() -> list[str]:
    """Return the fields of the `training:` section for which "no" is one of the choices."""
    hints = get_type_hints(Seq2SeqTrainingArguments)
    return [name for name, hint in hints.items() if "no" in _choices(get_args(hint))]


def _refuse_other(name: str, value: Any, allowed: Sequence[Any]) -> None:
    if value not in allowed:
        listed = ", ".join(str(choice) for choice in allowed if choice is not None)
        raise ValueError(f"{name} is {value!r}, but must be one of {listed}.{_hint(value, allowed)}")


def _refuse_unknown(section: str, given: Mapping[str, Any], allowed: Sequence[str]) -> None:
    for name in given:
        if name not in allowed:
            unknown = f"{section}.{name}".removeprefix(".")
            raise ValueError(
                f"{unknown} is unknown.{_hint(name, allowed)} The fields of {section or 'a recipe'} are "
                f"{', '.join(sorted(allowed))}."
            )


def _hint(name: Any, allowed: Sequence[Any]) -> str:
    close = get_close_matches(str(name), [choice for choice in allowed if isinstance(choice, str)])
    return f" Did you mean {' or '.join(close)}?" if close else ""
