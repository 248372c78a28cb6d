// SPDX-License-Identifier: GPL-3.0-or-later
// What runs did and do: the history, and how far a manifest is.

import { kindOf, stateBadge } from "./board.js";
import {
  $, arrange, badge, bootLog, errorNotice, h, inOrder, notice, refill, setText, time, words,
} from "./dom.js";
import { command } from "./server.js";

const PURPOSES = {
  update: "to", stage: "staged", activate: "activated", plan: "dry run", version: "versions read",
  verify: "images verified", log: "start watched", rollback: "rolled back", flash: "replaced whole",
};
const OF_A_VERSION = ["update", "stage", "activate"];
const TRIGGERS = {
  command: "by command", configured: "at configuration", attached: "when attached",
  resumed: "after an interruption",
};
const KINDS = { succeeded: "good", running: "busy", partly: "warn", cancelled: "", failed: "bad" };

export const outcome = (name) => (name === "partly" ? "succeeded in part" : words(name));
/** On a bench all is by command. */
export const trigger = (name, bench) => (bench && name === "command" ? ""
  : TRIGGERS[name] ?? words(name));
export const outcomeKind = (name) => KINDS[name] ?? "bad";

// --- the history

const items = new Map();

/** The newest runs, as the service tells them; those that are open stay open. */
export async function showHistory(bench) {
  const { runs = [] } = await command("history", { limit: 12 });
  for (const id of items.keys()) if (!runs.some((run) => run.id === id)) items.delete(id);
  for (const run of runs) {
    if (!items.has(run.id)) items.set(run.id, new RunItem(run.id));
    items.get(run.id).show(run, bench);
  }
  arrange($("history"), runs.map((run) => items.get(run.id).element));
  $("no-history").hidden = runs.length > 0;
  return runs;
}

class RunItem {
  constructor(id) {
    this.id = id;
    this.summary = h("summary");
    this.body = h("div", { class: "run" });
    this.details = h("details", { "data-run": id }, this.summary, this.body);
    this.details.addEventListener("toggle", () => { if (this.details.open) this.fetch(); });
    this.element = h("li", {}, this.details);
  }

  show(run, bench) {
    const purpose = run.target?.purpose ?? "update";
    const boards = inOrder(run.boards);
    refill(this.summary, [run.outcome, run.boards], () => [h("span", { class: "row" },
      badge(outcomeKind(run.outcome), outcome(run.outcome)),
      h("strong", {}, PURPOSES[purpose] ?? words(purpose),
        OF_A_VERSION.includes(purpose) && ` ${run.target?.version ?? ""}`),
      h("span", { class: "dim" },
        [told(purpose, boards), trigger(run.trigger, bench)].filter(Boolean).join(", ")),
      h("span", { class: "dim" }, time(run.finished_at ?? run.started_at)))]);
    if (this.details.open) this.fetch();
  }

  /** One run alone comes with its boards' boot logs. */
  async fetch() {
    const { runs } = await command("history", { id: this.id }).catch((error) => ({ runs: [{ error }] }));
    const run = runs[0] ?? {};
    const boards = inOrder(run.boards);
    refill(this.body, run, () => [runTable(boards), ...runErrors(run, boards), ...bootLogs(boards),
      h("p", {}, h("a", { href: `/api/history/${encodeURIComponent(this.id)}`, download: "" },
        "Download this run as JSON"))]);
  }
}

/** Of a run that has only begun the history has no boards. */
function told(purpose, boards) {
  const good = boards.filter(([, board]) => board.outcome === "up_to_date").length;
  if (!boards.length) return "";
  if (["update", "activate"].includes(purpose)) return `${good} of ${boards.length} up to date`;
  return boards.length === 1 ? boards[0][0] : `${boards.length} boards`;
}

function runTable(boards) {
  const head = ["board", "from", "to", "outcome", "seconds"];
  const seconds = (board) => Object.values(board.phases ?? {}).reduce((sum, s) => sum + s, 0);
  const came = (board) => (board.by ? `taken back by ${board.by}` : words(board.outcome));
  return boards.length > 0 && h("div", { class: "scroll", tabIndex: 0, role: "region",
    "aria-label": "Boards of the run" }, h("table", {},
    h("thead", {}, h("tr", {}, ...head.map((name) =>
      h("th", { scope: "col", class: name === "seconds" ? "number" : "" }, name)))),
    h("tbody", {}, ...boards.map(([name, board]) => h("tr", {},
      h("th", { scope: "row" }, name), h("td", {}, board.from ?? ""),
      h("td", {}, board.to && board.to === board.from ? "unchanged" : board.to ?? ""),
      h("td", {}, came(board)),
      h("td", { class: "number" }, seconds(board) ? seconds(board).toFixed(1) : ""))))));
}

