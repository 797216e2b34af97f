"""Declarative mapping between a transformers model family and Trivium: classes, configuration fields and tensors.

Each mapping is defined once and used in both directions.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AutoConfig, PreTrainedConfig

from trivium.configuration import TriviumConfig

Shape = tuple[int, ...]
Fields = Mapping[str, Any]

# Fields with the same name in every family.
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

# Requirements on Trivium fields that all families share, unless their own say otherwise.
COMMON_REQUIREMENTS = {"qk_norm": False}


class Rule:
    """Map a native tensor to a Trivium tensor unchanged; subclasses transform it.

    Args:
        native: Name of the native module or tensor, without the base model prefix. `{i}` is the layer index.
        trivium: Name of the Trivium module or tensor, or several names for a fused native tensor.
    """

    def __init__(self, native: str, *trivium: str) -> None:
        self.native, self.trivium = native, trivium

    def to_trivium(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Convert the native tensor to Trivium tensors of the given shapes."""
        return [native]

    def to_native(self, trivium: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Convert the Trivium tensors to a native tensor of the given shape."""
        return trivium[0]


class Transposed(Rule):
    """Transpose the native weight, and split a fused weight or bias along the output dimension."""

    def to_trivium(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Transpose and split the native tensor."""
        return list(native.t().split([shape[0] for shape in shapes]))  # t() leaves a bias unchanged

    def to_native(self, trivium: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Concatenate and transpose the Trivium tensors."""
        return torch.cat(trivium).t()


class Offset(Rule):
    """Skip the reserved rows at the start of a native position table; conversion to native fills them with zeros."""

    def to_trivium(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Drop the reserved rows of the native table."""
        return [native[-shapes[0][0] :]]

    def to_native(self, trivium: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Prepend rows of zeros to the Trivium table."""
        return torch.cat((trivium[0].new_zeros(shape[0] - len(trivium[0]), *shape[1:]), trivium[0]))


class Row(Rule):
    """Map a native matrix of shape (1, n) to a Trivium vector of shape (n,)."""

    def to_trivium(self, native: torch.Tensor, shapes: list[Shape]) -> list[torch.Tensor]:
        """Squeeze the first dimension."""
        return [native[0]]

    def to_native(self, trivium: list[torch.Tensor], shape: Shape) -> torch.Tensor:
        """Add a first dimension of size 1."""
        return trivium[0][None]


@dataclass(frozen=True)
class Family:
    """Mapping between the models of one transformers `model_type` and Trivium.

    Attributes:
        model_type: The `model_type` in transformers.
        classes: Native class names and their Trivium classes. When converting to native, the first match is used.
        fields: Pairs of a native and a Trivium field with the same meaning, in addition to `COMMON_FIELDS`. A field
            may be repeated; then all fields paired with it must agree. A dot selects a key of a dictionary field:
            "rope_parameters.rope_theta".
        requirements: Required values of Trivium fields; a function computes the value from the configuration.
        class_requirements: Additional requirements of single Trivium classes.
        native_requirements: Required values of native fields; an absent field is accepted.
        import_defaults: Values of Trivium fields when converting to Trivium; converting to native accepts any value.
        training_fields: Values of Trivium fields that only affect training and have no equivalent in the family. They
            are set when converting to Trivium; other values are dropped when converting to native.
        rules: Mapping between the tensors.
        presence_flags: Trivium fields that state whether an optional tensor exists, and the native name of the tensor.
            The field is True if the native tensor is not all zeros.
        zero_if_missing: Native tensors, besides biases, that are filled with zeros if the Trivium model has no
            counterpart.
        computed: Native tensors that are not parameters, each with a function that computes it from its shape.
        dropped: Name prefixes of native tensors without a Trivium counterpart.
        ignored: Name suffixes of non-parameters in older checkpoints.
        renamed: Name suffixes in older checkpoints, and their current names.
        read: Function that returns native field values to use in place of those stored in the configuration.
        write: Function that computes native field values that differ from the Trivium fields.
    """

    model_type: str
    classes: Mapping[str, str]
    fields: tuple[tuple[str, str], ...]
    requirements: Fields
    rules: tuple[Rule, ...]
    class_requirements: Mapping[str, Fields] = field(default_factory=dict)
    native_requirements: Fields = field(default_factory=dict)
    import_defaults: Fields = field(default_factory=dict)
    training_fields: Fields = field(default_factory=dict)
    presence_flags: Mapping[str, str] = field(default_factory=dict)
    zero_if_missing: tuple[str, ...] = ()
    computed: Mapping[str, Callable[[Shape], torch.Tensor]] = field(default_factory=dict)
    dropped: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()
    renamed: Mapping[str, str] = field(default_factory=dict)
    read: Callable[[PreTrainedConfig], Fields] = lambda config: {}
    write: Callable[[TriviumConfig], Fields] = lambda config: {}

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Return all pairs of a native and a Trivium field."""
        overridden = {name for pair in self.fields for name in pair}
        return [(name, name) for name in COMMON_FIELDS if name not in overridden] + list(self.fields)

    def requirements_of(self, model_class: str) -> dict[str, Any]:
        """Return the required field values of a Trivium class."""
        return {**COMMON_REQUIREMENTS, **self.requirements, **self.class_requirements.get(model_class, {})}

    # --- To Trivium --------------------------------------------------------------------------------------------------

    def to_trivium(self, native: PreTrainedConfig, model_class: str, **presence_flags: bool) -> TriviumConfig:
        """Convert a native configuration to a Trivium configuration.

        Args:
            native: Native configuration.
            model_class: Name of the Trivium class.
            **presence_flags: Values of the fields in `presence_flags`.

        Raises:
            ValueError: Trivium cannot represent the model; the message lists every conflicting field.
        """
        read = self.read(native)

        def value(path: str) -> Any:
            return read[path] if path in read else get_path(native, path)

        mismatches = list[str]()
        for path, expected in self.native_requirements.items():
            required = expected(native) if callable(expected) else expected
            if (actual := value(path)) not in (required, MISSING):
                mismatches.append(f"{path} is {actual!r}, but must be {required!r}")
        fields, sources = dict[str, Any](), dict[str, str]()
        for path, name in self.pairs:
            actual = value(path)
            if actual is MISSING or (actual is None and name in fields):
                continue
            if name in fields and fields[name] != actual:
                conflict = f"{sources[name]} is {fields[name]!r} and {path} is {actual!r}"
                mismatches.append(f"{conflict}, but must be equal ({name})")
            fields[name], sources[name] = actual, path
        if mismatches:
            raise ValueError(f"Trivium has no equivalent of this {self.model_type} model: {'; '.join(mismatches)}.")
        defaults = {
            "label_smoothing": 0.0,
            "decoder_start_token_id": None,
            **self.import_defaults,
            **self.training_fields,
        }
        constants = {name: value for name, value in self.requirements_of(model_class).items() if not callable(value)}
        config = TriviumConfig(**{**defaults, **constants, **fields, **presence_flags})
        if mismatches := self.mismatches(config, model_class):
            raise ValueError(f"Trivium has no equivalent of this {self.model_type} model: {'; '.join(mismatches)}.")
        return config

    # --- To native ---------------------------------------------------------------------------------------------------

    def mismatches(self, config: TriviumConfig, model_class: str) -> list[str]:
        """Return the reasons why a Trivium model has no equivalent in this family; empty if it has one."""
        if model_class not in self.classes.values():
            return [f"it has no class for {model_class}"]
        return [
            f"{name} is {value!r}, but must be {required!r}"
            for name, expected in self.requirements_of(model_class).items()
            if (value := getattr(config, name)) != (required := expected(config) if callable(expected) else expected)
        ] + [f"{a} is {x!r} and {b} is {y!r}, but must be equal" for (a, x), (b, y) in self._conflicts(config)]

    def _conflicts(self, config: TriviumConfig) -> Iterator[tuple[tuple[str, Any], tuple[str, Any]]]:
        """Yield pairs of Trivium fields that map to the same native field but differ."""
        first_by_path = dict[str, tuple[str, Any]]()
        for path, name in self.pairs:
            current = name, getattr(config, name)
            first = first_by_path.setdefault(path, current)
            if first[1] != current[1]:
                yield first, current

    def to_native(self, config: TriviumConfig) -> PreTrainedConfig:
        """Convert a Trivium configuration without `mismatches` to the native one."""
        default = AutoConfig.for_model(self.model_type)
        fields: dict[str, Any] = {}
        for path, expected in self.native_requirements.items():
            if not callable(expected) and get_path(default, path) is not MISSING:
                set_path(fields, path, expected)
        for path, name in self.pairs:
            set_path(fields, path, copy.deepcopy(getattr(config, name)))
        for path, value in self.write(config).items():
            set_path(fields, path, value)
        return AutoConfig.for_model(self.model_type, **fields)

    def dropped_fields(self, config: TriviumConfig) -> list[str]:
        """Return a note for each training-only field whose value the family cannot represent."""
        return [
            f"{name}={value!r} is dropped: {self.model_type} has no such field, and it only affects training"
            for name, expected in {"label_smoothing": 0.0, **self.training_fields}.items()
            if (value := getattr(config, name)) != expected
        ]


MISSING: Any = object()


def get_path(config: PreTrainedConfig, path: str) -> Any:
    """Return the value of a field, or `MISSING`; "a.b" selects key b of the dictionary a."""
    name, _, key = path.partition(".")
    value = getattr(config, name, MISSING)
    return value if not key or value is MISSING else (value or {}).get(key, MISSING)


def set_path(fields: dict[str, Any], path: str, value: Any) -> None:
    """Set the value of a field; "a.b" sets key b of the dictionary a."""
    name, _, key = path.partition(".")
    if key:
        fields.setdefault(name, {})[key] = value
    else:
        fields[name] = value
