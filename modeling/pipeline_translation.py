"""The "translation" pipeline, which transformers 5 has dropped, for any generating encoder-decoder.

This file is saved to the Hub with every encoder-decoder. It imports nothing from Trivium, so that
`TranslationPipeline.save_pretrained` can save it with models of other families as well.
"""

import copy
import re
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


def language_tag(language: str) -> str:
    """Return the tag that selects a target language at the start of the source, such as `<2de>`."""
    return f"<2{language}>"


def target_languages(tokenizer: PreTrainedTokenizerBase) -> list[str]:
    """Return the target languages for which a tokenizer has a tag, sorted."""
    tags = (re.fullmatch(r"<2([A-Za-z][A-Za-z0-9_]*)>", token) for token in tokenizer.get_vocab())
    return sorted(tag[1] for tag in tags if tag)


def find_tag(tokenizer: PreTrainedTokenizerBase, language: str) -> str:
    """Return the tag of a target language.

    Raises:
        ValueError: The tokenizer does not have this tag; the message lists the languages with a tag.
    """
    languages = target_languages(tokenizer)
    if language not in languages:
        allowed = f"one of {', '.join(languages)}" if languages else "left out, because the model has no language tags"
        raise ValueError(f"The target language is {language!r}, but must be {allowed}.")
    return language_tag(language)


