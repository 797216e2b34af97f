"""Greedy and beam search for `generate()`, on a batch from which finished sentences are removed.

Both searches return what the loops of transformers return, token by token. Exact ties, which are common in half
precision, may be broken differently, because candidates are selected per beam before they are compared across beams.
Unsupported options fall back to the loops of transformers (see `generation`), and so does a beam search that runs out
of allowed tokens (see `beam_search`).

The searches are faster because no computation is spent on finished sentences, the beams of a sentence share the keys
and values of its source, and a step computes little besides the decoder's layers (`decoding_step`).
"""

from typing import NamedTuple

import torch
from transformers import GenerationConfig
from transformers.generation import LogitsProcessorList

from .incremental_decoder import IncrementalDecoder

NEG_INF = -1e9  # added to the scores of candidates that must not be selected, as in transformers
MIN_SCORE = NEG_INF / 10  # sequences of allowed tokens score above this value, all other sequences below it


def greedy_search(
    decoder: IncrementalDecoder, prompts: torch.Tensor, processors: LogitsProcessorList, config: GenerationConfig
) -> torch.Tensor:
    """Select the most likely token at every step, until all sentences have ended or have `config.max_length` tokens.

    Args:
        decoder: Decoder that has not read anything yet.
        prompts: Token ids of the prompts, (batch, prompt_len).
        processors: Processors to apply to the logits at every step.
        config: Generation config prepared by `generate()`.

    Returns:
        (batch, length), each prompt with its continuation.
    """
    eos, pad = config._eos_token_tensor, config._pad_token_tensor
    prompt_length, max_length = prompts.shape[1], config.max_length
    sequences = torch.full((len(prompts), max_length), 0 if pad is None else pad, device=prompts.device)
    sequences[:, :prompt_length] = prompts
    unfinished = torch.arange(len(prompts), device=prompts.device)
    logits = decoder.prefill()
    for length in range(prompt_length, max_length):
        if processors:
            logits = processors(sequences[unfinished, :length], logits)
        tokens = logits.argmax(dim=-1)
        sequences[unfinished, length] = tokens
        if eos is not None and (ends := torch.isin(tokens, eos)).any():
            rows = (~ends).nonzero().squeeze(1)
            if len(rows) == 0:
                return sequences[:, : length + 1]
            unfinished, tokens = unfinished[rows], tokens[rows]
            decoder.select(rows, sentences=rows)
        if length + 1 < max_length:
            logits = decoder.step(tokens)
    return sequences


class Beams(NamedTuple):
    """Beams of each sentence: scores, token ids and lengths."""

    scores: torch.Tensor  # (batch, k), sums of log-probabilities; length-normalized for finished beams
    ids: torch.Tensor  # (batch, k, max_length)
    lengths: torch.Tensor  # (batch, k), number of generated tokens of finished beams; 0 for running beams

    def take(self, indices: torch.Tensor) -> "Beams":
        """Select beams by indices of shape (batch, k)."""
        ids = self.ids.gather(1, indices[..., None].expand(-1, -1, self.ids.shape[-1]))
        return Beams(self.scores.gather(1, indices), ids, self.lengths.gather(1, indices))

    def select(self, sentences: torch.Tensor) -> "Beams":
        """Select sentences, by indices or by a mask of shape (batch,)."""
        return Beams(*(tensor[sentences] for tensor in self))


