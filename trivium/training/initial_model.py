"""Load or build the model and the tokenizer that a training run starts from."""

from pathlib import Path
from typing import Any

from datasets import Dataset, IterableDataset
from transformers import AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from trivium.configuration import TriviumConfig
from trivium.data.directions import missing_tags, tags_of, untagged_texts
from trivium.recipe import Recipe, explain_missing_model
from trivium.tokenization import train_tokenizer
from trivium.training.distributed import broadcast_from_main
from trivium.training.prepared import Prepared


def load_or_build(
    recipe: Recipe,
    rows: Dataset | IterableDataset,
    checkpoint: Path | None = None,
    prepared: Prepared | None = None,
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load the model and tokenizer from `init_from`, or build a new model and train a tokenizer on `rows`.

    When resuming from a `checkpoint`, the tokenizer is loaded from it instead of being trained again. With `prepared`
    data, the tokenizer and the labels are loaded from their folder, because encoded rows do not contain them.
    """
    task = recipe.kind
    labels = task.label_facts(rows, recipe.model.get("problem_type")) if prepared is None else prepared.labels
    facts = {**labels, **task.config}
    tags = [*tags_of(recipe.data), *recipe.tokenizer.special_tokens]
    if recipe.init_from:
        model = load_initial_model(recipe, facts)
        return model, load_initial_tokenizer(recipe, model, recipe.init_from, tags)
    if checkpoint and (checkpoint / "tokenizer_config.json").is_file():  # missing in FSDP's sharded checkpoints
        tokenizer = AutoTokenizer.from_pretrained(checkpoint, trust_remote_code=False)
    elif prepared is not None:
        tokenizer = AutoTokenizer.from_pretrained(prepared.tokenizer, trust_remote_code=False)
    elif recipe.distillation.teacher is not None:
        with explain_missing_model("distillation.teacher", recipe.distillation.teacher):
            tokenizer = load_tokenizer(recipe.distillation.teacher, tags, recipe)
    else:
        tokenizer = build_tokenizer(recipe, rows, tags)
    config = recipe.model_config(
        vocab_size=len(tokenizer),
        decoder_vocab_size=None if tokenizer.shared_vocabulary else tokenizer.target_vocab_size,
        pad_token_id=tokenizer.pad_token_id,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        decoder_start_token_id=tokenizer.bos_token_id,
        **facts,
    )
    tokenizer.model_max_length = config.max_position_embeddings
    return task.model_class_for(config)(config), tokenizer


def build_tokenizer(recipe: Recipe, rows: Dataset | IterableDataset, tags: list[str]) -> PreTrainedTokenizerBase:
    """Train a tokenizer on the texts of `rows` without their tags, and add the tags as special tokens."""
    task = recipe.kind
    options = {**vars(recipe.tokenizer), **task.special_tokens_for(recipe.model_config()), **_special_tokens(recipe)}
    sample = options.pop("sample")
    del options["special_tokens"]
    texts = rows if sample is None else rows.take(sample)
    targets = (target for row in texts for target in task.targets_of(row)) if task.target else None
    tokenizer = broadcast_from_main(
        lambda: train_tokenizer(
            untagged_texts((task.text_of(row) for row in texts), tags), target_texts=targets, **options
        )
    )
    tokenizer.add_tokens(tags, special_tokens=True)
    return tokenizer


def _special_tokens(recipe: Recipe) -> dict[str, bool]:
    """Return whether the tokenizer adds BOS and EOS tokens, where the recipe sets it."""
    values = {name: getattr(recipe.tokenizer, name) for name in ("add_bos_token", "add_eos_token")}
    return {name: value for name, value in values.items() if value is not None}


def load_initial_tokenizer(
    recipe: Recipe, model: PreTrainedModel, folder: str, tags: list[str]
) -> PreTrainedTokenizerBase:
    """Load the tokenizer of the initial model, with the special tokens of the recipe, or else of its task.

    Raises:
        ValueError: The tokenizer lacks a tag of the recipe.
    """
    tokenizer = load_tokenizer(folder, tags, recipe)
    # Encode an empty text instead of reading the attributes `add_bos_token` and `add_eos_token`: if transformers' own
    # class has saved the tokenizer, they do not say which special tokens it adds.
    special_ids = tokenizer("")["input_ids"]
    adds_eos = tokenizer.eos_token_id in special_ids
    overrides, defaults = _special_tokens(recipe), recipe.kind.special_tokens_for(model.config)
    if not overrides and adds_eos and not defaults["add_eos_token"]:  # as with a translation model's tokenizer
        overrides = defaults
    if overrides:
        options = {"add_bos_token": tokenizer.bos_token_id in special_ids, "add_eos_token": adds_eos, **overrides}
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, **options)
    if not model.config.is_encoder_decoder and not getattr(tokenizer, "shared_vocabulary", True):
        tokenizer = tokenizer.target if model.config.decoder_layers else tokenizer.source
    return tokenizer


def load_tokenizer(model: str, tags: list[str], recipe: Recipe) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a saved model.

    Raises:
        ValueError: The tokenizer lacks a tag of the recipe.
    """
    tokenizer = AutoTokenizer.from_pretrained(model, trust_remote_code=False)
    if missing := missing_tags(tags, tokenizer):
        raise ValueError(
            f"data.directions is {recipe.data.directions} and tokenizer.special_tokens is "
            f"{recipe.tokenizer.special_tokens}, but the tokenizer of {model} does not have {', '.join(missing)}. "
            "Start from a model that was trained with these tokens."
        )
    return tokenizer


def load_initial_model(recipe: Recipe, facts: dict[str, Any]) -> PreTrainedModel:
    """Load the model from `init_from`; a head that does not fit the task is newly initialized.

    Raises:
        ValueError: Parameters outside the head are missing, unexpected or of another shape.
    """
    assert recipe.init_from is not None
    config = {**facts, **recipe.config_fields}
    with explain_missing_model("init_from", recipe.init_from):
        model_class = recipe.kind.model_class_for(TriviumConfig.from_pretrained(recipe.init_from, **config))
        model, report = model_class.from_pretrained(
            recipe.init_from, output_loading_info=True, ignore_mismatched_sizes=True, **config
        )
    names = [*report["missing_keys"], *report["unexpected_keys"], *(name for name, *_ in report["mismatched_keys"])]
    if mismatches := sorted(name for name in names if name.startswith(f"{model.base_model_prefix}.")):
        raise ValueError(
            f"init_from is {recipe.init_from}, whose parameters do not match model={recipe.config_fields}: "
            f"{len(mismatches)} differ, such as {mismatches[0]}. With init_from, set only model fields that do not "
            "change the shape of the parameters, such as dropout, or drop all with model=null."
        )
    return model
