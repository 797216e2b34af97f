"""Run a model on a text; collect readable tokens, attention weights and hidden states."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import ModelOutput

from trivium.translation import translate

REPLACEMENT = "\ufffd"  # replacement character, decoded from the bytes of a partial character
MAX_LABEL_LENGTH = 32
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | {0x09: r"\t", 0x0A: "↵", 0x0D: r"\r"}


@dataclass(frozen=True)
class Reading:
    """Tokens of a text and the outputs of a model.

    Attributes:
        output: Model output, with `attentions` and `hidden_states` of all layers.
        source_tokens: Input tokens, as text.
        target_tokens: Target tokens of an encoder-decoder, as text.
        decoder_tokens: Decoder inputs, as text: the start token, then all of `target_tokens` but the last.
    """

    output: ModelOutput
    source_tokens: list[str]
    target_tokens: list[str]
    decoder_tokens: list[str]


@dataclass(frozen=True)
class Attention:
    """Attention weights between tokens.

    Attributes:
        weights: (layers, heads, rows, columns), float32; rows are queries, columns are keys.
        name: Display name, such as "Cross-attention".
        stack: Display name of a layer, such as "decoder layer".
        row_tokens: Query tokens, as text.
        column_tokens: Key tokens, as text.
        row_name: Axis label of the rows.
    """

    weights: torch.Tensor
    name: str
    stack: str
    row_tokens: list[str]
    column_tokens: list[str]
    row_name: str


@contextmanager
def inspection_mode(model: PreTrainedModel) -> Iterator[None]:
    """Context manager: use eval mode and eager attention, which returns its weights; restore both on exit."""
    implementation, is_training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
        model.train(is_training)


def read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str | None) -> Reading:
    """Run a model on a text and, for an encoder-decoder, on `target` or on the translation that it generates.

    Raises:
        ValueError: `source` or `target` has no tokens; `target` is given to a model that is not an encoder-decoder; or
            an encoder-decoder has no head.
    """
    inputs, source_tokens = _encode(model, tokenizer, source)
    output_options = {"output_attentions": True, "output_hidden_states": True}
    if not model.config.is_encoder_decoder:
        if target is not None:
            raise ValueError(f"target is {target!r}, but only an encoder-decoder takes one: leave it out.")
        with inspection_mode(model), torch.no_grad():
            return Reading(model(**inputs, **output_options), source_tokens, [], [])

    if target is None:
        target = generate_translation(model, tokenizer, source)
    _check_head(model)
    with inspection_mode(model), torch.no_grad():
        labels = tokenizer(text_target=target, return_tensors="pt")["input_ids"].to(model.device).long()
        if not labels.numel():
            raise ValueError(f"target is {target!r}, but must have at least one token.")
        # Row i has the target up to token i - 1 as input and attends to the source to predict token i.
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
        output = model(**inputs, decoder_input_ids=decoder_input_ids, **output_options)
    target_tokenizer = getattr(tokenizer, "target", tokenizer)
    target_tokens, decoder_tokens = (
        token_labels(target_tokenizer, ids[0].tolist()) for ids in (labels, decoder_input_ids)
    )
    return Reading(output, source_tokens, target_tokens, decoder_tokens)


def generate_translation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> str:
    """Return the translation that an encoder-decoder generates for a text.

    Raises:
        ValueError: The model has no LM head.
    """
    _check_head(model)
    with inspection_mode(model):
        return next(translate(model, tokenizer, [source]))


def compute_attention(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str | None, kind: str | None
) -> Attention:
    """Return the attention weights of one kind, for all layers and heads.

    If `kind` is None, return cross-attention if the model has it, and self-attention otherwise.

    Raises:
        ValueError: The model has no attention of this kind, or `read` rejects the model or a text.
    """
    config = model.config
    has = {"encoder": config.encoder_layers, "decoder": config.decoder_layers, "cross": config.is_encoder_decoder}
    kinds = [name for name in has if has[name]]
    kind = kinds[-1] if kind is None else kind
    if kind not in kinds:
        allowed = " or ".join(map(repr, kinds))
        raise ValueError(f"kind is {kind!r}, but the attention of a {type(model).__name__} must be {allowed}.")
    if kind == "encoder" and config.is_encoder_decoder:  # needs no target
        if target is not None:
            raise ValueError(f"target is {target!r}, but the encoder does not use it: leave it out.")
        inputs, tokens = _encode(model, tokenizer, source)
        with inspection_mode(model), torch.no_grad():
            layers = model.get_encoder()(**inputs, output_attentions=True).attentions
        return Attention(_stacked(layers), "Self-attention", "encoder layer", tokens, tokens, "token")

    reading = read(model, tokenizer, source, target)
    if not config.is_encoder_decoder:
        tokens = reading.source_tokens
        return Attention(_stacked(reading.output.attentions), "Self-attention", "layer", tokens, tokens, "token")
    if kind == "decoder":
        weights, tokens = _stacked(reading.output.decoder_attentions), reading.decoder_tokens
        return Attention(weights, "Masked self-attention", "decoder layer", tokens, tokens, "token")
    weights, columns = _stacked(reading.output.cross_attentions), reading.source_tokens
    return Attention(weights, "Cross-attention", "decoder layer", reading.target_tokens, columns, "target token")


def select_weights(attention: Attention, layer: int, head: int | None) -> tuple[torch.Tensor, str]:
    """Return the weights, (rows, columns), of one head or the mean of all heads of a layer, and a title.

    Raises:
        ValueError: `layer` or `head` is out of range.
    """
    layers, heads = attention.weights.shape[:2]
    for name, index, count in (("layer", layer, layers), ("head", head, heads)):
        if index is not None and not -count <= index < count:
            raise ValueError(f"{name} is {index}, but must be from 0 to {count - 1}, or from -{count} to -1.")
    title = f"{attention.name} in {attention.stack} {layer % layers + 1} of {layers}"
    if head is None:
        return attention.weights[layer].mean(dim=0), f"{title}, mean over heads"
    return attention.weights[layer, head], f"{title}, head {head % heads + 1} of {heads}"


def token_labels(tokenizer: PreTrainedTokenizerBase, ids: list[int], mark_space: bool = False) -> list[str]:
    """Return a readable label for each token, with symbols for invisible characters and bytes for partial characters.

    Args:
        tokenizer: The tokenizer.
        ids: Token ids.
        mark_space: Whether to mark a leading space of a token as well.
    """
    texts = [_decoded(tokenizer, token_id) for token_id in ids]
    return [("␣" if mark_space and text.startswith(" ") and text.strip() else "") + label_of(text) for text in texts]


def label_of(text: str) -> str:
    """Return a text as a label: stripped, in one line, with invisible characters escaped, truncated."""
    text = text.strip() or ("↵" if "\n" in text else "␣")
    text = text.translate(CONTROLS)
    if not any(character.isprintable() for character in text):  # joiners and direction marks
        text = " ".join(f"U+{ord(character):04X}" for character in text)
    return text if len(text) <= MAX_LABEL_LENGTH else text[: MAX_LABEL_LENGTH - 1] + "…"


def _decoded(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    text = tokenizer.decode([token_id])
    if REPLACEMENT not in text:
        return text
    piece = str(tokenizer.convert_ids_to_tokens(token_id)).removeprefix("##")
    if all(character in BYTES for character in piece):  # byte-level
        text = bytes(BYTES[character] for character in piece).decode(errors="backslashreplace")
    return text


def _encode(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str
) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Return the model inputs and the tokens as text."""
    inputs = tokenizer(source, return_tensors="pt").to(model.device)
    ids = inputs["input_ids"][0].tolist()
    if not ids:
        raise ValueError(f"source is {source!r}, but must have at least one token.")
    return dict(inputs), token_labels(getattr(tokenizer, "source", tokenizer), ids)


def _check_head(model: PreTrainedModel) -> None:
    if not model.can_generate():
        raise ValueError(
            f"model is a {type(model).__name__}, but must have an LM head to generate: load it with its head."
        )


def _stacked(layers: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Stack the weights of each layer, (1, heads, rows, columns), into (layers, heads, rows, columns)."""
    return torch.stack([layer[0] for layer in layers]).float().cpu()
