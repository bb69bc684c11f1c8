"""What `peers.py sweep` measured, as a Markdown table and as a picture: throughput against concurrency.

The picture is an SVG of our own making: both axes logarithmic, one panel for each kind of work, the median as a line and the
slowest and fastest run as a whisker. Peers that do not sync their spool before the 250 are drawn dashed, with hollow marks, and
called "not durable" in picture and table. It has its own background and is readable on light and dark pages.
"""
import json, math, os, statistics
from html import escape

# Seen with strace over 150 messages each: not one fsync, fdatasync or sync_file_range; and none in the disk's own count.
NOT_DURABLE = ('haraka', 'opensmtpd')
NAMES = {'direct': 'no relay: generator to sink', 'causeway': 'Causeway, durable', 'causeway-early': 'Causeway, delivered-or-durable',
         'postfix': 'Postfix', 'exim': 'Exim', 'eximq': 'Exim, queue first', 'haraka': 'Haraka', 'opensmtpd': 'OpenSMTPD'}
ORDER = list(NAMES)
# (on light, on dark); told apart also by those who do not see all colours, as the marks differ too
COLOURS = {'direct': ('#8a8f98', '#8b939e'), 'causeway': ('#0b62b8', '#5cb0ff'), 'causeway-early': ('#00856a', '#3fd6b0'),
           'postfix': ('#c4470a', '#ff955c'), 'exim': ('#a3327f', '#f08fcf'), 'eximq': ('#a3327f', '#f08fcf'),
           'haraka': ('#8a6a00', '#e0b93c'), 'opensmtpd': ('#5b4bb0', '#b3a5ff')}
INK, SOFT, GRID, PAPER = ('#1c2128', '#e6e9ed'), ('#59626d', '#a2abb5'), ('#dfe3e8', '#343b45'), ('#ffffff', '#161b22')
WIDTH, PANEL_W, PANEL_H, LEFT, GAP_X, GAP_Y = 980, 408, 250, 62, 74, 66


def name(peer): return NAMES.get(peer, peer)


def mark_of(peer): return 'not durable' if peer in NOT_DURABLE else ''


def load(path):
    about, runs = {}, {}
    for line in open(path):
        row = json.loads(line)
        if 'about' in row: about = row
        elif row['ok'] and row['rcpts'] == 1 and row['d'] and not row.get('two'):
            runs.setdefault((row['tls'], row['size']), {}).setdefault(row['peer'], {}).setdefault(row['sess'], []).append(row)
    return about, runs


def median(runs, key): return statistics.median(run.get(key) or 0 for run in runs)


def work(tls, size): return f"{size >> 10} KiB, {'TLS both ways' if tls else 'in the clear'}"


def order(peers): return sorted(peers, key=lambda p: (ORDER.index(p) if p in ORDER else 99, p))


# ---------------------------------------------------------------- table
def table(about, runs, picture):
    out = []
    say = out.append
    say('# Throughput against concurrency\n')
    if about:
        say(f"{about['date']}; {about['about']}; spools on {about['fs']}; "
            + ', '.join(f'{k} {v}' for k, v in about['versions'].items() if k not in ('exim4-base', 'libidn12')) + '.\n')
    say('Messages per second from the first connection until the sink has the last one, medians; connections are used again, and each brings one\n'
        'message after the other. Generator, relay and sink share the machine, so `direct`, with no relay between them, is the ceiling.\n'
        '**Not durable**: the 250 comes before anything is synced, so a power cut loses acknowledged mail; these rates are not to be compared with the\n'
        'others. `causeway-early` is `acknowledge = "delivered-or-durable"`: the 250 follows the next hop\'s 250, or the sync; nothing is lost either.\n')
    say(f'![throughput against concurrency]({picture})\n')
    for (tls, size), peers in sorted(runs.items()):
        cells = sorted({s for by in peers.values() for s in by})
        shown = order(peers)
        say(f'## {work(tls, size)}\n')
        say('| connections | ' + ' | '.join(p + (f' ({mark_of(p)})' if mark_of(p) else '') for p in shown) + ' | Causeway ÷ best durable peer | early ÷ durable |')
        say('|---' * (len(shown) + 3) + '|')
        for s in cells:
            rate = {p: median(peers[p][s], 'rate') for p in shown if s in peers[p]}
            rivals = [rate[p] for p in rate if p not in NOT_DURABLE and p != 'direct' and not p.startswith('causeway')]
            best = f"{rate['causeway'] / max(rivals):.1f} ×" if rivals and 'causeway' in rate else '–'
            early = f"{rate['causeway-early'] / rate['causeway']:.2f} ×" if {'causeway', 'causeway-early'} <= set(rate) else '–'
            say(f'| {s} | ' + ' | '.join(f'{rate[p]:.0f}' if p in rate else '–' for p in shown) + f' | {best} | {early} |')
        say('')
        with_cost = [p for p in shown if p != 'direct']
        if not with_cost: continue
        say('CPU of the relay in µs per message, the flushes of the disk per message, and MAIL to 250 at the client in ms (p50 / p99):\n')
        say('| connections | ' + ' | '.join(with_cost) + ' |')
        say('|---' * (len(with_cost) + 1) + '|')
        for s in cells:
            def cost(p):
                if s not in peers[p]: return '–'
                r = peers[p][s]
                return f"{median(r, 'cpu_us'):.0f}; {median(r, 'flush_per_msg'):.2f}; {median(r, 'ack_p50_us') / 1e3:.1f} / {median(r, 'ack_p99_us') / 1e3:.1f}"
            say(f'| {s} | ' + ' | '.join(cost(p) for p in with_cost) + ' |')
        say('')
    early = [median(p['causeway-early'][s], 'rate') / median(p['causeway'][s], 'rate')
             for (tls, size), p in runs.items() if size == 1024 and not tls and {'causeway', 'causeway-early'} <= set(p)
             for s in p['causeway'] if s in p['causeway-early']]
    if early:
        say(f'`delivered-or-durable` beside `durable` at 1 KiB in the clear: {min(early):.2f} to {max(early):.2f} ×, median {statistics.median(early):.2f} × (goal: at least 1.3 ×).')
    count = {len(r) for peers in runs.values() for by in peers.values() for r in by.values()}
    say(f'\nRuns per figure: {min(count)}' + (f' to {max(count)}' if len(count) > 1 else '') + '. A dash: not measured, or not finished in time; more connections were not tried then.')
    return '\n'.join(out) + '\n'


