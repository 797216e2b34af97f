"""Serve a model over HTTP, with LibreTranslate's API for translation models and OpenAI's API otherwise.

translator = Translator(model, tokenizer, max_tokens=512)
app = create_app(translator, Languages([Pair("en", "de")]))
"""

from .engine import Embedder, Translator
from .languages import Languages, Pair
from .limits import Keys, Limits
from .service import create_app
from .writer import Writer

__all__ = ["Embedder", "Keys", "Languages", "Limits", "Pair", "Translator", "Writer", "create_app"]
