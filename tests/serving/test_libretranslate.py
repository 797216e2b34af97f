"""Test the LibreTranslate API: all request formats, HTML, alternatives, languages, health and metrics."""

import logging
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

from services import TEXTS, expected, tiny_translator
from starlette.testclient import TestClient

from trivium.serving import Languages, Pair, Translator, create_app

PAIR = {"source": "en", "target": "de"}


@pytest.fixture(scope="module")
def model_and_tokenizer() -> Any:
    return tiny_translator()


@pytest.fixture(scope="module")
def translations(model_and_tokenizer: Any) -> list[str]:
    found = expected(*model_and_tokenizer, TEXTS)
    assert len(set(found)) == len(TEXTS)
    return found


@pytest.fixture(scope="module")
def app(model_and_tokenizer: Any) -> Any:
    return create_app(Translator(*model_and_tokenizer, max_tokens=64), Languages([Pair("en", "de")]))


@pytest.fixture(scope="module")
def client(app: Any) -> Iterator[TestClient]:
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def post(client: TestClient, **parameters: Any) -> Any:
    response = client.post("/translate", json={**PAIR, **parameters})
    assert response.status_code == 200, response.text
    return response.json()


def test_json_form_multipart_and_query_are_accepted(client: TestClient, translations: list[str]) -> None:
    parameters = {"q": TEXTS[0], **PAIR}
    for sent in (
        {"json": parameters},
        {"data": parameters},
        {"params": parameters},
        {"files": {name: (None, value) for name, value in parameters.items()}},
    ):
        response = client.post("/translate", **sent)
        assert (response.status_code, response.json()) == (200, {"translatedText": translations[0]})
    for sent in ({"json": {"q": TEXTS, **PAIR}}, {"data": {"q": TEXTS, **PAIR}}):
        assert client.post("/translate", **sent).json() == {"translatedText": translations}


def test_lines_spaces_and_blank_texts_are_kept(client: TestClient, translations: list[str]) -> None:
    text = f"  {TEXTS[0]}\r\n\n{TEXTS[1]}\n"
    assert post(client, q=text)["translatedText"] == f"  {translations[0]}\r\n\n{translations[1]}\n"
    assert post(client, q=["", " \n"])["translatedText"] == ["", " \n"]


def test_html_translates_text_nodes_only(client: TestClient, translations: list[str]) -> None:
    def page(first: str, second: str) -> str:
        return (
            f'<p class="a">{first} <b>{second}</b></p><!-- birds sing --><script>sing("birds")</script>'
            '<span translate="no">birds sing</span><code>birds sing</code>'
        )

    def escaped(text: str) -> str:
        return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")

    translated = post(client, q=page(TEXTS[0], "it rains &amp; snows"), format="html")["translatedText"]
    assert translated == page(escaped(translations[0]), escaped(translations[3]))
    deep = "<i>" * 999 + TEXTS[0]
    assert escaped(translations[0]) in post(client, q=deep, format="html")["translatedText"]


def test_alternatives_are_the_next_beams(client: TestClient, model_and_tokenizer: Any) -> None:
    answer = post(client, q=TEXTS[0], alternatives=2)
    assert answer["translatedText"] == expected(*model_and_tokenizer, TEXTS[:1], num_beams=3)[0]
    assert len({answer["translatedText"], *answer["alternatives"]}) == 3
    listed = post(client, q=TEXTS[:2], alternatives=2)
    assert listed["translatedText"][0] == answer["translatedText"]
    assert listed["alternatives"][0] == answer["alternatives"]


def test_auto_stands_for_the_only_source_language(client: TestClient, translations: list[str]) -> None:
    assert post(client, q=TEXTS[0], source="auto") == {
        "translatedText": translations[0],
        "detectedLanguage": {"confidence": 100, "language": "en"},
    }


def test_languages_and_settings(client: TestClient) -> None:
    assert client.get("/languages").json() == [
        {"code": "en", "name": "English", "targets": ["de"]},
        {"code": "de", "name": "German", "targets": []},
    ]
    settings = client.get("/frontend/settings").json()
    assert settings["language"]["target"] == {"code": "de", "name": "German"}
    assert (settings["keyRequired"], settings["charLimit"]) == (False, 20_000)


def test_tags_choose_the_target_language(model_and_tokenizer: Any) -> None:
    pairs = [Pair.parse("en:de=birds "), Pair.parse("en:fr=cat ")]
    app = create_app(Translator(*model_and_tokenizer, max_tokens=64), Languages(pairs))
    with TestClient(app) as client:
        assert post(client, q="sing")["translatedText"] == expected(*model_and_tokenizer, ["birds sing"])[0]
        assert post(client, q="sing", target="fr")["translatedText"] == expected(*model_and_tokenizer, ["cat sing"])[0]


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ({"json": PAIR}, "The parameter q is missing"),
        ({"json": {"q": 3, **PAIR}}, "q must be a text or a list"),
        ({"json": {"q": [], **PAIR}}, "q must be a text or a list"),
        ({"json": {"q": "a", "source": "en", "target": "fr"}}, "only en:de"),
        ({"json": {"q": "a", **PAIR, "format": "pdf"}}, "format must be"),
        ({"json": {"q": "a", **PAIR, "alternatives": 99}}, "from 0 to 5"),
        ({"json": {"q": "a" * 20_001, **PAIR}}, "20,001 characters"),
        ({"json": {"q": "a\n" * 129, **PAIR}}, "129 texts"),
        ({"json": {"q": "x" * 1000, **PAIR}}, "tokens, but may have at most 64"),
        ({"content": b"[1]"}, "must be a JSON object"),
        ({"content": b'{"q": ' + b"[" * 100_000}, "must be a JSON object"),
        ({"content": b"\xff"}, "must be a JSON object"),
    ],
)
def test_bad_requests_are_refused_by_name(client: TestClient, sent: dict[str, Any], message: str) -> None:
    response = client.post("/translate", **sent)
    assert response.status_code == 400
    assert message in response.json()["error"]


def test_health_metrics_and_log_without_texts(client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, "trivium.serving"):
        client.post("/translate", params={"q": "birds sing", **PAIR})
        assert client.get("/birds").status_code == 404
    assert "POST /translate 200" in caplog.text
    assert "birds" not in caplog.text
    assert client.get("/health").json() == {"status": "ok"}
    metrics = client.get("/metrics").text
    assert 'trivium_requests_total{route="/translate",status="200"}' in metrics
    assert 'trivium_requests_total{route="other",status="404"}' in metrics
    assert "trivium_queue_texts 0.0" in metrics


def test_texts_are_logged_on_request(model_and_tokenizer: Any, caplog: pytest.LogCaptureFixture) -> None:
    translator = Translator(*model_and_tokenizer, max_tokens=64)
    app = create_app(translator, Languages([Pair("en", "de")]), log_texts=True)
    with TestClient(app) as client, caplog.at_level(logging.INFO, "trivium.serving"):
        post(client, q="birds\nsing")
    assert '"birds\\nsing"' in caplog.text
