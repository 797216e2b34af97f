"""Test sentence-transformers: text embeddings from the encoder, and cross-encoder scores from the classifier."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from sentence_transformers import (
    CrossEncoder,
    SentenceTransformer,
    SentenceTransformerTrainer,
    SentenceTransformerTrainingArguments,
)
from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tiny import tiny_model
from transformers import PreTrainedModel

from trivium import (
    TriviumEncoderModel,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForSequenceClassification,
    TriviumTokenizer,
)


def save(model_class: type[PreTrainedModel], folder: Path, tokenizer: TriviumTokenizer, **options: int) -> Path:
    """Save a model and its tokenizer to a folder, as training does."""
    tiny_model(model_class, vocab_size=len(tokenizer), **options).float().save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def mean_of_encoded(folder: Path, tokenizer: TriviumTokenizer, texts: list[str]) -> torch.Tensor:
    """Return the expected embeddings, (texts, d_model): the mean over the tokens of each text."""
    encoder = TriviumEncoderModel.from_pretrained(folder).eval()
    with torch.no_grad():
        rows = [encoder(**tokenizer(text, return_tensors="pt")).last_hidden_state[0].mean(dim=0) for text in texts]
    return torch.stack(rows)


def embed(model: SentenceTransformer, texts: list[str], batch_size: int = 32) -> torch.Tensor:
    return model.encode(texts, batch_size=batch_size, convert_to_tensor=True, show_progress_bar=False).cpu()


@pytest.mark.parametrize("model_class", [TriviumEncoderModel, TriviumForMaskedLM])
def test_embeddings_are_mean_of_encoder_states(
    tmp_path: Path, tokenizer: TriviumTokenizer, texts: list[str], model_class: type[PreTrainedModel]
) -> None:
    folder = save(model_class, tmp_path / "encoder", tokenizer, decoder_layers=0)
    expected = mean_of_encoded(folder, tokenizer, texts)
    model = SentenceTransformer(str(folder), device="cpu")
    torch.testing.assert_close(embed(model, texts), expected)  # The batch is padded to the longest text.
    torch.testing.assert_close(embed(model, texts, batch_size=1), expected)
    assert model.max_seq_length == 64

    transformer = Transformer(str(folder))
    pooling = Pooling(transformer.get_embedding_dimension(), pooling_mode="mean")
    torch.testing.assert_close(
        embed(SentenceTransformer(modules=[transformer, pooling], device="cpu"), texts), expected
    )

    model.save_pretrained(str(tmp_path / "saved"))
    torch.testing.assert_close(embed(SentenceTransformer(str(tmp_path / "saved"), device="cpu"), texts), expected)


def test_encoder_of_translator_must_be_split_off(
    tmp_path: Path, tokenizer: TriviumTokenizer, texts: list[str]
) -> None:
    """`AutoModel` would load the whole encoder-decoder, so docs/clients.md splits off the encoder."""
    whole = save(TriviumForConditionalGeneration, tmp_path / "whole", tokenizer)
    with pytest.raises(ValueError, match="got neither"):
        SentenceTransformer(str(whole), device="cpu").encode(texts)


@pytest.mark.slow
def test_train_and_load_without_package(
    tmp_path: Path, tokenizer: TriviumTokenizer, texts: list[str], without_trivium: Callable[[str], torch.Tensor]
) -> None:
    folder = save(TriviumEncoderModel, tmp_path / "encoder", tokenizer, decoder_layers=0)
    model = SentenceTransformer(str(folder), device="cpu")
    data = Dataset.from_dict({"anchor": texts, "positive": [text.split(" ", 2)[-1] for text in texts]})
    arguments = SentenceTransformerTrainingArguments(
        str(tmp_path / "runs"), max_steps=15, learning_rate=1e-2, report_to="none", save_strategy="no",
        logging_steps=1, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    loss = MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(model=model, args=arguments, train_dataset=data, loss=loss)
    trainer.train()
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert sum(losses[-3:]) < 0.5 * sum(losses[:3])

    expected = embed(model, texts)
    assert (expected - mean_of_encoded(folder, tokenizer, texts)).abs().max() > 0.01
    model.save_pretrained(str(tmp_path / "trained"))
    result = without_trivium(
        f"""
from sentence_transformers import SentenceTransformer
model = SentenceTransformer("trained", trust_remote_code=True, device="cpu")
torch.save(model.encode({texts}, convert_to_tensor=True), "result.pt")
"""
    )
    torch.testing.assert_close(result, expected)


def test_classifier_scores_pairs(tmp_path: Path, tokenizer: TriviumTokenizer, texts: list[str]) -> None:
    folder = save(TriviumForSequenceClassification, tmp_path / "classifier", tokenizer, decoder_layers=0, num_labels=1)
    pairs = [(texts[0], texts[1]), (texts[2], texts[5]), (texts[3], texts[4])]
    classifier = TriviumForSequenceClassification.from_pretrained(folder).eval()
    with torch.no_grad():
        logits = [classifier(**tokenizer(*pair, return_tensors="pt")).logits[0, 0] for pair in pairs]
    model = CrossEncoder(str(folder), device="cpu")
    scores = model.predict(pairs, convert_to_tensor=True, show_progress_bar=False)
    torch.testing.assert_close(scores, torch.stack(logits).sigmoid())

    model.save_pretrained(str(tmp_path / "saved"))
    again = CrossEncoder(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(again.predict(pairs, convert_to_tensor=True, show_progress_bar=False), scores)


@pytest.mark.slow
def test_docs_page(
    tmp_path: Path, tokenizer: TriviumTokenizer, texts: list[str], run_page: Callable[[str], dict[str, Any]]
) -> None:
    save(TriviumForMaskedLM, tmp_path / "runs" / "trec-mlm", tokenizer, decoder_layers=0)
    whole = save(TriviumForConditionalGeneration, tmp_path / "runs" / "numbers", tokenizer)
    assert run_page("sentence-transformers")["embeddings"].shape == (2, 24)
    encoder = SentenceTransformer(str(tmp_path / "runs" / "encoder"), device="cpu")
    torch.testing.assert_close(embed(encoder, texts), mean_of_encoded(whole, tokenizer, texts))