class BeamSearch:
    """State of a beam search: running and finished beams of the sentences that are not done.

    Args:
        prompts: Token ids of the prompts, (batch, prompt_len).
        config: Generation config prepared by `generate()`.
    """

    def __init__(self, prompts: torch.Tensor, config: GenerationConfig) -> None:
        self.eos, self.num_beams = config._eos_token_tensor, config.num_beams
        self.length_penalty, self.early_stopping = config.length_penalty, config.early_stopping
        self.prompt_length, self.max_length = prompts.shape[1], config.max_length
        # Keep enough candidates that `num_beams` remain even if all other candidates end with an EOS token.
        self.num_candidates = max(2, 1 + (0 if self.eos is None else len(self.eos))) * self.num_beams

        shape, device = (len(prompts), self.num_beams), prompts.device
        fill = -1 if self.eos is None else (config._pad_token_tensor or self.eos[0])  # as in transformers
        ids = torch.full((*shape, self.max_length), fill, device=device)
        ids[..., : self.prompt_length] = prompts[:, None]
        none = Beams(torch.full(shape, NEG_INF, device=device), ids, torch.zeros_like(ids[..., 0]))
        self.running = none._replace(scores=none.scores.clone())
        self.running.scores[:, 0] = 0.0  # all beams start identical, so expand only one
        self.finished = none
        self.unfinished = torch.arange(len(prompts), device=device)
        self.hypotheses = Beams(*(tensor.clone() for tensor in none))

    def expand(
        self, logits: torch.Tensor, processors: LogitsProcessorList, length: int
    ) -> tuple[Beams, torch.Tensor, torch.Tensor]:
        """Extend the running beams by one token.

        Args:
            logits: Logits of the next token, (batch * num_beams, vocabulary).
            processors: Processors to apply to the log-probabilities.
            length: Number of tokens in the running beams, including the prompt.

        Returns:
            The best `num_candidates` of each sentence, best first, the beams they come from, and whether they end,
            both (batch, num_candidates).
        """
        log_probs = logits.log_softmax(dim=-1)
        if processors:
            log_probs = processors(self.running.ids[..., :length].flatten(0, 1), log_probs)
        # Selecting per beam first is faster than one top-k over (num_beams * vocabulary), with the same result.
        per_beam = min(self.num_candidates, log_probs.shape[-1])
        log_probs, tokens = log_probs.topk(per_beam)
        scores = self.running.scores[..., None] + log_probs.view(-1, self.num_beams, per_beam)
        scores, indices = scores.flatten(1).topk(self.num_candidates)  # of (batch, num_beams * per_beam)
        sources = indices // per_beam
        tokens = tokens.view(-1, self.num_beams * per_beam).gather(1, indices)
        candidates = self.running.take(sources)._replace(scores=scores)
        candidates.ids[..., length] = tokens
        ends = torch.full_like(tokens, length + 1 == self.max_length, dtype=torch.bool)
        if self.eos is not None:
            ends |= torch.isin(tokens, self.eos)
        return candidates, sources, ends

    def update_finished(self, candidates: Beams, ends: torch.Tensor, length: int) -> None:
        """Merge the top `num_beams` candidates that end into the finished beams, and keep the best `num_beams`.

        Args:
            candidates: Candidates returned by `expand`.
            ends: Whether each candidate ends, (batch, num_candidates).
            length: Number of tokens in the candidates, including the prompt.
        """
        finishes = ends.clone()
        finishes[:, self.num_beams :] = False
        generated = length - self.prompt_length
        scores = candidates.scores / generated**self.length_penalty + ~finishes * NEG_INF
        candidates = candidates._replace(scores=scores, lengths=finishes * generated)
        merged = Beams(*(torch.cat(pair, dim=1) for pair in zip(self.finished, candidates, strict=True)))
        self.finished = merged.take(merged.scores.topk(self.num_beams).indices)

    def update_running(self, candidates: Beams, ends: torch.Tensor) -> torch.Tensor:
        """Keep the best `num_beams` candidates that do not end, and return their indices, (batch, num_beams)."""
        scores, indices = (candidates.scores + ends * NEG_INF).topk(self.num_beams)
        self.running = candidates.take(indices)._replace(scores=scores)
        return indices

    def is_done(self, length: int) -> torch.Tensor:
        """Return whether the finished beams of each sentence are final, (batch,), by the rules of transformers.

        They are final when the best running beam cannot become better than the worst finished one, according to an
        estimate that `config.early_stopping` selects, or as soon as there are `num_beams` of them
        (`early_stopping=True`).
        """
        is_finished = self.finished.lengths > 0
        if self.early_stopping == "never" and self.length_penalty > 0:
            best_length = self.max_length - self.prompt_length
        else:
            best_length = length - self.prompt_length
        best_running = self.running.scores[:, :1] / best_length**self.length_penalty
        worst_finished = self.finished.scores.min(dim=1, keepdim=True).values.where(is_finished, NEG_INF)
        done = ~(best_running > worst_finished).any(dim=1)
        if self.early_stopping is True:
            done |= is_finished.all(dim=1)
        return done

    def retire(self, done: torch.Tensor) -> torch.Tensor:
        """Store the finished beams of sentences that are done; return the indices of all other sentences, (batch,)."""
        for stored, finished in zip(self.hypotheses, self.finished, strict=True):
            stored[self.unfinished[done]] = finished[done]
        kept = (~done).nonzero().squeeze(1)
        self.unfinished = self.unfinished[kept]
        self.running, self.finished = self.running.select(kept), self.finished.select(kept)
        return kept


