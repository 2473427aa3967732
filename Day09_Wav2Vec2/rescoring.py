"""Rescore a recogniser's words with a keyword network.

The recogniser finds where words begin and end, the keyword network classifies single words more accurately.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.features import SAMPLE_RATE, fixed_length
from utils.models import ctc
from utils.models.keyword_net import KeywordNet, probabilities
from utils.models.wav2vec2_ctc import Wav2Vec2CTC

from .transcribe import word_times


def replacements(log_probs: Tensor, text: str, words: Sequence[str], vocabulary: ctc.Vocabulary) -> Tensor:
    """CTC's posterior of each of `words` at each place of `text`: log probabilities `(places, words)`.

    For each place, all texts that differ from `text` there only, each summed over all its paths through
    `log_probs` `(frames, symbols)`; the probabilities of a row sum to 1.
    """
    said = text.split()
    if not said:
        return torch.empty(0, len(words))
    texts = [" ".join((*said[:k], word, *said[k + 1 :])) for k in range(len(said)) for word in words]
    labels, lengths = ctc.encode_texts(texts, vocabulary)
    frames = torch.full((len(texts),), len(log_probs))
    each = log_probs.float().cpu()[:, None].expand(-1, len(texts), -1)  # (frames, texts, symbols)
    losses = F.ctc_loss(each, labels, frames, lengths, vocabulary.blank, "none")
    return (-losses).view(len(said), len(words)).log_softmax(1)


def cut_words(wave: Tensor, times: Sequence[tuple[str, float, float]]) -> Tensor:
    """One second around each of the words `(word, begin, end)` of `(time,)`: `(words, 16000)`.

    A piece reaches at most half way to its neighbours; zeros on both sides fill the second.
    """
    inner = [(a[2] + b[1]) / 2 for a, b in pairwise(times)]
    edges = [0.0, *inner, len(wave) / SAMPLE_RATE]
    pieces = []
    for k, (_, begin, end) in enumerate(times):
        centre = (begin + end) / 2
        start = round(max(edges[k], centre - 0.5) * SAMPLE_RATE)
        stop = round(min(edges[k + 1], centre + 0.5) * SAMPLE_RATE)
        piece = wave[start:stop][:SAMPLE_RATE]
        before = (SAMPLE_RATE - len(piece)) // 2
        pieces.append(fixed_length(F.pad(piece, (before, 0)), SAMPLE_RATE))
    return torch.stack(pieces) if pieces else wave.new_empty(0, SAMPLE_RATE)


@dataclass(frozen=True)
class Opinions:
    """Two networks' log probabilities `(places, words)` for the words `said`, `first` and `second`."""

    said: tuple[str, ...]
    words: tuple[str, ...]
    first: Tensor
    second: Tensor

    def text(self, weight: float) -> str:
        """The words with the largest first + `weight` * second; words outside `words` stay as they were."""
        best = (self.first + weight * self.second).argmax(1).tolist()
        return " ".join(
            self.words[n] if word in self.words else word for word, n in zip(self.said, best, strict=True)
        )


def second_opinion(
    recogniser: Wav2Vec2CTC,
    log_probs: Tensor,
    text: str,
    wave: Tensor,
    model: KeywordNet,
    classes: Sequence[str],
) -> Opinions:
    """Classify each word of `text`, the recogniser's output for the wave `(time,)`, with the keyword `model`.

    `log_probs` `(frames, symbols)` are the recogniser's. `Opinions.text` combines both log-linearly.
    """
    words = tuple(ctc.normalise_text(word) for word in classes)
    first = replacements(log_probs, text, words, recogniser.vocabulary)
    times = word_times(log_probs, text, recogniser)
    clips = cut_words(wave, times)
    device = next(model.parameters()).device
    found = probabilities(model, clips.to(device)).cpu() if len(clips) else first
    return Opinions(tuple(text.split()), words, first, found.clamp(min=1e-6).log())
