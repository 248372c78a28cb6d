// SPDX-License-Identifier: GPL-3.0-or-later
// The boards: one table, which a narrow window shows as cards; what is shown of them, in which order,
// and which are meant by the actions.

import {
  asMeant, BoardRow, canActivate, canReach, canRelease, COLUMNS, FILTERS, order,
} from "./board.js";
import { $, arrange, count, h, inOrder, onPress, refill, setIdle, setText } from "./dom.js";

const REST_MS = 1500;
// A row does not move away from under a pointer or a finger that is about to press it.

const ACTIONS = [
  ["update", "Update…"], ["stage", "Stage…"], ["activate", "Activate…"], ["dry_run", "Dry run…"],
  ["rollback", "Roll back…"], ["release", "Release…"], ["version", "Version…"],
  ["verify", "Verify…"],
];

const rows = new Map();
const chosen = new Set();
const buttons = new Map();
const doing = new Map();
let isUnsorted = true;
let firmware;
let acts, verbs, status;
let sorted = { column: "state", down: false };
let touched = 0;
let lastPicked = null;

/** to: {act(verb, whom), refuse(why)}; session: as the server tells it. */
export function begin(to, session) {
  acts = to;
  verbs = session.verbs;
  const table = $("boards");
  for (const event of ["pointermove", "pointerdown", "keydown"]) {
    table.addEventListener(event, () => { touched = Date.now(); });
  }
  $("columns").replaceChildren(
    h("th", { role: "columnheader", scope: "col", class: "pick" }, everyone()),
    ...Object.entries(COLUMNS).map(([column, [title]]) => head(column, title)));
  $("filter-state").replaceChildren(...Object.entries(FILTERS).map(([value]) => h("option", { value })));
  $("filter-state").addEventListener("change", () => show(status));
  $("filter-text").addEventListener("input", () => show(status));
  for (const button of document.querySelectorAll("[data-choose]")) {
    button.addEventListener("click", () => choose(FILTERS[button.dataset.choose]?.[1]));
  }
  for (const [verb, text] of ACTIONS) {
    if (!verbs.includes(verb === "dry_run" ? "update" : verb)) continue;
    const button = h("button", { type: "button", "data-verb": verb }, text);
    onPress(button, () => acts.act(verb, whom()), acts.refuse);
    buttons.set(verb, button);
  }
  $("actions").replaceChildren(...buttons.values());
  new ResizeObserver(([{ target }]) => {
    table.style.setProperty("--bar", `${target.offsetHeight}px`);
  }).observe($("bar"));
}

function everyone() {
  const box = h("input", { type: "checkbox", id: "everyone", "aria-label": "Select all boards shown" });
  box.addEventListener("change", () => choose(box.checked ? FILTERS.all[1] : undefined));
  return box;
}

function head(column, title) {
  const button = h("button", { type: "button", class: "sort" }, title);
  button.addEventListener("click", () => {
    sorted = { column, down: sorted.column === column && !sorted.down };
    isUnsorted = true;
    show(status);
  });
  return h("th", { role: "columnheader", scope: "col", "data-column": column }, button);
}

const isShown = (row) => !row.element.hidden;
const namesShown = () => [...rows.values()].filter(isShown).map((row) => row.name);

/** Select those shown that a filter takes, and no others. */
function choose(takes = () => false) {
  chosen.clear();
  for (const name of namesShown()) if (takes(status.boards[name])) chosen.add(name);
  show(status);
}

function choseOne(name, yes, upTo) {
  const shown = [...$("boards").tBodies].map((body) => body.dataset.board)
    .filter((other) => isShown(rows.get(other)));
  const [from, to] = [shown.indexOf(lastPicked), shown.indexOf(name)];
  const range = upTo && from >= 0 ? shown.slice(Math.min(from, to), Math.max(from, to) + 1) : [name];
  for (const one of range) chosen[yes ? "add" : "delete"](one);
  lastPicked = name;
  show(status);
}

/** Whom the actions are for: {names, boards: [[name, board]], words}; names is null for all boards,
 * whichever they are by then. */
function whom() {
  const shown = namesShown();
  const isPart = shown.length < rows.size;
  // A bridge that nobody has opened may be anything: on a bench it is meant only if it is selected.
  const isMeant = (name) => !status.bench || status.boards[name].state !== "candidate";
  const names = shown.filter((name) => (chosen.size ? chosen.has(name) : isMeant(name)));
  let text = isPart ? `the ${count(names.length, "board")} shown` : "all boards";
  if (chosen.size) text = names.length === 1 ? names[0] : `${names.length} selected boards`;
  else if (names.length < shown.length) text += " but candidates";
  return {
    names: chosen.size || isPart ? names : null, words: text, chosen: chosen.size > 0,
    boards: names.map((name) => [name, status.boards[name]]),
  };
}

export const row = (name) => rows.get(name);

/** What is being done to boards, from the press on; words: undefined when it is done. */
export const does = (names, words) => names.forEach((name) => doing.set(name, words));

/** What a dry run or a read said is over when a run begins. */
export const forget = () => rows.forEach((one) => { one.said = null; });

/** Those that are open look for their boards' logs again. */
export const findLogs = () => rows.forEach((one) => one.findLog());

