"""What reading a NumPy file ends in when its bytes are damaged, or were made to do harm."""

import errno
import tokenize
import zipfile
import zlib

LONGEST_REASON = 200  # characters
DAMAGED = (
    ValueError,
    OSError,
    EOFError,
    KeyError,
    SyntaxError,
    TypeError,
    OverflowError,
    RuntimeError,  # an archive with a password, compressed in a way that zipfile does not know; a header too deep
    MemoryError,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


def reason_of(error: Exception) -> str:
    """Return the first line of what an error says, no longer than a sentence, without its full stop."""
    if isinstance(error, OSError) and error.errno == errno.ENODEV:
        return "its file system cannot map files into memory; copy it to a local disk"
    return (str(error).splitlines() or [type(error).__name__])[0][:LONGEST_REASON].rstrip(".")
