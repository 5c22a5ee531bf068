"""The pages' one style sheet, and the policy that allows a browser that and one script."""

import base64
import hashlib
from typing import Final

from panicd.web.page.script import SCRIPT

SHEET: Final = """
:root {
  color-scheme: light dark;
  --paper: #fbfbfa; --card: #fff; --ink: #1c1d1f; --quiet: #5c6066; --line: #dcdee1;
  --edge: #7b8087;
  --link: #0b57a4; --good: #1a6b35; --warn: #855500; --bad: #b3171f;
  --good-tint: #e5f3e8; --warn-tint: #fdf0d5; --bad-tint: #fce8e8; --plain-tint: #eceef0;
}
@media (prefers-color-scheme: dark) {
  :root {
    --paper: #131416; --card: #1b1d20; --ink: #e6e7e9; --quiet: #a2a7ae; --line: #33373c;
    --edge: #858b93;
    --link: #7db9f5; --good: #7fd196; --warn: #f0bf5f; --bad: #ff9a98;
    --good-tint: #16301e; --warn-tint: #38290a; --bad-tint: #431a1c; --plain-tint: #2a2d31;
  }
}
* { box-sizing: border-box; }
html { -webkit-text-size-adjust: 100%; }
body {
  margin: 0; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, -apple-system, "Segoe UI", Roboto, "Noto Sans", sans-serif;
}
a { color: var(--link); text-underline-offset: .15em; }
a:focus-visible, summary:focus-visible, input:focus-visible, select:focus-visible,
button:focus-visible {
  outline: 3px solid var(--link); outline-offset: 2px; border-radius: 2px;
}
.skip { position: absolute; left: -100vw; }
.skip:focus { left: .5rem; top: .5rem; background: var(--card); padding: .5rem; z-index: 1; }
header, main, footer { max-width: 75rem; margin: 0 auto; padding: 0 1rem; }
header {
  display: flex; flex-wrap: wrap; gap: .25rem 1.25rem; align-items: baseline;
  padding-top: .75rem; padding-bottom: .75rem;
}
header p { margin: 0; font-weight: 650; font-size: 1.1rem; overflow-wrap: anywhere; }
nav { display: flex; flex-wrap: wrap; gap: 0 1.25rem; }
nav a { padding: .35rem 0; }
.pages { gap: 0 .25rem; align-items: baseline; margin: .5rem 0; }
.pages a { padding: .35rem .6rem; border-radius: .35rem; }
.pages a[aria-current] { background: var(--plain-tint); color: var(--ink); font-weight: 600;
  text-decoration: none; }
h1 { font-size: 1.5rem; line-height: 1.25; margin: .5rem 0; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2rem 0 .6rem; }
p { margin: .5rem 0; overflow-wrap: anywhere; }
footer { color: var(--quiet); font-size: .875rem; padding-top: 1.5rem; padding-bottom: 2rem; }
.quiet { color: var(--quiet); }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(6.5rem, 1fr)); gap: .5rem;
  margin: 1rem 0; padding: 0; list-style: none; }
.figures a { display: block; height: 100%; background: var(--card); color: var(--quiet);
  border: 1px solid var(--line); border-radius: .5rem; padding: .5rem .75rem; font-size: .875rem;
  line-height: 1.3; text-decoration: none; }
.figures a:hover { border-color: var(--link); }
.figures .count { display: block; color: var(--ink); font-size: 1.5rem; font-weight: 600;
  font-variant-numeric: tabular-nums; }
.figures .warn .count { color: var(--warn); }
.figures .bad .count { color: var(--bad); }
form { display: flex; flex-wrap: wrap; gap: .4rem .75rem; align-items: center; margin: 1rem 0; }
input, select, button { font: inherit; color: inherit; background: var(--card);
  border: 1px solid var(--edge); border-radius: .35rem; padding: .3rem .6rem; min-height: 2.25rem;
  max-width: 100%; }
input { flex: 1 1 12rem; min-width: 0; }
button { cursor: pointer; background: var(--plain-tint); }
[hidden] { display: none; }
.operation { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
  padding: .6rem .75rem; }
.operation button { font-weight: 600; overflow-wrap: anywhere; }
.commands, .files { list-style: none; padding: 0; margin: .5rem 0; }
.commands li { display: flex; flex-wrap: wrap; gap: .25rem .75rem; align-items: center;
  margin: .3rem 0; }
.commands button { min-height: 1.75rem; padding: 0 .6rem; font-size: .875rem; }
code { font: .875rem/1.45 ui-monospace, Menlo, Consolas, monospace; overflow-wrap: anywhere;
  background: var(--plain-tint); border-radius: .25rem; padding: .2rem .4rem; }
.files { display: flex; flex-wrap: wrap; gap: .25rem 1rem; }
#trouble:empty { display: none; }
#trouble { color: var(--bad); font-weight: 600; }
.notice { border-left: .3rem solid var(--line); border-radius: .25rem;
  background: var(--plain-tint); padding: .5rem .75rem; }
.notice.warn { border-color: var(--warn); background: var(--warn-tint); }
.notice.bad { border-color: var(--bad); background: var(--bad-tint); }
.words { font-family: ui-monospace, "SF Mono", Menlo, Consolas, monospace; font-size: .95rem; }
.badge { display: inline-block; padding: 0 .5em; border-radius: 1em; font-size: .875rem;
  background: var(--plain-tint); white-space: nowrap; }
.badge.good { background: var(--good-tint); color: var(--good); }
.badge.warn { background: var(--warn-tint); color: var(--warn); }
.badge.bad { background: var(--bad-tint); color: var(--bad); font-weight: 600; }
.facts { display: grid; grid-template-columns: max-content 1fr; gap: .25rem 1rem; margin: 1rem 0; }
.facts dt { color: var(--quiet); }
.facts dd { margin: 0; overflow-wrap: anywhere; }
table { border-collapse: collapse; width: 100%; background: var(--card);
  border: 1px solid var(--line); }
th, td { text-align: left; vertical-align: top; padding: .45rem .75rem;
  border-bottom: 1px solid var(--line); overflow-wrap: break-word; }
tbody th, .words, .free { overflow-wrap: anywhere; }
time, .id, .age { white-space: nowrap; }
.domain { display: inline-block; min-width: 5.5rem; overflow-wrap: anywhere; }
.cards tbody th { min-width: 7.5rem; }
thead th { color: var(--quiet); font-size: .875rem; font-weight: 600; white-space: nowrap; }
tbody th { font-weight: 600; }
.compact tbody th { font-weight: 400; white-space: nowrap; font-variant-numeric: tabular-nums; }
tbody tr:last-child > * { border-bottom: 0; }
pre { background: var(--card); border: 1px solid var(--line); border-radius: .25rem;
  margin: .5rem 0; padding: .75rem; overflow-x: auto;
  font: .8125rem/1.45 ui-monospace, Menlo, Consolas, monospace; }
summary { cursor: pointer; padding: .35rem 0; }
img { display: block; max-width: 100%; height: auto; border: 1px solid var(--line); }
@media (max-width: 46rem) {
  .compact th, .compact td { padding: .35rem .5rem; font-size: .9375rem; }
  .cards, .cards tbody, .cards tr, .cards td, .cards tbody th { display: block; }
  .cards { border: 0; background: none; }
  .cards thead { position: absolute; width: 1px; height: 1px; overflow: hidden;
    clip-path: inset(50%); }
  .cards tbody tr { background: var(--card); border: 1px solid var(--line); border-radius: .5rem;
    margin-bottom: .6rem; padding: .4rem .75rem; }
  .cards td, .cards tbody th { display: grid; grid-template-columns: 7.5rem 1fr; gap: .5rem;
    padding: .2rem 0; border: 0; white-space: normal; }
  .cards td::before { content: attr(data-label); color: var(--quiet); font-size: .875rem; }
  .cards tbody th { grid-template-columns: 1fr; }
  .cards td:empty { display: none; }
  .cards td > * { min-width: 0; overflow-wrap: anywhere; }
  time, .id { white-space: normal; }
  .cards tbody tr { position: relative; }
  .cards tbody th a::after { content: ""; position: absolute; inset: 0; border-radius: .5rem; }
  .cards td a { position: relative; }
  form label { flex: 0 0 4rem; }
  form input, form select { flex: 1 1 calc(100% - 5rem); }
  .operation button { flex: 1 1 100%; }
  .facts { grid-template-columns: 1fr; gap: 0; }
  .facts dd { margin-bottom: .5rem; }
}
@media print { nav, .skip, form, button { display: none; } }
"""


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


POLICY: Final = (
    f"default-src 'none'; style-src {_hash(SHEET)}; script-src {_hash(SCRIPT)}; "
    "connect-src 'self'; img-src 'self'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
"""Of every page (https://www.w3.org/TR/CSP3/): this style, this script, panicd's pictures."""
