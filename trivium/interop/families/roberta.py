"""RoBERTa (Liu et al. 2019): BERT with different heads, and position ids that start after `pad_token_id`."""

from dataclasses import replace

from transformers import PreTrainedConfig

from trivium.configuration import TriviumConfig
from trivium.interop.families.bert import BERT
from trivium.interop.mapping import Fields, Offset, Rule


def padding_id(config: PreTrainedConfig) -> int:
    """Return `pad_token_id`, or RoBERTa's default of 1 if it is unset."""
    return 1 if config.pad_token_id is None else config.pad_token_id


def read(config: PreTrainedConfig) -> Fields:
    """Subtract the reserved rows: positions start at `pad_token_id + 1`."""
    return {"max_position_embeddings": config.max_position_embeddings - padding_id(config) - 1}


def write(config: TriviumConfig) -> Fields:
    """Add the reserved rows up to `pad_token_id` to the position table; otherwise as BERT."""
    return {
        **BERT.write(config),
        "max_position_embeddings": config.max_position_embeddings + padding_id(config) + 1,
    }


ROBERTA = replace(
    BERT,
    model_type="roberta",
    classes={
        name.replace("Bert", "Roberta"): trivium
        for name, trivium in BERT.classes.items()
        if name != "BertForPreTraining"
    },
    requirements={**BERT.requirements, "pad_token_id": padding_id},
    native_requirements={**BERT.native_requirements, "pad_token_id": padding_id},
    # RobertaLMHead hard-codes GELU.
    class_requirements={**BERT.class_requirements, "TriviumForMaskedLM": {"activation_function": "gelu"}},
    rules=(
        *(rule for rule in BERT.rules if not rule.native.startswith(("cls.", "pooler.", "embeddings.position"))),
        Offset("embeddings.position_embeddings", "encoder.embed_positions.embedding"),
        Rule("lm_head.dense", "mlm_head.dense"),
        Rule("lm_head.layer_norm", "mlm_head.norm"),
        Rule("lm_head.decoder", "mlm_head.decoder"),
        Rule("classifier.dense", "classifier.dense"),
        Rule("classifier.out_proj", "classifier.out_proj"),
    ),
    dropped=("pooler.", "lm_head.bias"),
    read=read,
    write=write,
)
