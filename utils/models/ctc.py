"""CTC speech recognition without its network: letters, decoding, a language model, error rates, batches."""

from __future__ import annotations

import html
import itertools
import math
import tempfile
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import jiwer
import numpy as np
import torch
from torch import Tensor

from ..features import SAMPLE_RATE, as_float
from ..metrics import Difference, Interval, bootstrap_ratio
from ..speech.pack import Utterances

# --- letters ----------------------------------------------------------------------------------------

BLANK, UNKNOWN, SEPARATOR = "<pad>", "<unk>", "|"
"""The CTC blank (which also pads), the tokenizer's symbol for unknown letters, and the space between words."""


def normalise_text(text: str) -> str:
    """Text for training and scoring: capitals with apostrophes, without accents and other punctuation.

    Digits and letters of other scripts stay, so that `Vocabulary.encode` reports them: digits do not say how a
    number is spoken.
    """
    text = text.replace("’", "'").replace("‘", "'").replace("ʼ", "'").upper()
    plain = unicodedata.normalize("NFKD", text)
    plain = "".join(c for c in plain if not unicodedata.combining(c))
    kept = (c if c.isalnum() or c == "'" else " " for c in plain)
    return " ".join("".join(kept).split())


@dataclass(frozen=True)
class Vocabulary:
    """The network's output symbols; a symbol's number is its index, and `<pad>` is CTC's blank."""

    symbols: tuple[str, ...] = (
        BLANK, UNKNOWN, SEPARATOR, "'", *"ABCDEFGHIJKLMNOPQRSTUVWXYZ",
    )  # fmt: skip

    def __post_init__(self) -> None:
        for symbol in (BLANK, SEPARATOR):
            if self.symbols.count(symbol) != 1:
                raise ValueError(f"the vocabulary needs {symbol!r} exactly once")

    def __len__(self) -> int:
        return len(self.symbols)

    @property
    def blank(self) -> int:
        """The number of CTC's blank."""
        return self.symbols.index(BLANK)

    @property
    def letters(self) -> list[int]:
        """The numbers that may occur in a transcript: all but `<...>`."""
        return [i for i, s in enumerate(self.symbols) if not s.startswith("<")]

    def encode(self, text: str) -> list[int]:
        """Normalised text as numbers, with `|` between the words.

        Raises ValueError, which lists the letters that are not in the vocabulary.
        """
        number = {s: i for i, s in enumerate(self.symbols) if not s.startswith("<")}
        letters = SEPARATOR.join(text.split())
        unknown = sorted({c for c in letters if c not in number})
        if unknown:
            hint = (
                "normalise_text(text) writes capitals and drops punctuation"
                if any(normalise_text(c) in number or not normalise_text(c) for c in unknown)
                else "write numbers as words, and leave other scripts out"
            )
            raise ValueError(f"{' '.join(unknown)!r} in {text[:60]!r} is not in the vocabulary: {hint}.")
        return [number[c] for c in letters]

    def decode(self, numbers: Iterable[int]) -> str:
        """Numbers (after `collapse`) as text; `<...>` is left out."""
        kept = set(self.letters)
        text = "".join(self.symbols[i] for i in numbers if i in kept)
        return " ".join(text.replace(SEPARATOR, " ").split())

    def decode_frames(self, scores: Tensor) -> str:
        """Greedy decoding of `(frames, symbols)`: the likeliest symbol of each frame, collapsed."""
        return self.decode(collapse(scores.argmax(-1).tolist(), self.blank))


def collapse(numbers: Sequence[int], blank: int) -> list[int]:
    """CTC's rule: repetitions become one, then blanks go (Graves et al., 2006)."""
    once = [n for i, n in enumerate(numbers) if i == 0 or n != numbers[i - 1]]
    return [n for n in once if n != blank]


def frames_needed(numbers: Sequence[int]) -> int:
    """The fewest frames that CTC needs for these numbers: one each, and a blank between equal neighbours."""
    return len(numbers) + sum(a == b for a, b in itertools.pairwise(numbers))


