"""Publishing: the model card, the check that others can load a folder, and the push."""

from trivium.hub.card import has_own_card, render_card
from trivium.hub.checking import auto_class_of, check_folder
from trivium.hub.pushing import Push, plan, push, send

__all__ = ["Push", "auto_class_of", "check_folder", "has_own_card", "plan", "push", "render_card", "send"]
