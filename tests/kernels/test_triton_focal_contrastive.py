"""The Triton kernels of the focal contrastive loss: values under the interpreter, on CPU tensors.

Triton reads TRITON_INTERPRET when it is imported: these tests run in processes that test_interpreted.py starts.
"""

import functools
import itertools
import os

import pytest
import torch
from torch import Tensor

from merc_kernels import focal_contrastive_loss
from merc_kernels.focal_contrastive.operator import passes
from merc_kernels.focal_contrastive.options import FocalContrastiveOptions
from tests.kernels import alive, all_anchors, focal_cases, grid, inference

triton = pytest.importorskip("triton", reason="triton is not installed")
pytest.importorskip("numpy", reason="the interpreter of triton needs numpy")

# numpy warns of overflow and inf - inf in lanes whose result the kernels do not use
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
SIZES = [(1, 8), (2, 5), (37, 96), (67, 123), (40, 300), (130, 17)]  # N, D
BRIEF = [(1, 8), (2, 5), (37, 96), (67, 17), (40, 140)]  # one block or two; of more, test_many_blocks
CASES = grid.cover({**focal_cases.OPTIONS, "size": BRIEF}, focal_cases.valid)

DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
SETTINGS = [  # focal, use, temperature, detach_focal
    ("similarity", "prototype anchors", 0.07, True),
    ("probability", "refs with gradient", "learnable", False),
    ("similarity", "ref only", 0.02, False),
]
BLOCKS = grid.halved([(130, 40), (70, 140)], DTYPES, SETTINGS)
BLOCKS += [pytest.param((70, 260), *rest, marks=pytest.mark.full) for rest in itertools.product(DTYPES, SETTINGS)]
STRIPS = [  # use, size, focal: each use with either
    pytest.param(use, size, focal, marks=[] if focal == kept else pytest.mark.full)
    for use, size, kept in (
        ("prototype anchors", (135, 66), "probability"),  # three strips
        ("prototype anchors", (70, 20), "similarity"),
        ("groups", (50, 66), "similarity"),
        ("groups that share all", (50, 66), "probability"),
    )
    for focal in ("similarity", "probability")
]

fused = functools.partial(focal_contrastive_loss, backend="triton")


