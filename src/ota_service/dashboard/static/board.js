// SPDX-License-Identifier: GPL-3.0-or-later
// What one board, one error and one run look like. Elements are made here and filled with text
// alone, never with markup: names and messages come from elsewhere.

/** An element with properties and children; a child that is null is left out. */
export function h(tag, props = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(props)) {
    if (name === "class") made.className = value;
    else if (name in made) made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** Change a text only where it differs, so that a selection in it stays. */
export function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

/** "board 2" comes before "board 10". */
export const compare = new Intl.Collator(undefined, { numeric: true }).compare;

/** The boards of a status or a run, by name: on their way through Viam they lose their order. */
export const inOrder = (boards) => Object.entries(boards ?? {}).sort(([a], [b]) => compare(a, b));

/** Grey a button out and let it keep the focus, which `disabled` would take from a keyboard. */
export function setIdle(button, idle) {
  button.setAttribute("aria-disabled", String(idle));
}

const isIdle = (button) => button.getAttribute("aria-disabled") === "true";

/** Call `act` when a button is pressed that is not greyed out. */
export function onPress(button, act) {
  button.addEventListener("click", () => { if (!isIdle(button)) act(); });
}

const KINDS = {
  up_to_date: "good", updating: "busy", outdated: "warn", awaiting_confirmation: "warn",
  rolled_back: "bad", failed: "bad", set_aside: "bad", unsupported: "bad", unrecognised: "bad",
};
const SIGNS = { good: "✓ ", bad: "✗ ", warn: "! ", busy: "" };
const GOING = ["outdated", "updating"];
const RELEASABLE = ["set_aside", "rolled_back", "failed", "unrecognised"];

export const words = (name) => String(name ?? "").replaceAll("_", " ");

export function badge(state, text = words(state)) {
  const kind = KINDS[state] ?? "";
  return h("span", { class: `badge ${kind}` }, (SIGNS[kind] ?? "") + text);
}

/** Text whose `words in backquotes` are code. */
const prose = (text = "") => text.split("`").map((part, at) => (at % 2 ? h("code", {}, part) : part));

export function errorNotice(error, before = "") {
  return h("div", { class: "notice bad" },
    before ? h("strong", {}, `${before}: `) : null,
    ...prose(error.message), " ", h("strong", {}, ...prose(error.remedy)), " ",
    error.code ? h("code", { class: "code" }, error.code) : null);
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

export function size(bytes) {
  if (bytes >= 1 << 20) return `${+(bytes / (1 << 20)).toFixed(2)} MB`;
  return bytes >= 1024 ? `${Math.round(bytes / 1024)} kB` : `${bytes} B`;
}

function duration(seconds) {
  const whole = Math.round(seconds);
  return `${Math.floor(whole / 60)}:${String(whole % 60).padStart(2, "0")}`;
}

/** The card of one board. It lives as long as its board and is filled anew with each status, so
 * that the keyboard's focus stays where it is. */
export class BoardCard {
  constructor(name, act) {
    this.name = name;
    this.state = h("span");
    this.bar = h("progress", { max: 100, "aria-label": `${name}, progress` });
    this.what = h("span");
    this.left = h("span");
    this.progress = h("div", { class: "progress", hidden: true }, this.bar,
      h("div", { class: "row" }, this.what, this.left));
    this.facts = h("dl");
    this.notices = h("div");
    this.plan = null;
    const button = (text, verb, options = {}) => {
      const label = `${text.replace("…", "")} ${name}`;
      const made = h("button", { type: "button", "aria-label": label, ...options }, text);
      onPress(made, () => act(verb, name));
      return made;
    };
    this.update = button("Update…", "update");
    this.dryRun = button("Dry run…", "dry_run");
    this.rollback = button("Roll back…", "rollback");
    this.release = button("Release", "release", { hidden: true });
    this.element = h("li", { class: "card board", "data-board": name },
      h("div", { class: "bar" }, h("h3", {}, name), this.state),
      this.progress, this.facts, this.notices,
      h("div", { class: "row buttons" }, this.update, this.dryRun, this.rollback, this.release));
  }

  /** board: of the status. target: the service's, for boards that have none of their own. */
  show(board, target = {}) {
    const phase = board.phase;
    const shown = phase && board.state !== "awaiting_confirmation" ? "updating" : board.state;
    this.state.replaceChildren(badge(shown, words(board.state)));
    this.element.dataset.state = board.state;
    this.showProgress(board, phase);
    this.showFacts(board, board.target ?? target);
    this.showNotices(board);
    for (const button of [this.update, this.dryRun, this.rollback]) {
      setIdle(button, Boolean(phase) || board.state === "absent");
    }
    this.update.className = board.state === "outdated" ? "main" : "";
    this.release.hidden = !RELEASABLE.includes(board.state);
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

  showFacts(board, target) {
    const running = board.running ?? {};
    const version = board.version === undefined ? "" : board.version || "none stored";
    const goes = GOING.includes(board.state) && version && target.version
      && board.version !== target.version;
    const rows = [
      ["Version", goes ? `${version} → ${target.version}` : version],
      ["Pinned to", board.target ? `${target.version}, ${target.url}` : ""],
      ["Running", [running.project, running.app_version].filter(Boolean).join(" ")
        + (running.slot ? ` in ${running.slot}` : "")],
      ["Chip", [board.chip, board.flash_bytes ? size(board.flash_bytes) : ""]
        .filter(Boolean).join(", ")],
      ["MAC", board.mac ?? ""],
      ["Port", board.port ?? ""],
      ["Attempts", board.attempts ? `${board.attempts} failed` : ""],
    ].filter(([, value]) => value);
    const text = JSON.stringify(rows);
    if (this.facts.dataset.shown === text) return;
    this.facts.dataset.shown = text;
    this.facts.replaceChildren(...rows.flatMap(([name, value]) => [
      h("dt", {}, name),
      h("dd", { class: name === "MAC" || name === "Port" ? "mono" : "" }, value)]));
  }

  showNotices(board) {
    const text = JSON.stringify([board.error, this.plan, board.notice]);
    if (this.notices.dataset.shown === text) return;
    this.notices.dataset.shown = text;
    this.notices.replaceChildren(...[
      board.error ? errorNotice(board.error) : null,
      board.notice ? h("div", { class: "notice rest" }, board.notice) : null,
      this.plan ? h("div", { class: "notice rest" },
        h("strong", {}, `Dry run: ${PLANS[this.plan.action] ?? this.plan.action}. `),
        this.plan.reason ?? "") : null,
    ].filter(Boolean));
  }
}

const PLANS = {
  none: "it stays as it is", write: "it would be written", switch: "it would switch slots",
  record: "it would get the version", refuse: "it would be refused",
};

const PURPOSES = { plan: "dry run", version: "versions read", verify: "images verified" };
export const outcome = (name) => (name === "partly" ? "succeeded in part" : words(name));

const TRIGGERS = {
  command: "by command", configured: "at configuration", attached: "when attached",
  resumed: "after an interruption",
};
export const trigger = (name) => TRIGGERS[name] ?? words(name);

const OUTCOMES = { succeeded: "up_to_date", running: "updating", partly: "outdated" };

/** One run of the history, to be unfolded. */
export function runItem(run, open) {
  const boards = inOrder(run.boards);
  const purpose = run.target?.purpose ?? "update";
  const good = boards.filter(([, board]) => board.outcome === "up_to_date").length;
  const told = purpose === "update" ? `${good} of ${boards.length} up to date`
    : `${boards.length} ${boards.length === 1 ? "board" : "boards"}`;
  const details = h("details", { open, "data-run": run.id },
    h("summary", {}, h("span", { class: "row" },
      badge(OUTCOMES[run.outcome] ?? "failed", outcome(run.outcome)),
      h("strong", {}, purpose === "update" ? `to ${run.target?.version ?? ""}`
        : PURPOSES[purpose] ?? words(purpose)),
      h("span", { class: "dim" }, `${told}, ${trigger(run.trigger)}`),
      h("span", { class: "dim" }, time(run.finished_at ?? run.started_at)))),
    h("div", { class: "run" }, runTable(boards), ...runErrors(run, boards), ...bootLogs(boards)));
  return h("li", {}, details);
}

function runTable(boards) {
  const head = ["board", "from", "to", "outcome", "seconds"];
  const seconds = (board) => Object.values(board.phases ?? {}).reduce((sum, s) => sum + s, 0);
  return h("div", { class: "scroll" }, h("table", {},
    h("thead", {}, h("tr", {}, ...head.map((name) =>
      h("th", { scope: "col", class: name === "seconds" ? "number" : "" }, name)))),
    h("tbody", {}, ...boards.map(([name, board]) => h("tr", {},
      h("td", {}, name), h("td", {}, board.from ?? ""), h("td", {}, board.to ?? ""),
      h("td", {}, words(board.outcome)),
      h("td", { class: "number" }, seconds(board) ? seconds(board).toFixed(1) : ""))))));
}

function runErrors(run, boards) {
  const found = boards.filter(([, board]) => board.error)
    .map(([name, board]) => errorNotice(board.error, name));
  found.push(...boards.filter(([, board]) => board.notice).map(([name, board]) =>
    h("div", { class: "notice rest" }, h("strong", {}, `${name}: `), board.notice)));
  if (run.error && !boards.some(([, board]) => board.error?.code === run.error.code)) {
    found.push(errorNotice(run.error));
  }
  return found;
}

function bootLogs(boards) {
  return boards.filter(([, board]) => board.boot_log && board.error).map(([name, board]) =>
    h("details", {}, h("summary", {}, `Boot log of ${name}`),
      h("pre", { tabIndex: 0 }, board.boot_log.join("\n"))));
}
