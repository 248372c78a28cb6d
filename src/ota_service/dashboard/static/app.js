// SPDX-License-Identifier: GPL-3.0-or-later
// The page: lets in, takes the status as it comes, and carries commands.

import { confirmed, endToasts, toast } from "./ask.js";
import * as bench from "./bench.js";
import { droppedApp, groupOf, planWords } from "./board.js";
import * as boards from "./boards.js";
import {
  $, count, errorNotice, h, inOrder, notice, onPress, refill, setText, size, time,
} from "./dom.js";
import {
  outcome, outcomeKind, showHistory, showManifest, takenBack, trigger,
} from "./runs.js";
import { command, events, post, session } from "./server.js";

let here = {};
let status = null;
let heardAt = null;
let runs = [];
let historyKey = "";
let retry, later;
let stream;
let ended = "";

const good = (message) => toast({ message }, "good");

/** Codes of what a person asked for. */
const WANTED = ["cancelled", "held"];

// --- showing

function link(state, ...text) {
  $("link").dataset.link = state;
  $("link").replaceChildren(...text);
}

function show(news) {
  const before = status?.run;
  const run = news.run ?? {};
  const key = `${run.id} ${run.outcome}`;
  const isNew = key !== historyKey;
  historyKey = key;
  heardAt = new Date();
  $("page").classList.remove("stale");
  link("on", here.bench ? `attached to ${here.machine}` : here.machine);
  if (isNew && run.outcome === "running") {
    ended = "";
    boards.forget();
    endToasts();
  }
  showBoards(news);
  showFirmware();
  if (here.bench) bench.show(status);
  if (isNew) {
    const isOver = before?.outcome === "running";
    refreshHistory().then(() => { if (isOver) over(before.id === run.id ? run : before); });
  }
  showTitle();
}

function showBoards(news) {
  status = boards.show({ ...news, takenBack: takenBack(news, runs[0]) });
  showManifest(status);
}

/** Also for what the status does not tell of: reads, rollbacks, watched starts. */
async function refreshHistory() {
  clearTimeout(later);
  try {
    runs = await showHistory(here.bench);
    showBoards(status);
    boards.findLogs();
  } catch (error) {
    toast(error);
    return;
  }
  // What was told of a run may be older than its end.
  const isLate = status.run?.outcome !== "running" && runs.some((one) => one.outcome === "running");
  if (isLate) later = setTimeout(refreshHistory, 2000);
}

/** A run has ended while somebody looked on, or looked away. */
function over({ id, outcome: name }) {
  const run = runs.find((one) => one.id === id);
  const came = run && run.outcome !== "running" ? run.outcome : name;
  if (came === "running") return;
  const its = Object.entries(run?.boards ?? status.boards);
  const isStage = run?.target?.purpose === "stage";
  const done = its.filter(([board, entry]) => (isStage ? status.boards[board]?.staged
    : (entry.outcome ?? entry.state) === "up_to_date")).length;
  const wrong = its.filter(([, { error }]) => error && !WANTED.includes(error.code)).length;
  const doubtful = its.filter(([board]) => groupOf(status.boards[board] ?? {}) === "doubtful").length;
  const message = `The run ${came === "cancelled" ? "was " : ""}${outcome(came)}: ${done} of ${
    count(its.length, "board")} ${isStage ? "staged" : "up to date"}${
    wrong ? `, ${wrong} with an error` : ""}${doubtful ? `, ${doubtful} of them not good` : ""}.`;
  toast({ message }, outcomeKind(came) === "good" && !doubtful ? "ended good" : "ended");
  ended = outcome(came);
  showTitle();
}

const atWork = () => inOrder(status?.boards).filter(([, board]) => board.phase || board.doing);

function showTitle() {
  const moving = atWork().length;
  const before = moving ? `(${moving}) ` : ended ? `Run ${ended} – ` : "";
  document.title = `${before}ESP32 boards`;
}

/** What was said last is shown on, dimmed, with the time that it is of. */
function lost(error, ...text) {
  if (heardAt) text.push(", as of ", heardAt.toLocaleTimeString());
  link("off", ...text);
  $("page").classList.add("stale");
  if (status) boards.show({ ...status, stale: true });
  if (error) refill($("notices"), error, () => [errorNotice(error)]);
}

