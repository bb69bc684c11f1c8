// The flow: where mail comes from, what the directory said, by which connector it goes, and where to. A band is as thick
// as many recipients take it, and its colour says what became of them; thin ones keep a width that can be seen and hit,
// because the three that fail are what one looks for among the thousands that do not.
//
// On a narrow page the picture keeps its two ends, and the list below it says the rest.

import { every, get } from "./api.js";
import { address, badge, bytes, choice, clock, empty, fill, h, keyed, number, s, setText, span, time, trouble } from "./dom.js";
import { drawer, go, link, shut } from "./shell.js";
import { onStatus } from "./status.js";
import sankey from "./vendor/d3-sankey/sankey.js";
import { justify } from "./vendor/d3-sankey/align.js";

const SECONDS = 4;
const STATES = ["delivered", "waiting", "deferred", "failed"];
const TONES = { delivered: "good", waiting: "calm", deferred: "warn", failed: "bad" };
const COLUMNS = [
  ["origin", "Comes from"],
  ["verdict", "The directory says"],
  ["connector", "Leaves by"],
  ["hop", "Next hop"],
];
/** More next hops than these become one node: a picture of two hundred lines shows nothing. */
const HOPS = 16;
/** A band is at least so thick, in px. */
const THIN = 2;
/** One recipient is at most so thick: two messages at night are no flood. */
const THICK = 26;
const NARROW = 640;
/** From the end of one node to the next there is at least so much, in px: a label with air above and below. */
const ROOM = 27;

const still = window.matchMedia("(prefers-reduced-motion: reduce)");

/** What stands for an empty connector or hop: the recipient went nowhere. */
const NOWHERE = { connector: "none: not accepted", hop: "nowhere" };

export function flow(place, params) {
  let minutes = Number(params.minutes) || 15;
  let data = null;
  const figures = h("dl", { class: "figures" });
  const choices = h("div", {});
  const legend = h("div", { class: "legend" }, STATES.map((one) => badge(one, TONES[one])));
  const remark = h("p", { class: "muted small remark" });
  const picture = h("div", { class: "picture card" });
  const ways = h("div", { class: "card ways" });
  const fault = h("div", {});
  fill(place, figures, h("div", { class: "bar" }, h("h1", {}, "Mail flow"), choices, h("span", { class: "stretch" }), legend), fault, picture, remark, ways);

  const drawn = painter(picture, (chosen) => go("flow", { minutes: minutes === 15 ? "" : minutes, ...chosen }));
  const listed = wayTable(ways, (path) => go("flow", { minutes: minutes === 15 ? "" : minutes, ...wanted(path) }));
  const messages = messageDrawer(() => go("flow", { minutes: minutes === 15 ? "" : minutes }));

  const asking = every(SECONDS * 1000, async (signal) => {
    try {
      data = await get("/api/v1/flow", { minutes }, signal);
      fill(fault);
    } catch (error) {
      if (signal.aborted) return;
      if (!data || error.status) fill(fault, trouble(error.message, "What is shown below, if anything, is older."));
      return;
    }
    paint();
    messages.refresh();
  });

  function paint() {
    if (!data) return;
    const since = Date.parse(data.since);
    setText(remark, data.complete ? "" : `The picture begins at ${clock(since)}: so far back the relay remembers. Older mail is in trace.`);
    drawn(data.paths);
    listed(data.paths);
  }

  function choose() {
    fill(choices, choice("Time", [[5, "5 min"], [15, "15 min"], [60, "1 h"]], minutes, (value) => go("flow", { minutes: value === 15 ? "" : value })));
  }

  const resize = new ResizeObserver(paint);
  resize.observe(picture);
  const stopStatus = onStatus((now) => tellFigures(figures, now));
  choose();
  messages.show(params, minutes);

  return {
    change(next) {
      const before = minutes;
      minutes = Number(next.minutes) || 15;
      if (before !== minutes) {
        choose();
        asking.now();
      }
      messages.show(next, minutes);
    },
    refresh: () => asking.now(),
    search: () => picture.querySelector("[tabindex='0']")?.focus(),
    stop() {
      asking.stop();
      resize.disconnect();
      stopStatus();
      messages.stop();
    },
  };
}

