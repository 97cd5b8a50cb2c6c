"""The table for readers: mean and range over sampling seeds, in Markdown."""

from collections import defaultdict


def grouped(
    rows: list[dict[str, str]], metric: str = "frechet"
) -> dict[str, dict[int, list[float]]]:
    """Values of each method at each number of evaluations, in the order of rows."""
    groups: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        value = float(row[metric])
        groups[row["method"]][int(row["evaluations"])].append(value)
    return groups


def text(rows: list[dict[str, str]], metric: str = "frechet") -> str:
    """A line a method, a column a number of evaluations, `mean (least to most)`."""
    cells = grouped(rows, metric)
    columns = sorted({n for counts in cells.values() for n in counts})
    lines = [
        ["evaluations", *(str(n) for n in columns)],
        ["---"] * (len(columns) + 1),
    ]
    for method, counts in cells.items():
        lines.append([method, *(_entry(counts.get(n, [])) for n in columns)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _entry(values: list[float]) -> str:
    if not values:
        return ""
    mean = sum(values) / len(values)
    return f"{mean:.2f} ({min(values):.2f} to {max(values):.2f})"
