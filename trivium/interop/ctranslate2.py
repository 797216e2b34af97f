"""Export to CTranslate2, a fast inference engine for Transformers on CPU and GPU, and generate with it.

    to_ctranslate2("runs/numbers", "numbers-int8", quantization="int8")
    model = CTranslate2Model("numbers-int8")
    translations = translate(model, model.tokenizer, ["twenty-one"], num_beams=5)

A converted folder is self-contained: it holds the CTranslate2 model (`model.bin`, `config.json` and the vocabularies),
the tokenizer, and Trivium's configuration and generation settings. The tokenizer adds `<s>` and `</s>`, so CTranslate2
is configured to add no special tokens: its input is `tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])`.

Not exported are classification heads, token types in models with a decoder, scaled rotary positions, sliding windows,
normalized queries and keys, and activations outside `ctranslate2_export.ACTIVATIONS`.
"""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Self

import torch
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoTokenizer, GenerationConfig
from transformers.generation import GenerateBeamEncoderDecoderOutput

from trivium.configuration import TriviumConfig
from trivium.interop.ctranslate2_export import (
    CONFIG_FILE,
    max_positions_of,
    require_ctranslate2,
    start_id,
    to_ctranslate2,
    vocabulary_of,
)

__all__ = ["CTranslate2Model", "to_ctranslate2"]

# CTranslate2's `patience` for each `early_stopping` of transformers: beam search stops once `patience * num_beams`
# hypotheses are finished. True and "never" are equivalent; the heuristic of False has no equivalent in CTranslate2, so
# 2.0 approximates it. With `length_penalty=0`, CTranslate2 always searches until no hypothesis can improve, as
# transformers does for False.
PATIENCE: dict[bool | str, float] = {True: 1.0, False: 2.0, "never": 1e6}

