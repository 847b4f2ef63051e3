"""Blocks as one HTML page: no script, no foreign host, light and dark by the reader's setting, fit to be printed."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from calibrators._blocks import Banner, Block, Bullets, Figure, Gallery, Heading, Table, Text

STYLE = """
:root { color-scheme: light dark; --page: #fff; --ink: #1b1f24; --dim: #59636e; --rule: #d5dae0; --soft: #f4f6f8;
  --right: #1f6fb4; --wrong: #d1570c; --band: #c9d0d8; --bad: #b3261e; }
@media (prefers-color-scheme: dark) { :root { --page: #14171b; --ink: #e4e8ec; --dim: #9aa5b1; --rule: #363d45;
  --soft: #1d2126; --right: #5aa9e6; --wrong: #f28c4b; --band: #434c56; --bad: #ff8a80; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1120px; padding: 2rem 1.25rem 4rem; background: var(--page); color: var(--ink);
  font: 15px/1.5 system-ui, sans-serif; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: 0 0 1rem; }
h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .6rem; border-top: 1px solid var(--rule); }
h3 { font-size: 1rem; margin: 1.6rem 0 .4rem; }
p, ul { max-width: 75ch; }
p.banner { max-width: none; margin: 1rem 0; padding: .6rem 1rem; border: 3px solid var(--dim); color: var(--dim);
  font-size: 2.6rem; font-weight: 700; line-height: 1.15; }
p.banner.bad { border-color: var(--bad); color: var(--bad); }
.scroll { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-size: 13.5px; }
th, td { padding: .22rem .8rem .22rem 0; text-align: left; vertical-align: top; border-top: 1px solid var(--rule); }
th { font-weight: 600; }
tbody th { font-weight: 400; color: var(--dim); white-space: nowrap; }
.numbers td, .numbers thead th + th { text-align: right; padding-left: 1rem; padding-right: 0;
  font-variant-numeric: tabular-nums; }
.numbers td { white-space: nowrap; }
.numbers thead th { vertical-align: bottom; min-width: 7ch; }
.numbers th.long, .numbers td.long { text-align: left; white-space: normal; min-width: 22ch; max-width: 48ch; }
.numbers td.long, .numbers thead th.long + th { padding-left: 1rem; }
.words td { overflow-wrap: anywhere; }
tbody .chance { color: var(--dim); font-size: 12px; border-top: none; padding-top: 0; }
td.few { color: var(--dim); font-style: italic; }
td.fails { color: var(--bad); font-weight: 600; }
.gallery { display: grid; grid-template-columns: repeat(auto-fill, minmax(300px, 1fr)); gap: 1.2rem; margin: 1rem 0; }
figure { margin: 0; }
figure svg { display: block; width: 100%; max-width: 360px; height: auto; }
.wide { overflow-x: auto; }
figure.wide > svg { max-width: none; min-width: 720px; }
.wide figcaption, .wide details { position: sticky; left: 0; max-width: 75ch; }
figcaption { font-size: 12.5px; line-height: 1.4; color: var(--dim); }
.undrawn { border: 1px dashed var(--rule); padding: 1rem; align-self: start; }
details { font-size: 12.5px; margin-top: .3rem; }
summary { cursor: pointer; color: var(--dim); }
details table { font-size: 12px; }
code { background: var(--soft); padding: .1em .35em; border-radius: 3px; overflow-wrap: anywhere; }
svg text { fill: var(--dim); font: 11px system-ui, sans-serif; }
svg .frame { fill: none; stroke: var(--rule); }
svg .axis { stroke: var(--dim); }
svg .guide { fill: none; stroke: var(--dim); stroke-dasharray: 4 3; }
svg .band { fill: var(--band); }
svg .whisker { stroke: var(--right); stroke-width: 1.5; }
svg .dot { fill: var(--right); }
svg .right { fill: var(--right); }
svg .soft { fill-opacity: .45; }
svg .wrong { fill: var(--wrong); }
svg .outline { fill: none; stroke: var(--wrong); stroke-width: 2; stroke-linejoin: round; }
svg .curve { fill: none; stroke: var(--right); stroke-width: 2; }
svg .curve.reached { stroke: var(--wrong); }
svg .curve.accepted { stroke: var(--ink); stroke-dasharray: 2 2; }
@media (max-width: 640px) { h1 { font-size: 1.25rem; } tbody th { white-space: normal; } }
@media print {
  :root { color-scheme: light; --page: #fff; --ink: #000; --dim: #444; --rule: #bbb; --soft: #f4f6f8;
    --right: #1f6fb4; --wrong: #d1570c; --band: #c9d0d8; --bad: #b3261e; }
  body { max-width: none; padding: 0; font-size: 10pt; }
  .scroll { overflow: visible; }
  .numbers td { white-space: normal; }
  h2, h3 { break-after: avoid; }
  figure, tr { break-inside: avoid; }
  details::details-content { content-visibility: visible; }
}
"""


def write(heading: str, blocks: Sequence[Block]) -> str:
    title = escape(heading)
    body = "\n".join(_block(block) for block in blocks)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        f"<title>{title}</title><style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n{body}\n</body></html>\n"
    )


def _block(block: Block) -> str:
    match block:
        case Heading(level, text):
            return f"<h{level}>{escape(text)}</h{level}>"
        case Banner(text, bad):
            return f'<p class="banner{" bad" if bad else ""}" role="status">{escape(text)}</p>'
        case Text(text):
            return f"<p>{_words(text)}</p>"
        case Bullets(items):
            return "<ul>" + "".join(f"<li>{_words(item)}</li>" for item in items) + "</ul>"
        case Table():
            return _table(block)
        case Figure(svg=None, caption=caption):
            return f'<figure class="undrawn"><figcaption>{escape(caption)}</figcaption></figure>'
        case Figure(svg, caption, table, wide):
            kind = ' class="wide"' if wide else ""
            more = f"<details><summary>In numbers</summary>{_table(table)}</details>" if table else ""
            return f"<figure{kind}>{svg}<figcaption>{escape(caption)}</figcaption>{more}</figure>"
        case Gallery(figures):
            return '<div class="gallery">' + "".join(_block(figure) for figure in figures) + "</div>"


def _table(table: Table) -> str:
    head = "".join(
        f'<th scope="col"{_long(i, table)}>{escape(cell)}</th>' for i, cell in enumerate(table.head)
    )  # fmt: skip
    rows = "".join(_row(row, table) for row in table.rows)
    kind = "numbers" if table.numbers else "words"
    above = f"<thead><tr>{head}</tr></thead>" if any(table.head) else ""
    return f'<div class="scroll"><table class="{kind}">{above}<tbody>{rows}</tbody></table></div>'


def _row(row: tuple[str, ...], table: Table) -> str:
    kind = ' class="chance"' if row[0].startswith("·") else ""
    cells = "".join(
        f"<td{kind or _long(i, table) or _kind(cell)}>{_words(cell)}</td>" for i, cell in enumerate(row[1:], 1)
    )
    return f'<tr><th scope="row"{kind or _long(0, table)}>{escape(row[0])}</th>{cells}</tr>'


def _long(column: int, table: Table) -> str:
    return ' class="long"' if column in table.words else ""


def _kind(cell: str) -> str:
    if cell.startswith("insufficient") or cell == "unknown":
        return ' class="few"'
    return ' class="fails"' if cell == "fails" else ""


def _words(text: str) -> str:
    """Escaped, with `code` set as code."""
    pieces = escape(text).split("`")
    if len(pieces) % 2 == 0:  # a tick without its partner
        return escape(text)
    return "".join(f"<code>{piece}</code>" if i % 2 else piece for i, piece in enumerate(pieces))
