"""Base class of all Trivium models: initialization, loss, saving, and supported features of transformers.

Saving imports `auto_map`, which imports every model class: the only circular import, deferred to the call. The saved
folder needs the code of all classes in its `auto_map`, and transformers copies the files that this file imports.
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
from .loss import IGNORE_INDEX, label_smoothed_cross_entropy, projected_cross_entropy
from .normalization import NORMS
from .positions import RotaryEmbedding


class TriviumPreTrainedModel(PreTrainedModel):
    """Base class of all Trivium models, with weight initialization, loss, resizing and saving."""

    config: TriviumConfig
    base_model_prefix = "model"
    main_input_name = "input_ids"
    supports_gradient_checkpointing = True
    _no_split_modules = ["EncoderLayer", "DecoderLayer"]
    _skip_keys_device_placement = ["cache", "past_key_values"]  # hooks run before the old name is replaced
    _supports_flash_attn = True
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initialize as the authors' code (tensor2tensor) does; the paper does not specify it.

        Projections: Glorot uniform, biases 0. Embeddings: normal with variance 1 / d_model, so that they have unit
        variance when scaled by sqrt(d_model), and logits have about unit variance when the output projection is tied.
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
        elif isinstance(module, RotaryEmbedding):  # loading leaves non-persistent buffers uninitialized
            module.register_frequencies(module.inv_freq)

    @property
    def label_smoothing(self) -> float:
        """Return the label smoothing (section 5.4); 0 in evaluation, so that exp(loss) is the perplexity."""
        return self.config.label_smoothing if self.training else 0.0

    def _can_skip_padding(
        self,
        labels: torch.Tensor | None,
        mask: torch.Tensor | None,
        skip_logits: bool,
        output_hidden_states: bool | None = None,
        **kwargs: Any,
    ) -> bool:
        """Return True if padding can be skipped: no logits or hidden states are returned, and no padding is labeled.

        A causal language model with padding on the left does label padding: the last padding token predicts the first
        real one.
        """
        if output_hidden_states is None:
            output_hidden_states = self.config.output_hidden_states
        if labels is None or not skip_logits or output_hidden_states or torch.compiler.is_compiling():
            return False
        return mask is None or mask.shape != labels.shape or not ((labels != IGNORE_INDEX) & (mask == 0)).any()

    def _predict_tokens(
        self,
        head: nn.Module,
        hidden_states: torch.Tensor,
        labels: torch.Tensor | None,
        vocab_size: int,
        skip_logits: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> tuple[torch.Tensor | None, torch.Tensor | None]:
        """Return the loss (None without labels) and the logits (None with labels and `skip_logits`)."""
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
        """Resize the embeddings of encoder and decoder and the output projection, tied or not, as in transformers.

        Raises:
            ValueError: The model has two vocabularies, so that `new_num_tokens` is ambiguous.
        """
        if self.config.decoder_vocab_size is not None:
            raise ValueError(
                f"A model with two vocabularies (vocab_size={self.config.vocab_size}, decoder_vocab_size="
                f"{self.config.decoder_vocab_size}) cannot be resized: resize_token_embeddings takes a single size."
            )
        embeddings = super().resize_token_embeddings(new_num_tokens, pad_to_multiple_of, mean_resizing)
        decoder = getattr(self.base_model, "decoder", None)
        if decoder is not None and decoder.embed_tokens.weight is not embeddings.weight:
            decoder.resize_token_embeddings(embeddings.num_embeddings, mean_resizing=mean_resizing)
        return embeddings

    def save_pretrained(self, *args: Any, **kwargs: Any) -> None:
        """Save as in transformers, and register all compatible Auto classes and pipelines in the configuration.

        If a subclass is defined in a file that imports Trivium as a package, only that file is saved. Auto classes
        whose code is not saved are left out of the `auto_map`, with a warning.
        A subclass with its own `model_type` is registered only for its own Auto class, since all other Auto classes
        would load a model without its extensions.
        """
        # `copy.copy` would fail on FSDP2 models: sharding replaces the class of a model by a dynamic one, defined in
        # torch, which cannot be copied and which no Auto class finds.
        model_class = next(base for base in type(self).__mro__ if not base.__module__.startswith("torch."))
        model: TriviumPreTrainedModel = object.__new__(model_class)
        model.__dict__.update(self.__dict__)
        model.config = copy.copy(self.config)
        if self.is_remote_code():
            model._fill_auto_map()
        super(TriviumPreTrainedModel, model).save_pretrained(*args, **kwargs)

    def _fill_auto_map(self) -> None:
        """Set `auto_map` and `custom_pipelines` of the configuration to the classes whose files are saved."""
        # Imported here because the import is circular. transformers detects it here as well, and copies the files of
        # all models.
        from .auto_map import auto_map, custom_pipelines

        extended = self.config.model_type != TriviumConfig.model_type  # saving adds the only entry
        classes, pipelines = {} if extended else auto_map(self.config), custom_pipelines(self)
        modules = self._saved_modules()
        available = {name: reference for name, reference in classes.items() if reference.split(".")[0] in modules}
        self.config.auto_map = available
        if pipelines and all(pipeline["impl"].split(".")[0] in modules for pipeline in pipelines.values()):
            self.config.custom_pipelines = pipelines
        if missing := classes.keys() - available.keys() - ({self._auto_class} if modules else set()):
            warnings.warn(
                f"auto_map lacks {', '.join(sorted(missing))}: the files of their classes are not saved with "
                f"{type(self).__name__}, which is defined in {self.__module__!r}. These Auto classes can load the "
                "folder only where Trivium is installed.",
                stacklevel=3,
            )

    def _saved_modules(self) -> set[str]:
        """Return the names of the modules whose files transformers copies into the folder."""
        if self.__module__ == "__main__":  # transformers does not save code defined in a script or notebook; it warns
            return set()
        module_file = sys.modules[self.__module__].__file__
        assert module_file is not None
        return {Path(file).stem for file in (module_file, *get_relative_import_files(module_file))}
