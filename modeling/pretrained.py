"""The base class of all Trivium models: initialization, loss, saving, and the features that transformers may use.

Saving imports `auto_map`, which imports every model: the one import circle, and inside a function. A folder needs the
code of all classes that its `auto_map` names, and transformers copies what this file imports.
"""

import copy
import sys
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel, initialization
from transformers.dynamic_module_utils import get_relative_import_files

from .configuration_trivium import TriviumConfig
from .loss import IGNORED, label_smoothed_cross_entropy, projected_cross_entropy
from .normalization import NORMS


class TriviumPreTrainedModel(PreTrainedModel):
    """What all Trivium models have in common: initialisation, and what transformers may do with them."""

    config: TriviumConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]  # the old name, too: hooks come before it is renamed
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialise as the authors' code (tensor2tensor) did; the paper itself does not say how.

        Projections: Glorot uniform, biases 0. Embeddings: normal with variance 1 / d_model, so that multiplied by
        sqrt(d_model) they have unit variance, and tied to the output they give logits of about unit variance.
        """
        if isinstance(module, nn.Linear):
            initialization.xavier_uniform_(module.weight)
            if module.bias is not None:
                initialization.zeros_(module.bias)
        elif isinstance(module, nn.Embedding):
            initialization.normal_(module.weight, std=self.config.d_model**-0.5)
        elif isinstance(module, tuple(NORMS.values())):
            initialization.ones_(module.weight)
            if getattr(module, "bias", None) is not None:
                initialization.zeros_(module.bias)

    @property
    def label_smoothing(self) -> float:
        """What the loss is smoothed by (section 5.4): nothing in evaluation, so that exp(loss) is the perplexity."""
        return self.config.label_smoothing if self.training else 0.0

    def _can_skip_padding(
        self,
        labels: torch.Tensor | None,
        mask: torch.Tensor | None,
        skip_logits: bool,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> bool:
        """Whether nothing computed for padding would be seen: no logits, no hidden states, and no label stands there.

        In a language model with padding on the left one does: the first token's, which the padding before it predicts.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if labels is None or not skip_logits or output_hidden_states or torch.compiler.is_compiling():
            return False
        return mask is None or mask.shape != labels.shape or not ((labels != IGNORED) & (mask == 0)).any()

    def _predict_tokens(
        self,
        head: nn.Module,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        vocab_size: int,
        skip_logits: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """The loss, if there are labels, and the logits, unless there is a loss and they are not wanted."""
        if labels is not None and skip_logits:
            loss = projected_cross_entropy(
                hidden_states, head, labels, vocab_size, self.label_smoothing, num_items_in_batch
            )
            return loss, None
        logits = head(hidden_states)
        if labels is None:
            return None, logits
        return label_smoothed_cross_entropy(logits, labels, self.label_smoothing, num_items_in_batch), logits

    def resize_token_embeddings(
        self, new_num_tokens: int | None = None, pad_to_multiple_of: int | None = None, mean_resizing: bool = True
    ) -> nn.Embedding:
        """As in transformers, for one vocabulary: all its matrices are resized, tied or not.

        Raises:
            ValueError: There are two vocabularies, and one number cannot say which.
        """
        if self.config.decoder_vocab_size is not None:
            raise ValueError(
                "resize_token_embeddings serves models with one vocabulary, but this one has vocab_size="
                f"{self.config.vocab_size} and decoder_vocab_size={self.config.decoder_vocab_size}."
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        decoder = getattr(self.base_model, "decoder", None)
        if decoder is not None and decoder.embed_tokens.weight is not embeddings.weight:
            decoder.resize_token_embeddings(embeddings.num_embeddings, mean_resizing=mean_resizing)
        return embeddings

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """As in transformers, and let every fitting Auto class and pipeline find its class in the folder.

        A subclass from a file that imports Trivium as a package is saved with that file alone; the Auto classes that
        need others are left out, with a warning.
        """
        # Not by `copy.copy`: FSDP2 makes of each model that it shards a class of its own, in torch, which cannot be
        # copied, and which no Auto class finds.
        own_class = next(each for each in type(self).__mro__ if not each.__module__.startswith("torch."))
        saved: TriviumPreTrainedModel = object.__new__(own_class)
        saved.__dict__.update(self.__dict__)
        saved.config = copy.copy(self.config)
        if self.is_remote_code():
            saved._fill_auto_map()
        super(TriviumPreTrainedModel, saved).save_pretrained(*args, **kwargs)

    def _fill_auto_map(self) -> None:
        """Write into the configuration the classes of all Auto classes and pipelines whose files are saved."""
        from .auto_map import auto_map, custom_pipelines  # here, for it imports all; and so all their files are copied

        classes, pipelines = auto_map(self.config), custom_pipelines(self.config)
        saved = self._saved_modules()
        kept = {name: reference for name, reference in classes.items() if reference.split(".")[0] in saved}
        self.config.auto_map = kept
        if pipelines and all(pipeline["impl"].split(".")[0] in saved for pipeline in pipelines.values()):
            self.config.custom_pipelines = pipelines
        if left_out := classes.keys() - kept.keys() - ({self._auto_class} if saved else set()):
            warnings.warn(
                f"auto_map leaves out {', '.join(sorted(left_out))}: the files of their classes are not saved with "
                f"{type(self).__name__}, which is defined in {self.__module__!r}. They cannot load the folder where "
                "Trivium is not installed.",
                stacklevel=3,
            )

    def _saved_modules(self) -> set[str]:
        """Return the names of the modules whose files transformers copies into the folder."""
        if self.__module__ == "__main__":  # the class of a script or a notebook; transformers warns
            return set()
        file = sys.modules[self.__module__].__file__
        assert file is not None
        return {Path(each).stem for each in (file, *get_relative_import_files(file))}
