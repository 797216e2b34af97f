"""Names that a run gives to its files, and names that a manifest may have."""

import re
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath

from transformers import TrainerState, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

RECIPE_FILE = "recipe.yaml"
STATE_FILE = "trainer_state.json"  # the Trainer writes it last
MODEL_FILES = (  # what a Trainer, a model and a tokenizer save beside one another
    *("config.json", "generation_config.json", "model.safetensors", "model-*-of-*.safetensors"),
    *("model.safetensors.index.json", "adapter_config.json", "adapter_model.safetensors"),
    *("tokenizer.json", "tokenizer_config.json", "target_tokenizer.json", "special_tokens_map.json"),
    *("added_tokens.json", "vocab.*", "merges.txt", "chat_template.jinja", "training_args.bin", "trainer_state.json"),
)
CHECKPOINT_FILES = (  # what it saves in a checkpoint only
    *("optimizer.pt", "optimizer.bin", "scheduler.pt", "scaler.pt", "rng_state.pth", "rng_state_*.pth"),
    *(
        "trained_weights.safetensors",
        "pytorch_model_fsdp*",
        "optimizer_*",
        "global_step*",
        "latest",
        "zero_to_fp32.py",
    ),
    "manifest.json",
)


def code_files() -> frozenset[str]:
    """Return the names of the files with the model's code, which `save_pretrained` copies beside the weights."""
    import trivium.configuration
    import trivium.modeling
    import trivium.tokenization

    packages = (trivium.configuration, trivium.modeling, trivium.tokenization)
    return frozenset(
        path.name for package in packages for folder in package.__path__ for path in Path(folder).glob("[!_]*.py")
    )


def model_files_in(folder: Path) -> list[str]:
    """Return the names of a model's and a tokenizer's files in a folder, code included."""
    names = [path.name for path in folder.glob("*") if path.is_file()]
    return [name for name in names if name.endswith(".py") or matches(name, MODEL_FILES)]


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Return whether the name of a file fits one of several patterns."""
    return any(fnmatch(name, pattern) for pattern in patterns)


def check_relative(name: str, manifest: Path) -> None:
    """Refuse a name in a manifest that is not a plain relative path inside its folder.

    Raises:
        ValueError: It is absolute, leads upwards, or is not spelled as a manifest spells it.
    """
    path = PurePosixPath(name)
    is_plain = path.parts and not path.is_absolute() and ".." not in path.parts and path.as_posix() == name
    if not is_plain or "\\" in name or ":" in name or "\0" in name:
        raise ValueError(
            f"{manifest} names {name!r}, but a manifest may only name relative paths inside its own folder. It was "
            "not written by Trivium: do not use this folder, or delete the file."
        )


def checkpoint_of(args: TrainingArguments, state: TrainerState) -> Path:
    """Return the folder of the checkpoint of a Trainer's current step."""
    assert args.output_dir is not None  # the Trainer has set it
    return Path(args.output_dir) / f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"


def checkpoints_of(run: Path) -> list[Path]:
    """Return the folders of a run's checkpoints, complete or not, ordered by step."""
    numbered = {
        int(found[1]): path
        for path in run.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
        if (found := re.fullmatch(rf"{PREFIX_CHECKPOINT_DIR}-(\d+)", path.name)) and path.is_dir()
    }
    return [numbered[step] for step in sorted(numbered)]
