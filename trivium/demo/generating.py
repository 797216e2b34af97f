"""Generate text token by token, with the probabilities, alternatives and attention of each token."""

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from queue import Queue
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from .introspect import Inputs, Piece

ALTERNATIVES = 6  # number of alternatives per step
EXTRA_LENGTH = 50  # maximum output length in the paper: input length + 50 (section 6.1)

Named = tuple[str, float]  # name of a token, label or beam, and its probability or score


@dataclass(frozen=True)
class Step:
    """A generated token.

    Attributes:
        text: Text that the token adds; empty for a special token or an incomplete character.
        name: Display name of the token.
        probability: Probability under the model, before temperature, top-p and other warpers.
        alternatives: The most probable tokens and their probabilities, best first; if the chosen token is not among
            the best, it comes last.
        attention: Attention weights of the last layer, averaged over heads: one for each input piece and, for a
            decoder-only model, for each previously generated token.
        is_special: Whether it is a special token, such as EOS.
    """

    text: str
    name: str
    probability: float
    alternatives: list[Named]
    attention: list[float]
    is_special: bool


@dataclass(frozen=True)
class Generation:
    """State of a generation.

    Attributes:
        read: Pieces of the input text. steps: The generated tokens; with beam search, the tokens of the best beam.
        beams: The finished beams and their scores, best first; with a length penalty of 1 a score is the mean of the
            tokens' log-probabilities.
        is_complete: Whether generation has finished.
    """

    read: list[Piece]
    steps: list[Step] = field(default_factory=list)
    beams: list[Named] = field(default_factory=list)
    is_complete: bool = False

    @property
    def text(self) -> str:
        """Return the generated text."""
        return "".join(step.text for step in self.steps)


def generate_steps(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    inputs: Inputs,
    max_new_tokens: int,
    **generation: Any,
) -> Iterator[Generation]:
    """Translate or continue a text, and yield the state after each token.

    Beam search has no stable prefix before its end, so it yields a single result, the finished beams.

    Args:
        model: An encoder-decoder or decoder-only model with its head and eager attention.
        tokenizer: Its tokenizer.
        inputs: The input text.
        max_new_tokens: Maximum number of generated tokens.
        **generation: Arguments of `generate()`, such as `num_beams`, or `do_sample` and `temperature`.
    """
    options = {**generation, "max_new_tokens": max_new_tokens, "max_length": None}
    state, builder = Generation(inputs.pieces), _StepBuilder(model, tokenizer, inputs)
    if generation.get("num_beams", 1) > 1:
        yield _beam_search(model, tokenizer, inputs, builder, **options)
        return
    for token_id, logits, attention in _stream_tokens(model, inputs, **options):
        state = replace(state, steps=[*state.steps, builder.step(token_id, logits, attention)])
        yield state
    yield replace(state, is_complete=True)


class _StepBuilder:
    """Convert token ids to steps, decoding them incrementally."""

    def __init__(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Inputs) -> None:
        self.tokenizer = getattr(tokenizer, "target", tokenizer)  # for two vocabularies
        self.special = set(self.tokenizer.all_special_ids)
        self.counts = [piece.tokens for piece in inputs.pieces]
        # Decode a continuation together with its prompt: some tokenizers drop a leading space on decode.
        self.ids = [] if model.config.is_encoder_decoder else list(inputs.input_ids)
        self.done = self._decode(self.ids)

    def step(self, token_id: int, logits: torch.Tensor, attention: torch.Tensor) -> Step:
        """Return the next step from a token id, logits (vocabulary,) and attention weights (positions,)."""
        self.ids.append(token_id)
        text = self._decode(self.ids)
        # An incomplete multi-token character decodes to U+FFFD: hold it back until its last token.
        new = (text if token_id in self.special else text.rstrip("\ufffd"))[len(self.done) :]
        self.done += new
        probabilities = logits.float().softmax(dim=-1)
        best = probabilities.topk(min(ALTERNATIVES, len(probabilities))).indices.tolist()
        candidates = best if token_id in best else [*best[:-1], token_id]
        weights = attention.float().cpu()
        read = weights[: sum(self.counts)].split(self.counts)
        return Step(
            text=new,
            name=self._name(token_id),
            probability=probabilities[token_id].item(),
            alternatives=[(self._name(candidate), probabilities[candidate].item()) for candidate in candidates],
            attention=[*(part.sum().item() for part in read), *weights[sum(self.counts) :].tolist()],
            is_special=token_id in self.special,
        )

    def _decode(self, ids: Sequence[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=True)) if ids else ""

    def _name(self, token_id: int) -> str:
        text = str(self.tokenizer.decode([token_id]))
        return text if text and "\ufffd" not in text else str(self.tokenizer.convert_ids_to_tokens(token_id))


