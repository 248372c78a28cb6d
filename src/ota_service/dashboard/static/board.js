// SPDX-License-Identifier: GPL-3.0-or-later
// One board: what its state means, its row, and its details, which open below the row.

import {
  badge, bootLog, compare, duration, errorNotice, facts, h, notice, onPress, refill, setIdle,
  setText, time, words,
} from "./dom.js";
import { command, events } from "./server.js";

const KINDS = {
  failed: "bad", rolled_back: "bad", set_aside: "bad", unsupported: "bad", unrecognised: "bad",
  absent: "warn", awaiting_confirmation: "warn", outdated: "warn", updating: "busy",
  up_to_date: "good",
};
const RANKS = ["bad", "busy", "warn", "", "good"];
const RELEASABLE = ["set_aside", "rolled_back", "failed", "unrecognised"];

/** A person's rollback is held as that person wanted it: nothing has failed. */
const isWanted = (board) =>
  board.state === "rolled_back" && (!board.error || board.error.code === "held");

const isBusy = (board) => Boolean(board.phase || board.doing);

/** It has the version to run, and yet is not what it is meant to be; its notice or error says why. */
const isDoubtful = (board) => board.state === "up_to_date" && board.good === false;

export function kindOf(board) {
  if (board.doing || (board.phase && board.state !== "awaiting_confirmation")) return "busy";
  if (isWanted(board) || board.waitsForGroup) return "";
  return isDoubtful(board) ? "warn" : KINDS[board.state] ?? "";
}

/** What goes on, where that is no update: its state is as before. */
function busyWords({ doing, phase, state }) {
  if (doing || !phase) return doing;
  if (phase === "rolling_back") return words(phase);
  return ["updating", "awaiting_confirmation"].includes(state) ? "" : "at work";
}

function stateWords(board) {
  if (isWanted(board)) return "rolled back as asked";
  return words(board.state) + (isDoubtful(board) ? ", not good" : "");
}

export const stateBadge = (board) => badge(kindOf(board), busyWords(board) || stateWords(board));

const GROUPS = {
  trouble: "failed", busy: "being worked on", doubtful: "not good", outdated: "outdated",
  up_to_date: "up to date", unknown: "unknown", candidate: "candidate",
  rolled_back: "rolled back as asked", absent: "absent",
};

/** Each board counts to one of them. */
export function groupOf(board) {
  if (isBusy(board) || ["updating", "awaiting_confirmation"].includes(board.state)) return "busy";
  const isSpared = isWanted(board) || ["cancelled", "stopped"].includes(board.error?.code);
  if (board.state === "absent") return "absent";
  if (kindOf(board) === "bad" || (board.error && !isSpared)) return "trouble";
  return isDoubtful(board) ? "doubtful" : board.state;
}

export const FILTERS = {
  all: ["all", () => true],
  ...Object.fromEntries(Object.entries(GROUPS).map(([name, text]) =>
    [name, [text, (board) => groupOf(board) === name]])),
  staged: ["staged", (board) => Boolean(board.staged)],
};

const aimOf = (status) => (status.bench ? status.bench.firmware : status.target) ?? {};

/** The file on the bench that is to run, if it is an App Image. */
export const droppedApp = ({ files = [], firmware } = {}) => (firmware?.kind === "app"
  ? files.find((file) => file.sha256 === firmware.sha256) : undefined);

const OF_A_FIRMWARE = ["up_to_date", "unknown", "outdated", "failed", "set_aside", "rolled_back"];

/** A board as it is to be shown. On a bench another firmware may have been dropped since, and what
 * is said of boards is of the former one. */
