"""Every community layout, written as its authors write it, becomes the same corpus."""

import collections
import copy
import pickle
from dataclasses import replace

import numpy as np
import pytest

from merc_model.data.community import LAYOUTS, convert
from merc_model.data.corpus import Corpus
from merc_model.errors import UserError

ROBERTA = ["roberta1", "roberta2", "roberta3", "roberta4"]
IEMOCAP = ["happy", "sad", "neutral", "angry", "excited", "frustrated"]
MELD = ["neutral", "surprise", "fear", "sadness", "joy", "disgust", "anger"]

# The order in which each file is unpacked by its authors' loader, and the width of each feature.
BASE = ["ids", "speakers", "labels", "text", "audio", "visual", "sentences", "train", "test"]
SDT = ["ids", "speakers", "labels", *ROBERTA, "audio", "visual", "sentences", "train", "test"]
SMILE = ["ids", "speakers", "labels", "sentiments", *ROBERTA, "audio", "visual", "sentences", "train", "test", "rest"]
COSMIC_IEMOCAP = ["speakers", "labels", *ROBERTA, "sentences", "train", "test", "valid"]
COSMIC_MELD = ["speakers", "labels", "sentiments", *ROBERTA, "sentences", "train", "test", "valid"]
CASES = {
    "iemocap-mmgcn": ([BASE], {"text": 100, "audio": 1582, "visual": 342}),
    "iemocap-mmgcn, first release": ([BASE], {"text": 100, "audio": 100, "visual": 512}),
    "iemocap-sdt": ([SDT], {"audio": 1582, "visual": 342}),
    "iemocap-m3net": ([BASE, COSMIC_IEMOCAP], {"text": 100, "audio": 1582, "visual": 342}),
    "iemocap-multiemo": ([BASE, "text", "audio", "visual"], {"text": 768, "audio": 512, "visual": 1000}),
    "meld-mmgcn": ([[*BASE, "sentiments"]], {"text": 600, "audio": 300, "visual": 342}),
    "meld-sdt": ([[*SDT, "sentiments"]], {"audio": 300, "visual": 342}),
    "meld-graphsmile": ([SMILE], {"audio": 300, "visual": 342}),
    "meld-m3net": ([[*BASE, "sentiments"], COSMIC_MELD], {"text": 600, "audio": 300, "visual": 342}),
    "meld-multiemo": ([[*BASE, "rest"], "text", "audio", "visual"], {"text": 768, "audio": 512, "visual": 1000}),
}


def fields_of(case):
    """The fields of a small data set: IEMOCAP by names and sets, MELD by numbers, lists and one-hot speakers."""
    random = np.random.default_rng(0)
    _, widths = CASES[case]
    iemocap = case.startswith("iemocap")
    ids = ["Ses05M_b", "Ses01F_a", "Ses02F_c", "Ses01M_d"] if iemocap else [1153, 10, 9, 1039]
    turns = {ids[0]: 2, ids[1]: 3, ids[2]: 1, ids[3]: 2}
    one_hot = np.eye(9)[[3, 0, 3]].tolist()

    def rows(width):
        return {d: list(random.normal(size=(n, width)).astype(np.float32)) for d, n in turns.items()}

    fields = {name: rows(width) for name, width in {**dict.fromkeys(ROBERTA, 1024), **widths}.items()}
    fields["ids"] = {d: [f"{d}_{u}" for u in range(n)] for d, n in turns.items()}
    fields["speakers"] = {d: ["M", "F", "M"][:n] if iemocap else one_hot[:n] for d, n in turns.items()}
    fields["labels"] = {d: [(5 * i + u) % 6 for u in range(n)] for i, (d, n) in enumerate(turns.items())}
    fields["sentences"] = {d: [f"Caf\xe9 {u}" for u in range(n)] for d, n in turns.items()}
    fields["sentiments"] = {d: [u % 3 for u in range(n)] for d, n in turns.items()}
    fields["train"] = set(ids[1:]) if iemocap else ids[1:]
    fields["test"] = {ids[0]} if iemocap else [ids[0]]
    fields["valid"] = [ids[3]]
    fields["rest"] = None
    return fields