/** What the daemon is asked for when this way is meant: an empty connector is none. */
const wanted = (path) => ({ origin: path.origin, verdict: path.verdict, connector: path.connector, hop: path.hop });

// ── figures ─────────────────────────────────────────────────────────────────────────────────────────────────────────

function tellFigures(figures, now) {
  const all = [
    ["accepted", "Accepted/min", number(now.accepted_a_minute), ""],
    ["delivered", "Delivered/min", number(now.delivered_a_minute), ""],
    ["waiting", "Waiting", number(now.messages), "", link("queue")],
    ["oldest", "Oldest", now.oldest ? time(now.oldest, "age") : "–", now.oldest],
    ["held", "Held", number(now.held), now.held ? "warn" : "", link("queue", { status: "held" })],
    ["connections", "Connections", number(now.connections), ""],
    ["delivery", "Delivery, p99", now.delivery?.p99 == null ? "–" : `≤ ${now.delivery.p99 < 10_000 ? `${number(now.delivery.p99)} ms` : span(now.delivery.p99 / 1000)}`, ""],
  ];
  keyed(figures, all, ([key]) => key, ([key, label, , , href]) => {
    const value = h("dd", {});
    const title = key === "delivery" ? "From acceptance to the next hop's 250: 99 of 100 took at most so long" : null;
    const element = h("div", { title }, h("dt", {}, href ? h("a", { href }, label) : label), value);
    let shown = null;
    return {
      element,
      update([, , next, tone]) {
        element.className = tone === "warn" ? "warn" : "";
        // A time goes on by itself; it is made anew only when it is another.
        const sign = next instanceof Node ? next.getAttribute("datetime") : next;
        if (sign !== shown) fill(value, next);
        shown = sign;
      },
    };
  });
}

// ── picture ─────────────────────────────────────────────────────────────────────────────────────────────────────────

/** Paths become nodes and links, one link for each state of each pair. */
function graph(paths, columns) {
  const nodes = new Map();
  const links = new Map();
  const hops = new Map();
  const total = (path) => STATES.reduce((sum, one) => sum + (path[one] ?? 0), 0);
  for (const path of paths) hops.set(path.hop, (hops.get(path.hop) ?? 0) + total(path));
  const shown = new Set([...hops].sort((a, b) => b[1] - a[1]).slice(0, hops.size > HOPS ? HOPS - 1 : HOPS).map(([hop]) => hop));
  const node = (field, value) => {
    const key = `${field} ${value}`;
    if (!nodes.has(key)) nodes.set(key, { key, field, name: value, states: {} });
    return nodes.get(key);
  };
  for (const path of paths) {
    if (total(path) === 0) continue;
    const lumped = !shown.has(path.hop);
    const stops = columns.map(([field]) => node(field, field === "hop" && lumped ? null : (path[field] ?? "")));
    for (const state of STATES) {
      const count = path[state] ?? 0;
      if (!count) continue;
      for (const stop of stops) stop.states[state] = (stop.states[state] ?? 0) + count;
      for (let i = 1; i < stops.length; i++) {
        const key = `${stops[i - 1].key} > ${stops[i].key} ${state}`;
        if (!links.has(key)) links.set(key, { key, state, source: stops[i - 1].key, target: stops[i].key, value: 0 });
        links.get(key).value += count;
      }
    }
  }
  const place = new Map(STATES.map((one, index) => [one, index]));
  return {
    nodes: [...nodes.values()],
    links: [...links.values()].sort((a, b) => place.get(a.state) - place.get(b.state)),
    lumped: hops.size - shown.size,
  };
}

