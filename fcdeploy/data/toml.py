"""TOML as tables, or one sentence: whatever a text does to the parser, it is the text that is wrong."""

import tomllib

from fcdeploy.errors import InputError


def table_from_toml(text: str | bytes, where: str, what: str = "") -> dict[str, object]:
    """Parse TOML; ``where`` names its origin in messages, ``what`` says what should be there.

    Raises InputError for bytes that are no text, a text that is no TOML, nesting deeper than Python's stack, and a
    number of thousands of digits.
    """
    if isinstance(text, bytes):
        try:
            text = text.decode()
        except UnicodeDecodeError as error:
            if what:
                problem = f"is not a text file (byte {error.start}); {what} is TOML"
            else:
                problem = f"is not valid TOML (byte {error.start} is no text)"
            raise InputError(f"{where}: {problem}.") from error
    try:
        return tomllib.loads(text)
    except RecursionError as error:
        raise InputError(f"{where}: is not valid TOML (nested too deeply).") from error
    except ValueError as error:  # of which TOMLDecodeError is one; a number of too many digits gives another
        reason = str(error).split(";")[0].rstrip(".")
        raise InputError(f"{where}: is not valid TOML ({reason}).") from error
