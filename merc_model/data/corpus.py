"""The neutral corpus file: one ``.npz`` with every utterance of every dialogue.

===================  ==================  =======================================================
array                shape, type         meaning
===================  ==================  =======================================================
text, audio, visual  (U, D_m) float32    features, dialogues one after another; NaN rows = missing
labels               (U,) int64          class, or -100 where unlabelled
speakers             (U,) int64          index within the dialogue
offsets              (dialogues+1,)      dialogue d is rows ``offsets[d]:offsets[d + 1]``
dialogue_ids         (dialogues,) str
split                (dialogues,) str    train, valid, test; valid may be absent
label_names          (C,) str
groups               (dialogues,) str    optional: a session, a show, a pair of speakers, which training and
                                         validation may not share
speaker_names        (U,) str            optional: who says it, across dialogues
transcript           (U,) str            optional: what is said, empty where that is unknown
media                (U,) str            optional: the recording it is in, from the file's folder, or empty
start, end           (U,) float64        optional: where it is in the recording, in seconds; NaN where unknown
extraction           () str              optional: the settings of ``merc extract``, as JSON
===================  ==================  =======================================================
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from merc_model.config import IGNORE_INDEX, MODALITIES
from merc_model.data.arrays import as_integers, as_numbers, as_strings, worst_column
from merc_model.data.foreign import what_it_is
from merc_model.data.splitting import cut, deal
from merc_model.errors import UserError
from merc_model.files import relative, write_whole

SPLITS = ("train", "valid", "test")
_INTEGER_ARRAYS = ("labels", "speakers", "offsets")
_STRING_ARRAYS = ("dialogue_ids", "split", "label_names")
_OPTIONAL_ARRAYS = ("groups", "speaker_names", "transcript")  # of strings
_TIMES = ("start", "end")
SPOKEN = ("speaker_names", "transcript", "media", *_TIMES)  # a value for each utterance, where there are any


@dataclass(frozen=True)
class Corpus:
    """Conversations with their features; checked when made.

    Lists, arrays of objects (pandas) and other types of number are converted where nothing is lost.

    Attributes:
        name: what reports call it.
        features: modality → ``(U, D_m)`` float32; a row with a NaN counts as missing.
        labels: ``(U,)`` int64, -100 where unlabelled.
        speakers: ``(U,)`` int64, an index within the dialogue.
        offsets: ``(dialogues + 1,)`` int64; dialogue d is rows ``offsets[d]:offsets[d + 1]``.
        dialogue_ids: ``(dialogues,)`` str.
        split: ``(dialogues,)`` str, one of train, valid, test.
        label_names: ``(C,)`` str.
        groups: ``(dialogues,)`` str, what training and validation may not share, such as a session; or None.
        speaker_names: ``(U,)`` str, who says it, the same name in all dialogues; or None.
        transcript: ``(U,)`` str, what is said, empty where that is unknown; or None.
        media: ``(U,)`` str, the recording it is in, a path from the working folder, or empty; or None.
        start: ``(U,)`` float64, where it begins in the recording, in seconds, NaN where that is unknown; or None.
        end: ``(U,)`` float64, where it ends; or None.
        extraction: the settings that ``merc extract`` made the features with, or None.

    Raises:
        UserError: arrays that contradict each other, naming the array.
    """

    name: str
    features: dict[str, NDArray[np.float32]]
    labels: NDArray[np.int64]
    speakers: NDArray[np.int64]
    offsets: NDArray[np.int64]
    dialogue_ids: NDArray[np.str_]
    split: NDArray[np.str_]
    label_names: NDArray[np.str_]
    groups: NDArray[np.str_] | None = None
    speaker_names: NDArray[np.str_] | None = None
    transcript: NDArray[np.str_] | None = None
    media: NDArray[np.str_] | None = None
    start: NDArray[np.float64] | None = None
    end: NDArray[np.float64] | None = None
    extraction: str | None = None

    def __post_init__(self) -> None:
        try:
            given = {modality: as_numbers(modality, rows) for modality, rows in self.features.items()}
            with np.errstate(over="ignore"):  # what float32 cannot hold becomes infinite, which is looked for below
                narrowed = {modality: np.ascontiguousarray(rows, np.float32) for modality, rows in given.items()}
            object.__setattr__(self, "features", narrowed)
            for key in _INTEGER_ARRAYS:
                object.__setattr__(self, key, as_integers(key, getattr(self, key)))
            for key in (*_STRING_ARRAYS, *self._given((*_OPTIONAL_ARRAYS, "media"))):
                object.__setattr__(self, key, as_strings(key, getattr(self, key)))
            for key in self._given(_TIMES):
                object.__setattr__(self, key, as_numbers(key, getattr(self, key)).astype(np.float64))
            problem = self._problem() or self._infinite(given)
        except UserError as error:
            problem = str(error)
        if problem:
            raise UserError(f"corpus {self.name}: {problem}")

    def _infinite(self, given: dict[str, NDArray[Any]]) -> str | None:
        """The first value that is infinite in float32, in words, or None."""
        for modality, rows in self.features.items():
            infinite = np.argwhere(np.isinf(rows))
            if len(infinite):
                row, column = infinite[0]
                value = given[modality][row, column]
                what = "infinite" if np.isinf(value) else f"{value:g}, more than float32 holds,"
                return f"{modality}: {what} at {self.place(row)}, column {column}; mark a missing row with NaN instead"
        return None

    def place(self, row: int) -> str:
        """Where a row stands: its dialogue, and the number of its utterance in it, from 1."""
        dialogue = int(np.searchsorted(self.offsets, row, side="right")) - 1
        return f"dialogue {str(self.dialogue_ids[dialogue])!r}, utterance {row - self.offsets[dialogue] + 1}"

    def _problem(self) -> str | None:
        """The first contradiction, in words, or None."""
        utterances, dialogues = len(self.labels), len(self.dialogue_ids)
        if not dialogues:
            return "dialogue_ids: no dialogue"
        if not self.features:
            return f"no features: give at least one of {', '.join(MODALITIES)}"
        for modality, rows in self.features.items():
            if modality not in MODALITIES:
                return f"unknown modality {modality!r}; expected one of {', '.join(MODALITIES)}"
            if rows.ndim != 2 or len(rows) != utterances or rows.shape[1] == 0:
                return f"{modality}: expected ({utterances}, D), a row for each label, got {rows.shape}"
            if utterances and np.isnan(rows).any(axis=1).all():
                why = worst_column(rows)
                return f"{modality}: every row has a NaN{why}, so nothing of it is known; leave it out"
        if self.speakers.shape != (utterances,):
            return f"speakers: expected ({utterances},), got {self.speakers.shape}"
        if utterances and self.speakers.min() < 0:
            return f"speakers: expected indices from 0, got {self.speakers.min()}"
        if self.offsets.shape != (dialogues + 1,):
            return f"offsets: expected ({dialogues + 1},), one more than dialogue_ids, got {self.offsets.shape}"
        if self.offsets[0] != 0 or self.offsets[-1] != utterances:
            ends = f"{self.offsets[0]} to {self.offsets[-1]}"
            return f"offsets: expected to run from 0 to {utterances}, got {ends}"
        falling = np.flatnonzero(np.diff(self.offsets) < 0)
        if len(falling):
            return f"offsets: must not fall, but do after dialogue {falling[0]}"
        empty = np.flatnonzero(np.diff(self.offsets) == 0)
        if len(empty):
            return f"dialogue {str(self.dialogue_ids[empty[0]])!r} has no utterance; leave it out"
        if self.split.shape != (dialogues,):
            return f"split: expected ({dialogues},), got {self.split.shape}"
        unknown = sorted(set(self.split.tolist()) - set(SPLITS))
        if unknown:
            return f"split: expected {', '.join(SPLITS)}, got {unknown[0]!r}"
        split_of: dict[str, str] = {}
        for dialogue, split in zip(self.dialogue_ids.tolist(), self.split.tolist(), strict=True):
            if dialogue in split_of:
                where = "twice" if split_of[dialogue] == split else f"in {split_of[dialogue]} and in {split}"
                return f"dialogue_ids: {dialogue!r} stands {where}; give each dialogue an id of its own"
            split_of[dialogue] = split
        if self.groups is not None and self.groups.shape != (dialogues,):
            return f"groups: expected ({dialogues},), one for each dialogue, got {self.groups.shape}"
        for key in self._given(SPOKEN):
            if getattr(self, key).shape != (utterances,):
                return f"{key}: expected ({utterances},), one for each utterance, got {getattr(self, key).shape}"
        impossible = self._impossible_times()
        if impossible is not None:
            return impossible
        classes = len(self.label_names)
        if len(set(self.label_names.tolist())) != classes:
            return "label_names: a name stands twice"
        known = self.labels[self.labels != IGNORE_INDEX]
        if len(known) and (known.min() < 0 or known.max() >= classes):
            return (
                f"labels: expected 0 to {classes - 1}, or {IGNORE_INDEX} for unlabelled,"
                f" got {known.min()} to {known.max()}"
            )
        return None

    def _impossible_times(self) -> str | None:
        unknown = np.full(len(self.labels), np.nan)
        start = unknown if self.start is None else self.start
        end = unknown if self.end is None else self.end
        wrong = np.flatnonzero((start < 0) | (end <= np.nan_to_num(start)) | np.isinf(start) | np.isinf(end))
        if not len(wrong):
            return None
        row = wrong[0]
        return f"start and end: expected 0 <= start < end, got {start[row]:g} and {end[row]:g} at {self.place(row)}"

    @classmethod
    def load(cls, path: str | Path) -> Corpus:
        """Read a corpus from ``path``; never unpickles.

        Raises:
            UserError: a file that is missing, unreadable or not a corpus.
        """
        path = Path(path)
        arrays = read_arrays(path)
        needed = [*_INTEGER_ARRAYS, *_STRING_ARRAYS]
        missing = [key for key in needed if key not in arrays]
        if missing:
            raise UserError(f"{path}: not a corpus: no array {missing[0]!r} (has {', '.join(arrays) or 'none'})")
        needed += [key for key in _OPTIONAL_ARRAYS if key in arrays]
        return cls(
            **{key: arrays[key] for key in _TIMES if key in arrays},
            media=located(path, arrays["media"]) if "media" in arrays else None,
            name=path.stem,
            features={m: arrays[m] for m in MODALITIES if m in arrays},
            **{key: arrays[key] for key in needed},
            extraction=str(arrays["extraction"]) if "extraction" in arrays else None,
        )

    def save(self, path: str | Path) -> None:
        """Write the corpus to ``path``, whole or not at all."""
        arrays = {**self.features, **{key: getattr(self, key) for key in self._keys()}}
        arrays |= {key: getattr(self, key) for key in self._given(_TIMES)}
        if self.media is not None:
            arrays["media"] = np.array([name and relative(name, Path(path).parent) for name in self.media.tolist()])
        arrays |= {} if self.extraction is None else {"extraction": np.array(self.extraction)}
        write_whole(Path(path), lambda file: np.savez_compressed(file, **arrays))

    def _keys(self) -> tuple[str, ...]:
        """The arrays that tell one corpus from another, beside the features: not where its recordings lie."""
        return (*_INTEGER_ARRAYS, *_STRING_ARRAYS, *self._given(_OPTIONAL_ARRAYS))

    def _given(self, keys: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(key for key in keys if getattr(self, key) is not None)

    @property
    def num_classes(self) -> int:
        """C, the number of emotions."""
        return len(self.label_names)

    @property
    def dims(self) -> dict[str, int]:
        """Modality → width of its features."""
        return {modality: rows.shape[1] for modality, rows in self.features.items()}

    def dialogues(self, split: str) -> NDArray[np.int64]:
        """Indices of the dialogues of a split."""
        return np.flatnonzero(self.split == split)

    def rows(self, dialogues: NDArray[np.int64]) -> NDArray[np.int64]:
        """Indices of the utterances of some dialogues, in order."""
        spans = [np.arange(self.offsets[d], self.offsets[d + 1]) for d in dialogues]
        return np.concatenate(spans) if spans else np.empty(0, np.int64)

    def class_counts(self, dialogues: NDArray[np.int64]) -> NDArray[np.int64]:
        """``(C,)`` labelled utterances of each class in some dialogues."""
        labels = self.labels[self.rows(dialogues)]
        return np.bincount(labels[labels != IGNORE_INDEX], minlength=self.num_classes).astype(np.int64)

    def fingerprint(self) -> str:
        """SHA-256 of the contents: the same for the same arrays, whatever the file."""
        digest = hashlib.sha256()
        for key in (*sorted(self.features), *self._keys()):
            array = self.features[key] if key in self.features else getattr(self, key)
            digest.update(f"{key}{array.shape}".encode())
            digest.update(
                "\0".join(array.tolist()).encode(errors="surrogatepass") if array.dtype.kind == "U" else array.tobytes()
            )
        return digest.hexdigest()

    def only(self, dialogues: NDArray[np.int64]) -> Corpus:
        """The corpus of some of the dialogues."""
        rows = self.rows(dialogues)
        return replace(
            self,
            features={modality: values[rows] for modality, values in self.features.items()},
            labels=self.labels[rows],
            speakers=self.speakers[rows],
            offsets=np.concatenate(([0], np.cumsum(np.diff(self.offsets)[dialogues]))),
            dialogue_ids=self.dialogue_ids[dialogues],
            split=self.split[dialogues],
            groups=None if self.groups is None else self.groups[dialogues],
            **{key: getattr(self, key)[rows] for key in self._given(SPOKEN)},
        )

    def with_groups(self, rule: str) -> Corpus:
        """The corpus with groups by ``rule``: ``prefix:5`` groups by the first five characters of the dialogue ids."""
        kind, _, length = rule.partition(":")
        if kind != "prefix" or not (length.isascii() and length.isdecimal()) or int(length) < 1:
            raise UserError(f"groups: expected prefix:N, N characters of the dialogue id, got {rule!r}")
        groups = np.array([str(name)[: int(length)] for name in self.dialogue_ids])
        return replace(self, groups=groups)

    def with_validation(self, fraction: float) -> Corpus:
        """The corpus with a validation split; one that is there stays as it is.

        ``fraction`` of the training dialogues is cut off, whole groups at a time where there are groups: one more
        than fits, rather than too few.
        """
        train = self.dialogues("train")
        if len(self.dialogues("valid")):
            return self
        size, units = round(fraction * len(train)), self._units(train)
        if not 0 < size < len(train) or len(units) < 2:
            groups = "" if self.groups is None else f" of {len(units)} groups"
            raise UserError(
                f"corpus {self.name}: cannot cut a validation set of {fraction:g}"
                f" from {len(train)} training dialogues{groups}"
            )
        taken = cut(self._unit_counts(units), np.array([len(unit) for unit in units]), size)
        split = self.split.astype("<U5")
        split[np.concatenate([units[index] for index in taken])] = "valid"
        return replace(self, split=split)

    def folds(self, count: int) -> list[Corpus]:
        """``count`` corpora without the test dialogues, in each of which another part of the others is ``valid``.

        The parts are dealt from the training and validation dialogues together, whole groups at a time where there are
        groups; they do not overlap, have about the same size and class shares, and are always the same.
        """
        own = self.only(np.flatnonzero(self.split != "test"))
        units = own._units(np.arange(len(own.dialogue_ids)))
        if not 2 <= count <= len(units):
            kind = "dialogues" if self.groups is None else "groups of dialogues"
            raise UserError(
                f"corpus {self.name}: folds: expected 2 to {len(units)}, the {kind} to train on, got {count}"
            )
        part = deal(own._unit_counts(units), np.array([len(own.rows(unit)) for unit in units]), count)
        folds = []
        for number in range(count):
            split = np.full(len(own.dialogue_ids), "train")
            split[np.concatenate([units[index] for index in np.flatnonzero(part == number)])] = "valid"
            folds.append(replace(own, split=split))
        return folds

    def _units(self, dialogues: NDArray[np.int64]) -> list[NDArray[np.int64]]:
        """Some dialogues, those together that may not be parted."""
        if self.groups is None:
            return [dialogues[index : index + 1] for index in range(len(dialogues))]
        names, inverse = np.unique(self.groups[dialogues], return_inverse=True)
        return [dialogues[inverse == index] for index in range(len(names))]

    def _unit_counts(self, units: list[NDArray[np.int64]]) -> NDArray[np.int64]:
        return np.stack([self.class_counts(unit) for unit in units])


def located(path: Path, media: NDArray[Any]) -> NDArray[Any]:
    """The recordings that the file at ``path`` names, from the working folder."""
    if media.dtype.kind != "U":  # which the corpus will refuse
        return media
    return np.array([name and str(path.parent / name) for name in media.ravel().tolist()]).reshape(media.shape)


def read_arrays(path: Path) -> dict[str, NDArray[Any]]:
    """Every array of an ``.npz``; a UserError in one line for whatever is wrong with the file."""
    try:
        with path.open("rb") as file:  # np.load would leave its own open where the archive is broken
            head = file.read(300)
            foreign = what_it_is(head)
            if foreign is None and head[:1] == b"\x80":
                foreign = "a pickle, not an .npz archive; merc convert reads the field's pickles"
            if foreign is not None:
                raise UserError(f"{path}: {foreign}")
            file.seek(0)
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                raise UserError(f"{path}: expected an .npz archive, got a single array")
            return {key: archive[key] for key in archive.files}
    except UserError:
        raise
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise UserError(f"{path}: is a folder; give the .npz file") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror or error}") from None
    except Exception:  # a damaged archive can raise anything: zlib.error, NotImplementedError, MemoryError, ...
        raise UserError(f"{path}: not a readable .npz file, or cut short (objects and pickles are refused)") from None
