"""What an input is known by afterwards: a hash of its weight files, which anybody can make again.

Up to 64 MB all of it, `sha256`: of a file what `sha256sum FILE` prints, of a folder what
`sha256sum *.safetensors | sha256sum` prints in it. Hashing a large model would take half as long as compressing
it, so of those a sample is taken, `sampled`: SHA-256 over, file by file in the order of their names, the size as
decimal text, a NUL, the first 65,536 bytes, and 4,096 bytes from each of 1,024 places, size · i / 1,024.
"""

from __future__ import annotations

from hashlib import sha256

from compressor.files.input_file import InputFile
from compressor.files.source import Source

_WHOLE, _CHUNK = 64 << 20, 1 << 20
_HEAD, _PIECE, _PLACES = 1 << 16, 4096, 1024

Identity = tuple[str, str]  # how it was made, and 64 hexadecimal digits


def unknown(source: Source) -> Identity:
    """The identity as long as nobody has looked, of the length that it will have."""
    return ("sampled" if source.nbytes > _WHOLE else "sha256"), "0" * 64


def identity_of(source: Source) -> Identity:
    """The hash of the container files of an input. InputError where one cannot be read."""
    # as they lie on the disk: an archive is read as the file that it stands for
    files = {part.name: part.file.as_stored() for part in sorted(source.files, key=lambda part: part.name)}
    kind, _ = unknown(source)
    if kind == "sampled":
        total = sha256()
        for file in files.values():
            total.update(f"{file.size}\0".encode() + file.read(0, min(_HEAD, file.size)))
            total.update(_sample(file))
        return kind, total.hexdigest()
    hashes = {name: _whole(file) for name, file in files.items()}
    if source.kind != "folder":
        return kind, next(iter(hashes.values()))
    lines = "".join(f"{digest}  {name}\n" for name, digest in hashes.items())
    return kind, sha256(lines.encode(errors="surrogateescape")).hexdigest()


def _sample(file: InputFile) -> bytearray:
    starts = [file.size * place // _PLACES for place in range(_PLACES)]
    found = bytearray(sum(min(_PIECE, file.size - start) for start in starts))
    runs, left = [], memoryview(found)
    for start in starts:
        run, left = left[: min(_PIECE, file.size - start)], left[min(_PIECE, file.size - start) :]
        runs.append((run, start))
    file.read_runs(runs)  # all at once: of a file that is fetched they are many requests
    return found


def _whole(file: InputFile) -> str:
    total = sha256()
    for start in range(0, file.size, _CHUNK):
        total.update(file.read(start, min(_CHUNK, file.size - start)))
    return total.hexdigest()