@pytest.fixture
def write(tmp_path):
    def write(case, fields, protocol=2):
        paths = []
        for number, names in enumerate(CASES[case][0]):
            content = fields[names] if isinstance(names, str) else tuple(fields[name] for name in names)
            paths.append(tmp_path / f"{number}.pkl")
            paths[-1].write_bytes(pickle.dumps(content, protocol))
        return paths

    return write


def refusal(paths, layout=None):
    with pytest.raises(UserError) as raised:
        convert(paths, layout)
    assert "\n" not in str(raised.value)
    return str(raised.value)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("protocol", [2, 4])
def test_each_layout_becomes_the_corpus_it_holds(case, write, protocol):
    fields = fields_of(case)
    layout = case.split(",")[0]
    for paths in (write(case, fields, protocol), write(case, fields, protocol)[::-1]):
        corpus = convert(paths)
        assert corpus.name == layout
        marked = "m3net" in case
        order = ["Ses01F_a", "Ses01M_d", "Ses02F_c", "Ses05M_b"] if "iemocap" in case else [9, 10, 1039, 1153]
        if marked and "iemocap" in case:  # the validation dialogue stands after the training dialogues
            order = ["Ses01F_a", "Ses02F_c", "Ses01M_d", "Ses05M_b"]
        assert corpus.dialogue_ids.tolist() == [str(dialogue) for dialogue in order]
        assert corpus.split.tolist() == ["train", "train", "valid" if marked else "train", "test"]
        assert corpus.label_names.tolist() == (IEMOCAP if "iemocap" in case else MELD)
        assert corpus.offsets.tolist() == np.cumsum([0, *(len(fields["labels"][d]) for d in order)]).tolist()
        assert corpus.labels.tolist() == [label for d in order for label in fields["labels"][d]]
        assert corpus.speakers.tolist() == [s for d in order for s in [0, 1, 0][: len(fields["labels"][d])]]
        expected = {m: np.concatenate([fields[m][d] for d in order]) for m in ("audio", "visual")}
        if "multiemo" in case or "mmgcn" in case:
            expected["text"] = np.concatenate([fields["text"][d] for d in order])
        else:
            expected["text"] = np.mean([np.concatenate([fields[r][d] for d in order]) for r in ROBERTA], axis=0)
        sessions = [str(dialogue)[:5] for dialogue in order] if "iemocap" in case else None
        assert (corpus.groups if corpus.groups is None else corpus.groups.tolist()) == sessions
        said = [text for d in order for text in fields["sentences"][d]] if "multiemo" not in case else None
        assert (corpus.transcript if corpus.transcript is None else corpus.transcript.tolist()) == said
        assert list(corpus.features) == ["text", "audio", "visual"]
        for modality, rows in expected.items():
            assert corpus.features[modality].dtype == np.float32
            np.testing.assert_allclose(corpus.features[modality], rows, rtol=0, atol=1e-6)
        assert convert(paths, layout).fingerprint() == corpus.fingerprint()


def test_ids_without_a_session_give_no_groups(write):
    fields = fields_of("iemocap-mmgcn")
    for name in ("ids", "speakers", "labels", "text", "audio", "visual", "sentences"):
        fields[name] = {dialogue.replace("Ses01", "One"): values for dialogue, values in fields[name].items()}
    fields["train"] = {dialogue.replace("Ses01", "One") for dialogue in fields["train"]}
    lines = []
    assert convert(write("iemocap-mmgcn", fields), warn=lines.append).groups is None
    assert any("do not begin with a session" in line for line in lines)


def test_every_layout_has_a_case():
    assert {case.split(",")[0] for case in CASES} == set(LAYOUTS)


def test_a_corpus_survives_its_file(write, tmp_path):
    fields = fields_of("iemocap-sdt")
    fields["audio"]["Ses01F_a"][1][:] = 0
    corpus = convert(write("iemocap-sdt", fields))
    corpus.save(tmp_path / "corpus.npz")
    loaded = Corpus.load(tmp_path / "corpus.npz")
    assert loaded.fingerprint() == corpus.fingerprint()
    assert type(corpus.features["text"]) is np.ndarray