/** What is drawn thicker than it is, so that it can be seen, must not take the room of the next one's label. */
function spread(nodes) {
  const columns = new Map();
  for (const node of nodes) columns.set(node.layer, [...(columns.get(node.layer) ?? []), node]);
  for (const column of columns.values()) {
    let free = 0;
    for (const node of column.sort((a, b) => a.y0 - b.y0)) {
      const down = Math.max(0, free - node.y0);
      node.y0 += down;
      node.y1 += down;
      free = Math.max(node.y1, node.y0 + THIN) + ROOM;
    }
  }
}

const word = (node, lumped) => (node.name === null ? `${lumped} others` : node.name || NOWHERE[node.field] || "unknown");

/** What choosing it asks for. Those that were summed up have no name to ask by. */
const asked = (node) => (node.name === null || (node.field === "hop" && node.name === "others") ? {} : { [node.field]: node.name });

function painter(place, choose) {
  const titles = s("g", { class: "titles", "aria-hidden": "true" });
  const bands = s("g", {});
  const streams = s("g", { class: "streams", "aria-hidden": "true" });
  const boxes = s("g", {});
  const svg = s("svg", { role: "group", "aria-label": "Mail flow. Arrow keys go from band to band, Enter shows the messages." }, titles, bands, streams, boxes);
  const none = empty(
    "No mail has passed in this time.",
    "A message shows here as soon as it is accepted or refused, within a few seconds.",
    "If there should be some: see whether the senders reach this host's port 25, or ask Explain what would become of a message.",
  );
  let geometry = new Map();
  let frame = 0;

  svg.addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
    const all = [...svg.querySelectorAll("[role=button]")];
    const at = all.indexOf(document.activeElement);
    if (event.key === "Enter" || event.key === " ") document.activeElement.dispatchEvent(new MouseEvent("click", { bubbles: true }));
    else if (step && at >= 0) {
      const next = all[(at + step + all.length) % all.length];
      for (const one of all) one.setAttribute("tabindex", one === next ? "0" : "-1");
      next.focus();
    } else return;
    event.preventDefault();
  });

  return (paths) => {
    const width = place.clientWidth - 32;
    if (width < 100) return;
    const narrow = width < NARROW;
    const columns = narrow ? [COLUMNS[0], COLUMNS[2]] : COLUMNS;
    const { nodes, links, lumped } = graph(paths, columns);
    if (!nodes.length) {
      if (!none.isConnected) fill(place, none);
      geometry = new Map();
      for (const group of [bands, boxes, streams]) keyed(group, [], () => "", () => ({}));
      return;
    }
    if (!svg.isConnected) fill(place, svg);
    const rows = Math.max(...columns.map(([field]) => nodes.filter((node) => node.field === field).length));
    const least = Math.max(narrow ? 220 : 340, Math.min(900, rows * 40 + 40));
    const [left, right] = narrow ? [0, 0] : [150, Math.max(170, Math.min(280, width * 0.21))];
    const most = Math.max(...columns.map(([column]) => nodes.filter(({ field }) => field === column).reduce((sum, node) => sum + total(node), 0)));
    const bottom = Math.min(least - 12, 40 + most * THICK + (rows - 1) * ROOM);
    const depth = new Map(columns.map(([field], index) => [field, index]));
    const layout = sankey()
      .nodeId((node) => node.key)
      .nodeWidth(10)
      .nodePadding(ROOM)
      .nodeAlign((node, count) => depth.get(node.field) ?? justify(node, count))
      .extent([[left + 2, 40], [width - right - 2, bottom]])
      .iterations(12);
    layout({ nodes, links });
    spread(nodes);
    layout.update({ nodes, links });
    const height = Math.ceil(Math.max(least, ...nodes.map((node) => node.y1 + 12)));
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("height", height);
    const text = (node) => word(node, lumped);
    drawTitles(titles, columns, nodes, narrow);
    drawBoxes(boxes, nodes, text, narrow, right, choose);
    drawBands(bands, links, text, choose);
    keyed(streams, links.filter((one) => one.state === "delivered" && one.width > 3).sort((a, b) => b.width - a.width).slice(0, 24), (one) => one.key, () => {
      const element = s("path", { class: "stream" });
      return { element, update: (one) => (element.dataset.key = one.key) };
    });
    move(links, nodes);
    const first = svg.querySelector("[role=button]");
    if (!svg.querySelector("[role=button][tabindex='0']")) first?.setAttribute("tabindex", "0");
  };

  /** From where things are to where they belong, in half a second; at once for those who want it still. */
  function move(links, nodes) {
    const goal = new Map();
    for (const one of links) {
      // Round numbers, so that what stands still stands quite still.
      goal.set(one.key, [one.source.x1, one.target.x0, one.y0, one.y1, Math.max(one.width, THIN)]);
    }
    for (const one of nodes) goal.set(one.key, [one.x0, one.x1, one.y0, Math.max(one.y1, one.y0 + THIN), 0]);
    const from = geometry;
    geometry = goal;
    cancelAnimationFrame(frame);
    const put = (part) => {
      const at = (key) => {
        const [end, begin] = [goal.get(key), from.get(key)];
        return begin && part < 1 ? end.map((value, index) => begin[index] + (value - begin[index]) * part) : end;
      };
      for (const element of bands.children) {
        const [x0, x1, y0, y1, width] = at(element.dataset.key);
        element.setAttribute("d", ribbon(x0, x1, y0, y1, width));
      }
      for (const element of streams.children) {
        const [x0, x1, y0, y1] = at(element.dataset.key);
        const middle = (x0 + x1) / 2;
        element.setAttribute("d", `M${x0},${y0}C${middle},${y0} ${middle},${y1} ${x1},${y1}`);
      }
      for (const element of boxes.children) {
        const [x0, x1, y0, y1] = at(element.dataset.key);
        putBox(element, x0, x1, y0, y1);
      }
    };
    const begin = performance.now();
    const step = (at) => {
      const part = Math.min(1, (at - begin) / 500);
      put(part * (2 - part));
      if (part < 1) frame = requestAnimationFrame(step);
    };
    if (still.matches || from.size === 0) put(1);
    else frame = requestAnimationFrame(step);
  }
}

