"""Words from files and strangers, for messages; imports nothing, for processes that start often."""

from __future__ import annotations


def one_line(text: str) -> str:
    """``text`` for a message: what would end the line, or cannot be shown, is escaped."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else ascii(char)[1:-1] for char in text)
