"""Publish a model on the Hub: model card, portability check, push and Space."""

from trivium.hub.card import has_own_card, render_card
from trivium.hub.checking import auto_class_of, check_folder
from trivium.hub.pushing import Push, check_repo_id, plan, plan_space, push, send
from trivium.hub.space import write_space

__all__ = [
    "Push",
    "auto_class_of",
    "check_folder",
    "check_repo_id",
    "has_own_card",
    "plan",
    "plan_space",
    "push",
    "render_card",
    "send",
    "write_space",
]
