"""No pickle runs anything, and every broken one ends in one clear line."""

import bz2
import collections
import copyreg
import gzip
import io
import lzma
import os
import pickle
import struct
import subprocess
import zlib

import numpy as np
import pytest

from merc_model.data.conversation import read_conversation
from merc_model.data.corpus import Corpus
from merc_model.data.unpickle import load_pickle
from merc_model.errors import UserError


class Call:
    """Pickles as the call of a function."""

    def __init__(self, function, *arguments, state=None):
        self.recipe = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self):
        return self.recipe


class Slotted:
    pass


def name(module, attribute):
    return f"c{module}\n{attribute}\n".encode()


def text(value):
    return b"X" + struct.pack("<I", len(value)) + value.encode()


@pytest.fixture
def read(tmp_path):
    def read(content):
        path = tmp_path / "features.pkl"
        path.write_bytes(content)
        return load_pickle(path)

    return read


@pytest.fixture
def canary(tmp_path):
    path = tmp_path / "canary"
    yield path
    assert not path.exists(), "the pickle ran something"


def one_line(refusal):
    message = str(refusal.value)
    assert "\n" not in message
    assert "features.pkl" in message
    return message


def plain():
    return {
        "float": np.arange(6, dtype=np.float32).reshape(2, 3),
        "columns": np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        "swapped": np.arange(3, dtype=">i4"),
        "empty": np.empty((0, 5)),
        "bool": np.array([True, False]),
        "text": np.array(["M", "Fé"]),
        "bytes": np.array([b"ab"]),
        "cube": np.zeros((2, 1, 3), np.float16),
        "scalars": [np.float64(1.5), np.int64(-3), np.str_("é"), np.bool_(True)],
        "sets": [{1, 2}, frozenset({"a"}), set()],
        "none": (None, 3, "x", b"\xff", 2**80, bytearray(b"q")[:0]),
    }


@pytest.mark.parametrize("protocol", range(6))
def test_arrays_and_containers_come_back_whole(read, protocol):
    expected = plain()
    if protocol < 5:
        expected["none"] = expected["none"][:-1]  # a bytearray is a callable before protocol 5
    loaded = read(pickle.dumps(expected, protocol))
    assert loaded.keys() == expected.keys()
    for key, value in expected.items():
        if isinstance(value, np.ndarray):
            np.testing.assert_array_equal(np.asarray(loaded[key]), value, strict=key != "swapped")
            assert loaded[key].dtype.newbyteorder("=") == value.dtype.newbyteorder("=")
        else:
            assert loaded[key] == value


@pytest.mark.parametrize("protocol", range(6))
def test_ordered_and_default_dictionaries_become_dictionaries(read, protocol):
    ordered = collections.OrderedDict([("b", 1), ("a", 2)])
    default = collections.defaultdict(list, {"x": [1]})
    loaded = read(pickle.dumps((ordered, default), protocol))
    assert loaded == ({"b": 1, "a": 2}, {"x": [1]})
    assert [type(value) for value in loaded] == [dict, dict]
    assert list(loaded[0]) == ["b", "a"]


def test_python_2_files_of_numpy_1_are_read(read):
    """Written by hand as Python 2 does it: byte strings for data and codes, numpy.core, a set by its class."""
    data = np.array([1.5, -2.25], "<f4").tobytes()
    dtype = name("numpy", "dtype") + b"(U\x02f4K\x00K\x01tR(K\x03U\x01<NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    array = (
        name("numpy.core.multiarray", "_reconstruct")
        + name("numpy", "ndarray")
        + b"K\x00\x85U\x01b\x87R(K\x01K\x02\x85"
        + dtype
        + b"\x89U"
        + bytes([len(data)])
        + data
        + b"tb"
    )
    members = name("__builtin__", "set") + b"]U\x05Ses01a\x85R"
    vids, loaded = read(b"\x80\x02" + members + array + b"\x86.")
    assert vids == {"Ses01"}
    np.testing.assert_array_equal(loaded, np.array([1.5, -2.25], np.float32))
    assert loaded.dtype == np.float32


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize(
    "function",
    [os.system, eval, exec, getattr, __import__, subprocess.Popen, copyreg.add_extension, np.load, open],
    ids=lambda function: function.__name__,
)
def test_calls_are_refused_and_nothing_runs(read, canary, function, protocol):
    code = f"open({str(canary)!r}, 'w')"
    arguments = {
        os.system: (f"touch {canary}",),
        subprocess.Popen: (["touch", str(canary)],),
        getattr: ("", "join"),
        open: (str(canary), "w"),
    }.get(function, (code,))
    for nested in (Call(function, *arguments), {"a": [np.ones(2), Call(function, *arguments)]}):
        with pytest.raises(UserError, match="nothing of it was run") as refusal:
            read(pickle.dumps(nested, protocol))
        assert function.__name__ in one_line(refusal)