function putBox(element, x0, x1, y0, y1) {
  const [rect, label] = element.children;
  rect.setAttribute("x", x0);
  rect.setAttribute("y", y0);
  rect.setAttribute("width", x1 - x0);
  rect.setAttribute("height", Math.max(THIN, y1 - y0));
  const side = element.dataset.side;
  label.setAttribute("x", side === "left" ? x0 - 8 : x1 + 8);
  // Above its band where there is none beside it.
  label.setAttribute("y", side === "above" ? y0 - 5 : (y0 + y1) / 2);
  if (side === "above") label.setAttribute("x", element.dataset.last ? x1 : x0);
}

/** A filled band from one side to the other: what has an area can be hit in its middle. */
function ribbon(x0, x1, y0, y1, width) {
  const [half, middle] = [width / 2, (x0 + x1) / 2];
  return (
    `M${x0},${y0 - half}C${middle},${y0 - half} ${middle},${y1 - half} ${x1},${y1 - half}` +
    `L${x1},${y1 + half}C${middle},${y1 + half} ${middle},${y0 + half} ${x0},${y0 + half}Z`
  );
}

function drawTitles(group, columns, nodes, narrow) {
  keyed(group, columns, ([field]) => field, ([, title]) => ({ element: s("text", { class: "column", y: 12 }, title) }));
  columns.forEach(([field], index) => {
    const first = nodes.find((node) => node.field === field);
    const last = index === columns.length - 1;
    const text = group.children[index];
    text.setAttribute("x", narrow && last ? first.x1 : first.x0);
    text.setAttribute("text-anchor", narrow && last ? "end" : "start");
  });
}

