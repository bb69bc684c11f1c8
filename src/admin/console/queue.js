// The queue: copies that wait, filtered and sorted by the daemon, a page at a time; what can be done to them; and one
// message with all its copies and what its hops answered.
//
// A line is a copy. What is chosen is asked for by message, connector and hop together, so that the other copies of the
// same message are left alone.

import { every, get } from "./api.js";
import { VERB_NAMES, STANDS, change } from "./change.js";
import { absolute, address, badge, bytes, counted, empty, field, fill, h, keyed, number, people, select, setText, span, time, trouble } from "./dom.js";
import { drawer, go, here, link, shut } from "./shell.js";
import { onStatus, refresh as askStatus, status } from "./status.js";

const SECONDS = 5;
const PAGE = 50;
const narrow = window.matchMedia("(max-width: 820px)");
const FILTERS = ["sender", "recipient", "domain", "connector", "hop", "status", "older_than", "younger_than", "id"];
const AGES = [["", "any age"], ["300", "5 min and older"], ["900", "15 min and older"], ["3600", "1 h and older"], ["14400", "4 h and older"], ["86400", "1 d and older"], ["172800", "2 d and older"]];
const STATES = [["", "any"], ["waiting", "waiting"], ["active", "active"], ["deferred", "deferred"], ["held", "held"]];
/** Title, what it is sorted by. */
const COLUMNS = [
  ["Stands", "status"],
  ["Age", "age", "figure"],
  ["From", "sender"],
  ["To", "recipient"],
  ["Via", "connector"],
  ["Tried", "attempts", "figure"],
  ["Next", "next", "figure"],
  ["Size", "size", "figure"],
];
/** Ages as the API names them, in seconds. */
const UP_TO = { "5m": [300, "5 min"], "15m": [900, "15 min"], "1h": [3600, "1 h"], "4h": [14400, "4 h"], "1d": [86400, "1 d"], "2d": [172800, "2 d"] };

const filterOf = (params) => Object.fromEntries(FILTERS.filter((key) => params[key]).map((key) => [key, params[key]]));
const keyOf = (entry) => `${entry.id}/${entry.copy}`;