def exploits(canary):
    """Byte strings that a forger would try on what is admitted."""
    touch = text(f"touch {canary}")
    system = name("os", "system")
    dtype = name("numpy", "dtype")
    scalar = name("numpy.core.multiarray", "scalar")
    reconstruct = name("numpy.core.multiarray", "_reconstruct")
    ndarray = name("numpy", "ndarray")
    return {
        "dotted name": b"\x80\x04" + text("numpy") + text("ndarray.__class__") + b"\x93.",
        "dotted path to os": b"\x80\x04" + text("numpy") + text("os.system") + b"\x93" + touch + b"\x85R.",
        "instance": b"(" + touch + b"ios\nsystem\n.",
        "object": b"(" + system + touch + b"o.",
        "new object": b"\x80\x02" + system + touch + b"\x85\x81.",
        "nested in an argument": dtype + b"(" + system + touch + b"\x85Rt" + b"R.",
        "encode with another codec": name("_codecs", "encode") + b"(" + touch + text("rot13") + b"tR.",
        "encode to a module": name("_codecs", "encode") + b"(" + touch + text("zlib") + b"tR.",
        "decode": name("_codecs", "decode") + b"(" + touch + text("unicode_escape") + b"tR.",
        "reconstructor": name("copy_reg", "_reconstructor") + b"(" + system + system + b"NtR.",
        "object dtype": dtype + text("O8") + b"\x85R.",
        "dtype of fields": dtype + b"]" + text("a") + text("O") + b"\x86a\x85R.",
        "datetime dtype": dtype + text("M8") + b"\x85R.",
        "dtype that turns into records": dtype + text("f8") + b"\x85R(K\x03" + text("<") + b"NX\x01\x00\x00\x00a\x85"
        b"}J\xff\xff\xff\xffJ\xff\xff\xff\xffK\x3ftb.",
        "scalar of a raw string": scalar + text("O") + touch + b"\x86R.",
        "reconstruct another type": reconstruct + name("builtins", "list") + b"K\x00\x85C\x01b\x87R.",
        "call ndarray": ndarray + b"K\x7f\x85\x85R.",
        "new ndarray": b"\x80\x02" + ndarray + b"K\x7f\x85\x85\x81.",
        "change a function": reconstruct + b"N}" + text("__code__") + b"Ns\x86b.",
        "change ndarray": ndarray + b"}" + text("shape") + b"K\x01sb.",
        "call a factory": name("__builtin__", "dict") + b")R.",
        "set of a string": name("builtins", "set") + touch + b"\x85R.",
        "ordered dictionary of a dictionary": name("collections", "OrderedDict") + b"}\x85R.",
        "persistent id": b"X\x01\x00\x00\x00aQ.",
        "missing module": name("no_such_module", "no_such_name") + b")R.",
        "name with a line break": b"\x80\x04" + text("os\nx") + text("\x1b[31msystem") + b"\x93.",
    }


@pytest.mark.parametrize("which", exploits(""))
def test_forgeries_are_refused(read, canary, which):
    with pytest.raises(UserError, match=r"refused|not a readable pickle") as refusal:
        read(exploits(canary)[which])
    one_line(refusal)


def test_a_forged_file_leaves_the_reader_as_it_was(read):
    """An attribute set on an admitted callable would reach every later file."""
    forged = name("_codecs", "encode") + b"N}" + text("_make") + name("builtins", "set") + b"s\x86b."
    with pytest.raises(UserError, match="refused"):
        read(forged)
    assert read(pickle.dumps(np.ones(2), 2)).tolist() == [1, 1]