# Supported generation settings, and their defaults if neither the call nor the saved model sets them.
SETTINGS: dict[str, Any] = {
    "do_sample": False,
    "early_stopping": False,
    "eos_token_id": None,
    "length_penalty": 1.0,
    "max_length": None,
    "max_new_tokens": None,
    "num_beams": 1,
    "num_return_sequences": 1,
    "temperature": 1.0,
    "top_k": 50,
    "top_p": 1.0,
}
# Unsupported generation settings that would change the output: a saved model must have these neutral values.
NEUTRAL: dict[str, Any] = {
    **dict.fromkeys(("repetition_penalty", "encoder_repetition_penalty", "typical_p", "guidance_scale"), 1),
    **dict.fromkeys(("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "min_length", "min_new_tokens"), 0),
    **dict.fromkeys(("min_p", "epsilon_cutoff", "eta_cutoff"), 0),
    **dict.fromkeys(("bad_words_ids", "forced_bos_token_id", "forced_eos_token_id", "sequence_bias"), None),
    **dict.fromkeys(("suppress_tokens", "begin_suppress_tokens", "stop_strings"), None),
}


class CTranslate2Model:
    """Encoder-decoder or decoder-only model converted to CTranslate2, with the `generate()` of transformers.

    It is a drop-in replacement for a model in `trivium.translation.translate` and the commands.

    Args:
        folder: Output folder of `to_ctranslate2`.
        device: "cpu", "cuda" or "auto".
        **options: Options of `ctranslate2.Translator`: `compute_type`, `intra_threads`, ...

    Raises:
        FileNotFoundError: `folder` is not a converted model.
        ImportError: CTranslate2 is not installed.
        ValueError: The model cannot generate text.
    """

    def __init__(self, folder: str | Path, device: str = "cpu", **options: Any) -> None:
        ctranslate2, folder = require_ctranslate2(), Path(folder)
        if not (folder / CONFIG_FILE).is_file():
            raise FileNotFoundError(f"{folder} is not a converted model: it has no {CONFIG_FILE}.")
        self.config = TriviumConfig.from_json_file(folder / CONFIG_FILE)
        if not self.config.decoder_layers:
            raise ValueError(f"{folder} holds an encoder, which cannot generate. Load it with ctranslate2.Encoder.")
        self.generation_config = GenerationConfig.from_pretrained(folder)
        self.tokenizer = AutoTokenizer.from_pretrained(folder, config=self.config, trust_remote_code=False)
        engine = ctranslate2.Translator if self.config.is_encoder_decoder else ctranslate2.Generator
        self.engine = engine(str(folder), device=device, **options)
        self.device = torch.device("cpu")  # device of inputs and outputs, regardless of the engine's device
        self.source_tokens = vocabulary_of(self.tokenizer, "source", self.config.vocab_size)
        self.target_tokens = vocabulary_of(self.tokenizer, "target", self.config.target_vocab_size)
        self.target_ids = {token: token_id for token_id, token in enumerate(self.target_tokens)}

    @classmethod
    def from_pretrained(cls, folder: str | Path, **options: Any) -> Self:
        """Load a converted model, or a saved Trivium model, which is converted to a temporary folder first.

        Args:
            folder: Folder of a converted or a saved model.
            **options: Options of the constructor; `compute_type="int8"` quantizes in both cases.
        """
        if (Path(folder) / CONFIG_FILE).is_file():
            return cls(folder, **options)
        with TemporaryDirectory() as temporary:  # the engine does not read the files after loading
            to_ctranslate2(folder, Path(temporary) / "converted")
            return cls(Path(temporary) / "converted", **options)

    def generate(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        return_dict_in_generate: bool = False,
        **generation: Any,
    ) -> torch.Tensor | GenerateBeamEncoderDecoderOutput:
        """Translate or continue a batch of token ids, with the same results as the model's own `generate()`.

        Up to rounding, results are identical for greedy search, and for beam search if `early_stopping` is True or
        "never". If it is False, nearly all results are identical; see `PATIENCE`.

        Args:
            input_ids: Token ids of shape (batch, length).
            attention_mask: Mask of shape (batch, length), 1 for tokens and 0 for padding, on either side.
            return_dict_in_generate: Whether to return an object with `sequences` and `sequences_scores`.
            **generation: Any of `SETTINGS`; the saved settings are the defaults. Sampling is seeded by torch's seed
                when the model first samples; later seeds have no effect.

        Returns:
            Token ids of shape (batch * `num_return_sequences`, longest), padded on the right. As in transformers, each
            row starts with the decoder start token, or with the row of `input_ids` including its padding. The scores
            equal the scores of transformers' beam search.

        Raises:
            ValueError: A setting is not in `SETTINGS`, a text has more tokens than the model has positions, or no
                maximum length is set.
        """
        settings, is_seq2seq = self._settings(generation), self.config.is_encoder_decoder
        prefixes = input_ids
        if is_seq2seq:
            prefixes = input_ids.new_full((len(input_ids), 1), start_id(self.generation_config))
        max_new_tokens = self._max_new_tokens(settings, prefixes.shape[1])
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        texts = [ids[keep].tolist() for ids, keep in zip(input_ids, mask.bool(), strict=True)]
        self._check_lengths(texts)
        options = _engine_options(settings, return_dict_in_generate)
        if settings["do_sample"]:
            require_ctranslate2().set_random_seed(int(torch.randint(2**31, ())))
        generated, scores = (self._translate if is_seq2seq else self._continue)(texts, max_new_tokens, options)
        prefixes = prefixes.repeat_interleave(settings["num_return_sequences"], dim=0)
        rows = [torch.cat((prefix, prefix.new_tensor(ids))) for prefix, ids in zip(prefixes, generated, strict=True)]
        sequences = pad_sequence(rows, batch_first=True, padding_value=self.config.pad_token_id or 0)
        if not return_dict_in_generate:
            return sequences
        return GenerateBeamEncoderDecoderOutput(sequences=sequences, sequences_scores=torch.tensor(scores))

    def _translate(
        self, texts: list[list[int]], max_new_tokens: int, options: dict[str, Any]
    ) -> tuple[list[list[int]], list[float]]:
        sources = [[self.source_tokens[token_id] for token_id in ids] for ids in texts]
        results = self.engine.translate_batch(
            sources, max_input_length=0, min_decoding_length=0, max_decoding_length=max_new_tokens, **options
        )
        ids = [[self.target_ids[token] for token in tokens] for result in results for tokens in result.hypotheses]
        return ids, [score for result in results for score in result.scores]

    def _continue(
        self, texts: list[list[int]], max_new_tokens: int, options: dict[str, Any]
    ) -> tuple[list[list[int]], list[float]]:
        """Batch texts of equal length: in batches of mixed lengths, CTranslate2 generates different tokens."""
        found: list[Any] = [None] * len(texts)
        for length in {len(ids) for ids in texts}:
            indices = [index for index, ids in enumerate(texts) if len(ids) == length]
            prompts = [[self.target_tokens[token_id] for token_id in texts[index]] for index in indices]
            results = self.engine.generate_batch(
                prompts, include_prompt_in_result=False, max_length=max_new_tokens, **options
            )
            for index, result in zip(indices, results, strict=True):
                found[index] = result
        ids = [ids for result in found for ids in result.sequences_ids]
        return ids, [score for result in found for score in result.scores]

    def _settings(self, generation: dict[str, Any]) -> dict[str, Any]:
        """Return the saved generation settings, overridden by the arguments of the call."""
        for name in generation:
            if name not in SETTINGS:
                raise ValueError(
                    f"{name} is {generation[name]!r}, but CTranslate2 supports only {', '.join(SETTINGS)}."
                )
        saved = vars(self.generation_config)
        for name, neutral in NEUTRAL.items():
            if saved.get(name) not in (None, neutral):
                raise ValueError(f"{name} is {saved[name]!r} in the saved settings, but must be {neutral!r}.")
        merged = {**saved, **generation}
        settings = {name: default if merged.get(name) is None else merged[name] for name, default in SETTINGS.items()}
        if settings["early_stopping"] not in PATIENCE:
            raise ValueError(f"early_stopping is {settings['early_stopping']!r}, but must be True, False or 'never'.")
        return settings

    def _max_new_tokens(self, settings: dict[str, Any], prefix_length: int) -> int:
        """Return the maximum number of new tokens, limited by the model's positions."""
        if settings["max_new_tokens"] is settings["max_length"] is None:
            raise ValueError("Neither max_length nor max_new_tokens is set. Set one of them to limit the output.")
        limit = settings["max_new_tokens"] or settings["max_length"] - prefix_length
        positions = max_positions_of(self.config)
        # The last token is not fed back, so it needs no position.
        return limit if positions is None else min(limit, positions + 1 - prefix_length)

    def _check_lengths(self, texts: list[list[int]]) -> None:
        longest, positions = max(map(len, texts)), max_positions_of(self.config)
        if positions is not None and longest > positions:
            raise ValueError(f"A text has {longest} tokens, but the converted model has only {positions} positions.")


def _engine_options(settings: dict[str, Any], return_scores: bool) -> dict[str, Any]:
    """Translate generation settings of transformers, except lengths, to options of CTranslate2."""
    options: dict[str, Any] = {
        "beam_size": settings["num_beams"],
        "patience": PATIENCE[settings["early_stopping"]],
        "num_hypotheses": settings["num_return_sequences"],
        "length_penalty": settings["length_penalty"],
        "end_token": _as_list(settings["eos_token_id"]),
        "return_end_token": True,
        "return_scores": return_scores,
    }
    if settings["do_sample"]:
        options |= {f"sampling_{name.replace('_', '')}": settings[name] for name in ("top_k", "top_p")}
        options["sampling_temperature"] = settings["temperature"]
    return options


def _as_list(token_ids: int | list[int] | None) -> list[int]:
    if token_ids is None:
        return []
    return token_ids if isinstance(token_ids, list) else [token_ids]
