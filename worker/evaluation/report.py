"""Render measurements as Markdown tables and as a plot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worker.evaluation.measure import Counts, Measurement, difference
from worker.evaluation.statistics import Paired, Share

BEGIN = "<!-- begin: helixq eval -->"
END = "<!-- end: helixq eval -->"
#: Stages whose answers are graded, and their colours in plots.
STAGES = {"actor": "#c2571a", "regenerator": "#1a6fc2"}


@dataclass(frozen=True)
class Report:
    """All measurements of one command."""

    adapters: Measurement
    full: Measurement | None
    #: By the rank of extracted adapters, ascending.
    ranks: dict[int, Measurement]

    @property
    def forms(self) -> list[Measurement]:
        return [m for m in (self.full, self.adapters) if m is not None]

    @property
    def loss(self) -> Paired | None:
        """The regenerators of the adapters against those of the full models."""
        return difference(self.full, self.adapters) if self.full else None

    def describe(self) -> dict[str, Any]:
        return {
            "adapters": self.adapters.describe(),
            "full": self.full.describe() if self.full else None,
            "adapters_against_full": self.loss.describe() if self.loss else None,
            "ranks": {str(rank): m.describe() for rank, m in self.ranks.items()},
        }

    def markdown(self) -> str:
        """Return the tables."""
        return "\n".join([*self._main(), *self._by_fine_kind(), *self._by_rank()])

    @property
    def _kinds(self) -> list[str]:
        """All, and the coarse kinds."""
        return [kind for kind in self.adapters.counts if "/" not in kind]

    @property
    def _fine_kinds(self) -> list[str]:
        return [kind for kind in self.adapters.counts if "/" in kind]

    def _main(self) -> Iterator[str]:
        yield (
            "| questions | form | actor | critic's verdict | regenerator "
            "| gain over the actor | mended | spoilt |"
        )
        yield "|---|---|---|---|---|---|---|---|"
        for kind in self._kinds:
            for form in self.forms:
                yield _row(kind, form.name, form.counts[kind])
        yield ""
        for form in self.forms:
            change = form.counts["all"].change
            yield (
                f"- {form.name}: {form.weight_bytes / 1e6:,.1f} MB of weights; the regenerator "
                f"against the actor: p {_p(change.p_value)} (McNemar's exact test)."
            )
        if self.loss:
            yield (
                f"- {self.adapters.name} against {self.forms[0].name}, regenerator: "
                f"{_points(self.loss)}, p {_p(self.loss.p_value)}."
            )

    def _by_fine_kind(self) -> Iterator[str]:
        if not self._fine_kinds:
            return
        yield ""
        names = [f"{stage}, {form.name}" for form in self.forms for stage in STAGES]
        yield f"| right answers | {' | '.join(names)} |"
        yield f"|{'---|' * (len(names) + 1)}"
        for kind in self._fine_kinds:
            coarse, _, fine = kind.partition("/")
            shares = [getattr(form.counts[kind], stage) for form in self.forms for stage in STAGES]
            yield f"| {coarse}, {fine} | {' | '.join(map(_counted, shares))} |"

    def _by_rank(self) -> Iterator[str]:
        if not self.ranks:
            return
        yield ""
        yield "| rank | MB of weights | actor | critic's verdict | regenerator |"
        yield "|---|---|---|---|---|"
        for rank, measurement in self.ranks.items():
            counts = measurement.counts["all"]
            yield (
                f"| {rank} | {measurement.weight_bytes / 1e6:,.1f} | {_share(counts.actor)} "
                f"| {_share(counts.verdict)} | {_share(counts.regenerator)} |"
            )

    def write_into(self, file: Path) -> None:
        """Write the tables between the two marks of a Markdown file, or append them."""
        block = f"{BEGIN}\n{self.markdown()}\n{END}"
        text = file.read_text(encoding="utf-8") if file.exists() else ""
        before, begin, rest = text.partition(BEGIN)
        _, end, after = rest.partition(END)
        has_marks = bool(begin and end)
        new = before + block + after if has_marks else f"{text.rstrip()}\n\n{block}\n".lstrip()
        file.write_text(new, encoding="utf-8")

    def plot(self, file: Path) -> None:
        """Plot accuracies with their intervals. The file's suffix gives the format."""
        import matplotlib as mpl
        from matplotlib.figure import Figure

        mpl.rcParams["svg.hashsalt"] = "helixq"  # the same picture has the same bytes
        rows = 2 if self._fine_kinds else 1
        figure = Figure(figsize=(9, 3.6 * rows), layout="constrained")
        grid = figure.add_gridspec(rows, 2, width_ratios=(3, 2))
        left, right = figure.add_subplot(grid[0, 0]), figure.add_subplot(grid[0, 1])
        self._plot_kinds(left, self._kinds)
        left.legend(fontsize=8, loc="lower right")
        if self._fine_kinds:
            below = figure.add_subplot(grid[1, :])
            self._plot_kinds(below, self._fine_kinds)
            below.tick_params("x", labelrotation=30)
            for label in below.get_xticklabels():
                label.set_horizontalalignment("right")
        if self.ranks:
            self._plot_ranks(right)
        else:
            right.remove()
        figure.savefig(file, metadata={"Date": None} if file.suffix == ".svg" else None)

    def _plot_kinds(self, axes: Any, kinds: list[str]) -> None:
        series = [
            (form, stage, color, marker)
            for form, marker in zip(self.forms, ("o", "s"), strict=False)
            for stage, color in STAGES.items()
        ]
        for i, (form, stage, color, marker) in enumerate(series):
            at = [x + (i - (len(series) - 1) / 2) * 0.14 for x in range(len(kinds))]
            shares = [getattr(form.counts[kind], stage) for kind in kinds]
            _points_with_intervals(
                axes, at, shares, label=f"{stage}, {form.name}", color=color, marker=marker
            )
        axes.set_xticks(range(len(kinds)), [kind.replace("/", ", ") for kind in kinds])
        axes.set_ylabel("right answers, %")
        axes.set_ylim(-3, 103)
        axes.grid(axis="y", alpha=0.3)

    def _plot_ranks(self, axes: Any) -> None:
        for stage, color in STAGES.items():
            shares = [getattr(m.counts["all"], stage) for m in self.ranks.values()]
            _points_with_intervals(
                axes, list(self.ranks), shares, label=stage, color=color, marker="o", line="-"
            )
            if self.full:
                full_share = getattr(self.full.counts["all"], stage).value * 100
                axes.axhline(full_share, color=color, linestyle=":", linewidth=1)
        axes.set_xscale("log", base=2)
        axes.set_xticks(list(self.ranks), [str(rank) for rank in self.ranks])
        axes.set_xlabel("rank of the adapters (dotted: full models)")
        axes.set_ylim(-3, 103)
        axes.grid(axis="y", alpha=0.3)


