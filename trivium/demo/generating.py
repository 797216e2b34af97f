"""What a model writes, token by token: what it chose, what else it could have said, and where it looked."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import Queue
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from .introspect import Inputs, Piece

ALTERNATIVES = 6  # shown at each step
EXTRA_LENGTH = 50  # the paper's longest translation: the text's length + 50 (section 6.1)

Named = tuple[str, float]  # a token, or a label, and its probability


@dataclass(frozen=True)
class Step:
    """One token that the model wrote.

    Attributes:
        text: What it adds to the text: nothing for a special token, or in the middle of a character.
        name: What the token is called among others.
        probability: What the model itself gave it, before temperature, top-p and the like.
        alternatives: The likeliest tokens and their probabilities, best first; the token that was chosen is the last
            of them, if it is none of the best.
        attention: Where the model looked when it wrote it: a weight for each piece of what it read and, of a
            decoder-only model, for each token that it wrote before; from the last layer, the mean of its heads.
        is_special: Whether it stands for no text, like the one that ends a text.
    """

    text: str
    name: str
    probability: float
    alternatives: list[Named]
    attention: list[float]
    is_special: bool


@dataclass(frozen=True)
class Writing:
    """What was written so far.

    Attributes:
        read: The text that the model translates or continues.
        steps: The tokens that it wrote; of several beams, those of the best.
        beams: The beams that were found, best first, each with its score: the mean of the tokens' log probabilities,
            unless the model's length penalty is not 1.
        is_complete: Whether there is no more to come.
    """

    read: list[Piece]
    steps: list[Step] = field(default_factory=list)
    beams: list[Named] = field(default_factory=list)
    is_complete: bool = False

    @property
    def text(self) -> str:
        """The tokens as a text."""
        return "".join(step.text for step in self.steps)


def write(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    max_new_tokens: int,
    **generation: Any,
) -> Iterator[Writing]:
    """Translate or continue a text, and give all that is written so far after every token.

    With beams nothing is certain before the end: there is one result, the finished beams.

    Args:
        model: An encoder-decoder or decoder-only model with its head, and eager attention.
        tokenizer: Its tokenizer.
        inputs: The text.
        max_new_tokens: So many tokens at most.
        **generation: What `generate()` takes, as `num_beams`, or `do_sample` and `temperature`.
    """
    options = {**generation, "max_new_tokens": max_new_tokens, "max_length": None}
    writing, pen = Writing(inputs.pieces), _Pen(model, tokenizer, inputs)
    if generation.get("num_beams", 1) > 1:
        yield _search(model, tokenizer, inputs, pen, **options)
        return
    for token_id, logits, attention in _watch(model, inputs, **options):
        writing = replace(writing, steps=[*writing.steps, pen.step(token_id, logits, attention)])
        yield writing
    yield replace(writing, is_complete=True)


class _Pen:
    """Makes steps of token ids, one after the other."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> None:
        self.tokenizer = getattr(tokenizer, "target", tokenizer)  # there are tokenizers with two vocabularies
        self.special = set(self.tokenizer.all_special_ids)
        self.counts = [piece.tokens for piece in inputs.pieces]
        # A continuation is decoded together with its beginning: some tokenizers drop a space where decoding begins.
        self.ids = [] if model.config.is_encoder_decoder else list(inputs.input_ids)
        self.done = self._decode(self.ids)

    def step(self, token_id: int, logits: torch.Tensor, attention: torch.Tensor) -> Step:
        """The next step, from the token, (vocabulary,) logits and (positions,) attention weights."""
        self.ids.append(token_id)
        text = self._decode(self.ids)
        # A character may take several tokens: until the last it is none yet, after the end never.
        new = (text if token_id in self.special else text.rstrip("\ufffd"))[len(self.done) :]
        self.done += new
        probabilities = logits.float().softmax(dim=-1)
        best = probabilities.topk(min(ALTERNATIVES, len(probabilities))).indices.tolist()
        named = best if token_id in best else [*best[:-1], token_id]
        weights = attention.float().cpu()
        read = weights[: sum(self.counts)].split(self.counts)
        return Step(
            text=new,
            name=self._name(token_id),
            probability=probabilities[token_id].item(),
            alternatives=[(self._name(each), probabilities[each].item()) for each in named],
            attention=[*(part.sum().item() for part in read), *weights[sum(self.counts) :].tolist()],
            is_special=token_id in self.special,
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _name(self, token_id: int) -> str:
        text = str(self.tokenizer.decode([token_id]))
        return text if text and "\ufffd" not in text else str(self.tokenizer.convert_ids_to_tokens(token_id))


def _attention_of(model: PreTrainedModel, output: Any) -> torch.Tensor:
    """(heads, rows, columns) of the only text as (rows, columns)."""
    layers = output.cross_attentions if model.config.is_encoder_decoder else output.attentions
    mean: torch.Tensor = layers[-1][0].mean(dim=0)
    return mean


class _Listener(StoppingCriteria):
    """Hears of every token as soon as it is chosen, and can call an end to it."""

    def __init__(self) -> None:
        self.heard: Queue[Any] = Queue()
        self.must_stop = threading.Event()
        self.facts: Any = None  # what the model said when it was asked for the token that is to be chosen

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.heard.put((input_ids[0, -1].item(), *self.facts))
        return torch.full((len(input_ids),), self.must_stop.is_set(), device=input_ids.device)


def _watch(model: PreTrainedModel, inputs: Inputs, **options: Any) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Let `generate()` run in a thread, and give each token with the logits and the attention that led to it."""
    listener = _Listener()

    def note(module: Any, arguments: Any, output: Any) -> None:
        listener.facts = output.logits[0, -1], _attention_of(model, output)[-1]

    def generate() -> None:
        handle = model.register_forward_hook(note)
        try:
            model.generate(
                **inputs.tensors(model),
                **options,
                output_attentions=True,
                return_dict_in_generate=True,
                stopping_criteria=StoppingCriteriaList([listener]),
            )
            listener.heard.put(None)
        except Exception as error:
            listener.heard.put(error)  # it belongs to who waits for tokens
        finally:
            handle.remove()

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    try:
        while (heard := listener.heard.get()) is not None:
            if isinstance(heard, Exception):
                raise heard
            yield heard
    finally:  # also when nobody wants to hear more
        listener.must_stop.set()
        thread.join()


@torch.inference_mode()
def _search(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Inputs, pen: _Pen, **options: Any
) -> Writing:
    """Search with beams, and read the best once more to see how the model came to it."""
    output = model.generate(
        **inputs.tensors(model),
        **options,
        num_return_sequences=options["num_beams"],
        return_dict_in_generate=True,
        output_scores=True,
    )
    has_encoder = model.config.is_encoder_decoder
    start = 1 if has_encoder else len(inputs.input_ids)  # of what it wrote
    texts = tokenizer.batch_decode(output.sequences[:, start:], skip_special_tokens=True)
    ids = output.sequences[0].tolist()
    end = next((i + 1 for i in range(start, len(ids)) if ids[i] in _ends(model)), len(ids))  # then comes padding
    read = output.sequences[:1, : end - 1]
    names = {**inputs.tensors(model), "decoder_input_ids": read} if has_encoder else {"input_ids": read}
    again = model(**names, output_attentions=True, use_cache=False)
    logits, attention = again.logits[0], _attention_of(model, again)
    steps = [
        pen.step(ids[i], logits[i - 1], attention[i - 1, : None if has_encoder else i]) for i in range(start, end)
    ]
    beams = list(zip(texts, output.sequences_scores.tolist(), strict=True))
    return Writing(inputs.pieces, steps, beams, is_complete=True)


def _ends(model: PreTrainedModel) -> list[int]:
    """The tokens that end a text."""
    ends = model.generation_config.eos_token_id
    return ends if isinstance(ends, list) else [ends]
