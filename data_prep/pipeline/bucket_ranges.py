"""Files in a bucket that are read in parts: for a clip, only its own part and the headers.

This process keeps some blocks for later reads.
"""

import collections
import io

from cavmae_sync_jax.utils.buckets import bucket_files

BLOCK = 2**22  # bytes of a request: most clips of ten seconds are one
KEPT = 16  # blocks
# Fields that change with each version of an object, as several kinds of buckets name them.
_VERSIONS = ("generation", "etag", "ETag", "mtime", "LastModified", "created")


_blocks: collections.OrderedDict[tuple[str, str, int], bytes] = collections.OrderedDict()


class BucketFile:
    """A file in a bucket, as it is when this is made.

    `fault` is why the first part did not come that did not, which FFmpeg takes for the file's end.
    """

    def __init__(self, path: str):
        """Asks for the file's size and version.

        Raises:
          FileNotFoundError: it is not there.
          ImportError: an extra is missing.
        """
        files, name = bucket_files(path)
        about = files.info(name)
        if about.get("type") == "directory":
            raise FileNotFoundError(path)
        self.path, self.size = path, int(about["size"])
        self.version = str([about.get(key) for key in ("size", *_VERSIONS)])
        self.fault: Exception | None = None

    def open(self) -> "RangedFile":
        """Opens it as any file."""
        return RangedFile(self)

    def block(self, index: int) -> bytes:
        """Returns a block, from memory if it is there, else from the bucket.

        Raises:
          OSError: it does not come.
        """
        key = self.path, self.version, index
        if key not in _blocks:
            _blocks[key] = self._fetched(index * BLOCK)
            while len(_blocks) > KEPT:
                _blocks.popitem(last=False)
        _blocks.move_to_end(key)
        return _blocks[key]

    def _fetched(self, begin: int) -> bytes:
        end = min(begin + BLOCK, self.size)
        try:
            files, name = bucket_files(self.path)
            data = files.cat_file(name, start=begin, end=end)
            if len(data) != end - begin:
                raise OSError(f"{len(data)} bytes came instead of {end - begin}")
        except Exception as error:  # each bucket has its own
            self.fault = self.fault or error
            raise OSError(f"{self.path} could not be read from its bucket: {error}") from error
        return data


class RangedFile(io.RawIOBase):
    """An open `BucketFile`, as far as FFmpeg needs one."""

    def __init__(self, file: BucketFile):
        """Begins at its first byte."""
        self.name, self._file, self._position = file.path, file, 0

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Where the next byte comes from."""
        return self._position

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Goes to a place, as any file does."""
        base = {io.SEEK_SET: 0, io.SEEK_CUR: self._position, io.SEEK_END: self._file.size}
        self._position = max(0, base[whence] + offset)
        return self._position

    def read(self, size: int = -1) -> bytes:
        """Returns up to so many bytes, none only at the end.

        Raises:
          OSError: they do not come.
        """
        if self._position >= self._file.size or size == 0:
            return b""
        index, begin = divmod(self._position, BLOCK)
        data = self._file.block(index)[begin : BLOCK if size < 0 else begin + size]
        self._position += len(data)
        return data
