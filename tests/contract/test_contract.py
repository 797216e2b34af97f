"""Run transformers' common model tests on Trivium's models (`make contract`).

The installed package does not contain them, and they are not vendored here: `make contract` unpacks the source
distribution of the installed version and adds it to PYTHONPATH. That distribution has the common model and
configuration tests; the generation and export tests exist only in a checkout of the repository, so
`make contract TRANSFORMERS_TESTS=<checkout of the same version>` runs more.

Where a common test does not apply, the overriding method below says why.
"""

import importlib
import importlib.util
import sys
import types
import unittest
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, StaticCache
from transformers.models.auto import modeling_auto

from trivium import (
    TriviumConfig,
    TriviumDecoderForSequenceClassification,
    TriviumDecoderModel,
    TriviumEncoderModel,
    TriviumForCausalLM,
    TriviumForConditionalGeneration,
    TriviumForMaskedLM,
    TriviumForQuestionAnswering,
    TriviumForSequenceClassification,
    TriviumForTokenClassification,
    TriviumModel,
)
from trivium.configuration import PRESETS

pytestmark = pytest.mark.slow

if importlib.util.find_spec("tests") is None or importlib.util.find_spec("tests.test_modeling_common") is None:
    pytest.skip("transformers' tests are not on PYTHONPATH; `make contract` puts them there", allow_module_level=True)


def import_or_stand_in(name: str, **stand_ins: Any) -> bool:
    """Import a module that the common tests need, or a stub if the source distribution lacks it."""
    try:
        importlib.import_module(name)
    except ModuleNotFoundError:
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(stand_ins)
        return False
    return True


import_or_stand_in("tests.exporters.test_export", ExportTesterMixin=object)
HAS_GENERATION = import_or_stand_in("tests.generation.test_utils", GenerationTesterMixin=type("Missing", (), {}))
import_or_stand_in("tests.utils.test_configuration_utils", config_common_kwargs={"output_hidden_states": True})

from tests.generation.test_utils import GenerationTesterMixin  # noqa: E402
from tests.test_configuration_common import ConfigTester  # noqa: E402
from tests.test_modeling_common import ModelTesterMixin, ids_tensor  # noqa: E402

# The common tests use these names to look up which classes take which labels, and which have no head.
modeling_auto.MODEL_MAPPING_NAMES["trivium"] = ("TriviumModel", "TriviumEncoderModel", "TriviumDecoderModel")
modeling_auto.MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["trivium"] = "TriviumForConditionalGeneration"
modeling_auto.MODEL_FOR_MASKED_LM_MAPPING_NAMES["trivium"] = "TriviumForMaskedLM"
modeling_auto.MODEL_FOR_SEQUENCE_CLASSIFICATION_MAPPING_NAMES["trivium"] = (
    "TriviumForSequenceClassification",
    "TriviumDecoderForSequenceClassification",
)
modeling_auto.MODEL_FOR_TOKEN_CLASSIFICATION_MAPPING_NAMES["trivium"] = "TriviumForTokenClassification"
modeling_auto.MODEL_FOR_QUESTION_ANSWERING_MAPPING_NAMES["trivium"] = "TriviumForQuestionAnswering"
modeling_auto.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES["trivium"] = "TriviumForCausalLM"

LAYERS = 2
SIZES: dict[str, Any] = {
    "vocab_size": 99,
    "d_model": 16,
    "encoder_layers": LAYERS,
    "decoder_layers": LAYERS,
    "num_attention_heads": 4,
    "ffn_dim": 32,
    "max_position_embeddings": 50,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODERN: dict[str, Any] = {
    "position_embedding_type": "rotary",
    "num_key_value_heads": 2,
    "gated_ffn": True,
    "activation_function": "silu",
    "ffn_bias": False,
    "norm_type": "rmsnorm",
    "norm_position": "pre",
    "scale_embedding": False,
    "tie_word_embeddings": False,
}


def choices_of(preset: str) -> dict[str, Any]:
    """Return the choices of a preset, without its sizes."""
    return {name: value for name, value in PRESETS[preset].items() if name not in SIZES}


class TriviumModelTester:
    """Provide what the common tests require: a tiny configuration and inputs."""

    is_training = True
    batch_size = 13
    seq_length = 7
    vocab_size = SIZES["vocab_size"]
    hidden_size = SIZES["d_model"]
    num_hidden_layers = LAYERS
    num_attention_heads = SIZES["num_attention_heads"]

    def __init__(self, choices: dict[str, Any]) -> None:
        self.choices = choices

    def get_config(self) -> TriviumConfig:
        config = TriviumConfig(**{**SIZES, **self.choices})
        # The tests are skipped if this is None, although the stacks have tensor parallel plans.
        config.base_model_tp_plan = {}
        return config

    def prepare_config_and_inputs_for_common(self) -> tuple[TriviumConfig, dict[str, Any]]:
        config = self.get_config()
        shape = [self.batch_size, self.seq_length]
        input_ids = ids_tensor(shape, config.vocab_size).clamp(3)  # Without special tokens.
        inputs = {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids).tril()}  # Pad on the right.
        if config.type_vocab_size:
            inputs["token_type_ids"] = ids_tensor(shape, config.type_vocab_size)
        if config.is_encoder_decoder:
            inputs["decoder_input_ids"] = ids_tensor(shape, config.target_vocab_size).clamp(3)
            inputs["decoder_attention_mask"] = torch.ones_like(inputs["decoder_input_ids"]).tril()
        return config, inputs