export function asMeant(board, status) {
  const { bench, target = {} } = status;
  const { kind, sha256, version } = bench?.firmware ?? {};
  const shown = { ...board };
  if (bench && kind !== "manifest") shown.image = shown.target = undefined;
  if (!version || isBusy(board)) return shown;
  const digest = kind === "app" ? sha256 : undefined;
  const isOther = target.version !== version || Boolean(target.manifest) !== (kind === "manifest")
    || (digest && target.sha256 && target.sha256 !== digest);
  if (isOther && OF_A_FIRMWARE.includes(board.state)) {
    Object.assign(shown, { error: undefined, lastTime: board.error ?? board.lastTime });
    if (kind === "manifest" || board.version === undefined) shown.state = "unknown";
    else if (board.version !== version) shown.state = "outdated";
    else if (board.state !== "up_to_date") shown.state = "unknown";
  }
  const isStale = digest && (board.staged?.digest !== digest || board.staged.version !== version);
  if (isOther && board.staged) shown.staged = { ...board.staged, stale: !digest || isStale };
  return shown;
}

export const canRelease = (board) => RELEASABLE.includes(board.state);
export const canActivate = (board) => Boolean(board.staged && !board.staged.stale);
export const canReach = (board) => !isBusy(board) && board.state !== "absent";

const running = ({ project, app_version, slot } = {}) =>
  [project, app_version, slot && `in ${slot}`].filter(Boolean).join(" ");
const stored = (board) => (board.version === "" ? "none stored" : board.version ?? "");
export const wayBack = (board) =>
  (board.back ? `${board.back.version || "no version"} in ${board.back.slot}` : "");

/** What a column shows, and is sorted by; failures come first. */
export const COLUMNS = {
  board: ["Board", (board, name) => name],
  state: ["State", (board) => `${groupOf(board) === "trouble" ? 0 : RANKS.indexOf(kindOf(board))} ${
    board.error ? 0 : 1} ${board.state}`],
  version: ["Version", stored],
  running: ["Running", (board) => running(board.running)],
  port: ["Port", (board) => board.port ?? ""],
};

export const order = (column) => ([a, one], [b, other]) =>
  compare(COLUMNS[column][1](one, a), COLUMNS[column][1](other, b)) || compare(a, b);

const PLANS = {
  none: "stays as it is", write: "would be written", switch: "would switch slots",
  record: "would get the version", refuse: "would be refused",
};
export const planWords = (action) => PLANS[action] ?? action;

let made = 0;

/** The row of one board. It lives as long as its board and is filled anew with each status, so that
 * the keyboard's focus stays where it is. acts: {choose(name, chosen, upTo), act(verb, name)}. */
export class BoardRow {
  constructor(name, verbs, acts) {
    this.name = name;
    this.acts = acts;
    this.said = null;
    made += 1;
    const cell = (label, ...children) =>
      h("td", { role: "cell", class: label.toLowerCase(), "data-label": label }, ...children);
    this.pick = h("input", { type: "checkbox", "aria-label": `Select ${name}` });
    this.pick.addEventListener("click", (event) =>
      acts.choose(name, this.pick.checked, event.shiftKey));
    this.opener = h("button", { type: "button", class: "name", "aria-expanded": "false",
      "aria-controls": `details-${made}` }, name);
    this.opener.addEventListener("click", () => this.open(this.details.hidden));
    this.state = h("span");
    this.bar = h("progress", { max: 100, "aria-label": `${name}, progress` });
    this.what = h("span");
    this.left = h("span");
    this.progress = h("div", { class: "progress", hidden: true }, this.bar,
      h("div", { class: "row" }, this.what, this.left));
    this.marks = h("div", { class: "marks" });
    this.version = cell("Version");
    this.running = cell("Running");
    this.port = cell("Port");
    this.port.classList.add("mono");
    this.facts = h("dl");
    this.notices = h("div", { class: "notices" });
    this.log = h("div", { class: "side log" });
    this.buttons = h("div", { class: "row" });
    const button = (verb, text) => {
      if (!verbs.includes(verb)) return null;
      const label = `${text.replace("…", "")}, ${name}`;
      const shown = h("button", { type: "button", "aria-label": label }, text);
      onPress(shown, () => acts.act(verb, name), acts.refuse);
      this.buttons.append(shown);
      return shown;
    };
    this.flash = button("flash", "Flash…");
    this.watch = button("log", "Watch it start…");
    this.details = h("tr", { role: "row", class: "details", id: `details-${made}`, hidden: true },
      h("td", { role: "cell", colSpan: 6 }, h("div", { class: "sides" }, this.facts,
        h("div", { class: "side" }, this.notices, this.buttons)), this.log));
    this.element = h("tbody", { role: "rowgroup", "data-board": name },
      h("tr", { role: "row" },
        h("td", { role: "cell", class: "pick" }, this.pick),
        h("th", { role: "rowheader", scope: "row" }, this.opener),
        cell("State", this.state, this.progress, this.marks),
        this.version, this.running, this.port),
      this.details);
  }

