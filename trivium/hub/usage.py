"""Usage examples that a model card shows, for each model class."""

import json
import shlex
from dataclasses import dataclass, replace

from trivium.configuration import TriviumConfig


@dataclass(frozen=True)
class Usage:
    """Task and usage example of a model class.

    Attributes:
        task: The `pipeline_tag` on the Hub.
        auto_class: The Auto class that loads the model.
        example: Default example text, if the card has none.
        code: Code template that uses `tokenizer` and `model`; TEXT and LENGTH are replaced.
        has_pipeline: Whether transformers or the model's own code has a pipeline for the task.
        command: The `trivium` subcommand that takes texts, if any.
    """

    task: str
    auto_class: str
    example: str
    code: str
    has_pipeline: bool = True
    command: str | None = None


FEATURES = """
inputs = tokenizer(TEXT, return_tensors="pt")
print(model(**inputs).last_hidden_state.shape)  # (texts, tokens, d_model)
"""
LABELS = """
logits = model(**tokenizer(TEXT, return_tensors="pt")).logits[0]
"""
ONE_LABEL = "print(model.config.id2label[logits.argmax().item()])\n"
SEVERAL_LABELS = "print([label for i, label in model.config.id2label.items() if logits[i] > 0])\n"
NUMBER = "print(logits.item())\n"
CLASSIFICATION = Usage(
    "text-classification", "AutoModelForSequenceClassification", "Good morning.", LABELS, command="classify"
)

TRANSLATION = Usage(
    "translation",
    "AutoModelForSeq2SeqLM",
    "Good morning.",
    """
inputs = tokenizer([TEXT], padding=True, return_tensors="pt")
output = model.generate(**inputsLENGTH)
print(tokenizer.batch_decode(output, skip_special_tokens=True))
""",
    command="translate",
)

CONTEXT = "The text that has the answer."

# Keyed by the class name without "Trivium".
USAGES = {
    "ForConditionalGeneration": TRANSLATION,
    "ForCausalLM": Usage(
        "text-generation",
        "AutoModelForCausalLM",
        "Once upon a time",
        """
inputs = tokenizer(TEXT, return_tensors="pt")
output = model.generate(**inputsLENGTH)
print(tokenizer.decode(output[0], skip_special_tokens=True))
""",
        command="generate",
    ),
    "ForMaskedLM": Usage(
        "fill-mask",
        "AutoModelForMaskedLM",
        "Good <mask>.",
        """
inputs = tokenizer(TEXT, return_tensors="pt")
place = inputs["input_ids"][0].tolist().index(tokenizer.mask_token_id)
best = model(**inputs).logits[0, place].topk(5).indices
print([tokenizer.decode(token) for token in best])
""",
        command="fill-mask",
    ),
    "ForSequenceClassification": CLASSIFICATION,
    "DecoderForSequenceClassification": CLASSIFICATION,
    "ForTokenClassification": Usage(
        "token-classification",
        "AutoModelForTokenClassification",
        "Good morning.",
        """
inputs = tokenizer(TEXT, return_tensors="pt")
labels = model(**inputs).logits[0].argmax(-1)
for token, label in zip(inputs["input_ids"][0], labels):
    print(tokenizer.decode(token), model.config.id2label[label.item()])
""",
        command="tag",
    ),
    "ForQuestionAnswering": Usage(
        "question-answering",
        "AutoModelForQuestionAnswering",
        "Who said it?",
        f"""
inputs = tokenizer(TEXT, "{CONTEXT}", return_tensors="pt")
output = model(**inputs)
start, end = output.start_logits[0].argmax(), output.end_logits[0].argmax()
print(tokenizer.decode(inputs["input_ids"][0, start : end + 1]))
""",
        command="answer",
    ),
    "EncoderModel": Usage("feature-extraction", "AutoModel", "Good morning.", FEATURES),
    "DecoderModel": Usage("feature-extraction", "AutoModel", "Good morning.", FEATURES),
    # Load only the encoder: feature extraction does not need the decoder.
    "Model": Usage("feature-extraction", "AutoModelForTextEncoding", "Good morning.", FEATURES, has_pipeline=False),
}


def usage_of(config: TriviumConfig) -> Usage:
    """Return the usage of a saved model.

    Raises:
        ValueError: The model class is not a Trivium class.
    """
    name = (config.architectures or ["model of no known class"])[0]
    if name.removeprefix("Trivium") not in USAGES:
        raise ValueError(f"architectures in config.json is {name!r}, but must be a class of Trivium.")
    usage = USAGES[name.removeprefix("Trivium")]
    if usage is TRANSLATION and config.seq2seq_task == "summarization":
        return replace(TRANSLATION, task="summarization", command="summarize")
    return usage


def pipeline_code(usage: Usage, config: TriviumConfig, name: str, text: str, max_new_tokens: int | None) -> str:
    """Return Python code that loads the model `name` as a pipeline and runs it on `text`."""
    options = ""
    if max_new_tokens and usage.task in ("translation", "summarization", "text-generation"):
        options = f", max_new_tokens={max_new_tokens}"
    if usage.task == "text-classification":
        options = {"regression": ', function_to_apply="none"', "multi_label_classification": ", top_k=None"}.get(
            config.problem_type or "", ""
        )
    inputs = _quoted(text)
    if usage.task == "question-answering":
        inputs = f"question={inputs}, context={_quoted(CONTEXT)}"
    return (
        "from transformers import pipeline\n\n"
        f"pipe = pipeline({_quoted(usage.task)}, model={_quoted(name)}, trust_remote_code=True)\n"
        f"print(pipe({inputs}{options}))"
    )


def auto_code(usage: Usage, config: TriviumConfig, name: str, text: str, max_new_tokens: int | None) -> str:
    """Return Python code that loads the model `name` with its Auto class and runs it on `text`."""
    code = usage.code
    if code is LABELS:
        code += {"regression": NUMBER, "multi_label_classification": SEVERAL_LABELS}.get(
            config.problem_type or "", ONE_LABEL
        )
    length = f", max_new_tokens={max_new_tokens}" if max_new_tokens else ""
    return (
        f"from transformers import {usage.auto_class}, AutoTokenizer\n\n"
        f"tokenizer = AutoTokenizer.from_pretrained({_quoted(name)}, trust_remote_code=True)\n"
        f"model = {usage.auto_class}.from_pretrained({_quoted(name)}, trust_remote_code=True)"
        + code.replace("LENGTH", length).replace("TEXT", _quoted(text)).rstrip()
    )


def command_code(usage: Usage, name: str, text: str) -> str:
    """Return shell commands that run the model on `text`; empty if no subcommand supports its class."""
    if usage.command is None:
        return ""
    folder = name.rsplit("/", 1)[-1]
    options = ["--context", "context.txt"] if usage.task == "question-answering" else []
    commands = [["trivium", usage.command, folder, *options, " ".join(text.split())]]
    if "/" in name:  # a name without a namespace is a local folder
        commands.insert(0, ["hf", "download", name, "--local-dir", folder])
    return "\n".join(shlex.join(command) for command in commands)


def _quoted(text: str) -> str:
    """Return a string as a Python literal in one line."""
    return json.dumps(text, ensure_ascii=False)