export function queue(place, params) {
  let data = null;
  let asked = "";
  let before = []; // cursors of the pages before this one
  let cursor = "";
  const chosen = new Map();

  // ── filters ──
  const text = (name, label, hint) => h("input", { type: "search", name, "aria-label": label, placeholder: hint, autocomplete: "off", spellcheck: "false", test: `queue-${name}` });
  const inputs = {
    sender: text("sender", "Sender", "address, or <>"),
    recipient: text("recipient", "Recipient", "address"),
    domain: text("domain", "Domain", "of recipients"),
    hop: text("hop", "Next hop", "domain"),
    connector: h("select", { name: "connector", test: "queue-connector" }),
    status: select(STATES, "", { name: "status", test: "queue-status" }),
    older_than: select(AGES, "", { name: "older_than" }),
  };
  const names = () => {
    const all = ["", ...(status.now?.connectors.map((one) => one.name) ?? [])];
    if (params.connector && !all.includes(params.connector)) all.push(params.connector);
    if (inputs.connector.options.length === all.length) return;
    fill(inputs.connector, all.map((name) => h("option", { value: name }, name || "any")));
    inputs.connector.value = params.connector ?? "";
  };
  const form = h(
    "form",
    { class: "filters", role: "search", "aria-label": "Filter the queue" },
    field("Sender", inputs.sender),
    field("Recipient", inputs.recipient),
    field("Domain", inputs.domain),
    field("Connector", inputs.connector),
    field("Next hop", inputs.hop),
    field("Stands", inputs.status),
    field("Age", inputs.older_than),
    h("div", { class: "buttons" }, h("button", { class: "primary", test: "queue-filter" }, "Show"), h("button", { type: "button", test: "queue-clear", on: { click: () => go("queue") } }, "Clear")),
  );
  const box = h("details", { class: "filter-box card" }, h("summary", {}, "Filter"), form);
  const fold = () => {
    box.open = !narrow.matches || Object.keys(filterOf(params)).length > 0;
  };
  narrow.addEventListener("change", fold);
  fold();
  form.addEventListener("submit", (event) => {
    event.preventDefault();
    search();
  });
  for (const one of Object.values(inputs)) if (one.tagName === "SELECT") one.addEventListener("change", search);
  function search() {
    const next = {};
    for (const [name, input] of Object.entries(inputs)) if (input.value.trim()) next[name] = input.value.trim();
    for (const key of ["sort", "descending"]) if (params[key]) next[key] = params[key];
    go("queue", next);
  }

  // ── list ──
  const ages = h("div", { class: "ages card" });
  const whole = h("input", { type: "checkbox", "aria-label": "Choose all on this page", test: "queue-select-all" });
  whole.addEventListener("change", () => {
    for (const entry of data?.entries ?? []) whole.checked ? chosen.set(keyOf(entry), entry) : chosen.delete(keyOf(entry));
    paint();
  });
  const heads = COLUMNS.map(([title, sort, kind]) => {
    const button = h("button", { type: "button", class: "plain sort", on: { click: () => sortBy(sort) } }, title);
    return h("th", { scope: "col", class: kind ?? null, "data-sort": sort }, button);
  });
  const body = h("tbody", {});
  const table = h("table", { class: "list queue-list" }, h("thead", {}, h("tr", {}, h("th", { scope: "col", class: "pick" }, whole), heads)), body);
  const result = h("div", { class: "card list-card" });
  const fault = h("div", {});
  const pages = h("div", { class: "pages" });
  const actions = h("div", { class: "actions", role: "toolbar", "aria-label": "Change what is chosen" });
  const summary = h("span", { class: "muted", role: "status" });
  fill(place, h("div", { class: "bar" }, h("h1", {}, "Queue"), summary), ages, box, fault, actions, result, pages);

  function sortBy(sort) {
    const same = params.sort === sort;
    const next = { ...filterOf(params) };
    // First as most want it, then the other way, then as the log has it.
    if (!same) Object.assign(next, { sort });
    else if (params.descending !== "true") Object.assign(next, { sort, descending: "true" });
    go("queue", next, true);
  }

  const asking = every(SECONDS * 1000, async (signal) => {
    try {
      const sorted = params.sort ? { sort: params.sort, descending: params.descending } : {};
      data = await get("/api/v1/queue", { ...filterOf(params), ...sorted, limit: PAGE, cursor }, signal);
      fill(fault);
    } catch (error) {
      if (signal.aborted) return;
      if (error.status || !data) fill(fault, trouble(error.message, error.status === 400 && cursor ? "Clear goes back to the first page." : ""));
      if (error.status === 400) data = null;
      if (!data) fill(result);
      return;
    }
    paint();
  });

  function paint() {
    if (!data) return;
    const { entries } = data;
    if (!entries.length) {
      const filtered = Object.keys(filterOf(params)).length > 0;
      fill(
        result,
        filtered
          ? empty("Nothing waits that is meant.", "It was delivered, returned or removed, or the filter says something else than was meant.", h("p", {}, h("a", { href: link("trace", { from: params.sender, to: params.recipient, id: params.id }) }, "Look in trace"), " what became of it, or ", h("a", { href: link("queue") }, "show everything that waits"), "."))
          : empty("The queue is empty.", "Everything that was accepted has been delivered or returned. Mail shows here while it waits for its next hop."),
      );
    } else if (!table.isConnected) fill(result, h("div", { class: "scroll" }, table));
    keyed(body, entries, keyOf, row);
    const there = new Map(entries.map((entry) => [keyOf(entry), entry]));
    for (const key of chosen.keys()) if (there.has(key)) chosen.set(key, there.get(key));
    whole.checked = entries.length > 0 && entries.every((entry) => chosen.has(keyOf(entry)));
    whole.indeterminate = !whole.checked && entries.some((entry) => chosen.has(keyOf(entry)));
    for (const head of heads) {
      if (head.dataset.sort === params.sort) head.setAttribute("aria-sort", params.descending === "true" ? "descending" : "ascending");
      else head.removeAttribute("aria-sort");
    }
    tellActions();
    tellPages();
  }

  function row(first) {
    const pick = h("input", { type: "checkbox", test: "queue-select", "aria-label": `Choose ${first.id}` });
    const open = h("a", { class: "row-link" });
    const cells = COLUMNS.map(([title, , kind]) => h("td", { class: kind ?? null, "data-label": title }));
    const element = h("tr", { test: "queue-row", class: "opens", "data-id": first.id }, h("td", { class: "pick" }, pick), cells);
    let entry = first;
    let shown = "";
    pick.addEventListener("change", () => {
      pick.checked ? chosen.set(keyOf(entry), entry) : chosen.delete(keyOf(entry));
      paint();
    });
    element.addEventListener("click", (event) => {
      if (!event.target.closest("input, a, button")) go("queue", { ...params, show: entry.id });
    });
    return {
      element,
      update(next) {
        entry = next;
        pick.checked = chosen.has(keyOf(next));
        element.classList.toggle("chosen", pick.checked);
        open.setAttribute("href", link("queue", { ...params, show: next.id }));
        const sign = JSON.stringify(next);
        if (sign === shown) return;
        shown = sign;
        const [stands, age, from, to, via, tried, due, size] = cells;
        fill(stands, badge(next.status, STANDS[next.status]));
        fill(age, time(next.accepted, "age"));
        fill(open, address(next.from));
        open.title = next.from || "<>";
        if (!open.isConnected) fill(from, open);
        fill(to, people(next.to, next.recipients));
        fill(via, h("span", { class: "address", title: `${next.connector}, ${next.hop}` }, next.hop === "smart-hosts" ? next.connector : `${next.connector} · ${next.hop}`), next.last && h("span", { class: "last", title: next.last }, next.last));
        fill(tried, number(next.attempts));
        fill(due, next.next ? time(next.next, "due") : h("span", { class: "none" }, "–"));
        fill(size, bytes(next.size));
      },
    };
  }

  // ── changes ──

  /** One filter for each connector and hop among the chosen, with the messages that have a copy for there. */
  function filters() {
    const groups = new Map();
    for (const { id, connector, hop } of chosen.values()) {
      const key = `${connector}\n${hop}`;
      if (!groups.has(key)) groups.set(key, { connector, hop, ids: new Set() });
      groups.get(key).ids.add(id);
    }
    return [...groups.values()].map(({ connector, hop, ids }) => ({ id: [...ids].join(","), connector, hop }));
  }

  function after() {
    chosen.clear();
    asking.now();
    askStatus();
    if (message.isOpen()) message.again();
  }

  function tellActions() {
    const some = chosen.size > 0;
    const filter = filterOf(params);
    const filtered = Object.keys(filter).length > 0;
    const any = data.entries.length > 0;
    const buttons = VERB_NAMES.map(([verb, label]) => [verb, label, verb === "bounce" || verb === "remove"]);
    const which = some ? `${counted(chosen.size, "copy", "copies")} chosen` : filtered ? "all that match" : "all that wait";
    keyed(actions, any ? [["which", which], ...buttons, some ? ["none", "Choose none"] : null].filter(Boolean) : [], ([key]) => key, ([key, label, grave]) => {
      if (key === "which") {
        const element = h("span", { class: "which" });
        return { element, update: ([, words]) => setText(element, words) };
      }
      const act = key === "none" ? () => (chosen.clear(), paint()) : () => start(key);
      return { element: h("button", { type: "button", class: grave ? "grave-quiet" : key === "none" ? "quiet" : null, test: key === "none" ? "queue-none" : `queue-${key}`, on: { click: act } }, label) };
    });
  }

  function start(verb) {
    const filter = toNumbers(filterOf(params));
    const filtered = Object.keys(filter).length > 0;
    if (chosen.size > 0) change(verb, filters(), { done: after });
    else change(verb, [filter], { all: !filtered, words: filtered ? "all that match the filter" : "everything that waits", done: after });
  }

  // ── pages ──

  const newer = h("button", { type: "button", test: "queue-previous", on: { click: () => turn(before.pop() ?? "") } }, "← Previous");
  const older = h("button", { type: "button", test: "queue-next", on: { click: () => (before.push(cursor), turn(data.next)) } }, "Next →");
  const which = h("span", { class: "muted" });
  fill(pages, newer, which, older);
  function turn(to) {
    cursor = to;
    chosen.clear();
    asking.now();
  }
  function tellPages() {
    newer.disabled = cursor === "" && before.length === 0;
    older.disabled = !data.next;
    const from = before.length * PAGE;
    setText(which, data.entries.length ? `${number(from + 1)} to ${number(from + data.entries.length)}` : "");
    pages.hidden = newer.disabled && older.disabled;
  }

  // ── the whole ──

  const message = messageDrawer(() => go("queue", { ...params, show: "" }, true), () => after());

  function read(next) {
    params = next;
    for (const [name, input] of Object.entries(inputs)) if (input !== document.activeElement) input.value = params[name] ?? "";
    names();
    const sign = JSON.stringify([filterOf(params), params.sort, params.descending]);
    if (sign !== asked) {
      asked = sign;
      cursor = "";
      before = [];
      chosen.clear();
      asking.now();
    }
    message.show(params.show);
  }

  const stopStatus = onStatus((now) => {
    names();
    const held = now.held ? `, ${number(now.held)} held` : "";
    setText(summary, `${counted(now.messages, "message")} in the spool${held}`);
    tellAges(ages, now.ages ?? []);
  });
  askStatus();
  asked = JSON.stringify([filterOf(params), params.sort, params.descending]);
  for (const [name, input] of Object.entries(inputs)) input.value = params[name] ?? "";
  names();
  message.show(params.show);

  return {
    change: read,
    refresh: () => (asking.now(), message.isOpen() && message.again()),
    search() {
      box.open = true;
      inputs.sender.focus();
    },
    key(event) {
      const rows = [...body.querySelectorAll("tr")];
      const at = rows.indexOf(document.activeElement?.closest("tr"));
      if (event.key === "j" || event.key === "k") {
        const to = rows[Math.max(0, Math.min(rows.length - 1, at + (event.key === "j" ? 1 : -1)))];
        to?.querySelector("a")?.focus();
        to?.scrollIntoView({ block: "nearest" });
      } else if (event.key === "x" && at >= 0) rows[at].querySelector("input").click();
      else return false;
      return true;
    },
    stop() {
      asking.stop();
      stopStatus();
      message.stop();
      narrow.removeEventListener("change", fold);
    },
  };
}

