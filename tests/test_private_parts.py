"""Check that the private library APIs that Trivium overrides, calls or sets still exist with the known signatures.

They can change in any release. A failure names the API and the code to review. Every new use must be listed here.
"""

import ast
import importlib
import inspect
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import evaluate
import pytest
import transformers
from paths import ROOT
from torch import nn
from transformers import GenerationMixin, Pipeline, PreTrainedConfig, PreTrainedModel, Trainer, core_model_loading
from transformers.tokenization_utils_tokenizers import TokenizersBackend

import trivium

FOLDERS = ("configuration", "modeling", "tokenization", "trivium", "trivium_cli")
LIBRARIES = ("accelerate.", "datasets.", "evaluate.", "torch.", "transformers.")

# Methods are mapped to their parameters, attributes to None. The names of attributes must occur in the source of the
# class or of one of its bases.
PRIVATE: dict[type | ModuleType, dict[str, str | None]] = {
    GenerationMixin: {
        "_eos_token_tensor": None,
        "_pad_token_tensor": None,
        "_beam_search": (
            "self input_ids logits_processor stopping_criteria generation_config synced_gpus **model_kwargs"
        ),
        "_prepare_cache_for_generation": (
            "self generation_config model_kwargs generation_mode batch_size max_cache_length"
        ),
        "_sample": (
            "self input_ids logits_processor stopping_criteria generation_config synced_gpus streamer **model_kwargs"
        ),
        "_validate_generation_mode": "self generation_mode generation_config generation_mode_kwargs",
    },
    PreTrainedConfig: {
        "_attn_implementation": None,
        "_auto_class": None,
    },
    PreTrainedModel: {
        "_can_compile_fullgraph": None,
        "_can_record_outputs": None,
        "_from_config": "config **kwargs",
        "_init_weights": "self module",
        "_is_hf_initialized": None,
        "_keys_to_ignore_on_load_unexpected": None,
        "_no_split_modules": None,
        "_skip_keys_device_placement": None,
        "_supports_attention_backend": None,
        "_supports_flash_attn": None,
        "_supports_flex_attn": None,
        "_supports_sdpa": None,
        "_tied_weights_keys": None,
        "_tp_plan": None,
    },
    core_model_loading: {
        "_weight_conversions": None,
    },
    nn.Module: {
        "_apply": "self fn recurse",
        "_compiled_call_impl": None,
        "_forward_hooks": None,
        "_forward_pre_hooks": None,
    },
    Pipeline: {
        "_forward": "self input_tensors **forward_parameters",
        "_load_feature_extractor": None,
        "_load_image_processor": None,
        "_load_processor": None,
        "_load_tokenizer": None,
        "_load_video_processor": None,
        "_sanitize_parameters": "self **pipeline_parameters",
    },
    TokenizersBackend: {
        "_add_bos_token": None,
        "_add_eos_token": None,
        "_auto_class": None,
        "_convert_encoding": (
            "self encoding return_token_type_ids return_attention_mask return_overflowing_tokens "
            "return_special_tokens_mask return_offsets_mapping return_length verbose"
        ),
        "_decode": "self token_ids skip_special_tokens clean_up_tokenization_spaces **kwargs",
        "_encode_plus": (
            "self text text_pair add_special_tokens padding_strategy truncation_strategy max_length stride "
            "is_split_into_words pad_to_multiple_of padding_side return_tensors return_token_type_ids "
            "return_attention_mask return_overflowing_tokens return_special_tokens_mask return_offsets_mapping "
            "return_length verbose split_special_tokens **kwargs"
        ),
        "_extra_special_tokens": None,
        "_save_pretrained": "self save_directory file_names legacy_format filename_prefix",
        "_tokenizer": None,
    },
    Trainer: {
        "_finish_current_push": "self",
        "_get_grad_norm": "self model grad_norm",
        "_get_num_items_in_batch": "self batch_samples device",
        "_get_output_dir": "self trial",
        "_get_train_sampler": "self train_dataset",
        "_init_training_state": (
            "self max_steps num_update_steps_per_epoch num_train_epochs resume_from_checkpoint trial"
        ),
        "_issue_warnings_after_load": "self load_result",
        "_load_rng_state": "self checkpoint",
        "_prepare_for_training": "self max_steps train_dataloader resume_from_checkpoint",
        "_push_from_checkpoint": "self checkpoint_folder",
        "_run_epoch": (
            "self model epoch train_dataloader steps_in_epoch num_update_steps_per_epoch trial "
            "ignore_keys_for_eval start_time resume_from_checkpoint epochs_trained "
            "steps_trained_in_current_epoch"
        ),
        "_save": "self output_dir state_dict",
        "_save_checkpoint": "self model trial",
        "_save_rng_state": "self output_dir",
        "_train_batch_size": None,
    },
    evaluate.Metric: {
        "_compute": "self predictions references **kwargs",
        "_feature_names": "self",
        "_info": "self",
    },
}
# These dictionaries, which `trivium.auto` modifies, are undocumented although their names look public.
TABLES = [
    ("transformers.pipelines", "REMOVED_TASKS"),
    ("transformers.models.auto.modeling_auto", "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES"),
    ("transformers.models.auto.modeling_auto", "MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES"),
]


