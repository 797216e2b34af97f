"""The pipeline "translation", which transformers 5 no longer has, for every encoder-decoder that generates.

This file travels to the Hub inside every saved encoder-decoder. It imports nothing of Trivium, and so travels with
other models as well: `TranslationPipeline.save_pretrained` takes it along.
"""

import copy
from typing import Any

import torch
from transformers import GenerationConfig, Pipeline, PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

EXTRA_LENGTH = 50  # the paper's longest output: the input's length + 50 (section 6.1)


def within_positions(config: PreTrainedConfig, length: int) -> int:
    """So many tokens, or, where a model can tell only fewer positions apart, as many as those."""
    # Trivium says of which type its positions are; of other models they are taken for a table that ends.
    if getattr(config, "position_embedding_type", "learned") != "learned":
        return length
    return min(length, getattr(config, "max_position_embeddings", length))


class TranslationPipeline(Pipeline):
    """Translate texts with an encoder-decoder, as in transformers 4.

        pipe = pipeline("translation", model="runs/numbers", num_beams=4)
        pipe("twenty-one")  # [{"translation_text": "einundzwanzig"}]
        pipe(["one", "two"], batch_size=2)  # [{"translation_text": "eins"}, {"translation_text": "zwei"}]
        for translations in pipe(line for line in file): ...  # read as they are needed; so is a `KeyDataset`

    Each text gets a list of translations, one unless `num_return_sequences` is more; from a list of texts that get
    one each comes a flat list. Blank texts stay blank.

    The pipeline and its calls take, besides `batch_size` and what every pipeline takes:
        truncation: Whether to cut texts that are longer than the tokenizer or the model's positions allow.
        return_tensors: Whether to give `translation_token_ids` instead of `translation_text`.
        generation_config: A whole configuration for `generate()`, in place of the one saved with the model.
        All else is what `generate()` takes, such as `num_beams` or `max_new_tokens`, and goes above any configuration.
        Without a length a translation may be 50 tokens longer than the longest text of its batch (section 6.1), if
        the model has the positions, and whatever `max_length` was saved with it.

    Raises:
        ValueError: The model is no encoder-decoder with a head to generate with, there is no tokenizer, or something
            else than a text is to be translated.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any
    ) -> None:
        if not (model.config.is_encoder_decoder and model.can_generate()):
            raise ValueError(
                f"model is a {type(model).__name__}, but translation needs an encoder-decoder that generates, as "
                "AutoModelForSeq2SeqLM loads it."
            )
        if tokenizer is None:
            raise ValueError("tokenizer is None, but translation needs the one that belongs to the model.")
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Translate a text, a list of texts, or what a generator or a dataset gives; see the class."""
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
        """Encode one text, as (1, length)."""
        if not isinstance(input_, str):
            raise ValueError(
                f"A translation pipeline takes a text, or a list, generator or dataset of texts, but got {input_!r}."
            )
        room = within_positions(self.model.config, self.tokenizer.model_max_length)
        longest = {"max_length": room} if truncation and room < self.tokenizer.model_max_length else {}
        ids = self.tokenizer(input_, truncation=truncation, **longest)["input_ids"]
        is_blank = not (input_.strip() and ids)
        ids = torch.tensor([ids or [0]])  # whatever comes of a blank one is not shown
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "is_blank": torch.tensor([is_blank])}

    def _forward(self, input_tensors: dict[str, torch.Tensor], **generation: Any) -> dict[str, torch.Tensor]:
        """Translate a batch to (batch, translations of each text, length)."""
        input_ids, attention_mask = input_tensors["input_ids"], input_tensors["attention_mask"]
        config = copy.deepcopy(generation.pop("generation_config", None)) or GenerationConfig()
        others = config.update(**generation)  # such as a logits processor
        saved = self.model.generation_config
        if config.max_length is config.max_new_tokens is saved.max_new_tokens is None:
            config.max_length = within_positions(self.model.config, input_ids.shape[1] + EXTRA_LENGTH)
        config.return_dict_in_generate = False
        output = self.model.generate(input_ids, config, attention_mask=attention_mask, **others)
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