/** The address has words; the API wants numbers where it counts seconds. */
function toNumbers(filter) {
  for (const key of ["older_than", "younger_than"]) if (filter[key]) filter[key] = Number(filter[key]);
  return filter;
}

/** The queue by age: one bar for each, which shows those that are at least so old. */
function tellAges(place, ages) {
  const sum = ages.reduce((total, one) => total + one.copies, 0);
  place.hidden = sum === 0;
  const most = Math.max(...ages.map((one) => one.copies), 1);
  let [from, fromWord] = [0, ""];
  const all = ages.map((one) => {
    const [least, leastWord] = [from, fromWord];
    const [most, mostWord] = UP_TO[one.up_to] ?? ["", ""];
    [from, fromWord] = [most, mostWord];
    return { ...one, least, most, label: mostWord ? `up to ${mostWord}` : `over ${leastWord}` };
  });
  keyed(place, all, (one) => one.up_to, () => {
    const count = h("span", { class: "figure" });
    const bar = h("span", { class: "age-bar", "aria-hidden": "true" });
    const label = h("span", { class: "muted small" });
    const element = h("button", { type: "button", class: "plain age" }, count, h("span", { class: "age-track" }, bar), label);
    let now = null;
    element.addEventListener("click", () => {
      const { view, params: at } = here();
      if (view === "queue") go("queue", { ...filterOf(at), older_than: now.least || "", younger_than: now.most });
    });
    return {
      element,
      update(one) {
        now = one;
        setText(count, number(one.copies));
        setText(label, one.label);
        bar.style.width = `${one.copies ? Math.max(3, (100 * one.copies) / most) : 0}%`;
        element.classList.toggle("zero", one.copies === 0);
        element.classList.toggle("old", one.least >= 3600 && one.copies > 0);
        element.title = `${counted(one.copies, "copy", "copies")}: show them`;
      },
    };
  });
}

