"""Folders of saved models: the files that they need, and the model class that they hold."""

from collections.abc import Collection
from pathlib import Path

from transformers import AutoConfig, PreTrainedConfig, PreTrainedModel

from trivium import modeling


def check_model_files(folder: Path, with_tokenizer: bool = False) -> None:
    """Check that a folder holds a saved model, and optionally its tokenizer, without reading them.

    Raises:
        FileNotFoundError: A configuration file is missing; the message names it.
    """
    kinds = {"config.json": "saved model"}
    if with_tokenizer:
        kinds["tokenizer_config.json"] = "model with its tokenizer"
    for name, kind in kinds.items():
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} is not a {kind}: it has no {name}.")


def read_model_class(
    folder: Path, allowed: Collection[str] | None = None
) -> tuple[PreTrainedConfig, type[PreTrainedModel]]:
    """Return the configuration and the class of the Trivium model in a folder, without running its code.

    Args:
        folder: Folder of a saved model.
        allowed: Names of the classes to accept; None for all.

    Raises:
        ValueError: The model is not a Trivium model, or its class is not in `allowed`.
    """
    config = AutoConfig.from_pretrained(folder, trust_remote_code=False)
    name = (config.architectures or [""])[0]
    model_class = getattr(modeling, name, None)
    if config.model_type != "trivium" or model_class is None or (allowed is not None and name not in allowed):
        accepted = "a Trivium model" if allowed is None else f"one of {', '.join(allowed)}"
        raise ValueError(
            f"{folder} holds a model of model_type {config.model_type!r} and architectures {config.architectures}, "
            f"but must hold {accepted}."
        )
    return config, model_class
