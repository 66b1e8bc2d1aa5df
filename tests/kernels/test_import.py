"""The package imports and works with torch alone, and importing it does nothing else."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]

ALONE = """
import sys
BLOCKED = {"numpy", "scipy", "sklearn", "pandas", "matplotlib", "triton", "tqdm", "safetensors", "PIL", "merc_model"}
sys.modules.update(dict.fromkeys(BLOCKED))  # None: importing it raises
import torch, merc_kernels
x = torch.randn(6, 4, requires_grad=True)
y = torch.tensor([0, 1, 0, 1, 0, -100])
weights = merc_kernels.class_balanced_weights([3, 2])
module = merc_kernels.FocalContrastiveLoss(class_weights=weights)
(module(x, y, prototypes=torch.randn(2, 4)) + merc_kernels.KDDivergence()(x, x.flip(0))).backward()
assert x.grad.isfinite().all()
assert merc_kernels.backends()["reference"] == "on"
assert not any(sys.modules[name] for name in BLOCKED)
print("done")
"""

SIDE_EFFECTS = """
import os, random, sys, warnings
import torch
warnings.simplefilter("error")
class Watched(dict):
    def __getitem__(self, key): raise AssertionError(f"read {key} from the environment")
    get = __contains__ = __getitem__
def state():
    return (torch.get_default_dtype(), torch.get_num_threads(), torch.random.get_rng_state().tolist(),
            random.getstate(), torch.is_grad_enabled(), torch.get_float32_matmul_precision(),
            torch.cuda.is_initialized())
before, modules = state(), set(sys.modules)
environment, os.environ = os.environ, Watched()
import merc_kernels
os.environ = environment
assert state() == before
new = {name.partition(".")[0] for name in set(sys.modules) - modules} - set(sys.stdlib_module_names)
assert new == {"merc_kernels"}, new
assert "torch._dynamo" not in sys.modules
assert "triton" not in sys.modules
"""


def run(program: str) -> str:
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout


def test_works_with_torch_alone():
    assert run(ALONE) == "done\n"


def test_import_has_no_side_effect():
    assert run(SIDE_EFFECTS) == ""


def test_public_names():
    import merc_kernels

    assert all(hasattr(merc_kernels, name) for name in merc_kernels.__all__)
    assert merc_kernels.__version__.count(".") == 2


ROOMS = """
import importlib, pickle, merc_kernels
import merc_kernels.kd_divergence
from merc_kernels.kd_divergence.loss import kd_divergence
from merc_kernels.kd_divergence import kd_divergence as of_room
importlib.import_module("merc_kernels.kd_divergence.options")
import torch
torch.ops.merc.kd_divergence_triton  # its kernels are imported when they first run
try:
    importlib.import_module("merc_kernels.kd_divergence.triton.launch")
except ImportError:  # without Triton
    pass
assert merc_kernels.kd_divergence is kd_divergence is of_room
assert callable(merc_kernels.kd_divergence)
assert pickle.loads(pickle.dumps(kd_divergence)) is kd_divergence
module = pickle.loads(pickle.dumps(merc_kernels.KDDivergence(beta=0.3)))
assert module.beta == 0.3
from merc_kernels import *
assert kd_divergence is of_room
"""


def test_the_function_has_the_name_that_its_room_has_too():
    assert run(ROOMS) == ""