def parameters(function: object) -> str:
    """Return the parameter names of a function, including the stars of `*args` and `**kwargs`."""
    stars = {inspect.Parameter.VAR_POSITIONAL: "*", inspect.Parameter.VAR_KEYWORD: "**"}
    found = inspect.signature(function).parameters.values()  # type: ignore[arg-type]
    return " ".join(stars.get(parameter.kind, "") + parameter.name for parameter in found)


def find_change(owner: type | ModuleType, name: str, expected: str | None) -> str | None:
    """Return how a private API changed and what to do, or None if it is unchanged."""
    where = owner.__name__ if inspect.ismodule(owner) else owner.__module__
    library = where.partition(".")[0]
    what = f"{library} {version(library)}", f"{owner.__name__}.{name}"
    advice = f"`git grep {name}` finds what uses it: mend that, then the list in {Path(__file__).name}."
    if expected is None:
        owners = [owner] if inspect.ismodule(owner) else [base for base in owner.__mro__ if base is not object]
        sources = [inspect.getsource(inspect.getmodule(one_owner) or one_owner) for one_owner in owners]
        is_known = any(re.search(rf"\b{name}\b", source) for source in sources)
        return None if is_known else f"{what[0]} no longer has {what[1]}. {advice}"
    if not hasattr(owner, name):
        return f"{what[0]} no longer has {what[1]}. {advice}"
    found = parameters(getattr(owner, name))
    return None if found == expected else f"{what[0]} changed {what[1]} from ({expected}) to ({found}). {advice}"


@pytest.mark.parametrize("owner", PRIVATE, ids=lambda owner: owner.__name__)
def test_private_apis_are_as_expected(owner: type | ModuleType) -> None:
    changes = [find_change(owner, name, expected) for name, expected in PRIVATE[owner].items()]
    assert not any(changes), "\n".join(filter(None, changes))


@pytest.mark.parametrize(("module", "name"), TABLES)
def test_auto_class_tables_exist(module: str, name: str) -> None:
    found = getattr(importlib.import_module(module), name, None)
    assert isinstance(found, dict), f"{transformers.__version__} of transformers has no {module}.{name}."


def test_change_is_detected() -> None:
    class Changed:
        def _save(self, folder: str) -> None: ...

    Changed.__module__ = "transformers.trainer"
    assert find_change(Changed, "_save", "self folder") is None
    assert "changed Changed._save from (self) to (self folder)." in str(find_change(Changed, "_save", "self"))
    assert "no longer has Changed._load." in str(find_change(Changed, "_load", "self"))
    assert "no longer has Trainer._not_there." in str(find_change(Trainer, "_not_there", None))


# --- No unlisted uses ------------------------------------------------------------------------------------------------


def is_private(name: str) -> bool:
    made_for_every_class = ("_abc_impl", "_backward_cls")
    return name.startswith("_") and not name.startswith("__") and name not in made_for_every_class


def overridden() -> Iterator[tuple[str, str]]:
    """Return the private names that our classes override in base classes of libraries, with their locations."""
    for module in pkgutil.walk_packages(trivium.__path__, "trivium."):
        if not module.name.endswith(("__main__", ".cli")):
            importlib.import_module(module.name)
    for name in [name for name in sys.modules if name.startswith("trivium.")]:
        for value in vars(sys.modules[name]).values():
            if inspect.isclass(value) and value.__module__ == name:
                library_bases = [base for base in value.__mro__ if base.__module__.startswith(LIBRARIES)]
                for attribute in filter(is_private, vars(value)):
                    if any(attribute in vars(base) for base in library_bases):
                        yield attribute, f"{name}.{value.__name__}"


def used() -> Iterator[tuple[str, str]]:
    """Return the private attributes that our code uses but does not define, with their locations."""
    trees = {path: ast.parse(path.read_text()) for folder in FOLDERS for path in (ROOT / folder).rglob("*.py")}
    nodes = [(path, node) for path, tree in trees.items() for node in ast.walk(tree)]
    defined = {node.name for _, node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}
    defined |= {"_replace"}  # `_replace` of a NamedTuple is public.
    attributes = [(path, node) for path, node in nodes if isinstance(node, ast.Attribute) and is_private(node.attr)]
    for _, node in attributes:
        if isinstance(node.ctx, ast.Store) and isinstance(node.value, ast.Name) and node.value.id == "self":
            defined.add(node.attr)
    for path, node in attributes:
        if node.attr not in defined:
            yield node.attr, f"{path.relative_to(ROOT)}:{node.lineno}"


def test_all_private_apis_are_listed() -> None:
    listed = {name for names in PRIVATE.values() for name in names}
    unlisted = sorted({(name, where) for name, where in [*overridden(), *used()] if name not in listed})
    assert not unlisted, f"private parts of other libraries that {Path(__file__).name} does not list: {unlisted}"
