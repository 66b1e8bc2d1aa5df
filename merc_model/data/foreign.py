"""Files that are not what their name says, told by how they begin, and what to do about them."""

from __future__ import annotations

import codecs

_BY_START: tuple[tuple[bytes, str], ...] = (
    (b"version https://git-lfs", "a git-lfs pointer, not the file itself; fetch it with git lfs pull"),
    (b"\x1f\x8b", "compressed with gzip; decompress it first (gunzip, or joblib.load where joblib wrote it)"),
    (b"BZh", "compressed with bzip2; decompress it first (bunzip2, or joblib.load where joblib wrote it)"),
    (b"\xfd7zXZ\x00", "compressed with xz; decompress it first (unxz, or joblib.load where joblib wrote it)"),
    (b"\x5d\x00\x00", "compressed with LZMA; decompress it first (unlzma, or joblib.load where joblib wrote it)"),
    (b"\x28\xb5\x2f\xfd", "compressed with Zstandard; decompress it first (unzstd)"),
    (b"\x04\x22\x4d\x18", "compressed with LZ4; decompress it first (unlz4, or joblib.load where joblib wrote it)"),
    *(
        (start, "compressed by joblib; read it with joblib.load, and write it anew with pickle.dump or numpy.savez")
        for start in (b"\x78\x01", b"\x78\x5e", b"\x78\x9c", b"\x78\xda", b"ZF0x")
    ),
    (b"7z\xbc\xaf\x27\x1c", "a 7z archive; unpack it first"),
    (b"Rar!", "a RAR archive; unpack it first"),
    (b"\x89HDF\r\n\x1a\n", "an HDF5 file; read it with h5py, and write its arrays anew"),
    (b"MATLAB 5.0 MAT-file", "a MATLAB file; read it with scipy.io.loadmat, and write its arrays anew"),
    (b"PAR1", "a Parquet file; read it with pandas, and write its arrays anew"),
    (b"%PDF", "a PDF document"),
)
_PAGE = (b"<!doctype html", b"<html", b"<head", b"<?xml", b"<!--")


def what_it_is(head: bytes) -> str | None:
    """What a file is that begins with ``head`` (300 bytes will do), in words; None if nothing is known of it."""
    for start, what in _BY_START:
        if head.startswith(start):
            return what
    if head[257:262] == b"ustar":
        return "a tar archive; unpack it first"
    text = head.removeprefix(codecs.BOM_UTF8).lstrip()
    if text.lower().startswith(_PAGE):
        return "a web page, not the file itself; download it anew, from its raw or download link"
    if text.startswith(b'{"message"') or text.startswith(b'{"error"'):
        return "the message of a server, not the file itself; download it anew"
    return None