// ── one message ─────────────────────────────────────────────────────────────────────────────────────────────────────

function messageDrawer(closed, changed) {
  let shown = null;
  let id = "";
  let control = null;

  async function ask() {
    control?.abort();
    control = new AbortController();
    const { signal } = control;
    try {
      const message = await get(`/api/v1/queue/${encodeURIComponent(id)}`, {}, signal);
      if (!signal.aborted && shown?.isOpen()) fill(shown.body, oneMessage(message, changed));
    } catch (error) {
      if (signal.aborted || !shown?.isOpen()) return;
      const gone = error.status === 404;
      fill(shown.body, gone ? empty("It does not wait any more.", "It was delivered, returned or removed.", h("p", {}, h("a", { href: link("trace", { id }) }, "Its life in trace"))) : trouble(error.message));
    }
  }

  return {
    show(next) {
      if (!next) {
        id = "";
        if (shown?.isOpen()) shut(false);
        return;
      }
      if (next === id && shown?.isOpen()) return;
      id = next;
      if (!shown?.isOpen()) shown = drawer(`Message ${id}`, closed);
      setText(shown.heading, `Message ${id}`);
      fill(shown.body, h("p", { class: "muted" }, "Asking…"));
      ask();
    },
    again: ask,
    isOpen: () => shown?.isOpen() ?? false,
    stop: () => control?.abort(),
  };
}

