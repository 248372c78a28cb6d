// SPDX-License-Identifier: GPL-3.0-or-later
// One board: what its state means, its row, and its details, which open below the row.

import {
  badge, compare, duration, errorNotice, facts, h, logText, notice, onPress, refill, setIdle,
  setText, size, time, words,
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
  board.state === "rolled_back" && (!board.error || board.error.code === "cancelled");

export function kindOf(board) {
  if (board.phase && board.state !== "awaiting_confirmation") return "busy";
  return isWanted(board) ? "" : KINDS[board.state] ?? "";
}

export const stateBadge = (board) =>
  badge(kindOf(board), isWanted(board) ? "rolled back as asked" : words(board.state));

export const FILTERS = {
  all: ["all", () => true],
  trouble: ["failed", (board) => kindOf(board) === "bad"],
  busy: ["being worked on", (board) => Boolean(board.phase)],
  outdated: ["outdated", (board) => board.state === "outdated"],
  staged: ["staged", (board) => Boolean(board.staged)],
  up_to_date: ["up to date", (board) => board.state === "up_to_date"],
  absent: ["absent", (board) => board.state === "absent"],
};

const aimOf = (status) => (status.bench ? status.bench.firmware : status.target) ?? {};

/** A board as it is to be shown: on a bench another firmware may have been dropped since. */
export function asMeant(board, status) {
  const dropped = status.bench?.firmware?.kind === "app" && status.bench.firmware.version;
  const isOld = dropped && board.state === "up_to_date" && board.version !== dropped;
  return isOld ? { ...board, state: "outdated" } : board;
}

export const canRelease = (board) => RELEASABLE.includes(board.state);
export const canActivate = (board) => Boolean(board.staged && !board.staged.stale);
export const canReach = (board) => !board.phase && board.state !== "absent";

const running = ({ project, app_version, slot } = {}) =>
  [project, app_version, slot && `in ${slot}`].filter(Boolean).join(" ");
const stored = (board) => (board.version === "" ? "none stored" : board.version ?? "");
export const wayBack = (board) =>
  (board.back ? `${board.back.version || "no version"} in ${board.back.slot}` : "");

/** What a column shows, and is sorted by; failures come first. */
export const COLUMNS = {
  board: ["Board", (board, name) => name],
  state: ["State", (board) => `${RANKS.indexOf(kindOf(board))} ${board.error ? 0 : 1} ${board.state}`],
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
    this.log = h("div");
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
        h("div", { class: "side" }, this.notices, this.log, this.buttons))));
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
    refill(this.state, [board.state, board.phase, board.error?.code], () => [stateBadge(board)]);
    this.showProgress(board, board.phase);
    const target = board.target ?? aimOf(status);
    const marks = [board.image, !board.phase && board.staged, !isWanted(board) && board.error?.code,
      this.said?.mark, board.state === "unknown" && !board.phase && board.version === undefined];
    refill(this.marks, marks, () => [
      board.image && h("span", {}, `image ${board.image}`),
      marks[4] && h("span", {}, "not read yet"),
      !board.phase && board.staged && h("span", {}, `staged ${board.staged.version}`,
        board.staged.stale ? ", of another target, " : ", ", time(board.staged.since)),
      marks[2] && h("code", {}, marks[2]),
      this.said?.mark && h("span", {}, this.said.mark),
    ]);
    const version = stored(board);
    const goes = ["outdated", "updating"].includes(board.state) && version && target.version
      && board.version !== target.version;
    refill(this.version, [version, goes && target.version], () => [version && h("span", {}, version,
      goes && h("span", { class: "goes" }, ` → ${target.version}`))]);
    setText(this.running, running(board.running));
    setText(this.port, (board.port ?? "").replace(/^\/dev\/serial\/by-\w+\//, ""));
    const hasEnded = this.last?.[0].phase && !board.phase;
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
      ["Version to run", board.state === "up_to_date" ? "" : target.version],
      ["Pinned to", board.target && !board.image ? target.url : ""],
      ["Rolls back to", wayBack(board)],
      ["Chip", [board.chip, board.flash_bytes && size(board.flash_bytes)].filter(Boolean).join(", ")],
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
    refill(this.notices, [board.error, board.notice, this.said, board.state, whole], () => [
      board.error && !isWanted(board) && errorNotice(board.error),
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
      h("details", { open: kindOf(this.last[0]) === "bad" },
        h("summary", {}, "Boot log, ", time(run.finished_at ?? run.started_at)),
        logText(entry.boot_log))]);
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
