"""Test the OpenAI API: completions, chat, streaming, embeddings, and errors that name the unsupported field."""

import json
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the extra `serve` is not installed")
pytest.importorskip("prometheus_client", reason="the extra `serve` is not installed")

import torch
from services import TEXTS, tiny_writer
from starlette.testclient import TestClient
from tiny import tiny_model

from trivium import TriviumEncoderModel
from trivium.serving import Embedder, Keys, Writer, create_app
from trivium.tokenization import train_tokenizer
from trivium.translation import continue_texts

KEY = "a key of the tests, long enough"
PROMPT = "the cat"


@pytest.fixture(scope="module")
def model_and_tokenizer() -> Any:
    return tiny_writer()


@pytest.fixture(scope="module")
def client(model_and_tokenizer: Any) -> Iterator[TestClient]:
    app = create_app(Writer(*model_and_tokenizer, max_tokens=64, max_new_tokens=32), name="tiny")
    with TestClient(app, raise_server_exceptions=False) as client:
        yield client


def complete(client: TestClient, **parameters: Any) -> Any:
    response = client.post("/v1/completions", json={"model": "tiny", "prompt": PROMPT, **parameters})
    assert response.status_code == 200, response.text
    return response.json()


def streamed(client: TestClient, path: str, **parameters: Any) -> list[Any]:
    """Return the choices of all server-sent events of a streamed response."""
    response = client.post(path, json={"model": "tiny", "stream": True, **parameters})
    events = [event.removeprefix("data: ") for event in response.text.strip().split("\n\n")]
    assert events[-1] == "[DONE]"
    return [json.loads(event)["choices"][0] for event in events[:-1]]


def continuation(model_and_tokenizer: Any, text: str = PROMPT, **options: Any) -> str:
    return next(continue_texts(*model_and_tokenizer, [text], **options))[0]


def test_completions_are_those_of_the_model(client: TestClient, model_and_tokenizer: Any) -> None:
    answer = complete(client, prompt=TEXTS[:3], max_tokens=6)
    expected = [continuation(model_and_tokenizer, text, max_new_tokens=6) for text in TEXTS[:3]]
    assert [choice["text"] for choice in answer["choices"]] == expected
    assert {choice["finish_reason"] for choice in answer["choices"]} == {"length"}
    assert answer["usage"]["completion_tokens"] == 18
    assert client.get("/v1/models").json()["data"][0]["id"] == "tiny"


def test_streams_add_up_to_the_whole_text(client: TestClient, model_and_tokenizer: Any) -> None:
    whole = continuation(model_and_tokenizer, max_new_tokens=12)
    parts = streamed(client, "/v1/completions", prompt=PROMPT, max_tokens=12)
    assert "".join(part["text"] for part in parts) == whole
    assert (parts[-1]["finish_reason"], len(parts) > 3) == ("length", True)


def test_stop_strings_end_texts_and_streams(client: TestClient, model_and_tokenizer: Any) -> None:
    whole = continuation(model_and_tokenizer, max_new_tokens=12)
    stop = whole[2:4]
    choice = complete(client, max_tokens=12, stop=stop)["choices"][0]
    assert (choice["text"], choice["finish_reason"]) == (whole[: whole.index(stop)], "stop")
    parts = streamed(client, "/v1/completions", prompt=PROMPT, max_tokens=12, stop=[stop])
    assert "".join(part["text"] for part in parts) == choice["text"]
    assert parts[-1]["finish_reason"] == "stop"


def test_chat_uses_the_template(client: TestClient, model_and_tokenizer: Any) -> None:
    model, tokenizer = model_and_tokenizer
    messages = [{"role": "user", "content": PROMPT}]
    ids = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_tensors="pt", return_dict=False)
    output = model.generate(ids, max_new_tokens=8)[0]
    expected = tokenizer.decode(output)[len(tokenizer.decode(ids[0])) :]
    answer = client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages, "max_tokens": 8}).json()
    assert answer["choices"][0]["message"] == {"role": "assistant", "content": expected}
    parts = streamed(client, "/v1/chat/completions", messages=messages, max_tokens=8)
    assert "".join(part["delta"]["content"] for part in parts) == expected


def test_samples_depend_on_the_seed(client: TestClient) -> None:
    def sample(seed: int) -> list[str]:
        choices = complete(client, temperature=1.5, seed=seed, n=2, max_tokens=12)["choices"]
        return [choice["text"] for choice in choices]

    assert sample(1) == sample(1)
    assert len({*sample(1), *sample(7)}) == 4
    assert complete(client, temperature=0)["choices"] == complete(client)["choices"]


@pytest.mark.parametrize(
    ("sent", "status", "message"),
    [
        ({"model": "gpt-4"}, 404, "model must be 'tiny'"),
        ({"prompt": None}, 400, "prompt must be a text"),
        ({"prompt": [[1, 2]]}, 400, "token ids are not accepted"),
        ({"prompt": "x" * 2000}, 400, "tokens, but may have at most 63"),
        ({"max_tokens": 0}, 400, "max_tokens must be a number from 1 to 256"),
        ({"temperature": float("nan")}, 400, "temperature must be"),
        ({"n": True}, 400, "n must be"),
        ({"stop": [""]}, 400, "stop must be"),
        ({"tools": [{}]}, 400, "tools is not supported"),
        ({"stream": True, "n": 2}, 400, "stream allows only one"),
        ({"stream": True, "prompt": "x" * 2000}, 400, "tokens, but may have at most 63"),
    ],
)
def test_bad_requests_are_refused_by_name(client: TestClient, sent: Any, status: int, message: str) -> None:
    body = json.dumps({"model": "tiny", "prompt": PROMPT, **sent})
    response = client.post("/v1/completions", content=body)
    assert response.status_code == status
    assert message in response.json()["error"]["message"]


def test_messages_and_keys_are_checked(client: TestClient, model_and_tokenizer: Any) -> None:
    for messages in ([], "hi", [{"role": "user"}], [{"role": "user", "content": [{"type": "text"}]}]):
        response = client.post("/v1/chat/completions", json={"model": "tiny", "messages": messages})
        assert (response.status_code, "messages must be" in response.text) == (400, True)
    app = create_app(Writer(*model_and_tokenizer, max_tokens=64, max_new_tokens=8), name="tiny", keys=Keys([KEY]))
    with TestClient(app) as locked:
        assert locked.get("/v1/models").status_code == 403
        assert locked.get("/v1/models", headers={"Authorization": f"Bearer {KEY}"}).status_code == 200


def test_embeddings_are_normalized_means() -> None:
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=300)
    model = tiny_model(TriviumEncoderModel, decoder_layers=0, vocab_size=len(tokenizer)).float()
    with TestClient(create_app(Embedder(model, tokenizer, max_tokens=64), name="tiny")) as client:
        answer = client.post("/v1/embeddings", json={"model": "tiny", "input": TEXTS}).json()
        one = client.post("/v1/embeddings", json={"model": "tiny", "input": TEXTS[0]}).json()
        for bad in ({"dimensions": 3}, {"encoding_format": "int8"}, {"input": [1]}, {"input": "x" * 900}):
            body = {"model": "tiny", "input": "a", **bad}
            assert client.post("/v1/embeddings", json=body).status_code == 400
    for text, item in zip(TEXTS, answer["data"], strict=True):
        mean = model(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0)
        torch.testing.assert_close(torch.tensor(item["embedding"]), mean / mean.norm(), rtol=1e-4, atol=1e-5)
    assert one["data"][0]["embedding"] == pytest.approx(answer["data"][0]["embedding"], abs=1e-5)