def _points_with_intervals(
    axes: Any,
    at: list[Any],
    shares: list[Share],
    *,
    label: str,
    color: str,
    marker: str,
    line: str = "none",
) -> None:
    values = [s.value * 100 for s in shares]
    low = [v - s.interval[0] * 100 for v, s in zip(values, shares, strict=True)]
    high = [s.interval[1] * 100 - v for v, s in zip(values, shares, strict=True)]
    axes.errorbar(
        at,
        values,
        yerr=([max(0.0, x) for x in low], [max(0.0, x) for x in high]),
        label=label,
        color=color,
        marker=marker,
        markersize=4,
        linestyle=line,
        capsize=2,
    )


def _row(kind: str, name: str, counts: Counts) -> str:
    change = counts.change
    return (
        f"| {kind} ({counts.actor.total}) | {name} | {_share(counts.actor)} "
        f"| {_share(counts.verdict)} | {_share(counts.regenerator)} | {_points(change)} "
        f"| {change.mended} of {change.total - counts.actor.hits} "
        f"| {change.spoilt} of {counts.actor.hits} |"
    )


def _share(share: Share | None) -> str:
    if share is None or not share.total:
        return "–"
    low, high = share.interval
    return f"{share.value:.1%} ({low * 100:.1f}–{high * 100:.1f})"


def _counted(share: Share) -> str:
    """Format hits, total and interval."""
    low, high = share.interval
    return f"{share.hits} of {share.total} ({low * 100:.0f}–{high * 100:.0f}%)"


def _points(change: Paired) -> str:
    low, high = change.interval
    return f"{change.difference * 100:+.1f} points ({low * 100:+.1f} to {high * 100:+.1f})"


def _p(value: float) -> str:
    return "< 0.001" if value < 0.001 else f"= {value:.3f}"
