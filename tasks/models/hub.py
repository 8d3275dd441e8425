"""Names on the Hugging Face hub, by the user's own cache, token and offline settings."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from huggingface_hub import constants, hf_hub_download, snapshot_download
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from tasks.artifacts.retry import unreached
from tasks.errors import BadInput, TransientError
from tasks.models import files
from tasks.models.sources import Source


def fetch(source: Source, name: str) -> Path:
    """One small file of a repository, through the hub's cache."""
    with errors_of(source, name):
        return Path(hf_hub_download(source.location, name, revision=source.revision))


def commit_of(file: Path) -> str:
    """Commit that a fetched file belongs to: the cache keeps it in snapshots/COMMIT/."""
    return file.parts[len(file.parts) - file.parts[::-1].index("snapshots")]


def snapshot(source: Source, with_weights: bool = True) -> Path:
    """Folder with the files of a model that matter, all of one commit.

    Its weights may be incomplete when the hub cannot be reached and the cache holds a part of them.
    """
    if not with_weights:
        return settings(source, files.CONFIG)
    commit = commit_of(fetch(source, files.CONFIG))
    with errors_of(source, "its files"):
        folder = _download(source, commit, (*files.SETTINGS, *files.SAFETENSORS))
        if not files.weights(path.name for path in folder.iterdir()):
            folder = _download(source, commit, files.PICKLED)
    return folder


def settings(source: Source, name: str) -> Path:
    """Folder with the configuration and the tokenizer beside the file `name`, of one commit."""
    commit = commit_of(fetch(source, name))
    with errors_of(source, "its files"):
        return _download(source, commit, files.SETTINGS)


def _download(source: Source, commit: str, patterns: tuple[str, ...]) -> Path:
    in_subfolders = "*/*"
    ignored = [*(f"{prefix}*" for prefix in files.IGNORED_PREFIXES), in_subfolders]
    return Path(
        snapshot_download(source.location, revision=commit, allow_patterns=list(patterns), ignore_patterns=ignored)
    )


@contextmanager
def errors_of(source: Source, name: str) -> Iterator[None]:
    """Translate the hub's errors; the order matters, since some are kinds of others."""
    try:
        yield
    except HFValidationError as error:
        raise source.bad("is not a Hugging Face id", "write organization/name, or an existing path") from error
    except GatedRepoError as error:
        page = f"{constants.ENDPOINT}/{source.location}"
        raise source.bad(
            "the repository is gated and this account has no access to it",
            f"accept its conditions at {page}, then run `hf auth login` or set HF_TOKEN",
        ) from error
    except RepositoryNotFoundError as error:
        raise source.bad(
            "there is no such repository, or it is private",
            "check the spelling; for a private one run `hf auth login` or set HF_TOKEN",
        ) from error
    except RevisionNotFoundError as error:
        raise BadInput(
            f"{source.field.rpartition('.')[0]}.revision",
            source.revision,
            f"{source.location} has no such revision",
            "give an existing branch, tag or commit",
        ) from error
    except LocalEntryNotFoundError as error:
        if constants.is_offline_mode():
            raise source.bad(
                f"{name} cannot be had: not in the local cache, and HF_HUB_OFFLINE is set",
                "download it first, or unset HF_HUB_OFFLINE",
            ) from error
        if why := unreached(error):  # the client has waited for it
            raise source.bad(
                f"the hub at {constants.ENDPOINT} can't be reached: {why}",
                "check the network and HF_ENDPOINT, or set HF_HUB_OFFLINE=1 where the cache has it",
            ) from error
        raise TransientError(f"{source.location}: the hub cannot be reached ({error})") from error
    except EntryNotFoundError as error:
        raise source.bad(
            f"the repository has no {name}", "give a repository in transformers format, or hf://ORG/NAME/FILE.gguf"
        ) from error
    except OSError as error:  # server errors and lost connections, on which the client gave up
        raise TransientError(f"{source.location}: {error}") from error
