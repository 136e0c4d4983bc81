"""How the demo sums up."""

from rich.console import Console
from rich.table import Table
from rich.text import Text

from manyray.harvest import Harvest
from manyray.live import Snapshot

_POSTS, _NEAREST = 3, 3


def print_summary(console: Console, last: Snapshot, harvest: Harvest, took_s: float, *, meaningful: bool) -> None:
    """Print what came out; the neighbours too, if the encoder's vectors are `meaningful`."""
    reasons = ", ".join(f"{count} {reason}" for reason, count in sorted(last.rejected.items()))
    rows = {
        "posts": f"{last.done:,} in {took_s:.1f} s: {last.done / took_s:,.0f} posts/s",
        "embeddings": f"{last.received:,}",
        "hit ratio": f"{1 - last.computed / max(1, last.received):.1%} of them not computed",
        "encoded": f"{last.computed:,} distinct contents",
        "rejected": f"{last.rejected.total():,}" + (f" ({reasons})" if reasons else ""),
        "latency": f"p50 {harvest.latency_ms(0.5):,} ms, p99 {harvest.latency_ms(0.99):,} ms, from post to subscriber",
    }
    table = Table(box=None, show_header=False, pad_edge=False)
    for name, value in rows.items():
        table.add_row(name, value)
    console.print()
    console.print(table)
    if not meaningful:
        console.print("\nThe hash encoder's vectors mean nothing, so no neighbours are shown.")
        return
    console.print(f"\n{_POSTS} posts, each with its nearest others by cosine:")
    for text, nearest in harvest.neighbours(_POSTS, _NEAREST):
        console.print()
        console.print(_line("  ", text, console.width), style="bold")
        for cosine, other in nearest:
            console.print(_line(f"    {cosine:.2f}  ", other, console.width))


def _line(before: str, text: str, columns: int) -> Text:
    """The beginning of a text, on one line and without what would move a terminal's cursor."""
    line = Text(before + "".join(one if one.isprintable() else " " for one in text))
    line.truncate(columns, overflow="ellipsis")
    return line