function described({ manifest, size_bytes, project, app_version, chip }) {
  if (manifest) return `a manifest of ${count(manifest.images.length, "image")}`;
  return size_bytes ? `${project} ${app_version} for ${chip}, ${size(size_bytes)}` : "";
}

function showFirmware() {
  const { target = {}, run, trust, progress } = status;
  const busy = run?.outcome === "running";
  setText($("target-version"), target.version ?? "–");
  setText($("target-url"), target.url ?? "");
  setText($("target-image"), described(target));
  const by = run && trigger(run.trigger, here.bench);
  const work = busy ? "" : atWork().map(([name, board]) =>
    `${name}: ${board.doing ?? "at work"}`).join(", ");
  refill($("run"), [run, work], () => (work ? [work] : run ? [
    busy ? "A run is in progress, began " : `Last run ${outcome(run.outcome)}, `,
    time(run.finished_at ?? run.started_at), by && `, ${by}`, "."] : ["No run yet."]));
  $("download").hidden = status.state !== "downloading";
  if (progress?.percent === undefined) $("download-bar").removeAttribute("value");
  else $("download-bar").value = progress.percent;
  const told = Object.values(status.boards ?? {}).some((board) => board.error);
  const error = status.error?.code === "no-board" && told ? undefined : status.error;
  refill($("notices"), [target.notice, error, trust], () => [
    target.notice && notice("", target.notice),
    error && stopped(error, errorNotice(error)),
    trust?.requires?.length && notice("rest", `This host lets in firmware alone that has: ${
      trust.requires.join(", ")}.`),
    trust?.notice && notice("", trust.notice),
    trust?.error && errorNotice(trust.error),
  ]);
  const hadFocus = document.activeElement === $("cancel");
  $("cancel").hidden = !busy || !here.verbs.includes("cancel");
  if (hadFocus && $("cancel").hidden) $("run").focus();
}

/** A firmware that was stopped for all boards is let go by a person. */
function stopped(error, shown) {
  if (error.code !== "stopped" || !here.verbs.includes("release")) return shown;
  const button = h("button", { type: "button" }, "Let it be tried again…");
  button.addEventListener("click", () => act("stopped", null));
  shown.append(h("p", {}, button));
  return shown;
}

// --- doing

const PROBING = ["update", "stage", "dry_run", "version", "verify"];

async function act(verb, whom) {
  const { firmware, merged } = status.bench ?? {};
  const aim = [firmware?.name, `version ${(firmware ?? status.target)?.version}`].filter(Boolean);
  const { project } = status.bench ? droppedApp(status.bench) ?? {} : status.target ?? {};
  const goal = { project, version: firmware?.kind === "manifest" || status.target?.manifest && !firmware
    ? undefined : (firmware ?? status.target)?.version };
  const answer = await confirmed(verb, { ...whom, merged, aim: aim.join(", "), goal });
  if (!answer) return;
  const args = whom?.names ? { boards: whom.names } : {};
  if (here.bench && PROBING.includes(verb) && whom.boards.some(([, board]) =>
    board.state === "candidate")) args.probe = true;
  try {
    await (DOING[verb] ?? begun)({ verb, whom, args, answer });
  } catch (error) {
    toast(error);
  }
}

