"""Convert tokenizers to GGUF: vocabulary, merges and pre-tokenizer, under llama.cpp's names.

llama.cpp has a built-in pattern for each pre-tokenizer that it knows, and does not normalize text. It can represent
two kinds of tokenizers:

    byte-level BPE      its "gpt2" model, with a known pre-tokenizer
    characters          its "t5" model, Unigram with equal scores: there is one segmentation into characters
"""

import json
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from trivium.storage.saved_model import check_model_files
from trivium.tokenization import TriviumTokenizer
from trivium.tokenization.train_tokenizer import WORDS

GPT2_PATTERN = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
LLAMA3_PATTERN = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
PRE_TOKENIZERS = {
    WORDS: "gpt-2",  # llama.cpp splits off <mask> beforehand, as a special token
    GPT2_PATTERN: "gpt-2",
    LLAMA3_PATTERN: "llama-bpe",
    LLAMA3_PATTERN.replace(r"\p{N}{1,3}", r"\p{N}"): "qwen2",
}
IGNORES_MERGES = ("llama-bpe",)  # these look up whole words in the vocabulary before merging
MASK_TAKES_SPACE = {"type": "Replace", "pattern": {"Regex": " (?=<mask>)"}, "content": ""}
ESCAPED_SPACE = "\u2581"  # "▁" in llama.cpp's Unigram vocabularies


class Vocabulary(NamedTuple):
    """A tokenizer as stored in a GGUF file.

    Attributes:
        model: llama.cpp's name of the algorithm.
        pre_tokenizer: llama.cpp's name of the pre-tokenizer.
        tokens: Tokens by id; their number equals the model's vocabulary size.
        types: Token types by id, as names in `gguf.TokenType`.
        merges: BPE merges, most frequent first.
        add_bos: Whether BOS is prepended to a text.
        add_eos: Whether EOS is appended to a text.
        bos_id: Id of BOS.
        unk_id: Id of the unknown token.
        pad_id: Id of the padding token.
        chat_template: Chat template.
        notes: Notes on differences from the original tokenizer, one clause each.
    """

    model: str
    pre_tokenizer: str
    tokens: list[str]
    types: list[str]
    merges: list[str]
    add_bos: bool
    add_eos: bool
    bos_id: int | None
    unk_id: int | None
    pad_id: int | None
    chat_template: Any
    notes: list[str]