# ---------------------------------------------------------------- picture
class Log:
    """A logarithmic axis."""
    def __init__(self, low, high, start, end):
        self.low, self.span = math.log(low), math.log(high) - math.log(low)
        self.start, self.length = start, end - start
    def at(self, value): return self.start + self.length * (math.log(value) - self.low) / self.span


def steps(low, high):
    """1, 2, 5, 10… from below `low` to above `high`."""
    ladder = [m * 10 ** e for e in range(0, 7) for m in (1, 2, 5)]
    first = max([v for v in ladder if v <= low], default=1)
    last = min([v for v in ladder if v >= high], default=ladder[-1])
    return [v for v in ladder if first <= v <= last]


def short(value): return f'{value // 1000}k' if value >= 1000 and value % 1000 == 0 else f'{value / 1000:g}k' if value >= 1000 else str(value)


def symbol(peer, x, y, size=4.2):
    """A mark of the peer's own; hollow where it is not durable."""
    kind = (ORDER.index(peer) if peer in ORDER else 0) % 5
    style = f'class="p-{peer} hollow"' if peer in NOT_DURABLE else f'class="p-{peer} full"'
    if kind == 1: return f'<circle {style} cx="{x:.1f}" cy="{y:.1f}" r="{size}"/>'
    if kind == 3: return f'<rect {style} x="{x - size * .9:.1f}" y="{y - size * .9:.1f}" width="{size * 1.8:.1f}" height="{size * 1.8:.1f}"/>'
    shapes = {0: [(-1.2, 0), (0, -.35), (1.2, 0), (0, .35)], 2: [(0, -1.35), (1.35, 0), (0, 1.35), (-1.35, 0)], 4: [(0, -1.3), (1.2, .9), (-1.2, .9)]}
    points = ' '.join(f'{x + dx * size:.1f},{y + dy * size:.1f}' for dx, dy in shapes[kind])
    return f'<polygon {style} points="{points}"/>'


def style(mode):
    """The rules for light (0) or dark (1) pages."""
    rules = [f'.paper{{fill:{PAPER[mode]}}}', f'.ink{{fill:{INK[mode]}}}', f'.soft{{fill:{SOFT[mode]}}}', f'.grid{{stroke:{GRID[mode]}}}', f'.axis{{stroke:{SOFT[mode]}}}']
    for peer, colours in COLOURS.items():
        c = colours[mode]
        rules += [f'.l-{peer}{{stroke:{c}}}', f'.p-{peer}{{stroke:{c}}}', f'.p-{peer}.full{{fill:{c}}}', f'.p-{peer}.hollow{{fill:{PAPER[mode]}}}']
    return ''.join(rules)


