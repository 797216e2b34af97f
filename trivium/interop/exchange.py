"""Tensors of a native model as those of ours, and back: every one accounted for by its name, shape and ties."""

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

SUFFIXES = ("", ".weight", ".bias")  # a rule is about a tensor, or about both tensors of a module


@dataclass(frozen=True)
class Side:
    """The tensors that one of the two models has, by their names without the prefix of the base model.

    Attributes:
        model_class: The name of its class.
        prefix: The prefix of the base model.
        names: All names, and for each the one by which the tensor goes; several, if it is tied.
        full_names: For each of the latter the name in the model.
        shapes: And its shape.
    """

    model_class: str
    prefix: str
    names: Mapping[str, str]
    full_names: Mapping[str, str]
    shapes: Shapes

    @classmethod
    def of(cls, model: PreTrainedModel) -> "Side":
        """The side of a model, which may be on the meta device."""
        prefix = model.base_model_prefix + "."
        names, full_names, shapes, known = dict[str, str](), dict[str, str](), dict[str, Shape](), dict[int, str]()
        for full_name, tensor in model.state_dict(keep_vars=True).items():
            name = full_name.removeprefix(prefix)
            first = names[name] = known.setdefault(id(tensor), name)
            full_names.setdefault(first, full_name)
            shapes.setdefault(first, tuple(tensor.shape))
        return cls(type(model).__name__, prefix, names, full_names, shapes)


class Link(NamedTuple):
    """What a rule says about one tensor of theirs, if they have it, and ours, if we have them."""

    rule: Rule
    native: str | None
    ours: tuple[str, ...]