@pytest.mark.parametrize(
    ("speakers", "expected"),
    [
        (["F", "M", "F"], [0, 1, 0]),
        (np.array(["Ross", "Joey", "Ross"]), [0, 1, 0]),
        (["Ross", "Chandler", "Joey"], [0, 1, 2]),
        ([7, 7, 2], [0, 0, 1]),
        (np.eye(9)[[8, 2, 2]], [0, 1, 1]),
        (list(np.eye(9, dtype=np.float32)[[0, 1, 2]]), [0, 1, 2]),
        (np.zeros((3, 9)), [0, 0, 0]),
    ],
)
def test_speakers_count_from_their_first_turn(write, speakers, expected):
    fields = fields_of("meld-mmgcn")
    fields["speakers"][10] = speakers
    corpus = convert(write("meld-mmgcn", fields))
    assert corpus.speakers[1:4].tolist() == expected
    assert corpus.speakers.dtype == np.int64


@pytest.mark.parametrize(
    "ids",
    [
        lambda names: [*names, names[0]],
        tuple,
        frozenset,
        np.array,
        lambda names: names[::-1],
    ],
)
def test_the_order_and_kind_of_the_id_lists_change_nothing(write, ids):
    fields = fields_of("iemocap-mmgcn")
    plain = convert(write("iemocap-mmgcn", fields)).fingerprint()
    fields["train"] = ids(sorted(fields["train"]))
    fields["labels"] = collections.OrderedDict(reversed(fields["labels"].items()))
    assert convert(write("iemocap-mmgcn", fields)).fingerprint() == plain


def test_labels_in_other_clothes_and_none(write):
    fields = fields_of("iemocap-mmgcn")
    fields["labels"]["Ses01F_a"] = np.array([-1, -100, 5.0])
    fields["labels"]["Ses02F_c"] = (np.int64(4),)
    corpus = convert(write("iemocap-mmgcn", fields))
    assert corpus.labels[:3].tolist() == [-100, -100, 5]
    assert corpus.labels[5] == 4


def edit(fields, field, dialogue, change):
    fields = copy.deepcopy(fields)
    fields[field][dialogue] = change(fields[field][dialogue])
    return fields


@pytest.mark.parametrize("field", ["speakers", "audio", "visual", "roberta1", "roberta3"])
@pytest.mark.parametrize("change", [lambda rows: rows[:-1], lambda rows: [*rows, rows[0]], lambda rows: []])
def test_rows_that_disagree_name_dialogue_and_field(write, field, change):
    paths = write("iemocap-sdt", edit(fields_of("iemocap-sdt"), field, "Ses01M_d", change))
    message = refusal(paths)
    assert "'Ses01M_d'" in message
    assert f"{field}: expected 2 rows" in message


@pytest.mark.parametrize(
    ("field", "change", "expected"),
    [
        ("labels", lambda rows: [6, 0], "labels: expected 0 to 5, or -1 for unlabelled, got 6"),
        ("labels", lambda rows: [-2, 0], "got -2"),
        ("labels", lambda rows: [0.5, 0], "whole numbers"),
        ("labels", lambda rows: [np.nan, 0], "whole numbers"),
        ("labels", lambda rows: [np.inf, 0], "got inf"),
        ("labels", lambda rows: ["happy", "sad"], "whole numbers"),
        ("labels", lambda rows: [None, 1], "labels: expected rows"),
        ("labels", lambda rows: [[0, 1], [1, 0]], "whole numbers"),
        ("labels", lambda rows: 3, "labels: expected rows"),
        ("speakers", lambda rows: [np.nan, 0], "speakers: expected names"),
        ("speakers", lambda rows: [{}, {}], "speakers: expected rows"),
        ("speakers", lambda rows: np.zeros((2, 2, 2)), "speakers: expected names"),
        ("audio", lambda rows: [rows[0], rows[1][:-1]], "audio: expected rows of one width"),
        ("audio", lambda rows: [row[:-1] for row in rows], "audio: expected numbers (2, 1582)"),
        ("audio", lambda rows: [[row] for row in rows], "audio: expected numbers (2, 1582)"),
        ("audio", lambda rows: [0.0, 1.0], "audio: expected numbers (2, 1582)"),
        ("audio", lambda rows: [["a"] * 1582] * 2, "audio: expected numbers (2, 1582)"),
        ("visual", lambda rows: None, "visual: expected rows"),
    ],
)
def test_what_a_dialogue_cannot_hold(write, field, change, expected):
    message = refusal(write("iemocap-mmgcn", edit(fields_of("iemocap-mmgcn"), field, "Ses01M_d", change)))
    assert "'Ses01M_d'" in message
    assert expected in message


