"""Sections of a recipe that belong to no other module: tokenizer, learning, distillation and card."""

import math
import re
from dataclasses import dataclass, field

from trivium.tokenization.tokenization_backends import SPECIAL_TOKENS


@dataclass
class TokenizerArguments:
    """Arguments of `train_tokenizer`: the `tokenizer:` section of a recipe.

    Attributes:
        sample: Number of training rows to train the tokenizer on, taken from the start; None for all.
        vocab_size: Number of tokens in each vocabulary.
        shared: Share one vocabulary between both languages, instead of training one for each.
        algorithm: "bpe", "wordpiece", "unigram", "word" (whole words, for classifiers) or "char".
        byte_fallback: Train BPE on characters, with a fallback to bytes for unknown characters, instead of on bytes.
        normalization: Unicode normalization: "NFC", "NFKC" or None.
        lowercase: Lowercase the text.
        add_bos_token: Add `<s>` at the start of texts; None for the default of the task.
        add_eos_token: Add `</s>` at the end of texts; None for the default of the task.
        special_tokens: Further special tokens, such as `<bt>` at the start of back-translated sources. They are added
            to the source vocabulary, are never split, and do not occur in decoded texts.
    """

    sample: int | None = None
    vocab_size: int = 8000
    shared: bool = True
    algorithm: str = "bpe"
    byte_fallback: bool = False
    normalization: str | None = "NFC"
    lowercase: bool = False
    add_bos_token: bool | None = None
    add_eos_token: bool | None = None
    special_tokens: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Check the further special tokens.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        for token in self.special_tokens:
            if (
                not re.fullmatch(r"\S+", token)
                or token in SPECIAL_TOKENS.values()
                or self.special_tokens.count(token) > 1
            ):
                raise ValueError(
                    f"tokenizer.special_tokens has {token!r}, but may contain only different tokens without spaces, "
                    f"such as <bt>, and none of {', '.join(SPECIAL_TOKENS.values())}."
                )


@dataclass
class DistillationArguments:
    """Distillation from a teacher by its probabilities: the `distillation:` section of a recipe.

    Attributes:
        teacher: Saved model for the same task, larger than the student, which has the teacher's tokenizer: without
            `init_from` and `data.prepared`, the `tokenizer` section is not used. None for no distillation.
        weight: Weight of the divergence from the teacher, the Kullback-Leibler divergence per token; the cross entropy
            has the weight 1 - `weight`. Evaluations have only the cross entropy.
        temperature: Softmax temperature of both distributions; the divergence is multiplied by its square.
    """

    teacher: str | None = None
    weight: float = 0.5
    temperature: float = 1.0

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        if not 0 < self.weight <= 1:
            raise ValueError(f"distillation.weight is {self.weight}, but must be above 0 and at most 1.")
        if not 0 < self.temperature < math.inf:
            raise ValueError(f"distillation.temperature is {self.temperature}, but must be above 0.")
        for name, default in (("weight", 0.5), ("temperature", 1.0)):
            if self.teacher is None and getattr(self, name) != default:
                raise ValueError(
                    f"distillation.{name} is {getattr(self, name)}, but there is no teacher. Set "
                    "distillation.teacher, or leave it out."
                )


@dataclass
class LearningArguments:
    """Methods that learn more from the same data, all off by default: the `learning:` section of a recipe.

    Attributes:
        r_drop: Weight of the consistency loss of R-Drop (Liang et al. 2021): each step runs the batch twice, with
            different dropout, and adds the symmetric KL divergence between the two predictions. 5 is typical for
            translation; 0 to disable.
        muon_learning_rate: Peak learning rate of the weight matrices inside the layers, which Muon then trains instead
            of AdamW. All other parameters keep AdamW and `training.learning_rate`; both follow the same schedule. None
            for AdamW alone.
    """

    r_drop: float = 0.0
    muon_learning_rate: float | None = None

    def __post_init__(self) -> None:
        """Check the values of the fields.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        if not 0 <= self.r_drop < math.inf:
            raise ValueError(f"learning.r_drop is {self.r_drop}, but must be at least 0 and finite; 0 disables it.")
        rate = self.muon_learning_rate
        if rate is not None and not 0 < rate < math.inf:
            raise ValueError(
                f"learning.muon_learning_rate is {rate}, but must be greater than 0 and finite, or null for AdamW."
            )


@dataclass
class CardArguments:
    """Model card metadata that cannot be derived from the run: the `card:` section of a recipe.

    Attributes:
        title: Title of the card; None for the name of the repository.
        summary: One or two sentences about the model, in Markdown.
        license: License identifier of the Hub, such as "apache-2.0", "cc-by-4.0" or "other".
        languages: ISO 639 codes, such as "en". For sentence pairs, they default to `data.source` and `data.target` if
            those are two-letter codes.
        datasets: Names of the training datasets on the Hub; the first is also listed as the evaluation dataset.
        examples: Example inputs for the widget, with `<mask>` for a masked language model; the first is also used for
            the figure.
        intended_use: Intended use, in Markdown.
        limitations: Limitations, in Markdown.
    """

    title: str | None = None
    summary: str | None = None
    license: str | None = None
    languages: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    examples: list[str] = field(default_factory=list)
    intended_use: str | None = None
    limitations: str | None = None

    def __post_init__(self) -> None:
        """Check the metadata that the Hub validates.

        Raises:
            ValueError: The message names the field, its value and what is allowed.
        """
        if self.license is not None and not re.fullmatch(r"[a-z0-9][a-z0-9.-]*", self.license):
            raise ValueError(
                f"card.license is {self.license!r}, but must be a license identifier of the Hub, such as apache-2.0. "
                "See the list at https://huggingface.co/docs/hub/repositories-licenses."
            )
        for code in self.languages:
            if not re.fullmatch(r"[a-z]{2,3}|multilingual", code):
                raise ValueError(
                    f"card.languages has {code!r}, but may contain only ISO 639 codes of two or three lowercase "
                    "letters, such as en, or multilingual."
                )
        for name in self.datasets:
            if not re.fullmatch(r"([\w.-]+/)?[\w.-]+", name):
                raise ValueError(
                    f"card.datasets has {name!r}, but may contain only dataset names on the Hub, such as owner/name."
                )
        if not all(text.strip() for text in self.examples):
            raise ValueError(f"card.examples is {self.examples}, but an example must not be blank.")