def blank_fraction(logits: Tensor, frames: Tensor, blank: int) -> float:
    """Fraction of the frames whose likeliest symbol is the blank; padding does not count."""
    inside = torch.arange(logits.shape[1], device=logits.device) < frames[:, None]  # (batch, frames)
    return (logits.argmax(-1) == blank)[inside].double().mean().item()


class WordModel:
    """A word n-gram model with interpolated Kneser-Ney smoothing, trained from texts (Chen & Goodman, 1999).

    Probabilities are over the words of the texts, the end of the sentence, and one class for all
    unknown words. The lower orders count the contexts of a word, not its occurrences.
    """

    START, END = "<s>", "</s>"

    def __init__(self, texts: Iterable[str], order: int = 3, discount: float = 0.75) -> None:
        if order < 1 or not 0 < discount < 1:
            raise ValueError("the order must be at least 1, the discount between 0 and 1")
        self.order, self.discount = order, discount
        self.counts: list[dict[tuple, Counter]] = [defaultdict(Counter) for _ in range(order)]
        for text in texts:
            words = [self.START] * (order - 1) + text.split() + [self.END]
            for i in range(order - 1, len(words)):
                self.counts[-1][tuple(words[i - order + 1 : i])][words[i]] += 1
        for n in range(order - 2, -1, -1):
            for context, seen in self.counts[n + 1].items():
                for word in seen:
                    self.counts[n][context[1:]][word] += 1
        if not self.counts[0]:
            raise ValueError("a language model needs texts")
        self.words = set(self.counts[0][()])
        self._known: dict[tuple, float] = {}

    def log_prob(self, word: str, history: Sequence[str] = ()) -> float:
        """Natural logarithm of p(word | history); the history starts with the sentence."""
        padded = (self.START,) * (self.order - 1) + tuple(history)
        context = padded[len(padded) - self.order + 1 :]
        key = (*context, word if word in self.words else UNKNOWN)
        if key not in self._known:
            self._known[key] = math.log(self._probability(key[-1], context))
        return self._known[key]

    def _probability(self, word: str, context: tuple[str, ...]) -> float:
        p = 1 / (len(self.words) + 1)  # uniform over all known words and the unknown one
        for n in range(self.order):
            seen = self.counts[n].get(context[len(context) - n :])
            if seen:
                total = sum(seen.values())
                left = self.discount * len(seen) / total
                p = max(seen[word] - self.discount, 0) / total + left * p
        return p

    def score(self, text: str) -> float:
        """Natural logarithm of the probability of a whole sentence, its end included."""
        words = [*text.split(), self.END]
        return sum(self.log_prob(w, words[:i]) for i, w in enumerate(words))

    def perplexity(self, texts: Iterable[str]) -> float:
        """exp of the negative mean log probability per word; sentence ends count as words."""
        texts = list(texts)
        count = sum(len(text.split()) + 1 for text in texts)
        return math.exp(-sum(self.score(text) for text in texts) / count)


@dataclass(frozen=True)
class Hypothesis:
    """A decoded text and its score: log p(letters | sound) + alpha log p(words) + beta (number of words)."""

    text: str
    score: float


