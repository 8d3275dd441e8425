"""Folders of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fsspec.implementations.local import LocalFileSystem
from xxhash import xxh3_128

from tasks.places.cache import file_digest
from tasks.places.place import Files, Place, Wanted, folders_in


@dataclass(frozen=True)
class Folder(Place):
    root: Path
    """`location`, unless that is a file in it."""

    def has(self, name: str) -> bool:
        return (self.root / name).is_file()

    def read(self, name: str) -> bytes:
        """Raises FileNotFoundError."""
        return (self.root / name).read_bytes()

    def folders(self, pattern: str, marker: str) -> list[str]:
        return folders_in(LocalFileSystem(), str(self.root), pattern, marker)

    def fetch(self, files: Files, folder: str = "") -> Path:
        """The folder as it is, whether or not the files are in it."""
        return self.root / folder

    def fingerprint(self, files: Files, folder: str = "") -> str:
        at = self.root / folder
        if isinstance(files, Wanted):
            files = files.among(path.name for path in at.iterdir() if path.is_file())
        digest = xxh3_128()
        for name in files:
            digest.update(f"{name}\0{file_digest(at / name)}\0".encode())
        return f"folder-{digest.hexdigest()}"
