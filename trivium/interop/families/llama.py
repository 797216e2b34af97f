"""LLaMA (Touvron et al. 2023): pre-norm decoder with rotary positions, RMSNorm and a gated FFN."""

from trivium.interop.mapping import Family, Rule

LAYER = "decoder.layers.{i}"

LLAMA = Family(
    model_type="llama",
    classes={"LlamaForCausalLM": "TriviumForCausalLM", "LlamaModel": "TriviumDecoderModel"},
    fields=(
        ("hidden_size", "d_model"),
        ("num_hidden_layers", "decoder_layers"),
        ("num_attention_heads", "num_attention_heads"),
        ("num_key_value_heads", "num_key_value_heads"),
        ("intermediate_size", "ffn_dim"),
        ("hidden_act", "activation_function"),
        ("attention_dropout", "attention_dropout"),
        ("rms_norm_eps", "norm_eps"),
        ("rope_parameters", "rope_parameters"),
        ("attention_bias", "attention_bias"),
        ("mlp_bias", "ffn_bias"),
    ),
    requirements={
        "encoder_layers": 0,
        "gated_ffn": True,
        "position_embedding_type": "rotary",
        "norm_type": "rmsnorm",
        "norm_position": "pre",
        "scale_embedding": False,
        "normalize_embedding": False,
        "lm_head_bias": False,
        "sliding_window": None,
    },
    native_requirements={
        "head_dim": lambda config: config.hidden_size // config.num_attention_heads,
        "rope_parameters.partial_rotary_factor": 1.0,
    },
    training_fields={"dropout": 0.0, "activation_dropout": 0.0},
    rules=(
        Rule("embed_tokens", "decoder.embed_tokens"),
        Rule("layers.{i}.input_layernorm", f"{LAYER}.self_attn_residual.norm"),
        Rule("layers.{i}.self_attn.q_proj", f"{LAYER}.self_attn.q_proj"),
        Rule("layers.{i}.self_attn.k_proj", f"{LAYER}.self_attn.k_proj"),
        Rule("layers.{i}.self_attn.v_proj", f"{LAYER}.self_attn.v_proj"),
        Rule("layers.{i}.self_attn.o_proj", f"{LAYER}.self_attn.o_proj"),
        Rule("layers.{i}.post_attention_layernorm", f"{LAYER}.feed_forward_residual.norm"),
        Rule("layers.{i}.mlp.gate_proj", f"{LAYER}.feed_forward.gate_proj"),
        Rule("layers.{i}.mlp.up_proj", f"{LAYER}.feed_forward.up_proj"),
        Rule("layers.{i}.mlp.down_proj", f"{LAYER}.feed_forward.down_proj"),
        Rule("norm", "decoder.norm"),
        Rule("lm_head", "lm_head"),
    ),
    ignored=("rotary_emb.inv_freq",),
)
