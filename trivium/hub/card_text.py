"""Text of the model card: the variables of the template `hub_card.md`, in Markdown."""

import html
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any

from transformers import Seq2SeqTrainingArguments, TrainerState

from trivium.configuration import TriviumConfig
from trivium.data.arguments import DataArguments
from trivium.data.columns import PAIR
from trivium.data.directions import split_directions, tags_of
from trivium.hub.card_facts import CardFacts, hub_model
from trivium.hub.public import data_name, public_recipe, without_home
from trivium.hub.usage import auto_code, command_code, pipeline_code
from trivium.recipe import Recipe
from trivium.recipe_sections import CardArguments

MAX_CURVE_ROWS = 10
MAX_LISTED_LABELS = 30
NEW_TOKENS = 100  # maximum length in code examples, if the generation config sets none

# Name on the Hub, display name and score format of each metric.
METRICS = {
    "sacrebleu": ("sacrebleu", "sacreBLEU", "{:.2f}"),
    "bleu_lower": ("sacrebleu", "sacreBLEU, lowercased", "{:.2f}"),
    "chrf": ("chrf", "chrF", "{:.2f}"),
    "ter": ("ter", "TER (lower is better)", "{:.2f}"),
    "exact_match": ("exact_match", "exact match", "{:.1%}"),
    "rouge1": ("rouge", "ROUGE-1", "{:.2f}"),
    "rouge2": ("rouge", "ROUGE-2", "{:.2f}"),
    "rougeL": ("rouge", "ROUGE-L", "{:.2f}"),
    "squad_f1": ("squad", "F1 of words (SQuAD)", "{:.2f}"),
    "squad_exact_match": ("squad", "exact match (SQuAD)", "{:.2f}"),
    "accuracy": ("accuracy", "accuracy", "{:.1%}"),
    "f1": ("f1", "F1 (macro)", "{:.3f}"),
    "seqeval": ("seqeval", "F1 of entities (seqeval)", "{:.3f}"),
    "mse": ("mse", "mean squared error", "{:.4g}"),
    "r2": ("r_squared", "R²", "{:.3f}"),
    "perplexity": ("perplexity", "perplexity per token (lower is better)", "{:.2f}"),
}

PAPER = "[*Attention Is All You Need*](https://arxiv.org/abs/1706.03762) (Vaswani et al. 2017)"
ARCHITECTURES = {
    "encoder-decoder": f"An encoder-decoder Transformer, the architecture of {PAPER}.",
    "encoder-only": f"An encoder-only (bidirectional) Transformer: the encoder of {PAPER}, as in "
    "[BERT](https://arxiv.org/abs/1810.04805) (Devlin et al. 2019).",
    "decoder-only": f"A decoder-only (autoregressive) Transformer: the decoder of {PAPER} without cross-attention, as "
    "in GPT (Radford et al. 2018) and [LLaMA](https://arxiv.org/abs/2302.13971) (Touvron et al. 2023).",
}
LIMITS = {
    "text": "The model can produce wrong output with high confidence. It knows only its training data, reproduces "
    "biases in that data, and performs worse on text that differs from it. Check its output before relying on it.",
    "labels": "The model can make wrong predictions with high confidence. It knows only its training data, reproduces "
    "biases in that data, and performs worse on text that differs from it. Do not use it as the sole basis for "
    "decisions about people.",
}


def template_variables(facts: CardFacts, name: str) -> dict[str, Any]:
    """Return the variables of the template, with None for missing facts."""
    card, config, usage = facts.card, facts.config, facts.usage
    length = None
    if config.decoder_layers and not (
        facts.generation and (facts.generation.max_length or facts.generation.max_new_tokens)
    ):
        length = NEW_TOKENS
    return {
        "title": _line(facts.title(name)),
        "summary": card.summary,
        "description": _description(facts),
        **_shape(config),
        "parameters": f"{facts.parameters:,}",
        "pipeline_code": pipeline_code(usage, config, name, facts.example, length) if usage.has_pipeline else None,
        "auto_code": auto_code(usage, config, name, facts.example, length),
        "command_code": command_code(usage, name, facts.example),
        "results": _results(facts.evaluations),
        "evaluation_details": _evaluation_details(facts.evaluations),
        "attention_text": _code(facts.example),
        "training": _table(_training(facts)),
        "learning_curve": _learning_curve(facts.state),
        "recipe": _recipe_block(facts.recipe) if facts.recipe else None,
        "resources": _table(_resources(facts.run, facts.work)),
        "intended_use": card.intended_use,
        "limitations": card.limitations,
        "general_limitations": LIMITS["labels" if usage.task.endswith("-classification") else "text"],
    }


