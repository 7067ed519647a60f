"""Reported beside reproduced, from the command line.

reproduce  compute what the budget allows, and show every reported number beside it
report     make results/report.html from the last results, computing nothing
summary    print the README's table of papers from the committed results, computing nothing
list       list papers, tables and rows, with what each row takes
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Sequence
from pathlib import Path

from papers_shared import assets
from papers_shared.tables import budget as budgets
from papers_shared.tables import store
from papers_shared.tables.entries import Entry, load_entries, with_recipes
from papers_shared.tables.reproduced import TableResult, write_text


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0; 1 when an exact value left its tolerance or a recipe failed; 2 on a wrong argument.
    """
    args = make_parser().parse_args(argv)
    try:
        return int(args.run(args))
    except (ValueError, OSError) as error:
        print(f"error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("stopped; the tables completed so far are written", file=sys.stderr)
        return 130


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m papers_shared.tables",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    actions = parser.add_subparsers(required=True, metavar="ACTION", dest="action")
    which = argparse.ArgumentParser(add_help=False)
    which.add_argument(
        "--paper", nargs="+", action="extend", default=[], metavar="P", help="only these papers"
    )
    which.add_argument(
        "--table",
        nargs="+",
        action="extend",
        default=[],
        metavar="T",
        help="only these tables (table5: its parts too)",
    )
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument("--out", type=Path, help="output folder (default: the workspace's results/)")

    reproduce = actions.add_parser(
        "reproduce", parents=[which, where], help="compute and show reported beside reproduced"
    )
    reproduce.add_argument(
        "--budget",
        help=f"15m, 900s, 2h, 0 or all: what is computed again, by the recipes' own estimates; "
        f"default {budgets.DEFAULT}, and all when --paper and --table are given",
    )
    reproduce.add_argument("--seed", type=int, default=0, help="handed to every recipe")
    reproduce.add_argument(
        "--device", type=device_name, default="auto", help="auto, cpu, cuda or cuda:N"
    )
    reproduce.add_argument(
        "--record",
        action="store_true",
        help="write what was computed to the package's results/, to be committed",
    )
    reproduce.add_argument("--html", action="store_true", help="also make report.html")
    reproduce.set_defaults(run=run_reproduce)

    report = actions.add_parser("report", parents=[where], help="make report.html, run nothing")
    report.set_defaults(run=run_report)
    summary = actions.add_parser("summary", help="print the README's table of papers")
    summary.set_defaults(run=run_summary)
    listing = actions.add_parser("list", parents=[which], help="list papers, tables and rows")
    listing.set_defaults(run=run_list)
    return parser


def device_name(text: str) -> str:
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?", text):
        raise argparse.ArgumentTypeError(f"{text!r} is not auto, cpu, cuda or cuda:N")
    return text


def run_reproduce(args: argparse.Namespace) -> int:
    budget = args.budget or ("all" if args.paper and args.table else budgets.DEFAULT)
    seconds = budgets.parse(budget)
    entries = load_entries(args.paper, args.table)
    folder = args.out or store.default_folder()
    store.prepare(folder)
    assets.mirrors()  # a mirror that does not exist is an error now, not after the first recipes
    if args.record:
        for entry in entries:
            store.prepare(entry.source_folder() / "results")

    from papers_shared.tables.progress import reporter
    from papers_shared.tables.render import make_console, print_table
    from papers_shared.tables.runner import pick_device, reproduce

    device = pick_device(args.device)
    entries = [with_recipes(entry) for entry in entries]
    console = make_console()
    results: dict[str, dict[str, TableResult]] = {entry.name: {} for entry in entries}
    for result in reproduce(
        entries,
        budget=seconds,
        tables=args.table,
        seed=args.seed,
        device=device,
        record=args.record,
        progress=reporter(),
    ):
        entry = next(entry for entry in entries if entry.name == result.paper)
        print_table(entry.reported.tables[result.table], result, console)
        store.save(folder, entry, result)
        results[result.paper][result.table] = result
    shown = [result for tables in results.values() for result in tables.values()]
    for entry in entries:
        for path in entry.draw(folder, args.table):
            print(f"drawn: {path}")
    if not args.paper and not args.table:
        write_summary(folder, entries, results)
    if args.html:
        run_report(args)
    return conclude(shown, folder)


def conclude(results: Sequence[TableResult], folder: Path) -> int:
    """Say what became of the rows, name what failed, and give the exit status."""
    from papers_shared.tables.summary import states_text

    print(f"\n{states_text(results)}; tables as Markdown and JSON in {folder}")
    failures = [failure for result in results for failure in result.failures]
    for failure in failures:
        print(f"FAILED {failure}", file=sys.stderr)
    return 1 if failures else 0


def write_summary(
    folder: Path, entries: Sequence[Entry], results: dict[str, dict[str, TableResult]]
) -> None:
    """``summary.md``: the table of papers, and every table of the run below it."""
    from papers_shared.tables.render import markdown_table
    from papers_shared.tables.summary import states_text, summary_markdown

    every = [result for tables in results.values() for result in tables.values()]
    parts = [
        "# Reported and reproduced\n",
        summary_markdown([(entry, results[entry.name]) for entry in entries]),
        f"All tables: {states_text(every)}.\n",
    ]
    for entry in entries:
        parts.append(f"## {entry.reported.title}\n\n{entry.reported.reference}\n")
        for table, result in results[entry.name].items():
            parts.append(markdown_table(entry.reported.tables[table], result))
    write_text(folder / "summary.md", "\n".join(parts))


def latest(folder: Path | None) -> list[tuple[Entry, dict[str, TableResult]]]:
    """Every paper with the last run's results, or what is committed where there is no run.

    Args:
        folder: of the last run; None for committed results alone.
    """
    from papers_shared.tables.runner import reproduce

    papers = []
    for entry in map(with_recipes, load_entries()):
        results = {result.table: result for result in reproduce([entry], budget=0)}
        if folder is not None:
            last = {table: store.load(folder, entry, table) for table in results}
            results |= {table: result for table, result in last.items() if result is not None}
        papers.append((entry, results))
    return papers


def run_report(args: argparse.Namespace) -> int:
    from papers_shared.tables.html import page

    folder = args.out or store.default_folder()
    store.prepare(folder)
    write_text(folder / "report.html", page(latest(folder)))
    print(f"wrote {folder / 'report.html'}")
    return 0


def run_summary(args: argparse.Namespace) -> int:
    from papers_shared.tables.summary import summary_markdown

    print(summary_markdown(latest(None)), end="")
    return 0


def run_list(args: argparse.Namespace) -> int:
    for entry in map(with_recipes, load_entries(args.paper, args.table)):
        print(f"{entry.name}: {entry.reported.title} ({entry.reported.reference})")
        for name, table in entry.reported.tables.items():
            if args.table and name not in args.table:
                continue
            print(f"  {name}: {table.title}")
            for row in table.rows.values():
                recipe = entry.recipes(name).get(row.name)
                what = f"{recipe.scale}, {recipe.seconds:,.0f} s" if recipe else "needs more"
                print(f"    {row.name}: {row.label} ({what})")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
