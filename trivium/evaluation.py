"""How good a translator is: by its translations, and by what it thinks of the reference."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from transformers import DataCollatorForSeq2Seq, PreTrainedModel, PreTrainedTokenizerBase

from trivium.metrics import load_metric
from trivium.translation import translate


def evaluate_translator(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    pairs: Iterable[Mapping[str, str]],
    metrics: list[str],
    *,
    batch_size: int = 64,
    show_progress: bool = False,
    **generation: Any,
) -> tuple[dict[str, dict[str, Any]], list[str]]:
    """Translate all sources of `pairs` and compare with their targets.

    Args:
        model: An encoder-decoder.
        tokenizer: Its tokenizer.
        pairs: Rows with the columns `source` and `target`.
        metrics: Names of `trivium.metrics.load_metric`.
        batch_size: Sentences that are translated at once.
        show_progress: Whether to show a progress bar.
        **generation: What `generate()` takes; the rest is as saved with the model.

    Returns:
        For each metric its `score` and the figures that go with it, and the translations.

    Raises:
        ValueError: A metric is unknown.
    """
    scorers = {name: load_metric(name) for name in metrics}  # before the long work: a wrong name stops here
    model.eval()
    rows = list(pairs)
    sources, references = [row["source"] for row in rows], [row["target"] for row in rows]
    translations = list(
        translate(model, tokenizer, sources, batch_size=batch_size, show_progress=show_progress, **generation)
    )
    scores = {}
    for name, scorer in scorers.items():
        if name == "perplexity":
            scores[name] = scorer.compute(**_likelihood(model, tokenizer, sources, references, batch_size))
        else:
            scores[name] = scorer.compute(predictions=translations, references=references)
    return scores, translations


@torch.inference_mode()
def _likelihood(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    sources: list[str],
    references: list[str],
    batch_size: int,
) -> dict[str, list[Any]]:
    """Sum the negative log likelihood of the references' tokens, a sum for each batch; no logits are kept."""
    collate = DataCollatorForSeq2Seq(tokenizer, model=model)
    sums, counts = [], []
    for start in range(0, len(sources), batch_size):
        part = slice(start, start + batch_size)
        encoded = tokenizer(sources[part], text_target=references[part])
        batch = collate([dict(zip(encoded, row, strict=True)) for row in zip(*encoded.values(), strict=True)])
        sums.append(model(**batch.to(model.device), num_items_in_batch=1).loss.item())
        counts.append(int((batch["labels"] != collate.label_pad_token_id).sum()))
    return {"nll": sums, "num_tokens": counts}
