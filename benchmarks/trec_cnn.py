"""Train the TREC baseline CNN-rand of Kim 2014 (arXiv 1408.5882) on the data split of the recipes.

Kim reports an accuracy of 91.2 % on TREC's test questions. Other splits may be harder, so the recipes can only be
compared with the baseline's accuracy on their own test questions:

    python benchmarks/trec_cnn.py --train train.tsv --validation validation.tsv
"""

import statistics
from typing import Annotated

import torch
import typer
from torch import nn
from torch.nn import functional as F

from trivium.data import DataArguments, load_data

PAD, UNKNOWN = 0, 1
EPOCHS, BATCH = 15, 50
MAX_NORM = 3.0  # maximum L2 norm of the output weights of each class


class CNN(nn.Module):
    """Random word embeddings, convolutions over 3, 4 and 5 words, max pooling, dropout and a linear classifier."""

    def __init__(self, vocab_size: int, labels: int, width: int = 300, filters: int = 100) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, width, padding_idx=PAD)
        nn.init.uniform_(self.embedding.weight[1:], -0.25, 0.25)
        self.convolutions = nn.ModuleList(nn.Conv1d(width, filters, size) for size in (3, 4, 5))
        self.dropout = nn.Dropout(0.5)
        self.projection = nn.Linear(3 * filters, labels)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Map (batch, length) ids to (batch, labels)."""
        words = self.embedding(ids).transpose(1, 2)
        features = [convolution(words).relu().amax(dim=-1) for convolution in self.convolutions]
        return self.projection(self.dropout(torch.cat(features, dim=1)))


def train_and_measure(
    train: tuple[torch.Tensor, torch.Tensor], test: tuple[torch.Tensor, torch.Tensor], vocab_size: int, seed: int
) -> float:
    """Train on `train`, and return the accuracy on `test` after the last epoch."""
    torch.manual_seed(seed)
    ids, labels = train
    model = CNN(vocab_size, int(labels.max()) + 1)
    optimizer = torch.optim.Adadelta(model.parameters(), lr=1.0, rho=0.95, eps=1e-6)
    for _ in range(EPOCHS):
        for batch in torch.randperm(len(ids)).split(BATCH):
            F.cross_entropy(model(ids[batch]), labels[batch]).backward()
            optimizer.step()
            optimizer.zero_grad()
            with torch.no_grad():
                weight = model.projection.weight
                weight.mul_((MAX_NORM / weight.norm(dim=1, keepdim=True)).clamp(max=1))
    with torch.inference_mode():
        return (model.eval()(test[0]).argmax(dim=-1) == test[1]).double().mean().item()


def encode(
    train: tuple[list[str], list[str]], test: tuple[list[str], list[str]]
) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor], int]:
    """Encode texts and labels as ids of the training words and labels; return both splits and the vocabulary size."""
    words = sorted({word for text in train[0] for word in text.split()})
    index = {word: i for i, word in enumerate(words, start=2)}
    names = sorted(set(train[1]))
    longest = max(len(text.split()) for texts, _ in (train, test) for text in texts)
    encoded = []
    for texts, labels in (train, test):
        ids = torch.full((len(texts), longest + 8), PAD)  # pad so that the widest filter covers both ends
        for row, text in zip(ids, texts, strict=True):
            word_ids = [index.get(word, UNKNOWN) for word in text.split()]
            row[4 : 4 + len(word_ids)] = torch.tensor(word_ids)
        encoded.append((ids, torch.tensor([names.index(label) for label in labels])))
    return encoded[0], encoded[1], len(words) + 2


def main(
    train: Annotated[str, typer.Option(help="Training questions, with columns `text` and `label`.")],
    validation: Annotated[str, typer.Option(help="Questions to evaluate on.")],
    seeds: Annotated[int, typer.Option(min=2, help="Number of runs.")] = 5,
) -> None:
    """Train with each seed and print the accuracies."""
    data = load_data(DataArguments(train=train, validation=validation), ("text", "label"))
    splits = [(list(data[split]["text"]), list(data[split]["label"])) for split in ("train", "validation")]
    train_tensors, validation_tensors, vocab_size = encode(*splits)
    accuracies = []
    for seed in range(1, seeds + 1):
        accuracies.append(train_and_measure(train_tensors, validation_tensors, vocab_size, seed))
        print(f"seed {seed}: {accuracies[-1]:.3f}", flush=True)
    print(f"mean {statistics.mean(accuracies):.3f}, standard deviation {statistics.stdev(accuracies):.3f}")


if __name__ == "__main__":
    typer.run(main)
