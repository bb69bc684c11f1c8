// What lies over the views: the drawer at the side, the question before a change, short notes, and the way to another
// place. One of each at a time.
//
// Not here: header, sign-in and keys (app.js).

import { query } from "./api.js";
import { fill, h, setText } from "./dom.js";

// ── places ──────────────────────────────────────────────────────────────────────────────────────────────────────────

/** `#/trace?id=…`: every place has an address that can be sent to a colleague. */
export const link = (view, params = {}) => `#/${view}${query(params)}`;

export function here() {
  const [view, rest = ""] = location.hash.replace(/^#\/?/, "").split("?", 2);
  return { view, params: Object.fromEntries(new URLSearchParams(rest)) };
}

/** Goes there. `quietly`: the browser's "back" does not stop at each turn of a filter. */
export function go(view, params = {}, quietly = false) {
  const hash = link(view, params);
  if (hash === location.hash) return;
  if (quietly) {
    history.replaceState(null, "", hash);
    window.dispatchEvent(new Event("hashchange"));
  } else location.hash = hash;
}

// ── the drawer ──────────────────────────────────────────────────────────────────────────────────────────────────────

let open = null;

/** Shows something at the side; gives the place for it. `closed` is called when it goes. */
export function drawer(title, closed = () => {}) {
  if (open) shut(false);
  const body = h("div", { class: "drawer-body" });
  const heading = h("h2", { tabindex: "-1" }, title);
  const close = h("button", { type: "button", class: "icon", "aria-label": "Close (Esc)", title: "Close (Esc)", on: { click: () => shut() } }, "✕");
  const element = h("aside", { class: "drawer", "aria-label": title, test: "drawer" }, h("header", {}, heading, close), body);
  open = { element, closed, from: document.activeElement };
  document.body.append(element);
  document.body.classList.add("with-drawer");
  heading.focus({ preventScroll: true });
  return { body, heading, isOpen: () => open?.element === element };
}

/** Closes it; `tells` its opener unless that knows already. */
export function shut(tells = true) {
  if (!open) return false;
  const { element, closed, from } = open;
  open = null;
  element.remove();
  document.body.classList.remove("with-drawer");
  if (from?.isConnected) from.focus({ preventScroll: true });
  if (tells) closed();
  return true;
}

// ── the question ────────────────────────────────────────────────────────────────────────────────────────────────────

/**
 * Asks before something is changed. `content` says what exactly; `act` does it once "yes" was said, and may speak
 * through `say`. The safe answer has the focus.
 */
export function ask({ title, content, yes, grave = false, act }) {
  const told = h("p", { class: "progress", role: "status" });
  const no = h("button", { type: "button", test: "confirm-no" }, "Cancel");
  const go = h("button", { type: "button", class: grave ? "grave" : "primary", test: "confirm-yes" }, yes);
  const dialog = h(
    "dialog",
    { class: "ask", "aria-label": title },
    h("h2", {}, title),
    h("div", { class: "ask-body" }, content),
    told,
    h("div", { class: "buttons" }, no, go),
  );
  let busy = false;
  no.addEventListener("click", () => dialog.close());
  dialog.addEventListener("cancel", (event) => busy && event.preventDefault());
  dialog.addEventListener("close", () => dialog.remove());
  go.addEventListener("click", async () => {
    busy = go.disabled = no.disabled = true;
    try {
      await act((text) => fill(told, text));
      dialog.close();
    } catch (error) {
      busy = go.disabled = no.disabled = false;
      told.classList.add("bad");
      fill(told, error.message);
    }
  });
  document.body.append(dialog);
  dialog.showModal();
  no.focus();
}

/** Shows something over the page. */
export function show(title, ...content) {
  const close = h("button", { type: "button", class: "primary" }, "Close");
  const dialog = h("dialog", { class: "ask", "aria-label": title }, h("h2", {}, title), h("div", { class: "ask-body" }, content), h("div", { class: "buttons" }, close));
  close.addEventListener("click", () => dialog.close());
  dialog.addEventListener("close", () => dialog.remove());
  document.body.append(dialog);
  dialog.showModal();
  close.focus();
}

export const isAsking = () => document.querySelector("dialog[open]") !== null;

// ── notes ───────────────────────────────────────────────────────────────────────────────────────────────────────────

const notes = h("div", { class: "notes", role: "status", "aria-live": "polite" });

/** Another view: what was said of the last one is done with, but for what went wrong. */
export function hush() {
  for (const one of notes.querySelectorAll(".note:not(.bad)")) one.remove();
}

/** Says what came of something, and goes away; `say` says something else, `away` takes it back. */
export function note(text, tone = "good") {
  if (!notes.isConnected) document.body.append(notes);
  const one = h("div", { class: `note ${tone}`, test: "note" }, text);
  const away = () => one.remove();
  one.addEventListener("click", away);
  notes.append(one);
  setTimeout(away, tone === "good" ? 8_000 : 20_000);
  return { away, say: (words) => setText(one, words) };
}
