"""Random damage to files: bits, cuts, lengths, splices, numbers at their bounds, odd texts, JSON values of other types."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from typing import Any

#: numbers at the bounds of common types
BOUNDS = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 2**63 - 1, 2**64 - 1)
#: texts in place of a number
NUMBERS = (
    "0", "-1", "-0", "1e999", "-1e999", "1e-400", "NaN", "Infinity", "null", "true", "0x10", "1_000", "007", "1" * 5000,
    "9223372036854775808", "4294967296", "2147483648", "65536", "0.1", "1e6", "'1'", '"1"', "[1]", "{}", "",
)  # fmt: skip
#: texts in place of a text
TEXTS = (
    "", " ", "\u0000", "\\u0000", "\\ud800", "a" * 300, "a" * 100_000, "../../etc/passwd", "/dev/zero", "{{ x }}", "{% for %}",
    "\u202eabc", "\u75c5\u4eba", "[/bold]", "[link=x]y[/link]", "<script>", "%s%n", "\\n", "\u001b[2J", "-", "nan", "CON", "~",
    "*", "!!python/object:os.system", "&a [*a]", "data:image/png;base64,AAAA", "http://a/b", "<image>", "<image3d>", "\ufeff",
)  # fmt: skip
#: values in place of any JSON value
VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 1e308, -1e308, 2**31, 2**63, 10**30, 0.5, float("nan"), float("inf"), "", "x", "0", [], {},
    [None], [[]], ["x"], [0], {"a": 1}, {"": None}, "a" * 1000, [1] * 200,
)  # fmt: skip
_NUMBER = re.compile(rb"-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?")
_STRING = re.compile(rb'"(?:[^"\\]|\\.)*"')

Mutator = Callable[[random.Random, bytes, bytes], bytes]


def flip_bits(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flip one to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4, 8)) if data else 0):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def flip_early_bits(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Flip one to three bits in the first 512 bytes, which hold the headers."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 3)) if data else 0):
        changed[rng.randrange(min(len(changed), 512))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Set one to four bytes to random or extreme values."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 4)) if data else 0):
        changed[rng.randrange(len(changed))] = rng.choice((0, 1, 0x20, 0x7F, 0x80, 0xFE, 0xFF, rng.randrange(256)))
    return bytes(changed)


def cut(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Cut the end off, often only little of it."""
    keep = (
        rng.randrange(len(data) + 1)
        if rng.random() < 0.6
        else len(data) - min(rng.choice((1, 2, 4, 16, 64)), len(data))
    )
    return data[:keep]


