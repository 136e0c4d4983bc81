"""Laws of `encode-file`: every post has its row, however often the run is ended, and whoever reads the file."""

import json
import re
import signal
from pathlib import Path

import numpy as np
import pytest
from pyarrow import parquet

from encoders import load_encoder
from manyray.file_encoding import SEGMENT_POSTS, encode_file
from schemas.errors import Fatal
from schemas.vectors import VectorForm
from streams.settings import Settings, load_settings
from tests.test_cli import launch, manyray, told
from tests.waiting import wait_until

TEXTS = ["one", "two", "one", "thr\u00e9e", "thre\u0301e", "four " * 50]


@pytest.fixture
def settings() -> Settings:
    """The hash encoder of 16 dims."""
    return load_settings(model="hash:16")


def encode(settings: Settings, source: Path, target: Path, **how: str | None) -> str:
    """Encode a file as its suffix says."""
    choices = {"layout": None, "id_field": None, "text_field": "text", **how}
    return encode_file(settings, str(source), target, **choices)  # type: ignore[arg-type]


def expected(texts: list[str]) -> np.ndarray:
    """The hash encoder's vectors of normalised texts."""
    encoder = load_encoder("hash:16")
    return encoder.encode(encoder.tokenise([text.replace("e\u0301", "\u00e9") for text in texts]), 64).vectors


def written(folder: Path, name: str) -> Path:
    """The texts in a file of a kind."""
    path = folder / name
    rows = [{"id": f"p{number}", "text": text} for number, text in enumerate(TEXTS)]
    if path.suffix == ".txt":
        path.write_text("\n".join(TEXTS))
    elif path.suffix == ".jsonl":
        path.write_text("\n".join(json.dumps(row) for row in rows))
    elif path.suffix == ".csv":
        path.write_text("id,text\n" + "\n".join(f"{row['id']},{row['text']}" for row in rows))
    else:
        import pyarrow

        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


@pytest.mark.parametrize("source", ["in.txt", "in.jsonl", "in.csv", "in.parquet"])
@pytest.mark.parametrize("target", ["out.npy", "out.jsonl", "out.parquet"])
def test_every_kind_of_file_holds_the_same_vectors(settings, tmp_path, source, target):
    """Posts in their order with their ids, of what the pipeline would encode; equal contents are computed once."""
    told = encode(settings, written(tmp_path, source), tmp_path / target)
    assert told.startswith("encoded 6 posts (4 computed, 0 rejected) into ")
    ids = [f"in-{number}" if source == "in.txt" else f"p{number - 1}" for number in range(1, 7)]
    path = tmp_path / target
    if target == "out.npy":
        vectors = np.load(path, allow_pickle=False)
    elif target == "out.jsonl":
        rows = [json.loads(line) for line in path.read_text().splitlines()]
        assert [row["id"] for row in rows] == ids
        vectors = np.array([row["vector"] for row in rows], np.float32)
    else:
        table = parquet.read_table(path)
        assert table["id"].to_pylist() == ids
        assert table.schema.metadata[b"manyray.output"] == b"float32"
        vectors = np.array(table["vector"].to_pylist(), np.float32)
    assert np.array_equal(vectors, expected(TEXTS))
    assert sorted(one.name for one in tmp_path.iterdir()) == sorted([source, target])


@pytest.mark.parametrize("output", ["float16", "int8", "binary"])
@pytest.mark.parametrize("target", ["out.npy", "out.jsonl", "out.parquet"])
def test_vectors_are_stored_as_the_spec_says(tmp_path, output, target):
    """The same bytes that records on the topic hold."""
    spec = tmp_path / "spec.toml"
    spec.write_text(f'model = "hash:16"\noutput = "{output}"\n' + ("scale = 0.004\n" if output == "int8" else ""))
    encode(load_settings(model=str(spec)), written(tmp_path, "in.txt"), tmp_path / target)
    stored = VectorForm(output, 0.004).pack(expected(TEXTS))
    path = tmp_path / target
    if target == "out.npy":
        found = np.load(path, allow_pickle=False)
        assert found.dtype == stored.dtype
    elif target == "out.jsonl":
        found = np.array([json.loads(line)["vector"] for line in path.read_text().splitlines()])
    else:
        found = np.array(parquet.read_table(path)["vector"].to_pylist())
    assert np.array_equal(found, stored)


