// SPDX-License-Identifier: GPL-3.0-or-later
// The page: takes the status as it comes, keeps the cards up to date, and carries commands.

import {
  BoardCard, compare, errorNotice, h, inOrder, onPress, outcome, runItem, setIdle, setText, size,
  time, trigger, words,
} from "./board.js";

const $ = (id) => document.getElementById(id);
const TOAST_MS = 8000;

const cards = new Map();
let machine = "";
let status = {};
let historyKey = "";

// --- talking to the server

async function post(path, body) {
  let response;
  try {
    response = await fetch(path, {
      method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body),
    });
  } catch {
    throw { message: "The command esp32-ota dashboard no longer runs.", remedy: "Start it again." };
  }
  const reply = await response.json().catch(() => ({}));
  if (!response.ok) throw reply.error ?? { message: `The server answered ${response.status}.` };
  return reply;
}

const command = (verb, args = {}) => post("/api/command", { command: verb, ...args });

function listen() {
  const events = new EventSource("/api/events");
  events.onmessage = (event) => {
    const news = JSON.parse(event.data);
    if (news.error) lost(news.error);
    else show(news.status);
  };
  events.onerror = () => {
    link("off", "the page's server is gone, trying again");
    if (events.readyState === EventSource.CLOSED) setTimeout(begin, 3000);
  };
}

function link(state, text) {
  $("link").dataset.link = state;
  setText($("link"), text);
}

function lost(error) {
  link("off", `${machine} is out of reach`);
  $("notices").replaceChildren(errorNotice(error));
}

// --- showing

function show(news) {
  status = news;
  link("on", machine);
  const boards = inOrder(status.boards);
  showTarget(boards);
  showBoards(boards);
  const run = status.run ?? {};
  const key = `${run.id} ${run.outcome}`;
  if (key !== historyKey) {
    historyKey = key;
    showHistory();
    if (run.outcome === "running") for (const card of cards.values()) card.plan = null;
  }
}

function showTarget(boards) {
  const target = status.target ?? {};
  setText($("target-version"), target.version ?? "–");
  setText($("target-url"), target.url ?? "");
  setText($("target-image"), target.size_bytes
    ? `${target.project} ${target.app_version} for ${target.chip}, ${size(target.size_bytes)}` : "");
  const run = status.run;
  const busy = run?.outcome === "running";
  $("run").replaceChildren(...(run ? [
    busy ? "A run is in progress, began " : `Last run ${outcome(run.outcome)}, `,
    time(run.finished_at ?? run.started_at), `, ${trigger(run.trigger)}.`] : ["No run yet."]));
  const percent = status.progress?.percent;
  $("download").hidden = status.state !== "downloading";
  if (percent === undefined) $("download-bar").removeAttribute("value");
  else $("download-bar").value = percent;
  const notices = [
    target.notice ? h("div", { class: "notice" }, target.notice) : null,
    status.error ? errorNotice(status.error) : null,
  ].filter(Boolean);
  const text = JSON.stringify([target.notice, status.error]);
  if ($("notices").dataset.shown !== text || !notices.length) {
    $("notices").dataset.shown = text;
    $("notices").replaceChildren(...notices);
  }
  $("cancel-all").hidden = !busy;
  for (const id of ["update-all", "dry-run-all"]) setIdle($(id), busy);
  const moving = boards.filter(([, board]) => board.phase).length;
  document.title = moving ? `(${moving}) ESP32 boards` : "ESP32 boards";
}

function showBoards(boards) {
  const list = $("boards");
  const names = new Set(boards.map(([name]) => name));
  for (const [name, card] of cards) {
    if (names.has(name)) continue;
    card.element.remove();
    cards.delete(name);
  }
  const counts = new Map();
  boards.forEach(([name, board]) => {
    let card = cards.get(name);
    if (!card) {
      card = new BoardCard(name, act);
      cards.set(name, card);
      const next = [...cards.keys()].filter((other) => compare(other, name) > 0).sort(compare)[0];
      list.insertBefore(card.element, cards.get(next)?.element ?? null);
    }
    card.show(board, status.target);
    counts.set(board.state, (counts.get(board.state) ?? 0) + 1);
  });
  setText($("counts"), [...counts].map(([state, n]) => `${n} ${words(state)}`).join(", "));
  $("no-boards").hidden = boards.length > 0;
}

async function showHistory() {
  try {
    const { runs } = await command("history", { limit: 12, boot_log: true });
    const open = document.querySelector("#history details[open]")?.dataset.run ?? "";
    $("history").replaceChildren(...runs.map((run) => runItem(run, run.id === open)));
    $("no-history").hidden = runs.length > 0;
  } catch (error) {
    toast(error);
  }
}