def beam_search(
    decoder: IncrementalDecoder, prompts: torch.Tensor, processors: LogitsProcessorList, config: GenerationConfig
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Beam search: keep the `config.num_beams` best running and finished beams of each sentence.

    Args:
        decoder: Decoder that has not read anything yet.
        prompts: Token ids of the prompts, (batch, prompt_len).
        processors: Processors to apply to the log-probabilities at every step.
        config: Generation config prepared by `generate()`.

    Returns:
        (batch * config.num_return_sequences, length), each prompt with its continuations, best first, and their
        scores, (batch * config.num_return_sequences,), the summed log-probabilities of the new tokens divided by their
        number to the power of `config.length_penalty`. None if a sentence has too few allowed continuations:
        transformers then returns forbidden continuations, which depend on how long the search of other sentences in
        the batch continues, so only its own loop can reproduce them.
    """
    prompt_length, max_length, num_beams = prompts.shape[1], config.max_length, config.num_beams
    search = BeamSearch(prompts, config)
    logits = decoder.prefill()
    for length in range(prompt_length, max_length):
        # 1) Append the most likely tokens to the running beams.
        candidates, sources, ends = search.expand(logits, processors, length)

        # 2) Candidates that end compete with the finished beams; the best of the remaining candidates keep running.
        search.update_finished(candidates, ends, length + 1)
        running = search.update_running(candidates, ends)

        # 3) Retire sentences that are done, or that have run out of allowed tokens. The first step may run out of
        # them, with a forced BOS: all its candidates come from one beam.
        is_last = length + 1 == max_length
        weakest = candidates.scores[:, num_beams - 1] if is_last else search.running.scores[:, -1]
        is_exhausted = ~(weakest > MIN_SCORE)
        done = search.is_done(length + 1)
        if is_last:
            done[:] = True
        elif length > prompt_length:
            done |= is_exhausted
        kept = None
        if done.any():
            has_forbidden = ~(search.finished.scores > MIN_SCORE).all(dim=1)
            if ((is_exhausted | has_forbidden) & done).any():
                return None
            kept = search.retire(done)
            if len(kept) == 0:
                break

        # 4) Reorder the cache and read the new tokens.
        sources = sources.gather(1, running)
        rows = torch.arange(len(sources), device=sources.device)[:, None] * num_beams + sources
        decoder.select((rows if kept is None else rows[kept]).flatten(), sentences=kept)
        logits = decoder.step(search.running.ids[..., length].flatten())

    # 5) Return the best sequences, as long as the longest of them.
    scores, ids, lengths = (tensor[:, : config.num_return_sequences] for tensor in search.hypotheses)
    return ids[..., : prompt_length + lengths.max()].flatten(0, 1), scores.flatten()
