// SPDX-License-Identifier: GPL-3.0-or-later
// Questions before what restarts or replaces, and words about what came of it.

import { $, compare, count, errorNotice, h, notice, setIdle, setText } from "./dom.js";
import { canActivate, canRelease, wayBack } from "./board.js";

const TOAST_MS = 10_000;
const LISTED = 8;

/** Says something in the corner, and to those who listen; what went wrong stays until it is closed. */
export function toast(error, kind = "bad") {
  const made = kind === "bad" ? errorNotice(error) : notice(kind, error.message);
  made.classList.add("toast");
  const close = h("button", { type: "button", class: "close", "aria-label": "Close" }, "×");
  close.addEventListener("click", () => made.remove());
  made.append(close);
  if (kind.includes("ended")) endToasts();
  $("toasts").append(made);
  while ($("toasts").children.length > 4) $("toasts").firstChild.remove();
  if (kind.includes("good")) setTimeout(() => made.remove(), TOAST_MS);
}

/** What was said of the end of a run is over when another one begins or ends. */
export const endToasts = () =>
  document.querySelectorAll(".toast.ended").forEach((one) => one.remove());

const named = (boards, line) => {
  const lines = boards.slice(0, LISTED).map(line);
  return boards.length > LISTED ? [...lines, `and ${boards.length - LISTED} more`] : lines;
};

const restarted = ({ length }) => `${length === 1 ? "The board is" : "The boards are"} restarted to be read.`;
const read = (boards) => `${restarted(boards)} Nothing is written.`;
const numbers = (version) => /^v?(\d+(\.\d+)+)/.exec(version)?.[1]; // 1.0.0-rc1 is not newer than 1.0.0

/** Boards to which an update does what may not be meant. goal: {version, project} of the aim. */
function surprises(boards, { version, project } = {}) {
  return named(boards.flatMap(([name, board]) => {
    const runs = board.running?.project;
    const aimed = board.target?.version ?? version;
    if (project && runs && runs !== project && !board.target) {
      return [`${name} runs ${runs} ${board.running.app_version ?? ""}, another program`];
    }
    const [from, to] = [numbers(board.version), numbers(aimed)];
    const isOlder = from && to && compare(to, from) < 0;
    return isOlder ? [`${name}: ${board.version} → older ${aimed}`] : [];
  }), (line) => line);
}

const QUESTIONS = {
  update: ({ boards, words, aim, goal }) => ({
    title: `Update ${words}?`, yes: "Update", check: "Write although the version is equal",
    text: `To ${aim}. ${restarted(boards)} ${boards.length === 1
      ? "If its version differs, it is written, restarted into the new firmware and watched; if it does "
        + "not come up, it goes back."
      : "Those whose version differs are written, restarted into the new firmware and watched; one that "
        + "does not come up goes back."}`,
    lines: surprises(boards, goal),
  }),
  stage: ({ boards, words, aim, goal }) => ({
    title: `Stage on ${words}?`, yes: "Stage",
    text: `${aim}, is written into the spare slot of each board, over what Roll back would lead to. `
      + "Nothing starts it until you press Activate: a board is restarted for it, runs on with what it "
      + "runs now, and cannot be rolled back meanwhile.",
    lines: surprises(boards, goal),
  }),
  activate: ({ boards, words }) => ({
    title: `Activate what is staged on ${words}?`, yes: "Activate",
    text: "A board is switched to it in about a second, and watched as it starts; if it does not come "
      + "up, it goes back.",
    lines: named(boards.filter(([, board]) => canActivate(board)),
      ([name, board]) => `${name}: ${board.staged.version}`),
  }),
  dry_run: ({ boards, words }) => ({
    title: `Dry run for ${words}?`, text: read(boards), yes: "Read" }),
  version: ({ boards, words }) => ({
    title: `Read the version of ${words}?`, text: read(boards), yes: "Read" }),
  verify: ({ boards, words }) => ({
    title: `Verify ${words}?`, yes: "Verify",
    text: `${read(boards)} The running firmware is compared with the one to run, by its digest.`,
  }),
  rollback: ({ boards, words }) => ({
    title: `Roll back ${words}?`, yes: "Roll back",
    text: "Restarted into the firmware of the other slot, and held there until another one is to "
      + "run, or you press Release.",
    lines: named(boards, ([name, board]) => `${name}: ${wayBack(board) ? `to ${wayBack(board)}`
      : "to what its other slot holds, which is not known here"}`),
  }),
  release: ({ boards, words }) => ({
    title: `Release ${words}?`, yes: "Release",
    text: "Nothing is restarted or written now. The next update takes the boards up again that are "
      + "held, with the firmware that failed on them or that they were rolled back from as well.",
    lines: named(boards.filter(([, board]) => canRelease(board)), ([name, board]) =>
      `${name}: ${board.error?.message ?? "rolled back as asked"}`),
  }),
  log: ({ boards: [[name, board]] }) => (board.phase ? null : {
    title: `Restart ${name}?`, text: "It is restarted, and what it prints is shown as it comes.",
    yes: "Restart",
  }),
  cancel: () => ({
    title: "Cancel the run?", yes: "Cancel the run", no: "Go on",
    text: "Boards that are being written are restarted into their old firmware; boards behind the "
      + "switch finish.",
  }),
  stopped: () => ({
    title: "Let this firmware be tried again?", yes: "Let it be tried",
    text: "It was stopped because it failed on a board. The next update takes it up again.",
  }),
  flash: ({ boards: [[name, board]], merged }) => ({
    title: `Replace everything on ${name}?`, yes: "Replace everything", danger: true,
    text: `${merged.name} replaces all that is on the board: bootloader, partition table, firmware, and `
      + "its NVS with Wi-Fi and keys unless you keep it. There is no way back from the page.",
    check: "Keep the keys of NVS", typed: board.mac ?? "", typedLabel: board.mac
      ? `To go on, type its MAC, ${board.mac}`
      : "Its MAC is not known: press Version first, or type the one on its label",
  }),
};

