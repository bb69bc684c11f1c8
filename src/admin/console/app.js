// The console: sign-in, header, the way from the address to a view, and the keys that work everywhere.
//
// A view is a function of a place: it fills the element, and gives `{change, refresh, stop, search}`, all optional but
// `stop`: called when the address changes within the view, for "r", when it is left, and for "/".

import { get, hasToken, line, onRefused, setToken } from "./api.js";
import { fill, h, s, setText, span } from "./dom.js";
import { go, here, hush, isAsking, link, show, shut } from "./shell.js";
import * as state from "./status.js";
import { connectors } from "./connectors.js";
import { explain } from "./explain.js";
import { flow } from "./flow.js";
import { load } from "./load.js";
import { queue } from "./queue.js";
import { trace } from "./trace.js";

/** Name in the address, word, key behind "g", picture (24 by 24, strokes), view. */
const VIEWS = [
  ["flow", "Flow", "f", "M3 6c7 0 8 6 18 6M3 12h18M3 18c7 0 8-6 18-6", flow],
  ["connectors", "Connectors", "c", "M9 7V3M15 7V3M7 7h10v4a5 5 0 0 1-10 0zM12 16v5", connectors],
  ["queue", "Queue", "q", "M4 6h16M4 12h16M4 18h10", queue],
  ["trace", "Trace", "t", "M11 4a7 7 0 1 0 0 14a7 7 0 0 0 0-14M16 16l5 5", trace],
  ["explain", "Explain", "e", "M5 5h6M5 5v14h6M5 12h6M15 3h5v4h-5zM15 10h5v4h-5zM15 17h5v4h-5z", explain],
  ["load", "Load", "l", "M3 20h18M5 16l4-6l4 3l6-9", load],
];

const KEYS = [
  ["g f, g c, g q, g t, g e, g l", "Flow, Connectors, Queue, Trace, Explain, Load"],
  ["/", "the first field of the view"],
  ["r", "ask again now"],
  ["j, k", "Queue: the next, the one before"],
  ["x, Enter", "Queue: choose it, open it"],
  ["arrows, Enter", "Flow: from band to band, the messages in it"],
  ["Esc", "close what lies over the page"],
  ["d", "dark, light"],
  ["?", "this"],
];

const root = document.getElementById("app");
/** Words in the header are short on a narrow page. */
const narrow = window.matchMedia("(max-width: 820px)");
let view = null;
let parts = null;

const icon = (path) => s("svg", { viewBox: "0 0 24 24", class: "icon-picture", "aria-hidden": "true" }, s("path", { d: path }));
const mark = () =>
  s(
    "svg",
    { viewBox: "0 0 32 32", class: "mark", "aria-hidden": "true" },
    s("rect", { width: 32, height: 32, rx: 7 }),
    s("path", { d: "M5 21c5-9 17-9 22 0M5 21h22M11 21v-4.6M16 21v-6.7M21 21v-4.6" }),
  );

// ── sign-in ─────────────────────────────────────────────────────────────────────────────────────────────────────────

function signIn(said = "") {
  leave();
  const input = h("input", {
    type: "password",
    id: "token",
    test: "token",
    autocomplete: "off",
    spellcheck: "false",
    autocapitalize: "off",
    required: true,
    "aria-describedby": "token-help",
  });
  const told = h("p", { class: "bad", role: "alert" }, said);
  const button = h("button", { class: "primary", test: "login" }, "Sign in");
  const form = h(
    "form",
    { class: "card sign-in" },
    h("div", { class: "sign-in-head" }, mark(), h("h1", {}, "Causeway")),
    h("p", {}, "This is the console of a mail relay. It asks for the token that the daemon keeps."),
    h("label", { class: "field", for: "token" }, h("span", { class: "label" }, "Token"), input),
    told,
    button,
    h(
      "div",
      { class: "muted small", id: "token-help" },
      h("p", {}, "On the relay's host it is the content of the file that ", h("code", {}, "token_file"), " in ", h("code", {}, "[admin]"), " names:"),
      h("pre", {}, "sudo cat /etc/causeway/secrets/admin"),
      h("p", {}, "It is kept in this tab only, and forgotten when the tab closes."),
    ),
  );
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    button.disabled = true;
    setToken(input.value);
    try {
      state.status.now = await get("/api/v1/status");
      shell();
    } catch (error) {
      setToken("");
      button.disabled = false;
      const words = error.status === 401 ? "That is not the token. It may have been changed: read the file again." : error.message;
      fill(told, words);
      input.focus();
      input.select();
    }
  });
  fill(root, h("main", { class: "entrance" }, form));
  document.title = "Causeway";
  input.focus();
}

