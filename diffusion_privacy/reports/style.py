"""The report's style sheet: one column, system fonts, black on white; tables become cards on a phone."""

from __future__ import annotations

CSS = """
:root { --ink: #1a1a1a; --soft: #555; --line: #c9c9c9; --wash: #f4f4f2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 1.25rem 1rem 3rem; color: var(--ink); background: #fff;
  font: 1rem/1.5 system-ui, "Segoe UI", "Liberation Sans", Arial, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.55rem; line-height: 1.25; margin: 0 0 .25rem; }
h2 { font-size: 1.2rem; margin: 2.2rem 0 .5rem; padding-top: .5rem; border-top: 2px solid var(--ink); }
h3 { font-size: 1rem; margin: 1.3rem 0 .3rem; }
p, li, dd, figcaption { max-width: 46rem; }
p { margin: .5rem 0; }
ul { padding-left: 1.2rem; margin: .5rem 0; }
li { margin: .3rem 0; }
.soft { color: var(--soft); }
.small, figcaption { font-size: .86rem; color: var(--soft); }
.answer { border: 2px solid var(--ink); padding: .8rem 1rem; margin: 1rem 0; background: var(--wash); }
.answer > p:first-child { font-size: 1.2rem; line-height: 1.4; font-weight: 600; margin-top: 0; }
.alarm { border: 2px dashed var(--ink); padding: .7rem 1rem; margin: 1rem 0; }
.verdicts { display: grid; grid-template-columns: repeat(auto-fit, minmax(16rem, 1fr)); gap: .8rem; margin: .8rem 0 0; }
.verdicts > div { background: #fff; border: 1px solid var(--line); padding: .6rem .8rem; }
.verdicts p { margin: .35rem 0 0; }
.verdicts.four { grid-template-columns: repeat(auto-fit, minmax(min(20rem, 100%), 1fr)); }
.verdicts .status { white-space: normal; }
.status { display: inline-block; padding: 0 .45rem; border: 2px solid var(--ink); font-weight: 600; font-size: .86rem;
  white-space: nowrap; }
.status.leaks { background: var(--ink); color: #fff; }
.status.open { border-style: dashed; }
table { border-collapse: collapse; width: 100%; margin: .6rem 0 1rem; font-size: .9rem; }
caption { text-align: left; font-weight: 600; padding-bottom: .3rem; }
th, td { text-align: left; vertical-align: top; padding: .35rem .5rem; border-bottom: 1px solid var(--line); }
tbody th { min-width: 6.5rem; }
thead th { border-bottom: 2px solid var(--ink); vertical-align: bottom; line-height: 1.3; }
thead span { display: block; font-weight: 400; font-size: .82em; color: var(--soft); }
.num { text-align: right; font-variant-numeric: tabular-nums; }
tr.private th { font-weight: 700; }
tr.control th { font-weight: 400; }
tr.first th, tr.first td { border-top: 2px solid var(--ink); }
th .small { font-weight: 400; }
.group { display: block; font-size: .78rem; font-weight: 400; letter-spacing: .06em; text-transform: uppercase; }
figure { margin: 1rem 0 1.4rem; break-inside: avoid; }
figure img { display: block; width: 100%; max-width: 35rem; height: auto; }
figcaption { margin-top: .3rem; }
.pictures { display: grid;
  grid-template-columns: repeat(auto-fit, minmax(20rem, 1fr)); gap: 0 2rem; align-items: start; }
.note { border-left: 4px solid var(--ink); padding: .1rem 0 .1rem .8rem; }
dl { margin: .5rem 0; }
dt { font-weight: 600; margin-top: .7rem; }
dd { margin: .1rem 0 0; }
.facts td:last-child { overflow-wrap: anywhere; }
.facts th, .facts td { padding: .2rem .5rem .2rem 0; }
.facts th { width: 30%; }
.config { columns: 20rem; column-gap: 2rem; font: .78rem/1.5 ui-monospace, "Liberation Mono", monospace;
  overflow-wrap: anywhere; padding: 0; list-style: none; }
.config li { margin: 0; }
@media (max-width: 700px) {
  .cards, .cards caption, .cards tbody, .cards tr, .cards th, .cards td { display: block; }
  .cards thead { position: absolute; clip-path: inset(50%); width: 1px; height: 1px; overflow: hidden; }
  .cards tr { border: 1px solid var(--line); padding: .4rem .6rem; margin-bottom: .7rem; }
  .cards th, .cards td, .cards tr.first th, .cards tr.first td { border: 0; padding: .12rem 0; }
  .cards tr.first { border-top: 2px solid var(--ink); }
  .cards td { display: flex; justify-content: space-between; gap: 1rem; text-align: right; }
  .cards td::before { content: attr(data-label); color: var(--soft); text-align: left; flex: 1 1 40%; }
  .pictures { grid-template-columns: 1fr; }
}
@media print {
  body { max-width: none; padding: 0; font-size: 10pt; }
  h2, h3 { break-after: avoid; }
  tr, .answer, .verdicts > div { break-inside: avoid; }
  .answer.long { break-inside: auto; }
  caption, thead { break-inside: avoid; break-after: avoid; }
  .status.leaks { print-color-adjust: exact; -webkit-print-color-adjust: exact; }
  figure img { width: auto; max-width: min(13cm, 100%); max-height: 19cm; }
}
"""
