"""What a model does with a text: its tokens as people read them, and where each of them looks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.convert_slow_tokenizer import bytes_to_unicode
from transformers.utils import ModelOutput

from trivium.translation import translate

REPLACEMENT = "\ufffd"  # what the bytes of half a character decode to
LONGEST_LABEL = 32
BYTES = {character: byte for byte, character in bytes_to_unicode().items()}
CONTROLS = {code: f"\\x{code:02x}" for code in (*range(32), 127)} | {0x09: r"\t", 0x0A: "↵", 0x0D: r"\r"}


@dataclass(frozen=True)
class Reading:
    """A text, and what a model computed from it.

    Attributes:
        output: Of the model, with `attentions` and `hidden_states` of all its layers.
        source_ids: Of the tokens that were read.
        target_ids: Of those that an encoder-decoder writes, the decoder having read the ones before; else None.
        source_tokens: `source_ids` as text.
        target_tokens: `target_ids` as text.
        decoder_tokens: What the decoder of an encoder-decoder has read, as text: the start token, and all of
            `target_tokens` but the last.
    """

    output: ModelOutput
    source_ids: list[int]
    target_ids: list[int] | None
    source_tokens: list[str]
    target_tokens: list[str]
    decoder_tokens: list[str]


@dataclass(frozen=True)
class Attention:
    """Weights between tokens.

    Attributes:
        weights: (layers, heads, rows, columns), float32; a row for each token that looks.
        kind: "encoder", "decoder" or "cross".
        name: What it is called, such as "Cross-attention".
        stack: What its layers are called, such as "decoder layer".
        row_tokens: As text.
        column_tokens: As text.
        row_name: What the tokens of the rows are.
    """

    weights: torch.Tensor
    kind: str
    name: str
    stack: str
    row_tokens: list[str]
    column_tokens: list[str]
    row_name: str


@contextmanager
def watched(model: PreTrainedModel) -> Iterator[None]:
    """The model without dropout, and with the one implementation of attention that returns its weights."""
    implementation, is_training = model.config._attn_implementation, model.training
    model.set_attn_implementation("eager")
    model.eval()
    try:
        yield
    finally:
        model.set_attn_implementation(implementation)
        model.train(is_training)


def read(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str | None) -> Reading:
    """Let a model read a text, and an encoder-decoder write `target`, or its own translation.

    Raises:
        ValueError: `source` or `target` has no tokens; `target` is given to a model that writes none; or the model is
            an encoder-decoder without its head.
    """
    inputs, source_ids = _encode(model, tokenizer, source)
    source_tokens = token_labels(getattr(tokenizer, "source", tokenizer), source_ids)
    everything = {"output_attentions": True, "output_hidden_states": True}
    if not model.config.is_encoder_decoder:
        if target is not None:
            raise ValueError(f"target is {target!r}, but only an encoder-decoder writes one; leave it out.")
        with watched(model), torch.no_grad():
            return Reading(model(**inputs, **everything), source_ids, None, source_tokens, [], [])

    if target is None:
        target = own_translation(model, tokenizer, source)
    _check_head(model)
    with watched(model), torch.no_grad():
        labels = tokenizer(text_target=target, return_tensors="pt")["input_ids"].to(model.device).long()
        if not labels.numel():
            raise ValueError(f"target is {target!r}, but must have tokens to write.")
        # Row i reads the target up to token i - 1 and looks at the source in order to write token i.
        decoder_input_ids = model.prepare_decoder_input_ids_from_labels(labels)
        output = model(**inputs, decoder_input_ids=decoder_input_ids, **everything)
    writer = getattr(tokenizer, "target", tokenizer)
    written, read_before = (token_labels(writer, ids[0].tolist()) for ids in (labels, decoder_input_ids))
    return Reading(output, source_ids, labels[0].tolist(), source_tokens, written, read_before)


def own_translation(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> str:
    """What an encoder-decoder makes of a text by itself.

    Raises:
        ValueError: It has no head to write with.
    """
    _check_head(model)
    with watched(model):
        return next(translate(model, tokenizer, [source]))


def attend(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str, target: str | None, kind: str | None
) -> Attention:
    """The attention of all layers and heads, of one kind; None: cross-attention, of a model that has it.

    Raises:
        ValueError: The model has no attention of this kind; or what `read` raises.
    """
    config = model.config
    kinds = [name for name, layers in zip(("encoder", "decoder"), _depths(model), strict=True) if layers]
    if config.is_encoder_decoder:
        kinds.append("cross")
    kind = kinds[-1] if kind is None else kind
    if kind not in kinds:
        allowed = " or ".join(map(repr, kinds))
        raise ValueError(f"kind is {kind!r}, but the attention of a {type(model).__name__} is {allowed}.")
    if kind == "encoder" and config.is_encoder_decoder:  # which works without a decoder, so nothing need be written
        if target is not None:
            raise ValueError(f"target is {target!r}, but the encoder does not look at it; leave it out.")
        inputs, source_ids = _encode(model, tokenizer, source)
        with watched(model), torch.no_grad():
            layers = model.get_encoder()(**inputs, output_attentions=True).attentions
        tokens = token_labels(getattr(tokenizer, "source", tokenizer), source_ids)
        return Attention(_stacked(layers), kind, "Self-attention", "encoder layer", tokens, tokens, "token")

    reading = read(model, tokenizer, source, target)
    if not config.is_encoder_decoder:
        tokens = reading.source_tokens
        return Attention(_stacked(reading.output.attentions), kind, "Self-attention", "layer", tokens, tokens, "token")
    if kind == "decoder":
        weights, tokens = _stacked(reading.output.decoder_attentions), reading.decoder_tokens
        return Attention(weights, kind, "Masked self-attention", "decoder layer", tokens, tokens, "token")
    weights, columns = _stacked(reading.output.cross_attentions), reading.source_tokens
    return Attention(
        weights, kind, "Cross-attention", "decoder layer", reading.target_tokens, columns, "written token"
    )


def choose(attention: Attention, layer: int, head: int | None) -> tuple[torch.Tensor, str]:
    """The weights, (rows, columns), of one head of a layer, or the mean of all heads; and what they are, in words.

    Raises:
        ValueError: There is no such layer or head.
    """
    layers, heads = attention.weights.shape[:2]
    for name, index, count in (("layer", layer, layers), ("head", head, heads)):
        if index is not None and not -count <= index < count:
            raise ValueError(f"{name} is {index}, but must be from 0 to {count - 1}, or from -{count} to -1.")
    where = f"{attention.name} in {attention.stack} {layer % layers + 1} of {layers}"
    if head is None:
        return attention.weights[layer].mean(dim=0), f"{where}, mean of its heads"
    return attention.weights[layer, head], f"{where}, head {head % heads + 1} of {heads}"


def token_labels(tokenizer: PreTrainedTokenizerBase, ids: list[int], mark_space: bool = False) -> list[str]:
    """Each token as the text it stands for; what would be invisible gets a sign, a part of a character its bytes.

    Args:
        tokenizer: Whose tokens they are.
        ids: Of the tokens.
        mark_space: Whether the space before a word, where it is in the token, gets a sign as well.
    """
    texts = [_decoded(tokenizer, token_id) for token_id in ids]
    return [("␣" if mark_space and text.startswith(" ") and text.strip() else "") + label_of(text) for text in texts]


def label_of(text: str) -> str:
    """A text without spaces around it, in one line, of which all is visible, and not too long."""
    text = text.strip() or ("↵" if "\n" in text else "␣")
    text = text.translate(CONTROLS)
    if not any(character.isprintable() for character in text):  # a joiner, a mark of direction
        text = " ".join(f"U+{ord(character):04X}" for character in text)
    return text if len(text) <= LONGEST_LABEL else text[: LONGEST_LABEL - 1] + "…"


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
) -> tuple[dict[str, torch.Tensor], list[int]]:
    inputs = tokenizer(source, return_tensors="pt").to(model.device)
    ids = inputs["input_ids"][0].tolist()
    if not ids:
        raise ValueError(f"source is {source!r}, but must have tokens to look at.")
    return dict(inputs), ids


def _check_head(model: PreTrainedModel) -> None:
    if not model.can_generate():
        raise ValueError(f"model is a {type(model).__name__}, which writes nothing; load it with its head.")


def _depths(model: PreTrainedModel) -> tuple[int, int]:
    return model.config.encoder_layers, model.config.decoder_layers


def _stacked(layers: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """(1, heads, rows, columns) of each layer as (layers, heads, rows, columns)."""
    return torch.stack([layer[0] for layer in layers]).float().cpu()