def test_a_bad_post_has_no_vector_and_its_neighbours_have_theirs(tmp_path):
    """It is listed with its row and reason; its row of .npy is NaN, or 0 where a type has none, and others lack it."""
    source = tmp_path / "in.jsonl"
    texts = ["one", "", "x" * 100, "two"]
    source.write_text("\n".join(json.dumps({"text": text}) for text in texts))
    settings = load_settings(model="hash:16", text_bytes_max=99)
    told = encode(settings, source, tmp_path / "out.npy")
    assert told.startswith("encoded 4 posts (2 computed, 2 rejected)")
    vectors = np.load(tmp_path / "out.npy")
    assert np.isnan(vectors).all(axis=1).tolist() == [False, True, True, False]
    assert np.array_equal(vectors[[0, 3]], expected(["one", "two"]))
    listed = [json.loads(line) for line in (tmp_path / "out.npy.rejected.jsonl").read_text().splitlines()]
    assert [(one["row"], one["id"], one["reason"]) for one in listed] == [
        (1, "in.jsonl-2", "no_text"),
        (2, "in.jsonl-3", "text_too_long"),
    ]
    encode(settings, source, tmp_path / "out.parquet")
    assert parquet.read_table(tmp_path / "out.parquet")["id"].to_pylist() == ["in.jsonl-1", "in.jsonl-4"]
    binary = tmp_path / "binary.toml"
    binary.write_text('model = "hash:16"\noutput = "binary"')
    encode(load_settings(model=str(binary), text_bytes_max=99), source, tmp_path / "bits.npy")
    assert np.load(tmp_path / "bits.npy")[1:3].tolist() == [[0, 0], [0, 0]]


def test_no_posts_are_an_empty_file(settings, tmp_path):
    """Of the right width."""
    (tmp_path / "in.txt").write_text("\n\n")
    encode(settings, tmp_path / "in.txt", tmp_path / "out.npy")
    assert np.load(tmp_path / "out.npy").shape == (0, 16)