def beam_search(
    log_probs: Tensor,
    vocabulary: Vocabulary,
    beam: int = 16,
    model: WordModel | None = None,
    alpha: float = 0.5,
    beta: float = 1.0,
    floor: float = -12.0,
    words: Collection[str] | None = None,
) -> list[Hypothesis]:
    """Prefix beam search over one utterance, the best hypothesis first (Hannun et al., 2014, arXiv:1408.2873).

    `log_probs` are natural logarithms, `(frames, symbols)`. The probabilities of all alignments with the same
    words are summed. With a `model`, each finished word adds `alpha` times its log probability, and `beta`.
    Letters below `floor` in a frame are not tried there; `beam` prefixes survive each frame. With a lexicon
    `words`, prefixes that start no word of it are dropped, and so are texts that end within a word. Raises
    ValueError for an empty lexicon.
    """
    if words is not None and not words:
        raise ValueError("an empty list of words allows no text")
    blank, letters = vocabulary.blank, vocabulary.letters
    space = vocabulary.symbols.index(SEPARATOR)
    known = {"", *(words or ())}
    starts = {word[:n] for word in known for n in range(1, len(word) + 1)}
    # for each prefix: log probability of its alignments that end in a blank, and in a letter
    alive: dict[tuple[int, ...], tuple[float, float]] = {(): (0.0, -math.inf)}
    # for each prefix: finished words, letters of the current word, score that the words add
    spelled: dict[tuple[int, ...], tuple[tuple[str, ...], str, float]] = {(): ((), "", 0.0)}

    def close(said: tuple[str, ...], begun: str, bonus: float):
        """The words, the letters of the last one (none) and the bonus after its end."""
        if model and begun:
            bonus += alpha * model.log_prob(begun, said) + beta
        return ((*said, begun) if begun else said), "", bonus

    def spell(prefix: tuple[int, ...]) -> float:
        """The score that the words of the prefix add."""
        if prefix not in spelled:
            said, begun, bonus = spelled[prefix[:-1]]
            spelled[prefix] = (
                close(said, begun, bonus)
                if prefix[-1] == space
                else (said, begun + vocabulary.symbols[prefix[-1]], bonus)
            )
        return spelled[prefix][2]

    def may_follow(prefix: tuple[int, ...], i: int) -> bool:
        """Whether the prefix with one more letter still starts words of the lexicon."""
        begun = spelled[prefix][1]
        return begun in known if i == space else begun + vocabulary.symbols[i] in starts

    for row in log_probs.double().cpu().tolist():
        tried = [i for i in letters if row[i] > floor]
        grown: dict[tuple[int, ...], list[float]] = {}
        for prefix, (in_blank, in_letter) in alive.items():
            either = _log_add(in_blank, in_letter)
            same = grown.setdefault(prefix, [-math.inf, -math.inf])
            same[0] = _log_add(same[0], either + row[blank])
            for i in tried:
                before = either
                if prefix and prefix[-1] == i:
                    same[1] = _log_add(same[1], in_letter + row[i])
                    before = in_blank  # equal letters need a blank between them
                if words is not None and not may_follow(prefix, i):
                    continue
                longer = grown.setdefault((*prefix, i), [-math.inf, -math.inf])
                longer[1] = _log_add(longer[1], before + row[i])
        scored = ((_log_add(*p) + spell(q), q) for q, p in grown.items())
        ranked = sorted((x for x in scored if x[0] > -math.inf), reverse=True)
        alive = {q: (grown[q][0], grown[q][1]) for _, q in ranked[:beam]}
    total: dict[str, float] = {}
    added: dict[str, float] = {}
    if words is not None:  # no unfinished words
        alive = {q: p for q, p in alive.items() if spelled[q][1] in known}
        alive = alive or {(): (-math.inf, -math.inf)}
    for prefix, p in alive.items():
        said, _, bonus = close(*spelled[prefix])
        if model:
            bonus += alpha * model.log_prob(model.END, said)
        text = " ".join(said)  # the same after one separator and after several
        total[text] = _log_add(total.get(text, -math.inf), _log_add(*p))
        added[text] = bonus
    found = [Hypothesis(text, p + added[text]) for text, p in total.items()]
    return sorted(found, key=lambda h: h.score, reverse=True)


