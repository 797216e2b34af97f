"""GPT-2 (Radford et al. 2019): pre-norm decoder with learned positions; `Conv1D` weights are transposed."""

from trivium.interop.mapping import Family, Rule, Transposed

LAYER = "decoder.layers.{i}"

GPT2 = Family(
    model_type="gpt2",
    classes={"GPT2LMHeadModel": "TriviumForCausalLM", "GPT2Model": "TriviumDecoderModel"},
    fields=(
        ("n_embd", "d_model"),
        ("n_positions", "max_position_embeddings"),
        ("n_layer", "decoder_layers"),
        ("n_head", "num_attention_heads"),
        ("n_head", "num_key_value_heads"),
        ("n_inner", "ffn_dim"),
        ("activation_function", "activation_function"),
        ("resid_pdrop", "dropout"),
        ("embd_pdrop", "dropout"),
        ("attn_pdrop", "attention_dropout"),
        ("layer_norm_epsilon", "norm_eps"),
    ),
    requirements={
        "encoder_layers": 0,
        "gated_ffn": False,
        "position_embedding_type": "learned",
        "norm_type": "layernorm",
        "norm_position": "pre",
        "scale_embedding": False,
        "normalize_embedding": False,
        "lm_head_bias": False,
    },
    import_defaults={"attention_bias": True, "ffn_bias": True},
    native_requirements={
        "scale_attn_weights": True,
        "scale_attn_by_inverse_layer_idx": False,
        "add_cross_attention": False,
    },
    training_fields={"activation_dropout": 0.0},
    rules=(
        Rule("wte", "decoder.embed_tokens"),
        Rule("wpe", "decoder.embed_positions.embedding"),
        Rule("h.{i}.ln_1", f"{LAYER}.self_attn_residual.norm"),
        Transposed("h.{i}.attn.c_attn", *(f"{LAYER}.self_attn.{x}_proj" for x in "qkv")),
        Transposed("h.{i}.attn.c_proj", f"{LAYER}.self_attn.o_proj"),
        Rule("h.{i}.ln_2", f"{LAYER}.feed_forward_residual.norm"),
        Transposed("h.{i}.mlp.c_fc", f"{LAYER}.feed_forward.up_proj"),
        Transposed("h.{i}.mlp.c_proj", f"{LAYER}.feed_forward.down_proj"),
        Rule("ln_f", "decoder.norm"),
        Rule("lm_head", "lm_head"),
    ),
    ignored=(".attn.bias", ".attn.masked_bias"),
    read=lambda config: {"n_inner": config.n_inner or 4 * config.n_embd},
    write=lambda config: {"n_ctx": config.max_position_embeddings},  # llama.cpp's converter reads the old name
)
