"""SpeechBrain's pretrained ECAPA-TDNN behind the interface of the other encoders."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from utils.features import as_float
from utils.models.ge2e import Embedder


class SpeechBrainECAPA(Embedder):
    """SpeechBrain's `EncoderClassifier` behind the same two calls; `embed` takes whole utterances, as they do."""

    frames, rate = 300, 0.67  # of `partials`

    def __init__(self, classifier) -> None:
        super().__init__()
        self.classifier = classifier

    def encode(self, segments: Tensor) -> Tensor:
        return F.normalize(self.classifier.encode_batch(segments)[:, 0].float(), dim=1)

    @torch.no_grad()
    def embed(self, waves: Sequence[Tensor], batch: int = 1) -> Tensor:
        """Unit vectors `(utterances, dim)`, one utterance at a time: nothing is cut or padded."""
        waves = [as_float(torch.as_tensor(w).to(self.device)) for w in waves]
        return torch.cat([self.encode(w[None]) for w in waves])


def load_ecapa(
    source: str | Path = "speechbrain/spkrec-ecapa-voxceleb", device: torch.device | str = "cpu"
) -> SpeechBrainECAPA:
    """SpeechBrain's ECAPA-TDNN by a hub name (84 MB) or from a local folder with the same files.

    The hub's files go to `runs/ecapa`. Without network and folder, SpeechBrain raises OSError or RuntimeError.
    """
    from speechbrain.inference.speaker import EncoderClassifier

    files, overrides = "runs/ecapa", {}
    if Path(source).is_dir():
        source = files = str(Path(source).resolve())
        overrides = {"pretrained_path": source}
    classifier = EncoderClassifier.from_hparams(
        source=source, savedir=files, overrides=overrides, run_opts={"device": str(device)}
    )
    return SpeechBrainECAPA(classifier).eval()


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
