"""Continue prompts with a decoder-only model, in batches or token by token."""

import threading
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList

from trivium.modeling.pipeline_translation import cap_length

from .engine import LENGTH_STEP, pad
from .limits import Refusal


@dataclass(frozen=True)
class Prompt:
    """A tokenized prompt and its generation settings.

    Attributes:
        input_ids: The token ids.
        options: Arguments of `generate()`, as sorted pairs.
        stop: Strings that end the continuation; they are not part of it.
        seed: Seed of sampling.
        stream: Stream that receives the text token by token; None to return only the result.
    """

    input_ids: tuple[int, ...]
    options: tuple[tuple[str, Any], ...]
    stop: tuple[str, ...] = ()
    seed: int | None = None
    stream: "Stream | None" = None

    @property
    def key(self) -> Hashable:
        """Return the settings that all jobs of a batch must have in common; streamed and seeded prompts run alone."""
        alone = self.seed is not None or self.stream is not None
        return id(self) if alone else (self.options, len(self.input_ids) // LENGTH_STEP)

    @property
    def cost(self) -> int:
        """Return the number of prompt tokens plus the maximum number of generated tokens."""
        return len(self.input_ids) + int(dict(self.options)["max_new_tokens"])


@dataclass(frozen=True)
class Stream:
    """Receiver of a streamed text.

    Attributes:
        emit: Function called with each new chunk of the text, on the engine's thread.
        gone: Event that is set when the client disconnects, which ends generation.
    """

    emit: Callable[[str], object]
    gone: threading.Event


@dataclass(frozen=True)
class Continuation:
    """A generated continuation.

    Attributes:
        text: The generated text.
        tokens: Number of generated tokens.
        reason: "stop" after EOS or a stop string, "length" at the maximum length.
    """

    text: str
    tokens: int
    reason: str


class Writer:
    """Engine that continues prompts.

    Args:
        model: A decoder-only model.
        tokenizer: Its tokenizer.
        max_tokens: Maximum number of tokens of a prompt; a model may allow fewer.
        max_new_tokens: Maximum number of generated tokens.

    Raises:
        ValueError: The model is not decoder-only.
    """

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, max_tokens: int, max_new_tokens: int
    ) -> None:
        if model.config.is_encoder_decoder or not model.can_generate():
            raise ValueError(f"model is a {type(model).__name__}, but must be a decoder-only model with a head.")
        self.model, self.tokenizer = model, tokenizer
        self.max_tokens = cap_length(model.config, max_tokens)
        self.max_new_tokens = max_new_tokens
        eos = model.generation_config.eos_token_id
        self._eos = set(eos if isinstance(eos, list) else [eos])

    def warm_up(self, count: int) -> list[Prompt]:
        """Return short jobs to warm up the model."""
        return [self.prompt(self.encode("a"), max_new_tokens=2)] * count

    def encode(self, text: str) -> list[int]:
        """Tokenize a prompt; an empty prompt becomes the BOS token."""
        return list(self.tokenizer(text)["input_ids"]) or [self.tokenizer.bos_token_id]

    def prompt(
        self, ids: list[int], max_new_tokens: int | None = None, options: dict[str, Any] | None = None, **rest: Any
    ) -> Prompt:
        """Create a job from a tokenized prompt.

        Args:
            ids: The tokens of the prompt.
            max_new_tokens: Maximum number of generated tokens; None for the maximum allowed.
            options: Further arguments of `generate()`.
            **rest: Remaining fields of the job.

        Raises:
            Refusal: The prompt has too many tokens (status 400).
        """
        if len(ids) > self.max_tokens - 1:  # leave at least one position for a generated token
            raise Refusal(400, f"The prompt has {len(ids):,} tokens, but may have at most {self.max_tokens - 1:,}.")
        most = cap_length(self.model.config, len(ids) + self.max_new_tokens) - len(ids)
        # max_length is None because transformers warns if the saved one and max_new_tokens are both set.
        length = {"max_new_tokens": min(max_new_tokens or most, most), "max_length": None}
        settings = {**length, "num_beams": 1, **(options or {})}
        return Prompt(tuple(ids), tuple(sorted(settings.items())), **rest)

    @torch.inference_mode()
    def run(self, prompts: Sequence[Prompt]) -> list[Continuation]:
        """Generate continuations of prompts; all jobs must have the same options."""
        if prompts[0].seed is not None:
            torch.manual_seed(prompts[0].seed)
        watcher = _Watcher(self, prompts[0])
        inputs = pad(self.tokenizer, prompts, "left")
        output = self.model.generate(
            **inputs.to(self.model.device),
            **dict(prompts[0].options),
            stopping_criteria=StoppingCriteriaList([watcher] if prompts[0].stream else []),
        )
        length = inputs["input_ids"].shape[1]
        results = [self._finish(prompt, row[length:].tolist()) for prompt, row in zip(prompts, output, strict=True)]
        watcher.send(results[0].text)
        return results

    def _finish(self, prompt: Prompt, ids: list[int]) -> Continuation:
        """Truncate a continuation after EOS and before the first stop string."""
        end = next((i + 1 for i, token_id in enumerate(ids) if token_id in self._eos), None)
        ids = ids[:end]
        text = self.decode(prompt, ids)
        starts = [start for stop in prompt.stop if (start := text.find(stop)) >= 0]
        if starts:
            text = text[: min(starts)]
        return Continuation(text, len(ids), "stop" if end or starts else "length")

    def decode(self, prompt: Prompt, ids: list[int]) -> str:
        """Return the text that the generated tokens append to the prompt."""
        # Some tokenizers drop a leading space: decode prompt and continuation together.
        before = self.tokenizer.decode(list(prompt.input_ids), skip_special_tokens=True)
        return str(self.tokenizer.decode([*prompt.input_ids, *ids], skip_special_tokens=True))[len(before) :]


class _Watcher(StoppingCriteria):
    """Stream the continuation of a single prompt; stop at a stop string, or when the client disconnects."""

    def __init__(self, writer: Writer, prompt: Prompt) -> None:
        self.writer, self.prompt, self.sent = writer, prompt, 0
        # Hold back the end of the text as long as it may be the start of a stop string.
        self.held = max((len(stop) - 1 for stop in prompt.stop), default=0)

    def __call__(self, input_ids: torch.Tensor, scores: Any, **kwargs: Any) -> torch.Tensor:
        text = self.writer.decode(self.prompt, input_ids[0, len(self.prompt.input_ids) :].tolist())
        is_stopped = any(stop in text for stop in self.prompt.stop)
        if not is_stopped:
            # An incomplete character decodes to U+FFFD: hold it back until its last token.
            self.send(text[: len(text) - self.held].rstrip("\ufffd"))
        gone = self.prompt.stream is not None and self.prompt.stream.gone.is_set()
        return torch.full((len(input_ids),), is_stopped or gone, device=input_ids.device)

    def send(self, text: str) -> None:
        """Emit the part of the text that has not been emitted yet."""
        if self.prompt.stream is not None and len(text) > self.sent:
            self.prompt.stream.emit(text[self.sent :])
            self.sent = len(text)
