"""RoBERTa (Liu et al. 2019): BERT with other heads, and positions that count on from the padding's."""

from dataclasses import replace

from transformers import PreTrainedConfig

from trivium.configuration import TriviumConfig
from trivium.interop.families.bert import BERT
from trivium.interop.mapping import Fields, Offset, Rule


def padding_id(config: PreTrainedConfig) -> int:
    """It must have one; if it has none, this is what it had best be."""
    return 1 if config.pad_token_id is None else config.pad_token_id


def read(config: PreTrainedConfig) -> Fields:
    """The first position is the padding's id + 1."""
    return {"max_position_embeddings": config.max_position_embeddings - padding_id(config) - 1}


def write(config: TriviumConfig) -> Fields:
    """As BERT, and with room for the padding's position and those before it."""
    return {
        **BERT.write(config),
        "max_position_embeddings": config.max_position_embeddings + padding_id(config) + 1,
    }


ROBERTA = replace(
    BERT,
    model_type="roberta",
    classes={
        name.replace("Bert", "Roberta"): ours for name, ours in BERT.classes.items() if name != "BertForPreTraining"
    },
    ours={**BERT.ours, "pad_token_id": padding_id},
    theirs={**BERT.theirs, "pad_token_id": padding_id},
    # The head for masks knows no other activation.
    ours_of_class={**BERT.ours_of_class, "TriviumForMaskedLM": {"activation_function": "gelu"}},
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