class TranslationPipeline(Pipeline):
    """Translate texts with an encoder-decoder, with the interface of transformers 4.

        pipe = pipeline("translation", model="runs/numbers", num_beams=4)
        pipe("twenty-one")  # [{"translation_text": "einundzwanzig"}]
        pipe(["one", "two"], batch_size=2)  # [{"translation_text": "eins"}, {"translation_text": "zwei"}]
        for translations in pipe(line for line in file): ...  # read lazily, like a `KeyDataset`

    A text yields a list of `num_return_sequences` translations, by default one. A list of texts yields a flat list if
    each text has one translation, and a list of lists otherwise. Blank texts stay blank.

    Besides `batch_size` and the arguments of every pipeline, the constructor and the call take:
        truncation: Whether to truncate texts that exceed the tokenizer's maximum length or the model's positions.
        return_tensors: Whether to return `translation_token_ids` instead of `translation_text`.
        tgt_lang: Target language of a multilingual model. Its tag (`<2de>`) becomes the first token of the source. A
            tokenizer with the attribute `src_lang`, such as NLLB's, has codes instead (`deu_Latn`); the code is then
            forced to be the first token of the translation.
        src_lang: Source language; only needed by a tokenizer with the attribute `src_lang`.
        return_scores: Whether to add the `score` of each translation, the `sequences_scores` of beam search.
        generation_config: Replaces the generation configuration saved with the model.
        All other arguments are passed to `generate()`, such as `num_beams` or `max_new_tokens`, and override the
        generation configuration. By default a translation may be 50 tokens longer than the longest text of its batch
        (section 6.1), within the limit of the positions, regardless of a `max_length` saved with the model.

    Raises:
        ValueError: The model cannot generate or is not an encoder-decoder, there is no tokenizer, or an input is not a
            text.
    """

    task_name = "translation"
    result_name = "translation"  # prefix of the keys of a result
    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_video_processor = _load_feature_extractor = False

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase | None = None, **kwargs: Any
    ) -> None:
        if not (model.config.is_encoder_decoder and model.can_generate()):
            raise ValueError(
                f"model is a {type(model).__name__}, but {self.task_name} needs an encoder-decoder that can generate. "
                "Load it with AutoModelForSeq2SeqLM."
            )
        if tokenizer is None:
            raise ValueError(f"tokenizer is None, but {self.task_name} needs the tokenizer of the model. Pass it.")
        super().__init__(model=model, tokenizer=tokenizer, **kwargs)

    def __call__(self, inputs: Any, **kwargs: Any) -> Any:
        """Translate a text, or a list, generator or dataset of texts; see the class for arguments."""
        if not isinstance(inputs, list):
            return super().__call__(inputs, **kwargs)
        results = super().__call__(inputs, **kwargs) if inputs else []
        return [result[0] for result in results] if all(len(result) == 1 for result in results) else results

    def _sanitize_parameters(
        self,
        truncation: bool | None = None,
        return_tensors: bool | None = None,
        src_lang: str | None = None,
        tgt_lang: str | None = None,
        return_scores: bool | None = None,
        **generation: Any,
    ) -> tuple[dict[str, Any], dict[str, Any], dict[str, Any]]:
        preprocessing: dict[str, Any] = {} if truncation is None else {"truncation": truncation}
        if hasattr(self.tokenizer, "src_lang"):  # a tokenizer with language codes, such as NLLB's or mBART's
            if src_lang is not None:
                preprocessing["src_lang"] = src_lang
            if tgt_lang is not None:
                code = self.tokenizer.convert_tokens_to_ids(tgt_lang)
                if code in (None, self.tokenizer.unk_token_id):
                    raise ValueError(f"tgt_lang is {tgt_lang!r}, but must be a language code of the tokenizer.")
                generation["forced_bos_token_id"] = code
        elif tgt_lang is not None:
            preprocessing["tag"] = find_tag(self.tokenizer, tgt_lang)
        if return_scores is not None:
            generation["return_scores"] = return_scores
        postprocessing = {} if return_tensors is None else {"return_tensors": return_tensors}
        return preprocessing, generation, postprocessing

    def preprocess(
        self, input_: str, truncation: bool = False, tag: str = "", src_lang: str | None = None
    ) -> dict[str, torch.Tensor]:
        """Encode one text, preceded by the tag of its target language, as ids of shape (1, length)."""
        if not isinstance(input_, str):
            raise ValueError(
                f"An input of the {self.task_name} pipeline is {input_!r}, but must be a text, or a list, generator "
                "or dataset of texts."
            )
        max_length = cap_length(self.model.config, self.tokenizer.model_max_length)
        limit = {"max_length": max_length} if truncation and max_length < self.tokenizer.model_max_length else {}
        if src_lang is not None:
            self.tokenizer.src_lang = src_lang
        ids = self.tokenizer(tag + input_, truncation=truncation, **limit)["input_ids"]
        is_blank = not (input_.strip() and ids)
        ids = torch.tensor([ids or [0]])  # the translation of a blank text is discarded
        return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "is_blank": torch.tensor([is_blank])}

    def _forward(
        self, input_tensors: dict[str, torch.Tensor], return_scores: bool = False, **generation: Any
    ) -> dict[str, torch.Tensor]:
        """Return `output_ids`, (batch, num_return_sequences, length), and `scores`, (batch, num_return_sequences)."""
        input_ids, attention_mask = input_tensors["input_ids"], input_tensors["attention_mask"]
        config = copy.deepcopy(generation.pop("generation_config", None)) or GenerationConfig()
        model_kwargs = config.update(**generation)  # arguments that are not part of a configuration
        saved = self.model.generation_config
        if config.max_length is config.max_new_tokens is saved.max_new_tokens is None:
            config.max_length = cap_length(self.model.config, input_ids.shape[1] + EXTRA_LENGTH)
        elif config.max_length is saved.max_new_tokens is None:
            # Set `max_length` instead: transformers warns if both `max_new_tokens` and a saved `max_length` are set.
            start = model_kwargs.get("decoder_input_ids", input_ids[:, :1])
            config.max_length, config.max_new_tokens = start.shape[1] + config.max_new_tokens, None
        num_beams = config.num_beams or saved.num_beams or 1
        if return_scores and num_beams < 2:
            raise ValueError(
                f"return_scores is True and num_beams is {num_beams}, but only beam search has scores. Set num_beams "
                "to at least 2."
            )
        config.return_dict_in_generate = config.output_scores = return_scores
        output = self.model.generate(input_ids, config, attention_mask=attention_mask, **model_kwargs)
        tensors = {"output_ids": output}
        if return_scores:
            tensors = {"output_ids": output.sequences, "scores": output.sequences_scores}
        outputs = {name: tensor.unflatten(0, (len(input_ids), -1)) for name, tensor in tensors.items()}
        return {**outputs, "is_blank": input_tensors["is_blank"]}

    def postprocess(
        self, model_outputs: dict[str, torch.Tensor], return_tensors: bool = False
    ) -> list[dict[str, str | float | torch.Tensor]]:
        """Decode the translations of one text."""
        output_ids = model_outputs["output_ids"][0]
        if return_tensors:
            results = [{f"{self.result_name}_token_ids": ids} for ids in output_ids]
        else:
            texts = self.tokenizer.batch_decode(output_ids, skip_special_tokens=True)
            results = [{f"{self.result_name}_text": "" if model_outputs["is_blank"] else text} for text in texts]
        if "scores" in model_outputs:
            scores = (model_outputs["scores"][0] * ~model_outputs["is_blank"]).tolist()
            results = [{**result, "score": score} for result, score in zip(results, scores, strict=True)]
        return results
