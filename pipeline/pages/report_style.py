"""The look of the report pages: light and dark by the reader's own setting, nothing fetched.

A module and not a file, so that it ships with the package and counts as the report's code.
"""

STYLE = """\
:root { color-scheme: light dark;
  --page: #f6f7f9; --card: #ffffff; --ink: #1b2330; --soft: #5c6779; --rule: #e2e6ec; --accent: #2f6fde;
  --good: #0b7a53; --good-back: #e2f4ec; --bad: #b3352c; --bad-back: #fbe9e7; --warn: #8a5a00; --warn-back: #fdf1d8;
  --series-0: #98a2b3; --series-1: #3b78e7; --series-2: #0f9d7a; --series-3: #d9822b; --series-4: #8f5fd6; --series-5: #c8456b; }
@media (prefers-color-scheme: dark) { :root {
  --page: #12161c; --card: #1a2029; --ink: #e6eaf0; --soft: #98a3b3; --rule: #2b3440; --accent: #7aa8ff;
  --good: #5fd3a4; --good-back: #15352a; --bad: #ff938a; --bad-back: #3d1f1d; --warn: #f0c060; --warn-back: #3a2e14;
  --series-0: #77839a; --series-1: #6b9df5; --series-2: #35c59c; --series-3: #f0a050; --series-4: #b08cf0; --series-5: #ee7b9b; } }
* { box-sizing: border-box }
body { margin: 0; background: var(--page); color: var(--ink); font: 15px/1.55 system-ui, -apple-system, "Segoe UI", "Noto Sans",
  "Noto Sans CJK SC", "PingFang SC", "Microsoft YaHei", sans-serif }
main { max-width: 980px; margin: 0 auto; padding: 36px 20px 60px }
h1 { font-size: 26px; line-height: 1.25; margin: 0 0 4px; letter-spacing: -.01em }
h2 { font-size: 17px; margin: 0 0 12px }
p { margin: 0 0 12px } .lead { color: var(--soft); margin-bottom: 24px }
section { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 20px 22px; margin-bottom: 18px; overflow-x: auto }
.tiles { display: grid; grid-template-columns: repeat(auto-fit, minmax(270px, 1fr)); gap: 14px; margin-bottom: 18px }
.tile { background: var(--card); border: 1px solid var(--rule); border-radius: 10px; padding: 14px 16px }
.tiles + section { margin-top: 0 } .tile b { display: block; font-size: 27px; line-height: 1.2; font-weight: 650; font-variant-numeric: tabular-nums }
.tile span { color: var(--soft); font-size: 13px }
table { border-collapse: collapse; width: 100%; font-size: 14px }
th, td { text-align: left; padding: 7px 10px; border-bottom: 1px solid var(--rule); vertical-align: top }
th { font-weight: 600; color: var(--soft); font-size: 12.5px } tbody tr:last-child td { border-bottom: 0 }
td.number, th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap }
td small { display: block; color: var(--soft); font-size: 12px } tr.sub td:first-child { padding-left: 26px; color: var(--soft) }
.up { color: var(--good) } .down { color: var(--bad) } .same { color: var(--soft) }
.badge { display: inline-block; border-radius: 5px; padding: 0 7px; font-size: 12px; line-height: 1.6; white-space: nowrap }
.right { color: var(--good); background: var(--good-back) }
.wrong { color: var(--bad); background: var(--bad-back) }
.chance-badge { color: var(--warn); background: var(--warn-back) }
.legend { display: flex; gap: 18px; flex-wrap: wrap; font-size: 13px; color: var(--soft); margin: 0 0 8px }
.legend i { display: inline-block; width: 11px; height: 11px; border-radius: 3px; margin-right: 6px }
svg { width: 100%; height: auto; font: 12px system-ui, sans-serif; display: block }
svg .label { fill: var(--ink) } svg .value, svg .tick { fill: var(--soft); font-size: 11px } svg .grid { stroke: var(--rule); fill: none }
svg .whisker { stroke: var(--ink); stroke-opacity: .55; fill: none } svg .chance { stroke: var(--bad); stroke-dasharray: 3 3; fill: none }
svg .line { fill: none; stroke-width: 1.8 }
svg .series-0 { fill: var(--series-0) }
svg .series-1 { fill: var(--series-1) }
svg .series-2 { fill: var(--series-2) }
svg .series-3 { fill: var(--series-3) }
svg .series-4 { fill: var(--series-4) }
svg .series-5 { fill: var(--series-5) }
svg .line-0 { stroke: var(--series-0) }
svg .line-1 { stroke: var(--series-1) }
svg .line-2 { stroke: var(--series-2) }
svg .line-3 { stroke: var(--series-3) }
svg .line-4 { stroke: var(--series-4) }
svg .line-5 { stroke: var(--series-5) }
.sample { border-top: 1px solid var(--rule); padding: 12px 0 } .sample:first-of-type { border-top: 0; padding-top: 0 }
.sample p { margin: 0 0 4px } .sample .who { color: var(--soft); display: inline-block; min-width: 46px; font-size: 13px }
.sample .expected { color: var(--soft); font-size: 13.5px }
dl { margin: 0; font-size: 13.5px; color: var(--soft) } dt { color: var(--ink); font-weight: 600; margin-top: 8px } dd { margin: 0 }
"""
