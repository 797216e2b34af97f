"""Tokenize the text that a user enters; reject unsuitable text with a message for the page."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MAX_CHARACTERS = 10_000  # longer texts are rejected before tokenization
MAX_TOKENS = 512  # more tokens would be slow to process and too many to display


class UnfitText(ValueError):
    """Raised for invalid input; the message tells the user what is wrong and what to do."""


@dataclass(frozen=True)
class Piece:
    """Text of a token, or of several tokens that encode one character.

    Attributes:
        text: The characters, or the name of a special token.
        tokens: Number of tokens.
        is_special: Whether it is a special token, such as EOS.
    """

    text: str
    tokens: int = 1
    is_special: bool = False


@dataclass(frozen=True)
class Inputs:
    """A tokenized text.

    Attributes:
        input_ids: The token ids.
        pieces: The text of the tokens, in the same order.
    """

    input_ids: list[int]
    pieces: list[Piece]

    def tensors(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """Return `input_ids` and `attention_mask`, each (1, tokens), on the device of the model."""
        ids = torch.tensor([self.input_ids], device=model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def max_length(config: PreTrainedConfig) -> int:
    """Return the maximum number of tokens in the input or output; for a decoder-only model, in both together."""
    # Only learned positions are limited: sinusoidal and rotary ones extend to any length.
    has_table = getattr(config, "position_embedding_type", "learned") == "learned"
    return min(MAX_TOKENS, config.max_position_embeddings) if has_table else MAX_TOKENS


def read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Inputs:
    """Tokenize a text.

    Raises:
        UnfitText: The text is too long, or empty; a decoder-only model takes an empty prompt.
    """
    text = text.encode(errors="replace").decode()  # replace lone surrogates, which cannot be encoded
    if len(text) > MAX_CHARACTERS:
        raise UnfitText(
            f"The text has {len(text):,} characters, but at most {MAX_CHARACTERS:,} are allowed. Shorten it."
        )
    continues = model.can_generate() and not model.config.is_encoder_decoder
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids = list(encoding["input_ids"])
    if continues and not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
        return Inputs(ids, [Piece(tokenizer.bos_token, is_special=True)])
    if not ids or not (text.strip() or continues):
        raise UnfitText("The text is empty. Enter a text above.")
    limit = max_length(model.config) - continues  # leave one position to generate
    if len(ids) > limit:
        raise UnfitText(f"The text has {len(ids):,} tokens, but at most {limit:,} are allowed. Shorten it.")
    return Inputs(ids, _pieces(tokenizer, text, ids, encoding["offset_mapping"]))


def _pieces(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], spans: list[tuple[int, int]]
) -> list[Piece]:
    tokenizer = getattr(tokenizer, "source", tokenizer)  # for two vocabularies
    special = set(tokenizer.all_special_ids)
    pieces: list[Piece] = []
    done = 0  # number of characters in the pieces so far
    for token_id, (start, end) in zip(ids, spans, strict=True):
        if token_id in special:
            pieces.append(Piece(str(tokenizer.convert_ids_to_tokens(token_id)), is_special=True))
        elif pieces and (start < done or end <= done):  # another token of the same character
            pieces[-1] = Piece(pieces[-1].text + text[done:end], pieces[-1].tokens + 1)
        else:
            pieces.append(Piece(text[done:end]))  # includes a skipped space before the token
        done = max(done, end)
    return pieces
