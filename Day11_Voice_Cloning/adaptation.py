"""A voice learned from one sentence: the parallel synthesizer goes on learning for some steps from a recording of
known text, speaks at its pace, and what it then says is moved towards the recording's own frames.

The first is the idea of AdaSpeech (Chen et al., 2021, arXiv:2103.00993), there of few weights and more sentences;
the second that of kNN-VC (Baas et al., 2023, arXiv:2305.18975), whose nearest frames give here a direction alone.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from utils.features import dct_matrix
from utils.models import tts
from utils.models.fastspeech import FastSpeech
from utils.models.tacotron2 import SynthesisOutput, Tacotron2, length_mask
from utils.models.tts_mel import SynthesisMel

from . import durations
from .fastspeech_loss import FastSpeechBatch, fastspeech_losses

PITCH = 60, 400
"""Between which frequencies (Hz) a stranger's pitch is looked for."""

PACES = 0.8, 1.25
"""The slowest and the quickest pace that is taken over from a recording: one sentence may be an odd one."""


@dataclass(frozen=True)
class Adapting:
    """How a voice is learned: `steps` of Adam up to the rate `lr`; then each frame is moved towards the mean of
    its `neighbours` in the recording, by a direction smoothed over `width` frames (standard deviation)."""

    steps: int = 60
    lr: float = 1e-3
    neighbours: int = 4
    width: float = 5.0


ADAPTING = {"quick": Adapting(steps=2), "study": Adapting(), "full": Adapting()}


def timed_recording(
    wave: Tensor, text: str, voice: Tensor, mel: SynthesisMel, teacher: Tacotron2
) -> FastSpeechBatch:
    """One recording `(time,)` of the words `text`, its letters timed by the attention of the `teacher`.

    `voice` `(256,)` is the d-vector that goes with it. Raises ValueError for a text that cannot be read, silence,
    and more than 30 s.
    """
    sentence = tts.prepare([wave], [text], voice[None], mel, longest=30.0, bar=False)
    return durations.timed(sentence, [wave], teacher, mel.settings, PITCH).batch([0])


def adapt(
    model: FastSpeech, recording: FastSpeechBatch, settings: Adapting, seed: int = 0
) -> FastSpeech:
    """A copy of the model whose decoder has learned the voice of the recording, in evaluation mode.

    Letters are read and timed as before: only what turns timed letters into sound is trained, by the error of the
    mel alone. The same seed gives the same weights.
    """
    device = recording.mel.device
    adapted = copy.deepcopy(model).requires_grad_(False).eval()
    adapted.decoder.train()  # its dropout; the encoder's batch norms stay as they are
    learning = [*adapted.decoder.parameters(), *adapted.colour.parameters()]
    for weights in learning:
        weights.requires_grad_(True)
    optimizer = torch.optim.Adam(learning, lr=settings.lr)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: rate_factor(step, settings.steps)
    )
    with tts.repeatable(device, seed), torch.enable_grad():
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
    """How many times as fast as the model would say these words the recording says them, kept within `PACES`."""
    text, lengths, d_vectors = recording[:3]
    memory = model.memory(text, lengths, d_vectors)
    inside = length_mask(lengths, text.shape[1])[..., None].to(memory.dtype)
    quickness = model.predict_durations(memory, inside).sum() / recording.durations.sum()
    return float(quickness.clamp(*PACES))


def rate_factor(step: int, steps: int, warm_up: int = 10) -> float:
    """The share of the rate at a step (from 0): up over `warm_up` steps, from the half on down to a tenth."""
    done = (step + 1) / steps
    falling = 1.0 if done < 0.5 else 1 - 0.9 * (done - 0.5) / 0.5
    return min(1.0, (step + 1) / warm_up) * falling


def sound_of(mel: Tensor, order: int = 13, around: int = 2) -> Tensor:
    """What the frames of a mel `(n_mels, frames)` are compared by: `(frames, features)`.

    The first `order` cepstra, each centred and scaled by those frames of this very sound that are not its softest
    three tenths, so that they tell less of who speaks than of what; loudness and the `around` frames on either
    side at half weight.
    """
    cepstra = dct_matrix(len(mel), order).to(mel.device).T @ mel
    loud = mel.mean(0) > mel.mean(0).quantile(0.3)
    some = cepstra[:, loud] if loud.sum() > 1 else cepstra
    cepstra = cepstra - some.mean(1, keepdim=True)
    cepstra = cepstra / some.std(1, correction=0, keepdim=True).clamp(min=1e-3)
    cepstra[0] *= 0.5
    padded = F.pad(cepstra[None], (around, around), mode="replicate")[0]
    frames = padded.unfold(1, 2 * around + 1, 1).clone()
    frames[..., torch.arange(2 * around + 1) != around] *= 0.5
    return frames.transpose(0, 1).flatten(1)


def towards(mel: Tensor, recording: Tensor, settings: Adapting) -> Tensor:
    """A mel `(n_mels, frames)` moved towards those frames of a `recording` `(n_mels, frames)` that sound like it.

    How far the mean of a frame's nearest ones lies from it, smoothed over time in each channel, is added: what is
    said changes from frame to frame, who says it does not.
    """
    apart = torch.cdist(sound_of(mel), sound_of(recording))
    nearest = apart.topk(min(settings.neighbours, apart.shape[1]), largest=False)
    away = recording[:, nearest.indices].mean(2) - mel
    reach = math.ceil(3 * settings.width)
    bell = torch.arange(-reach, reach + 1, device=mel.device) / settings.width
    bell = (-0.5 * bell.square()).exp()
    padded = F.pad(away[:, None], (reach, reach), mode="replicate")
    return mel + F.conv1d(padded, (bell / bell.sum())[None, None])[:, 0]


@dataclass
class Learned:
    """A voice that was learned: the adapted model, the recording that it learned from, and the `pace` of that."""

    model: FastSpeech
    recording: FastSpeechBatch
    settings: Adapting
    pace: float = 1.0

    def say(self, text: str) -> SynthesisOutput:
        """A text in this voice, moved towards its recording. Raises TextError for what cannot be read."""
        voice = self.recording.d_vectors
        speech = tts.speak(self.model, [text], voice, pace=self.pace)
        known = self.recording.mel[0, :, : int(self.recording.mel_lengths[0])]
        mel = speech.mel.clone()
        mel[0, :, : speech.lengths[0]] = towards(speech.item(0), known, self.settings)
        return replace(speech, mel=mel)


def learn(
    model: FastSpeech, teacher: Tacotron2, wave: Tensor, said: str, voice: Tensor, mel: SynthesisMel,
    settings: Adapting,
) -> Learned:  # fmt: skip
    """The voice of one recording `(time,)` of the words `said`, at the mel's rate.

    Raises what `timed_recording` does.
    """
    recording = timed_recording(wave, said, voice, mel, teacher)
    adapted = adapt(model, recording, settings)
    return Learned(adapted, recording, settings, pace_of(model, recording))