onRefused(() => {
  // While signing in, the form says it.
  if (!parts) return;
  setToken("");
  signIn("The daemon no longer takes this token. It was changed, or the daemon was set up anew.");
});

// ── header ──────────────────────────────────────────────────────────────────────────────────────────────────────────

function shell() {
  const name = h("span", { class: "host" }, "Causeway");
  const version = h("span", { class: "version" });
  const word = h("span", {});
  const health = h("button", { type: "button", class: "health", test: "health", on: { click: tellHealth } }, h("i", { class: "dot", "aria-hidden": "true" }), word);
  const banner = h("div", { class: "banner", role: "alert", hidden: true });
  const place = h("main", { id: "view", tabindex: "-1" });
  const links = VIEWS.map(([path, label, key, picture]) =>
    h("a", { href: link(path), test: `nav-${path}`, title: `${label} (g ${key})` }, icon(picture), h("span", {}, label)),
  );
  const theme = h("button", { type: "button", class: "icon", "aria-label": "Dark or light (d)", title: "Dark or light (d)", on: { click: () => window.causewayTheme.toggle() } }, icon("M12 4a8 8 0 1 0 0 16zM12 4a8 8 0 0 1 0 16"));
  const help = h("button", { type: "button", class: "icon help", "aria-label": "Keys (?)", title: "Keys (?)", on: { click: tellKeys } }, "?");
  const out = h("button", { type: "button", class: "icon", "aria-label": "Sign out", title: "Sign out", on: { click: signOut } }, icon("M10 4H5v16h5M14 8l4 4l-4 4M18 12H9"));
  const skip = h("a", { href: "#view", class: "skip", on: { click: (event) => (event.preventDefault(), place.focus()) } }, "To the content");
  fill(
    root,
    skip,
    h("header", { class: "top" }, h("a", { href: link("flow"), class: "brand", title: "Causeway" }, mark(), h("span", { class: "brand-words" }, name, version)), h("nav", { "aria-label": "Views" }, links), h("div", { class: "top-end" }, health, theme, help, out)),
    banner,
    place,
  );
  parts = { name, version, health, word, banner, place, links };
  state.onStatus(tell);
  state.start();
  line.hears.add(tellLine);
  enter();
}

function leave() {
  shut(false);
  for (const dialog of document.querySelectorAll("dialog")) dialog.remove();
  view?.stop();
  view = null;
  parts = null;
  line.hears.delete(tellLine);
  state.stop();
}

function signOut() {
  setToken("");
  signIn();
}

/** What there is to say of the relay's health: a word, how bad it is, and why. */
function judge(now) {
  if (line.gone !== null) return ["no answer", "bad", `${line.why}. The figures on this page are those of before.`];
  if (!now) return ["asking", "calm", ""];
  if (now.refuses) return [narrow.matches ? "no new mail" : "takes no new mail", "bad", now.refuses];
  if (now.directory?.length) return [narrow.matches ? "directory" : "directory is faulty", "warn", now.directory[0]];
  const down = now.connectors.filter((one) => one.state === "down");
  if (down.length) {
    const names = down.map((one) => one.name).join(", ");
    return [down.length === 1 && !narrow.matches ? `${names} is down` : `${down.length} down`, "warn", `${names}: mail for there waits.`];
  }
  return ["healthy", "good", "It takes mail, and every send connector that was tried works."];
}

function tell(now) {
  if (!parts) return;
  setText(parts.name, now.hostname);
  setText(parts.version, `Causeway ${now.version}`);
  parts.version.title = `up for ${span(now.uptime)}`;
  document.title = `${here().view || "flow"} · ${now.hostname}`;
  tellLine();
}

