"""Test third-party LibreTranslate clients against the service on loopback."""

from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
pytest.importorskip("libretranslatepy", reason="the extra `service-clients` is not installed")
pytest.importorskip("deep_translator", reason="the extra `service-clients` is not installed")

from deep_translator import LibreTranslator
from deep_translator.exceptions import AuthorizationException
from libretranslatepy import LibreTranslateAPI
from services import TEXTS, expected, served, tiny_translator

from trivium.serving import Keys, Languages, Pair, Translator, create_app

pytestmark = pytest.mark.slow
KEY = "a key of the tests, long enough"


@pytest.fixture(scope="module")
def model_and_tokenizer() -> Any:
    return tiny_translator()


@pytest.fixture(scope="module", params=["torch", "ctranslate2"])
def translator(request: pytest.FixtureRequest, model_and_tokenizer: Any, tmp_path_factory: Any) -> Translator:
    model, tokenizer = model_and_tokenizer
    if request.param == "ctranslate2":
        pytest.importorskip("ctranslate2", reason="an optional dependency")
        from trivium.interop.ctranslate2 import CTranslate2Model, to_ctranslate2

        folder = tmp_path_factory.mktemp("service") / "converted"
        to_ctranslate2(model, folder, tokenizer=tokenizer)
        model = CTranslate2Model(folder)
    return Translator(model, tokenizer, max_tokens=64)


@pytest.fixture(scope="module")
def url(translator: Translator) -> Iterator[str]:
    with served(create_app(translator, Languages([Pair("en", "de")]))) as url:
        yield url


@pytest.fixture(scope="module")
def locked_url(translator: Translator) -> Iterator[str]:
    with served(create_app(translator, Languages([Pair("en", "de")]), keys=Keys([KEY]))) as url:
        yield url


def test_libretranslatepy(url: str, model_and_tokenizer: Any) -> None:
    client = LibreTranslateAPI(url)
    assert [client.translate(text, "en", "de") for text in TEXTS] == expected(*model_and_tokenizer, TEXTS)
    assert client.languages()[0] == {"code": "en", "name": "English", "targets": ["de"]}


def test_deep_translator(url: str, model_and_tokenizer: Any) -> None:
    client = LibreTranslator("English", "German", api_key="none is needed", custom_url=url)
    assert client.translate(TEXTS[0]) == expected(*model_and_tokenizer, TEXTS[:1])[0]
    assert client.translate_batch(TEXTS) == expected(*model_and_tokenizer, TEXTS)


def test_clients_send_their_api_key(locked_url: str, model_and_tokenizer: Any) -> None:
    translation = expected(*model_and_tokenizer, TEXTS[:1])[0]
    assert LibreTranslateAPI(locked_url, KEY).translate(TEXTS[0], "en", "de") == translation
    assert LibreTranslator("en", "de", api_key=KEY, custom_url=locked_url).translate(TEXTS[0]) == translation
    with pytest.raises(AuthorizationException):
        LibreTranslator("en", "de", api_key="another key", custom_url=locked_url).translate(TEXTS[0])
