"""The examples run, say what they should, and stay short."""

import operator
import os
import re
import runpy
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples"
EXAMPLES = sorted((*FOLDER.glob("*.py"), *FOLDER.glob("multiemo/[ab]*.py")))
STEM = operator.attrgetter("stem")
LEAVE = str(Path(__file__).with_name("leave.py"))
NEEDS = {
    "lightning_module": ["lightning"],
    "hugging_face_trainer": ["transformers", "accelerate"],
    "several_processes": ["merc_kernels.distributed"],
}
LEARNED = {  # what its last line says, and at least or at most how much
    "plain_loop": (r"accuracy ([\d.]+)", 0.9, 1.0),
    "two_views": (r"accuracy ([\d.]+)", 0.8, 1.0),
    "distillation": (r"student: accuracy ([\d.]+)", 0.7, 1.0),
    "memory_bank": (r"step 59: loss ([\d.]+), in the bank 512", 0.0, 2.5),
    "lightning_module": (r"loss ([\d.]+)", 0.0, 1.5),
    "hugging_face_trainer": (r"loss ([\d.]+)", 0.0, 0.5),
    "before": (r"accuracy ([\d.]+)", 0.9, 1.0),
    "after": (r"accuracy ([\d.]+)", 0.9, 1.0),
    "several_processes": (r"step 29: loss ([\d.]+)", 0.0, 3.0),
}


def alone(example, folder):
    """What an example prints, in a process of its own or in two."""
    command = [sys.executable, str(example)]
    if example.stem == "several_processes":
        command[1:1] = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", LEAVE]
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    ended = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


@pytest.fixture
def here(tmp_path, monkeypatch, capsys):
    """What an example prints, in this process, which has torch already."""
    monkeypatch.chdir(tmp_path)

    def ran(example):
        with monkeypatch.context() as patch:
            patch.syspath_prepend(example.parent)
            runpy.run_path(str(example), run_name="__main__")
        return capsys.readouterr().out

    return ran


def assert_learned(example, printed):
    pattern, least, most = LEARNED[example.stem]
    last = printed.strip().splitlines()[-1]
    assert (found := re.search(pattern, last)), last
    assert least <= float(found[1]) <= most, last


@pytest.mark.parametrize("example", [x for x in EXAMPLES if x.stem not in NEEDS and x.parent == FOLDER], ids=STEM)
def test_an_example_learns(example, here):
    assert_learned(example, here(example))


@pytest.mark.parametrize(
    "example", [x if x.stem in NEEDS else pytest.param(x, marks=pytest.mark.full) for x in EXAMPLES], ids=STEM
)
def test_an_example_learns_in_processes_of_its_own(example, tmp_path):
    for module in NEEDS.get(example.stem, []):
        pytest.importorskip(module, exc_type=ImportError)
    assert_learned(example, alone(example, tmp_path))


@pytest.mark.parametrize("example", EXAMPLES, ids=STEM)
def test_an_example_is_under_60_lines(example):
    assert len(example.read_text().splitlines()) < 60


def test_an_import_changes_and_no_figure(here):
    paths = [FOLDER / "multiemo" / name for name in ("before.py", "after.py")]
    before, after = (set(path.read_text().partition('"""\n\n')[2].splitlines()) for path in paths)
    assert before - after == {"from loss import SampleWeightedFocalContrastiveLoss"}
    assert after - before == {"from merc_kernels.compat import SampleWeightedFocalContrastiveLoss"}
    printed = [here(path) for path in paths]
    assert printed[0] == printed[1]
    assert_learned(paths[0], printed[0])