@pytest.mark.parametrize("protocol", [2, 4, 5])
def test_object_and_record_arrays_are_refused(read, canary, protocol):
    carried = np.array([Call(os.system, f"touch {canary}"), 1], dtype=object)
    for array in (carried, np.array([[1], "a"], dtype=object), np.zeros(2, "i4,f8"), np.zeros(2, complex)):
        with pytest.raises(UserError, match=r"refused.* type"):
            read(pickle.dumps(array, protocol))


@pytest.mark.parametrize(
    ("shape", "data"),
    [((2**40,), bytes(8)), ((-1,), bytes(8)), ((2, 2), bytes(8)), ((2**33, 2**31), b""), ((1,), "é€")],
)
def test_array_data_must_fill_the_shape(read, shape, data):
    array = Call(np.empty(0).__reduce__()[0], np.ndarray, (0,), b"b", state=(1, shape, np.dtype("f8"), False, data))
    with pytest.raises(UserError, match="not a readable pickle"):
        read(pickle.dumps(array, 3))
    buffer = Call(np.ones(1).__reduce_ex__(5)[0], data, np.dtype("f8"), shape, "C")
    with pytest.raises(UserError, match="not a readable pickle"):
        read(pickle.dumps(buffer, 5))


@pytest.mark.parametrize("protocol", range(6))
def test_a_file_cut_anywhere_is_one_clear_line(read, protocol):
    whole = pickle.dumps(plain() if protocol == 5 else {**plain(), "none": ()}, protocol)
    for size in range(0, len(whole), 1 if protocol in (2, 5) else 7):
        with pytest.raises(UserError, match=r"is empty|not a readable pickle, or cut short|refused") as refusal:
            read(whole[:size])
        one_line(refusal)


@pytest.mark.parametrize(
    "content",
    [
        b"\x80\x04\x8d" + struct.pack("<Q", 2**62) + b"abc.",
        b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"abc.",
        b"\x80\x05\x96" + struct.pack("<Q", 2**33) + b"abc.",
        b"\x80\x04\x95" + struct.pack("<Q", 2**45) + b"abc.",
        b"T" + struct.pack("<i", -1) + b"abc.",
        b"T" + struct.pack("<i", 2**31 - 1) + b"abc.",
        b"\x8b" + struct.pack("<i", 2**31 - 1) + b"abc.",
        b"\x82\x01.",
        b"hello, this is text",
        b"\x93NUMPY\x01\x00",
        b".",
        b"\xff" * 64,
        b"\x80\x63.",
        b"(" * 100_000,
    ],
    ids=range(14),
)
def test_claims_and_rubbish_are_one_clear_line(read, content):
    with pytest.raises(UserError, match=r"not a readable pickle, or cut short|does not fit") as refusal:
        read(content)
    one_line(refusal)


def test_what_memory_cannot_hold_is_said_so(read):
    with pytest.raises(UserError, match="does not fit into memory, or is damaged"):
        read(b"\x80\x05\x96" + struct.pack("<Q", 2**60) + b"abc.")


def test_what_is_no_file(tmp_path, read):
    for path, message in ((tmp_path / "no.pkl", "no such file"), (tmp_path, "is a folder")):
        with pytest.raises(UserError, match=message):
            load_pickle(path)
    with pytest.raises(UserError, match="is empty"):
        read(b"")


def test_tensors_are_refused_with_the_way_out(read):
    torch = pytest.importorskip("torch")
    saved = io.BytesIO()
    torch.save({"a": torch.ones(2)}, saved)
    legacy = io.BytesIO()
    torch.save({"a": torch.ones(2)}, legacy, _use_new_zipfile_serialization=False)
    for content in (pickle.dumps({"Ses01": torch.ones(2, 3)}), saved.getvalue()):
        with pytest.raises(UserError, match=r"tensor\.numpy\(\)"):
            read(content)
    for start in range(len(legacy.getvalue()) - 20):  # a legacy file is several pickles in a row
        if legacy.getvalue()[start : start + 2] == b"\x80\x02" and b"ctorch" in legacy.getvalue()[start : start + 90]:
            with pytest.raises(UserError, match=r"torch objects.*tensor\.numpy\(\)"):
                read(legacy.getvalue()[start:])
            break
    else:
        pytest.fail("no tensor in the legacy file")
    with pytest.raises(UserError, match=r"outside the file.*tensor\.numpy\(\)"):
        read(b"\x80\x02X\x01\x00\x00\x00aQ.")