class CommonTests(ModelTesterMixin):
    """Run the common tests on the configuration `choices`; subclasses add unittest.TestCase."""

    choices: dict[str, Any] = {}
    all_model_classes: tuple[type[PreTrainedModel], ...] = ()
    test_can_init_all_missing_weights_before_2023 = True  # The common test requires a copyright year in the file.

    def setUp(self) -> None:
        self.model_tester = TriviumModelTester(self.choices)
        is_rotary = self.choices.get("position_embedding_type") == "rotary"
        if self._testMethodName.startswith("test_model_rope_scaling") and not is_rotary:
            self.skipTest("only rotary positions can be scaled")
        if self._testMethodName.startswith("test_model_rope_scaling_from_config") and self.is_encoder_decoder:
            self.skipTest("it changes the text configuration, which for an encoder-decoder is a copy")

    def test_config(self) -> None:
        ConfigTester(self, config_class=TriviumConfig, d_model=32, **self.choices).run_common_tests()

    def test_resize_position_vector_embeddings(self) -> None:
        self.skipTest("no `resize_position_embeddings`: positions are computed, or learned for one longest length")


class CommonGenerationTests(CommonTests, GenerationTesterMixin):
    """Common tests of generative models."""

    def test_left_padding_compatibility(self) -> None:
        """Repeat the common test, which skips configurations with fields called `encoder_...`."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        written = "decoder_input_ids" if config.is_encoder_decoder else "input_ids"
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            expected = model(**inputs)[0]
            for ids in ("input_ids", written):
                mask = ids.replace("input_ids", "attention_mask")
                padded = inputs | {
                    ids: torch.nn.functional.pad(inputs[ids], (5, 0), value=config.pad_token_id),
                    mask: torch.nn.functional.pad(inputs[mask], (5, 0)),
                }
                output = model(**padded)[0]
                is_padded = ids == written and output.ndim == 3  # a classifier has one output for each text
                torch.testing.assert_close(output[:, 5:] if is_padded else output, expected)

    @unittest.skipIf(HAS_GENERATION, "the generation tests are there")
    def test_generation(self) -> None:
        self.skipTest("the source distribution has no generation tests; give `make contract` a checkout")


class EncoderDecoderTests(CommonGenerationTests):
    """Common tests of encoder-decoder models."""

    all_model_classes = (TriviumModel, TriviumForConditionalGeneration)
    is_encoder_decoder = True

    def test_inputs_embeds_matches_input_ids(self) -> None:
        """Repeat the common test, but embed the target with the decoder, which may have its own embedding."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = TriviumModel(config).eval()
        by_ids = model(**inputs).last_hidden_state
        inputs["inputs_embeds"] = model.encoder.embed_tokens(inputs.pop("input_ids"))
        inputs["decoder_inputs_embeds"] = model.decoder.embed_tokens(inputs.pop("decoder_input_ids"))
        torch.testing.assert_close(model(**inputs).last_hidden_state, by_ids)

    def test_can_capture_specific_layers_hidden_states(self) -> None:
        """Repeat the common test, which skips encoder-decoders because it looks for `hidden_states` in the output."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            model = model_class(config).eval()
            whole = model(**inputs, output_hidden_states=True)
            part = model(**inputs, output_hidden_states=[0, -1])
            for name in ("encoder_hidden_states", "decoder_hidden_states"):
                torch.testing.assert_close(part[name][0], whole[name][0])
                assert part[name][1:-1] == (None,) * (self.model_tester.num_hidden_layers - 1)
                torch.testing.assert_close(part[name][-1], whole[name][-1])

    def test_generate_with_static_cache(self) -> None:
        """Repeat the common test, which skips encoder-decoders because their cache has two parts."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = TriviumForConditionalGeneration(config).eval()
        dynamic, static = (
            model.generate(
                inputs["input_ids"],
                min_new_tokens=8,
                max_new_tokens=8,
                do_sample=False,
                cache_implementation=implementation,
                output_logits=True,
                return_dict_in_generate=True,
            )
            for implementation in ("dynamic", "static")
        )
        assert isinstance(static.cache.self_attention_cache, StaticCache)
        assert dynamic.sequences.tolist() == static.sequences.tolist()
        torch.testing.assert_close(static.logits, dynamic.logits)