def warnings_of(paths, layout=None):
    lines = []
    corpus = convert(paths, layout, warn=lines.append)
    assert not any("\n" in line for line in lines)
    return corpus, lines


def test_empty_and_unlisted_dialogues_are_left_out(write):
    fields = fields_of("iemocap-mmgcn")
    for field in ("speakers", "labels", "text", "audio", "visual"):
        fields[field]["Ses02F_c"] = []
    fields["train"] -= {"Ses01M_d"}
    corpus, lines = warnings_of(write("iemocap-mmgcn", fields))
    assert corpus.dialogue_ids.tolist() == ["Ses01F_a", "Ses05M_b"]
    assert any("no id list" in line and "'Ses01M_d'" in line for line in lines)
    assert any("no utterance" in line and "'Ses02F_c'" in line for line in lines)


def test_rows_without_a_measurement_become_missing(write):
    fields = fields_of("iemocap-mmgcn")
    fields["audio"]["Ses01F_a"][0][:] = 0
    fields["audio"]["Ses01F_a"][1][7] = np.inf
    fields["audio"]["Ses01F_a"][2] = fields["audio"]["Ses01F_a"][2].astype(np.float64) * 1e300
    fields["audio"]["Ses01M_d"][0][3] = 0
    fields["visual"] = {d: [np.zeros(342)] * len(rows) for d, rows in fields["visual"].items()}
    corpus, lines = warnings_of(write("iemocap-mmgcn", fields))
    assert np.isnan(corpus.features["audio"]).all(axis=1).tolist() == [True] * 3 + [False] * 5
    assert np.isfinite(corpus.features["audio"][3:]).all()
    assert list(corpus.features) == ["text", "audio"]
    assert any("audio: 3 of 8 rows" in line for line in lines)
    assert any(line.startswith("visual") for line in lines)


def test_id_lists_that_contradict(write):
    fields = fields_of("iemocap-mmgcn")
    fields["train"] |= {"Ses05M_b"}
    assert "'Ses05M_b' is both in the train ids and in the test ids" in refusal(write("iemocap-mmgcn", fields))
    fields["train"] = {"Ses01F_a", "Ses09F_x"}
    message = refusal(write("iemocap-mmgcn", fields))
    assert "'Ses09F_x': not in the field labels" in message
    fields["train"], fields["test"] = set(), set()
    assert "no dialogue" in refusal(write("iemocap-mmgcn", fields))
    fields = fields_of("iemocap-m3net")
    del fields["roberta2"]["Ses01F_a"]
    assert "'Ses01F_a': not in the field roberta2" in refusal(write("iemocap-m3net", fields))


def test_validation_marks_never_move_a_test_dialogue(write):
    fields = fields_of("meld-m3net")
    fields["valid"] = [1039, 1153]
    corpus, lines = warnings_of(write("meld-m3net", fields))
    assert corpus.split.tolist() == ["train", "train", "train", "test"]
    assert any("validation ids" in line for line in lines)


def test_other_widths_need_the_layout_named(write):
    fields = fields_of("iemocap-mmgcn")
    fields["text"] = {d: np.ones((len(rows), 768)) for d, rows in fields["text"].items()}
    paths = write("iemocap-mmgcn", fields)
    message = refusal(paths)
    assert "--layout iemocap-mmgcn" in message
    assert "text has width 768, known is 100" in message
    corpus, lines = warnings_of(paths, "iemocap-mmgcn")
    assert corpus.dims == {"text": 768, "audio": 1582, "visual": 342}
    assert any("text has width 768" in line for line in lines)


def test_exchangeable_files_stand_in_the_order_of_the_layout(write):
    fields = fields_of("iemocap-multiemo")
    for modality in ("text", "audio", "visual"):
        fields[modality] = {d: [row[:300] for row in rows] for d, rows in fields[modality].items()}
    paths = write("iemocap-multiemo", fields)
    assert "--layout iemocap-multiemo" in refusal(paths)
    corpus, _ = warnings_of([paths[1], paths[0], paths[2], paths[3]], "iemocap-multiemo")
    np.testing.assert_array_equal(corpus.features["audio"][:3], fields["audio"]["Ses01F_a"])
    np.testing.assert_array_equal(corpus.features["visual"][:3], fields["visual"]["Ses01F_a"])


