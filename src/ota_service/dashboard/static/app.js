// SPDX-License-Identifier: GPL-3.0-or-later
// The page: lets in, takes the status as it comes, and carries commands.

import { confirmed, toast } from "./ask.js";
import * as bench from "./bench.js";
import { FILTERS, planWords } from "./board.js";
import * as boards from "./boards.js";
import {
  $, count, errorNotice, h, inOrder, notice, onPress, refill, setText, size, time,
} from "./dom.js";
import { outcome, outcomeKind, showHistory, showManifest, trigger } from "./runs.js";
import { command, events, post, session } from "./server.js";

let here = {};
let status = null;
let heardAt = null;
let newest = null;
let historyKey = "";
let ended = "";

const good = (message) => toast({ message }, "good");

// --- showing

function link(state, ...text) {
  $("link").dataset.link = state;
  $("link").replaceChildren(...text);
}

function show(news) {
  const before = status?.run;
  status = news;
  heardAt = new Date();
  $("page").classList.remove("stale");
  link("on", here.machine);
  showFirmware();
  boards.show(status);
  if (here.bench) bench.show(status.bench);
  showManifest(status, newest);
  const run = status.run ?? {};
  const key = `${run.id} ${run.outcome}`;
  if (key !== historyKey) {
    historyKey = key;
    refreshHistory();
    if (before?.outcome === "running") over(before.id === run.id ? run : before);
    if (run.outcome === "running") {
      ended = "";
      boards.forget();
    }
  }
  showTitle();
}

/** Also for what the status does not tell of: reads, rollbacks, watched starts. */
async function refreshHistory() {
  try {
    [newest] = await showHistory();
    showManifest(status, newest);
    boards.findLogs();
  } catch (error) {
    toast(error);
  }
}

/** A run has ended while somebody looked on, or looked away. */
function over(run) {
  if (run.outcome === "running") return;
  const all = inOrder(status.boards).map(([, board]) => board);
  const wrong = all.filter((board) => board.error && board.state !== "absent").length;
  const [done, staged] = ["up_to_date", "staged"].map((filter) => all.filter(FILTERS[filter][1]).length);
  const message = `The run ${outcome(run.outcome)}: ${done} of ${count(all.length, "board")} up to date${
    staged ? `, ${staged} staged` : ""}${wrong ? `, ${wrong} with an error` : ""}.`;
  toast({ message }, outcomeKind(run.outcome) === "good" ? "ended good" : "ended");
  ended = outcome(run.outcome);
}

function showTitle() {
  const moving = Object.values(status?.boards ?? {}).filter((board) => board.phase).length;
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
  refill($("run"), run ?? null, () => (run ? [
    busy ? "A run is in progress, began " : `Last run ${outcome(run.outcome)}, `,
    time(run.finished_at ?? run.started_at), `, ${trigger(run.trigger)}.`] : ["No run yet."]));
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
  $("cancel").hidden = !busy || !here.verbs.includes("cancel");
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
  const answer = await confirmed(verb, { ...whom, merged, aim: aim.join(", ") });
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
  rollback: ({ args }) => read("rollback", args, "Roll back", (reply) => reply.boards, (board) => ({
    mark: `runs ${board.version || board.slot}`,
    text: `it runs ${board.slot} again, version ${board.version || "none"}.` })),
  async flash({ whom, answer }) {
    good(`${whom.words}: everything on it is being replaced.`);
    await command("flash", {
      board: whom.names[0], confirm: answer.typed, keep_nvs: answer.checked });
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
  boards.show(status);
  refreshHistory();
  toast({ message: `${title}: ${[...marks].map(([mark, n]) => `${n} ${mark}`).join(", ")}.` },
    found.some(([, entry]) => entry.error) ? "ended" : "good");
}

// --- beginning

async function begin() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", location.pathname);
    await post("/api/login", { token: given }).catch(toast);
  }
  const found = await session();
  if (found === null) {
    lost(null, "the page's server is gone, trying again");
    setTimeout(begin, 3000);
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
  events("/api/events", (news) => {
    if (news.error) lost(news.error, `${here.machine} is out of reach`);
    else show(news.status);
  }, (gaveUp) => {
    lost(null, "the page's server is gone, trying again");
    if (gaveUp) setTimeout(begin, 3000);
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
onPress($("cancel"), () => act("cancel", null));
for (const event of ["focus", "pointerdown", "keydown"]) {
  addEventListener(event, () => {
    ended = "";
    showTitle();
  });
}
begin();
