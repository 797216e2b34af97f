"""Test the official OpenAI client against the service on loopback."""

import pytest

pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")
pytest.importorskip("openai", reason="the extra `service-clients` is not installed")

import openai
from services import TEXTS, served, tiny_writer
from tiny import tiny_model

from trivium import TriviumEncoderModel
from trivium.serving import Embedder, Keys, Writer, create_app
from trivium.tokenization import train_tokenizer
from trivium.translation import continue_texts

pytestmark = pytest.mark.slow
KEY = "a key of the tests, long enough"


def test_completions_and_chat() -> None:
    model, tokenizer = tiny_writer()
    expected = next(continue_texts(model, tokenizer, ["the cat"], max_new_tokens=8))[0]
    messages = [{"role": "user", "content": "the cat"}]
    app = create_app(Writer(model, tokenizer, max_tokens=64, max_new_tokens=32), name="tiny", keys=Keys([KEY]))
    with served(app) as url, openai.OpenAI(base_url=f"{url}v1", api_key=KEY) as client:
        assert [listed.id for listed in client.models.list()] == ["tiny"]
        answer = client.completions.create(model="tiny", prompt="the cat", max_tokens=8)
        assert (answer.choices[0].text, answer.usage.completion_tokens) == (expected, 8)
        stream = client.completions.create(model="tiny", prompt="the cat", max_tokens=8, stream=True)
        assert "".join(event.choices[0].text for event in stream) == expected
        reply = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8).choices[0]
        events = list(client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, stream=True))
        assert "".join(event.choices[0].delta.content for event in events) == reply.message.content
        assert events[-1].choices[0].finish_reason == reply.finish_reason
        with pytest.raises(openai.BadRequestError, match="at most 63"):
            client.completions.create(model="tiny", prompt="x" * 2000)
        with pytest.raises(openai.NotFoundError, match="model must be"):
            client.completions.create(model="another", prompt="a")
        with pytest.raises(openai.PermissionDeniedError, match="API key"):
            client.with_options(api_key="another key").models.list()


def test_embeddings() -> None:
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=300)
    model = tiny_model(TriviumEncoderModel, decoder_layers=0, vocab_size=len(tokenizer)).float()
    app = create_app(Embedder(model, tokenizer, max_tokens=64), name="tiny")
    with served(app) as url, openai.OpenAI(base_url=f"{url}v1", api_key="none is needed") as client:
        packed = client.embeddings.create(model="tiny", input=TEXTS)  # the client requests base64 by default
        plain = client.embeddings.create(model="tiny", input=TEXTS, encoding_format="float")
    for a, b in zip(packed.data, plain.data, strict=True):
        assert a.embedding == pytest.approx(b.embedding, abs=1e-6)
        assert sum(value**2 for value in a.embedding) == pytest.approx(1, abs=1e-5)
