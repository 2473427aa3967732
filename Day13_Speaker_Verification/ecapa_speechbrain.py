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


class SpeechBrainECAPA(Embedder):
    """SpeechBrain's `EncoderClassifier` behind the same two calls; `embed` takes whole utterances, as they do."""

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
    """SpeechBrain's ECAPA-TDNN by a hub name (84 MB) or from a local folder with the same files.

    `cache` is the folder for the hub's files. Without network and folder, SpeechBrain raises OSError or
    RuntimeError.
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
        raise RuntimeError(f"SpeechBrain could not load {source}")
    return SpeechBrainECAPA(classifier)


def save_random_ecapa(folder: Path, channels: int = 1024) -> Path:
    """A randomly initialised ECAPA-TDNN on disk in SpeechBrain's form, to try `load_ecapa` without network.

    1024 channels are the size of `speechbrain/spkrec-ecapa-voxceleb`.
    """
    from hyperpyyaml import load_hyperpyyaml

    text = Path(__file__).with_name("ecapa_hyperparams.yaml").read_text(encoding="utf-8")
    text = text.replace("channels: 1024", f"channels: {channels}", 1)
    modules = load_hyperpyyaml(text)["modules"]
    folder.mkdir(parents=True, exist_ok=True)
    for name in ("embedding_model", "classifier"):
        torch.save(modules[name].state_dict(), folder / f"{name}.ckpt")
    (folder / "hyperparams.yaml").write_text(text, encoding="utf-8")
    return folder
