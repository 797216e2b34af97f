"""Run tiny models with random weights as a service on loopback, and compute the expected translations."""

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import torch
from tiny import tiny_model
from trained_tokenizers import CHAT

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumTokenizer
from trivium.tokenization import train_tokenizer
from trivium.translation import translate

TEXTS = ["the cat sat on the mat.", "two dogs ran across the road.", "birds sing", "it rains & snows"]


def tiny_translator() -> tuple[TriviumForConditionalGeneration, TriviumTokenizer]:
    """Return a translation model with random weights, whose outputs differ between texts, and its tokenizer."""
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=300)
    torch.manual_seed(1)
    model = tiny_model(vocab_size=len(tokenizer), max_position_embeddings=256, std=0.3, decoder_layers=1).float()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def tiny_writer() -> tuple[TriviumForCausalLM, TriviumTokenizer]:
    """Return a decoder-only model that generates to the maximum length, and a tokenizer with a chat template."""
    tokenizer = train_tokenizer(TEXTS * 3, vocab_size=300, add_bos_token=True, add_eos_token=False)
    tokenizer.chat_template = CHAT
    torch.manual_seed(0)
    model = tiny_model(TriviumForCausalLM, encoder_layers=0, vocab_size=len(tokenizer), std=0.3).float()
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    return model, tokenizer


def expected(model: Any, tokenizer: Any, texts: list[str], **options: Any) -> list[str]:
    """Translate each text in a batch of one, without the service but with its maximum length."""
    limits = [-(-len(tokenizer(text)["input_ids"]) // 32) * 32 + 50 for text in texts]
    return [
        next(translate(model, tokenizer, [text], max_length=limit, **options))
        for text, limit in zip(texts, limits, strict=True)
    ]


def free_port() -> int:
    """Return a currently unused loopback port."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


@contextlib.contextmanager
def served(app: Any) -> Iterator[str]:
    """Serve an application on loopback in a background thread, and yield its URL."""
    import uvicorn

    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        server = uvicorn.Server(uvicorn.Config(app, log_config=None, timeout_keep_alive=75))
        thread = threading.Thread(target=server.run, args=([listener],), daemon=True)
        thread.start()
        while not server.started and thread.is_alive():
            time.sleep(0.01)
        try:
            yield f"http://127.0.0.1:{listener.getsockname()[1]}/"
        finally:
            server.should_exit = True
            thread.join()