function drawBoxes(group, nodes, text, narrow, right, choose) {
  keyed(group, nodes, (node) => node.key, () => {
    const name = s("tspan", { class: "name" });
    const count = s("tspan", { class: "count", dx: 6 });
    const title = s("title", {});
    const label = s("text", {}, name, count);
    const element = s("g", { class: "node", role: "button", tabindex: "-1", test: "flow-node" }, s("rect", { rx: 2 }), label, title);
    let node = null;
    element.addEventListener("click", () => choose(asked(node)));
    return {
      element,
      update(next) {
        node = next;
        element.dataset.key = next.key;
        const side = narrow ? "above" : next.field === "origin" ? "left" : next.field === "hop" ? "right" : "above";
        element.dataset.side = side;
        const last = narrow && next.field === "connector";
        if (last) element.dataset.last = "true";
        else delete element.dataset.last;
        label.setAttribute("text-anchor", side === "left" || last ? "end" : "start");
        label.setAttribute("dominant-baseline", side === "above" ? "auto" : "central");
        const whole = text(next);
        const room = narrow ? 24 : side === "right" ? Math.floor((right - 66) / 7.4) : side === "left" ? 13 : 26;
        setText(name, whole.length > room ? `${whole.slice(0, room - 1)}…` : whole);
        setText(count, number(total(next)));
        const words = `${whole}: ${STATES.filter((one) => next.states[one]).map((one) => `${number(next.states[one])} ${one}`).join(", ")}`;
        setText(title, words);
        element.setAttribute("aria-label", words);
      },
    };
  });
}

const total = (node) => STATES.reduce((sum, one) => sum + (node.states[one] ?? 0), 0);

function drawBands(group, links, text, choose) {
  // Broad ones first: what is thin lies on top and can be hit.
  const ordered = [...links].sort((a, b) => b.width - a.width || (a.key < b.key ? -1 : 1));
  keyed(group, ordered, (one) => one.key, (first) => {
    const title = s("title", {});
    const element = s("path", { class: `band ${TONES[first.state]}`, role: "button", tabindex: "-1", test: "flow-band" }, title);
    let band = null;
    element.addEventListener("click", () => choose({ ...asked(band.source), ...asked(band.target), state: band.state }));
    return {
      element,
      update(next) {
        band = next;
        element.dataset.key = next.key;
        const words = `${text(next.source)} → ${text(next.target)}: ${number(next.value)} ${next.state}`;
        setText(title, words);
        element.setAttribute("aria-label", words);
      },
    };
  });
}

// ── ways as a table ─────────────────────────────────────────────────────────────────────────────────────────────────

function wayTable(place, choose) {
  const body = h("tbody", {});
  const head = ["Comes from", "The directory says", "Leaves by", "Next hop"].map((one) => h("th", { scope: "col" }, one));
  const figures = ["Delivered", "Waiting", "Deferred", "Failed", "Size"].map((one) => h("th", { scope: "col", class: "figure" }, one));
  const table = h("table", { class: "list way-list" }, h("caption", {}, "Every way mail took"), h("thead", {}, h("tr", {}, head, figures)), body);
  fill(place, table);
  return (paths) => {
    place.hidden = paths.length === 0;
    keyed(body, paths, (path) => [path.receive_connector, path.origin, path.verdict, path.connector, path.hop].join("\n"), (path) => {
      const open = h("button", { type: "button", class: "plain", title: path.receive_connector ? `by receive connector ${path.receive_connector}` : "" }, path.origin);
      const cells = STATES.map((state) => h("td", { class: `figure ${TONES[state]}`, "data-label": state }));
      const size = h("td", { class: "figure size", "data-label": "size" });
      const element = h(
        "tr",
        { class: "opens" },
        h("td", { class: "way-origin" }, open),
        h("td", { class: "way-verdict" }, path.verdict),
        h("td", { class: "way-connector" }, path.connector || h("span", { class: "none" }, NOWHERE.connector)),
        h("td", { class: "way-hop" }, path.hop ? h("span", { class: "address", title: path.hop }, path.hop) : h("span", { class: "none" }, "–")),
        cells,
        size,
      );
      element.addEventListener("click", () => choose(path));
      return {
        element,
        update(next) {
          STATES.forEach((state, index) => {
            setText(cells[index], number(next[state] ?? 0));
            cells[index].classList.toggle("zero", !next[state]);
          });
          setText(size, bytes(next.bytes));
        },
      };
    });
  };
}

