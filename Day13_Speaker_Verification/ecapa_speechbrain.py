"""SpeechBrain's pretrained ECAPA-TDNN behind the interface of the other encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.features import as_float
from utils.models.ecapa_tdnn import whole_windows
from utils.models.ge2e import Embedder

# --- SpeechBrain's ECAPA ------------------------------------------------------------------------------


class SpeechBrainECAPA(Embedder):
    """SpeechBrain's `EncoderClassifier` behind the same two calls. Whole utterances, as it is meant to be used."""

    frames, rate = 300, 0.67

    def __init__(self, classifier) -> None:
        super().__init__()
        self.classifier = classifier

    @property
    def device(self) -> torch.device:
        return torch.device(self.classifier.device)

    def encode(self, segments: Tensor) -> Tensor:
        return F.normalize(self.classifier.encode_batch(segments)[:, 0].float(), dim=1)

    def segments(self, wave: Tensor) -> Tensor:
        return whole_windows(wave, self.frames, self.rate, self.coverage)

    @torch.no_grad()
    def embed(self, waves: Sequence[Tensor], batch: int = 1) -> Tensor:
        """Unit vectors `(utterances, dim)`, one utterance at a time: nothing is cut or padded."""
        waves = [as_float(torch.as_tensor(w).to(self.device)) for w in waves]
        return torch.cat([self.encode(w[None]) for w in waves])


def load_ecapa(
    source: str | Path = "speechbrain/spkrec-ecapa-voxceleb",
    device: torch.device | str = "cpu",
    cache: Path | None = None,
) -> SpeechBrainECAPA:
    """SpeechBrain's ECAPA-TDNN by a hub name (84 MB) or from a local folder that holds the same files.

    `cache` is where the hub's files go. Raises OSError or RuntimeError of SpeechBrain's own where there is no
    network and no folder.
    """
    from speechbrain.inference.speaker import EncoderClassifier

    folder = Path(source)
    local = folder.is_dir()
    classifier = EncoderClassifier.from_hparams(
        source=str(folder.resolve() if local else source),
        savedir=str(cache or (folder.resolve() if local else "runs/ecapa")),
        overrides={"pretrained_path": str(folder.resolve())} if local else {},
        run_opts={"device": str(device)},
    )
    if classifier is None:
        raise RuntimeError(f"SpeechBrain made nothing of {source}")
    return SpeechBrainECAPA(classifier)


ECAPA_FILE = """\
pretrained_path: {folder}
compute_features: !new:speechbrain.lobes.features.Fbank
    n_mels: 80
mean_var_norm: !new:speechbrain.processing.features.InputNormalization
    norm_type: sentence
    std_norm: False
embedding_model: !new:speechbrain.lobes.models.ECAPA_TDNN.ECAPA_TDNN
    input_size: 80
    channels: [{c}, {c}, {c}, {c}, {pooled}]
    kernel_sizes: [5, 3, 3, 3, 1]
    dilations: [1, 2, 3, 4, 1]
    attention_channels: {attention}
    lin_neurons: 192
classifier: !new:speechbrain.lobes.models.ECAPA_TDNN.Classifier
    input_size: 192
    out_neurons: 10
modules:
    compute_features: !ref <compute_features>
    mean_var_norm: !ref <mean_var_norm>
    embedding_model: !ref <embedding_model>
    classifier: !ref <classifier>
pretrainer: !new:speechbrain.utils.parameter_transfer.Pretrainer
    loadables:
        embedding_model: !ref <embedding_model>
        classifier: !ref <classifier>
    paths:
        embedding_model: !ref <pretrained_path>/embedding_model.ckpt
        classifier: !ref <pretrained_path>/classifier.ckpt
"""
"""A folder as `load_ecapa` reads it, in SpeechBrain's own language for settings."""


def save_random_ecapa(folder: Path, channels: int = 1024) -> Path:
    """A randomly initialised ECAPA-TDNN on disk in SpeechBrain's form, to exercise `load_ecapa` without network.

    It knows no voices. 1024 channels are the size of `speechbrain/spkrec-ecapa-voxceleb`.
    """
    from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN, Classifier

    folder.mkdir(parents=True, exist_ok=True)
    sizes = {"c": channels, "pooled": 3 * channels, "attention": max(8, channels // 8)}
    model = ECAPA_TDNN(
        80,
        channels=[channels] * 4 + [3 * channels],
        attention_channels=sizes["attention"],
        lin_neurons=192,
    )
    torch.save(model.state_dict(), folder / "embedding_model.ckpt")
    head = Classifier(192, out_neurons=10)
    torch.save(head.state_dict(), folder / "classifier.ckpt")
    text = ECAPA_FILE.format(folder=folder.resolve(), **sizes)
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    return folder