/** Asks what a verb has to be asked for. null: the person says no; else {checked, typed}. */
export async function confirmed(verb, whom) {
  const question = QUESTIONS[verb]?.(whom);
  if (!question) return { checked: false };
  const candidates = whom?.boards?.filter(([, board]) => board.state === "candidate") ?? [];
  if (candidates.length) {
    question.lines = [...(question.lines ?? []), `${count(candidates.length, "serial bridge")} that `
      + "nobody has opened yet: opening can restart whatever is attached to it, ESP32 or not"];
  }
  return ask(question);
}

const sameMac = (a, b) => a.trim().toLowerCase().replaceAll("-", ":") === b.toLowerCase();

function ask({ title, text, yes, no = "Leave it", check, lines = [], danger, typed, typedLabel }) {
  const [dialog, button, field] = [$("ask"), $("ask-yes"), $("ask-typed")];
  for (const [id, words] of [["title", title], ["text", text], ["yes", yes], ["no", no],
    ["check-text", check ?? ""], ["typed-label", typedLabel ?? ""]]) setText($(`ask-${id}`), words);
  $("ask-lines").replaceChildren(...lines.map((line) => h("li", {}, line)));
  $("ask-lines").hidden = !lines.length;
  $("ask-option").hidden = !check;
  $("ask-check").checked = false;
  $("ask-type").hidden = typedLabel === undefined;
  field.value = "";
  button.className = danger ? "danger" : "main";
  const isTyped = () => typedLabel === undefined
    || (typed ? sameMac(field.value, typed) : field.value.trim().length === 17);
  const look = () => setIdle(button, !isTyped(), "Type the MAC first.");
  look();
  dialog.showModal();
  (typedLabel === undefined ? $("ask-no") : field).focus(); // not on what makes it riskier
  // At the press itself: the event of the closing comes later, perhaps after the next question.
  return new Promise((resolve) => {
    const answered = new AbortController();
    const { signal } = answered;
    const answer = (given) => {
      answered.abort();
      resolve(given ? { checked: $("ask-check").checked, typed: field.value.trim() } : null);
    };
    field.addEventListener("input", look, { signal });
    field.addEventListener("keydown", (event) => {
      if (event.key !== "Enter") return;
      event.preventDefault(); // the first button of the form would be pressed: `Leave it`
      button.click();
    }, { signal });
    dialog.addEventListener("submit", (event) => {
      const given = event.submitter.value === "yes";
      if (given && !isTyped()) event.preventDefault();
      else answer(given);
    }, { signal });
    dialog.addEventListener("cancel", () => answer(false), { signal });
  });
}
