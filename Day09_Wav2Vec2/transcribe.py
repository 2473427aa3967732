"""From the frames of a trained recogniser to text, and to the times of letters and words."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchaudio.functional import forced_align, merge_tokens

from utils.features import SAMPLE_RATE, AudioError, read_audio, to_mono
from utils.models import ctc
from utils.models.ctc import SEPARATOR, Vocabulary, WordModel
from utils.models.wav2vec2_ctc import Wav2Vec2CTC

from .pretrain import receptive_field

# --- decoding ---------------------------------------------------------------------------------------


def greedy(logits: Tensor, frames: Tensor, vocabulary: Vocabulary) -> list[str]:
    """The likeliest symbol of each frame, collapsed. `logits` `(batch, time, symbols)`, `frames` `(batch,)`."""
    rows = zip(logits.cpu(), frames.tolist(), strict=True)
    return [vocabulary.decode_frames(row[:n]) for row, n in rows]


def cut_long(wave: Tensor, most: float = 30.0) -> list[Tensor]:
    """A long recording `(time,)` in pieces of at most `most` s, cut at the quietest 100 ms of each last third."""
    longest, window = round(most * SAMPLE_RATE), SAMPLE_RATE // 10
    pieces = []
    while len(wave) > longest:
        first = longest * 2 // 3
        energy = wave[first:longest].square().unfold(0, window, window // 2).mean(1)
        end = first + int(energy.argmin()) * (window // 2) + window // 2
        pieces.append(wave[:end])
        wave = wave[end:]
    return [*pieces, wave]


def letter_times(log_probs: Tensor, text: str, recogniser: Wav2Vec2CTC) -> list[tuple[str, float, float]]:
    """When each letter of `text` was said, by the likeliest CTC path: (letter, begin in s, end in s).

    `log_probs` are `(frames, symbols)` of one utterance. CTC assigns a letter to few frames, often one, with
    blanks around it: the times show where the network detected it, not how long it lasted.
    """
    vocabulary = recogniser.vocabulary
    codes = vocabulary.encode(ctc.normalise_text(text))
    if not codes:
        return []
    labels = torch.tensor([codes])
    path, scores = forced_align(log_probs[None].float().cpu(), labels, blank=vocabulary.blank)
    hop = receptive_field(recogniser.config)[1] / SAMPLE_RATE
    spans = merge_tokens(path[0], scores[0], blank=vocabulary.blank)
    return [(vocabulary.symbols[s.token], s.start * hop, s.end * hop) for s in spans]


def word_times(log_probs: Tensor, text: str, recogniser: Wav2Vec2CTC) -> list[tuple[str, float, float]]:
    """When each word of `text` was said, from its first to its last letter: (word, begin in s, end in s)."""
    letters = letter_times(log_probs, text, recogniser)
    words = itertools.groupby(letters, key=lambda letter: letter[0] == SEPARATOR)
    spelled = [list(some) for is_space, some in words if not is_space]
    return [("".join(c for c, _, _ in some), some[0][1], some[-1][2]) for some in spelled]


@torch.no_grad()
def transcribe(
    recogniser: Wav2Vec2CTC,
    sound: str | Path | np.ndarray | Tensor,
    rate: int = SAMPLE_RATE,
    model: WordModel | None = None,
    most: float = 30.0,
    **beam: Any,
) -> str:
    """The text of a file, or of samples `(time,)` or `(channels, time)` at any `rate` (Hz).

    Greedy decoding, or beam search with a word `model` or any option of `ctc.beam_texts` (`beam`; with a list of
    `words` only these can be written). Longer recordings are cut at quiet places into pieces of at most `most` s.
    Raises AudioError for a file without sound and for sound shorter than one frame (25 ms).
    """
    wave = read_audio(sound) if isinstance(sound, (str, Path)) else to_mono(sound, rate)
    config, vocabulary = recogniser.config, recogniser.vocabulary
    least = receptive_field(config)[0]
    if len(wave) < least:
        raise AudioError(
            f"{1000 * len(wave) / SAMPLE_RATE:.1f} ms of sound are shorter than one frame of the network "
            f"({1000 * least / SAMPLE_RATE:.0f} ms): record at least half a second."
        )
    recogniser.eval()
    texts = []
    for piece in cut_long(wave, most):
        if len(piece) < least:
            continue  # a few samples after the last cut
        lengths = torch.tensor([len(piece)], device=recogniser.device)
        x = ctc.normalise_waves(piece[None].to(recogniser.device), lengths)
        logits, frames = recogniser(x, lengths)
        if model or beam:
            log_probs = logits.float().log_softmax(-1)
            texts += ctc.beam_texts(log_probs, vocabulary, model=model, **beam)
        else:
            texts += greedy(logits, frames, vocabulary)
    return " ".join(t for t in texts if t)