const DOING = {
  async update({ args, answer }) {
    return begun({ verb: "update", args: answer.checked ? { ...args, force: true } : args });
  },
  async cancel() {
    await command("cancel");
    good("The run stops.");
  },
  async stopped() {
    await command("release", { stopped: true });
    good("The next update takes this firmware up again.");
  },
  async release({ whom, args }) {
    await command("release", whom.names ? args : { all: true });
    good(`${whom.words} may be taken up again.`);
  },
  async dry_run({ args }) {
    await read("update", { ...args, dry_run: true }, "Dry run", ({ plan }) => plan, (step) => ({
      mark: planWords(step.action),
      text: `it ${planWords(step.action)}${step.image ? `, image ${step.image}` : ""}. ${step.reason ?? ""}${
        step.expected_s ? ` About ${Math.round(step.expected_s)} s.` : ""}`,
    }));
  },
  version: ({ args }) => read("version", args, "Version", (reply) => reply.boards, (board) => ({
    mark: "version read", text: board.version || "none stored" })),
  verify: ({ args }) => read("verify", args, "Verified", (reply) => reply.boards, (board) => ({
    mark: board.matches ? "image matches" : "image differs",
    text: board.matches ? "what runs is the firmware to run." : "what runs is another firmware." })),
  rollback: ({ whom, args }) => during(whom.names, "being rolled back", () => read(
    "rollback", args, "Roll back", (reply) => reply.boards, (board) => ({
      mark: `runs ${board.version || board.slot}`,
      text: `it runs ${board.slot} again, version ${board.version || "none"}.` }))),
  async flash({ whom, answer }) {
    const [board] = whom.names;
    await during([board], "being replaced", () => command("flash", {
      board, confirm: answer.typed, keep_nvs: answer.checked }));
    good(`${whom.words}: everything on it was replaced.`);
    refreshHistory();
  },
  async log({ whom, args }) {
    const [[name, board]] = whom.boards;
    if (!board.phase) await command("log", args);
    boards.row(name)?.watchStart(refreshHistory);
  },
};

async function begun({ verb, args }) {
  const { joined } = await command(verb, args);
  good(joined ? "A run for this firmware is in progress already." : "It began.");
}

/** Its rows and the head show it from the press on, whatever the status tells of it. */
async function during(names, words, work) {
  const show = (what) => {
    boards.does(names, what);
    showBoards(status);
    showFirmware();
  };
  show(words);
  return work().finally(() => show());
}

/** A verb that replies for each board; what it says stands with the board until the next one. */
async function read(verb, args, title, entries, said) {
  good(`${title}: the boards are asked.`);
  const found = inOrder(entries(await command(verb, args)));
  if (!found.length) {
    good(`${title}: it goes on, and its result comes into the history.`);
    return;
  }
  const marks = new Map();
  for (const [name, entry] of found) {
    const row = boards.row(name);
    if (!row) continue;
    const told = entry.error ? { mark: entry.error.code, error: entry.error } : said(entry);
    row.said = { title, ...told };
    marks.set(told.mark, (marks.get(told.mark) ?? 0) + 1);
  }
  refreshHistory();
  toast({ message: `${title}: ${[...marks].map(([mark, n]) => `${n} ${mark}`).join(", ")}.` },
    found.some(([, entry]) => entry.error) ? "ended" : "good");
}

// --- beginning

async function begin() {
  clearTimeout(retry);
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", location.pathname);
    await post("/api/login", { token: given }).catch(toast);
  }
  const found = await session();
  if (found === null) {
    lost(null, "the page's server is gone, trying again");
    retry = setTimeout(begin, 3000);
    return;
  }
  const letIn = found !== "stranger";
  $("login").hidden = letIn;
  $("page").hidden = !letIn;
  if (!letIn) {
    link("off", "not let in");
    $("token").focus();
    return;
  }
  if (!here.verbs) {
    boards.begin({ act, refuse: (why) => toast({ message: why }, "ended") }, found);
    $("bench").hidden = !found.bench;
    $("target").hidden = found.bench;
    if (found.bench) bench.begin(toast);
  }
  here = found;
  stream?.close(); // of an address that was entered before
  stream = events("/api/events", (news) => {
    if (news.error) lost(news.error, `${here.machine} is out of reach`);
    else show(news.status);
  }, (gaveUp) => {
    lost(null, "the page's server is gone, trying again");
    if (gaveUp) retry = setTimeout(begin, 3000);
  });
}

$("login").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await post("/api/login", { token: $("token").value });
    begin();
  } catch (error) {
    toast(error);
  }
});
addEventListener("hashchange", () => { if (location.hash.includes("token=")) begin(); });
onPress($("cancel"), () => act("cancel", null));
for (const event of ["focus", "pointerdown", "keydown"]) {
  addEventListener(event, () => {
    ended = "";
    showTitle();
  });
}
begin();
