"""BART (Lewis et al. 2019): encoder and decoder with learned positions and normalized embeddings."""

from trivium.interop.mapping import Family, Offset, Row, Rule

# Shared by BART and Marian.
POST_NORM = {
    "is_encoder_decoder": True,
    "gated_ffn": False,
    "norm_type": "layernorm",
    "norm_position": "post",
    "norm_eps": 1e-5,
    "type_vocab_size": 0,
    "sliding_window": None,
}
NO_LAYER_DROPPED = {"encoder_layerdrop": 0.0, "decoder_layerdrop": 0.0}


def stack_rules(stack: str) -> list[Rule]:
    """Return the rules of the encoder or the decoder; only the decoder has cross-attention."""
    layer = f"{stack}.layers.{{i}}"
    attentions = {"self_attn": "self_attn"} | ({"encoder_attn": "cross_attn"} if stack == "decoder" else {})
    rules = [
        Rule(f"{stack}.embed_tokens", f"{stack}.embed_tokens"),
        Offset(f"{stack}.embed_positions", f"{stack}.embed_positions.embedding"),
        Rule(f"{stack}.layernorm_embedding", f"{stack}.embedding_norm"),
        Rule(f"{layer}.fc1", f"{layer}.feed_forward.up_proj"),
        Rule(f"{layer}.fc2", f"{layer}.feed_forward.down_proj"),
        Rule(f"{layer}.final_layer_norm", f"{layer}.feed_forward_residual.norm"),
    ]
    for native, trivium in attentions.items():
        rules += [Rule(f"{layer}.{native}.{x}_proj", f"{layer}.{trivium}.{x}_proj") for x in "qkv"]
        rules += [Rule(f"{layer}.{native}.out_proj", f"{layer}.{trivium}.o_proj")]
        rules += [Rule(f"{layer}.{native}_layer_norm", f"{layer}.{trivium}_residual.norm")]
    return rules


BART = Family(
    model_type="bart",
    classes={"BartForConditionalGeneration": "TriviumForConditionalGeneration", "BartModel": "TriviumModel"},
    fields=(
        ("d_model", "d_model"),
        ("encoder_layers", "encoder_layers"),
        ("decoder_layers", "decoder_layers"),
        ("encoder_attention_heads", "num_attention_heads"),
        ("encoder_attention_heads", "num_key_value_heads"),
        ("decoder_attention_heads", "num_attention_heads"),
        ("encoder_ffn_dim", "ffn_dim"),
        ("decoder_ffn_dim", "ffn_dim"),
        ("activation_function", "activation_function"),
        ("dropout", "dropout"),
        ("attention_dropout", "attention_dropout"),
        ("activation_dropout", "activation_dropout"),
        ("scale_embedding", "scale_embedding"),
        ("decoder_start_token_id", "decoder_start_token_id"),
    ),
    requirements={
        **POST_NORM,
        "position_embedding_type": "learned",
        "normalize_embedding": True,
        "decoder_vocab_size": None,
        "tie_word_embeddings": True,
    },
    import_defaults={"attention_bias": True, "ffn_bias": True},
    native_requirements={**NO_LAYER_DROPPED, "tie_word_embeddings": True},
    rules=(
        *stack_rules("encoder"),
        *stack_rules("decoder"),
        Rule("lm_head", "lm_head"),
        Row("final_logits_bias", "lm_head.bias"),
    ),
    presence_flags={"lm_head_bias": "final_logits_bias"},
    ignored=("encoder.version", "decoder.version"),
)