def draw(about, runs, mode=None):
    """`mode` fixes light or dark, for programs that know no media queries; else the reader's page decides."""
    panels = sorted(runs)
    rows = [panels[i:i + 2] for i in range(0, len(panels), 2)]
    peers = order({p for by in runs.values() for p in by})
    columns = 3
    top = 74 + 22 * math.ceil(len(peers) / columns)
    height = top + len(rows) * (PANEL_H + GAP_Y) + 18
    css = '.t{font:12px system-ui,-apple-system,"Segoe UI",Roboto,Helvetica,Arial,sans-serif}.h{font-size:18px;font-weight:600}.w{font-size:13.5px;font-weight:600}.s{font-size:11px}' \
          '.line{fill:none;stroke-width:2;stroke-linejoin:round}.dash{stroke-dasharray:5 4}.dots{stroke-dasharray:1.5 3.5;stroke-linecap:round}.bar{stroke-width:1.2;opacity:.55}.full{stroke-width:1}.hollow{stroke-width:1.6}.grid{stroke-width:1}'
    css += style(mode or 0) + (f'@media(prefers-color-scheme:dark){{{style(1)}}}' if mode is None else '')
    out = [f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{height}" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="Throughput against concurrency">',
           f'<style>{css}</style>', f'<rect class="paper" width="{WIDTH}" height="{height}" rx="8"/>',
           '<text class="t h ink" x="24" y="34">Messages per second against connections</text>']
    versions = about.get('versions', {})
    said = f"{about['date']}; {about['about']}" if about else ''
    out.append(f'<text class="t s soft" x="24" y="53">{escape(said)}</text>')
    for i, peer in enumerate(peers):
        x, y = 24 + (i % columns) * 314, 78 + 22 * (i // columns)
        kind = 'dash' if peer in NOT_DURABLE else 'dots' if peer == 'direct' else ''
        version = versions.get({'exim': 'exim4-daemon-light', 'causeway-early': ''}.get(peer, peer), '')
        version = '' if peer.startswith('causeway') else version.split('-')[0].split('+')[0].split('~')[0]
        text = name(peer) + (f' {version}' if version else '') + (f' – {mark_of(peer)}' if mark_of(peer) else '')
        out += [f'<path class="line l-{peer} {kind}" d="M{x} {y - 4}h30"/>', symbol(peer, x + 15, y - 4), f'<text class="t ink" x="{x + 38}" y="{y}">{escape(text)}</text>']
    # One scale for all panels, so that they can be compared.
    rates = [max(run['rate'], 1) for by in runs.values() for of in by.values() for rs in of.values() for run in rs]
    ticks = steps(min(rates), max(rates))
    if len(ticks) < 2: ticks = [ticks[0], ticks[0] * 10]
    for r, row in enumerate(rows):
        for c, key in enumerate(row):
            x0, y0 = LEFT + c * (PANEL_W + GAP_X), top + 26 + r * (PANEL_H + GAP_Y)
            out += panel(runs[key], work(*key), x0, y0, ticks)
    return '\n'.join(out + ['</svg>']) + '\n'


def panel(peers, title, x0, y0, ticks):
    runs = [run for by in peers.values() for rs in by.values() for run in rs]
    sessions = sorted({run['sess'] for run in runs})
    x = Log(min(sessions) * .85, max(sessions) * 1.18, x0, x0 + PANEL_W) if len(sessions) > 1 else Log(sessions[0] / 2, sessions[0] * 2, x0, x0 + PANEL_W)
    y = Log(ticks[0], ticks[-1], y0 + PANEL_H, y0)
    out = [f'<text class="t w ink" x="{x0}" y="{y0 - 10}">{escape(title)}</text>']
    many = len(ticks) > 12
    for tick in ticks:
        if many and str(tick)[0] != '1': continue
        at = y.at(tick)
        out += [f'<path class="grid" d="M{x0} {at:.1f}h{PANEL_W}"/>', f'<text class="t s soft" x="{x0 - 7}" y="{at + 4:.1f}" text-anchor="end">{short(tick)}</text>']
    for tick in sessions:
        at = x.at(tick)
        out += [f'<path class="grid" d="M{at:.1f} {y0}v{PANEL_H}"/>', f'<text class="t s soft" x="{at:.1f}" y="{y0 + PANEL_H + 16}" text-anchor="middle">{tick}</text>']
    out += [f'<path class="axis" fill="none" d="M{x0} {y0}v{PANEL_H}h{PANEL_W}"/>',
            f'<text class="t s soft" x="{x0 + PANEL_W / 2:.0f}" y="{y0 + PANEL_H + 32}" text-anchor="middle">connections</text>']
    for peer in reversed(order(peers)):       # ours last, on top
        points = sorted(peers[peer].items())
        places = [(x.at(s), y.at(max(median(rs, 'rate'), 1))) for s, rs in points]
        kind = 'dash' if peer in NOT_DURABLE else 'dots' if peer == 'direct' else ''
        for (s, rs), (px, _) in zip(points, places):
            low, high = (y.at(max(f(run['rate'] for run in rs), 1)) for f in (min, max))
            if low - high > 1: out.append(f'<path class="bar l-{peer}" d="M{px:.1f} {low:.1f}V{high:.1f}"/>')
        out.append(f'<path class="line l-{peer} {kind}" d="M' + ' L'.join(f'{px:.1f} {py:.1f}' for px, py in places) + '"/>')
        out += [symbol(peer, px, py) for px, py in places]
    return out


def write(path, mode=None):
    about, runs = load(path)
    if not runs: raise SystemExit(f'{path}: nothing was finished')
    stem = path.removesuffix('.jsonl')
    with open(stem + '.svg', 'w') as f: f.write(draw(about, runs, mode))
    text = table(about, runs, os.path.basename(stem) + '.svg')
    with open(stem + '.md', 'w') as f: f.write(text)
    print(text)
