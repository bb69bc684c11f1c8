// Elements and words. Everything on the page is made here, with `textContent` and attributes, never from markup: what
// came from mail stays text, whatever it says. Characters that would turn the reading direction around or hide are
// spelled out, as `causeway trace` does on a terminal.
//
// Not here: what is shown (the views), where it comes from (api.js).

const HARMFUL = /[\u0000-\u0008\u000b-\u001f\u007f-\u009f\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]/g;

/** Text of strangers, harmless to look at. */
export const clean = (text) =>
  String(text).replace(HARMFUL, (c) => `\\u{${c.codePointAt(0).toString(16)}}`);

function build(element, props, children) {
  for (const [name, value] of Object.entries(props ?? {})) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "on") for (const [event, act] of Object.entries(value)) element.addEventListener(event, act);
    else if (name === "test") element.dataset.testid = value;
    else if (name === "value" || name === "checked" || name === "disabled") element[name] = value;
    else element.setAttribute(name, value === true ? "" : clean(value));
  }
  append(element, children);
  return element;
}

function append(element, children) {
  for (const child of children.flat(Infinity)) {
    if (child === null || child === undefined || child === false) continue;
    element.append(child instanceof Node ? child : clean(child));
  }
}

/** An element. `on` holds listeners, `test` the name that tests know it by. */
export const h = (tag, props, ...children) => build(document.createElement(tag), props, children);

/** The same in a picture. */
export const s = (tag, props, ...children) =>
  build(document.createElementNS("http://www.w3.org/2000/svg", tag), props, children);

/** Replaces the text, but only if it differs: a selection in it survives a refresh. */
export function setText(element, text) {
  const wanted = clean(text);
  if (element.textContent !== wanted) element.textContent = wanted;
}

/** Replaces what is in `parent`. */
export function fill(parent, ...children) {
  parent.replaceChildren();
  append(parent, children);
}

/**
 * Keeps one child of `parent` per item, in their order. `make` gives `{element, update}`; what is there stays there, so
 * that focus, selection and open parts outlive a refresh.
 */
export function keyed(parent, items, keyOf, make) {
  const known = (parent.known ??= new Map());
  const seen = new Set();
  items.forEach((item, place) => {
    const key = keyOf(item);
    seen.add(key);
    let row = known.get(key);
    if (!row) known.set(key, (row = make(item)));
    row.update?.(item);
    if (parent.children[place] !== row.element) parent.insertBefore(row.element, parent.children[place] ?? null);
  });
  for (const [key, row] of known) {
    if (seen.has(key)) continue;
    row.element.remove();
    known.delete(key);
  }
}

// ── numbers ─────────────────────────────────────────────────────────────────────────────────────────────────────────

const whole = new Intl.NumberFormat("en-GB");

/** 12,345 */
export const number = (value) => (value === null || value === undefined ? "–" : whole.format(value));

/** 1.2 MiB */
export function bytes(value) {
  if (value === null || value === undefined) return "–";
  let [amount, unit] = [value, 0];
  const units = ["B", "KiB", "MiB", "GiB", "TiB"];
  while (amount >= 1024 && unit < units.length - 1) [amount, unit] = [amount / 1024, unit + 1];
  return `${unit === 0 || amount >= 100 ? Math.round(amount) : amount.toFixed(1)} ${units[unit]}`;
}

/** 1 copy, 2 copies */
export const counted = (count, one, many = `${one}s`) => `${number(count)} ${count === 1 ? one : many}`;

/** A length of time in one unit, as the command line says it: 42 s, 17 min, 3 h, 2 d. */
export function span(seconds) {
  const value = Math.max(0, Math.floor(seconds));
  if (value < 120) return `${value} s`;
  if (value < 7200) return `${Math.floor(value / 60)} min`;
  if (value < 172800) return `${Math.floor(value / 3600)} h`;
  return `${Math.floor(value / 86400)} d`;
}