def test_a_run_that_is_killed_goes_on_where_it_was(tmp_path):
    """kill -9 in the middle, three times: the file is that of a run that nobody ended, and what was kept is used."""
    count = 40 * SEGMENT_POSTS + 7
    (tmp_path / "in.txt").write_text("\n".join(f"post {number}" for number in range(count)))
    command = ("encode-file", "in.txt", "out.npy", "--model", "hash:16")
    kept = 0
    for life in range(1, 4):
        process = launch(*command, cwd=tmp_path)
        wait_until(
            (tmp_path / "out.npy.part" / f"{kept + 2:06}.json").exists,
            f"segments are kept in life {life}",
            lambda: None,
        )
        process.send_signal(signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
        kept = len(list((tmp_path / "out.npy.part").glob("[0-9]*.json")))
        assert kept > 2 * life
    assert not (tmp_path / "out.npy").exists()
    done = manyray(*command, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    summary = rf"encoded {count:,} posts \({count:,} computed, 0 rejected, {kept * SEGMENT_POSTS:,} kept from before\)"
    assert re.match(summary, done.stdout), done.stdout
    again = manyray("encode-file", "in.txt", "whole.npy", "--model", "hash:16", cwd=tmp_path)
    assert again.returncode == 0, again.stderr
    assert (tmp_path / "out.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()
    assert not (tmp_path / "out.npy.part").exists()


def begun(settings: Settings, tmp_path: Path) -> Path:
    """A run that was ended after its first segment: the target of it."""
    source, target = tmp_path / "in.txt", tmp_path / "out.npy"
    source.write_text("\n".join(f"post {number}" for number in range(SEGMENT_POSTS)) + "\n")
    encode(settings, source, target)
    target.unlink()
    with source.open("a") as file:
        file.write("one more\n")
    source.write_bytes(source.read_bytes() + b"\xff\n")
    with pytest.raises(Fatal, match="is not UTF-8"):
        encode(settings, source, target)
    assert (tmp_path / "out.npy.part" / "000000.json").exists()
    source.write_bytes(source.read_bytes()[:-2])
    return target


def test_what_was_done_before_an_error_is_kept(settings, tmp_path):
    """A line that stops the reading costs the segment it is in: corrected, the run goes on behind what is kept."""
    target = begun(settings, tmp_path)
    assert f"{SEGMENT_POSTS:,} kept from before" in encode(settings, tmp_path / "in.txt", target)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (
            lambda source: source.write_text(source.read_text().replace("post 9\n", "post nine\n")),
            "posts are not those",
        ),
        (lambda source: source.write_text("post 0\n"), "posts are not those"),
        (lambda source: source.write_text(""), "there are fewer posts than"),
    ],
    ids=["one changed", "fewer", "none"],
)
def test_another_input_is_not_mixed_with_what_was_kept(settings, tmp_path, change, said):
    """Vectors of a run that was ended belong to its posts, in their order: the folder to remove is named."""
    target = begun(settings, tmp_path)
    change(tmp_path / "in.txt")
    with pytest.raises(Fatal, match=rf"{said}.*out\.npy\.part.*remove it"):
        encode(settings, tmp_path / "in.txt", target)


def test_another_version_is_not_mixed_with_what_was_kept(settings, tmp_path):
    """Nor another limit of texts, or field."""
    target = begun(settings, tmp_path)
    for other, name in (
        (load_settings(model="hash:32"), "version"),
        (load_settings(model="hash:16", text_bytes_max=9), "text_bytes_max"),
    ):
        with pytest.raises(Fatal, match=f"another {name}: remove it"):
            encode(other, tmp_path / "in.txt", target)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("in.txt", "out.txt"), r"out\.txt is of no known kind: name it \.npy, \.parquet or \.jsonl"),
        (("in.txt", "there.npy"), r"there\.npy is there already: remove it, or name another"),
        (("none.txt", "out.npy"), r"none\.txt cannot be read: No such file"),
        (("in.txt", "no/folder/out.npy"), r"no/folder/out\.npy\.part cannot be"),
        (("bad.parquet", "out.npy"), r"bad\.parquet is not Parquet that can be read"),
        (("in.txt", "out.npy", "--model", "none.toml"), r"none\.toml cannot be read"),
        (("in.jsonl", "out.npy", "--id-field", "key"), "no field key"),
    ],
)
def test_what_cannot_be_is_told_in_one_line(tmp_path, arguments, said):
    """With the remedy; and nothing is left behind."""
    (tmp_path / "in.txt").write_text("one")
    (tmp_path / "there.npy").write_text("")
    (tmp_path / "bad.parquet").write_text("PAR1 but not really")
    (tmp_path / "no").write_text("a file")
    written(tmp_path, "in.jsonl")
    before = sorted(tmp_path.iterdir())
    model = () if "--model" in arguments else ("--model", "hash:16")
    done = manyray("encode-file", *arguments, *model, cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(said, told(done))
    assert [path for path in sorted(tmp_path.iterdir()) if path not in before] in ([], [tmp_path / "out.npy.part"])


def test_posts_come_from_stdin(tmp_path):
    """As for `publish`."""
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-m", "manyray", "encode-file", "-", "out.npy", "--model", "hash:16"],
        input="one\ntwo\n",
        cwd=tmp_path,
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.startswith("encoded 2 posts")
    assert np.array_equal(np.load(tmp_path / "out.npy"), expected(["one", "two"]))


def test_a_full_disk_keeps_what_is_done(small_disk):
    """One line that says so; with room again the run goes on."""
    filler, source = small_disk / "others", small_disk.parent / "in.txt"
    source.write_text("\n".join(f"post {number}" for number in range(3 * SEGMENT_POSTS)))
    target = small_disk / "out.npy"
    from tests.test_full_disk import fill

    fill(filler)
    with filler.open("r+b") as file:  # room for a segment of 16 dims and its ids, and not for three
        file.truncate(filler.stat().st_size - 700_000)
    command = ("encode-file", str(source), str(target), "--model", "hash:16")
    done = manyray(*command, cwd=small_disk.parent)
    assert done.returncode == 1
    assert "cannot be written (No space left on device): what is done is kept, run it again" in told(done)
    filler.unlink()
    done = manyray(*command, cwd=small_disk.parent)
    assert done.returncode == 0, done.stderr
    assert "kept from before" in done.stdout
    assert np.load(target).shape == (3 * SEGMENT_POSTS, 16)
