"""Settings of the page."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from medmvl.errors import RecipeError

#: Beginning of the paths of the page's files and requests.
PREFIX = "/page"
#: Languages of the page: each has a file of words in `static/words`.
LANGUAGES = ("en", "zh")


@dataclass(frozen=True)
class PageSettings:
    """Who may use the page, and how much of the machine one visitor may take.

    Attributes:
        passwords: any of them opens the page; empty: no password is asked for.
        visitors: most sessions at the same time.
        upload_mib: largest sum of a visitor's uploads.
        files: most files of a visitor.
        lost_seconds: a session ends if its page has sent nothing for this time (an open page sends a sign of life).
        unused_minutes: a session ends if nobody has used it for this time.
        analyses: most explanations and choices that are computed or wait at the same time.
        new_tokens: longest answer in tokens.
        preferences: JSON Lines file to which preferences between two models are added; None: they are kept for the
            visitor's export only.
        abstain_below: confidence below which no answer is shown, a number or "stored"; None: every answer is shown.
    """

    passwords: tuple[str, ...] = ()
    visitors: int = 128
    upload_mib: int = 2048
    files: int = 5000
    lost_seconds: float = 180.0
    unused_minutes: float = 60.0
    analyses: int = 32
    new_tokens: int = 512
    preferences: Path | None = None
    abstain_below: float | str | None = None


def read_passwords(path: Path) -> tuple[str, ...]:
    """Return the passwords in a file, one a line.

    Raises:
        RecipeError: if it cannot be read, holds none, or one is shorter than 8 characters.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise RecipeError(f"The password file {path} cannot be read: {reason}.") from None
    found = tuple(line for line in lines if line)
    if not found or any(len(password) < 8 for password in found):
        raise RecipeError(f"{path} must hold a password of 8 characters or more, one a line.")
    return found
