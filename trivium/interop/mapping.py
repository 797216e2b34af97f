"""What a family of models is: its classes, fields and tensors beside ours, stated once and read in both directions."""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from trivium.configuration import TriviumConfig

Shape = tuple[int, ...]
Fields = Mapping[str, Any]

# What all have under one name.
COMMON_FIELDS = (
    "vocab_size",
    "max_position_embeddings",
    "pad_token_id",
    "bos_token_id",
    "eos_token_id",
    "tie_word_embeddings",
    "use_cache",
    "dtype",
    "id2label",
    "label2id",
    "problem_type",
)


class Rule:
    """One native tensor is one of ours, as it is; the other rules say how they differ.

    Args:
        native: The name of their module or tensor, without the prefix of the base model. `{i}` is a layer's number.
        ours: That of ours, or the names, if one of theirs is several of ours.
    """

    def __init__(self, native: str, *ours: str) -> None:
        self.native, self.ours = native, ours

    def inward(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Our tensors, of these shapes."""
        return [native]

    def outward(self, ours: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Theirs, of this shape."""
        return ours[0]


class Transposed(Rule):
    """Their matrix is transposed; where it is several of ours, they follow one another, in matrix and bias."""

    def inward(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Transpose and cut."""
        return list(native.t().split([shape[0] for shape in shapes]))  # t() leaves a vector as it is

    def outward(self, ours: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Put together and transpose."""
        return torch.cat(ours).t()


class Offset(Rule):
    """Their table begins with rows that stand for no position; going out they are zeros."""

    def inward(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Leave the first rows out."""
        return [native[-shapes[0][0] :]]

    def outward(self, ours: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Put zeros before."""
        return torch.cat((ours[0].new_zeros(shape[0] - len(ours[0]), *shape[1:]), ours[0]))


class Row(Rule):
    """Their tensor is a matrix of one row, ours a vector."""

    def inward(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Take the row."""
        return [native[0]]

    def outward(self, ours: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Make it a matrix."""
        return ours[0][None]


@dataclass(frozen=True)
class Family:
    """How the models of one `model_type` of transformers correspond to ours.

    Attributes:
        model_type: Its name.
        classes: Their classes, and ours for each; going out, the first that has ours is made.
        fields: Pairs of a field of theirs and one of ours with the same meaning, beyond `COMMON_FIELDS`. A field may
            come twice; then all its partners must agree. A dot leads into a dictionary: "rope_parameters.rope_theta".
        ours: What a field of ours must be; a function says it for a configuration.
        ours_of_class: The same, for single classes of ours only.
        theirs: The same for theirs, where a field may be absent.
        incoming: What fields of ours are coming in, while going out they may be anything.
        training: What fields of ours are, that these models do not have and that only training reads: coming in they
            are set, going out a different value is left behind.
        rules: Which tensor of theirs is which of ours.
        found: A field of ours that says whether there is a tensor, and the name of theirs. It is true if theirs is
            not all zeros.
        zeros: Tensors of theirs, besides biases, that are zeros where we have none.
        computed: Tensors of theirs that are no parameters, and what they must be, given their shape.
        dropped: Beginnings of names of theirs that we have no place for.
        ignored: Endings of names in older checkpoints that are no parameters.
        renamed: Endings of names in older checkpoints, and what they are called now.
        read: Values of fields of theirs, where the configuration says them in another way.
        write: Values of fields of theirs, where ours say them in another way.
    """

    model_type: str
    classes: Mapping[str, str]
    fields: tuple[tuple[str, str], ...]
    ours: Fields
    rules: tuple[Rule, ...]
    ours_of_class: Mapping[str, Fields] = field(default_factory=dict)
    theirs: Fields = field(default_factory=dict)
    incoming: Fields = field(default_factory=dict)
    training: Fields = field(default_factory=dict)
    found: Mapping[str, str] = field(default_factory=dict)
    zeros: tuple[str, ...] = ()
    computed: Mapping[str, Callable[[Shape], torch.Tensor]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[PreTrainedConfig], Fields] = lambda config: {}
    write: Callable[[TriviumConfig], Fields] = lambda config: {}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """All fields of theirs with those of ours."""
        own = {name for pair in self.fields for name in pair}
        return [(name, name) for name in COMMON_FIELDS if name not in own] + list(self.fields)

    def required(self, model_class: str) -> dict[str, Any]:
        """What our fields must be for this class of ours."""
        return {**self.ours, **self.ours_of_class.get(model_class, {})}

    # --- Coming in ---------------------------------------------------------------------------------------------------

    def to_ours(self, native: PreTrainedConfig, model_class: str, **found: bool) -> TriviumConfig:
        """Our configuration, for this class of ours, of a model that has the tensors `found`.

        Raises:
            ValueError: The model does what ours cannot; the message names all fields in the way.
        """
        read = self.read(native)

        def value(path: str) -> Any:
            return read[path] if path in read else get_path(native, path)

        obstacles = list[str]()
        for path, expected in self.theirs.items():
            wanted = expected(native) if callable(expected) else expected
            if (given := value(path)) not in (wanted, MISSING):
                obstacles.append(f"{path} is {given!r}, but must be {wanted!r}")
        fields, said_by = dict[str, Any](), dict[str, str]()
        for path, name in self.pairs:
            given = value(path)
            if given is MISSING or (given is None and name in fields):
                continue
            if name in fields and fields[name] != given:
                before = f"{said_by[name]} is {fields[name]!r} and {path} is {given!r}"
                obstacles.append(f"{before}, but must be the same ({name})")
            fields[name], said_by[name] = given, path
        if obstacles:
            raise ValueError(f"Trivium has no model like this {self.model_type}: {'; '.join(obstacles)}.")
        unsaid = {"label_smoothing": 0.0, "decoder_start_token_id": None, **self.incoming, **self.training}
        needed = {name: value for name, value in self.required(model_class).items() if not callable(value)}
        config = TriviumConfig(**{**unsaid, **needed, **fields, **found})
        if obstacles := self.obstacles(config, model_class):
            raise ValueError(f"Trivium has no model like this {self.model_type}: {'; '.join(obstacles)}.")
        return config

    # --- Going out ---------------------------------------------------------------------------------------------------

    def obstacles(self, config: TriviumConfig, model_class: str) -> list[str]:
        """Why a model of ours is none of theirs; nothing, if it is one."""
        if model_class not in self.classes.values():
            return [f"there is nothing like {model_class}"]
        return [
            f"{name} is {value!r}, but must be {wanted!r}"
            for name, expected in self.required(model_class).items()
            if (value := getattr(config, name)) != (wanted := expected(config) if callable(expected) else expected)
        ] + [f"{a} is {x!r} and {b} is {y!r}, but must be the same" for (a, x), (b, y) in self._conflicts(config)]

    def _conflicts(self, config: TriviumConfig) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
        said = dict[str, tuple[str, Any]]()
        for path, name in self.pairs:
            here = name, getattr(config, name)
            before = said.setdefault(path, here)
            if before[1] != here[1]:
                yield before, here

    def to_native(self, config: TriviumConfig) -> PreTrainedConfig:
        """Their configuration of a model of ours that has no `obstacles`."""
        usual = AutoConfig.for_model(self.model_type)
        fields: dict[str, Any] = {}
        for path, expected in self.theirs.items():
            if not callable(expected) and get_path(usual, path) is not MISSING:
                set_path(fields, path, expected)
        for path, name in self.pairs:
            set_path(fields, path, copy.deepcopy(getattr(config, name)))
        for path, value in self.write(config).items():
            set_path(fields, path, value)
        return AutoConfig.for_model(self.model_type, **fields)

    def left_behind(self, config: TriviumConfig) -> list[str]:
        """What our fields say that theirs cannot, and that only training reads."""
        return [
            f"{name}={value!r} is left behind: {self.model_type} has no such field, and only training reads it"
            for name, expected in {"label_smoothing": 0.0, **self.training}.items()
            if (value := getattr(config, name)) != expected
        ]


MISSING: Any = object()


def get_path(config: PreTrainedConfig, path: str) -> Any:
    """The value of a field, or `MISSING`; "a.b" is the entry b of the dictionary a."""
    name, _, key = path.partition(".")
    value = getattr(config, name, MISSING)
    return value if not key or value is MISSING else (value or {}).get(key, MISSING)


def set_path(fields: dict[str, Any], path: str, value: Any) -> None:
    """Set what `get_path` gets."""
    name, _, key = path.partition(".")
    if key:
        fields.setdefault(name, {})[key] = value
    else:
        fields[name] = value
