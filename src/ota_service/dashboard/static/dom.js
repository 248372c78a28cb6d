// SPDX-License-Identifier: GPL-3.0-or-later
// Elements and words. Elements are made here and filled with text alone, never with markup: names,
// versions and messages come from elsewhere.

export const $ = (id) => document.getElementById(id);

/** An element with properties and children; a child that is null, undefined or false is left out. */
export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") made.className = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...present(children));
  return made;
}

const present = (children) => children.filter((child) => child !== false && child != null);

/** Change a text only where it differs, so that a selection in it stays. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

const shown = new WeakMap();

/** Fill an element anew where what it shows is another value than before. */
export function refill(element, value, make) {
  const key = JSON.stringify(value);
  if (shown.get(element) === key) return;
  shown.set(element, key);
  element.replaceChildren(...present(make()));
}

/** Put children into this order. The one with the keyboard's focus, which moving would take, stays
 * where it is, and the others are moved around it. */
export function arrange(parent, wanted) {
  const now = [...parent.children];
  if (now.length === wanted.length && now.every((child, at) => child === wanted[at])) return;
  for (const child of now) if (!wanted.includes(child)) child.remove();
  const held = wanted.findIndex((child) => child.contains(document.activeElement));
  wanted.forEach((child, at) => {
    if (at < held) parent.insertBefore(child, wanted[held]);
    else if (at !== held) parent.append(child);
  });
}

/** Grey a button out and let it keep the focus, which `disabled` would take from a keyboard.
 * why: said when it is pressed all the same. */
export function setIdle(button, idle, why = "") {
  button.setAttribute("aria-disabled", String(Boolean(idle)));
  button.title = idle ? why : "";
}

/** Call `act` when a button is pressed that is not greyed out, else `refuse` with the reason. */
export function onPress(button, act, refuse = () => {}) {
  button.addEventListener("click", () => {
    if (button.getAttribute("aria-disabled") !== "true") act();
    else if (button.title) refuse(button.title);
  });
}

/** "board 2" comes before "board 10". */
export const compare = new Intl.Collator(undefined, { numeric: true }).compare;

/** The boards of a status or a run, by name: on their way through Viam they lose their order. */
export const inOrder = (boards) => Object.entries(boards ?? {}).sort(([a], [b]) => compare(a, b));

export const words = (name) => String(name ?? "").replaceAll("_", " ");

export const count = (n, noun) => `${n} ${noun}${n === 1 ? "" : "s"}`;

const SIGNS = { good: "✓ ", bad: "✗ ", warn: "! " };

/** kind: good, busy, warn, bad, or empty for what is neither. */
export const badge = (kind, text) =>
  h("span", { class: `badge ${kind}` }, (SIGNS[kind] ?? "") + text);

/** Text whose `words in backquotes` are code. */
const prose = (text = "") => text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));

export const notice = (kind, ...children) => h("div", { class: `notice ${kind}` }, ...children);

export function errorNotice(error, before = "", kind = "bad") {
  return notice(kind, before && h("strong", {}, `${before}: `), ...prose(error.message), " ",
    h("strong", {}, ...prose(error.remedy)), " ",
    error.code && h("code", { class: "code" }, error.code));
}

/** A term and its value each, without those that have none. */
export const facts = (rows) => rows.filter(([, value]) => value).flatMap(([name, value]) => [
  h("dt", {}, name), h("dd", { class: /MAC|Port|SHA/.test(name) ? "mono" : "" }, value)]);

const DECISIVE = /Guru Meditation|abort\(\) was called|assert failed|stack overflow|Brownout|rst:.*WDT/;

/** Opens with the line in sight that decided, else with the last ones. */
export function bootLog(lines, title, open = false) {
  const text = h("pre", { tabIndex: 0, role: "group", "aria-label": "Boot log" }, lines.join("\n"));
  const made = h("details", { open }, h("summary", {}, ...title), text);
  const at = lines.findLastIndex((line) => DECISIVE.test(line));
  made.addEventListener("toggle", () => {
    text.scrollTop = text.scrollHeight * (at < 0 ? 1 : Math.max(0, at - 2) / lines.length);
  });
  return made;
}

export function ago(moment) {
  const age = (Date.now() - Date.parse(moment)) / 1000;
  if (!Number.isFinite(age)) return "";
  for (const [unit, name] of [[86400, "days"], [3600, "h"], [60, "min"]]) {
    if (age >= 2 * unit) return `${Math.round(age / unit)} ${name} ago`;
  }
  return age < 5 ? "just now" : `${Math.round(age)} s ago`;
}

export function time(moment) {
  return h("time", { dateTime: moment, title: new Date(moment).toLocaleString() }, ago(moment));
}

setInterval(() => {
  for (const element of document.querySelectorAll("time")) setText(element, ago(element.dateTime));
}, 15000);

export function size(bytes) {
  if (bytes >= 1e6) return `${+(bytes / 1e6).toFixed(2)} MB`;
  return bytes >= 1000 ? `${Math.round(bytes / 1000)} kB` : `${bytes} B`;
}

export function duration(seconds) {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}