class Exchange:
    """What the tensors of two models of the same mathematics have to do with each other.

    Args:
        family: Their family.
        native: A model of theirs, on any device: only its names and shapes are looked at.
        ours: The same for ours.
    """

    def __init__(self, family: Family, native: PreTrainedModel, ours: PreTrainedModel) -> None:
        self.family, self.native, self.ours = family, Side.of(native), Side.of(ours)
        links = self._links(max(ours.config.encoder_layers, ours.config.decoder_layers))
        taken = {name for link in links if link.native and link.ours for name in (link.native, *link.ours)}
        # What only one of the two has, and no other rule is about.
        alone = [link for link in links if not (link.native and link.ours) and not taken & {link.native, *link.ours}]
        self.links = [link for link in links if link.native and link.ours]
        self.links += [link for link in alone if not self._is_dropped(link.native or "")]
        claimed = [name for link in self.links for name in link.ours]
        assert sorted(claimed) == sorted(self.ours.shapes), set(claimed) ^ set(self.ours.shapes)
        self._linked = {link.native for link in self.links} | set(family.computed)
        self.without_ours = sorted(set(self.native.shapes) - self._linked)
        assert all(map(self._is_dropped, self.without_ours)), self.without_ours

    def _links(self, layers: int) -> list[Link]:
        links = dict[tuple[str | None, tuple[str, ...]], Link]()
        for rule in self.family.rules:
            for i in range(layers if "{i}" in rule.native else 1):
                for suffix in SUFFIXES:
                    native = self.native.names.get(rule.native.format(i=i) + suffix)
                    found = (self.ours.names.get(name.format(i=i) + suffix) for name in rule.ours)
                    ours = tuple(name for name in found if name)
                    if native or ours:
                        links.setdefault((native, ours), Link(rule, native, ours))  # of tied tensors, one will do
        return list(links.values())

    def inward(self, tensors: Tensors, shapes: Shapes | None = None) -> Steps:
        """How to make our tensors of theirs.

        Args:
            tensors: Theirs, by their names in the model; they are read when a step is taken, and few of them before.
            shapes: Their shapes, for which they then need not be read.

        Returns:
            For the name of each of ours a function that makes it.

        Raises:
            ValueError: Tensors are missing, have no place or another shape, or are what ours cannot be.
        """
        required = {link.native for link in self.links if link.native and link.ours}
        known = self._known(self.native, tensors, shapes, required)
        steps, any_known = Steps(), next(iter(known.values()))
        for link in self.links:
            wanted = [self.ours.shapes[name] for name in link.ours]
            if not link.ours:
                _check_zero(tensors, [known[name] for name in [link.native] if name in known], self.ours)
            for k, name in enumerate(link.ours):
                if link.native is None:
                    steps[name] = partial(_zeros, tensors, any_known, wanted[k])
                else:
                    steps[name] = partial(_inward, link.rule, tensors, known[link.native], wanted, k)
        for name, expected in self.family.computed.items():
            if name in known:
                _check_computed(tensors, known[name], expected)
        return {self.ours.full_names[name]: step for name, step in steps.items()}

    def outward(self, tensors: Tensors, shapes: Shapes | None = None) -> Steps:
        """How to make their tensors of ours: as `inward`, with the sides exchanged."""
        known = self._known(self.ours, tensors, shapes, set(self.ours.shapes))
        steps, any_known = Steps(), next(iter(known.values()))
        for link in self.links:
            names = [known[name] for name in link.ours]
            if link.native is None:
                _check_zero(tensors, names, self.native)
            elif link.ours:
                steps[link.native] = partial(_outward, link.rule, tensors, names, self.native.shapes[link.native])
            else:
                assert link.native.endswith("bias") or link.native in self.family.zeros, link.native
                steps[link.native] = partial(_zeros, tensors, any_known, self.native.shapes[link.native])
        return {self.native.full_names[name]: step for name, step in steps.items()}

    def dropped(self, tensors: Tensors) -> list[str]:
        """The names, without prefix, of those tensors of theirs that we have no place for."""
        names = {self._spelling(self.native, name) for name in tensors}
        return sorted(
            name for name in names if self._is_dropped(name) and self.native.names.get(name) not in self._linked
        )

    def _is_dropped(self, name: str) -> bool:
        return name.startswith(self.family.dropped)

    def _spelling(self, side: Side, name: str) -> str:
        """What a tensor of a file is called on that side, without prefix."""
        name = name.removeprefix(side.prefix)
        for old, new in self.family.renamed.items():
            name = re.sub(rf"{re.escape(old)}$", new, name)
        return name

    def _known(self, side: Side, tensors: Tensors, shapes: Shapes | None, required: set[str]) -> dict[str, str]:
        """Where in `tensors` are those of this side; all that are required, and no others."""
        if shapes is None:
            shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
        known, problems = dict[str, str](), list[str]()
        for given in tensors:
            spelling = self._spelling(side, given)
            name = side.names.get(spelling)
            if name is None:
                left_out = side is self.native and self._is_dropped(spelling)
                if not (left_out or spelling.endswith(self.family.ignored)):
                    problems.append(f"{given} has no place")
            elif shapes[given] != side.shapes[name]:
                problems.append(f"{given} has the shape {shapes[given]}, but must have {side.shapes[name]}")
                known.setdefault(name, given)
            elif name in known and not torch.equal(tensors[given], tensors[known[name]]):
                problems.append(f"{given} and {known[name]} are tied, but differ")
            else:
                known.setdefault(name, given)
        problems = [f"{side.full_names[name]} is missing" for name in sorted(required - known.keys())] + problems
        if problems:
            more = f"; and {len(problems) - 3} more" if len(problems) > 3 else ""
            raise ValueError(
                f"The weights are not those of the {side.model_class} that the configuration describes: "
                f"{'; '.join(problems[:3])}{more}."
            )
        return known


def _inward(rule: Rule, tensors: Tensors, name: str, shapes: list[Shape], k: int) -> torch.Tensor:
    return rule.inward(tensors[name], shapes)[k]


def _outward(rule: Rule, tensors: Tensors, names: list[str], shape: Shape) -> torch.Tensor:
    return rule.outward([tensors[name] for name in names], shape)


def _zeros(tensors: Tensors, like: str, shape: Shape) -> torch.Tensor:
    return tensors[like].new_zeros(shape)


def _check_zero(tensors: Tensors, names: list[str], target: Side) -> None:
    for name in names:
        if tensors[name].any():
            raise ValueError(f"{name} is not zero, but a {target.model_class} has no such tensor.")


def _check_computed(tensors: Tensors, name: str, expected: Callable[[Shape], torch.Tensor]) -> None:
    given = tensors[name]
    tolerance = max(1e-6, 2 * torch.finfo(given.dtype).eps)
    if not torch.allclose(given.double(), expected(tuple(given.shape)).double(), rtol=0, atol=tolerance):
        raise ValueError(f"{name} is not the table of sinusoids that it must be.")
