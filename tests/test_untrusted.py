"""Reading damaged or hostile JSON and arrays: errors of one line, and no memory for missing content."""

import json
import os
import struct

import numpy as np
import pytest

from keras_wsl import untrusted


@pytest.mark.parametrize(
    "content, message",
    [
        (b"{", "must be JSON in UTF-8"),
        (b"", "must be JSON in UTF-8"),
        (b"\xff\xfe{}", "must be JSON in UTF-8"),
        (b"\xef\xbb\xbf{}", "BOM"),
        (b'{"a": 1, "b": {"a": 1, "a": 2}}', "the key 'a' twice"),
        (b"[" * 101 + b"]" * 101, "at most 100 deep"),
        (b"[" * 100_000 + b"]" * 100_000, "at most 100 deep"),
        (b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "at most 100 deep"),
        (b"1" * 5000, "4300 digits"),
        (b" " * 2**20 + b"1", "at most 1,048,576 bytes"),
    ],
    ids=range(10),
)
def test_read_json_errors_are_one_line(tmp_path, content, message):
    path = tmp_path / "result.json"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        untrusted.read_json(path)
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value)) < 500


@pytest.mark.parametrize("text", ["NaN", "-Infinity", "1e999", "[0, NaN]", '"\\ud800"'])
def test_read_json_strict_rejects_nonstandard_json(tmp_path, text):
    path = tmp_path / "result.json"
    path.write_text(text)
    with pytest.raises(ValueError, match="a number that is not finite|surrogates not allowed"):
        untrusted.read_json(path, strict=True)
    untrusted.read_json(path)


def test_read_json_reads_json_dumps(tmp_path):
    path, value = tmp_path / "result.json", {"a": [1, 2.5, None, True, {"ä": "€"}], "deep": []}
    for _ in range(98):
        value["deep"] = [value["deep"]]
    path.write_text(json.dumps(value))
    assert untrusted.read_json(path) == value


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir], ids=["fifo", "directory"])
def test_read_json_rejects_irregular_files(tmp_path, make):
    make(tmp_path / "a.json")
    with pytest.raises(ValueError, match="a.json must be a regular file"):
        untrusted.read_json(tmp_path / "a.json")
    (tmp_path / "b.json").symlink_to("missing")
    with pytest.raises(ValueError, match="b.json must be .* a symbolic link without a target"):
        untrusted.read_json(tmp_path / "b.json")


@pytest.mark.parametrize(
    "values, message",
    [
        ([1], "content must be an object. Received: .1."),
        ({}, "`n` is missing. It must be an integer in .1, 5."),
        ({"n": True}, "`n` must be an integer.* Received: n=True"),
        ({"n": 1.0}, "Received: n=1.0"),
        ({"n": 6}, "Received: n=6"),
        ({"n": "x" * 10**6}, "Received: n='xxx"),
        ({"n": 1, "m" * 10**6: 1}, "The field 'mmm.* is unknown"),
    ],
    ids=range(7),
)
def test_check_fields_names_the_field(values, message):
    with pytest.raises(ValueError, match=message) as caught:
        untrusted.check_fields(values, {"n": untrusted.integer(1, 5)})
    assert len(str(caught.value)) < 300
    untrusted.check_fields({"n": 5, "m": 1}, {"n": untrusted.integer(1, 5)}, others=True)


def header(text, version=(1, 0), length=None):
    """Return the bytes of an array's header."""
    text = text.encode() + b"\n"
    kind = "<H" if version == (1, 0) else "<I"
    return b"\x93NUMPY" + bytes(version) + struct.pack(kind, len(text) if length is None else length) + text


@pytest.mark.parametrize(
    "content, message",
    [
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000000,)}"),
            "is not a complete file: it has",
        ),
        (
            header(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({'9' * 4000},)}}"),
            "is not a complete file: it has",
        ),
        (header("{'descr': '<f4', 'fortran_order': False, 'shape': (-1, -4)}") + bytes(16), "its shape is"),
        (header("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}") + bytes(32), "Python objects"),
        (header("{'descr': 'zzz', 'fortran_order': False, 'shape': (4,)}"), "header is not that"),
        (header("(" * 5000), "header is not that"),
        (header("{}", (2, 0), 2**32 - 1), "header is not that.*version"),
        (header("{}", (9, 9)), "header is not that"),
        (b"PK\x03\x04" + bytes(100), "header is not that"),
        (b"", "header is not that"),
        (b"\x80\x04K\x01.", "header is not that"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (2, 2)}") + bytes(16),
            "must be float32 of shape .4,.",
        ),
        (header("{'descr': '<f4', 'fortran_order': True, 'shape': (4,)}") + bytes(16), "in F order"),
        (header("{'descr': '<i4', 'fortran_order': False, 'shape': (4,)}") + bytes(16), "Received: int32"),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}") + bytes(15),
            "is not a complete file: it has",
        ),
        (
            header("{'descr': '<f4', 'fortran_order': False, 'shape': (4,)}") + bytes(17),
            "is not a complete file: it has",
        ),
    ],
    ids=range(16),
)
def test_map_array_errors_are_one_line(tmp_path, content, message):
    path = tmp_path / "view-00000.npy"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        untrusted.map_array(path, (4,), np.dtype("float32"))
    assert "\n" not in str(caught.value) and str(path) in str(caught.value) and len(str(caught.value)) < 600


def test_map_array_reads_np_save(tmp_path):
    path, array = tmp_path / "a.npy", np.arange(12, dtype="float16").reshape(4, 3)
    np.save(path, array)
    np.testing.assert_array_equal(untrusted.map_array(path, (4, 3), array.dtype), array)
    os.mkfifo(tmp_path / "fifo.npy")
    with pytest.raises(ValueError, match="fifo.npy must be a regular file"):
        untrusted.map_array(tmp_path / "fifo.npy", (4, 3), array.dtype)
