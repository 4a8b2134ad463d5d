"""File names in another Unicode normalisation: é as one character (NFC) in a list, and as two (NFD) on the disk."""

import os
import unicodedata

Listings = dict[bytes, dict[str, bytes]]


def same_name(path: bytes, listings: Listings) -> bytes | None:
    """Return the path that exists and is ``path`` but for the normalisation of its names, if there is one.

    Each folder on the way is taken as it is written where that exists. listings: of folders that were read before, to
    be passed again; the names of each by their NFC. Of several names that are alike, the first in the order of bytes.
    """
    if path.isascii():
        return None
    found = b"/" if path.startswith(b"/") else b""
    for name in path.split(b"/"):
        if not name:
            continue
        exact = os.path.join(found, name)
        if os.path.lexists(exact):
            found = exact
            continue
        try:
            wanted = unicodedata.normalize("NFC", name.decode())
        except UnicodeDecodeError:
            return None
        folder = found or b"."
        if folder not in listings:
            listings[folder] = _names_in(folder)
        other = listings[folder].get(wanted)
        if other is None:
            return None
        found = os.path.join(found, other)
    return found


def _names_in(folder: bytes) -> dict[str, bytes]:
    names: dict[str, bytes] = {}
    try:
        entries = sorted(os.listdir(folder), reverse=True)
    except OSError:
        return names
    for entry in entries:
        if not entry.isascii():
            try:
                names[unicodedata.normalize("NFC", entry.decode())] = entry
            except UnicodeDecodeError:
                continue
    return names
