"""Text as CSV that every reader takes apart as it was put together."""

import csv
import io
from collections.abc import Iterable

ENDS = "\r\n"  # a cell with either of these is quoted


class CsvText:
    """Rows as CSV, with LF behind each; ``take`` returns what was written since it was last called.

    The csv module alone, told to end lines with LF, leaves a cell with CR unquoted, and readers take it for two rows.
    """

    def __init__(self, delimiter: str = ",") -> None:
        self._text = io.StringIO(newline="")
        self._writer = csv.writer(self, delimiter=delimiter, lineterminator=ENDS)

    def write(self, line: str) -> None:
        """Take a line of the csv module."""
        self._text.write(line.removesuffix(ENDS) + "\n")

    def row(self, cells: Iterable[object]) -> None:
        self._writer.writerow(cells)

    def rows(self, rows: Iterable[Iterable[object]]) -> None:
        self._writer.writerows(rows)

    def take(self) -> str:
        text = self._text.getvalue()
        self._text.seek(0)
        self._text.truncate()
        return text