def beam_texts(
    log_probs: Sequence[Tensor],
    vocabulary: Vocabulary,
    beam: int = 16,
    words: Collection[str] | None = None,
    **options: Any,
) -> list[str]:
    """The best text of each utterance by `beam_search`; `log_probs` are `(frames, symbols)` each.

    With a list of `words`, torchaudio's lexicon decoder does it where `flashlight-text` is installed, three to
    six times as fast as `beam_search` at the same width. It has no `floor` and prunes differently, so a few
    unclear utterances get another text.
    """
    if not words or find_spec("flashlight") is None:
        options |= {"beam": beam, "words": words}
        return [beam_search(p, vocabulary, **options)[0].text for p in log_probs]
    decoder = _lexicon_decoder(vocabulary, sorted(words), beam, **options)
    ending = torch.full((1, len(vocabulary)), -1e4)  # a text ends with a separator
    ending[0, vocabulary.symbols.index(SEPARATOR)] = 0.0
    texts = []
    for rows in log_probs:
        emissions = torch.cat([rows.float().cpu(), ending])  # (frames + 1, symbols)
        (found,) = decoder(emissions[None].contiguous())
        texts.append(" ".join(found[0].words) if found else "")
    return texts


def _lexicon_decoder(
    vocabulary: Vocabulary,
    words: Sequence[str],
    beam: int,
    model: WordModel | None = None,
    alpha: float = 0.5,
    beta: float = 1.0,
    floor: float = -math.inf,
):
    """torchaudio's `ctc_decoder` for these words, with the word model as its language model."""
    from torchaudio.models.decoder import CTCDecoderLM, CTCDecoderLMState, ctc_decoder

    class WordScores(CTCDecoderLM):
        """Log probabilities of `model`; a state stands for the words so far."""

        def start(self, start_with_nothing: bool) -> CTCDecoderLMState:
            state = CTCDecoderLMState()
            self.histories = {state: ()}
            return state

        def score(self, state: CTCDecoderLMState, number: int) -> tuple[CTCDecoderLMState, float]:
            history, word, longer = self.histories[state], lines[number], state.child(number)
            self.histories[longer] = (*history, word)
            return longer, model.log_prob(word, history)

        def finish(self, state: CTCDecoderLMState) -> tuple[CTCDecoderLMState, float]:
            return state, model.log_prob(model.END, self.histories[state])

    lines = [*words, UNKNOWN]
    weights = {"lm_weight": alpha, "word_score": beta} if model else {}
    with tempfile.TemporaryDirectory() as scratch:
        lexicon, order = Path(scratch) / "lexicon.txt", Path(scratch) / "words.txt"
        spellings = [f"{word} {' '.join(word)} {SEPARATOR}\n" for word in words]
        lexicon.write_text("".join(spellings), encoding="utf-8")
        order.write_text("\n".join(lines) + "\n", encoding="utf-8")
        return ctc_decoder(
            str(lexicon), list(vocabulary.symbols), lm_dict=str(order), beam_size=beam,
            lm=WordScores() if model else None, log_add=True, blank_token=BLANK,
            sil_token=SEPARATOR, unk_word=UNKNOWN, **weights,
        )  # fmt: skip


def _log_add(a: float, b: float) -> float:
    """log(exp(a) + exp(b))."""
    high, low = (a, b) if a >= b else (b, a)
    return high if low == -math.inf else high + math.log1p(math.exp(low - high))


# --- errors -----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Errors:
    """Errors of a whole set; rates are per reference word (WER) or letter (CER) and may exceed 1."""

    wer: float
    cer: float
    substitutions: int
    deletions: int
    insertions: int
    words: int

    @property
    def word_accuracy(self) -> float:
        """1 - WER, at least 0: the `accuracy` of the results table."""
        return max(0.0, 1.0 - self.wer)

    def __str__(self) -> str:
        kinds = (
            f"{self.substitutions} substitutions, {self.deletions} deletions, {self.insertions} insertions"
        )
        return f"WER {self.wer:.4f}, CER {self.cer:.4f}: {kinds}, {self.words} words"


def errors(references: Sequence[str], outputs: Sequence[str]) -> Errors:
    """Word and character error rate by jiwer, over all utterances together.

    The output for an empty reference counts as insertions. Raises ValueError when the lists differ in length or no
    reference has a word.
    """
    references, outputs = _checked(references, outputs)
    words = jiwer.process_words(references, outputs)
    letters = jiwer.process_characters(references, outputs)
    count = words.hits + words.substitutions + words.deletions
    kinds = words.substitutions, words.deletions, words.insertions
    return Errors(words.wer, letters.cer, *kinds, count)