def _description(facts: CardFacts) -> str:
    """Describe the architecture and the task."""
    purpose = f"Its task is {_code(facts.usage.task)}"
    if facts.recipe and facts.recipe.kind.columns == PAIR:
        purpose += f", {_directions(facts.recipe.data)}"
    labels = [_code(label) for label in facts.config.id2label.values()]
    if facts.usage.task in ("text-classification", "token-classification") and len(labels) > 1:
        names = f": {', '.join(labels)}" if len(labels) <= MAX_LISTED_LABELS else ""
        purpose += f". It distinguishes {len(labels)} labels{names}"
    return f"{ARCHITECTURES[facts.architecture]} {purpose}."


def _shape(config: TriviumConfig) -> dict[str, str]:
    stacks = {"encoder": config.encoder_layers, "decoder": config.decoder_layers}
    heads, key_value_heads = config.num_attention_heads, config.num_key_value_heads
    vocabulary = f"{config.vocab_size:,} tokens"
    if config.decoder_vocab_size:
        vocabulary = f"{config.vocab_size:,} source tokens, {config.decoder_vocab_size:,} target tokens"
    limit = f"{config.max_position_embeddings:,} tokens"
    gate = "gated, " if config.gated_ffn else ""
    window = f", sliding window of {config.sliding_window:,} tokens" if config.sliding_window else ""
    qk_norm = ", normalized queries and keys" if config.qk_norm else ""
    norm = {"layernorm": "LayerNorm", "rmsnorm": "RMSNorm"}[config.norm_type]
    return {
        "layers": " + ".join(f"{count} {stack}" for stack, count in stacks.items() if count),
        "width": f"{config.d_model:,}",
        "heads": f"{heads} heads"
        + (f", {key_value_heads} key-value heads" if key_value_heads != heads else "")
        + window
        + qk_norm,
        "feed_forward": f"{gate}width {config.ffn_dim:,}, {config.activation_function}",
        "positions": {
            "sinusoidal": f"sinusoidal, designed for up to {limit}",
            "rotary": f"rotary, designed for up to {limit}",
            "learned": f"learned, at most {limit}",
        }[config.position_embedding_type],
        "normalization": f"{norm} {'after' if config.norm_position == 'post' else 'before'} each sub-layer",
        "vocabulary": vocabulary,
    }


def _results(evaluations: Mapping[str, dict[str, Any]]) -> str:
    return _table(
        (METRICS[metric][1], METRICS[metric][2].format(result["score"]), split, _code(result.get("signature", "")))
        for split, evaluation in evaluations.items()
        for metric, result in evaluation["scores"].items()
    )


def _evaluation_details(evaluations: Mapping[str, dict[str, Any]]) -> str:
    lines = []
    for split, evaluation in evaluations.items():
        options = ", ".join(_code(f"{name}={value}") for name, value in evaluation["generation"].items())
        decoding = f", generated with {options}" if options else ""
        lines.append(
            f"- {split}: {_count(evaluation['rows'], 'row')} of {_code(evaluation['data'])}{decoding}; "
            f"measured on {evaluation['date']} with {_versions(evaluation['versions'])}"
        )
    return "\n".join(lines)


def _directions(data: DataArguments) -> str:
    """Describe the translation directions and, if there are several, how to select one."""
    directions = ", ".join(f"from {_code(part.source)} to {_code(part.target)}" for part in split_directions(data))
    tags = ", ".join(map(_code, tags_of(data)))
    return f"{directions}, selected by {tags} at the start of a text" if tags else directions


def _training(facts: CardFacts) -> list[tuple[str, str]]:
    """Describe the training: first its recipe, then its extent."""
    rows = _recipe_rows(facts.recipe, facts.config, facts.run) if facts.recipe else []
    if state := facts.state:
        rows.append(("steps", f"{state.global_step:,} ({state.epoch or 0:.1f} epochs)"))
    if (work := facts.work) and work["padded"]:
        padding = 1 - work["tokens"] / work["padded"]
        rows.append(("tokens", f"{work['tokens']:,}, not counting padding ({padding:.1%} of all positions)"))
    if (seed := facts.run.get("seed")) is not None:
        rows.append(("seed", str(seed)))
    return rows


def _recipe_rows(recipe: Recipe, config: TriviumConfig, run: Mapping[str, Any]) -> list[tuple[str, str]]:
    settings: dict[str, Any] = {field.name: field.default for field in fields(Seq2SeqTrainingArguments)}
    settings |= {name: value for name, value in recipe.training.items() if value is not None}
    rows = [("task", recipe.task), ("data", _training_data(recipe, run))]
    if recipe.init_from:
        model = hub_model(recipe)
        link = f"[{model}](https://huggingface.co/{model})" if model else _code(without_home(recipe.init_from))
        rows.append(("initialized from", link))
    if teacher := recipe.distillation.teacher:
        weight, temperature = recipe.distillation.weight, recipe.distillation.temperature
        text = f"{_code(without_home(teacher))}, with weight {weight} and temperature {temperature}"
        rows.append(("distilled from", text))
    return [
        *rows,
        ("batch", _batch(recipe, settings, run)),
        ("optimizer", _optimizer(recipe, settings)),
        (
            "learning rate",
            f"{settings['learning_rate']}, schedule {_code(settings['lr_scheduler_type'])}, "
            f"{settings['warmup_steps']:,} warm-up steps",
        ),
        ("regularization", _regularization(recipe, config)),
    ]


