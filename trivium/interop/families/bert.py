"""BERT (Devlin et al. 2018): a post-norm encoder with learned positions, token types and normalized embeddings."""

from trivium.interop.mapping import Family, Rule

LAYER = "encoder.layers.{i}"

BERT = Family(
    model_type="bert",
    classes={
        "BertModel": "TriviumEncoderModel",
        "BertForMaskedLM": "TriviumForMaskedLM",
        "BertForSequenceClassification": "TriviumForSequenceClassification",
        "BertForTokenClassification": "TriviumForTokenClassification",
        "BertForQuestionAnswering": "TriviumForQuestionAnswering",
        "BertForPreTraining": "TriviumForMaskedLM",
    },
    fields=(
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "encoder_layers"),
        ("num_attention_heads", "num_attention_heads"),
        ("num_attention_heads", "num_key_value_heads"),
        ("intermediate_size", "ffn_dim"),
        ("hidden_act", "activation_function"),
        ("hidden_dropout_prob", "dropout"),
        ("classifier_dropout", "dropout"),
        ("attention_probs_dropout_prob", "attention_dropout"),
        ("type_vocab_size", "type_vocab_size"),
        ("layer_norm_eps", "norm_eps"),
    ),
    requirements={
        "decoder_layers": 0,
        "gated_ffn": False,
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "norm_position": "post",
        "scale_embedding": False,
        "normalize_embedding": True,
    },
    import_defaults={"attention_bias": True, "ffn_bias": True, "classifier_pooling": "cls"},
    class_requirements={"TriviumForSequenceClassification": {"classifier_pooling": "cls"}},
    native_requirements={"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"},
    training_fields={"activation_dropout": 0.0},
    rules=(
        Rule("embeddings.word_embeddings", "encoder.embed_tokens"),
        Rule("embeddings.position_embeddings", "encoder.embed_positions.embedding"),
        Rule("embeddings.token_type_embeddings", "encoder.embed_token_types"),
        Rule("embeddings.LayerNorm", "encoder.embedding_norm"),
        Rule("encoder.layer.{i}.attention.self.query", f"{LAYER}.self_attn.q_proj"),
        Rule("encoder.layer.{i}.attention.self.key", f"{LAYER}.self_attn.k_proj"),
        Rule("encoder.layer.{i}.attention.self.value", f"{LAYER}.self_attn.v_proj"),
        Rule("encoder.layer.{i}.attention.output.dense", f"{LAYER}.self_attn.o_proj"),
        Rule("encoder.layer.{i}.attention.output.LayerNorm", f"{LAYER}.self_attn_residual.norm"),
        Rule("encoder.layer.{i}.intermediate.dense", f"{LAYER}.feed_forward.up_proj"),
        Rule("encoder.layer.{i}.output.dense", f"{LAYER}.feed_forward.down_proj"),
        Rule("encoder.layer.{i}.output.LayerNorm", f"{LAYER}.feed_forward_residual.norm"),
        Rule("cls.predictions.transform.dense", "mlm_head.dense"),
        Rule("cls.predictions.transform.LayerNorm", "mlm_head.norm"),
        Rule("cls.predictions.decoder", "mlm_head.decoder"),
        Rule("pooler.dense", "classifier.dense"),
        Rule("classifier", "classifier.out_proj"),
        Rule("classifier", "classifier"),
        Rule("qa_outputs", "qa_outputs"),
    ),
    zero_if_missing=("embeddings.token_type_embeddings.weight",),
    dropped=("pooler.", "cls.seq_relationship.", "cls.predictions.bias"),
    ignored=("embeddings.position_ids",),
    renamed={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    write=lambda config: {"type_vocab_size": max(1, config.type_vocab_size)},  # BERT always adds type 0
)
