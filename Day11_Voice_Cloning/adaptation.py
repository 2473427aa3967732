"""Few-shot speaker adaptation: fine-tune the decoder of the parallel synthesizer on one recording of known text,
speak at its pace, and shift the mel towards the frames of the recording.

Fine-tuning after AdaSpeech (Chen et al., 2021, arXiv:2103.00993), which trains fewer weights on more sentences;
the shift is a smoothed form of kNN-VC (Baas et al., 2023, arXiv:2305.18975).
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LambdaLR

from utils.features import dct_matrix
from utils.models import tts
from utils.models.fastspeech import FastSpeech
from utils.models.tacotron2 import SynthesisOutput, Tacotron2, length_mask
from utils.models.tts_mel import SynthesisMel

from . import durations
from .durations import FastSpeechBatch
from .train import fastspeech_losses

PACES = 0.8, 1.25
"""Limits of the pace of a recording: it is clipped, because one sentence is a noisy estimate."""


@dataclass(frozen=True)
class Adapting:
    """Settings: `steps` of Adam with the learning rate `lr`; then each frame is shifted towards the mean of its
    nearest `neighbours` in the recording, smoothed over `width` frames (standard deviation)."""

    steps: int = 60
    lr: float = 1e-3
    neighbours: int = 4
    width: float = 5.0


ADAPTING = {"quick": Adapting(steps=2), "study": Adapting(), "full": Adapting()}


def timed_recording(
    wave: Tensor, text: str, voice: Tensor, mel: SynthesisMel, teacher: Tacotron2
) -> FastSpeechBatch:
    """A batch of one recording `(time,)` of the words `text`, with durations from the attention of `teacher`.

    `voice` `(256,)` is its d-vector. Raises ValueError for a text that cannot be read, for silence, and for more
    than 30 s.
    """
    sentence = tts.prepare([wave], [text], voice[None], mel, longest=30.0)
    return durations.timed(sentence, [wave], teacher, mel.settings).batch([0])


def adapt(model: FastSpeech, recording: FastSpeechBatch, settings: Adapting, seed: int = 0) -> FastSpeech:
    """A copy of the model with its decoder fine-tuned on the recording, in evaluation mode.

    Encoder and predictors are frozen; the loss is the error of the mel alone. Equal seeds give equal weights.
    """
    adapted = copy.deepcopy(model).requires_grad_(False).eval()
    adapted.decoder.train()  # its dropout; the encoder's batch norms stay as they are
    learning = [*adapted.decoder.parameters(), *adapted.colour.parameters()]
    for weights in learning:
        weights.requires_grad_(True)
    optimizer = torch.optim.Adam(learning, lr=settings.lr)
    schedule = LambdaLR(optimizer, partial(rate_factor, steps=settings.steps))
    with tts.repeatable(recording.mel.device, seed), torch.enable_grad():
        for _ in range(settings.steps):
            loss = fastspeech_losses(adapted(*recording), recording)["mel"]
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(learning, 1.0)
            optimizer.step()
            schedule.step()
    return adapted.requires_grad_(False).eval()


@torch.no_grad()
def pace_of(model: FastSpeech, recording: FastSpeechBatch) -> float:
    """Speaking rate of the recording relative to the model's for the same words, clipped to `PACES`."""
    text, lengths, d_vectors = recording[:3]
    memory = model.memory(text, lengths, d_vectors)
    inside = length_mask(lengths, text.shape[1])[..., None].to(memory.dtype)
    quickness = model.predict_durations(memory, inside).sum() / recording.durations.sum()
    return float(quickness.clamp(*PACES))


def rate_factor(step: int, steps: int, warm_up: int = 10) -> float:
    """Factor of the learning rate at a step (from 0): linear warm-up, and decay to a tenth in the second half."""
    done = (step + 1) / steps
    falling = 1.0 if done < 0.5 else 1 - 0.9 * (done - 0.5) / 0.5
    return min(1.0, (step + 1) / warm_up) * falling


def sound_of(mel: Tensor, order: int = 13, around: int = 2) -> Tensor:
    """Features by which the frames of a mel `(n_mels, frames)` are compared: `(frames, features)`.

    The first `order` cepstra, normalised by their mean and deviation over the loudest seven tenths of the frames,
    so that they depend on the sound more than on the speaker; loudness and the `around` neighbouring frames on
    each side have half weight.
    """
    cepstra = dct_matrix(len(mel), order).to(mel.device).T @ mel  # (order, frames)
    loud = mel.mean(0) > mel.mean(0).quantile(0.3)
    some = cepstra[:, loud] if loud.sum() > 1 else cepstra
    cepstra = cepstra - some.mean(1, keepdim=True)
    cepstra = cepstra / some.std(1, correction=0, keepdim=True).clamp(min=1e-3)
    cepstra[0] *= 0.5
    padded = F.pad(cepstra[None], (around, around), mode="replicate")[0]
    frames = padded.unfold(1, 2 * around + 1, 1).clone()  # (order, frames, 2 * around + 1)
    frames[..., torch.arange(2 * around + 1) != around] *= 0.5
    return frames.transpose(0, 1).flatten(1)


def towards(mel: Tensor, recording: Tensor, settings: Adapting) -> Tensor:
    """A mel `(n_mels, frames)` shifted towards the most similar frames of a `recording` `(n_mels, frames)`.

    The difference between each frame and the mean of its nearest neighbours is smoothed over time in each channel
    and added: the words change from frame to frame, the speaker does not.
    """
    distance = torch.cdist(sound_of(mel), sound_of(recording))  # (frames, frames of the recording)
    nearest = distance.topk(min(settings.neighbours, distance.shape[1]), largest=False)
    shift = recording[:, nearest.indices].mean(2) - mel  # (n_mels, frames)
    reach = math.ceil(3 * settings.width)
    window = torch.arange(-reach, reach + 1, device=mel.device) / settings.width
    window = (-0.5 * window.square()).exp()
    padded = F.pad(shift[:, None], (reach, reach), mode="replicate")
    return mel + F.conv1d(padded, (window / window.sum())[None, None])[:, 0]


@dataclass
class Learned:
    """An adapted voice: the fine-tuned model, its recording, and the `pace` of the recording."""

    model: FastSpeech
    recording: FastSpeechBatch
    settings: Adapting
    pace: float = 1.0

    def say(self, text: str) -> SynthesisOutput:
        """Speak a text in this voice. Raises TextError for a text that cannot be read."""
        speech = tts.speak(self.model, [text], self.recording.d_vectors, pace=self.pace)
        known = self.recording.mel[0, :, : int(self.recording.mel_lengths[0])]
        mel = speech.mel.clone()
        mel[0, :, : speech.lengths[0]] = towards(speech.item(0), known, self.settings)
        return replace(speech, mel=mel)