def as_bytes(value):
    """A value with bytes for every text, as a pickle of Python 2 read with ``encoding="bytes"`` and written anew."""
    if isinstance(value, dict):
        return {as_bytes(key): as_bytes(rows) for key, rows in value.items()}
    if isinstance(value, list | set):
        return type(value)(map(as_bytes, value))
    return value.encode() if isinstance(value, str) else value


@pytest.mark.parametrize("case", [case for case in CASES if case.startswith("iemocap")])
def test_bytes_are_read_as_text(case, write):
    fields = fields_of(case)
    fields["speakers"] = {d: np.array(names) for d, names in fields["speakers"].items()}
    plain = convert(write(case, fields)).fingerprint()
    old = {field: as_bytes(value) for field, value in fields.items()}
    assert convert(write(case, old)).fingerprint() == plain
    old["speakers"] = {d: np.array(names, "S") for d, names in old["speakers"].items()}
    old["train"] = np.array(sorted(old["train"]))
    assert convert(write(case, old)).fingerprint() == plain


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("anything", [["a", "b"], {}, {"Ses01F_a": None}, "text", {1}, np.ones(2), None], ids=str)
def test_a_field_that_is_not_read_may_hold_anything(case, write, anything):
    fields = fields_of(case)
    plain = replace(convert(write(case, fields)), transcript=None).fingerprint()
    fields |= dict.fromkeys(("ids", "sentences", "sentiments", "rest"), anything)
    layout = case.split(",")[0] if anything is None else None
    assert convert(write(case, fields), layout).fingerprint() == plain


def test_swapped_fields_are_seen_by_their_widths(write):
    fields = fields_of("iemocap-mmgcn")
    fields["audio"], fields["visual"] = fields["visual"], fields["audio"]
    message = refusal(write("iemocap-mmgcn", fields))
    assert "audio has width 342" in message
    assert "visual has width 1582" in message


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_wrong_layout_is_refused_though_named(write, layout):
    for case in CASES:
        if case.split(",")[0] != layout:
            message = refusal(write(case, fields_of(case)), layout)
            assert f"not of the layout {layout}" in message


def test_an_unknown_name_lists_the_known_ones(write):
    message = refusal(write("iemocap-sdt", fields_of("iemocap-sdt")), "iemocap")
    assert all(name in message for name in LAYOUTS)


@pytest.mark.parametrize(
    "content",
    [(), (1, 2), {}, [1, 2, 3], "text", None, 7, {"a": np.ones((2, 768))}, tuple({"a": [1]} for _ in range(9)), {1, 2}],
    ids=str,
)
def test_files_of_no_layout_are_one_clear_line(tmp_path, content):
    path = tmp_path / "other.pkl"
    path.write_bytes(pickle.dumps(content))
    message = refusal([path])
    assert "no known layout" in message
    assert all(name in message for name in LAYOUTS)
    assert f"not of the layout {next(iter(LAYOUTS))}" in refusal([path], next(iter(LAYOUTS)))


def test_a_cut_layout_is_refused_field_by_field(tmp_path):
    fields = fields_of("meld-graphsmile")
    for missing in range(len(SMILE)):
        names = SMILE[:missing] + SMILE[missing + 1 :]
        (tmp_path / "cut.pkl").write_bytes(pickle.dumps(tuple(fields[name] for name in names)))
        assert "no known layout" in refusal([tmp_path / "cut.pkl"])


def test_a_missing_file_of_several_is_asked_for(write):
    paths = write("iemocap-m3net", fields_of("iemocap-m3net"))
    assert "iemocap_features_roberta.pkl of M3Net" in refusal(paths[1:])
    paths = write("meld-multiemo", fields_of("meld-multiemo"))
    assert "no known layout" in refusal(paths[1:])
    assert "is a file missing" not in refusal(paths[1:])
    assert "no known layout" in refusal([])


def test_labels_that_are_measures_are_no_layout(write):
    """CMU-MOSEI goes round in the very same tuple, with a sentiment for a label."""
    fields = fields_of("iemocap-mmgcn")
    fields["labels"] = {d: [0.333] * len(rows) for d, rows in fields["labels"].items()}
    assert "no known layout" in refusal(write("iemocap-mmgcn", fields))