function oneMessage(message, changed) {
  const pair = (name, ...value) => [h("dt", {}, name), h("dd", {}, value)];
  const act = (verb, label) => h("button", { type: "button", class: verb === "bounce" || verb === "remove" ? "grave-quiet" : null, test: `message-${verb}`, on: { click: () => change(verb, [{ id: message.id }], { words: "all its copies", done: changed }) } }, label);
  return [
    h("div", { class: "actions" }, VERB_NAMES.map(([verb, label]) => act(verb, label))),
    h(
      "dl",
      { class: "pairs" },
      pair("From", address(message.from)),
      pair("Message-ID", message.message_id ? h("span", { class: "wrap" }, message.message_id) : "none"),
      pair("Came by", message.received_by || "this relay itself, as a report"),
      pair("Accepted", time(message.accepted), h("span", { class: "muted" }, ` · ${absolute(message.accepted)}`)),
      pair("Size", bytes(message.size)),
      message.asked_for.length > 0 && pair("Asked for", message.asked_for.join(" ")),
    ),
    h("p", {}, h("a", { href: link("trace", { id: message.id }), test: "message-trace" }, "Its life in trace →")),
    message.copies.map(oneCopy),
    (message.remarks ?? []).map((remark) => h("p", { class: "warn small" }, remark)),
  ];
}

function oneCopy({ entry, recipients, warned, resting, attempts = [] }) {
  return h(
    "section",
    { class: "copy" },
    h("h3", {}, `Copy ${entry.copy}`, " ", badge(entry.status, STANDS[entry.status])),
    h("p", { class: "muted" }, `${entry.connector}, ${entry.hop}`, ` · tried ${entry.attempts === 1 ? "once" : `${number(entry.attempts)} times`}`, entry.next && [" · next ", time(entry.next, "due")], warned && " · the sender was told of the delay", resting && ` · its hop is left alone for another ${span(resting)}`),
    entry.last && h("p", { class: "last-seen" }, entry.last),
    h(
      "ul",
      { class: "recipients" },
      recipients.map((one) => h("li", { class: one.open ? null : "done" }, address(one.to), one.asked !== one.to && h("span", { class: "muted small" }, ` asked for as ${one.asked}`), !one.open && h("span", { class: "muted small" }, " done with"))),
    ),
    attempts.length > 0 && h("h4", {}, "Attempts"),
    attempts.length > 0 &&
      h(
        "ol",
        { class: "attempts" },
        attempts.map((one) =>
          h(
            "li",
            { class: tone(one.event) },
            h("div", { class: "attempt-head" }, time(one.time), h("strong", {}, one.event), one.attempt && h("span", { class: "muted small" }, `attempt ${number(one.attempt)}`), one.to?.length > 0 && people(one.to)),
            h("div", { class: "muted small wrap" }, [one.host, one.tls].filter(Boolean).join(" · ")),
            h("div", { class: "wrap" }, one.reply?.includes(one.status ?? "") ? one.reply : [one.status, one.reply].filter(Boolean).join(" ")),
          ),
        ),
      ),
  );
}

const tone = (event) => ({ SEND: "good", DEFER: "warn", FAIL: "bad" })[event] ?? "calm";