def rows(n: int, width: int = 24, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(n, width, dtype=dtype, requires_grad=True)


def gradients(loss: Tensor, *leaves: Tensor) -> list[Tensor]:
    return [loss.detach(), *torch.autograd.grad(loss, leaves, torch.linspace(0.5, 1.5, loss.numel()).view(loss.shape))]


@pytest.mark.usefixtures("_rounded", "_poisoned")
class TestValues:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("case", CASES, ids=map(grid.title, CASES))
    def test_equals_the_reference(self, case):
        focal_cases.check(focal_cases.build(case), fused, short_rows=True)

    @pytest.mark.parametrize("classes", [1, 3, 40, 150])
    def test_many_labels_are_named_by_a_table(self, monkeypatch, classes):
        """A scan would take a step for each block of rows before the first of the label."""
        from merc_kernels.focal_contrastive.triton import launch, order

        class Scan:
            def __getitem__(self, programs):
                raise AssertionError("labels are scanned for")

        monkeypatch.setattr(order, "SCANNED", 149)
        monkeypatch.setattr(order, "rank_kernel", Scan())
        labels = torch.randperm(150) % classes * 3_000_000_000 - 5
        grouped = torch.stack([labels, labels.roll(7)])
        grouped[:, ::11] = 8
        x = torch.randn(2, 150, 8)
        options = FocalContrastiveOptions(ignore_index=8)
        *_, index = launch.forward(x, grouped, *[None] * 5, options)
        first = (grouped[:, :, None] == grouped[:, None, :]).int().argmax(-1)
        assert torch.equal(index, first.masked_fill(grouped == 8, -1))

    @pytest.mark.full
    def test_equals_the_reference_on_a_large_sample(self):
        for case in grid.sample({**focal_cases.OPTIONS, "size": SIZES}, focal_cases.valid, 1500):
            focal_cases.check(focal_cases.build(case), fused, short_rows=True)

    @pytest.mark.parametrize(("size", "dtype", "setting"), BLOCKS)
    def test_many_blocks(self, size, dtype, setting):
        self.check_blocks(size, dtype, setting)

    @pytest.mark.full
    @pytest.mark.parametrize("dtype", DTYPES, ids=str)
    @pytest.mark.parametrize("setting", SETTINGS, ids=str)
    def test_very_many_blocks(self, dtype, setting):
        self.check_blocks((700, 96), dtype, setting)

    def check_blocks(self, size, dtype, setting):
        focal, use, temperature, detach_focal = setting
        case = {"size": size, "dtype": dtype, "gamma": 2.0, "normalize": True, "reduction": "mean"}
        case |= {"focal": focal, "use": use, "temperature": temperature, "detach_focal": detach_focal}
        focal_cases.check(focal_cases.build(case), fused, short_rows=True)

    @pytest.mark.parametrize(("use", "size", "focal"), STRIPS)
    def test_strips_of_a_matrix_and_splits_of_columns(self, monkeypatch, use, size, focal):
        from merc_kernels.focal_contrastive.triton import source_gradient as host

        monkeypatch.setattr(host, "_STRIP_BYTES", 1)
        one_tile = lambda programs, columns, tile, *_, **__: (triton.cdiv(columns, tile.columns), 1)  # noqa: E731
        monkeypatch.setattr(host, "splits_of", one_tile)
        case = {"dtype": torch.float32, "gamma": 2.0, "normalize": True, "reduction": "mean"}
        case |= {"temperature": "learnable", "detach_focal": False, "focal": focal, "use": use, "size": size}
        focal_cases.check(focal_cases.build(case), fused, short_rows=True)

    @pytest.mark.parametrize("n", [320, pytest.param(448, marks=pytest.mark.full)])  # two or three strips and a tile
    def test_one_strip_of_a_matrix_lives_at_a_time(self, monkeypatch, n):
        from merc_kernels.focal_contrastive.triton import source_gradient as host

        width, a_strip = 66, 128
        monkeypatch.setattr(host, "_STRIP_BYTES", 4 * a_strip * n)
        x = rows(n, width)
        loss = fused(x, torch.arange(n) % 3)
        with alive.counted() as most:
            loss.backward()
        strip, unpacked, stats = a_strip * n, a_strip * width, 4 * n
        assert most() <= 4 * (n * width + strip + unpacked + stats)


@pytest.mark.usefixtures("_truncated")
class TestTf32:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("width", [48, 96])  # held in registers, and not
    def test_factors_are_rounded_to_the_nearest(self, width):
        centres, labels = torch.randn(4, width), torch.arange(64) % 4
        x = (centres[labels] + torch.randn(64, width)).requires_grad_()  # clustered: errors add up
        exact = x.detach().double().requires_grad_()
        value, of = gradients(fused(x, labels, temperature=0.3), x)
        truth, of_exact = gradients(focal_contrastive_loss(exact, labels, temperature=0.3, backend="reference"), exact)
        assert (value - truth).abs() < 2e-4 * truth
        assert (of - of_exact).norm() < 5e-4 * of_exact.norm()

    def test_what_is_spoilt_stays_spoilt(self):
        x = rows(20, 48).detach()
        x.view(torch.int32)[3] = -1  # a NaN of all bits
        assert fused(x, torch.arange(20) % 3).isnan()


LABELS = {
    "one class": torch.zeros(9, dtype=torch.int64),
    "all distinct": torch.arange(9),
    "all ignored": torch.full((9,), -100),
    "one row kept": torch.tensor([-100] * 4 + [3] + [-100] * 4),
    "pairs": torch.arange(9) // 2,
    "huge and negative": torch.tensor([2**62, -7, 2**62, -7, 0, 0, -(2**63), 5, 2**31]),
}


@pytest.mark.usefixtures("_rounded", "_poisoned")
class TestEdges:
    __test__ = INTERPRETED

    @pytest.mark.parametrize("labels", LABELS.values(), ids=LABELS)
    def test_labels(self, labels):
        for focal, detach_focal, temperature in itertools.product(
            ("similarity", "probability"), (True, False), (0.05, 0.3)
        ):
            options = {"embeddings": rows(9), "labels": labels, "focal": focal, "detach_focal": detach_focal}
            focal_cases.check({**options, "temperature": temperature, "gamma": 2.0}, fused)

    def test_labels_that_first_stand_far_apart(self):
        labels = torch.cat([torch.arange(90) << 33, torch.arange(90) << 33])
        focal_cases.check({"embeddings": rows(180), "labels": labels}, fused)

    @pytest.mark.parametrize("kind", ["equal", "opposite", "zero", "tiny", "large", "long"])
    def test_rows(self, kind):
        x = torch.randn(12, 8, dtype=torch.float64 if kind == "long" else torch.float32)
        x[1::2] = {"equal": 1, "opposite": -1, "zero": 0, "tiny": 1e-30, "large": 1e30, "long": 300}[kind] * x[:1]
        labels = torch.arange(12) % 3
        for focal, gamma, normalize in itertools.product(("similarity", "probability"), (0.0, 2.0), (True, False)):
            if normalize or kind == "long":
                options = {"embeddings": x.clone().requires_grad_(), "labels": labels, "focal": focal, "gamma": gamma}
                focal_cases.check({**options, "normalize": normalize}, fused)

    @pytest.mark.parametrize("every", [5, pytest.param(1, marks=pytest.mark.full)])
    @pytest.mark.parametrize("use", focal_cases.SPOILT_USES)
    def test_a_spoilt_row_is_nan_to_all_that_depends_on_it(self, use, every):
        focal_cases.check_spoilt(fused, use, every)

    def test_a_zero_row_gets_a_zero_gradient(self):
        x = torch.randn(6, 8).index_fill(0, torch.tensor([2]), 0).requires_grad_()
        fused(x, torch.arange(6) % 2).backward()
        assert (x.grad[2] == 0).all()
        assert (x.grad[3] != 0).any()

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
    def test_ignored_rows_may_hold_anything(self, dtype):
        x, refs, prototypes = (torch.randn(n, 8).to(dtype) for n in (9, 4, 3))
        y, ref_labels = torch.arange(9) % 3, torch.tensor([0, 1, -100, 2])
        y[4], x[4], refs[2] = -100, torch.nan, torch.inf
        leaves = [v.requires_grad_() for v in (x, refs, prototypes)]
        options = {"ref_embeddings": refs, "ref_labels": ref_labels, "prototypes": prototypes}
        loss, *of = gradients(fused(x, y, **options), *leaves)
        assert all(value.isfinite().all() for value in (loss, *of))
        assert (of[0][4] == 0).all()
        assert (of[1][2] == 0).all()

    def test_a_class_weight_that_no_row_meets(self):
        weights = torch.tensor([1.0, torch.inf, 2.0, torch.inf])
        x = rows(9)
        loss, of = gradients(fused(x, torch.arange(9) % 2 * 2, class_weights=weights), x)
        assert loss.isfinite()
        assert of.isfinite().all()

    def test_a_nan_that_counts_is_not_lost(self):
        for focal, values in itertools.product(("similarity", "probability"), (slice(5, 6), slice(None))):
            x = torch.randn(40, 24)
            x[3, values] = torch.nan
            assert fused(x, torch.arange(40) % 3, focal=focal).isnan()

    def test_nothing_there(self):
        for shape in ((0, 4), (0, 3, 4), (2, 0, 4)):
            x = torch.randn(shape, requires_grad=True)
            empty = torch.zeros(shape[:-1], dtype=torch.int64)
            for reduction in ("mean", "batchmean", "sum", "none"):
                loss = fused(x, empty, reduction=reduction)
                assert (loss == 0).all()
                assert torch.autograd.grad(loss.sum(), x)[0].shape == shape
        x, refs = rows(5), torch.zeros(0, 24, requires_grad=True)
        nothing = {"ref_embeddings": refs, "ref_labels": torch.zeros(0, dtype=torch.int64), "ref_only": True}
        for value in gradients(fused(x, torch.zeros(5, dtype=torch.int64), **nothing), x, refs):
            assert (value == 0).all()
        x, prototypes, tau = torch.zeros(0, 24, requires_grad=True), rows(3), torch.tensor(0.1, requires_grad=True)
        leaves, nobody = (x, prototypes, tau), torch.zeros(0, dtype=torch.int64)
        for anchors in (True, False):
            loss = fused(x, nobody, prototypes=prototypes, prototype_anchors=anchors, temperature=tau)
            assert all((value == 0).all() for value in gradients(loss, *leaves))


REDUCTIONS = ["mean", "batchmean", "sum", "none"]
FORMS = [(40, 2.0, True), (66, 2.4, False), (140, 0.0, True)]  # width, gamma, detach_focal
ORDERS = {  # labels of 300 rows
    "six classes": torch.arange(300) * 7 % 6,
    "one class": torch.zeros(300, dtype=torch.int64),
    "pairs": torch.arange(300) // 2,
    "more classes than buckets": torch.arange(300) * 7 % 70,
    "few kept": torch.where(torch.arange(300) % 60 < 2, torch.arange(300) % 2, -100),
    "huge and negative": torch.tensor([2**62, -7, 2**31, -(2**63), 5, -100]).repeat(50),
}


@pytest.mark.usefixtures("_rounded", "_poisoned")
class TestSortedRows:
    """Rows of 16 bits that lie sorted by label: from so many on that no other test has them."""

    __test__ = INTERPRETED

    @pytest.fixture(autouse=True)
    def _always(self, monkeypatch):
        from merc_kernels.focal_contrastive.triton import call

        monkeypatch.setattr(call, "SORTED_FROM", 1)

    @pytest.fixture
    def _tabled(self, monkeypatch):
        from merc_kernels.focal_contrastive.triton import order

        monkeypatch.setattr(order, "SCANNED", 0)

    @pytest.mark.parametrize("labels", ORDERS.values(), ids=ORDERS)
    def test_labels(self, labels):
        x = torch.randn(300, 20, dtype=torch.bfloat16, requires_grad=True)
        focal_cases.check({"embeddings": x, "labels": labels}, fused, short_rows=True)

    @pytest.mark.parametrize("dtype", [torch.bfloat16, pytest.param(torch.float16, marks=pytest.mark.full)], ids=str)
    @pytest.mark.parametrize(("reduction", "form"), grid.halved(REDUCTIONS, FORMS))
    def test_options(self, monkeypatch, dtype, reduction, form):
        from merc_kernels.focal_contrastive.triton import source_gradient as host

        width, gamma, detach_focal = form
        if width == 66:
            monkeypatch.setattr(host, "_STRIP_BYTES", 1)
            monkeypatch.setattr(host, "held_tile", lambda *_: None)
        case = {"size": (260, width), "dtype": dtype, "focal": "similarity", "gamma": gamma, "temperature": 0.07}
        case |= {"detach_focal": detach_focal, "use": "class weights", "normalize": True, "reduction": reduction}
        focal_cases.check(focal_cases.build(case), fused, short_rows=True)

    def test_as_where_they_are_not_sorted(self, monkeypatch):
        from merc_kernels.focal_contrastive.triton import call

        x, labels = rows(200, 24, torch.bfloat16), torch.randint(6, (200,))
        value, of = gradients(fused(x, labels), x)
        again = gradients(fused(x, labels), x)
        assert torch.equal(value, again[0])
        assert torch.equal(of, again[1])
        monkeypatch.setattr(call, "SORTED_FROM", 201)
        plain, of_plain = gradients(fused(x, labels), x)
        torch.testing.assert_close(value, plain, rtol=1e-6, atol=0)
        torch.testing.assert_close(of, of_plain, rtol=1e-2, atol=1e-5)

    @pytest.mark.usefixtures("_tabled")
    @pytest.mark.parametrize("labels", ORDERS.values(), ids=ORDERS)
    def test_where_each_row_goes(self, monkeypatch, labels):
        from merc_kernels.focal_contrastive.triton import launch, order

        def index():
            x = torch.randn(300, 8, dtype=torch.bfloat16)
            return launch.forward(x, labels, *[None] * 5, FocalContrastiveOptions())[-1][0]

        made = index()
        origin, key = made >> 32, made.int()
        named = labels[origin]
        assert torch.equal(origin.sort().values, torch.arange(300))
        assert torch.equal(key < 0, named == -100)
        kept = key[key >= 0]
        assert (kept >= 0).all()
        assert torch.equal(key[: len(kept)], kept)  # the others come last
        assert torch.equal(kept[:, None] == kept, named[: len(kept), None] == named[: len(kept)])
        buckets = kept >> 26
        assert (buckets.diff() >= 0).all()
        assert (origin[: len(kept)].diff()[buckets.diff() == 0] > 0).all()  # in a bucket as they came
        if labels.max() < 31:
            assert (named[: len(kept)].diff() >= 0).all()
        monkeypatch.setattr(order, "SCANNED", 300)
        assert torch.equal(index(), made)

    def test_a_spoilt_row_spoils_what_depends_on_it(self):
        x = torch.randn(200, 24, dtype=torch.bfloat16)
        x[3] = torch.nan
        x.requires_grad_()
        labels = torch.arange(200) % 3
        value, of = gradients(fused(x, labels, reduction="none"), x)
        assert value.isnan().all()
        assert of.isnan().any(-1).all()
        labels[3] = -100
        value, of = gradients(fused(x, labels, reduction="none"), x)
        assert value.isfinite().all()
        assert of.isfinite().all()


@pytest.mark.usefixtures("_rounded", "_poisoned")
class TestHalfOfThePairs:
    """Pairs are met once for both rows: in the sums from so many rows on that no other test has them."""

    __test__ = INTERPRETED

    @pytest.fixture(autouse=True)
    def _always(self, monkeypatch):
        from merc_kernels.focal_contrastive.triton import call

        monkeypatch.setattr(call, "HALVED_FROM", 1)

    @pytest.mark.parametrize(  # odd and even numbers of blocks
        ("n", "dtype"), grid.halved([1, 33, 64, 130, 256, 300], [torch.float32, torch.float64])
    )
    def test_sizes(self, n, dtype):
        focal_cases.check({"embeddings": rows(n, 20, dtype), "labels": torch.arange(n) * 7 % 5}, fused)

    @pytest.mark.parametrize(("reduction", "form"), grid.halved(REDUCTIONS, FORMS))
    def test_options(self, reduction, form):
        width, gamma, detach_focal = form
        case = {"size": (200, width), "dtype": torch.float32, "focal": "similarity", "gamma": gamma}
        case |= {"temperature": 0.07, "detach_focal": detach_focal, "use": "class weights", "normalize": True}
        focal_cases.check(focal_cases.build({**case, "reduction": reduction}), fused)

    def test_splits(self, monkeypatch):
        from merc_kernels.focal_contrastive.triton import launch as host

        one_tile = lambda programs, columns, tile, *_: (triton.cdiv(columns, tile.columns), 1)  # noqa: E731
        monkeypatch.setattr(host, "splits_of", one_tile)
        focal_cases.check({"embeddings": rows(260, 20), "labels": torch.arange(260) % 9}, fused)

    @pytest.mark.parametrize(("n", "dtype"), grid.halved([1, 130, 300], DTYPES))
    def test_a_matrix_in_one_strip(self, monkeypatch, n, dtype):
        from merc_kernels.focal_contrastive.triton import call
        from merc_kernels.focal_contrastive.triton import source_gradient as host

        monkeypatch.setattr(call, "SORTED_FROM", 1)
        monkeypatch.setattr(host, "held_tile", lambda *_: None)
        x, labels = rows(n, 20, dtype), torch.arange(n) * 7 % 5
        focal_cases.check({"embeddings": x, "labels": labels}, fused, short_rows=True)

    @pytest.mark.parametrize(
        ("n", "tile"), [(300, (64, 128)), pytest.param(500, (64, 128), marks=pytest.mark.full), (260, (128, 32))]
    )
    def test_a_matrix_of_oblong_tiles(self, monkeypatch, n, tile):
        from merc_kernels.focal_contrastive.triton import source_gradient as host
        from merc_kernels.focal_contrastive.triton.configuration import Tile

        monkeypatch.setattr(host, "held_tile", lambda *_: None)
        monkeypatch.setattr(host, "matrix_tile", lambda *_: Tile(*tile, 32, 2, 8, 3))
        focal_cases.check({"embeddings": rows(n, 20), "labels": torch.arange(n) % 9}, fused)

    def test_not_where_the_sums_would_take_more_memory_than_a_strip(self, monkeypatch):
        from merc_kernels.focal_contrastive.triton import launch

        x, labels = rows(260), torch.arange(260) % 9
        made = []
        for most in (1 << 20, 1):
            monkeypatch.setattr(launch, "MOST_HALVED", most)
            made.append(gradients(fused(x, labels), x))
            again = gradients(fused(x, labels), x)
            assert all(torch.equal(one, other) for one, other in zip(made[-1], again, strict=True))
        for one, other in zip(*made, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)

    def test_a_spoilt_row_spoils_what_depends_on_it(self):
        x, labels = rows(200), torch.arange(200) % 3
        with torch.no_grad():
            x[150] = torch.nan
        assert fused(x, labels, reduction="none").isnan().all()
        labels[150] = -100
        assert all(value.isfinite().all() for value in gradients(fused(x, labels, reduction="none"), x))


@pytest.mark.usefixtures("_rounded", "_poisoned")
class TestOperator:
    __test__ = INTERPRETED

    def test_strides_and_expanded_gradients(self):
        wide, y = torch.randn(2, 44, 72), torch.arange(22) % 4
        for x in (wide[0, ::2, ::3], wide[0].T[:22, :], torch.randn(1, 24).expand(22, 24), wide[:, 22:, 1:25]):
            strided, dense = (v.detach().requires_grad_() for v in (x, x.contiguous()))
            pairs = zip(gradients(fused(strided, y), strided), gradients(fused(dense, y), dense), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)
        x = rows(22)
        loss = fused(x, y, reduction="none")
        expanded = torch.autograd.grad(loss, x, torch.tensor(0.3).expand(22), retain_graph=True)[0]
        assert torch.equal(expanded, torch.autograd.grad(loss, x, torch.full((22,), 0.3))[0])

    def test_only_what_is_wanted(self):
        x, prototypes, refs, tau = rows(30), rows(3), rows(8), torch.tensor(0.2, requires_grad=True)
        y, ref_labels = torch.arange(30) % 3, torch.arange(8) % 3
        leaves = {"embeddings": x, "prototypes": prototypes, "ref_embeddings": refs, "temperature": tau}
        whole = fused(labels=y, ref_labels=ref_labels, **leaves)
        truth = dict(zip(leaves, torch.autograd.grad(whole, list(leaves.values())), strict=True))
        for wanted in itertools.product((True, False), repeat=4):
            if any(wanted):
                part = {k: v if want else v.detach() for (k, v), want in zip(leaves.items(), wanted, strict=True)}
                loss = fused(labels=y, ref_labels=ref_labels, **part)
                names = [name for name, want in zip(leaves, wanted, strict=True) if want]
                for name, of in zip(names, torch.autograd.grad(loss, [leaves[n] for n in names]), strict=True):
                    torch.testing.assert_close(of, truth[name], rtol=1e-5, atol=1e-8)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
    @pytest.mark.parametrize("n", [130, pytest.param(200, marks=pytest.mark.full)])
    def test_the_same_bits_on_every_run(self, dtype, n):
        x, prototypes, tau = rows(n, 40, dtype), rows(6, 40, dtype), torch.tensor(0.2, requires_grad=True)
        y = torch.randint(6, (n,))
        runs = [gradients(fused(x, y, prototypes=prototypes, temperature=tau), x, prototypes, tau) for _ in range(2)]
        assert all(torch.equal(one, other) for one, other in zip(*runs, strict=True))

    def test_loss_scaling_lifts_float16_gradients(self):
        x, y = rows(300, 16, torch.float16), torch.randint(3, (300,))
        exact = x.detach().double().requires_grad_()
        truth = torch.autograd.grad(focal_contrastive_loss(exact, y, backend="reference") * 65536, exact)[0]
        ours = torch.autograd.grad(fused(x, y) * 65536, x)[0]
        assert (ours.double() - truth).norm() / truth.norm() < 2e-3  # unit rows of 16 bits

    @pytest.mark.parametrize("case", range(4))
    def test_opcheck(self, case):
        x, prototypes, refs, tau = rows(7), rows(3), rows(4), torch.tensor(0.2, requires_grad=True)
        y, ref_labels, weights = torch.arange(7) % 3, torch.arange(4) % 3, torch.rand(3)
        options = (0.1, 2.0, 0, True, False, False, True, -100)

        def short(v: Tensor) -> Tensor:
            return v.detach().bfloat16().requires_grad_()

        arguments = [
            (x, y, None, None, None, None, None, *options, 2),
            (x, y, prototypes, refs, ref_labels, weights, tau, 1.0, 1.5, 1, False, True, False, True, -100, 3),
            (x, y, None, refs, ref_labels, None, tau, 1.0, 2.0, 0, False, False, True, False, -100, 0),
            (short(x[None]), y, short(prototypes), None, None, None, None, *options, 1),
        ][case]
        torch.library.opcheck(torch.ops.merc.focal_contrastive_triton.default, arguments)
        plain = [v.detach() if isinstance(v, Tensor) else v for v in arguments]
        loss, *numbers = torch.ops.merc.focal_contrastive_triton(*plain)
        assert numbers[1].dtype == plain[0].dtype
        assert numbers[3].shape == (*numbers[2].shape, 4)
        inputs = (plain[0], *plain[2:4], *plain[6:-1])
        wanted = (True, plain[2] is not None, plain[3] is not None, plain[6] is not None)
        backward = (torch.ones_like(loss), *numbers, *inputs, *wanted, False)
        torch.library.opcheck(torch.ops.merc.focal_contrastive_triton_backward.default, backward)

    @pytest.mark.parametrize("focal", ["similarity", "probability"])
    @pytest.mark.parametrize(("own", "far"), [(20, 50), pytest.param(37, 70, marks=pytest.mark.full)])
    def test_rows_of_a_part_get_the_gradient_of_the_whole(self, focal, own, far):
        all_anchors.check(*passes("triton"), focal, own, far)

    def test_gradcheck(self):
        x, prototypes, refs = (rows(n, 4, torch.float64) for n in (6, 3, 3))
        tau = torch.tensor(0.6, dtype=torch.float64, requires_grad=True)
        options = {"labels": torch.tensor([0, 1, 0, -100, 2, 1]), "ref_labels": torch.tensor([0, 2, -100])}
        for focal, gamma, reduction in (("similarity", 0.5, "none"), ("probability", 2.0, "mean")):
            choice = {"focal": focal, "gamma": gamma, "reduction": reduction, "detach_focal": False}

            def loss(x, prototypes, refs, tau, choice=choice):
                tensors = {"embeddings": x, "prototypes": prototypes, "ref_embeddings": refs, "temperature": tau}
                return fused(**tensors, **options, **choice)

            torch.autograd.gradcheck(loss, (x, prototypes, refs, tau), fast_mode=True)

    def test_compiled_as_eager(self):
        def loss(x, y, prototypes, tau):
            return fused(x, y, prototypes=prototypes, temperature=tau) * 2

        compiled = torch.compile(loss, fullgraph=True, dynamic=True, backend="aot_eager")
        for n in (5, 9, 70):
            leaves = (rows(n), rows(3), torch.tensor(0.2, requires_grad=True))
            y = torch.arange(n) % 3
            eager, traced = loss(leaves[0], y, *leaves[1:]), compiled(leaves[0], y, *leaves[1:])
            pairs = zip(gradients(eager, *leaves), gradients(traced, *leaves), strict=True)
            assert all(torch.equal(one, other) for one, other in pairs)

    @pytest.mark.parametrize("width", [24, 96])  # held in registers, and not
    def test_autocast_changes_nothing(self, width):
        x, y = rows(50, width), torch.arange(50) % 3
        plain = gradients(fused(x, y), x)
        with torch.autocast("cpu", torch.bfloat16):
            under = gradients(fused(x, y), x)
        assert all(torch.equal(one, other) for one, other in zip(plain, under, strict=True))

    def test_inference_tensors_count_as_any_other(self):
        for reduction in ("batchmean", "none"):
            inference.check(functools.partial(fused, reduction=reduction), inference.focal_arguments())
        compiled = torch.compile(fused, fullgraph=True, backend="aot_eager")
        *_, unusual = inference.made_in_inference_mode(arguments := inference.focal_arguments())
        truth = inference.value_and_gradient(fused, arguments)
        for value, exact in zip(inference.value_and_gradient(compiled, unusual), truth, strict=True):
            assert torch.equal(value, exact)

    def test_second_derivatives_are_refused(self):
        x = rows(6)
        gradient = torch.autograd.grad(fused(x, torch.arange(6) % 2), x, create_graph=True)[0]
        with pytest.raises(RuntimeError, match="first derivatives only; for second ones use backend='reference'"):
            torch.autograd.grad(gradient.square().sum(), x)
