"""Self-contained demo page of a model.

These files are also uploaded with a Space: they may only import gradio, torch, transformers and each other, as
`from .name import X`.
"""

from .page import launch

__all__ = ["launch"]