// ── time ────────────────────────────────────────────────────────────────────────────────────────────────────────────

/** The daemon's clock less this one's, in ms: through a tunnel they are two machines. */
let skew = 0;

/** Learns what the daemon's clock says, from its Date field. Under two seconds it is the rounding. */
export function heardClock(date) {
  const there = Date.parse(date ?? "");
  if (Number.isNaN(there)) return;
  const off = there + 500 - Date.now();
  skew = Math.abs(off) < 2000 ? 0 : off;
}

/** Now, by the daemon's clock, in ms. */
export const now = () => Date.now() + skew;

const two = (value) => String(value).padStart(2, "0");

/** 2026-11-20 14:30:15, local time. */
export function absolute(when) {
  const t = new Date(when);
  if (Number.isNaN(t.getTime())) return "–";
  const day = `${t.getFullYear()}-${two(t.getMonth() + 1)}-${two(t.getDate())}`;
  return `${day} ${two(t.getHours())}:${two(t.getMinutes())}:${two(t.getSeconds())}`;
}

/** 14:30:15, local time. */
export const clock = (when) => absolute(when).slice(11);

function relative(when, form) {
  const off = (Date.parse(when) - now()) / 1000;
  if (form === "due" && off <= 0) return "now";
  if (form === "age") return span(-off);
  if (off > 0) return `in ${span(off)}`;
  return -off < 1 ? "just now" : `${span(-off)} ago`;
}

/** A time, relative, with the absolute one and the UTC one behind it. It goes on by itself. */
export function time(when, form = "ago") {
  if (!when) return h("span", { class: "none" }, "–");
  const title = `${absolute(when)} here\n${when}`;
  return h("time", { datetime: when, title, class: "tick", "data-form": form }, relative(when, form));
}

setInterval(() => {
  if (document.hidden) return;
  for (const one of document.querySelectorAll("time.tick")) {
    setText(one, relative(one.getAttribute("datetime"), one.dataset.form));
  }
}, 1000);

// ── small things that several views show ────────────────────────────────────────────────────────────────────────────

/** An address that may be long: cut at the end, whole in the title. The empty sender is a report's. */
export const address = (text) =>
  text ? h("span", { class: "address", title: text }, text) : h("span", { class: "address none", title: "a report: its sender is empty" }, "<>");

/** A word with a colour that means something; the word alone says it, too. */
export const badge = (word, tone = "calm") => h("span", { class: `badge ${tone}` }, h("i", { class: "dot", "aria-hidden": "true" }), word);

/** What there is nothing of, what that means, and what to do next. */
export const empty = (title, ...more) =>
  h("div", { class: "empty" }, h("p", { class: "empty-title" }, title), more.map((one) => (one instanceof Node ? one : h("p", {}, one))));

/** What went wrong, where it went wrong. */
export const trouble = (text, hint) =>
  h("div", { class: "trouble", role: "alert" }, h("p", {}, text), hint && h("p", { class: "muted" }, hint));

/** One choice of few, all of them to be seen. */
export function choice(label, options, current, choose) {
  return h(
    "div",
    { class: "choice", role: "group", "aria-label": label },
    options.map(([value, word]) =>
      h("button", { type: "button", "aria-pressed": String(value === current), on: { click: () => choose(value) } }, word),
    ),
  );
}

/** A field with its name above it. */
export const field = (label, input, hint) =>
  h("label", { class: "field" }, h("span", { class: "label" }, label), input, hint && h("span", { class: "hint" }, hint));

/** A `<select>`. */
export function select(options, current, props = {}) {
  const element = h("select", props, options.map(([value, word]) => h("option", { value }, word)));
  element.value = current ?? "";
  return element;
}

/** `a@x and 3 more` */
export function people(all, count = all.length) {
  const first = address(all[0] ?? "");
  if (count <= 1) return first;
  return h("span", { class: "people", title: all.join("\n") }, first, h("span", { class: "more" }, `+${number(count - 1)}`));
}
