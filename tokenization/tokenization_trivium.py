"""Trivium's tokenizer: one vocabulary for both languages, or one for each.

This file travels to the Hub inside a saved tokenizer that needs it, so it imports nothing of the package around it.
"""

import copy
import json
import operator
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from tokenizers import AddedToken, Encoding, Regex, Tokenizer, models, normalizers, trainers
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.processors import TemplateProcessing
from transformers import BatchEncoding, PreTrainedTokenizerFast

# Their order is their ids, in every vocabulary: 0, 1, 2, 3, 4.
SPECIAL_TOKENS = {
    "pad_token": "<pad>",
    "bos_token": "<s>",
    "eos_token": "</s>",
    "unk_token": "<unk>",
    "mask_token": "<mask>",
}
IGNORE_INDEX = -100
MAX_VOCAB_SIZE = 2**20  # trainers allocate memory for it
TARGET_TOKENIZER_FILE = "target_tokenizer.json"


class TriviumTokenizer(PreTrainedTokenizerFast):
    """A fast tokenizer with one shared vocabulary, or with one for the source and one for the target language.

    **Around a text.** A text is encoded as `<s> tokens </s>`, with `<s>` only if `add_bos_token` and `</s>` only if
    `add_eos_token`; a pair as `<s> first </s> second </s>`. Translation wants `</s>` alone, since the decoder's first
    token comes from the model's configuration; an encoder both; and the prompt of a language model, which must stay
    open, no `</s>`. Both can be set later, and when loading:
    `TriviumTokenizer.from_pretrained(folder, add_bos_token=True, add_eos_token=False)`. They are saved as the
    post-processor of `tokenizer.json`, where other classes and other languages find them.

    **Two vocabularies.** `tokenizer(text)` encodes with the source's, `tokenizer(text_target=...)` with the target's,
    and `tokenizer(text, text_target=...)` puts the second into `labels`. `decode` and `batch_decode` read ids of the
    *target*, since translations are what one decodes; everything about single tokens (`convert_ids_to_tokens`,
    `convert_tokens_to_ids`, `get_vocab`, `vocab_size`, `len`, `add_tokens`) is about the *source*. The two sides
    are tokenizers themselves: `tokenizer.source.decode(ids)`, `tokenizer.target.convert_ids_to_tokens(ids)`,
    `tokenizer.target.save_pretrained(folder)`. With a shared vocabulary both are the tokenizer itself.

    **Special tokens in text.** `<pad>`, `<s>`, `</s>` and `<unk>` written in a text are plain text: no user can end a
    sentence early, and decoding gives the text back. Pass `split_special_tokens=False` to have them recognised. Only
    `<mask>`, which people do write (`"Paris is the <mask> of France"`), always becomes the special token. It takes in
    the space before it, as the pieces it stands for do (in a vocabulary of characters it does not), and decoding with
    `skip_special_tokens=True` leaves it out. A tokenizer with a chat template is saved with
    `split_special_tokens=False`, because clients render the template as text and tokenize it later.

    Tokens that you add, with `add_tokens` or `add_special_tokens`, are recognized in texts: only the reserved ones
    above are guarded. (Transformers' own class, see below, guards those with a name as well, such as `sep_token`.)

    **Words.** With `is_split_into_words=True` the tokens are those of the words joined by spaces, as a pipeline
    would read them, and `offset_mapping` is relative to each word. With `add_prefix_space=True` the first word of a
    text begins with a space as well, which decoding gives back.

    **Offsets.** A piece has the space before its word inside, but `offset_mapping` leaves it out, so that there is a
    gap before every word: whole-word masking looks for it. Of the pieces that spell one character in bytes the first
    has it, the others nothing. `char_to_token` still finds the piece of every space.

    **Without this class.** With one vocabulary and no chat template a saved tokenizer needs no code of ours: where
    `trivium` is not installed, `AutoTokenizer` gives transformers' own class, without `trust_remote_code`, and that
    encodes and decodes the same. So does `tokenizers.Tokenizer.from_file(folder + "/tokenizer.json")`, once its
    `encode_special_tokens` is True. Only here are labels of -100 left out when decoding, and spaces of the offsets;
    are split words joined by spaces; does `skip_special_tokens=True` leave out special tokens that you added; is a
    lone surrogate a `ValueError`; does `add_prefix_space`, given to `from_pretrained`, take effect; do `add_bos_token`
    and `add_eos_token` tell what is put around a text, and either of them, given to `from_pretrained`, leave the other
    as it is (elsewhere, give both); and does `train_new_from_iterator` keep the special tokens' ids. With two
    vocabularies or a chat template the code is saved as well, and loading it takes `trust_remote_code=True`.

    Args:
        tokenizer_object: The backend; of the source language, if there are two.
        tokenizer_file: The path of a `tokenizer.json` to read it from instead.
        target_tokenizer_object: The backend of the target language. Without one the vocabulary is shared.
        target_tokenizer_file: The path of a file to read it from instead.
        shared_vocabulary: What the saved configuration says, so that a missing file is noticed.
        add_bos_token: Whether a text, or a pair, begins with `<s>`. `None` leaves it as the backend has it.
        add_eos_token: Whether a text, and each of a pair, ends with `</s>`. `None` leaves it as the backend has it.
        add_prefix_space: Whether a text that begins without a space gets one. `None` leaves it as the backend has it.
        kwargs: What every `PreTrainedTokenizerFast` takes, such as `model_max_length` and `padding_side`.

    Raises:
        ValueError: If the two vocabularies disagree about the id of a special token, or if the target's is missing.
    """

    vocab_files_names = {"tokenizer_file": "tokenizer.json", "target_tokenizer_file": TARGET_TOKENIZER_FILE}
    model_input_names = ["input_ids", "attention_mask"]
    _tokenizer: Tokenizer
    _words_have_spaces = False

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
            target_tokenizer_object = target_tokenizer_file = None  # a file left over from another tokenizer
        elif target_tokenizer_object is not None:
            target_tokenizer_object = copy.deepcopy(target_tokenizer_object)
        elif target_tokenizer_file is not None:
            target_tokenizer_object = Tokenizer.from_file(target_tokenizer_file)
        elif shared_vocabulary is False:
            raise ValueError(f"This tokenizer has two vocabularies, but {TARGET_TOKENIZER_FILE!r} is missing.")

        self._target_tokenizer = target_tokenizer_object
        self._added_special_tokens = set[str]()  # shared by the two sides
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
                _set_prefix_space(backend, add_prefix_space)
        self.add_prefix_space = _adds_prefix_space(self._tokenizer)
        around = self._tokenizer.encode("").ids
        self._add_bos_token = self.bos_token_id in around if add_bos_token is None else add_bos_token
        self._add_eos_token = self.eos_token_id in around if add_eos_token is None else add_eos_token
        if (add_bos_token, add_eos_token) != (None, None):
            self.update_post_processor()
        if target_tokenizer_object is not None:
            for name, token in self.special_tokens_map.items():
                source_id, target_id = self._tokenizer.token_to_id(token), target_tokenizer_object.token_to_id(token)
                if name in SPECIAL_TOKENS and source_id != target_id:
                    raise ValueError(
                        f"{token!r} must have one id in both vocabularies, got {source_id} in the source's "
                        f"and {target_id} in the target's."
                    )

    @classmethod
    def convert_to_native_format(cls, **kwargs: Any) -> dict[str, Any]:
        """Leaves the files to `__init__`, which reads them whole; the base class would take them apart."""
        return kwargs

    # --- The two sides ------------------------------------------------------------------------------------------

    @property
    def shared_vocabulary(self) -> bool:
        """Whether source and target share one vocabulary."""
        return self._target_tokenizer is None

    @property
    def source(self) -> "TriviumTokenizer":
        """The tokenizer of the source language alone; this one, if the vocabulary is shared."""
        return self if self.shared_vocabulary else self._side(self._tokenizer)

    @property
    def target(self) -> "TriviumTokenizer":
        """The tokenizer of the target language alone; this one, if the vocabulary is shared."""
        return self if self._target_tokenizer is None else self._side(self._target_tokenizer)

    @property
    def target_vocab_size(self) -> int:
        """The number of tokens in the target's vocabulary, added ones included; `len(self)` if it is shared."""
        return len(self.target)

    def _backends(self) -> list[Tokenizer]:
        return [self._tokenizer] if self._target_tokenizer is None else [self._tokenizer, self._target_tokenizer]

    def _side(self, backend: Tokenizer) -> "TriviumTokenizer":
        # A shallow copy follows the settings of this tokenizer and shares the backend, without loading anything.
        side = copy.copy(self)
        side._tokenizer = backend
        side._target_tokenizer = None
        side.init_kwargs = {**self.init_kwargs, "shared_vocabulary": True}
        return side

    # --- Text to ids --------------------------------------------------------------------------------------------

    def update_post_processor(self) -> None:
        """Makes both backends put around a text what `add_bos_token` and `add_eos_token` say."""
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
        """Add tokens at the end of the vocabulary.

        Args:
            new_tokens: One token, or several. They are recognized in texts; of special ones this holds for all but
                those that are reserved (`bos_token` and the like).
            special_tokens: Whether they are special: not normalized, and left out by `skip_special_tokens=True`.

        Returns:
            The number of tokens that are new.
        """
        if not (special_tokens and self.split_special_tokens):
            return super().add_tokens(new_tokens, special_tokens=special_tokens)
        added = 0
        for token in [new_tokens] if isinstance(new_tokens, (str, AddedToken)) else new_tokens:
            if str(token) in self._reserved_tokens():
                added += super().add_tokens(token, special_tokens=True)
                continue
            # The backend guards every token that it knows as special.
            plain = AddedToken(token, normalized=False) if isinstance(token, str) else copy.deepcopy(token)
            plain.special = False
            self._added_special_tokens.add(plain.content)
            added += super().add_tokens(plain)
        return added

    @property
    def added_tokens_decoder(self) -> dict[int, AddedToken]:
        """Added tokens by their ids; special ones are so here, also where the backend must not know."""
        tokens = super().added_tokens_decoder
        for token in tokens.values():
            token.special = token.special or token.content in self._added_special_tokens
        return tokens

    def _reserved_tokens(self) -> set[str]:
        return {*SPECIAL_TOKENS.values(), *(str(getattr(self, name)) for name in SPECIAL_TOKENS)}

    def _recognize_added_tokens(self) -> None:
        """Find the special tokens that were added, and do not let backends guard them as they do the reserved ones."""
        reserved = self._reserved_tokens()
        self._added_special_tokens |= {token for token in self.all_special_tokens if token not in reserved}
        for backend in self._backends():
            special = {token.content for token in backend.get_added_tokens_decoder().values() if token.special}
            self._added_special_tokens |= special - reserved
        if self.split_special_tokens and self._added_special_tokens:
            self._tokenizer = _mark_special(self._tokenizer, self._added_special_tokens, False)
            if self._target_tokenizer is not None:
                self._target_tokenizer = _mark_special(self._target_tokenizer, self._added_special_tokens, False)

    @property
    def standard_backend(self) -> Tokenizer:
        """A copy of the backend for another tokenizer or class, which recognizes all special tokens in texts."""
        return _unguarded(self._tokenizer, self._added_special_tokens)

    def __call__(
        self,
        text: Any = None,
        text_pair: Any = None,
        text_target: Any = None,
        text_pair_target: Any = None,
        **kwargs: Any,
    ) -> BatchEncoding:
        """Encodes texts of the source language, of the target language, or both.

        Args:
            text: A text or a batch of texts of the source language.
            text_pair: The second texts of the pairs, if they are pairs.
            text_target: A text or a batch of texts of the target language.
            text_pair_target: The second texts of the pairs, if they are pairs.
            kwargs: What every tokenizer takes: `padding`, `truncation`, `max_length`, `max_target_length`,
                `return_tensors`, ...

        Returns:
            `input_ids` and `attention_mask`, each (batch, length); given both languages, `labels` as well.

        Raises:
            ValueError: If a text has a lone surrogate, which no encoding of Unicode can hold.
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
            text, text_pair = _with_spaces(text), _with_spaces(text_pair)
            tokenizer = copy.copy(self)
            tokenizer._words_have_spaces = True
        try:
            return super(TriviumTokenizer, tokenizer)._encode_plus(text, text_pair, **kwargs)
        except TypeError:  # the backend says no more than that its input must be a string
            for each in _strings([text, text_pair]):
                _check_surrogates(each)
            raise

    def _convert_encoding(self, encoding: Encoding, **kwargs: Any) -> tuple[dict[str, Any], list[Encoding]]:
        # Not by `trim_offsets` in the backend: no token would have the spaces, and a chat template's mask of what the
        # assistant says, which asks for the tokens of its first and last character, would be wrong around them.
        converted, encodings = super()._convert_encoding(encoding, **kwargs)
        if "offset_mapping" in converted:
            converted["offset_mapping"] = [self._word_offsets(each) for each in encodings]
        return converted, encodings

    def _word_offsets(self, encoding: Encoding) -> list[tuple[int, int]]:
        """Offsets with a gap before every word, and none between the bytes of one character."""
        pieces = {token: self._tokenizer.decoder.decode([token]) for token in set(encoding.tokens)}
        spaces = {token: len(piece) - len(piece.lstrip()) for token, piece in pieces.items()}
        words = zip(encoding.sequence_ids, encoding.word_ids, strict=True)
        offsets, last_word, last_end = list[tuple[int, int]](), None, 0
        for token, word, (start, end) in zip(encoding.tokens, words, encoding.offsets, strict=True):
            space = spaces[token]
            joined = int(
                self._words_have_spaces and (word[1] or 0) > 0
            )  # the word begins with a space of `_with_spaces`
            if self.add_prefix_space and not joined and start == 0 and space:
                space -= 1  # as GPT-2's offsets: this one is taken to be the prefix, and not in the text
            start += space
            if word == last_word:
                start = max(start, last_end)
            offsets.append((max(min(start, end) - joined, 0), max(end - joined, 0)))
            last_word, last_end = word, end
        return offsets

    def apply_chat_template(self, *args: Any, **kwargs: Any) -> Any:
        """Writes a conversation with the `chat_template`, and encodes it without `<s>` and `</s>` around it.

        The special tokens that the template writes are recognised, `split_special_tokens` or not. So are those that
        somebody writes into a message, unless `sanitize_control_tokens=True` (in the newer releases of transformers)
        makes them plain text; it refuses a message with `<mask>`, which never is.

        Args:
            args: What every tokenizer takes, the conversation first.
            kwargs: The same, by name: `add_generation_prompt`, `return_tensors`, ...

        Returns:
            What every tokenizer returns: `input_ids` and `attention_mask`; with `tokenize=False`, the text.
        """
        chat = copy.copy(self)
        chat.split_special_tokens = False
        return super(TriviumTokenizer, chat).apply_chat_template(*args, **kwargs)

    # --- Ids to text --------------------------------------------------------------------------------------------

    def _decode(self, token_ids: Any, **kwargs: Any) -> str:
        # The one place that `decode` and `batch_decode` come through, with plain Python numbers.
        if isinstance(token_ids, dict):
            token_ids = token_ids["input_ids"]
        if isinstance(token_ids, int):
            token_ids = [token_ids]
        token_ids = [token_id for token_id in token_ids if token_id != IGNORE_INDEX]
        if negative := [token_id for token_id in token_ids if token_id < 0]:
            raise ValueError(f"token_ids must be at least 0, or {IGNORE_INDEX} to be left out; got {negative[0]}.")
        target = self.target
        if kwargs.get("skip_special_tokens") and self._added_special_tokens:  # which the backend may not skip
            skipped = set(target.convert_tokens_to_ids(sorted(self._added_special_tokens)))
            token_ids = [token_id for token_id in token_ids if token_id not in skipped]
        return super(TriviumTokenizer, target)._decode(token_ids, **kwargs)

    # --- Files --------------------------------------------------------------------------------------------------

    def save_pretrained(self, *args: Any, **kwargs: Any) -> tuple[str, ...]:
        """Save the tokenizer as transformers does, but with this code only where no other class will do.

        That is with two vocabularies or a chat template; every other folder loads without `trust_remote_code`. With a
        chat template, `split_special_tokens` is saved as False.

        Args:
            args: What every tokenizer takes, the folder first.
            kwargs: The same, by name: `filename_prefix`, `push_to_hub`, ...

        Returns:
            The paths of the files.
        """
        saved = copy.copy(self)
        # What the code is called was read with the tokenizer, if it had some; saving it says so anew.
        saved.init_kwargs = {name: given for name, given in self.init_kwargs.items() if name != "auto_map"}
        if self.shared_vocabulary and not self.chat_template:
            saved._auto_class = None
        if self.chat_template:
            saved.split_special_tokens = False
        if self.shared_vocabulary:  # of the target's tokens, its file tells
            known = {str(token) for token in self.extra_special_tokens} | set(self.special_tokens_map.values())
            added = sorted(self._added_special_tokens - known)
            saved._extra_special_tokens = [*self._extra_special_tokens, *added]
        return super(TriviumTokenizer, saved).save_pretrained(*args, **kwargs)

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
                    backend = _unguarded(backend, self._added_special_tokens)
                elif self._added_special_tokens:  # another class than this one would guard them
                    backend = _mark_special(backend, self._added_special_tokens, self._auto_class is not None)
                # The last call's padding and truncation are not the tokenizer's; each call sets its own.
                backend.no_padding()
                backend.no_truncation()
                backend.save(f"{path}.partial")
                os.replace(f"{path}.partial", path)  # a crash never leaves half a file under the real name
                file_names += (path,)
            elif os.path.exists(path):
                os.remove(path)  # of another tokenizer, saved here before
        return file_names

    # --- Training -----------------------------------------------------------------------------------------------

    def train_new_from_iterator(
        self, text_iterator: Iterable[str] | Iterable[list[str]], vocab_size: int, show_progress: bool = False
    ) -> "TriviumTokenizer":
        """Trains a tokenizer like this one on other texts.

        The special tokens keep their ids, and tokens that were added come after the new vocabulary.

        Args:
            text_iterator: The texts, or batches of them.
            vocab_size: The size of the new vocabulary, special tokens included.
            show_progress: Whether to show a progress bar.

        Returns:
            The new tokenizer; this one stays as it is.

        Raises:
            ValueError: If this tokenizer has two vocabularies, or `vocab_size` cannot hold the alphabet.
        """
        if not self.shared_vocabulary:
            raise ValueError("Two vocabularies are trained one by one: use `tokenizer.source` and `tokenizer.target`.")
        backend = train_backend(copy.deepcopy(self._tokenizer), text_iterator, vocab_size, show_progress)
        tokenizer = type(self)(tokenizer_object=backend, **self.init_kwargs)
        old_tokens = self.added_tokens_decoder.values()
        for token in old_tokens:
            if backend.token_to_id(token.content) is None:
                tokenizer.add_tokens(token, special_tokens=token.content in self._added_special_tokens)
        return tokenizer


def train_backend(
    backend: Tokenizer, texts: Iterable[str] | Iterable[list[str]], vocab_size: int, show_progress: bool = False
) -> Tokenizer:
    """Trains a backend's model from scratch so that no text is lost and the special tokens have their ids.

    Args:
        backend: Any byte-level BPE, WordPiece or Unigram, or a BPE with byte fallback, or one with an unknown token,
            which becomes a vocabulary of characters. Do not use it afterwards.
        texts: The texts, or batches of them.
        vocab_size: The size of the vocabulary, special tokens and alphabet included.
        show_progress: Whether to show a progress bar.

    Returns:
        The trained backend.

    Raises:
        ValueError: If `vocab_size` is no integer, too large, or cannot hold the special tokens and the alphabet; or if
            a text has a lone surrogate.
    """
    try:
        vocab_size = operator.index(vocab_size)
    except TypeError as error:
        raise ValueError(f"vocab_size must be an integer, got {vocab_size!r}.") from error
    special_tokens = list(SPECIAL_TOKENS.values())
    byte_level = sorted(ByteLevel.alphabet())
    # Every piece that some text might need must be in the vocabulary, whether these texts need it or not.
    make_trainer: Callable[..., trainers.Trainer] = trainers.BpeTrainer
    pieces, alphabet = list[str](), byte_level
    options: dict[str, Any] = {"vocab_size": vocab_size, "initial_alphabet": alphabet}
    if isinstance(backend.model, models.WordPiece):
        make_trainer = trainers.WordPieceTrainer
        pieces = [backend.model.continuing_subword_prefix + character for character in byte_level]
    elif isinstance(backend.model, models.Unigram):
        make_trainer = trainers.UnigramTrainer
        # The trainer would give the alphabet scores in random order: `_settle_unigram` adds it instead.
        options |= {"unk_token": SPECIAL_TOKENS["unk_token"], "initial_alphabet": []}
    elif backend.model.byte_fallback:
        pieces, alphabet = [f"<0x{byte:02X}>" for byte in range(256)], []
        options["initial_alphabet"] = []
    elif backend.model.unk_token is not None:
        alphabet = []
        options |= {"vocab_size": 0, "initial_alphabet": []}  # the characters of the texts, and no room for a merge

    smallest = len(special_tokens) + len(pieces) + len(alphabet)
    if vocab_size < smallest:
        raise ValueError(f"vocab_size must hold the special tokens and the alphabet, {smallest}; got {vocab_size}.")
    if vocab_size > MAX_VOCAB_SIZE:
        raise ValueError(f"vocab_size must be at most {MAX_VOCAB_SIZE:,}, got {vocab_size:,}.")
    trainer = make_trainer(
        special_tokens=special_tokens + pieces,  # which is how a trainer is told to keep a piece
        show_progress=show_progress,
        **options,
    )
    backend.train_from_iterator(_without_surrogates(texts), trainer)

    state = json.loads(backend.to_str())
    if state["model"]["type"] == "Unigram":
        state["model"]["vocab"] = _settle_unigram(state["model"]["vocab"], byte_level, vocab_size)
    state["added_tokens"] = state["added_tokens"][: len(special_tokens)]  # the pieces are special to no one else
    backend = Tokenizer.from_str(json.dumps(state))
    if backend.get_vocab_size() > vocab_size:
        raise ValueError(
            f"vocab_size must hold every character of the texts, {backend.get_vocab_size()}; got {vocab_size}."
        )
    return backend


def _settle_unigram(vocab: list[list[Any]], alphabet: list[str], vocab_size: int) -> list[list[Any]]:
    """Adds the whole alphabet to a trained Unigram vocabulary, and takes away what differs from run to run."""
    special, learned = vocab[: len(SPECIAL_TOKENS)], vocab[len(SPECIAL_TOKENS) :]
    scores = {piece: round(score, 6) for piece, score in learned}  # sums in another order differ in the last digits
    lowest = min(scores.values())
    # The trainer sets rare characters a little (up to 256 x 0.0001) above the lowest score, in random order.
    characters = {piece: scores.pop(piece, lowest) for piece in alphabet}
    characters = {piece: score if score > lowest + 0.03 else lowest for piece, score in characters.items()}
    by_score = sorted(scores.items(), key=lambda item: (-item[1], item[0]))
    kept = by_score[: vocab_size - len(special) - len(characters)]
    settled = sorted([*characters.items(), *kept], key=lambda item: (-item[1], item[0]))
    return special + [list(item) for item in settled]


def _without_surrogates(texts: Iterable[str] | Iterable[list[str]]) -> Iterator[str | list[str]]:
    """Pass texts, or batches of them, on, and raise if one has a lone surrogate."""
    for each in texts:
        for text in _strings(each):
            _check_surrogates(text)
        yield each


def _check_surrogates(text: str) -> None:
    if any("\ud800" <= character <= "\udfff" for character in text):
        raise ValueError(f"A text must not have lone surrogates, got {text!r}.")


def _with_spaces(words: Any) -> Any:
    """Begin every word but the first of a text, or of each text of a batch, with a space."""
    if not isinstance(words, (list, tuple)):
        return words
    if any(isinstance(word, (list, tuple)) for word in words):
        return [_with_spaces(text) for text in words]
    return [f" {word}" if number and isinstance(word, str) else word for number, word in enumerate(words)]


def _adds_prefix_space(backend: Tokenizer) -> bool:
    return backend.normalizer is not None and backend.normalizer.normalize_str("a") == " a"


def _set_prefix_space(backend: Tokenizer, wanted: bool) -> None:
    """Make a backend begin every text with a space, unless it does; or take that away again."""
    if wanted == _adds_prefix_space(backend):
        return
    if wanted:
        prefix = [normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A {2}"), " ")]  # of two leading spaces one
        backend.normalizer = normalizers.Sequence([*prefix, backend.normalizer or normalizers.Sequence([])])
    else:
        backend.normalizer = backend.normalizer[2]


def _unguarded(backend: Tokenizer, added: Iterable[str]) -> Tokenizer:
    """Return a copy of a backend that is to recognize all special tokens in texts, those that were `added` as well."""
    backend = _mark_special(backend, added, True)
    mask = SPECIAL_TOKENS["mask_token"]
    if backend.normalizer is not None and backend.normalizer.normalize_str(f" {mask}") == mask:
        # It is then recognized before the normalizer could take the space away.
        state = json.loads(backend.to_str())
        for token in state["added_tokens"]:
            token["lstrip"] = token["lstrip"] or token["content"] == mask
        backend = Tokenizer.from_str(json.dumps(state))
    return backend


def _mark_special(backend: Tokenizer, tokens: Iterable[str], special: bool) -> Tokenizer:
    """Return a copy of a backend in which `tokens`, if they were added to it, are special ones or are not."""
    state = json.loads(backend.to_str())
    for token in state["added_tokens"]:
        if token["content"] in tokens:
            token["special"] = special
    return Tokenizer.from_str(json.dumps(state))


def _strings(nested: Any) -> Iterator[str]:
    """Walks through the strings in lists of lists of strings."""
    if isinstance(nested, str):
        yield nested
    elif isinstance(nested, (list, tuple)):
        for each in nested:
            yield from _strings(each)
