"""What a compiled program sends between devices, read from its text."""

import math
import re
from collections import Counter

_KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|collective-permute"
# An asynchronous one counts where it is done: what it starts with holds inputs too.
_COLLECTIVE = re.compile(rf" = (.*?) ({_KINDS})(?:-done)?\(")
_ARRAY = re.compile(r"\b([a-z]+)(\d*)\[([\d,]*)\]")
_CHANNEL = re.compile(r"channel_id=\d+")
_CALLED = re.compile(r"(?:calls|to_apply)=%?([\w.\-]+)")
_LOOP = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r"known_trip_count\W+n\W+(\d+)")
_BOUND = re.compile(r"[su]32\[\]\S* constant\((\d+)\)")


def _bytes(result: str) -> int:
    """Bytes of an array, or of all arrays of a tuple; a flag (pred) takes one."""
    return sum(
        math.prod(int(n) for n in shape.split(",") if n) * int(bits or 8) // 8
        for _, bits, shape in _ARRAY.findall(result)
    )


def _branches(line: str) -> list[str]:
    """The computations that a conditional chooses from."""
    several = re.search(r"branch_computations=\{(.*?)\}", line)
    named = (
        several[1] if several else " ".join(re.findall(r"\w+_computation=(\S+)", line))
    )
    return re.findall(r"[\w.\-]+", named)


def collected(text: str) -> Counter[str]:
    """Bytes that collectives return on each device in one run, by kind.

    `text` is that of an optimised program. Loops count as often as they run: by what
    XLA notes of it, else, as for TPUs, by the bound in their condition; without, once.
    Of branches all count.
    """
    lines: dict[str, list[str]] = {}
    entry = name = ""
    for line in text.splitlines():
        if head := re.match(r"(ENTRY )?%?([\w.\-]+) .*\{\s*$", line):
            name = head[2]
            lines[name] = []
            entry = name if head[1] else entry
        elif name:
            lines[name].append(line)

    def runs(loop: str, condition: str) -> int:
        if known := _TRIPS.search(loop):
            return int(known[1])
        below = [condition, *_CALLED.findall("\n".join(lines[condition]))]
        bounds = [int(n) for c in below for n in _BOUND.findall("\n".join(lines[c]))]
        return max(bounds, default=1)

    total: Counter[str] = Counter()
    parts: dict[str, tuple[str, int]] = {}

    def walk(name: str, times: int, *, fused: bool = False) -> None:
        for line in lines[name]:
            if found := _COLLECTIVE.search(line):
                size = _bytes(found[1]) * times
                channel = _CHANNEL.search(line) if fused else None
                if channel:
                    # A TPU does one in parts, beside other work, on one channel.
                    parts[channel[0]] = found[2], size
                else:
                    total[found[2]] += size
            elif loop := _LOOP.search(line):
                walk(loop[2], times * runs(line, loop[1]))
            elif " conditional(" in line:
                for branch in _branches(line):
                    walk(branch, times)
            else:
                for called in _CALLED.findall(line):
                    walk(called, times, fused=True)

    walk(entry, 1)
    for kind, size in parts.values():
        total[kind] += size
    return total