function toast(error, kind = "bad") {
  const made = errorNotice(error);
  made.classList.add("toast");
  if (kind !== "bad") made.classList.replace("bad", kind);
  $("toasts").append(made);
  setTimeout(() => made.remove(), TOAST_MS);
}

// --- asking and doing

const QUESTIONS = {
  update: (whom) => ({
    title: `Update ${whom}?`,
    text: "The boards are restarted to be read. Those whose version differs are written, restarted "
      + "into the new firmware and watched; one that does not come up goes back.",
    yes: "Update", check: "Write although the version is equal",
  }),
  dry_run: (whom) => ({
    title: `Dry run for ${whom}?`,
    text: "The boards are restarted to be read. Nothing is written.", yes: "Read the boards",
  }),
  rollback: (whom) => ({
    title: `Roll back ${whom}?`,
    text: "The board is restarted into the firmware of its other slot, and held there until the "
      + "target changes or it is released.",
    yes: "Roll back",
  }),
  cancel: () => ({
    title: "Cancel the run?",
    text: "Boards that are being written are restarted into their old firmware; boards behind the "
      + "switch finish.",
    yes: "Cancel the run", no: "Go on",
  }),
};

/** Resolves to null, or to {checked} when the person says yes. */
function ask({ title, text, yes, no = "Leave it", check = "" }) {
  const dialog = $("ask");
  setText($("ask-title"), title);
  setText($("ask-text"), text);
  setText($("ask-yes"), yes);
  setText($("ask-no"), no);
  setText($("ask-check-text"), check);
  $("ask-option").hidden = !check;
  $("ask-check").checked = false;
  dialog.showModal();
  // At the press itself: the event of the closing comes later, perhaps after the next question.
  return new Promise((resolve) => {
    const answered = new AbortController();
    const answer = (yes) => {
      answered.abort();
      resolve(yes ? { checked: $("ask-check").checked } : null);
    };
    const { signal } = answered;
    dialog.addEventListener("submit", (event) => answer(event.submitter.value === "yes"), { signal });
    dialog.addEventListener("cancel", () => answer(false), { signal });
  });
}

async function act(verb, name = null) {
  let checked = false;
  if (QUESTIONS[verb]) {
    const answer = await ask(QUESTIONS[verb](name ?? "all boards"));
    if (!answer) return;
    checked = answer.checked;
  }
  const boards = name === null ? {} : { boards: [name] };
  try {
    if (verb === "dry_run") await dryRun(boards);
    else if (verb === "update") {
      const { joined } = await command("update", { ...boards, ...(checked && { force: true }) });
      toast({ message: joined ? "A run for this firmware is in progress already." : "It began." },
        "good");
    } else if (verb === "rollback") await rollback(boards);
    else {
      await command(verb, boards);
      toast({ message: verb === "cancel" ? "The run stops." : `${name} may be taken up again.` },
        "good");
    }
  } catch (error) {
    toast(error);
  }
}

async function dryRun(boards) {
  toast({ message: "The boards are being read." }, "good");
  const { plan } = await command("update", { ...boards, dry_run: true });
  for (const [name, step] of Object.entries(plan ?? {})) {
    const card = cards.get(name);
    if (!card) continue;
    card.plan = step;
    card.showNotices(status.boards?.[name] ?? {});
  }
}

async function rollback(boards) {
  const reply = await command("rollback", boards);
  for (const [name, board] of Object.entries(reply.boards ?? {})) {
    if (board.error) toast(board.error);
    else toast({ message: `${name} runs ${board.slot} again, version ${board.version}.` }, "good");
  }
  showHistory();
}

// --- beginning

async function begin() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    history.replaceState(null, "", location.pathname);
    await post("/api/login", { token: given }).catch(toast);
  }
  let response;
  try {
    response = await fetch("/api/session");
  } catch {
    link("off", "the page's server is gone, trying again");
    setTimeout(begin, 3000);
    return;
  }
  $("login").hidden = response.status !== 401;
  $("page").hidden = !response.ok;
  if (!response.ok) {
    link("off", "not let in");
    $("token").focus();
    return;
  }
  machine = (await response.json()).machine;
  listen();
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
onPress($("update-all"), () => act("update"));
onPress($("dry-run-all"), () => act("dry_run"));
onPress($("cancel-all"), () => act("cancel"));
setInterval(() => {
  for (const shown of document.querySelectorAll("time")) {
    setText(shown, time(shown.dateTime).textContent);
  }
}, 15000);
begin();