def cut_start(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Cut the beginning off."""
    return data[rng.randrange(min(len(data), 600) + 1) :]


def remove_block(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Remove a block from the middle."""
    start = rng.randrange(len(data) + 1)
    return data[:start] + data[start + rng.choice((1, 2, 4, 16, 64, 1000)) :]


def repeat_block(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Repeat a block."""
    start = rng.randrange(len(data) + 1)
    block = data[start : start + rng.choice((1, 4, 16, 256))]
    return data[:start] + block * rng.choice((2, 3, 50)) + data[start:]


def fill_block(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Overwrite a block with one byte, as a lost disk sector is."""
    start, size = rng.randrange(len(data) + 1), rng.choice((4, 16, 64, 512))
    size = min(size, len(data) - start)
    return data[:start] + rng.choice((b"\0", b"\xff", b" ")) * size + data[start + size :]


def set_length(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Write a number at the bounds of its type over 1, 2, 4 or 8 bytes, in either byte order."""
    size = rng.choice((1, 2, 2, 4, 4, 4, 8))
    if len(data) < size:
        return data
    start = (
        rng.randrange(min(len(data), 1024) - size + 1) if rng.random() < 0.7 else rng.randrange(len(data) - size + 1)
    )
    number = rng.choice((*BOUNDS, len(data), len(data) + 1, len(data) - 1)) & (2 ** (8 * size) - 1)
    return data[:start] + number.to_bytes(size, rng.choice(("little", "big"))) + data[start + size :]


def splice(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Join the beginning of one file to the end of another."""
    return data[: rng.randrange(len(data) + 1)] + other[rng.randrange(len(other) + 1) :]


def insert_other(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Insert a piece of another file."""
    at, start = rng.randrange(len(data) + 1), rng.randrange(len(other) + 1)
    return data[:at] + other[start : start + rng.choice((2, 8, 64, 512))] + data[at:]


def append_junk(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Append random bytes."""
    return data + rng.randbytes(rng.choice((1, 2, 16, 1000)))


def set_number(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Replace a number that is written in digits."""
    found = list(_NUMBER.finditer(data))
    if not found:
        return flip_bits(rng, data, other)
    place = rng.choice(found)
    return data[: place.start()] + rng.choice(NUMBERS).encode() + data[place.end() :]


def set_text(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Replace a text in quotes, or insert an odd text."""
    text = rng.choice(TEXTS).encode("utf-8", "surrogatepass")
    found = list(_STRING.finditer(data))
    if found and rng.random() < 0.8:
        place = rng.choice(found)
        return data[: place.start() + 1] + text + data[place.end() - 1 :]
    at = rng.randrange(len(data) + 1)
    return data[:at] + text + data[at:]


def odd_bytes(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Insert bytes that are no UTF-8, line ends of other systems, or deep nesting."""
    at = rng.randrange(len(data) + 1)
    piece = rng.choice(
        (
            b"\xff",
            b"\xed\xa0\x80",
            b"\x00",
            b"\r",
            b"\n",
            b"\t",
            b"[" * 5000,
            b'{"a":' * 2000,
            b",",
            b":",
            b'"',
            b"}",
            b"]",
        )
    )
    return data[:at] + piece + data[at:]


def recode(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Save a text in another encoding, or with a byte order mark."""
    text = data.decode("utf-8", "replace")
    return text.encode(rng.choice(("utf-8-sig", "utf-16", "utf-32", "latin-1", "cp1252")), "replace")


def swap_lines(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Remove, repeat or exchange lines."""
    lines = data.split(b"\n")
    a, b = rng.randrange(len(lines)), rng.randrange(len(lines))
    action = rng.randrange(3)
    if action == 0:
        del lines[a]
    elif action == 1:
        lines.insert(b, lines[a])
    else:
        lines[a], lines[b] = lines[b], lines[a]
    return b"\n".join(lines)


def set_json(rng: random.Random, data: bytes, other: bytes) -> bytes:
    """Change a value of a JSON file (or of one line of JSON Lines): its type, its key, or remove it."""
    try:
        return _encode(_changed_json(rng, json.loads(data)))
    except (ValueError, RecursionError):
        lines = data.split(b"\n")
    at = rng.randrange(len(lines))
    try:
        lines[at] = _encode(_changed_json(rng, json.loads(lines[at])))
    except (ValueError, RecursionError):
        return set_number(rng, data, other)
    return b"\n".join(lines)


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def _changed_json(rng: random.Random, value: Any) -> Any:
    """Return `value` with one change somewhere inside; containers are changed in place."""
    places: list[tuple[Any, Any]] = []
    stack = [value]
    while stack:
        node = stack.pop()
        keys: Any = node if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            stack.append(node[key])
    if not places or rng.random() < 0.02:
        return rng.choice(VALUES)
    node, key = rng.choice(places)
    action = rng.random()
    if action < 0.7:
        node[key] = rng.choice(VALUES)
    elif action < 0.85:
        del node[key]
    elif isinstance(node, dict):
        node[rng.choice((f"{key}x", "", str(key).upper(), "auto_map", "__class__"))] = node[key]
    else:
        node.append(node[key])
    return value


BINARY: tuple[Mutator, ...] = (
    flip_bits, flip_bits, flip_early_bits, flip_early_bits, set_bytes, cut, cut, cut_start, remove_block, repeat_block,
    fill_block, set_length, set_length, set_length, splice, insert_other, append_junk,
)  # fmt: skip
TEXT: tuple[Mutator, ...] = (
    flip_bits, set_bytes, cut, remove_block, repeat_block, splice, set_number, set_number, set_number, set_text, set_text,
    odd_bytes, odd_bytes, recode, swap_lines,
)  # fmt: skip
JSON: tuple[Mutator, ...] = (*TEXT, *[set_json] * 12)


def mutate(rng: random.Random, data: bytes, other: bytes, mutators: tuple[Mutator, ...]) -> tuple[bytes, list[str]]:
    """Return damaged `data` and the names of the one to three changes.

    Args:
        other: another file of the same format, for splices.
    """
    names = []
    for _ in range(rng.choice((1, 1, 1, 1, 2, 3))):
        chosen = rng.choice(mutators)
        data = chosen(rng, data, other)
        names.append(chosen.__name__)
    return data, names
