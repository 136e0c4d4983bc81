"""Laws of `pin`: the file then names one exact encoder, and who has another is told."""

import json
import re
from pathlib import Path

import pytest

from encoders import load_encoder, model_spec, resolve_spec
from manyray.pinning import pin_spec
from schemas.errors import Fatal
from streams.settings import load_settings
from tests.test_cli import manyray, told


def pin(file: Path, calibrate: Path | None = None, model: str = "hash:64") -> str:
    """Pin with the settings' model, if the file is not there."""
    posts = None if calibrate is None else str(calibrate)
    return pin_spec(load_settings(model=model), file, posts, layout=None, text_field="text")


@pytest.fixture
def posts(tmp_path: Path) -> Path:
    """A file to calibrate with."""
    path = tmp_path / "posts.txt"
    path.write_text("\n".join(f"post {number}" for number in range(300)))
    return path


def test_a_new_file_is_begun_with_the_settings(tmp_path):
    """It then says what the settings said, so that its version is theirs, and its golden is the encoder's."""
    file = tmp_path / "mine.toml"
    version = resolve_spec("hash:64").version
    assert pin(file) == f"pinned version {version} in {file}: 64 dims, float32"
    spec = model_spec(str(file))
    assert spec.model == "hash:64"
    assert len(spec.golden) == 6
    assert load_encoder(str(file)).spec.version == version


def test_pinning_again_changes_nothing(tmp_path):
    """Golden is replaced, not added, and the other lines stay as they were, comments too."""
    file = tmp_path / "mine.toml"
    file.write_text('# mine\ngolden = [\n    "00", # old\n    "11",\n]\nmodel = "hash:64" # fast\noutput = "float16"')
    pin(file)
    first = file.read_text()
    pin(file)
    assert file.read_text() == first
    assert first.startswith("# mine\ngolden = [\n")
    assert first.endswith(']\nmodel = "hash:64" # fast\noutput = "float16"')


def test_the_scale_of_int8_comes_from_posts(tmp_path, posts):
    """One number for the version: the largest among them is not clipped; without posts a version of int8 is none."""
    file = tmp_path / "mine.toml"
    file.write_text('model = "hash:64"\noutput = "int8"\n')
    with pytest.raises(Fatal, match="output=int8 needs a scale"):
        pin(file)
    assert "golden" not in file.read_text()
    said = pin(file, posts)
    assert float(re.search(r"int8 keeps 300 posts to a mean cosine of (\S+)", said)[1]) > 0.9995
    encoder = load_encoder(str(file))
    vectors = encoder.encode(encoder.tokenise(posts.read_text().splitlines()), 64).vectors
    assert abs(vectors).max() / model_spec(str(file)).scale == pytest.approx(127 * 7 / 8)
    version = encoder.spec.version
    pin(file)
    assert resolve_spec(str(file)).version == version


def test_what_cannot_be_pinned_is_told(tmp_path, posts):
    """A name that is none of TOML, a scale for what has none, and posts that are none."""
    with pytest.raises(Fatal, match=r"spec\.txt is no name of a spec: name it \.toml"):
        pin(tmp_path / "spec.txt")
    with pytest.raises(Fatal, match="output=float32, which has no scale: set int8"):
        pin(tmp_path / "spec.toml", posts)
    assert not (tmp_path / "spec.toml").exists()
    (tmp_path / "spec.toml").write_text('model = "hash:64"\noutput = "int8"\n')
    posts.write_text("\n")
    with pytest.raises(Fatal, match="holds no posts"):
        pin(tmp_path / "spec.toml", posts)


def test_a_wrong_weight_file_never_serves(tmp_path):
    """The command line refuses at once, in one line that says by how much and what to do."""
    file = tmp_path / "mine.toml"
    assert manyray("pin", "mine.toml", "--model", "hash:64", cwd=tmp_path).returncode == 0
    golden = model_spec(str(file)).golden
    lines = json.dumps([one[::-1] for one in golden])
    file.write_text(f'model = "hash:64"\ngolden = {lines}\n')
    (tmp_path / "in.txt").write_text("one")
    done = manyray("encode-file", "in.txt", "out.npy", "--model", "mine.toml", cwd=tmp_path)
    assert done.returncode == 1
    assert re.search(r"vectors of golden: \d\d\.\d% of signs differ, and 3% may.*fetch the model again", told(done))