function tellLine() {
  if (!parts) return;
  const [word, tone, why] = judge(state.status.now);
  setText(parts.word, word);
  parts.health.className = `health ${tone}`;
  parts.health.title = why;
  parts.banner.hidden = tone !== "bad";
  parts.banner.className = `banner ${line.gone !== null ? "gone" : "refuses"}`;
  setText(parts.banner, line.gone !== null ? `The daemon does not answer: ${why} It is asked again every few seconds.` : `No new mail is taken: ${why}. What was accepted goes on.`);
  document.body.classList.toggle("stale", line.gone !== null);
}

function tellHealth() {
  const now = state.status.now;
  const [word, , why] = judge(now);
  const pair = (name, value) => [h("dt", {}, name), h("dd", {}, value)];
  show(
    word.charAt(0).toUpperCase() + word.slice(1),
    h("p", {}, why),
    now &&
      h(
        "dl",
        { class: "pairs" },
        pair("Relay", now.hostname),
        pair("Version", now.version),
        pair("Up for", span(now.uptime)),
        pair("Back pressure", now.refuses ?? "none"),
        pair("Messages in the spool", String(now.messages)),
      ),
  );
}

function tellKeys() {
  show(
    "Keys",
    h("dl", { class: "pairs keys" }, KEYS.map(([keys, words]) => [h("dt", {}, keys.split(/, /).map((one, place) => [place > 0 && ", ", h("kbd", {}, one)])), h("dd", {}, words)])),
  );
}

// ── ways ────────────────────────────────────────────────────────────────────────────────────────────────────────────

let current = "";

/** `#token=…`, as the demo prints it: what stands behind # is never sent, and it leaves the address and the history. */
function takeToken() {
  const [, token] = /^#token=([^&]+)$/.exec(location.hash) ?? [];
  if (token === undefined) return false;
  history.replaceState(null, "", `${location.pathname}${link("flow")}`);
  leave();
  setToken(decodeURIComponent(token));
  return true;
}

function enter() {
  if (!parts) return;
  const { view: wanted, params } = here();
  const found = VIEWS.find(([path]) => path === wanted);
  if (!found) return go("flow", {}, true);
  const [path, label, , , make] = found;
  if (path === current && view) return view.change?.(params);
  shut(false);
  hush();
  view?.stop();
  current = path;
  parts.links.forEach((one, place) => {
    if (VIEWS[place][0] === path) one.setAttribute("aria-current", "page");
    else one.removeAttribute("aria-current");
  });
  const place = h("section", { class: "view", "data-view": path, "aria-label": label });
  fill(parts.place, place);
  window.scrollTo(0, 0);
  view = make(place, params);
  document.title = `${label} · ${state.status.now?.hostname ?? "Causeway"}`;
}

window.addEventListener("hashchange", () => {
  if (takeToken()) shell();
  else enter();
});

// ── keys ────────────────────────────────────────────────────────────────────────────────────────────────────────────

let after = "";
let afterTimer = 0;

document.addEventListener("keydown", (event) => {
  if (!parts || event.ctrlKey || event.altKey || event.metaKey || isAsking()) return;
  if (event.key === "Escape") {
    if (!shut() && event.target.matches("input, textarea, select")) event.target.blur();
    return;
  }
  if (event.target.matches("input:not([type=checkbox]), textarea, select")) return;
  const pressed = after + event.key;
  after = "";
  clearTimeout(afterTimer);
  if (event.key === "g" && pressed === "g") {
    after = "g";
    afterTimer = setTimeout(() => (after = ""), 1500);
    return;
  }
  const to = VIEWS.find(([, , key]) => pressed === `g${key}`);
  if (to) go(to[0]);
  else if (pressed === "?") tellKeys();
  else if (pressed === "/") view?.search?.();
  else if (pressed === "r") (state.refresh(), view?.refresh?.());
  else if (pressed === "d") window.causewayTheme.toggle();
  else if (!view?.key?.(event)) return;
  event.preventDefault();
});

// ── start ───────────────────────────────────────────────────────────────────────────────────────────────────────────

takeToken();
if (hasToken()) shell();
else signIn();
