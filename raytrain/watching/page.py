"""The page of a watch: the shares of the labels over time, the rules, and the newest events."""

import datetime
from collections.abc import Sequence
from typing import Any

from matplotlib.dates import AutoDateLocator, ConciseDateFormatter, date2num
from matplotlib.ticker import PercentFormatter, StrMethodFormatter

from raytrain.inference.card import ModelCard
from raytrain.reports.page import embedded, number, page_template
from raytrain.reports.plots import SIZE, WIDE, new_axes, png_of, shown_label
from raytrain.watching.rules import Alarm
from raytrain.watching.shares import Shares
from raytrain.watching.status import PAGE_EVERY_S, Watched

MOST_CURVES = 8  # of the most frequent labels; the table has all
COLORS = ("#1f6feb", "#d9730d", "#2f9e58", "#9a5bd9", "#c0392b", "#0d8f9e", "#8a6d3b", "#61707f")


def draw_page(
    card: ModelCard, status: Watched, shares: Shares, alarms: Sequence[Alarm], events: Sequence[dict[str, Any]]
) -> str:
    """The page as HTML. `events`: the newest ones, in their order."""
    holding = sum(alarm.holds for alarm in alarms)
    tiles = [
        ("texts", number(status.num_texts)),
        *(
            (f"{label} of the last {status.window:,}", f"{share:.1%}")
            for label, share in list(status.shares.items())[:4]
        ),
        ("quarantined", number(status.num_quarantined)),
        ("rules that hold", f"{holding} of {len(alarms)}"),
    ]
    rows = [
        (label, shares.total[label], _percent(shares.total[label], shares.num_texts), f"{share:.1%}")
        for label, share in status.shares.items()
    ]
    figures = (
        {"shares over time": _draw_shares(shares, alarms), "texts over time": _draw_texts(shares)}
        if shares.periods
        else {}
    )
    return page_template("raytrain.watching", "page.html").render(
        name=f"{card.name}: texts as they arrive",
        path=status.path,
        tiles=tiles,
        message=status.webhook or None,
        refresh_s=int(PAGE_EVERY_S),
        rows=rows,
        window=status.window,
        figures=embedded(figures),
        period_s=shares.period_s,
        alarms=alarms,
        events=list(reversed(events)),
    )


def _percent(count: int, of: int) -> str:
    return f"{count / of:.1%}" if of else ""


def _draw_shares(shares: Shares, alarms: Sequence[Alarm]) -> bytes:
    """A curve for each label, and a dashed line at each limit."""
    figure, axes = new_axes("Shares of the labels", "% of the texts of a period", size=WIDE)
    times = _times(shares)
    labels = [label for label, _ in shares.total.most_common(MOST_CURVES)]
    for label, color in zip(labels, COLORS, strict=False):
        values = [counts[label] / texts for _, texts, counts in shares.periods]
        axes.plot(times, values, "o-", markersize=2.5, linewidth=1.3, color=color, label=shown_label(label))
    for alarm in alarms:
        color = COLORS[labels.index(alarm.rule.label)] if alarm.rule.label in labels else COLORS[-1]
        axes.axhline(float(alarm.rule.limit), color=color, linewidth=0.9, linestyle="--", alpha=0.6)
    axes.set_ylim(-0.02, 1.02)
    axes.yaxis.set_major_formatter(PercentFormatter(1.0))
    _over_time(axes)
    axes.legend(frameon=False, fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0))
    return png_of(figure)


def _draw_texts(shares: Shares) -> bytes:
    figure, axes = new_axes("Texts", f"texts per {shares.period_s:,} s", size=(WIDE[0], SIZE[1] * 0.75))
    counts = [texts for _, texts, _ in shares.periods]
    axes.bar(_times(shares), counts, width=shares.period_s / 86400, align="edge", color=COLORS[0])
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
    _over_time(axes)
    return png_of(figure)


def _times(shares: Shares) -> list[float]:
    """The beginning of each period, in days as matplotlib counts them."""
    return [float(date2num(datetime.datetime.fromtimestamp(begin, tz=datetime.UTC))) for begin, _, _ in shares.periods]


def _over_time(axes: Any) -> None:
    locator = AutoDateLocator(minticks=3, maxticks=9)
    axes.xaxis.set_major_locator(locator)
    axes.xaxis.set_major_formatter(ConciseDateFormatter(locator))
    axes.xaxis.get_offset_text().set_fontsize(8)
    axes.set_xlabel("UTC", fontsize=8)