// ── messages of a band ──────────────────────────────────────────────────────────────────────────────────────────────

function messageDrawer(closed) {
  let shown = null;
  let filter = null;
  let minutes = 15;
  let control = null;

  async function ask() {
    control?.abort();
    control = new AbortController();
    const { signal } = control;
    const place = shown.body;
    try {
      const answer = await get("/api/v1/flow/messages", { minutes, ...filter, limit: 100 }, signal);
      if (signal.aborted || !shown?.isOpen()) return;
      if (!answer.messages.length) {
        delete place.known;
        fill(place, empty("No message here any more.", "What passed this way is older than the time shown."));
        return;
      }
      let list = place.querySelector("ul.messages");
      if (!list) fill(place, (list = h("ul", { class: "messages" })), h("p", { class: "muted small more-note" }));
      keyed(list, answer.messages, (one) => `${one.id ?? ""} ${one.time} ${[one.to].flat().join()} ${one.hop} ${one.state}`, messageRow);
      setText(place.querySelector(".more-note"), answer.more ? "There are more: the newest are shown. Trace finds the others." : "");
    } catch (error) {
      if (!signal.aborted && shown?.isOpen()) {
        delete place.known;
        fill(place, trouble(error.message));
      }
    }
  }

  return {
    show(params, time) {
      minutes = time;
      const next = Object.fromEntries(["origin", "verdict", "connector", "hop", "state"].filter((key) => key in params).map((key) => [key, params[key]]));
      if (Object.keys(next).length === 0) {
        filter = null;
        if (shown?.isOpen()) shut(false);
        return;
      }
      if (shown?.isOpen() && JSON.stringify(next) === JSON.stringify(filter)) return ask();
      filter = next;
      const words = ["origin", "verdict", "connector", "hop"].filter((key) => next[key]).map((key) => next[key]);
      const title = `${words.join(" → ") || "Messages"}${next.state ? `: ${next.state}` : ""}`;
      if (shown?.isOpen()) {
        setText(shown.heading, title);
        fill(shown.body, h("p", { class: "muted" }, "Asking…"));
      } else {
        shown = drawer(title, closed);
        fill(shown.body, h("p", { class: "muted" }, "Asking…"));
      }
      ask();
    },
    refresh: () => filter && shown?.isOpen() && ask(),
    stop: () => control?.abort(),
  };
}

function messageRow(one) {
  const to = [one.to].flat().filter(Boolean);
  const where = one.id ? link("trace", { id: one.id }) : link("trace", { to: to[0] ?? "", from: one.from ?? "" });
  const element = h(
    "li",
    {},
    h(
      "a",
      { href: where, test: "flow-message", title: "Its life in trace" },
      h("span", { class: "message-line" }, badge(one.state, TONES[one.state]), time(one.time)),
      h("span", { class: "message-line" }, h("span", { class: "muted arrow" }, "from"), address(one.from)),
      h("span", { class: "message-line" }, h("span", { class: "muted arrow" }, "to"), address(to.join(", "))),
      h("span", { class: "message-line muted small" }, [one.verdict, one.connector, one.hop].filter(Boolean).join(" → ")),
    ),
  );
  return { element };
}