function runErrors(run, boards) {
  const found = boards.filter(([, board]) => board.error)
    .map(([name, board]) => errorNotice(board.error, name));
  found.push(...boards.filter(([, board]) => board.notice).map(([name, board]) =>
    notice("rest", h("strong", {}, `${name}: `), board.notice)));
  if (run.error && !boards.some(([, board]) => board.error?.code === run.error.code)) {
    found.push(errorNotice(run.error));
  }
  return found;
}

const bootLogs = (boards) => boards.filter(([, board]) => board.boot_log?.length)
  .map(([name, board]) => bootLog(board.boot_log, [`Boot log of ${name}`]));

// --- a manifest

const PHASES = { staging: "staging", switching: "switching", confirming: "confirming" };

/** Whom the end of the newest run took back, and with whom: {name: "board-3"}. */
export function takenBack({ run }, last) {
  if (!last || last.id !== run?.id || run.outcome === "running") return {};
  const entries = inOrder(last.boards);
  const failed = entries.filter(([, entry]) => entry.error && !entry.by).map(([name]) => name);
  return Object.fromEntries(entries.filter(([, entry]) => entry.by)
    .map(([name, { by }]) => [name, failed.join(", ") || by]));
}

/** The images in their steps, their boards, how far a run is with them, and what went back. */
export function showManifest(status) {
  const known = status.target?.manifest;
  const course = status.run?.manifest ?? known;
  const running = status.run?.outcome === "running" && status.run.manifest;
  const { kind, version } = status.bench?.firmware ?? {};
  const isMeant = !status.bench || running
    || (kind === "manifest" && version === (course?.version ?? status.target?.version));
  $("manifest").hidden = !course || !isMeant;
  if (!course || !isMeant) return;
  const entries = inOrder(status.boards);
  const boards = entries.map(([name, board]) =>
    [name, board, board.image ?? status.run?.manifest?.boards?.[name]]);
  const steps = course.steps ?? [];
  const together = known?.together ?? [];
  setText($("manifest-title"), `Manifest ${course.version ?? status.target?.version ?? ""}`);

  const phase = running ? course.phase : undefined;
  const phases = phase === "going_back" ? { ...PHASES, going_back: "going back" } : PHASES;
  refill($("phases"), [phase, running && course.step], () => (phase ? [
    ...Object.entries(phases).map(([name, text]) => {
      if (name !== phase) return h("li", { class: "badge" }, text);
      const kind = name === "going_back" ? "bad" : "busy";
      return h("li", { class: `badge ${kind}`, "aria-current": "step" }, text);
    })] : []));
  $("phases").hidden = !phase;
  setText($("together"), together.map((group) =>
    `${group.join(", ")} go forward or back together.`).join(" "));

  const shown = boards.map(([name, board, image]) =>
    [name, image, board.state, kindOf(board), board.phase, board.error?.code, board.staged,
      board.target?.version, board.takenBack, board.waitsForGroup]);
  refill($("steps"), [steps, shown, running && course.step], () => steps.map((images, at) => {
    const item = h("li", {}, h("h3", {}, `Step ${at + 1}`),
      ...images.map((image) => imageItem(image, boards.filter(([, , its]) => its === image))));
    if (running && course.step === at + 1) item.setAttribute("aria-current", "step");
    return item;
  }));

  const failed = boards.filter(([, board, image]) => image && board.error && kindOf(board) === "bad");
  const going = boards.filter(([, board, image]) => image && phase === "going_back" && board.phase);
  const back = Object.keys(status.takenBack);
  const half = status.run?.manifest?.half ?? [];
  refill($("went-back"),
    [half, failed.map(([name, board]) => [name, board.error]), going.map(([n]) => n), back], () => [
      half.length > 0 && notice("bad", h("strong", {}, "Half switched: "),
        `of a group only ${half.join(", ")} ${half.length === 1 ? "has" : "have"} the new firmware. `,
        h("strong", {}, "Attach all of it and let it restart: it is then brought to its end.")),
      ...failed.map(([name, board]) => errorNotice(board.error, name)),
      going.length > 0 && notice("", h("strong", {}, "Going back now: "), going.map(([n]) => n).join(", ")),
      back.length > 0 && notice("rest", h("strong", {}, "Taken back with it: "), back.join(", ")),
    ]);
}

function imageItem(image, boards) {
  const versions = [...new Set(boards.map(([, board]) => board.target?.version).filter(Boolean))];
  return h("div", { class: "image" },
    h("p", {}, h("strong", {}, image), " ", h("span", { class: "dim" }, versions.join(", "))),
    boards.length ? h("ul", {}, ...boards.map(([name, board]) =>
      h("li", {}, name, " ", board.phase ? badge("busy", words(board.phase)) : stateBadge(board),
        board.takenBack && h("span", { class: "dim" }, ` taken back with ${board.takenBack}`),
        board.staged && h("span", { class: "dim" }, ` staged ${board.staged.version}, `,
          time(board.staged.since)))))
      : h("p", { class: "dim" }, "no board gets it"));
}
