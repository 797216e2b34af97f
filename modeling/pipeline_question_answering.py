"""The "question-answering" pipeline, which transformers 5 has dropped, for any encoder with a question answering head.

This file is saved to the Hub with every model for extractive question answering. It imports nothing from Trivium, so
that `QuestionAnsweringPipeline.save_pretrained` can save it with models of other families as well.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from transformers.pipelines.base import ChunkPipeline

STRIDE = 64  # number of context tokens that consecutive windows share
MAX_ANSWER_LENGTH = 30  # tokens
NO_TOKEN = 0  # position of a token outside the context

Window = dict[str, list[int]]


def encode_windows(
    tokenizer: PreTrainedTokenizerBase, question: str, context: str, max_length: int, stride: int | None = None
) -> list[Window]:
    """Encode a question together with each overlapping window of its context.

    Args:
        tokenizer: A fast tokenizer.
        question: The question.
        context: The text.
        max_length: Maximum number of tokens of a window with its question.
        stride: Number of tokens that consecutive windows share; None selects 64, but at most half of the tokens that
            the question leaves for the context.

    Returns:
        The model inputs of each window, and the position of each token in the context: `starts` and `ends`, its first
        and last character, counted from 1; 0 for tokens of the question and special tokens.

    Raises:
        ValueError: The question leaves no room for more than `stride` tokens of the context.
    """
    room = max_length - len(tokenizer(question, "")["input_ids"])
    stride = max(min(STRIDE, room // 2), 0) if stride is None else stride
    if room <= stride:
        raise ValueError(
            f"stride is {stride}, but a window of {max_length} tokens has room for only {max(room, 0)} tokens beside "
            f"the question {question[:80]!r}. Set a smaller stride or a larger maximum length, or shorten the "
            "question."
        )
    encoded = tokenizer(
        question,
        context,
        truncation="only_second",
        max_length=max_length,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    windows = []
    for i, offsets in enumerate(encoded["offset_mapping"]):
        window = {name: list(encoded[name][i]) for name in tokenizer.model_input_names if name in encoded}
        places = [
            (start + 1, end) if sequence == 1 and start < end else (NO_TOKEN, NO_TOKEN)
            for sequence, (start, end) in zip(encoded.sequence_ids(i), offsets, strict=True)
        ]
        windows.append({**window, "starts": [start for start, _ in places], "ends": [end for _, end in places]})
    return windows


def best_answers(
    windows: Sequence[Mapping[str, torch.Tensor]],
    context: str,
    top_k: int = 1,
    max_answer_len: int = MAX_ANSWER_LENGTH,
) -> list[dict[str, Any]]:
    """Return the most probable spans of a context, best first.

    Args:
        windows: For each window `start_logits`, `end_logits`, `starts` and `ends`, all (length,).
        context: The text.
        top_k: Maximum number of answers.
        max_answer_len: Maximum number of tokens of an answer.

    Returns:
        For each answer `answer`, its text; `start` and `end`, its characters in the context; and `score`, the product
        of its start and end probability, each normalized over all tokens of the context.
    """
    found: dict[tuple[int, int], float] = {}
    norm = torch.zeros(())
    for name in ("start_logits", "end_logits"):
        logits = [window[name].float()[window["starts"] > NO_TOKEN] for window in windows]
        norm = norm + torch.cat(logits).logsumexp(dim=0).cpu()
    for window in windows:
        is_context = window["starts"] > NO_TOKEN
        scores = window["start_logits"].float()[:, None] + window["end_logits"].float()[None]  # (first, last token)
        is_span = torch.ones_like(scores, dtype=torch.bool).triu().tril(max_answer_len - 1)
        scores = scores.masked_fill(~(is_span & is_context[:, None] & is_context[None]), -torch.inf).flatten()
        best = scores.topk(min(top_k, len(scores)))
        for score, index in zip(best.values.tolist(), best.indices.tolist(), strict=True):
            first, last = divmod(index, len(is_context))
            span = int(window["starts"][first]) - 1, int(window["ends"][last])
            if score > -torch.inf:
                found[span] = max(found.get(span, -torch.inf), score)
    ranked = sorted(found.items(), key=lambda item: -item[1])[:top_k]
    return [
        {"score": (torch.tensor(score) - norm).exp().item(), "start": start, "end": end, "answer": context[start:end]}
        for (start, end), score in ranked
    ]


class QuestionAnsweringPipeline(ChunkPipeline):
    """Find the answer to a question in a text, with the interface of transformers 4.

        pipe = pipeline("question-answering", model="runs/answers")
        pipe(question="Who wrote Hamlet?", context=text)  # {"score": 0.98, "start": 0, "end": 11, "answer": ...}
        pipe([{"question": ..., "context": ...}, ...], batch_size=8)  # a list of such results

    Long contexts are read in overlapping windows, and the best answer over all windows is selected. With `top_k` above
    1, the result of a question is a list, best first.

    Besides `batch_size` and the arguments of every pipeline, the constructor and the call take:
        top_k: Maximum number of answers; 1 by default.
        max_answer_len: Maximum number of tokens of an answer; 30 by default.
        max_seq_len: Maximum number of tokens of a window and its question; by default the maximum of the model.
        doc_stride: Number of tokens that consecutive windows share; by default 64, but at most half of a window.

    Raises:
        ValueError: There is no tokenizer, an input has no question or no context, or a question leaves no room for the
            context.
    """

    task_name = "question-answering"
    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any
    ) -> None:
        if tokenizer is None:
            raise ValueError("tokenizer is None, but question-answering needs the tokenizer of the model. Pass it.")
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)

    def __call__(
        self, inputs: Any = None, *, question: str | None = None, context: str | None = None, **kwargs: Any
    ) -> Any:
        """Answer a question, or a list, generator or dataset of dictionaries; see the class for arguments."""
        if inputs is None:
            inputs = {"question": question, "context": context}
        return super().__call__(inputs, **kwargs)

    def _sanitize_parameters(
        self,
        top_k: int | None = None,
        max_answer_len: int | None = None,
        max_seq_len: int | None = None,
        doc_stride: int | None = None,
        **unknown: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        if unknown:
            raise ValueError(
                f"{next(iter(unknown))} is not an argument of the question-answering pipeline. Allowed are top_k, "
                "max_answer_len, max_seq_len and doc_stride."
            )
        preprocessing = {"max_seq_len": max_seq_len, "doc_stride": doc_stride}
        postprocessing = {"top_k": top_k, "max_answer_len": max_answer_len}
        for options in (preprocessing, postprocessing):
            for name in [name for name, value in options.items() if value is None]:
                del options[name]
        return preprocessing, {}, postprocessing

    def preprocess(
        self, input_: Mapping[str, str], max_seq_len: int | None = None, doc_stride: int | None = None
    ) -> Iterator[dict[str, Any]]:
        """Encode one question as windows of shape (1, length)."""
        texts = input_ if isinstance(input_, Mapping) else {}
        question, context = texts.get("question"), texts.get("context")
        if not (isinstance(question, str) and isinstance(context, str) and question.strip() and context.strip()):
            raise ValueError(
                f"An input of the question-answering pipeline is {input_!r}, but must have a question and a context, "
                "texts that are not blank."
            )
        limit = max_seq_len or min(self.tokenizer.model_max_length, self.model.config.max_position_embeddings)
        windows = encode_windows(self.tokenizer, question, context, limit, doc_stride)
        for i, window in enumerate(windows):
            tensors = {name: torch.tensor([values]) for name, values in window.items()}
            yield {**tensors, "context": context, "is_last": i == len(windows) - 1}

    def _forward(self, input_tensors: dict[str, Any]) -> dict[str, Any]:
        """Compute start and end logits of a batch of windows."""
        kept = {name: input_tensors.pop(name) for name in ("starts", "ends", "context", "is_last")}
        outputs = self.model(**input_tensors)
        return {"start_logits": outputs.start_logits, "end_logits": outputs.end_logits, **kept}

    def postprocess(
        self, model_outputs: list[dict[str, Any]], top_k: int = 1, max_answer_len: int = MAX_ANSWER_LENGTH
    ) -> dict[str, Any] | list[dict[str, Any]]:
        """Select the answers to one question."""
        names = ("start_logits", "end_logits", "starts", "ends")
        windows = [{name: output[name][0] for name in names} for output in model_outputs]
        context = model_outputs[0]["context"]
        answers = best_answers(windows, context if isinstance(context, str) else context[0], top_k, max_answer_len)
        return answers[0] if top_k == 1 else answers
