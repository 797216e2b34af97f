"""The "translation" pipeline, which transformers 5 has dropped, for any generating encoder-decoder.

This file is saved to the Hub with every encoder-decoder. It imports nothing from Trivium, so that
`TranslationPipeline.save_pretrained` can save it with models of other families as well.
"""

import copy
from typing import Any

import torch
from transformers import GenerationConfig, Pipeline, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EXTRA_LENGTH = 50  # the paper's maximum output length is the input length + 50 (section 6.1)


def cap_length(config: PreTrainedConfig, length: int) -> int:
    """Cap a number of tokens at the maximum length of the model's positions."""
    # Models of other families lack this field; assume that their positions are limited.
    if getattr(config, "position_embedding_type", "learned") != "learned":
        return length
    return min(length, getattr(config, "max_position_embeddings", length))


class TranslationPipeline(Pipeline):
    """Translate texts with an encoder-decoder; the interface is that of transformers 4.

        pipe = pipeline("translation", model="runs/numbers", num_beams=4)
        pipe("twenty-one")  # [{"translation_text": "einundzwanzig"}]
        pipe(["one", "two"], batch_size=2)  # [{"translation_text": "eins"}, {"translation_text": "zwei"}]
        for translations in pipe(line for line in file): ...  # read lazily, like a `KeyDataset`

    A text yields a list of `num_return_sequences` translations, by default one. A list of texts yields a flat list if
    each text has one translation, and a list of lists otherwise. Blank texts stay blank.

    Besides `batch_size` and the arguments of every pipeline, the constructor and the call take:
        truncation: Whether to truncate texts that exceed the tokenizer's maximum length or the model's positions.
        return_tensors: Whether to return `translation_token_ids` instead of `translation_text`.
        generation_config: Replaces the generation configuration saved with the model.
        All other arguments are passed to `generate()`, such as `num_beams` or `max_new_tokens`, and override the
        generation configuration. By default a translation may be 50 tokens longer than the longest text of its batch
        (section 6.1), within the limit of the positions, regardless of a `max_length` saved with the model.

    Raises:
        ValueError: The model cannot generate or is not an encoder-decoder, there is no tokenizer, or an input is not a
            text.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any
    ) -> None:
        if not (model.config.is_encoder_decoder and model.can_generate()):
            raise ValueError(
                f"model is a {type(model).__name__}, but translation needs an encoder-decoder that can generate. Load "
                "it with AutoModelForSeq2SeqLM."
            )
        if tokenizer is None:
            raise ValueError("tokenizer is None, but translation needs the tokenizer of the model. Pass it.")
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Translate a text, or a list, generator or dataset of texts; see the class for arguments."""
        if not isinstance(inputs, list):
            return super().__call__(inputs, **kwargs)
        results = super().__call__(inputs, **kwargs) if inputs else []
        return [result[0] for result in results] if all(len(result) == 1 for result in results) else results

    def _sanitize_parameters(
        self, truncation: bool | None = None, return_tensors: bool | None = None, **generation: Any
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocessing = {} if truncation is None else {"truncation": truncation}
        postprocessing = {} if return_tensors is None else {"return_tensors": return_tensors}
        return preprocessing, generation, postprocessing

    def preprocess(self, input_: str, truncation: bool = False) -> dict[str, torch.Tensor]:
        """Encode one text as ids of shape (1, length)."""
        if not isinstance(input_, str):
            raise ValueError(
                f"An input of the translation pipeline is {input_!r}, but must be a text, or a list, generator or "
                "dataset of texts."
            )
        max_length = cap_length(self.model.config, self.tokenizer.model_max_length)
        limit = {"max_length": max_length} if truncation and max_length < self.tokenizer.model_max_length else {}
        ids = self.tokenizer(input_, truncation=truncation, **limit)["input_ids"]
        is_blank = not (input_.strip() and ids)
        ids = torch.tensor([ids or [0]])  # the translation of a blank text is discarded
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "is_blank": torch.tensor([is_blank])}

    def _forward(self, input_tensors: dict[str, torch.Tensor], **generation: Any) -> dict[str, torch.Tensor]:
        """Translate a batch; `output_ids` has the shape (batch, num_return_sequences, length)."""
        input_ids, attention_mask = input_tensors["input_ids"], input_tensors["attention_mask"]
        config = copy.deepcopy(generation.pop("generation_config", None)) or GenerationConfig()
        model_kwargs = config.update(**generation)  # arguments that are not part of a configuration
        saved = self.model.generation_config
        if config.max_length is config.max_new_tokens is saved.max_new_tokens is None:
            config.max_length = cap_length(self.model.config, input_ids.shape[1] + EXTRA_LENGTH)
        config.return_dict_in_generate = False
        output = self.model.generate(input_ids, config, attention_mask=attention_mask, **model_kwargs)
        return {"output_ids": output.unflatten(0, (len(input_ids), -1)), "is_blank": input_tensors["is_blank"]}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], return_tensors: bool = False
    ) -> list[dict[str, str | torch.Tensor]]:
        """Decode the translations of one text."""
        output_ids = model_outputs["output_ids"][0]
        if return_tensors:
            return [{"translation_token_ids": ids} for ids in output_ids]
        texts = self.tokenizer.batch_decode(output_ids, skip_special_tokens=True)
        return [{"translation_text": "" if model_outputs["is_blank"] else text} for text in texts]