@pytest.mark.parametrize("protocol", range(6))
def test_line_ends_that_became_carriage_returns_are_turned_back(tmp_path, protocol):
    """As git's autocrlf, or an FTP client in text mode, leaves a pickle."""
    plain = {"Ses01": np.arange(10, 40), "text": ["a\nb", "c\r\nd", "\r", "x" * 13], "f": np.linspace(0, 1, 999)}
    path, lines = tmp_path / "features.pkl", []
    path.write_bytes(pickle.dumps(plain, protocol).replace(b"\n", b"\r\n"))
    loaded = load_pickle(path, warn=lines.append)
    assert list(loaded) == list(plain)
    assert loaded["text"] == plain["text"]
    np.testing.assert_array_equal(loaded["f"], plain["f"])
    assert len(lines) == 1
    assert "had become CR LF" in lines[0]
    cut = path.read_bytes()[:200]
    path.write_bytes(cut)
    with pytest.raises(UserError, match="transferred as text: fetch it anew, as binary"):
        load_pickle(path)


@pytest.mark.parametrize("text", ["a\r\nb", "\r\n" * 5])
def test_carriage_returns_that_belong_there_stay(tmp_path, text):
    path, lines = tmp_path / "features.pkl", []
    for protocol in range(1, 6):
        path.write_bytes(pickle.dumps([text], protocol))
        assert load_pickle(path, warn=lines.append) == [text]
    assert not lines


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n",
            "a git-lfs pointer.*git lfs pull",
        ),
        (b"\n\n<!DOCTYPE html>\n<html lang='en'>", "a web page, not the file itself"),
        (b"\xef\xbb\xbf<HTML><body>", "a web page"),
        (b'{"message":"Not Found","documentation_url":""}', "the message of a server"),
        (gzip.compress(pickle.dumps([1])), "compressed with gzip; decompress it first"),
        (bz2.compress(pickle.dumps([1])), "compressed with bzip2"),
        (lzma.compress(pickle.dumps([1])), "compressed with xz"),
        (zlib.compress(pickle.dumps([1]), 3), "compressed by joblib; read it with joblib.load"),
        (zlib.compress(pickle.dumps([1]), 9), "compressed by joblib"),
        (b"\x89HDF\r\n\x1a\n" + bytes(90), "an HDF5 file"),
        (bytes(257) + b"ustar\x0000" + bytes(90), "a tar archive"),
    ],
    ids=["git-lfs", "page", "page-bom", "message", "gzip", "bzip2", "xz", "joblib-3", "joblib-9", "hdf5", "tar"],
)
def test_a_file_that_is_something_else_is_called_what_it_is(tmp_path, content, message):
    for name, read in (("features.pkl", load_pickle), ("corpus.npz", Corpus.load), ("talk.npz", conversation)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UserError, match=f"{name}: {message}"):
            read(tmp_path / name)


def conversation(path):
    return read_conversation(path, ["glad", "sad"])


def test_a_pickle_and_an_archive_that_changed_places(tmp_path):
    (tmp_path / "corpus.npz").write_bytes(pickle.dumps([1]))
    with pytest.raises(UserError, match=r"corpus\.npz: a pickle, not an \.npz archive; merc convert reads"):
        Corpus.load(tmp_path / "corpus.npz")
    np.savez(tmp_path / "features.npz", text=np.zeros(3))
    with pytest.raises(UserError, match=r"features\.npz: an \.npz archive, not a pickle"):
        load_pickle(tmp_path / "features.npz")


@pytest.mark.parametrize(
    ("module", "advice"),
    [
        ("joblib.numpy_pickle", "load it with joblib"),
        ("pandas.core.frame", r"table\.to_numpy\(\)"),
        ("scipy.sparse", "toarray"),
    ],
)
def test_objects_of_known_packages_come_with_advice(read, module, advice):
    with pytest.raises(UserError, match=rf"refused, and nothing of it was run: .*{advice}"):
        read(b"\x80\x02" + name(module, "Thing") + b".")


def test_objects_of_a_class_are_refused(read):
    with pytest.raises(UserError, match="Slotted"):
        read(pickle.dumps(Slotted()))
