"""Documents as files hold them."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import logging
import lzma
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tasks.artifacts import retry
from tasks.errors import BadInput, TransientError
from tasks.places import patient_file
from tasks.text import documents as documents_module
from tasks.text.documents import open_texts
from tasks.text.prose import library_prose
from tasks.text.spec import PROSE, TextSource
from tests.faulty_proxy import FaultyProxy, faulty_proxy
from tests.s3_server import S3Server

TEXTS = ["The player bets 10 dollars.", "", "Stop, because the risk is too high.\nChoose 2) é 猫.", " "]
RECORDS = [{"text": text, "n": n} for n, text in enumerate(TEXTS)]
LINES = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in RECORDS).encode()


def read(location: object, **source: object) -> list[str]:
    return ["".join(document) for document in open_texts(TextSource(location=str(location), **source))]


def refused(location: object, **source: object) -> BadInput:
    with pytest.raises(BadInput) as caught:
        read(location, **source)
    return caught.value


def write_parquet(path: Path, values: pa.Array | list, **options: object) -> Path:
    pq.write_table(pa.table({"id": range(len(values)), "text": values}), path, **options)
    return path


def arrow_compressed(codec: str) -> Callable[[bytes], bytes]:
    def compress(data: bytes) -> bytes:
        sink = pa.BufferOutputStream()
        with pa.CompressedOutputStream(sink, codec) as stream:
            stream.write(data)
        return sink.getvalue().to_pybytes()

    return compress


def zipped(members: dict[str, bytes]) -> bytes:
    sink = io.BytesIO()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in members.items():
            archive.writestr(name, data)
    return sink.getvalue()


COMPRESSORS = {
    "": bytes,
    ".gz": gzip.compress,
    ".bz2": bz2.compress,
    ".xz": lzma.compress,
    ".zst": arrow_compressed("zstd"),
    ".lz4": arrow_compressed("lz4"),
}


class TestFormats:
    @pytest.mark.parametrize("ending", COMPRESSORS)
    def test_json_lines(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"a.jsonl{ending}"
        path.write_bytes(COMPRESSORS[ending](LINES))
        assert read(path) == TEXTS

    @pytest.mark.parametrize("ending", COMPRESSORS)
    def test_a_text_file_is_one_document(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"a.txt{ending}"
        path.write_bytes(COMPRESSORS[ending](LINES))
        assert read(path) == [LINES.decode()]

    @pytest.mark.parametrize("ending", [ending for ending in COMPRESSORS if ending])
    def test_compressed_parts_one_after_the_other(self, tmp_path: Path, ending: str) -> None:
        """As parallel compressors write them, and `cat a.gz b.gz`."""
        path = tmp_path / f"a.jsonl{ending}"
        path.write_bytes(COMPRESSORS[ending](LINES) + COMPRESSORS[ending](LINES))
        assert read(path) == TEXTS + TEXTS

    def test_all_members_of_an_archive_in_their_order(self, tmp_path: Path) -> None:
        members = {f"{name}.jsonl": f'{{"text": "{name}"}}\n'.encode() for name in ("b", "c/d", "a")}
        beside = {"c/": b"", "__MACOSX/._b.jsonl": b"\0", "c/.DS_Store": b"\0"}
        path = tmp_path / "many.jsonl.zip"
        path.write_bytes(zipped(members | beside))
        assert read(path) == ["b", "c/d", "a"]
        path = tmp_path / "many.txt.zip"
        path.write_bytes(zipped({"two.txt": b"2", "one.txt": b"1"}))
        assert read(path) == ["2", "1"]

    def test_fields_beside_the_text_are_none_of_our_business(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl"
        other = ["9" * 5000, "-" + "1" * 5000, "NaN", "-Infinity", "1e999", '{"text": 1, "text": 2}']
        path.write_text("".join(f'{{"other": {value}, "text": "{n}"}}\n' for n, value in enumerate(other)))
        assert read(path) == [str(n) for n in range(len(other))]
        assert "of type int, not text" in str(refused(path, column="other"))

    def test_columns_with_dots(self, tmp_path: Path) -> None:
        """As parquet calls fields of a structure."""
        path = tmp_path / "a.parquet"
        columns = {"text": [{"lang": "no"}], "text.lang": ["en"], "other.text": ["x"], "body": ["y"]}
        pq.write_table(pa.table(columns), path)
        assert read(path, column="text.lang") == ["en"]
        assert read(path, column="body") == ["y"]
        assert "of type struct" in str(refused(path))

    @pytest.mark.parametrize(
        "values",
        [
            pa.array([*TEXTS, None]),
            pa.array([*TEXTS, None], pa.large_string()),
            pa.array([*TEXTS, None]).dictionary_encode(),
            pa.array([None if text is None else text.encode() for text in [*TEXTS, None]], pa.binary()),
        ],
        ids=["string", "large_string", "dictionary", "binary"],
    )
    def test_parquet(self, tmp_path: Path, values: pa.Array) -> None:
        assert read(write_parquet(tmp_path / "a.parquet", values, row_group_size=2)) == [*TEXTS, ""]

    def test_null_is_an_empty_document_and_blank_lines_are_none(self, tmp_path: Path) -> None:
        path = tmp_path / "a.ndjson"
        path.write_bytes(b'\xef\xbb\xbf{"words": "a"}\n\n  \r\n{"words": null}\r\n{"words": "b"}')
        assert read(path, column="words") == ["a", "", "b"]

    def test_the_format_given_wins_over_the_ending(self, tmp_path: Path) -> None:
        path = tmp_path / "dump"
        path.write_bytes(LINES)
        assert read(path, format="jsonl") == TEXTS
        assert read(path, format="text") == [LINES.decode()]
        error = refused(path)
        assert error.field == "text.format"
        assert f"the ending of {path} does not tell its format" in str(error)

    def test_python_s_own_documentation(self) -> None:
        assert read(PROSE) == list(library_prose())
        assert refused("embedded:poetry").field == "text.location"


class TestPlaces:
    @pytest.fixture
    def folder(self, tmp_path: Path) -> Path:
        """b/1.txt, b/c/2.jsonl.gz, a.parquet, and what is none of the text."""
        (tmp_path / "b" / "c").mkdir(parents=True)
        (tmp_path / "b" / "1.txt").write_text("one")
        (tmp_path / "b" / "c" / "2.jsonl.gz").write_bytes(gzip.compress(b'{"text": "two"}\n{"text": "three"}\n'))
        write_parquet(tmp_path / "a.parquet", ["zero"])
        (tmp_path / ".hidden.txt").write_text("no")
        (tmp_path / "b" / "data.bin").write_bytes(b"\xff\x00")
        return tmp_path

    def test_a_folder_in_order_with_all_below_it(self, folder: Path) -> None:
        assert read(folder) == ["zero", "one", "two", "three"]
        assert read(f"{folder}/") == ["zero", "one", "two", "three"]
        assert read(f"file://{folder}") == ["zero", "one", "two", "three"]
        assert read(folder, format="jsonl") == ["two", "three"]

    def test_patterns(self, folder: Path) -> None:
        assert read(f"{folder}/b/*.txt") == ["one"]
        assert read(f"{folder}/**/*.jsonl.gz") == ["two", "three"]
        assert read(f"{folder}/**/[12].*") == ["one", "two", "three"]

    def test_a_path_with_the_signs_of_a_pattern_is_a_path_first(self, tmp_path: Path) -> None:
        (tmp_path / "a[1].txt").write_text("itself")
        (tmp_path / "a1.txt").write_text("matched")
        assert read(tmp_path / "a[1].txt") == ["itself"]

    def test_in_s3(self, folder: Path, s3_url: str) -> None:
        fs, root = fsspec.url_to_fs(s3_url)
        fs.put(str(folder), f"{root}/texts", recursive=True)
        assert read(f"{s3_url}/texts") == ["zero", "one", "two", "three"]
        assert read(f"{s3_url}/texts/**/*.jsonl.gz") == ["two", "three"]
        assert read(f"{s3_url}/texts/a.parquet") == ["zero"]
        fs.pipe(f"{root}/texts/new.txt", b"new")  # no listing is remembered
        assert read(f"{s3_url}/texts/*.txt") == ["new"]

    def test_anywhere_else(self, folder: Path) -> None:
        fs = fsspec.filesystem("memory")
        fs.put(str(folder), f"/{folder.name}", recursive=True)
        assert read(f"memory://{folder.name}/b") == ["one", "two", "three"]

    def test_missing(self, tmp_path: Path, s3_url: str) -> None:
        for location in (tmp_path / "no.txt", f"{s3_url}/no", "s3://no-such-bucket-anywhere/a.txt"):
            error = refused(location)
            assert error.field == "text.location"
            assert str(location) in str(error)
        assert "no file matches this pattern" in str(refused(tmp_path / "*.txt"))
        assert "only be an entire path component" in str(refused(tmp_path / "**.txt"))
        (tmp_path / "x.bin").write_bytes(b"")
        assert "no file in this folder ends in .jsonl" in str(refused(tmp_path))
        assert "names no bucket" in str(refused("s3://"))

    def test_refused_before_a_file_is_read(self, tmp_path: Path) -> None:
        with pytest.raises(BadInput, match="there is no such file or folder"):
            open_texts(TextSource(location=str(tmp_path / "no.txt")))

    def test_a_filesystem_that_is_not_there(self) -> None:
        assert refused("gibberish://a/b.txt").field == "text.location"

    def test_refused_credentials(self, s3_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        fsspec.filesystem("s3").clear_instance_cache()
        error = refused(f"{s3_url}/a.txt")
        fsspec.filesystem("s3").clear_instance_cache()
        assert error.field == "text.location"
        assert "AWS_ACCESS_KEY_ID" in str(error) or "access was denied" in str(error)


class TestDamage:
    """Every message names the field, the file, and the line where it applies."""

    def refused_line(self, tmp_path: Path, line: bytes, **source: object) -> BadInput:
        path = tmp_path / "a.jsonl"
        path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
        error = refused(path, **source)
        assert f"{path}, line 3" in str(error)
        return error

    def test_lines(self, tmp_path: Path) -> None:
        assert "is not JSON" in str(self.refused_line(tmp_path, b'{"text": "half'))
        assert "type list, not an object" in str(self.refused_line(tmp_path, b'[{"text": "all in one"}]'))
        assert "is not UTF-8 text" in str(self.refused_line(tmp_path, b'{"text": "caf\xe9"}'))
        assert "is not Unicode text" in str(self.refused_line(tmp_path, b'{"text": "\\ud800"}'))

    def test_columns_of_lines(self, tmp_path: Path) -> None:
        error = self.refused_line(tmp_path, b'{"content": "a", "id": 1}')
        assert error.field == "text.column"
        assert "it has content, id" in str(error)
        error = self.refused_line(tmp_path, b'{"text": ["a"]}')
        assert error.field == "text.column"
        assert "of type list, not text" in str(error)

    def test_columns_of_tables(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", TEXTS)
        error = refused(path, column="words")
        assert (error.field, error.value) == ("text.column", "words")
        assert f"{path} has no such column; it has id, text" in str(error)
        assert "of type int64, not text" in str(refused(path, column="id"))

    def test_no_parquet(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        path.write_bytes(LINES)
        assert f"{path}" in str(refused(path))
        assert "not a whole parquet file" in str(refused(path))
        whole = write_parquet(tmp_path / "b.parquet", [f"text {n} " * 50 for n in range(5000)], compression="none")
        data = bytearray(whole.read_bytes())
        data[len(data) // 2 : len(data) // 2 + 4096] = b"\xff" * 4096
        whole.write_bytes(data)
        assert "b.parquet" in str(refused(whole))

    def test_no_text(self, tmp_path: Path) -> None:
        path = tmp_path / "a.txt"
        path.write_bytes(b"caf\xe9")
        error = refused(path)
        assert error.field == "text.location"
        assert f"{path}" in str(error)
        assert "is not UTF-8 text" in str(error)

    @pytest.mark.parametrize(
        "line", ['{"text": "a", "text": "b"}', "[" * 100_000, '{"text": ' + "[" * 100_000, '{"text": "a"}{"text": "b"}']
    )
    def test_odd_lines(self, tmp_path: Path, line: str) -> None:
        path = tmp_path / "a.jsonl"
        path.write_text(f'{{"text": "fine"}}\n{line}\n')
        assert f"{path}, line 2" in str(refused(path))

    def test_two_columns_of_a_name(self, tmp_path: Path) -> None:
        path = tmp_path / "a.parquet"
        pq.write_table(pa.table([["a"], ["b"], ["c"]], names=["text", "text", "other"]), path)
        assert read(path, column="other") == ["c"]
        error = refused(path)
        assert error.field == "text.column"
        assert f"{path} has 2 columns of this name" in str(error)

    @pytest.mark.parametrize("ending", [ending for ending in COMPRESSORS if ending])
    def test_a_damaged_part_after_a_whole_one(self, tmp_path: Path, ending: str) -> None:
        path = tmp_path / f"a.jsonl{ending}"
        part = COMPRESSORS[ending](LINES)
        for damaged in (b"\xff" + part[1:], part[:-5], b"garbage behind it"):
            path.write_bytes(part + damaged)
            assert "cannot be decompressed" in str(refused(path))

    def test_archives(self, tmp_path: Path) -> None:
        path = tmp_path / "a.jsonl.zip"
        whole = zipped({"a.jsonl": LINES, "b.jsonl": LINES * 50})
        flipped = bytearray(whole)
        flipped[whole.index(b"b.jsonl") + 12] ^= 0xFF
        locked = bytearray(whole)
        locked[whole.rindex(b"PK\x01\x02") + 8] |= 1  # the flag of encryption, in the list of members
        for data in (whole[:-5], whole[: len(whole) // 2], b"", b"nothing of the kind", bytes(flipped), bytes(locked)):
            path.write_bytes(data)
            error = refused(path)
            assert error.field == "text.location"
            assert "cannot be decompressed" in str(error)
        path.write_bytes(zipped({"a.jsonl": LINES, "README": b"no JSON"}))
        assert f"{path}, README, line 1" in str(refused(path))

    @pytest.mark.parametrize("ending", [ending for ending in COMPRESSORS if ending])
    def test_compressed_halves(self, tmp_path: Path, ending: str) -> None:
        whole = COMPRESSORS[ending](np.random.default_rng(0).bytes(100_000).hex().encode())
        for data in (whole[: len(whole) // 2], b"nothing of the kind" * 10):
            path = tmp_path / f"a.txt{ending}"
            path.write_bytes(data)
            error = refused(path)
            assert error.field == "text.location"
            assert "cannot be decompressed" in str(error)


class TestReading:
    def test_long_texts_come_in_pieces_that_add_up(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(documents_module, "PIECE", 20)
        for text in ("word " * 50, "x" * 45, "line\n" * 9 + "y" * 30 + " end"):
            (tmp_path / "a.txt").write_text(text)
            [document] = open_texts(TextSource(location=str(tmp_path / "a.txt")))
            pieces = list(document)
            assert "".join(pieces) == text
            assert max(map(len, pieces)) <= 20
            assert len(pieces) > 2

    def test_pieces_begin_where_words_do(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(documents_module, "PIECE", 20)
        (tmp_path / "a.jsonl").write_text(json.dumps({"text": "word " * 50}))
        [document] = open_texts(TextSource(location=str(tmp_path / "a.jsonl")))
        first, *others = document
        assert first == "word word word word"
        assert {piece[0] for piece in others} == {" "}

    def test_row_groups_before_a_damaged_one_are_read(self, tmp_path: Path) -> None:
        path = write_parquet(tmp_path / "a.parquet", [f"{n} " * 2000 for n in range(2000)], row_group_size=100)
        data = bytearray(path.read_bytes())
        data[len(data) // 2 : -200_000] = bytes(len(data) - len(data) // 2 - 200_000)
        path.write_bytes(data)
        documents = open_texts(TextSource(location=str(path)))
        for n in range(1000):
            assert next(next(documents)).startswith(f"{n} ")
        with pytest.raises(BadInput, match=r"a\.parquet': is not a whole parquet file, .* after row 1024"):
            list(documents)

    def test_no_more_is_read_than_needed(
        self, s3_server: S3Server, s3_url: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Of 40 MB in S3, a block; of a second file, nothing."""
        monkeypatch.setattr(patient_file, "BLOCK_BYTES", 2**20)
        fs, root = fsspec.url_to_fs(s3_url)
        line = json.dumps({"text": "word " * 2000}).encode() + b"\n"
        fs.pipe({f"{root}/{name}.jsonl": line * 4000 for name in "ab"})
        with faulty_proxy(s3_server.endpoint) as proxy:
            monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
            fsspec.filesystem("s3").clear_instance_cache()
            documents = open_texts(TextSource(location=s3_url))
            assert "".join(next(documents)) == "word " * 2000
            got = [request for request in proxy.requests if request.startswith("GET") and ".jsonl" in request]
        fsspec.filesystem("s3").clear_instance_cache()
        assert len(got) == 1
        assert "/a.jsonl" in got[0]

    @pytest.fixture
    def proxy(self, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
        monkeypatch.setattr(retry, "FIRST_WAIT_SECONDS", 0.02)
        with faulty_proxy(s3_server.endpoint) as proxy:
            fsspec.filesystem("s3").clear_instance_cache()
            yield proxy
        fsspec.filesystem("s3").clear_instance_cache()

    @pytest.mark.parametrize("fault", ["drop", "truncate"])
    def test_passing_faults_pass(
        self,
        proxy: FaultyProxy,
        s3_url: str,
        fault: str,
        monkeypatch: pytest.MonkeyPatch,
        caplog: pytest.LogCaptureFixture,
    ) -> None:
        monkeypatch.setattr(patient_file, "BLOCK_BYTES", 2**16)
        fs, root = fsspec.url_to_fs(s3_url)
        wanted = [f"{n} " * 1500 for n in range(1000)]
        fs.pipe(f"{root}/a.jsonl", "".join(json.dumps({"text": text}) + "\n" for text in wanted).encode())
        fs.pipe(f"{root}/b.parquet", pq_bytes(wanted))
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.endpoint)
        fs.clear_instance_cache()
        for name in ("a.jsonl", "b.parquet"):
            documents = open_texts(TextSource(location=f"{s3_url}/{name}"))
            found = ["".join(next(documents))]
            proxy.spoil(7, fault, lambda request: request.startswith("GET"))  # more than s3fs itself stands
            with caplog.at_level(logging.WARNING, logger="tomograph.store"):
                found += ["".join(document) for document in documents]
            assert found == wanted
            assert proxy.faults_left == 0

    def test_lasting_faults_are_told(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(patient_file, "PATIENCE_SECONDS", 0.1)

        def lost() -> None:
            raise ConnectionResetError(104, "reset")

        with pytest.raises(TransientError, match=r"s3://bucket/a\.txt"):
            patient_file.persistently(lost, "s3://bucket/a.txt", "text.location")


def pq_bytes(values: list[str]) -> bytes:
    sink = pa.BufferOutputStream()
    pq.write_table(pa.table({"text": values}), sink, row_group_size=20, compression="none", use_dictionary=False)
    return sink.getvalue().to_pybytes()