class EncoderOnlyTests(CommonTests):
    """Common tests of encoder-only models."""

    all_model_classes = (
        TriviumEncoderModel,
        TriviumForMaskedLM,
        TriviumForSequenceClassification,
        TriviumForTokenClassification,
        TriviumForQuestionAnswering,
    )


class DecoderOnlyTests(CommonGenerationTests):
    """Common tests of decoder-only models."""

    all_model_classes = (TriviumDecoderModel, TriviumForCausalLM, TriviumDecoderForSequenceClassification)

    def test_sdpa_padding_matches_padding_free_with_position_ids(self) -> None:
        """Repeat the common test in float32: bfloat16 rounds logits of unit variance too coarsely."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        mask = inputs["attention_mask"].bool()
        model = TriviumForCausalLM(config).eval()
        positions = torch.cat([torch.arange(length) for length in mask.sum(dim=1).tolist()])[None]
        for implementation in ("sdpa", "eager"):
            model.set_attn_implementation(implementation)
            for real in (mask, mask.flip(1)):  # Pad on the right, then on the left.
                padded = model(inputs["input_ids"], attention_mask=real).logits[real]
                packed = model(inputs["input_ids"][real][None], position_ids=positions, use_cache=False)
                torch.testing.assert_close(packed.logits[0], padded)

    test_eager_padding_matches_padding_free_with_position_ids = (
        test_sdpa_padding_matches_padding_free_with_position_ids
    )


class TestPaper(EncoderDecoderTests, unittest.TestCase):
    """The paper's model: sinusoids, post-norm, all embeddings tied."""


class TestTwoVocabularies(EncoderDecoderTests, unittest.TestCase):
    """Model with a separate target vocabulary, learned positions and biases."""

    choices = {"decoder_vocab_size": 90, "position_embedding_type": "learned", "attention_bias": True}

    def test_resize_tokens_embeddings(self) -> None:
        config, _ = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            with pytest.raises(ValueError, match="decoder_vocab_size=90"):
                model_class(config).resize_token_embeddings(120)
        self.skipTest("refused, as was checked: one number cannot say which of two vocabularies it is for")

    test_resize_embeddings_untied = test_resize_tokens_embeddings
    test_resize_embeddings_untied_no_reinit_on_post_init = test_resize_tokens_embeddings


class TestModern(EncoderDecoderTests, unittest.TestCase):
    """Model with rotary positions, grouped-query attention, gated FFN and pre-RMSNorm, untied."""

    choices = MODERN


class TestBERT(EncoderOnlyTests, unittest.TestCase):
    """Model like BERT: learned positions, token types, normalized embeddings, biases, tied head."""

    choices = {**choices_of("bert-base"), "decoder_layers": 0}


class TestModernEncoder(EncoderOnlyTests, unittest.TestCase):
    """Encoder-only model with the options of TestModern."""

    choices = {**MODERN, "decoder_layers": 0}


class TestGPT2(DecoderOnlyTests, unittest.TestCase):
    """Model like GPT-2: learned positions, pre-norm, biases, tied head."""

    choices = {**choices_of("gpt2"), "encoder_layers": 0}


class TestLLaMA(DecoderOnlyTests, unittest.TestCase):
    """Model like LLaMA: rotary positions, grouped-query attention, gated FFN, pre-RMSNorm, tied head."""

    choices = {**choices_of("llama-135m"), "encoder_layers": 0, "num_key_value_heads": 2}