  /** status: of the service, board: its entry in it. */
  show(board, status) {
    this.element.dataset.state = board.state;
    refill(this.state, [board.state, kindOf(board), busyWords(board), board.error?.code], () =>
      [stateBadge(board)]);
    this.showProgress(board, board.phase);
    const target = board.target ?? aimOf(status);
    const { doing, phase, staged } = board;
    const code = !isWanted(board) && !doing && board.error?.code;
    const version = stored(board);
    const read = board.version === undefined ? "not read yet" : `last read as ${version}`;
    const texts = doing ? [] : [
      board.image && `image ${board.image}`,
      board.state === "unknown" && !phase && read,
      canRelease(board) && !phase && "held",
      board.takenBack && `taken back with ${board.takenBack}`,
      board.lastTime && `last time: ${board.lastTime.code}`,
      this.said?.mark,
    ].filter(Boolean);
    const isStaged = staged && !phase && !doing;
    refill(this.marks, [texts, isStaged && staged, code], () => [
      ...texts.map((text) => h("span", {}, text)),
      isStaged && h("span", {}, `staged ${staged.version}`,
        staged.stale ? ", of another target, " : ", ", time(staged.since)),
      code && h("code", {}, code),
    ]);
    const goes = (phase ? board.state === "updating" && phase !== "rolling_back"
      : board.state === "outdated") && !doing && version && target.version
      && board.version !== target.version;
    refill(this.version, [version, goes && target.version], () => [version && h("span", {}, version,
      goes && h("span", { class: "goes" }, ` → ${target.version}`))]);
    setText(this.running, running(board.running));
    setText(this.port, (board.port ?? "").replace(/^\/dev\/serial\/by-\w+\//, ""));
    const hasEnded = this.last?.[0].phase && !phase;
    this.last = [board, target, status];
    if (!this.details.hidden) this.showDetails(...this.last);
    if (hasEnded) this.findLog();
  }

  showProgress(board, phase) {
    this.progress.hidden = !phase;
    if (!phase) return;
    const progress = board.progress ?? {};
    setText(this.what, phase === "waiting" && board.state === "awaiting_confirmation"
      ? "waiting for its app's confirmation" : words(phase));
    if (phase === "writing" && progress.percent !== undefined) {
      this.bar.value = progress.percent;
      const bytes = (progress.bytes_total ?? 0) - (progress.bytes_done ?? 0);
      const rate = progress.eta_s > 0 ? `${Math.round(bytes / progress.eta_s / 1000)} kB/s, ` : "";
      const left = progress.eta_s > 0 ? `, ${duration(progress.eta_s)} left` : "";
      setText(this.left, `${rate}${Math.round(progress.percent)} %${left}`);
    } else {
      if (phase === "waiting") this.bar.value = 0;
      else this.bar.removeAttribute("value");
      setText(this.left, "");
    }
  }

  // --- the details

  get isOpen() {
    return !this.details.hidden;
  }

  open(yes) {
    this.details.hidden = !yes;
    this.opener.setAttribute("aria-expanded", String(yes));
    this.isWatched = false;
    this.live?.close();
    if (!yes) return;
    this.showDetails(...this.last);
    this.findLog();
  }

  showDetails(board, target, status) {
    const rows = [
      ["Version to run", board.state === "up_to_date" || board.doing ? "" : target.version],
      ["Pinned to", board.target && !board.image ? target.url : ""],
      ["Rolls back to", wayBack(board)],
      ["Chip", [board.chip, board.flash_bytes && `${board.flash_bytes / 2 ** 20} MiB of flash`]
        .filter(Boolean).join(", ")],
      ["MAC", board.mac],
      ["Port", board.port],
      ["Attempts", board.attempts && `${board.attempts} failed`],
      ["Staged", board.staged && `${board.staged.version} in ${board.staged.slot}`],
      ["Staged SHA-256", board.staged?.digest],
    ];
    const seen = [rows, board.staged?.since, board.version_read_at];
    refill(this.facts, seen, () => [...facts([...rows,
      ["Staged since", board.staged && time(board.staged.since)],
      ["Version read", board.version_read_at && time(board.version_read_at)]])]);
    const whole = this.flash && !status.bench?.merged && board.error?.code === "no-ota-slots";
    const error = !isWanted(board) && !board.doing && board.error;
    const said = [error, board.lastTime, board.notice, this.said, board.state, whole];
    refill(this.notices, said, () => [
      error && errorNotice(error),
      board.lastTime && errorNotice(board.lastTime, "Last time", "rest"),
      whole && notice("rest", "Or here: drop a Merged Binary on the bench above, and press Flash."),
      isWanted(board) && notice("rest", "Rolled back by a person: it is held there until another "
        + "target is configured, or Release."),
      board.state === "candidate" && notice("rest", "A serial bridge that nobody has opened yet: "
        + "opening it restarts whatever is attached. If that is an ESP32, select it and press Version."),
      board.notice && notice("rest", board.notice),
      this.said?.error && errorNotice(this.said.error, this.said.title),
      this.said?.text && notice("rest", h("strong", {}, `${this.said.title}: `), this.said.text),
    ]);
    if (this.flash) {
      const why = status.bench?.merged ? "" : "Drop a Merged Binary on the bench first.";
      setIdle(this.flash, why || !canReach(board), why || "The board cannot be reached now.");
    }
    if (this.watch) {
      setText(this.watch, board.phase ? "Watch it start" : "Watch it start…");
      setIdle(this.watch, board.state === "absent", "The board is not attached.");
    }
  }

  /** What the board printed when it last started under an eye, from the history. */
  async findLog() {
    if (this.details.hidden || this.isWatched) return;
    const { runs = [] } = await command("history", { board: this.name, limit: 5, boot_log: true })
      .catch(() => ({}));
    const entries = runs.map((run) => [run, Object.values(run.boards ?? {})[0]]);
    const found = entries.find(([, entry]) => entry?.boot_log?.length);
    if (!found || this.isWatched) return;
    const [run, entry] = found;
    refill(this.log, [run.id, entry.boot_log], () => [
      bootLog(entry.boot_log, ["Boot log, ", time(run.finished_at ?? run.started_at)],
        kindOf(this.last[0]) === "bad")]);
  }

  /** The lines of its start, as they come; `ended` is called behind the last one. */
  watchStart(ended) {
    this.open(true);
    this.isWatched = true; // what is shown of this start stays until the details are closed
    const lines = h("pre", { tabIndex: 0, role: "log", "aria-label": `Boot log of ${this.name}` });
    const verdict = h("p", { class: "dim", role: "status" }, "The board starts.");
    refill(this.log, ["live", Date.now()], () => [lines, verdict]);
    const end = (text) => {
      setText(verdict, text);
      ended();
      return true;
    };
    this.live = events(`/api/log?board=${encodeURIComponent(this.name)}`, (news) => {
      if (news.end) return end(news.end.verdict ?? "It ended.");
      if (news.error) return end(news.error.message);
      lines.append(`${news.line}\n`);
      lines.scrollTop = lines.scrollHeight;
      return false;
    }, () => {
      this.live?.close();
      end("The connection was lost.");
    });
  }
}
