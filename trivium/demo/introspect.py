"""What a model reads: a text that people type, refused in words that they understand, or cut into its tokens."""

from dataclasses import dataclass

import torch
from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

MAX_CHARACTERS = 10_000  # more are not even cut into tokens
MAX_TOKENS = 512  # more would make people wait, and a page that nobody can survey


class UnfitText(ValueError):
    """A text that the model cannot take; its message tells people why, and what to do."""


@dataclass(frozen=True)
class Piece:
    """Characters of a text that belong to one token; to several, where one character takes several.

    Attributes:
        text: The characters, or the name of a special token.
        tokens: How many tokens they are.
        is_special: Whether it is a special token, like the one that ends a text.
    """

    text: str
    tokens: int = 1
    is_special: bool = False


@dataclass(frozen=True)
class Inputs:
    """A text as the model reads it.

    Attributes:
        input_ids: Its tokens.
        pieces: The same for people, in the same order.
    """

    input_ids: list[int]
    pieces: list[Piece]

    def tensors(self, model: PreTrainedModel) -> dict[str, torch.Tensor]:
        """(1, tokens) `input_ids` and `attention_mask`, where the model is."""
        ids = torch.tensor([self.input_ids], device=model.device)
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def longest(config: PreTrainedConfig) -> int:
    """So many tokens can be read and written; those of a decoder-only model together."""
    # Only learned positions end: sinusoidal and rotary ones go on.
    has_table = getattr(config, "position_embedding_type", "learned") == "learned"
    return min(MAX_TOKENS, config.max_position_embeddings) if has_table else MAX_TOKENS


def read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, text: str) -> Inputs:
    """Cut a text into tokens.

    Raises:
        UnfitText: It is too long, or there is nothing in it; a decoder-only model needs nothing to begin with.
    """
    text = text.encode(errors="replace").decode()  # half a surrogate pair is no text
    if len(text) > MAX_CHARACTERS:
        raise UnfitText(
            f"This text has {len(text):,} characters. Here {MAX_CHARACTERS:,} are the most: try a part of it."
        )
    goes_on = model.can_generate() and not model.config.is_encoder_decoder
    encoding = tokenizer(text, return_offsets_mapping=True)
    ids = list(encoding["input_ids"])
    if goes_on and not ids and tokenizer.bos_token_id is not None:
        ids = [tokenizer.bos_token_id]
        return Inputs(ids, [Piece(tokenizer.bos_token, is_special=True)])
    if not ids or not (text.strip() or goes_on):
        raise UnfitText("There is no text yet: type one above.")
    limit = longest(model.config) - goes_on  # there must be room for a token
    if len(ids) > limit:
        raise UnfitText(f"This text has {len(ids):,} tokens. The model can read {limit:,} here: try a shorter one.")
    return Inputs(ids, _pieces(tokenizer, text, ids, encoding["offset_mapping"]))


def _pieces(
    tokenizer: PreTrainedTokenizerBase, text: str, ids: list[int], spans: list[tuple[int, int]]
) -> list[Piece]:
    tokenizer = getattr(tokenizer, "source", tokenizer)  # there are tokenizers with two vocabularies
    special = set(tokenizer.all_special_ids)
    pieces: list[Piece] = []
    done = 0  # so many characters are in pieces
    for token_id, (start, end) in zip(ids, spans, strict=True):
        if token_id in special:
            pieces.append(Piece(str(tokenizer.convert_ids_to_tokens(token_id)), is_special=True))
        elif pieces and (start < done or end <= done):  # one more token of the same character
            pieces[-1] = Piece(pieces[-1].text + text[done:end], pieces[-1].tokens + 1)
        else:
            pieces.append(Piece(text[done:end]))  # with the space before it, if the token has none of its own
        done = max(done, end)
    return pieces
