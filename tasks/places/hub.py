"""Repositories of the Hugging Face hub, by the user's own cache, token and offline settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    DryRunError,
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tasks.artifacts.retry import unreached
from tasks.errors import BadInput, TransientError
from tasks.places.place import Files, Place, Wanted, join, parent


@dataclass(frozen=True)
class HubRepository(Place):
    """`location` is its id."""

    revision: str | None = None
    """Branch, tag or commit; the main branch when None."""

    def file(self, name: str) -> Path:
        """One file, through the hub's cache."""
        with errors_of(self, name):
            return Path(hf_hub_download(self.location, name, revision=self.revision))

    def read(self, name: str) -> bytes:
        return self.file(name).read_bytes()

    def folders(self, pattern: str, marker: str) -> list[str]:
        wanted = join(pattern, marker)
        with errors_of(self, wanted):
            try:
                listed = snapshot_download(self.location, revision=self.revision, allow_patterns=[wanted], dry_run=True)
                names = [file.filename for file in listed]
            except DryRunError:  # the hub cannot be reached: what the local cache has
                cached = Path(snapshot_download(self.location, revision=self.revision, allow_patterns=[wanted]))
                names = [path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file()]
        # the hub's wildcards match slashes too
        found = [name for name in names if name.count("/") == wanted.count("/") and fnmatchcase(name, wanted)]
        return sorted(parent(name, marker) for name in found)

    def fetch(self, files: Files, folder: str = "") -> Path:
        """What matters of a repository comes from one commit.

        Files may be missing when the hub cannot be reached and the cache holds a part of them.
        """
        if isinstance(files, Wanted):
            return self._fetch_wanted(files) / folder
        paths = [join(folder, name) for name in files]
        with errors_of(self, folder or "its files"):
            return Path(snapshot_download(self.location, revision=self.revision, allow_patterns=paths)) / folder

    def _fetch_wanted(self, wanted: Wanted) -> Path:
        commit = _commit_of(self.file(wanted.first))
        with errors_of(self, "its files"):
            folder = self._download(commit, wanted, (*wanted.every, *(wanted.either[0] if wanted.either else ())))
            for n, patterns in enumerate(wanted.either[1:], start=1):
                names = [path.name for path in folder.iterdir()]
                if any(wanted.matching(names, earlier) for earlier in wanted.either[:n]):
                    break
                folder = self._download(commit, wanted, patterns)
        return folder

    def _download(self, commit: str, wanted: Wanted, patterns: tuple[str, ...]) -> Path:
        in_subfolders = "*/*"
        ignored = [*(f"{prefix}*" for prefix in wanted.ignored_prefixes), in_subfolders]
        return Path(
            snapshot_download(self.location, revision=commit, allow_patterns=list(patterns), ignore_patterns=ignored)
        )

    def fingerprint(self, files: Files, folder: str = "") -> str:
        """Of named files, it also names their folder."""
        if isinstance(files, Wanted):
            return f"hub-{_commit_of(self.file(files.first))}"
        with errors_of(self, folder or "its files"):
            file = Path(hf_hub_download(self.location, join(folder, files[0]), revision=self.revision))
        return f"hub-{_commit_of(file)}-{folder}"


def _commit_of(file: Path) -> str:
    """Commit that a fetched file belongs to: the cache keeps it in snapshots/COMMIT/."""
    return file.parts[len(file.parts) - file.parts[::-1].index("snapshots")]


@contextmanager
def errors_of(place: HubRepository, name: str) -> Iterator[None]:
    """Translate the hub's errors; the order matters, since some are kinds of others."""
    try:
        yield
    except HFValidationError as error:
        raise place.bad("is not a Hugging Face id", "write organization/name, or an existing path") from error
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{place.location}"
        raise place.bad(
            "the repository is gated and this account has no access to it",
            f"accept its conditions at {page}, then run `hf auth login` or set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise place.bad(
            "there is no such repository, or it is private",
            "check the spelling; for a private one run `hf auth login` or set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise BadInput(
            f"{place.field.rpartition('.')[0]}.revision",
            place.revision,
            f"{place.location} has no such revision",
            "give an existing branch, tag or commit",
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.is_offline_mode():
            raise place.bad(
                f"{name} cannot be had: not in the local cache, and HF_HUB_OFFLINE is set",
                "download it first, or unset HF_HUB_OFFLINE",
            ) from error
        if why := unreached(error):  # the client has waited for it
            raise place.bad(
                f"the hub at {constants.ENDPOINT} can't be reached: {why}",
                "check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 where the cache has it",
            ) from error
        raise TransientError(f"{place.location}: the hub cannot be reached ({error})") from error
    except EntryNotFoundError as error:
        raise place.bad(
            f"the repository has no {name}", "give a repository in transformers format, or hf://ORG/NAME/FILE.gguf"
        ) from error
    except OSError as error:  # server errors and lost connections, on which the client gave up
        raise TransientError(f"{place.location}: {error}") from error
