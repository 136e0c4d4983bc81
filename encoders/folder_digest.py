"""The identity of a model folder: a digest over the files that decide its vectors."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from encoders.model_folder import read_model_folder

# A file too many costs a recomputation; a file too few would serve another model's vectors. So: every file of
# a kind that transformers may read (configuration, tokenizer, weights), whatever its name.
SUFFIXES = (".json", ".safetensors", ".txt", ".model", ".spm")


def folder_digest(folder: Path) -> str:
    """SHA-256 (hex) over names and contents of the files an encoder reads, here and in the modules' folders.

    Neither the folder's place nor its other files (README, other formats of the weights) matter.
    Fatal: as `read_model_folder`.
    """
    return files_digest({path.relative_to(folder).as_posix(): path for path in _files(folder)})


def files_digest(files: Mapping[str, Path]) -> str:
    """SHA-256 (hex) over the contents of files and the names given to them."""
    whole = hashlib.sha256()
    for name in sorted(files):
        with files[name].open("rb") as file:
            content = hashlib.file_digest(file, "sha256").hexdigest()
        # Neither a name nor a digest holds a newline or a NUL, so no two folders write the same bytes.
        whole.update(f"{name}\0{content}\n".encode())
    return whole.hexdigest()


def _files(folder: Path) -> set[Path]:
    folders = {folder, *read_model_folder(folder).folders}
    return {
        path
        for each in folders
        if each.is_dir()
        for path in each.iterdir()
        if path.suffix in SUFFIXES and not path.name.startswith(".") and path.is_file()
    }