/** Of a group that is being switched none is through before all are. */
function waitsForGroup({ image, state }, { run, target }) {
  const { step, steps = [] } = (run?.outcome === "running" && run.manifest) || {};
  return Boolean(state === "up_to_date" && step && steps[step - 1]?.includes(image)
    && target?.manifest?.together?.some((group) => group.includes(image)));
}

/** news: the status. Returns it with the boards as they are shown. */
export function show(news) {
  const boards = inOrder(news.boards).map(([name, board]) => [name, asMeant({ ...board,
    doing: doing.get(name), takenBack: news.takenBack?.[name],
    waitsForGroup: waitsForGroup(board, news) }, news)]);
  status = { ...news, boards: Object.fromEntries(boards) };
  const dropped = JSON.stringify(news.bench?.firmware);
  if (dropped !== firmware) forget();
  firmware = dropped;
  for (const name of rows.keys()) {
    if (status.boards[name]) continue;
    rows.delete(name);
    chosen.delete(name);
  }
  const words = $("filter-text").value.trim().toLowerCase().split(/\s+/);
  const [, takes] = FILTERS[$("filter-state").value] ?? FILTERS.all;
  for (const [name, board] of boards) {
    if (!rows.has(name)) {
      const act = (verb, one) =>
        acts.act(verb, { names: [one], boards: [[one, status.boards[one]]], words: one, chosen: true });
      rows.set(name, new BoardRow(name, verbs, { choose: choseOne, act, refuse: acts.refuse }));
    }
    const made = rows.get(name);
    made.show(board, status);
    const text = [name, ...[board.mac, board.port, board.chip, board.version, board.state, board.image,
      board.running?.project, board.error?.code].filter(Boolean)].join(" ").toLowerCase();
    made.element.hidden = !(takes(board) && words.every((word) => text.includes(word)));
    if (made.element.hidden) chosen.delete(name);
    made.pick.checked = chosen.has(name);
    made.element.classList.toggle("chosen", chosen.has(name));
  }
  sort(boards);
  showCounts(boards);
  showActions();
  return status;
}

/** Rows keep their places while one is open, pressed or at work; new ones come behind them. */
function sort(boards) {
  const table = $("boards");
  const wanted = [...boards].sort(order(sorted.column));
  if (sorted.down) wanted.reverse();
  const isHeld = Date.now() - touched <= REST_MS || boards.some(([name, board]) =>
    rows.get(name).isOpen || !(canReach(board) || board.state === "absent"));
  if (isHeld && !isUnsorted) {
    const placed = new Map([...table.tBodies].map((body, at) => [body.dataset.board, at]));
    const at = ([name]) => placed.get(name) ?? placed.size;
    wanted.sort((a, b) => at(a) - at(b));
  }
  isUnsorted = boards.length === 0;
  arrange(table, [table.tHead, ...wanted.map(([name]) => rows.get(name).element)]);
  for (const cell of document.querySelectorAll("[data-column]")) {
    const isIt = cell.dataset.column === sorted.column;
    cell.setAttribute("aria-sort", !isIt ? "none" : sorted.down ? "descending" : "ascending");
  }
}

function showCounts(boards) {
  const counts = Object.entries(FILTERS).map(([name, [words, takes]]) =>
    [name, words, boards.filter(([, board]) => takes(board)).length]);
  for (const [name, words, n] of counts) {
    const option = $("filter-state").querySelector(`[value=${name}]`);
    setText(option, `${words} (${n})`);
  }
  const tally = counts.slice(1, -1).filter(([, , n]) => n).map(([, text, n]) => `${n} ${text}`);
  const [, , staged] = counts.at(-1);
  setText($("counts"), `${tally.join(", ")}${staged ? `; ${staged} with something staged` : ""}`);
  $("no-boards").hidden = boards.length > 0;
  $("boards").hidden = $("bar").hidden = $("tools").hidden = boards.length === 0;
  $("none-shown").hidden = !boards.length || namesShown().length > 0;
}

function showActions() {
  const meant = whom();
  const boards = meant.boards.map(([, board]) => board);
  setText($("whom"), boards.length ? `For ${meant.words}:` : "No board is meant.");
  const shown = namesShown().length;
  $("everyone").checked = shown > 0 && chosen.size === shown;
  $("everyone").indeterminate = chosen.size > 0 && chosen.size < shown;
  const canRead = boards.some(canReach);
  const hasFirmware = !status.bench || status.bench.firmware;
  const needs = {
    update: [canRead, "None of these boards can be reached now."],
    activate: [boards.some(canActivate), !boards.some((board) => board.staged)
      ? "Nothing is staged on these boards." : `What is staged is not of the firmware ${
        status.bench ? "on the bench" : "that the boards are to run"}.`],
    rollback: [meant.chosen && canRead, "Select the boards that are to go back."],
    release: [boards.some(canRelease), "None of these boards is held."],
  };
  for (const [verb, button] of buttons) {
    let [can, why] = needs[verb] ?? needs.update;
    if (!hasFirmware && ["update", "stage", "activate", "dry_run", "verify"].includes(verb)) {
      [can, why] = [false, "Drop a firmware on the bench first."];
    } else if (status.bench?.firmware?.missing && ["update", "stage", "dry_run"].includes(verb)) {
      [can, why] = [false, "Drop the files of the manifest that are still missing."];
    }
    setIdle(button, !can || status.stale, status.stale ? "Nobody answers." : why);
  }
}
