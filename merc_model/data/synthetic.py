"""The embedded corpus: made-up conversations to try everything on, with nothing to download.

**No number measured on it says anything about people.** It borrows from IEMOCAP the shape of the task: six
emotions in its proportions, two speakers (sometimes three) who take turns, text that tells most, audio and
video that tell little and are sometimes missing. What a model can win, and where:

- *context*: an emotion lasts (inertia) and passes to the partner (contagion);
- *fusion*: text takes happy for excited and angry for frustrated, audio, which hears arousal, less so;
  how much an utterance shows is drawn for each modality on its own;
- *nuisance*: each speaker has a habitual offset, and audio and visual features come in units of their own.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from merc_model.data.corpus import Corpus

LABEL_NAMES = ("happy", "sad", "neutral", "angry", "excited", "frustrated")
IEMOCAP_COUNTS = (648, 1084, 1708, 1103, 1041, 1849)
INERTIA = 0.65  # chance that a speaker's emotion lasts
CONTAGION = 0.15  # chance that it becomes the last speaker's; else a new one comes


@dataclass(frozen=True)
class _Sense:
    """How one modality shows an emotion, in units of its noise.

    Two emotions of one group look alike but for what each shows of its ``own``; a ``speaker`` adds an offset
    of that size; features have their standard deviations drawn from ``units``; ``missing`` is the share of
    single rows, and ``absent`` that of whole dialogues, without the modality.
    """

    dim: int
    groups: tuple[int, ...]  # of each emotion
    group: float
    own: float
    speaker: float
    units: tuple[float, ...] = (1.0,)
    missing: float = 0.0
    absent: float = 0.0


_SENSES = {
    "text": _Sense(64, (0, 1, 2, 3, 0, 3), 0.31, 0.16, 0.5),
    "audio": _Sense(24, (0, 1, 2, 3, 3, 0), 0.2, 0.1, 0.5, (0.01, 1.0, 10.0, 100.0), 0.04),  # arousal
    "visual": _Sense(32, (0, 1, 2, 1, 0, 2), 0.2, 0.1, 0.5, (0.1, 1.0, 5.0), 0.04, 0.1),  # valence
}


def synthetic(seed: int = 0, dialogues: int = 72, lengths: tuple[int, int] = (15, 40)) -> Corpus:
    """Make the corpus; the same arguments give the same arrays.

    Only draws, sums and products of single numbers go into it, so the bits do not depend on the machine; a
    new numpy may change its random streams, and says so when it does (NEP 19).

    Args:
        seed: of every draw.
        dialogues: how many, 3 at least; of eight, five go to train, one to valid, two to test.
        lengths: fewest and most utterances of a dialogue.
    Raises: ValueError: too few dialogues, or lengths that are not ``1 <= fewest <= most``.
    """
    if dialogues < 3:
        raise ValueError(f"dialogues: expected at least 3, got {dialogues}")
    if not 1 <= lengths[0] <= lengths[1]:
        raise ValueError(f"lengths: expected 1 <= fewest <= most, got {lengths}")
    generator = np.random.Generator(np.random.PCG64(seed))
    sizes = generator.integers(lengths[0], lengths[1], dialogues, endpoint=True)
    parties = generator.choice([2, 3], dialogues, p=[0.85, 0.15])
    moods = _moods(generator)
    turns = [_conversation(generator, moods, int(size), int(count)) for size, count in zip(sizes, parties, strict=True)]
    labels = np.concatenate([emotions for emotions, _ in turns])
    speakers = np.concatenate([who for _, who in turns])
    offsets = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
    dialogue = np.repeat(np.arange(dialogues), sizes)
    features = {
        modality: _features(generator, sense, labels, dialogue, speakers) for modality, sense in _SENSES.items()
    }
    order = ("train", "test", "valid", "train", "train", "test", "train", "train")
    return Corpus(
        name="synthetic",
        features=features,
        labels=labels,
        speakers=speakers,
        offsets=offsets,
        dialogue_ids=np.array([f"synthetic-{d:03d}" for d in range(dialogues)]),
        split=np.array([order[d % len(order)] for d in range(dialogues)]),
        label_names=np.array(LABEL_NAMES),
    )


def _moods(generator: np.random.Generator) -> Iterator[int]:
    """Emotions without end, dealt from shuffled decks: few draws already hold IEMOCAP's proportions."""
    deck = np.repeat(np.arange(len(LABEL_NAMES)), [count // 120 for count in IEMOCAP_COUNTS])
    while True:
        yield from generator.permutation(deck).tolist()


def _conversation(
    generator: np.random.Generator, moods: Iterator[int], size: int, parties: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Emotions and speakers of one dialogue's utterances."""
    own = [next(moods) for _ in range(parties)]  # what each speaker feels
    emotions, who = np.empty(size, np.int64), np.empty(size, np.int64)
    speaker = 0
    for turn in range(size):
        heard = own[speaker]
        if turn and generator.random() < 0.8:  # the floor passes on
            speaker = (speaker + int(generator.integers(1, parties))) % parties
        chance = generator.random()
        if chance > INERTIA + CONTAGION:
            own[speaker] = next(moods)
        elif chance > INERTIA:
            own[speaker] = heard
        emotions[turn], who[turn] = own[speaker], speaker
    return emotions, who


def _features(
    generator: np.random.Generator,
    sense: _Sense,
    labels: NDArray[np.int64],
    dialogue: NDArray[np.int64],
    speakers: NDArray[np.int64],
) -> NDArray[np.float32]:
    """``(U, D)`` features of one modality: emotion, speaker and noise, then units, then what is missing."""
    groups = generator.standard_normal((max(sense.groups) + 1, sense.dim))
    owns = generator.standard_normal((len(sense.groups), sense.dim))
    centres = sense.group * groups[list(sense.groups)] + sense.own * owns
    habits = sense.speaker * generator.standard_normal((dialogue[-1] + 1, speakers.max() + 1, sense.dim))
    shown = generator.uniform(0.0, 2.0, (len(labels), 1))  # how much of the emotion an utterance shows
    rows = shown * centres[labels] + habits[dialogue, speakers] + generator.standard_normal((len(labels), sense.dim))
    units = generator.choice(sense.units, sense.dim)
    rows = units * (rows + 3.0 * generator.standard_normal(sense.dim))
    gone = generator.random(len(labels)) < sense.missing
    gone |= (generator.random(dialogue[-1] + 1) < sense.absent)[dialogue]
    rows[gone] = np.nan
    return rows.astype(np.float32)