def word_errors(references: Sequence[str], outputs: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Word errors and number of reference words of each utterance, both `(utterances,)`, for the bootstrap."""
    references, outputs = _checked(references, outputs)
    aligned = jiwer.process_words(references, outputs)
    wrong = [
        sum(
            max(c.ref_end_idx - c.ref_start_idx, c.hyp_end_idx - c.hyp_start_idx)
            for c in chunks
            if c.type != "equal"
        )
        for chunks in aligned.alignments
    ]
    return np.array(wrong), np.array([len(words) for words in aligned.references])


def wer_interval(
    references: Sequence[str], outputs: Sequence[str], groups: Sequence | None = None
) -> Interval:
    """WER with its 95 % bootstrap interval (Bisani & Ney, 2004), by speaker where `groups` are the speakers."""
    return bootstrap_ratio(*word_errors(references, outputs), groups)


def wer_difference(
    references: Sequence[str], first: Sequence[str], second: Sequence[str], groups: Sequence | None = None
) -> Difference:
    """WER of `first` minus that of `second` on the same utterances, with its 95 % interval."""
    a, words = word_errors(references, first)
    b, _ = word_errors(references, second)
    return Difference.of(bootstrap_ratio(a - b, words, groups))


def _checked(references: Sequence[str], outputs: Sequence[str]) -> tuple[list[str], list[str]]:
    if len(references) != len(outputs):
        raise ValueError(f"{len(references)} references and {len(outputs)} outputs")
    if not any(text.split() for text in references):
        raise ValueError("no reference has a word, so there is no error rate")
    return list(references), list(outputs)


COLOURS = {"substitute": "#b45f06", "delete": "#c00000", "insert": "#0a7d28"}


def aligned(reference: str, output: str) -> list[tuple[str, str, str]]:
    """The words side by side: (`equal`, `substitute`, `delete` or `insert`, reference word, output word)."""
    ref, out = reference.split(), output.split()
    if not ref or not out:
        return [("delete", w, "") for w in ref] + [("insert", "", w) for w in out]
    pairs = []
    for c in jiwer.process_words(reference, output).alignments[0]:
        a, b = (ref[c.ref_start_idx : c.ref_end_idx], out[c.hyp_start_idx : c.hyp_end_idx])
        size = max(len(a), len(b))
        a, b = a + [""] * (size - len(a)), b + [""] * (size - len(b))
        pairs += [(c.type, x, y) for x, y in zip(a, b, strict=True)]
    return pairs


def _signed(kind: str, ref: str, out: str) -> str:
    signs = {"substitute": f"{ref}→{out}", "delete": f"−{ref}", "insert": f"+{out}"}
    return signs.get(kind, ref)


def alignment_html(reference: str, output: str) -> str:
    """One line: `RIGHT UP→GO −ZERO +LEFT` for a substitution, a deletion and an insertion, in colours."""
    spans = []
    for kind, ref, out in aligned(reference, output):
        text = html.escape(_signed(kind, ref, out))
        colour = COLOURS.get(kind)
        spans.append(f'<b style="color:{colour}">{text}</b>' if colour else text)
    return " ".join(spans)


def transcripts_html(references: Sequence[str], outputs: Sequence[str]) -> str:
    """A table of references, outputs, and both aligned, with each error marked by colour and sign."""
    references, outputs = _checked(references, outputs)
    rows = "".join(
        f"<tr><td>{html.escape(ref)}</td><td>{html.escape(out)}</td><td>{alignment_html(ref, out)}</td></tr>"
        for ref, out in zip(references, outputs, strict=True)
    )
    head = "<tr><th>reference</th><th>output</th><th>errors</th></tr>"
    return f"<table>{head}{rows}</table>"


# --- batches ----------------------------------------------------------------------------------------


def length_batches(
    lengths: Sequence[int] | np.ndarray,
    batch_size: int,
    generator: torch.Generator | None = None,
    max_samples: int | None = None,
) -> list[list[int]]:
    """Numbers of utterances in batches of similar length, so that there is little padding.

    With a `generator` neighbours in length are mixed and the batches come in random order; without one,
    they are sorted, the shortest first. `max_samples` bounds the samples of a batch, padding included.
    """
    lengths = np.asarray(lengths)
    mix = 1.0
    if generator is not None:
        mix = 1 + 0.1 * torch.rand(len(lengths), generator=generator).numpy()
    order = np.argsort(lengths * mix, kind="stable")
    batches: list[list[int]] = []
    longest = 0
    for i in order.tolist():
        longest = max(longest, int(lengths[i]))
        full = not batches or len(batches[-1]) == batch_size
        if full or (max_samples and longest * (len(batches[-1]) + 1) > max_samples):
            batches.append([])
            longest = int(lengths[i])
        batches[-1].append(i)
    if generator is not None:
        shuffled = torch.randperm(len(batches), generator=generator).tolist()
        batches = [batches[i] for i in shuffled]
    return batches


@dataclass
class Batch:
    """Utterances padded to one length, on one device.

    `x` is waves `(batch, time)` in float32, or a frozen encoder's output `(batch, frames, channels)`;
    `lengths` `(batch,)` are in samples or frames. `labels` `(batch, letters)` is padded with the blank to the
    longest of `label_lengths` `(batch,)`.
    """

    x: Tensor
    lengths: Tensor
    labels: Tensor
    label_lengths: Tensor


def collate(
    utterances: Utterances, numbers: Sequence[int], vocabulary: Vocabulary, device: torch.device | None = None
) -> Batch:
    """These utterances as a batch, with the waves normalised.

    Raises ValueError for another sample rate than 16 kHz and for a text with letters outside the vocabulary.
    """
    check_rate(utterances.rate)
    lengths = torch.from_numpy(utterances.lengths[list(numbers)]).to(device)  # (batch,)
    x = utterances.batch(numbers, int(lengths.max())).to(device)  # (batch, time), int16
    labels, label_lengths = encode_texts([utterances.texts[i] for i in numbers], vocabulary)
    x = normalise_waves(as_float(x), lengths)
    return Batch(x, lengths, labels.to(device), label_lengths.to(device))


def encode_texts(texts: Sequence[str], vocabulary: Vocabulary) -> tuple[Tensor, Tensor]:
    """Normalised and encoded texts `(batch, letters)`, padded with the blank, and their lengths `(batch,)`."""
    codes = [vocabulary.encode(normalise_text(text)) for text in texts]
    lengths = torch.tensor([len(c) for c in codes])
    labels = torch.full((len(codes), max(1, int(lengths.max()))), vocabulary.blank)
    for row, code in zip(labels, codes, strict=True):
        row[: len(code)] = torch.tensor(code, dtype=torch.long)
    return labels, lengths


def check_rate(rate: int) -> None:
    """Raise ValueError for sound that is not at 16 kHz: at another rate every phone has another spectrum."""
    if rate != SAMPLE_RATE:
        raise ValueError(
            f"the sound is at {rate:,} Hz, wav2vec 2.0 needs {SAMPLE_RATE:,}: pass it through "
            "features.resample (or read it with features.read_audio, which does)."
        )


def normalise_waves(x: Tensor, lengths: Tensor) -> Tensor:
    """`(batch, time)` with mean 0 and variance 1 over each utterance's own samples; padding becomes 0."""
    inside = torch.arange(x.shape[1], device=x.device) < lengths[:, None]  # (batch, time)
    count = lengths[:, None].clamp(min=1)  # (batch, 1)
    mean = (x * inside).sum(1, keepdim=True) / count
    centred = (x - mean) * inside
    variance = centred.square().sum(1, keepdim=True) / count
    return centred / (variance + 1e-7).sqrt()