def _training_data(recipe: Recipe, run: Mapping[str, Any]) -> str:
    parts = [_code(data_name(recipe.data, "train"))]
    if recipe.kind.columns == PAIR:
        parts[0] += f", {_directions(recipe.data)}"
    if examples := run.get("examples"):
        parts.append(f"{examples:,} examples")
    if fingerprint := run.get("data"):
        parts.append(f"fingerprint {_code(fingerprint[:17])}")
    return "; ".join(parts)


def _batch(recipe: Recipe, settings: Mapping[str, Any], run: Mapping[str, Any]) -> str:
    share = _count(settings["per_device_train_batch_size"], "row")
    if recipe.inputs.max_tokens is not None:
        share = f"rows of similar length, up to {_count(recipe.inputs.max_tokens, 'token')},"
    parts = [f"{share} per device"]
    if settings["gradient_accumulation_steps"] != 1:
        parts.append(f"{settings['gradient_accumulation_steps']} gradient accumulation steps")
    if processes := run.get("processes"):
        parts.append(_count(processes, "process", "processes"))
    return ", ".join(parts)


def _optimizer(recipe: Recipe, settings: Mapping[str, Any]) -> str:
    text = (
        f"{_code(settings['optim'])}, β₁ {settings['adam_beta1']}, β₂ {settings['adam_beta2']}, "
        f"ε {settings['adam_epsilon']}, weight decay {settings['weight_decay']}"
    )
    if (rate := recipe.learning.muon_learning_rate) is not None:
        text = f"Muon for the matrices inside the layers, learning rate {rate}; others: {text}"
    return text


def _regularization(recipe: Recipe, config: TriviumConfig) -> str:
    parts = [f"dropout {config.dropout}", f"label smoothing {config.label_smoothing}"]
    if weight := recipe.learning.r_drop:
        parts.append(f"R-Drop {weight}")
    return ", ".join(parts)


def _learning_curve(state: TrainerState | None) -> str:
    """Return table rows of validation losses, subsampled, each with the last logged training loss.

    A step that was evaluated more than once, because the run was resumed or extended, has one row.
    """
    by_step, loss = {}, ""
    for entry in state.log_history if state else []:
        if "loss" in entry:
            loss = f"{entry['loss']:.3f}"
        if "eval_loss" in entry:
            by_step[entry["step"]] = (f"{entry['step']:,}", loss, f"{entry['eval_loss']:.3f}")
    rows = list(by_step.values())
    every = math.ceil(len(rows) / MAX_CURVE_ROWS) or 1
    return _table(rows[::-1][::every][::-1])  # keep the last row


def _recipe_block(recipe: Recipe) -> str:
    text = public_recipe(replace(recipe, card=CardArguments()))  # the `card:` section is rendered as text instead
    fence = "`" * max(3, *(len(run) + 1 for run in ["", *re.findall("`+", text)]))
    return f"{fence}yaml\n{text.rstrip()}\n{fence}"


def _resources(run: Mapping[str, Any], work: Mapping[str, Any]) -> list[tuple[str, str]]:
    rows = []
    if seconds := run.get("seconds"):
        rows.append(("training time (h:mm:ss)", str(timedelta(seconds=round(seconds)))))
    if hardware := run.get("hardware"):
        rows.append(("hardware", _line(hardware)))
    if work and work["seconds"]:
        speed, flops = work["tokens"] / work["seconds"], work["flops"] / work["seconds"]
        rows.append(("throughput", f"{speed:,.0f} tokens/s, {flops / 1e12:.3g} TFLOP/s"))
    if versions := run.get("versions"):
        rows.append(("versions", _versions(versions)))
    return rows


def _versions(versions: Mapping[str, str]) -> str:
    return ", ".join(_line(f"{name} {version}") for name, version in versions.items())


def _table(rows: Iterable[tuple[str, ...]]) -> str:
    """Format rows of a Markdown table, one per line."""
    cells = ([" ".join(cell.split()).replace("|", r"\|") for cell in row] for row in rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)


def _count(number: int, name: str, plural: str | None = None) -> str:
    return f"{number:,} {name if number == 1 else plural or name + 's'}"


def _line(text: str) -> str:
    """Return the text on one line, with HTML escaped."""
    return html.escape(" ".join(text.split()), quote=False)


def _code(text: str) -> str:
    """Format a name or a number as Markdown inline code."""
    return f"`{' '.join(text.split()).replace('`', chr(39))}`" if text.strip() else ""
