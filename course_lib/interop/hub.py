"""Checkpoints from the Hugging Face hub: fetched once, and compared with the hub's checksums.

`huggingface_hub` keeps whole files in its cache, asks for the rest of a file when the connection
breaks, and removes a part that it cannot finish. It compares sizes but not contents, so this file
does: SHA-256 for what the hub keeps in its large-file store, git's blob id for the rest.
"""

import errno
import hashlib
from fnmatch import fnmatch
from pathlib import Path

from course_lib.errors import CourseError, optional

FILES = ("*.json", "*.safetensors", "*.txt")  # nothing pickled


def download(repository: str, revision: str | None = None) -> Path:
    """A checkpoint of the hub as a local folder, in the cache that other tools use as well.

    A second call fetches only what is missing. Without a connection it takes what the cache has.

    Args:
        repository: such as "openai-community/gpt2".
        revision: branch, tag or commit.

    Raises:
        CourseError: `huggingface_hub` is not installed, no such repository, a licence to accept or
            a token missing, no connection, a full disk, a file that is not what the hub has.
    """
    hub = optional("huggingface_hub")
    wanted = {"revision": revision, "allow_patterns": list(FILES)}
    try:
        info = hub.HfApi().model_info(repository, revision=revision, files_metadata=True)
    except Exception as error:  # besides its own, those of the network library of its version
        try:  # what the cache holds was compared when it came
            return Path(hub.snapshot_download(repository, **wanted, local_files_only=True))
        except Exception:
            raise _explained(hub, repository, error) from None
    try:
        folder = Path(hub.snapshot_download(repository, **wanted))
    except Exception as error:
        raise _explained(hub, repository, error) from None
    if folder.name != info.sha:
        raise CourseError(f"{repository} changed while it was downloaded: call again")
    for file in info.siblings:
        if any(fnmatch(file.rfilename, pattern) for pattern in FILES):
            _compare(folder / file.rfilename, file.lfs and file.lfs.sha256, file.blob_id)
    return folder


def _compare(path: Path, sha256: str | None, blob_id: str) -> None:
    """Remove a file whose content is not the hub's, and raise."""
    start = hashlib.sha256() if sha256 else hashlib.sha1(b"blob %d\0" % path.stat().st_size)
    with path.open("rb") as file:
        found = hashlib.file_digest(file, lambda: start).hexdigest()
    if found != (sha256 or blob_id):
        path.resolve().unlink()  # the content, which the folder only links to
        path.unlink(missing_ok=True)
        raise CourseError(
            f"{path.name} is not the file that the hub has (wrong checksum {found[:12]}…): it was "
            f"damaged on its way and is removed now; call again to fetch it once more"
        )


def _explained(hub, repository: str, error: Exception) -> CourseError:
    """What went wrong, and what to do about it."""
    if isinstance(error, hub.errors.GatedRepoError):
        return CourseError(
            f"{repository} asks you to accept its licence first: do so on its page, then sign in "
            f"with `hf auth login` or set HF_TOKEN"
        )
    if isinstance(error, (hub.errors.RepositoryNotFoundError, hub.errors.RevisionNotFoundError)):
        return CourseError(
            f"no folder {repository!r} here, and the hub has no such repository or revision: check "
            f"the name, and sign in with `hf auth login` if it is private"
        )
    if getattr(error, "errno", None) == errno.ENOSPC or "no space left" in str(error).lower():
        return CourseError(
            f"the disk is full, {repository} is not complete: make room or set HF_HOME to a larger "
            f"disk, then call again; whole files are kept, the part of one is removed"
        )
    reason = str(error).strip().split("\n")[0] or type(error).__name__
    return CourseError(
        f"cannot download {repository} ({reason}): check the connection, then call again; whole "
        f"files are kept"
    )
