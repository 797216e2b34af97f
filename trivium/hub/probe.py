"""Compute the outputs of a saved model for fixed tokens, with and without the `trivium` package.

`trivium push` compares the two, so that only models that load without the package are published. This file also runs
as a script, `python -I probe.py FOLDER AUTO_CLASS RESULTS`, and therefore imports nothing from the package.
"""

import sys
from importlib.abc import MetaPathFinder
from pathlib import Path

import torch
import transformers
from safetensors.torch import save_file
from transformers import PreTrainedModel, PreTrainedTokenizerBase

TEXT = "Half past seven: it's über-easy, isn't it?"


class BlockTrivium(MetaPathFinder):
    """Import hook that blocks `trivium`, however it is installed."""

    def find_spec(self, name: str, *_: object) -> None:
        """Raise for the package and its submodules; return None otherwise, so that the next finder is tried."""
        if name.split(".")[0] == "trivium":
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


@torch.no_grad()
def compute(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, torch.Tensor]:
    """Return all output tensors for two rows of tokens, generated tokens if supported, and a tokenized text."""
    config = model.config
    length = min(6, config.max_position_embeddings // 2)
    ids = torch.arange(2 * length).reshape(2, length) * 7
    inputs = {"input_ids": ids % config.vocab_size}
    decoder_ids = ids % (getattr(config, "decoder_vocab_size", None) or config.vocab_size)
    outputs = model(**inputs, **({"decoder_input_ids": decoder_ids} if config.is_encoder_decoder else {}))
    results = {name: value.clone() for name, value in outputs.items() if torch.is_tensor(value)}
    if model.can_generate():
        # `max_length: None` overrides a saved length.
        options = {"do_sample": False, "num_beams": 1, "max_length": None, "max_new_tokens": 4}
        results["generated tokens"] = model.generate(**inputs, **options)
    encoded = tokenizer(TEXT, text_target=TEXT)
    return {
        **results,
        "tokens of a text": torch.tensor(encoded["input_ids"]),
        "tokens of a target text": torch.tensor(encoded["labels"]),
    }


def load_without_trivium(folder: Path, auto_class: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load model and tokenizer as users do: with an Auto class and the code in the folder."""
    sys.meta_path.insert(0, BlockTrivium())
    model = getattr(transformers, auto_class).from_pretrained(folder, trust_remote_code=True, dtype=torch.float32)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(folder, trust_remote_code=True)


if __name__ == "__main__":
    transformers.logging.set_verbosity_error()
    save_file(compute(*load_without_trivium(Path(sys.argv[1]), sys.argv[2])), sys.argv[3])
