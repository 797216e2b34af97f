"""Trivium tokenizer, with a shared vocabulary or separate source and target vocabularies.

This file is saved to the Hub with tokenizers that need it, so it imports only files of its own folder from the
package.
"""

import copy
import os
from collections.abc import Iterable, Sequence
from typing import Any

from tokenizers import AddedToken, Encoding, Tokenizer
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding, PreTrainedTokenizerFast

from .tokenization_backends import (
    SPECIAL_TOKENS,
    adds_prefix_space,
    check_surrogates,
    iterate_strings,
    mark_special,
    set_prefix_space,
    to_standard_backend,
    train_backend,
)

IGNORE_INDEX = -100
TARGET_TOKENIZER_FILE = "target_tokenizer.json"


class TriviumTokenizer(PreTrainedTokenizerFast):
    """Fast tokenizer with a shared vocabulary, or with separate vocabularies for source and target language.

    **BOS and EOS.** A text is encoded as `<s> tokens </s>`, with `<s>` only if `add_bos_token` and `</s>` only if
    `add_eos_token`; a pair as `<s> first </s> second </s>`. Translation needs `</s>` only, since the decoder's start
    token comes from the model configuration; an encoder needs both; the prompt of a language model must not end in
    `</s>`. Both can be set at any time, including when loading:
    `TriviumTokenizer.from_pretrained(folder, add_bos_token=True, add_eos_token=False)`. They are saved as the
    post-processor of `tokenizer.json`, so they hold for other tokenizer classes and languages as well.

    **Two vocabularies.** `tokenizer(text)` encodes with the source vocabulary, `tokenizer(text_target=...)` with the
    target vocabulary, and `tokenizer(text, text_target=...)` returns the target ids as `labels`. `decode` and
    `batch_decode` expect *target* ids, because decoded texts are translations; methods on single tokens
    (`convert_ids_to_tokens`, `convert_tokens_to_ids`, `get_vocab`, `vocab_size`, `len`, `add_tokens`) refer to the
    *source*. Each side is also available as a separate tokenizer: `tokenizer.source.decode(ids)`,
    `tokenizer.target.convert_ids_to_tokens(ids)`, `tokenizer.target.save_pretrained(folder)`. With a shared vocabulary
    both are the tokenizer itself.

    **Special tokens in text.** `<pad>`, `<s>`, `</s>` and `<unk>` written in a text are plain text: no user can end a
    sentence early, and decoding restores the text. Pass `split_special_tokens=False` to recognize them. Only `<mask>`,
    which users do write (`"Paris is the <mask> of France"`), is always recognized. It absorbs the space before it, as
    the tokens that it replaces do (except in a character vocabulary), and decoding with `skip_special_tokens=True`
    drops it. A tokenizer with a chat template is saved with `split_special_tokens=False`, because clients render the
    template to text and tokenize it later.

    Tokens added by `add_tokens` or `add_special_tokens` are recognized in texts; only the reserved tokens above are
    split. (The class of transformers, see below, also splits named special tokens such as `sep_token`.)

    **Words.** With `is_split_into_words=True` words are tokenized as if joined by spaces, as in a pipeline, and
    `offset_mapping` is relative to each word. With `add_prefix_space=True` the first word of a text begins with a
    space as well, which decoding restores.

    **Offsets.** A token includes the space before its word, but its `offset_mapping` does not, so that there is a gap
    before every word, which whole-word masking relies on. If a character is split into byte tokens, the first token
    has its offsets and all further tokens have empty offsets. `char_to_token` still maps every space to its token.

    **Without this class.** With a shared vocabulary and no chat template, a saved tokenizer needs no custom code.
    Where `trivium` is not installed, `AutoTokenizer` loads it as the class of transformers, without
    `trust_remote_code`, and it encodes and decodes identically. So does
    `tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")` with `encode_special_tokens` set to True. The
    following needs this class:

    - Decoding ignores labels of -100, and offsets exclude spaces.
    - Words of `is_split_into_words=True` are joined by spaces.
    - `skip_special_tokens=True` drops special tokens that you added.
    - A lone surrogate raises a `ValueError`.
    - `from_pretrained` accepts `add_prefix_space`, and one of `add_bos_token` and `add_eos_token` without changing
      the other (elsewhere, pass both); these two attributes show what is added to a text.
    - `train_new_from_iterator` preserves the ids of special tokens.

    With two vocabularies or a chat template the code is saved as well, and loading needs `trust_remote_code=True`.

    Args:
        tokenizer_object: Backend of the shared vocabulary, or of the source vocabulary if there are two.
        tokenizer_file: Path of a `tokenizer.json` to load the backend from instead.
        target_tokenizer_object: Backend of the target vocabulary. None if the vocabulary is shared.
        target_tokenizer_file: Path of a file to load the target backend from instead.
        shared_vocabulary: Value from the saved configuration, to detect a missing target file.
        add_bos_token: Whether a text, or a pair, begins with `<s>`. None keeps the setting of the backend.
        add_eos_token: Whether a text, and each text of a pair, ends with `</s>`. None keeps the setting of the
            backend.
        add_prefix_space: Whether to prepend a space to a text that has none. None keeps the setting of the backend.
        kwargs: Arguments of `PreTrainedTokenizerFast`, such as `model_max_length` and `padding_side`.

    Raises:
        ValueError: The two vocabularies have different ids for a special token, or the target's file is missing.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "target_tokenizer_file": TARGET_TOKENIZER_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    _tokenizer: Tokenizer

    def __init__(
        self,
        tokenizer_object: Tokenizer | None = None,
        tokenizer_file: str | None = None,
        target_tokenizer_object: Tokenizer | None = None,
        target_tokenizer_file: str | None = None,
        shared_vocabulary: bool | None = None,
        add_bos_token: bool | None = None,
        add_eos_token: bool | None = None,
        add_prefix_space: bool | None = None,
        **kwargs: Any,
    ) -> None:
        if shared_vocabulary:
            target_tokenizer_object = target_tokenizer_file = None  # a stale file of another tokenizer
        elif target_tokenizer_object is not None:
            target_tokenizer_object = copy.deepcopy(target_tokenizer_object)
        elif target_tokenizer_file is not None:
            target_tokenizer_object = Tokenizer.from_file(target_tokenizer_file)
        elif shared_vocabulary is False:
            raise ValueError(
                f"shared_vocabulary is False, but the file of the target vocabulary, {TARGET_TOKENIZER_FILE!r}, is "
                "missing. Restore it, or save the tokenizer again."
            )

        self._target_tokenizer = target_tokenizer_object
        self._added_special_tokens = set[str]()  # shared by source and target
        self._words_have_spaces = False
        defaults = {**SPECIAL_TOKENS, "split_special_tokens": True, "clean_up_tokenization_spaces": False}
        super().__init__(
            tokenizer_object=tokenizer_object,
            tokenizer_file=tokenizer_file,
            shared_vocabulary=target_tokenizer_object is None,
            **{**defaults, **kwargs},
        )
        self._recognize_added_tokens()
        if add_prefix_space is not None:
            for backend in self._backends():
                set_prefix_space(backend, add_prefix_space)
        self.add_prefix_space = adds_prefix_space(self._tokenizer)
        added_ids = self._tokenizer.encode("").ids
        self._add_bos_token = self.bos_token_id in added_ids if add_bos_token is None else add_bos_token
        self._add_eos_token = self.eos_token_id in added_ids if add_eos_token is None else add_eos_token
        if (add_bos_token, add_eos_token) != (None, None):
            self.update_post_processor()
        if target_tokenizer_object is not None:
            for name, token in self.special_tokens_map.items():
                source_id, target_id = self._tokenizer.token_to_id(token), target_tokenizer_object.token_to_id(token)
                if name in SPECIAL_TOKENS and source_id != target_id:
                    raise ValueError(
                        f"The special token {token!r} has id {source_id} in the source vocabulary and {target_id} in "
                        "the target vocabulary, but must have one id in both vocabularies. Train both with "
                        "train_tokenizer."
                    )

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Return the arguments unchanged: `__init__` loads the files, which the base class would parse and rebuild."""
        return kwargs

    # --- Source and target --------------------------------------------------------------------------------------

    @property
    def shared_vocabulary(self) -> bool:
        """Return True if source and target share one vocabulary."""
        return self._target_tokenizer is None

    @property
    def source(self) -> "TriviumTokenizer":
        """Return the tokenizer of the source language; this tokenizer if the vocabulary is shared."""
        return self if self.shared_vocabulary else self._side(self._tokenizer)

    @property
    def target(self) -> "TriviumTokenizer":
        """Return the tokenizer of the target language; this tokenizer if the vocabulary is shared."""
        return self if self._target_tokenizer is None else self._side(self._target_tokenizer)

    @property
    def target_vocab_size(self) -> int:
        """Return the size of the target vocabulary with added tokens; `len(self)` if the vocabulary is shared."""
        return len(self.target)

    def _backends(self) -> list[Tokenizer]:
        return [self._tokenizer] if self._target_tokenizer is None else [self._tokenizer, self._target_tokenizer]

    def _side(self, backend: Tokenizer) -> "TriviumTokenizer":
        # A shallow copy has the current settings of this tokenizer and shares the backend; nothing is loaded.
        side = copy.copy(self)
        side._tokenizer = backend
        side._target_tokenizer = None
        side.init_kwargs = {**self.init_kwargs, "shared_vocabulary": True}
        return side

    # --- Encoding -----------------------------------------------------------------------------------------------

    def update_post_processor(self) -> None:
        """Set the post-processor of the backends to `add_bos_token` and `add_eos_token`."""
        start = [self.bos_token] if self.add_bos_token else []
        end = [self.eos_token] if self.add_eos_token else []
        template = TemplateProcessing(
            single=[*start, "$A", *end],
            pair=[*start, "$A", *end, "$B:1", *(f"{token}:1" for token in end)],
            special_tokens=[(token, self.convert_tokens_to_ids(token)) for token in start + end],
        )
        for backend in self._backends():
            backend.post_processor = template

    def add_tokens(
        self, new_tokens: str | AddedToken | Sequence[str | AddedToken], special_tokens: bool = False
    ) -> int:
        """Append tokens to the vocabulary.

        Args:
            new_tokens: A token, or several. They are recognized in texts, except reserved special tokens such as
                `bos_token`.
            special_tokens: Whether they are special: not normalized, and dropped by `skip_special_tokens=True`.

        Returns:
            The number of tokens that were added.
        """
        if not (special_tokens and self.split_special_tokens):
            return super().add_tokens(new_tokens, special_tokens=special_tokens)
        added = 0
        for token in [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else new_tokens:
            if str(token) in self._reserved_tokens():
                added += super().add_tokens(token, special_tokens=True)
                continue
            # The backend splits every token that is marked as special, so added tokens must not be marked.
            added_token = AddedToken(token, normalized=False) if isinstance(token, str) else copy.deepcopy(token)
            added_token.special = False
            self._added_special_tokens.add(added_token.content)
            added += super().add_tokens(added_token)
        return added

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Return added tokens by id, with special tokens marked as such even if they are not in the backend."""
        tokens = super().added_tokens_decoder
        for token in tokens.values():
            token.special = token.special or token.content in self._added_special_tokens
        return tokens

    def _reserved_tokens(self) -> set[str]:
        return {*SPECIAL_TOKENS.values(), *(str(getattr(self, name)) for name in SPECIAL_TOKENS)}

    def _recognize_added_tokens(self) -> None:
        """Collect added special tokens, and unmark them in the backends, which would otherwise split them."""
        reserved = self._reserved_tokens()
        self._added_special_tokens |= {token for token in self.all_special_tokens if token not in reserved}
        for backend in self._backends():
            special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
            self._added_special_tokens |= special - reserved
        if self.split_special_tokens and self._added_special_tokens:
            self._tokenizer = mark_special(self._tokenizer, self._added_special_tokens, False)
            if self._target_tokenizer is not None:
                self._target_tokenizer = mark_special(self._target_tokenizer, self._added_special_tokens, False)

    @property
    def standard_backend(self) -> Tokenizer:
        """Return a copy of the backend that recognizes all special tokens in texts, for other tokenizer classes."""
        return to_standard_backend(self._tokenizer, self._added_special_tokens)

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encode texts of the source language, of the target language, or both.

        Args:
            text: A text or a batch of texts of the source language.
            text_pair: Second text of each pair, in the source language.
            text_target: A text or a batch of texts of the target language.
            text_pair_target: Second text of each pair, in the target language.
            kwargs: Arguments of every tokenizer: `padding`, `truncation`, `max_length`, `max_target_length`,
                `return_tensors`, ...

        Returns:
            `input_ids` and `attention_mask`, each (batch, length); with texts of both languages, `labels` as well.

        Raises:
            ValueError: A text has a lone surrogate, which cannot be encoded in UTF-8.
        """
        if self.shared_vocabulary or text_target is None:
            return super().__call__(text, text_pair, text_target, text_pair_target, **kwargs)
        targets = self.target(text_target=text_target, text_pair_target=text_pair_target, **kwargs)
        if text is None:
            return targets
        encoding = super().__call__(text, text_pair, **kwargs)
        encoding["labels"] = targets["input_ids"]
        return encoding

    def _encode_plus(self, text: Any, text_pair: Any = None, **kwargs: Any) -> BatchEncoding:
        tokenizer = self
        if kwargs.get("is_split_into_words"):
            text, text_pair = _prepend_spaces(text), _prepend_spaces(text_pair)
            tokenizer = copy.copy(self)
            tokenizer._words_have_spaces = True
        try:
            return super(TriviumTokenizer, tokenizer)._encode_plus(text, text_pair, **kwargs)
        except TypeError:  # the backend's error only says that the input must be a string
            for string in iterate_strings([text, text_pair]):
                check_surrogates(string)
            raise

    def _convert_encoding(self, encoding: Encoding, **kwargs: Any) -> tuple[dict[str, Any], list[Encoding]]:
        # Do not use the backend's `trim_offsets` instead: `char_to_token` would then return None for spaces, and the
        # assistant mask of a chat template, which looks up the tokens of the first and last character, would be wrong.
        converted, encodings = super()._convert_encoding(encoding, **kwargs)
        if "offset_mapping" in converted:
            converted["offset_mapping"] = [self._word_offsets(encoding) for encoding in encodings]
        return converted, encodings

    def _word_offsets(self, encoding: Encoding) -> list[tuple[int, int]]:
        """Return offsets that exclude the space before each word and do not overlap within a character."""
        pieces = {token: self._tokenizer.decoder.decode([token]) for token in set(encoding.tokens)}
        spaces = {token: len(piece) - len(piece.lstrip()) for token, piece in pieces.items()}
        words = zip(encoding.sequence_ids, encoding.word_ids, strict=True)
        offsets, last_word, last_end = list[tuple[int, int]](), None, 0
        for token, word, (start, end) in zip(encoding.tokens, words, encoding.offsets, strict=True):
            space = spaces[token]
            prepended = int(self._words_have_spaces and (word[1] or 0) > 0)  # a space added by `_prepend_spaces`
            if self.add_prefix_space and not prepended and start == 0 and space:
                space -= 1  # as in GPT-2, this space is the added prefix, which is not in the text
            start += space
            if word == last_word:
                start = max(start, last_end)
            offsets.append((max(min(start, end) - prepended, 0), max(end - prepended, 0)))
            last_word, last_end = word, end
        return offsets

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """Render a conversation with the `chat_template`, and encode it without adding `<s>` and `</s>`.

        Special tokens of the template are recognized, regardless of `split_special_tokens`. So are special tokens that
        a user writes in a message, unless `sanitize_control_tokens=True` (newer releases of transformers) turns them
        into plain text; it rejects messages with `<mask>`, which is always recognized.

        Args:
            args: Positional arguments as in transformers, the conversation first.
            kwargs: Keyword arguments as in transformers: `add_generation_prompt`, `return_tensors`, ...

        Returns:
            As in transformers: `input_ids` and `attention_mask`, or the text with `tokenize=False`.
        """
        chat = copy.copy(self)
        chat.split_special_tokens = False
        return super(TriviumTokenizer, chat).apply_chat_template(*args, **kwargs)

    # --- Decoding -----------------------------------------------------------------------------------------------

    def _decode(self, token_ids: Any, **kwargs: Any) -> str:
        # Both `decode` and `batch_decode` end here, with ids as Python ints.
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        if isinstance(token_ids, int):
            token_ids = [token_ids]
        token_ids = [token_id for token_id in token_ids if token_id != IGNORE_INDEX]
        if negative := [token_id for token_id in token_ids if token_id < 0]:
            raise ValueError(
                f"token_ids has {negative[0]}, but ids must be at least 0, or {IGNORE_INDEX} to be ignored. Replace "
                "negative ids."
            )
        target = self.target
        if kwargs.get("skip_special_tokens") and self._added_special_tokens:  # not marked as special in the backend
            skipped = set(target.convert_tokens_to_ids(sorted(self._added_special_tokens)))
            token_ids = [token_id for token_id in token_ids if token_id not in skipped]
        return super(TriviumTokenizer, target)._decode(token_ids, **kwargs)

    # --- Files --------------------------------------------------------------------------------------------------

    def save_pretrained(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Save the tokenizer as in transformers; the code of this class is saved only if loading needs it.

        The code is saved with two vocabularies or a chat template; all other tokenizers load without
        `trust_remote_code`. With a chat template, `split_special_tokens` is saved as False.

        Args:
            args: Positional arguments as in transformers, the folder first.
            kwargs: Keyword arguments as in transformers: `filename_prefix`, `push_to_hub`, ...

        Returns:
            The paths of the files.
        """
        tokenizer = copy.copy(self)
        # Drop the `auto_map` that was loaded with the tokenizer: saving sets it again if the code is saved.
        tokenizer.init_kwargs = {name: value for name, value in self.init_kwargs.items() if name != "auto_map"}
        if self.shared_vocabulary and not self.chat_template:
            tokenizer._auto_class = None
        if self.chat_template:
            tokenizer.split_special_tokens = False
        if self.shared_vocabulary:  # with two vocabularies the backend files mark added special tokens
            known = {str(token) for token in self.extra_special_tokens} | set(self.special_tokens_map.values())
            added = sorted(self._added_special_tokens - known)
            tokenizer._extra_special_tokens = [*self._extra_special_tokens, *added]
        return super(TriviumTokenizer, tokenizer).save_pretrained(*args, **kwargs)

    def _save_pretrained(
        self,
        save_directory: str | os.PathLike,
        file_names: tuple[str, ...],
        legacy_format: bool | None = None,
        filename_prefix: str | None = None,
    ) -> tuple[str, ...]:
        prefix = f"{filename_prefix}-" if filename_prefix else ""
        backends = {"tokenizer_file": self._tokenizer, "target_tokenizer_file": self._target_tokenizer}
        for name, backend in backends.items():
            path = os.path.join(save_directory, prefix + self.vocab_files_names[name])
            if backend is not None:
                if not self.split_special_tokens:
                    backend = to_standard_backend(backend, self._added_special_tokens)
                elif self._added_special_tokens:  # unmarked for the class of transformers, which would split them
                    backend = mark_special(backend, self._added_special_tokens, self._auto_class is not None)
                # Reset padding and truncation of the last call; every call sets its own.
                backend.no_padding()
                backend.no_truncation()
                backend.save(f"{path}.partial")
                # write atomically: a crash leaves no truncated file under the final name
                os.replace(f"{path}.partial", path)
                file_names += (path,)
            elif os.path.exists(path):
                os.remove(path)  # a stale file of another tokenizer saved to this folder
        return file_names

    # --- Training -----------------------------------------------------------------------------------------------

    def train_new_from_iterator(
        self, text_iterator: Iterable[str] | Iterable[list[str]], vocab_size: int, show_progress: bool = False
    ) -> "TriviumTokenizer":
        """Train a tokenizer with the same settings on other texts.

        Special tokens keep their ids, and added tokens are appended to the new vocabulary.

        Args:
            text_iterator: Texts, or batches of texts.
            vocab_size: Size of the new vocabulary, including special tokens.
            show_progress: Whether to show a progress bar.

        Returns:
            The new tokenizer; this tokenizer is not modified.

        Raises:
            ValueError: This tokenizer has two vocabularies, or `vocab_size` is too small for the alphabet of the
                texts.
        """
        if not self.shared_vocabulary:
            raise ValueError(
                "A tokenizer with two vocabularies cannot be retrained at once: train `tokenizer.source` and "
                "`tokenizer.target` separately."
            )
        backend = train_backend(copy.deepcopy(self._tokenizer), text_iterator, vocab_size, show_progress)
        tokenizer = type(self)(tokenizer_object=backend, **self.init_kwargs)
        for token in self.added_tokens_decoder.values():
            if backend.token_to_id(token.content) is None:
                tokenizer.add_tokens(token, special_tokens=token.content in self._added_special_tokens)
        return tokenizer


def _prepend_spaces(words: Any) -> Any:
    """Prepend a space to every word but the first of a text, or of each text of a batch."""
    if not isinstance(words, (list, tuple)):
        return words
    if any(isinstance(word, (list, tuple)) for word in words):
        return [_prepend_spaces(text) for text in words]
    return [f" {word}" if i > 0 and isinstance(word, str) else word for i, word in enumerate(words)]
