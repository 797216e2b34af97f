"""The page on which people try a model, and nothing that it could not take along.

These files also travel to the Hub, with a Space: they import gradio, torch, transformers and each other, as
`from .name import X`.
"""

from .page import launch

__all__ = ["launch"]
