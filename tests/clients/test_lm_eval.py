"""Test the Language Model Evaluation Harness: likelihoods, multiple choice and generation on local tasks."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lm_eval import simple_evaluate
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from tiny import tiny_model

from trivium import TriviumForCausalLM, TriviumForConditionalGeneration, TriviumTokenizer

TASK = """
task: {name}
dataset_path: json
dataset_kwargs:
  data_files:
    test: {file}
test_split: test
doc_to_text: "{{{{prompt}}}}"
target_delimiter: ""
output_type: {name}
"""
OUTPUTS = {
    "loglikelihood": """
doc_to_target: "{{answer}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "multiple_choice": """
doc_to_choice: "{{choices}}"
doc_to_target: 0
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
""",
    "generate_until": """
doc_to_target: "{{answer}}"
generation_kwargs: {until: ["\\n\\n"], max_gen_toks: 6, do_sample: false}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
""",
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory, open_tokenizer: TriviumTokenizer) -> Path:
    torch.manual_seed(0)  # other random weights may generate special tokens only, and no text to score
    folder = tmp_path_factory.mktemp("decoder")
    model = tiny_model(TriviumForCausalLM, encoder_layers=0, vocab_size=len(open_tokenizer), std=0.02)
    model.save_pretrained(folder)  # Recompute in float64.
    open_tokenizer.save_pretrained(folder)
    return folder


def split_texts(texts: list[str]) -> list[tuple[str, str]]:
    """Split each text into a context and its continuation."""
    return [(text[: text.index(" ", 5)], text[text.index(" ", 5) :]) for text in texts]


def own_loglikelihood(folder: Path, tokenizer: TriviumTokenizer, beginning: str, end: str) -> float:
    model = TriviumForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    ids = tokenizer(beginning + end, return_tensors="pt").input_ids
    with torch.no_grad():
        log_probs = model(input_ids=ids).logits.log_softmax(dim=-1)[0, :-1].gather(1, ids[0, 1:, None])
    return log_probs[len(tokenizer(beginning).input_ids) - 1 :].sum().item()


def ask(kind: str, model: HFLM, questions: list[Any]) -> list[Any]:
    requests = [Instance(kind, {}, question, index) for index, question in enumerate(questions)]
    return getattr(model, kind)(requests, disable_tqdm=True)


@pytest.mark.parametrize("batch_size", [1, 4])
def test_loglikelihoods_match_model(
    folder: Path, open_tokenizer: TriviumTokenizer, texts: list[str], batch_size: int
) -> None:
    pairs = split_texts(texts)
    expected = [own_loglikelihood(folder, open_tokenizer, *pair) for pair in pairs]
    model = HFLM(str(folder), device="cpu", dtype="float64", batch_size=batch_size)
    assert model.max_length == 64  # The harness truncates longer contexts.
    answers = ask("loglikelihood", model, pairs)
    assert [likelihood for likelihood, _ in answers] == pytest.approx(expected, rel=1e-9)

    # The harness prepends `<s>` itself; without this setting the tokenizer would add a second one.
    model = HFLM(str(folder), device="cpu", dtype="float64", batch_size=batch_size, add_bos_token=False)
    expected = [own_loglikelihood(folder, open_tokenizer, "", text) for text in texts]
    assert ask("loglikelihood_rolling", model, [(text,) for text in texts]) == pytest.approx(expected, rel=1e-9)


def test_translator_loglikelihoods_match_model(tmp_path: Path, tokenizer: TriviumTokenizer, texts: list[str]) -> None:
    """Test with `backend="seq2seq"`: the harness would infer a causal model from the model type."""
    model = tiny_model(TriviumForConditionalGeneration, vocab_size=len(tokenizer), std=0.02)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    pairs, expected = split_texts(texts), []
    for source, target in pairs:
        labels = tokenizer(target, add_special_tokens=False, return_tensors="pt").input_ids  # as the harness does
        with torch.no_grad():
            logits = model(**tokenizer(source, return_tensors="pt"), labels=labels).logits
        expected.append(logits.log_softmax(dim=-1).gather(2, labels[..., None]).sum().item())
    for batch_size in (1, 4):
        harness = HFLM(str(tmp_path), device="cpu", dtype="float64", batch_size=batch_size, backend="seq2seq")
        found = [likelihood for likelihood, _ in ask("loglikelihood", harness, pairs)]
        assert found == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("batch_size", [pytest.param(1, marks=pytest.mark.slow), 4])
def test_tasks_are_evaluated(
    tmp_path: Path, folder: Path, open_tokenizer: TriviumTokenizer, texts: list[str], batch_size: int
) -> None:
    pairs = split_texts(texts)
    model = TriviumForCausalLM.from_pretrained(folder, dtype=torch.float64).eval()
    written = []
    for prompt, _ in pairs:
        ids = model.generate(**open_tokenizer(prompt, return_tensors="pt"), max_new_tokens=6, do_sample=False)
        whole = open_tokenizer.decode(ids[0], skip_special_tokens=True)
        written.append(whole.removeprefix(prompt))
    choices = [(answer, " the sea") for _, answer in pairs]
    chosen = [
        own_loglikelihood(folder, open_tokenizer, prompt, first)
        > own_loglikelihood(folder, open_tokenizer, prompt, second)
        for (prompt, _), (first, second) in zip(pairs, choices, strict=True)
    ]
    rows = [
        # Use the model's own output as the reference for half of the rows.
        {"prompt": prompt, "answer": written[i] if i % 2 else answer, "choices": choices[i]}
        for i, (prompt, answer) in enumerate(pairs)
    ]
    file = tmp_path / "rows.jsonl"
    file.write_text("\n".join(map(json.dumps, rows)))
    for name, output in OUTPUTS.items():
        (tmp_path / f"{name}.yaml").write_text(TASK.format(name=name, file=file) + output)

    results = simple_evaluate(
        model=HFLM(str(folder), device="cpu", dtype="float64", batch_size=batch_size),
        tasks=list(OUTPUTS),
        task_manager=TaskManager(include_path=str(tmp_path), include_defaults=False),
        bootstrap_iters=0,
    )
    assert results["results"]["generate_until"]["exact_match,none"] == 0.5
    assert results["results"]["multiple_choice"]["acc,none"] == pytest.approx(sum(chosen) / len(chosen))
    for task, answers in (("generate_until", written), ("loglikelihood", [row["answer"] for row in rows])):
        samples = sorted(results["samples"][task], key=lambda sample: sample["doc_id"])
        found = [sample["resps"][0][0] for sample in samples]
        if task == "generate_until":
            assert found == answers
        else:
            likelihoods = [
                own_loglikelihood(folder, open_tokenizer, prompt, answer)
                for (prompt, _), answer in zip(pairs, answers, strict=True)
            ]
            assert [likelihood for likelihood, _ in found] == pytest.approx(likelihoods, rel=1e-9)


@pytest.mark.slow
def test_docs_page(tmp_path: Path, folder: Path, texts: list[str], run_page: Callable[[str], dict[str, Any]]) -> None:
    shutil.copytree(folder, tmp_path / "runs" / "shakespeare")
    rows = [{"prompt": prompt, "answer": answer} for prompt, answer in split_texts(texts)]
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "my_tasks").mkdir()
    task = TASK.format(name="loglikelihood", file=tmp_path / "rows.jsonl").replace(
        "task: loglikelihood", "task: my_task"
    )
    (tmp_path / "my_tasks" / "my_task.yaml").write_text(task + OUTPUTS["loglikelihood"])
    assert run_page("lm-evaluation-harness")["results"]["results"]["my_task"]["sample_len"] == len(texts)


@pytest.mark.slow
def test_folder_is_evaluated_without_package(
    folder: Path,
    open_tokenizer: TriviumTokenizer,
    texts: list[str],
    without_trivium: Callable[[str], torch.Tensor],
) -> None:
    pairs = split_texts(texts)
    result = without_trivium(
        f"""
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
model = HFLM({str(folder)!r}, device="cpu", dtype="float64", batch_size=4, trust_remote_code=True)
requests = [Instance("loglikelihood", {{}}, pair, index) for index, pair in enumerate({pairs})]
torch.save(torch.tensor(model.loglikelihood(requests), dtype=torch.float64)[:, 0], "result.pt")
"""
    )
    assert result.tolist() == pytest.approx([own_loglikelihood(folder, open_tokenizer, *pair) for pair in pairs])