def _mean_attention(model: PreTrainedModel, output: Any) -> torch.Tensor:
    """Return the last layer's attention weights averaged over heads, (rows, columns), for a batch of one."""
    layers = output.cross_attentions if model.config.is_encoder_decoder else output.attentions
    mean: torch.Tensor = layers[-1][0].mean(dim=0)
    return mean


class _TokenQueue(StoppingCriteria):
    """Stopping criterion that queues each token when it is chosen, and stops generation on request."""

    def __init__(self) -> None:
        self.queue: Queue[Any] = Queue()
        self.must_stop = threading.Event()
        self.outputs: Any = None  # logits and attention of the last forward pass

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        self.queue.put((input_ids[0, -1].item(), *self.outputs))
        return torch.full((len(input_ids),), self.must_stop.is_set(), device=input_ids.device)


def _stream_tokens(
    model: PreTrainedModel, inputs: Inputs, **options: Any
) -> Iterator[tuple[int, torch.Tensor, torch.Tensor]]:
    """Run `generate()` in a thread, and yield each token with the logits and attention that produced it."""
    criterion = _TokenQueue()

    def capture(module: Any, arguments: Any, output: Any) -> None:
        criterion.outputs = output.logits[0, -1], _mean_attention(model, output)[-1]

    def generate() -> None:
        handle = model.register_forward_hook(capture)
        try:
            model.generate(
                **inputs.tensors(model),
                **options,
                output_attentions=True,
                return_dict_in_generate=True,
                stopping_criteria=StoppingCriteriaList([criterion]),
            )
            criterion.queue.put(None)
        except Exception as error:
            criterion.queue.put(error)  # raised again by the consumer
        finally:
            handle.remove()

    thread = threading.Thread(target=generate, daemon=True)
    thread.start()
    try:
        while (item := criterion.queue.get()) is not None:
            if isinstance(item, Exception):
                raise item
            yield item
    finally:  # also runs if the consumer closes the generator early
        criterion.must_stop.set()
        thread.join()


@torch.inference_mode()
def _beam_search(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, inputs: Inputs, builder: _StepBuilder, **options: Any
) -> Generation:
    """Run beam search, then a forward pass on the best beam for its probabilities and attention."""
    output = model.generate(
        **inputs.tensors(model),
        **options,
        num_return_sequences=options["num_beams"],
        return_dict_in_generate=True,
        output_scores=True,
    )
    has_encoder = model.config.is_encoder_decoder
    start = 1 if has_encoder else len(inputs.input_ids)  # of the generated tokens
    texts = tokenizer.batch_decode(output.sequences[:, start:], skip_special_tokens=True)
    ids = output.sequences[0].tolist()
    end = next((i + 1 for i in range(start, len(ids)) if ids[i] in _eos_token_ids(model)), len(ids))  # without padding
    prefix = output.sequences[:1, : end - 1]
    arguments = {**inputs.tensors(model), "decoder_input_ids": prefix} if has_encoder else {"input_ids": prefix}
    replay = model(**arguments, output_attentions=True, use_cache=False)
    logits, attention = replay.logits[0], _mean_attention(model, replay)
    steps = [
        builder.step(ids[i], logits[i - 1], attention[i - 1, : None if has_encoder else i]) for i in range(start, end)
    ]
    beams = list(zip(texts, output.sequences_scores.tolist(), strict=True))
    return Generation(inputs.pieces, steps, beams, is_complete=True)


def _eos_token_ids(model: PreTrainedModel) -> list[int]:
    """Return the EOS token ids of the generation config as a list."""
    eos_token_id = model.generation_config.eos_token_id
    return eos_token_id if isinstance(eos_token_id, list) else [eos_token_id]