def read_vocabulary(folder: Path, vocab_size: int) -> Vocabulary:
    """Read the tokenizer of a saved model.

    Args:
        folder: Folder of the model.
        vocab_size: Vocabulary size of the model, at least that of the tokenizer.

    Raises:
        FileNotFoundError: The folder has no tokenizer.
        ValueError: llama.cpp would encode texts differently.
    """
    check_model_files(folder, with_tokenizer=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if len(tokenizer) > vocab_size:
        raise ValueError(
            f"The tokenizer has {len(tokenizer)} tokens, but must have at most vocab_size={vocab_size}. Resize the "
            "embeddings of the model."
        )
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    notes = _check_normalizer(state["normalizer"])
    is_character = _is_character(state)
    pre_tokenizer = "default" if is_character else _find_pre_tokenizer(state)
    tokens, types = _list_tokens(tokenizer, vocab_size)
    if is_character:
        tokens = [token.replace(" ", ESCAPED_SPACE) for token in tokens]
        notes.append(f"llama.cpp encodes a run of unknown characters as a single {tokenizer.unk_token}")
    ends = tokenizer("")["input_ids"]
    return Vocabulary(
        model="t5" if is_character else "gpt2",
        pre_tokenizer=pre_tokenizer,
        tokens=tokens,
        types=types,
        merges=[merge if isinstance(merge, str) else " ".join(merge) for merge in state["model"]["merges"]],
        add_bos=tokenizer.bos_token_id in ends[:1],
        add_eos=tokenizer.eos_token_id in ends[-1:] and (len(ends) > 1 or tokenizer.bos_token_id not in ends),
        bos_id=tokenizer.bos_token_id,
        unk_id=tokenizer.unk_token_id,
        pad_id=tokenizer.pad_token_id,
        chat_template=tokenizer.chat_template,
        notes=notes,
    )


def _check_normalizer(normalizer: dict[str, Any] | None) -> list[str]:
    """Return a note if the tokenizer normalizes to NFC, which llama.cpp does not; refuse all other normalizers."""
    steps = (normalizer or {}).get("normalizers", [normalizer] if normalizer else [])
    notes = list[str]()
    for step in steps:
        if step["type"] == "NFC":
            notes.append("llama.cpp does not normalize texts: normalize them to NFC before")
        elif step != MASK_TAKES_SPACE:
            raise ValueError(
                f"The tokenizer normalizes texts by {step['type']}, but llama.cpp normalizes none. Train the "
                "tokenizer with normalization NFC or None and lowercase=False."
            )
    return notes


def _is_character(state: dict[str, Any]) -> bool:
    """Return True if the vocabulary consists of characters, as with `algorithm="char"`."""
    model, added = state["model"], {token["content"] for token in state["added_tokens"]}
    return (
        model["type"] == "BPE"
        and not (model["merges"] or model["byte_fallback"])
        and model["unk_token"] is not None
        and all(len(token) == 1 for token in model["vocab"] if token not in added)
    )


def _find_pre_tokenizer(state: dict[str, Any]) -> str:
    """Return llama.cpp's name of the pre-tokenizer of a byte-level BPE.

    Raises:
        ValueError: The tokenizer is of another kind, or llama.cpp does not have its pre-tokenizer.
    """
    model, pre_tokenizer = state["model"], state["pre_tokenizer"] or {}
    steps = pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    byte_level = steps[-1]
    if model["type"] != "BPE" or byte_level.get("type") != "ByteLevel" or byte_level["add_prefix_space"]:
        kind = "BPE without bytes" if model["type"] == "BPE" else model["type"]
        kind = "BPE with prefix spaces" if byte_level.get("add_prefix_space") else kind
        raise ValueError(
            f"The tokenizer is {kind}, but must be byte-level BPE or characters for GGUF: llama.cpp has no "
            "equivalent. Train the tokenizer with algorithm='bpe' or 'char', without byte_fallback."
        )
    patterns = [step.get("pattern", {}).get("Regex") for step in steps[:-1]]
    patterns += [GPT2_PATTERN] if byte_level["use_regex"] else []
    name = PRE_TOKENIZERS.get(patterns[0]) if len(patterns) == 1 else None
    if name is None:
        raise ValueError(
            f"The pre-tokenizer of the tokenizer splits texts by {patterns}, but must split by one of the patterns "
            f"that llama.cpp has: {', '.join(sorted(set(PRE_TOKENIZERS.values())))}."
        )
    if model["ignore_merges"] != (name in IGNORES_MERGES):
        _check_merges(model, {token["content"] for token in state["added_tokens"]})
    return name


def _check_merges(model: dict[str, Any], added: set[str]) -> None:
    """Check that merges can produce every token, so that looking up whole words first makes no difference."""
    bare = {"version": "1.0", "added_tokens": [], "model": {**model, "ignore_merges": False}}
    parts = dict.fromkeys(("truncation", "padding", "normalizer", "pre_tokenizer", "post_processor", "decoder"))
    backend = Tokenizer.from_str(json.dumps({**bare, **parts}))
    tokens = [token for token in model["vocab"] if token not in added]
    for token, encoding in zip(tokens, backend.encode_batch(tokens), strict=True):
        if encoding.tokens != [token]:
            raise ValueError(
                f"The merges of the tokenizer turn {token!r} into {encoding.tokens}, but must yield the token itself "
                "for GGUF: llama.cpp does not look up whole words."
            )


def _list_tokens(tokenizer: PreTrainedTokenizerBase, vocab_size: int) -> tuple[list[str], list[str]]:
    """Return the tokens and their types, by id; ids unused by the tokenizer get placeholders."""
    tokens, types = [f"[PAD{id}]" for id in range(vocab_size)], ["CONTROL"] * vocab_size
    for token, id in tokenizer.get_vocab().items():
        tokens[id], types[id] = token, "NORMAL"
    is_trivium = isinstance(tokenizer, TriviumTokenizer)
    for id, token in tokenizer.added_tokens_decoder.items():
        # A Trivium tokenizer always recognizes the mask in texts, and llama.cpp recognizes user-defined tokens.
        is_control = token.special and not (is_trivium and id == tokenizer.mask_token_id)
        types[id] = "CONTROL" if is_control else "USER_DEFINED"
    if tokenizer.unk_token_id is not None and types[tokenizer.unk_token_id] == "CONTROL":
        types[tokenizer.unk_token_id] = "UNKNOWN"
    return tokens, types
