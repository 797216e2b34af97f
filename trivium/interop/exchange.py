"""Convert tensors between a native and a Trivium model, accounting for every name, shape and tied weight."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from trivium.interop.mapping import Family, Rule, Shape

Tensors = Mapping[str, torch.Tensor]
Shapes = Mapping[str, Shape]
Steps = dict[str, Callable[[], torch.Tensor]]

SUFFIXES = ("", ".weight", ".bias")  # a rule names a tensor, or a module with a weight and a bias


@dataclass(frozen=True)
class Side:
    """Tensor names and shapes of one of the two models; names lack the base model prefix.

    Attributes:
        model_class: Name of the model class.
        prefix: Base model prefix.
        names: Canonical name for each name; tied tensors share a canonical name.
        full_names: Name in the model's state dict, keyed by canonical name.
        shapes: Shape, keyed by canonical name.
    """

    model_class: str
    prefix: str
    names: Mapping[str, str]
    full_names: Mapping[str, str]
    shapes: Shapes

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Side":
        """Build from a model, which may be on the meta device."""
        prefix = model.base_model_prefix + "."
        names, full_names, shapes, by_id = dict[str, str](), dict[str, str](), dict[str, Shape](), dict[int, str]()
        for full_name, tensor in model.state_dict(keep_vars=True).items():
            name = full_name.removeprefix(prefix)
            canonical = names[name] = by_id.setdefault(id(tensor), name)
            full_names.setdefault(canonical, full_name)
            shapes.setdefault(canonical, tuple(tensor.shape))
        return cls(type(model).__name__, prefix, names, full_names, shapes)


class Link(NamedTuple):
    """A rule resolved to canonical names: a native tensor and its Trivium tensors; either may be absent."""

    rule: Rule
    native: str | None
    trivium: tuple[str, ...]


class Exchange:
    """Tensor conversion between a native model and its Trivium equivalent.

    Args:
        family: Mapping of the native model's family.
        native: Native model, on any device, including meta: only names and shapes are read.
        trivium: Trivium model, on any device, including meta.
    """

    def __init__(self, family: Family, native: PreTrainedModel, trivium: PreTrainedModel) -> None:
        self.family, self.native, self.trivium = family, Side.of(native), Side.of(trivium)
        links = self._links(max(trivium.config.encoder_layers, trivium.config.decoder_layers))
        self.links = [link for link in links if link.native and link.trivium]
        matched = {name for link in self.links for name in (link.native, *link.trivium)}
        # Tensors that only one model has and that no other rule matches.
        unmatched = [link for link in links if not matched & {link.native, *link.trivium}]
        self.links += [link for link in unmatched if not self._is_dropped(link.native or "")]
        claimed = [name for link in self.links for name in link.trivium]
        assert sorted(claimed) == sorted(self.trivium.shapes), set(claimed) ^ set(self.trivium.shapes)
        self._linked = {link.native for link in self.links} | set(family.computed)
        self.native_only = sorted(set(self.native.shapes) - self._linked)
        assert all(map(self._is_dropped, self.native_only)), self.native_only

    def _links(self, layers: int) -> list[Link]:
        links = dict[tuple[str | None, tuple[str, ...]], Link]()
        for rule in self.family.rules:
            for i in range(layers if "{i}" in rule.native else 1):
                for suffix in SUFFIXES:
                    native = self.native.names.get(rule.native.format(i=i) + suffix)
                    candidates = (self.trivium.names.get(name.format(i=i) + suffix) for name in rule.trivium)
                    trivium = tuple(name for name in candidates if name)
                    if native or trivium:
                        # one link per group of tied tensors
                        links.setdefault((native, trivium), Link(rule, native, trivium))
        return list(links.values())

    def to_trivium(self, tensors: Tensors, shapes: Shapes | None = None) -> Steps:
        """Return functions that compute the Trivium tensors from the native ones.

        Args:
            tensors: Native tensors by state dict name; nearly all tensors are read lazily, when a function is called.
            shapes: Shapes of the tensors, so that no tensor has to be read to determine its shape.

        Returns:
            A function for each Trivium tensor, by state dict name.

        Raises:
            ValueError: Tensors are missing, unexpected, of the wrong shape, or have values that Trivium cannot
                represent.
        """
        required = {link.native for link in self.links if link.native and link.trivium}
        known = self._known(self.native, tensors, shapes, required)
        steps, any_known = Steps(), next(iter(known.values()))
        for link in self.links:
            target_shapes = [self.trivium.shapes[name] for name in link.trivium]
            if not link.trivium:
                _check_zero(tensors, [known[name] for name in [link.native] if name in known], self.trivium)
            for k, name in enumerate(link.trivium):
                if link.native is None:
                    steps[name] = partial(_zeros, tensors, any_known, target_shapes[k])
                else:
                    steps[name] = partial(_to_trivium, link.rule, tensors, known[link.native], target_shapes, k)
        for name, expected in self.family.computed.items():
            if name in known:
                _check_computed(tensors, known[name], expected)
        return {self.trivium.full_names[name]: step for name, step in steps.items()}

    def to_native(self, tensors: Tensors, shapes: Shapes | None = None) -> Steps:
        """Return functions that compute the native tensors from the Trivium ones; the inverse of `to_trivium`."""
        known = self._known(self.trivium, tensors, shapes, set(self.trivium.shapes))
        steps, any_known = Steps(), next(iter(known.values()))
        for link in self.links:
            names = [known[name] for name in link.trivium]
            if link.native is None:
                _check_zero(tensors, names, self.native)
            elif link.trivium:
                steps[link.native] = partial(_to_native, link.rule, tensors, names, self.native.shapes[link.native])
            else:
                assert link.native.endswith("bias") or link.native in self.family.zero_if_missing, link.native
                steps[link.native] = partial(_zeros, tensors, any_known, self.native.shapes[link.native])
        return {self.native.full_names[name]: step for name, step in steps.items()}

    def dropped(self, tensors: Tensors) -> list[str]:
        """Return the names, without prefix, of the native tensors that have no Trivium counterpart."""
        names = {self._normalize_name(self.native, name) for name in tensors}
        return sorted(
            name for name in names if self._is_dropped(name) and self.native.names.get(name) not in self._linked
        )

    def _is_dropped(self, name: str) -> bool:
        return name.startswith(self.family.dropped)

    def _normalize_name(self, side: Side, name: str) -> str:
        """Strip the base model prefix from a checkpoint's tensor name, and update names of older checkpoints."""
        name = name.removeprefix(side.prefix)
        for old, new in self.family.renamed.items():
            name = re.sub(rf"{re.escape(old)}$", new, name)
        return name

    def _known(self, side: Side, tensors: Tensors, shapes: Shapes | None, required: set[str]) -> dict[str, str]:
        """Map canonical names to names in `tensors`; reject missing and unexpected tensors."""
        if shapes is None:
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        known, problems = dict[str, str](), list[str]()
        for key in tensors:
            normalized = self._normalize_name(side, key)
            name = side.names.get(normalized)
            if name is None:
                is_dropped = side is self.native and self._is_dropped(normalized)
                if not (is_dropped or normalized.endswith(self.family.ignored)):
                    problems.append(f"{key} is unexpected")
            elif shapes[key] != side.shapes[name]:
                problems.append(f"{key} has the shape {shapes[key]}, but must have {side.shapes[name]}")
                known.setdefault(name, key)
            elif name in known and not torch.equal(tensors[key], tensors[known[name]]):
                problems.append(f"{key} and {known[name]} are tied, but differ")
            else:
                known.setdefault(name, key)
        problems = [f"{side.full_names[name]} is missing" for name in sorted(required - known.keys())] + problems
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(
                f"The weights do not match the {side.model_class} that config.json describes: "
                f"{'; '.join(problems[:3])}{more}."
            )
        return known


def _to_trivium(rule: Rule, tensors: Tensors, name: str, shapes: list[Shape], k: int) -> torch.Tensor:
    return rule.to_trivium(tensors[name], shapes)[k]


def _to_native(rule: Rule, tensors: Tensors, names: list[str], shape: Shape) -> torch.Tensor:
    return rule.to_native([tensors[name] for name in names], shape)


def _zeros(tensors: Tensors, like: str, shape: Shape) -> torch.Tensor:
    return tensors[like].new_zeros(shape)


def _check_zero(tensors: Tensors, names: list[str], target: Side) -> None:
    for name in names:
        if tensors[name].any():
            raise ValueError(f"{name} must be zero, because a {target.model_class} has no such tensor.")


def _check_computed(tensors: Tensors, name: str, expected: Callable[[Shape], torch.Tensor]) -> None:
    actual = tensors[name]
    tolerance = max(1e-6, 2 * torch.finfo(actual.dtype).eps)
    if not torch.allclose(actual.double(), expected(tuple(actual.shape)).double(), rtol=0, atol=tolerance):
        raise ValueError(f"{name} is not the sinusoidal position table that it must be.")
