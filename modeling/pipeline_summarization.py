"""The "summarization" pipeline, which transformers 5 has dropped, for any generating encoder-decoder.

This file is saved to the Hub with every encoder-decoder, like `pipeline_translation.py`.
"""

from .pipeline_translation import TranslationPipeline


class SummarizationPipeline(TranslationPipeline):
    """Summarize texts with an encoder-decoder; takes the same arguments as `TranslationPipeline`.

        pipe = pipeline("summarization", model="runs/scitldr", truncation=True)
        pipe(abstract)  # [{"summary_text": "We introduce ..."}]

    A result has `summary_text`, or `summary_token_ids` with `return_tensors`.
    """

    task_name = "summarization"
    result_name = "summary"
