"""Every code block of the documents: Python runs, commands are ones that exist, JSON is JSON."""

import inspect
import json
import re
import shlex
from pathlib import Path

import pytest

from merc_kernels import focal_contrastive_loss, kd_divergence
from merc_model import cli
from merc_model.data.layouts import LAYOUTS
from tests.model.small import small_corpus

ROOT = Path(__file__).parents[1]
DOCUMENTS = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")])
NEEDED = {"take-it-elsewhere.md": ("onnx", "onnxscript", "onnxruntime", "huggingface_hub")}  # of an extra
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def blocks(document, *languages):
    return [text for language, text in BLOCK.findall(document.read_text()) if language in languages]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_every_block_says_its_language(document):
    assert {language for language, _ in BLOCK.findall(document.read_text())} <= {"python", "sh", "json", "math", "text"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_python_runs_from_top_to_bottom(document, tmp_path, monkeypatch):
    for package in NEEDED.get(document.name, ()):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    if 'load("runs/toy")' in document.read_text():  # which another document makes
        small_corpus().save(Path("toy.npz"))
        small = ["hidden_dim=16", "projection_dim=8", "epochs=1"]
        assert cli.main(["train", "--data", "toy.npz", "--out", "runs/toy", "--set", *small]) == 0
    names = {"__name__": "document"}
    for text in blocks(document, "python"):
        exec(compile(text, document.name, "exec"), names)


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_json_is_json(document):
    for text in blocks(document, "json"):
        json.loads(text)


def commands(document):
    lines = [line for text in blocks(document, "sh") for line in text.replace("\\\n", " ").splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_commands_exist(document):
    """Options of merc are parsed, a make target stands in the Makefile, a module is there."""
    targets = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for words in commands(document):
        while "=" in words[0]:
            words = words[1:]  # variables of the environment
        match Path(words[0]).name:
            case "merc":
                cli._parser().parse_args(words[1:])
            case "torchrun":
                module = words.index("-m") + 1
                assert words[module] == "merc_model"
                cli._parser().parse_args(words[module + 1 :])
            case "make":
                assert {word for word in words[1:] if "=" not in word} <= targets, words
            case "python" | "python3" if words[1] == "-m":
                module = ROOT / words[2].replace(".", "/")
                assert words[2] in ("pip", "pytest", "venv") or module.with_suffix(".py").exists() or module.is_dir(), (
                    words
                )
            case "pip" | "git" | "pre-commit" | "cd":
                pass
            case other:
                raise AssertionError(f"{document.name}: {other} is no command of this project")


def first_cells(name, heading):
    """What stands in backticks in the first cells of the tables of a section."""
    section = (ROOT / "docs" / name).read_text().partition(f"\n## {heading}\n")[2].partition("\n## ")[0]
    cells = re.findall(r"^\|([^|]*)\|", section, re.MULTILINE)
    return [name for cell in cells for name in re.findall(r"`(.+?)`", cell)]


@pytest.mark.parametrize(
    ("loss", "heading"),
    [(focal_contrastive_loss, "Focal contrastive loss"), (kd_divergence, "Distillation divergence")],
)
def test_every_option_of_a_loss_has_a_row(loss, heading):
    parameters = inspect.signature(loss).parameters.values()
    options = {parameter.name for parameter in parameters if parameter.kind is parameter.KEYWORD_ONLY}
    assert options - set(first_cells("losses.md", heading)) == set()


def test_every_layout_has_a_row():
    assert set(LAYOUTS) - set(first_cells("data.md", "`merc convert`: the field's feature files")) == set()
