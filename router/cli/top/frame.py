"""One frame of `triptych top`, as something that rich can draw."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from rich import box
from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from router.cli.top.panels import ActorRow, Bar, PanelView, panel_views, short
from router.cli.top.sample import WINDOW_S, Window
from triptych.v1 import admin_pb2

COLORS = {"encode": "#e0a458", "prefill": "#5fa8d3", "decode": "#7bc47f"}
_DIM = "grey50"
_BLOCKS = " ▁▂▃▄▅▆▇█"
_STATES = {
    admin_pb2.ACTOR_STATE_READY: ("●", "green"),
    admin_pb2.ACTOR_STATE_STARTING: ("◌", "yellow"),
    admin_pb2.ACTOR_STATE_DRAINING: ("◐", "cyan"),
    admin_pb2.ACTOR_STATE_LOST: ("✕", "red"),
}
# Panels narrower than that stand one below the other.
_MIN_PANEL_WIDTH = 28
_MAX_HISTORY = 240
# Lines of a panel that are no actors: border, rate, curve, two rules, head of the actors.
_FRAME_LINES = 8


class Frames:
    """Draws the newest sample, with the curves of those before it."""

    def __init__(self) -> None:
        self._history: dict[str, deque[float]] = {name: deque(maxlen=_MAX_HISTORY) for name in COLORS}
        self._views: tuple[PanelView, ...] = ()

    def note(self, window: Window) -> None:
        """A sample was added to the window."""
        self._views = panel_views(window)
        for view in self._views:
            self._history[view.name].append(view.rate)

    def draw(self, window: Window, width: int, height: int | None, footer: str = "") -> RenderableType:
        """height: of the terminal; None: as much as all actors take."""
        head = _head(window)
        panel_width = width // len(self._views)
        if panel_width < _MIN_PANEL_WIDTH:
            share = None if height is None else max(_FRAME_LINES, (height - 4) // len(self._views))
            return Group(head, *(self._panel(view, width, share) for view in self._views), _foot(footer))
        panel_height = None if height is None else max(_FRAME_LINES, height - 4)
        if panel_height is None:
            panel_height = max(_natural_height(view) for view in self._views)
        grid = Table.grid(expand=True)
        for _ in self._views:
            grid.add_column(ratio=1)
        grid.add_row(*(self._panel(view, panel_width, panel_height) for view in self._views))
        return Group(head, grid, _foot(footer))

    def _panel(self, view: PanelView, width: int, height: int | None) -> Panel:
        color = COLORS[view.name]
        inner = width - 4
        rate = Text.assemble((short(view.rate), f"bold {color}"), (f" {view.unit}", _DIM))
        facts = Table.grid(expand=True, padding=(0, 1))
        facts.add_column(style=_DIM, no_wrap=True)
        facts.add_column(justify="right", no_wrap=True, ratio=1)
        for label, text in view.facts:
            facts.add_row(label, text)
        num_rows = None if height is None else height - _FRAME_LINES - len(view.facts) - len(view.bars)
        body = Group(
            rate,
            Text(curve(self._history[view.name], inner), style=color),
            *(_bar(bar, inner, color) for bar in view.bars),
            facts,
            Text("─" * inner, style="grey23"),
            _actors(view, color, num_rows),
        )
        counts = f"{view.num_ready} of {view.num_wanted}"
        is_whole = view.num_ready >= view.num_wanted
        title = Text.assemble((f"{view.name} ", f"bold {color}"), (counts, _DIM if is_whole else "yellow"))
        return Panel(body, title=title, title_align="left", border_style="grey35", box=box.ROUNDED, height=height)


def curve(values: Sequence[float], width: int) -> str:
    """The last `width` values as blocks, the highest of them full."""
    shown = list(values)[-width:]
    top = max(shown, default=0.0)
    if top <= 0:
        return "▁" * len(shown)
    return "".join(_BLOCKS[max(1, round(value / top * (len(_BLOCKS) - 1)))] for value in shown)


def _head(window: Window) -> Table:
    router = window.newest.topology.router
    ttft = window.median_s(lambda counters: counters.time_to_first_token)
    tpot = window.median_s(lambda counters: counters.time_per_output_token)
    answered = window.router_rate(lambda counters: counters.answered_requests)
    failed = window.router_rate(lambda counters: counters.failed_requests)
    tokens = window.router_rate(lambda counters: counters.generated_tokens)
    topology = window.newest.topology
    table = Table.grid(expand=True, padding=(0, 1))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_row(
        Text.assemble((" triptych ", "bold reverse"), "  ", (topology.model, "bold"), ("  " + topology.mode, _DIM)),
        Text.assemble(*_figure("TTFT p50", _milliseconds(ttft)), "   ", *_figure("TPOT p50", _milliseconds(tpot)), " "),
    )
    table.add_row(
        Text.assemble(
            " ",
            *_figure("running", str(router.running_requests)),
            "   ",
            *_figure("waiting", str(router.waiting_requests)),
        ),
        Text.assemble(
            *_figure("answered", f"{answered:.1f}/s"),
            "   ",
            *_figure("failed", f"{failed:.1f}/s", "red" if failed else "bold"),
            "   ",
            *_figure("tokens", f"{short(tokens)}/s"),
            " ",
        ),
    )
    return table


def _foot(footer: str) -> Text:
    if footer:
        return Text(f" {footer}", style="red", no_wrap=True, overflow="ellipsis")
    return Text(f" q quits   figures of the last {WINDOW_S:.0f} s", style=_DIM, no_wrap=True, overflow="ellipsis")


def _figure(label: str, value: str, style: str = "bold") -> tuple[tuple[str, str], tuple[str, str]]:
    return (f"{label} ", _DIM), (value, style)


def _milliseconds(seconds: float | None) -> str:
    return "–" if seconds is None else f"{1_000 * seconds:.3g} ms"


def _bar(bar: Bar, width: int, color: str) -> Text:
    share = min(1.0, bar.value / bar.limit) if bar.limit else 0.0
    figures = f" {short(bar.value)}/{short(bar.limit)}"
    length = max(0, width - len(bar.label) - 1 - len(figures))
    full = round(share * length) or int(share > 0)
    strong = "red" if share > 0.9 else color
    return Text.assemble(
        (f"{bar.label} ", _DIM), ("━" * full, strong), ("━" * (length - full), "grey23"), figures, no_wrap=True
    )


def _actors(view: PanelView, color: str, num_rows: int | None) -> Table:
    table = Table(box=None, expand=True, padding=(0, 1, 0, 0), show_edge=False, header_style=_DIM)
    table.add_column("actor", no_wrap=True, overflow="ellipsis", ratio=1)
    table.add_column("/s", justify="right", no_wrap=True)
    table.add_column(view.load_label, justify="right", no_wrap=True)
    table.add_column("full", justify="right", no_wrap=True)
    rows = view.rows
    if num_rows is not None and len(rows) > num_rows:
        rows = rows[: max(0, num_rows - 1)]
    for row in rows:
        table.add_row(*_actor(row, color))
    if len(rows) < len(view.rows):
        table.add_row(Text(f"  and {len(view.rows) - len(rows)} more", style=_DIM))
    return table


def _actor(row: ActorRow, color: str) -> tuple[Text, ...]:
    sign, style = _STATES.get(row.state, ("?", "red"))
    name = row.actor_id.rpartition("-")[2] or admin_pb2.ActorState.Name(row.state).removeprefix("ACTOR_STATE_").lower()
    if row.state != admin_pb2.ACTOR_STATE_READY:
        return Text.assemble((f"{sign} ", style), (name, style)), Text("–"), Text("–"), Text("–")
    return (
        Text.assemble((f"{sign} ", style), name),
        Text(short(row.rate), style=color if row.rate else _DIM),
        Text(short(row.load), style="" if row.load else _DIM),
        Text(f"{100 * row.fill:.0f} %", style="red" if row.fill > 0.9 else "" if row.fill else _DIM),
    )


def _natural_height(view: PanelView) -> int:
    return _FRAME_LINES + len(view.facts) + len(view.bars) + len(view.rows)
