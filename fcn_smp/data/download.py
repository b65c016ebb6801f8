"""Large files from servers that drop the connection, have moved away or send something else."""

import hashlib
import re
import time
from collections.abc import Callable, Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from fcn_smp.errors import UserError
from fcn_smp.files import named

TIMEOUT = 30.0
"""Seconds without an answer after which a server is given up."""
PAUSES: Sequence[float] = (1, 4, 16)
"""Seconds to wait before each further try of one address; anew whenever a try got further than all before it."""
CHUNK = 1 << 18

Progress = Callable[[str, int, int | None, str], None]
"""Told of a step: what is done, how much of how much (None: unknown), and of what, "bytes" or "files"."""


class _UnavailableError(Exception):
    """A server does not give what it is asked for; ``final``: nor would it later."""

    def __init__(self, error: Exception | str, *, final: bool = False) -> None:
        reason = getattr(error, "reason", None) or str(error) or type(error).__name__
        code = f"{error.code} " if isinstance(error, HTTPError) else ""
        super().__init__(" ".join(f"{code}{reason}".split()))
        self.final = final


def download(urls: Sequence[str], target: Path, checksums: Sequence[str], progress: Progress) -> None:
    """Download a file from the first of several addresses that gives it whole.

    What has arrived lies in ``<target>.part``, where an interrupted download goes on, until its checksum is right.

    Args:
        urls: Addresses of the same file.
        target: Where the file is to lie.
        checksums: MD5 checksums that it may have.
        progress: Told of the bytes that are there.

    Raises:
        UserError: None of the addresses gives the file.
        OSError: The file cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(f"{target.name}.part")
    failures = []
    for url in urls:
        failure = _download_from(url, part, checksums, progress)
        if failure is None:
            part.replace(target)
            return
        failures.append(f"{url} ({failure})")
    kept = "; the same command goes on where this one stopped" if part.exists() else ""
    raise UserError(f"{target.name} cannot be downloaded from {' nor from '.join(failures)}{kept}.")


def md5(path: Path, progress: Progress) -> str:
    """Return the MD5 checksum of a file."""
    digest, done, total = hashlib.md5(usedforsecurity=False), 0, path.stat().st_size
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
            done += len(chunk)
            progress(f"checking {path.name.removesuffix('.part')}", done, total, "bytes")
    return digest.hexdigest()


def _download_from(url: str, part: Path, checksums: Sequence[str], progress: Progress) -> str | None:
    """Try one address until the file is whole, and return what is wrong with it, or None."""
    furthest = _size(part)
    begun_before, pauses = furthest > 0, iter(PAUSES)
    while True:
        try:
            _fetch(url, part, progress)
            if md5(part, progress) in checksums:
                return None
            part.unlink()
            failure = "another file, its checksum is wrong"
            if not begun_before:
                return failure
            begun_before = False  # an earlier beginning may be what is wrong: try once more without it
        except _UnavailableError as error:
            failure = str(error)
            if error.final:
                return failure
        if _size(part) > furthest:
            furthest, pauses = _size(part), iter(PAUSES)
        pause = next(pauses, None)
        if pause is None:
            return failure
        time.sleep(pause)


def _fetch(url: str, part: Path, progress: Progress) -> None:
    """Add to a part what it lacks, or start it anew if the server does not give the rest alone."""
    begun = _size(part)
    response = _ask(url, begun)
    if response is None:
        return
    with response:
        if response.status != 206:
            begun = 0
        length = response.headers.get("Content-Length")
        total = begun + int(length) if length and length.isdecimal() else None
        # Errors of the network are no OSError here, so that what is named is an error of the disk.
        with named(part), part.open("ab" if begun else "wb") as file:
            for chunk in _chunks(response):
                file.write(chunk)
                begun += len(chunk)
                progress(f"downloading {part.stem}", begun, total, "bytes")
    if total is not None and begun < total:
        raise _UnavailableError(f"the connection ended after {begun:,} of {total:,} bytes")


def _ask(url: str, begun: int) -> HTTPResponse | None:
    """Ask for what lies beyond the first ``begun`` bytes; None if there is nothing more."""
    headers = {"User-Agent": "fcn-smp"} | ({"Range": f"bytes={begun}-"} if begun else {})
    try:
        response: HTTPResponse = urlopen(Request(url, headers=headers), timeout=TIMEOUT)
    except HTTPError as error:
        error.close()
        if error.code == 416 and begun:
            return None
        raise _UnavailableError(error, final=error.code < 500 and error.code not in (408, 429)) from error
    except (OSError, HTTPException) as error:
        raise _UnavailableError(error) from error
    start = re.match(r"bytes (\d+)-", response.headers.get("Content-Range", ""))
    if response.status == 206 and (not start or int(start[1]) != begun):
        response.close()
        raise _UnavailableError("it answers with another part than it is asked for", final=True)
    return response


def _chunks(response: HTTPResponse) -> Iterator[bytes]:
    while True:
        try:
            chunk = response.read1(CHUNK)
        except (OSError, HTTPException) as error:
            raise _UnavailableError(error) from error
        if not chunk:
            return
        yield chunk


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0
