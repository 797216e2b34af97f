"""Run the recipes that reproduce papers end to end, with tiny models and little data."""

import json
from pathlib import Path

import pytest
import torch
from matrices import slow_unless
from tiny_training import losses_of
from torch import nn
from transformers import get_scheduler
from typer.testing import CliRunner

from trivium.averaging import average, last_checkpoints
from trivium.data import numbers_corpus
from trivium.recipe import load_recipe
from trivium.training import train
from trivium_cli import app

pytestmark = pytest.mark.trains

SMALL = [
    *("tokenizer.vocab_size=400", "tokenizer.sample=40", "model.d_model=48", "model.ffn_dim=32"),
    *("training.max_steps=2", "training.save_steps=1", "training.eval_steps=2", "training.logging_steps=1"),
    *("training.warmup_steps=1", "training.use_cpu=true", "training.bf16=false", "training.report_to=none"),
    *("training.disable_tqdm=true", "training.per_device_eval_batch_size=4"),
]
PAIRS = [*SMALL, "inputs.max_tokens=200", "model.encoder_layers=1", "model.decoder_layers=1"]
FROM_FOLDER = [f"data.{name}=FOLDER/{name}" for name in ("train", "validation", "test")]
RECIPES = {
    "wmt14-base": [*PAIRS, "data.name=FOLDER", "data.config_name=null", "model.num_attention_heads=2"],
    "wmt14-big": [*PAIRS, "data.name=FOLDER", "data.config_name=null", "model.num_attention_heads=2"],
    "iwslt14": [*PAIRS, *FROM_FOLDER],
    "multi30k-tiny": [*PAIRS, *FROM_FOLDER],
    "fineweb": [
        *(*SMALL, "data.name=FOLDER", "data.config_name=null", "data.train=train[10:]", "data.validation=train[:10]"),
        *("inputs.max_length=32", "training.per_device_train_batch_size=2", "training.gradient_accumulation_steps=2"),
        *("model.decoder_layers=1", "model.num_attention_heads=3", "model.num_key_value_heads=1"),
    ],
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write sentence pairs both as a WMT dataset in the Hub's layout and as parallel text files."""
    folder = tmp_path_factory.mktemp("corpus")
    for split, count in (("train", 60), ("validation", 8), ("test", 8)):
        pairs = [(row["source"], row["target"]) for row in numbers_corpus()[split].take(count)]
        rows = [{"translation": {"en": source, "de": target}, "text": source} for source, target in pairs]
        (folder / f"{split}.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        for ending, lines in zip(("en", "de"), zip(*pairs, strict=True), strict=True):
            (folder / f"{split}.{ending}").write_text("".join(f"{line}\n" for line in lines))
    return folder


@pytest.mark.parametrize("name", slow_unless(RECIPES, ["wmt14-base", "multi30k-tiny", "fineweb"]))
def test_recipe_runs(name: str, folder: Path, tmp_path: Path) -> None:
    """Train for two steps with an evaluation; average the checkpoints, and check the signature of their score."""
    overrides = [each.replace("FOLDER", str(folder)) for each in RECIPES[name]]
    trainer = train(load_recipe(name, [*overrides, f"training.output_dir={tmp_path}/run"]))
    losses = losses_of(trainer)
    assert len(losses) == 2
    assert torch.isfinite(torch.tensor(losses)).all()
    assert any("eval_loss" in entry for entry in trainer.state.log_history)
    if trainer.model.config.is_encoder_decoder:
        average(last_checkpoints(tmp_path / "run", 2), tmp_path / "mean")
        result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "mean")])
        assert result.exit_code == 0, result.output
        assert "nrefs:1|case:" in result.output


@pytest.mark.parametrize("name", ["wmt14-base", "wmt14-big"])
def test_learning_rate_matches_the_paper(name: str) -> None:
    """Compare the schedule with equation 3; the schedule counts from step 0, which has a rate of 0."""
    recipe = load_recipe(name, ["training.bf16=false"])
    args, width = recipe.training_arguments(), recipe.model_config().d_model
    optimizer = torch.optim.Adam([nn.Parameter(torch.zeros(1))], lr=args.learning_rate)
    schedule = get_scheduler(
        args.lr_scheduler_type,
        optimizer,
        num_warmup_steps=int(args.warmup_steps),
        num_training_steps=args.max_steps,
        scheduler_specific_kwargs=args.lr_scheduler_kwargs,
    )
    rate = schedule.lr_lambdas[0]
    assert rate(0) == 0
    for step in (1, 2, 1000, 3999, 4000, 4001, 50_000, args.max_steps):
        paper = width**-0.5 * min(step**-0.5, step * 4000**-1.5)
        assert args.learning_rate * rate(step) == pytest.approx(paper, rel=1e-12)


def test_settings_match_the_paper() -> None:
    """Compare the WMT14 recipes with section 5 and Table 3 of the paper."""
    base, big = (load_recipe(name, ["training.bf16=false"]) for name in ("wmt14-base", "wmt14-big"))
    for recipe, steps, kept, dropout in ((base, 100_000, 5, 0.1), (big, 300_000, 20, 0.3)):
        args, config = recipe.training_arguments(), recipe.model_config()
        assert (args.adam_beta1, args.adam_beta2, args.adam_epsilon, args.weight_decay) == (0.9, 0.98, 1e-9, 0)
        assert (args.max_steps, args.save_total_limit, args.warmup_steps) == (steps, kept, 4000)
        assert (config.dropout, config.label_smoothing) == (dropout, 0.1)
        assert recipe.inputs.max_tokens == 25_000
        assert (recipe.generation["num_beams"], recipe.generation["length_penalty"]) == (4, 0.6)


@pytest.mark.parametrize(("length", "exponent"), [(10, 0.4), (25, 0.5), (55, 0.55)])
def test_length_penalty_of_the_paper_in_generate(length: int, exponent: float) -> None:
    """At one length, n ** exponent favors longer translations exactly as the paper's ((5 + n) / 6) ** 0.6 does."""
    longer, shorter = length * 1.001, length / 1.001
    paper = ((5 + longer) / (5 + shorter)) ** 0.6
    assert (longer / shorter) ** exponent == pytest.approx(paper, rel=1e-6)