def test_features_are_no_speakers(write):
    fields = fields_of("iemocap-mmgcn")
    fields["speakers"] = fields["text"]
    assert "no known layout" in refusal(write("iemocap-mmgcn", fields))


def counted(case, splits):
    """Fields with the given (dialogues, class counts) of each split, one feature a modality."""
    fields = {name: {} for name in (*BASE[:7], "sentiments")}
    for split, (dialogues, counts) in splits.items():
        labels = np.repeat(np.arange(len(counts)), counts)
        ids = [f"{'Ses01' if case.startswith('iemocap') else ''}{split}{number}" for number in range(dialogues)]
        for dialogue, part in zip(ids, np.array_split(labels, dialogues), strict=True):
            fields["labels"][dialogue] = part
            fields["speakers"][dialogue] = np.zeros(len(part), int)
            for modality in ("text", "audio", "visual"):
                fields[modality][dialogue] = np.ones((len(part), 1), np.float32)
        fields[split] = ids
    fields["train"] = fields["train"] + fields.pop("valid", [])
    return fields


IEMOCAP_COUNTS = {
    "train": (120, [504, 839, 1324, 933, 742, 1468]),
    "test": (31, [144, 245, 384, 170, 299, 381]),
}
MELD_COUNTS = {
    "train": (1038, [4710, 1205, 268, 683, 1743, 271, 1109]),
    "valid": (114, [470, 150, 40, 111, 163, 22, 153]),
    "test": (280, [1256, 281, 50, 208, 402, 68, 345]),
}


@pytest.mark.parametrize("case", ["iemocap-mmgcn", "meld-mmgcn"])
def test_the_published_counts_raise_no_warning(write, case):
    splits = IEMOCAP_COUNTS if case.startswith("iemocap") else MELD_COUNTS
    corpus, lines = warnings_of(write(case, counted(case, splits)), case)
    assert sum(corpus.class_counts(corpus.dialogues("train"))) == (5810 if case.startswith("iemocap") else 9989 + 1109)
    assert sum(corpus.class_counts(corpus.dialogues("test"))) == (1623 if case.startswith("iemocap") else 2610)
    assert all("width" in line for line in lines)
    if case.startswith("meld"):
        splits = {split: splits[split] for split in ("train", "test")}
        assert all("width" in line for line in warnings_of(write(case, counted(case, splits)), case)[1])


@pytest.mark.parametrize("case", ["iemocap-mmgcn", "meld-mmgcn"])
@pytest.mark.parametrize("split", ["train", "test"])
@pytest.mark.parametrize(("dialogues", "moved"), [(1, 0), (0, 1)])
def test_other_counts_are_told_once_for_each_split(write, case, split, dialogues, moved):
    splits = copy.deepcopy(IEMOCAP_COUNTS if case.startswith("iemocap") else MELD_COUNTS)
    number, counts = splits[split]
    counts[0] -= moved
    counts[1] += moved
    splits[split] = (number - dialogues, counts)
    lines = [line for line in warnings_of(write(case, counted(case, splits)), case)[1] if "expected" in line]
    assert len(lines) == 1
    assert lines[0].startswith(split)
    found = lines[0].split("; found ")[1]
    assert "/".join(map(str, counts[:1])) in found or split == "train"


def test_marked_development_sets_are_counted_apart(write):
    lines = warnings_of(write("meld-m3net", fields_of("meld-m3net")))[1]
    assert [line.split(":")[0] for line in lines] == ["train", "valid", "test"]
    lines = warnings_of(write("iemocap-m3net", fields_of("iemocap-m3net")))[1]
    assert [line.split(":")[0] for line in lines] == ["train and valid", "test"]
    assert "120 dialogues, 5810 utterances (504/839/1324/933/742/1468" in lines[0]
    assert "3 dialogues, 6 utterances" in lines[0]


def test_a_refused_pickle_names_the_file_among_several(write):
    paths = write("iemocap-multiemo", fields_of("iemocap-multiemo"))
    paths[2].write_bytes(b"cos\nsystem\n(X\x04\x00\x00\x00truetR.")
    assert str(paths[2]) in refusal(paths)
    assert "'os.system'" in refusal(paths)
