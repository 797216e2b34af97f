"""HTTP service of a translation model, with LibreTranslate's interface.

translator = Translator(model, tokenizer, max_tokens=512)
app = create_app(translator, Languages([Pair("en", "de")]))
"""

from .engine import Translator
from .languages import Languages, Pair
from .limits import Keys, Limits
from .service import create_app

__all__ = ["Keys", "Languages", "Limits", "Pair", "Translator", "create_app"]
