// SPDX-License-Identifier: GPL-3.0-or-later
// The bench: files that are dropped, what they are, and the tag that boards will get.

import { $, badge, errorNotice, facts, h, inOrder, notice, refill, setText, size } from "./dom.js";
import { droppedApp } from "./board.js";
import { command, upload } from "./server.js";

const KINDS = {
  app: ["good", "App Image"], merged: ["", "Merged Binary"], manifest: ["good", "manifest"],
  refused: ["bad", "refused"],
};

let tell;

/** say: is given each error. */
export function begin(say) {
  tell = say;
  const zone = $("bench");
  // Anywhere on the page: beside the zone a browser would leave the page to show the file.
  addEventListener("dragover", (drag) => {
    drag.preventDefault();
    zone.classList.add("over");
  });
  for (const event of ["dragleave", "drop"]) {
    addEventListener(event, () => zone.classList.remove("over"));
  }
  addEventListener("drop", (drag) => {
    drag.preventDefault();
    take(drag.dataTransfer.files);
  });
  $("choose").addEventListener("click", () => $("files").click());
  $("files").addEventListener("change", async () => {
    await take([...$("files").files]);
    $("files").value = "";
  });
  $("clear").addEventListener("click", () => command("clear").catch(tell));
  $("tag").addEventListener("change", () => command("tag", { version: $("tag").value }).catch(tell));
  $("tag-form").addEventListener("submit", (event) => event.preventDefault());
}

async function take(files) {
  for (const file of [...files]) {
    setText($("taking"), `${file.name} is being read.`);
    try {
      await file.slice(0, 1).arrayBuffer();
    } catch {
      tell({ message: `${file.name} cannot be read.`, remedy: "Drop files, not folders." });
      continue;
    }
    await upload(file).catch(tell);
  }
  setText($("taking"), "");
}

export function show({ bench = {}, boards }) {
  const { files = [], firmware, merged } = bench;
  const chip = droppedApp(bench)?.chip;
  const others = !chip ? [] : inOrder(boards).filter(([, board]) => board.chip && board.chip !== chip)
    .map(([name, board]) => `${name} (${board.chip})`);
  refill($("dropped"), files, () => files.map((file) => fileItem(file, files)));
  for (const item of $("dropped").children) {
    const isMeant = [firmware?.sha256, merged?.sha256].includes(item.dataset.sha256);
    item.classList.toggle("meant", isMeant);
    const choice = item.querySelector("input");
    if (choice) choice.checked = isMeant;
  }
  $("bench-hint").hidden = files.length > 0;
  $("clear").hidden = files.length === 0;
  $("tag-form").hidden = !firmware;
  if (firmware) {
    const isApp = firmware.kind === "app";
    setText($("tag-label"), `${firmware.name} is to run, as version`);
    $("tag").readOnly = !isApp;
    if (document.activeElement !== $("tag")) $("tag").value = firmware.version ?? "";
    setText($("tag-note"), isApp
      ? "Stored on each board with the firmware: it tells whether a board needs an update."
      : "It stands in the manifest.");
  }
  const missing = firmware?.missing ?? [];
  refill($("bench-notices"), [missing, merged && !firmware, chip, others], () => [
    others.length > 0 && notice("", h("strong", {}, `The firmware is for ${chip}, `),
      `which these boards do not have: ${others.join(", ")}. They would refuse it.`),
    missing.length > 0 && notice("", h("strong", {}, "Still missing: "),
      `${missing.join(", ")}. The manifest names them: drop them here, too.`),
    merged && !firmware && notice("rest", "A Merged Binary replaces all that is on a board: open a "
      + "board below by its name, and press Flash. For an update drop an App Image."),
  ]);
}

/** What one of several files is chosen for, if it is of use. */
const useOf = ({ kind }) => (kind === "merged" ? "to flash" : kind === "refused" ? "" : "to run");

/** Its name; where others are of the same use, with the choice between them. */
function fileName(file, files) {
  const name = h("strong", {}, file.name);
  const use = useOf(file);
  if (!use || files.filter((one) => useOf(one) === use).length < 2) return name;
  const choice = h("input", { type: "radio", name: use, value: file.sha256 });
  choice.addEventListener("change", () => command("choose", { sha256: file.sha256 }).catch(tell));
  return h("label", {}, choice, " ", name);
}

function takeOff(file) {
  const button = h("button", { type: "button", class: "close",
    "aria-label": `Take ${file.name} off the bench` }, "×");
  button.addEventListener("click", () => {
    $("choose").focus();
    command("clear", { sha256: file.sha256 }).catch(tell);
  });
  return button;
}

function imageBoards(file, image) {
  if (!file.boards) return "";
  const names = Object.keys(file.boards).filter((name) => file.boards[name] === image.name);
  return names.length > 0 ? `, for ${names.join(", ")}` : ", for no board";
}

function fileItem(file, files) {
  const [kind, text] = KINDS[file.kind] ?? ["", file.kind];
  const here = new Set(files.filter(({ kind }) => kind === "app").map(({ sha256 }) => sha256));
  const of = files.flatMap(({ name, images = [] }) => images
    .filter(({ sha256 }) => sha256 === file.sha256).map((image) => `${image.name} of ${name}`));
  return h("li", { "data-sha256": file.sha256 }, h("p", { class: "row" }, fileName(file, files),
    badge(kind, text), h("span", { class: "use" }, useOf(file))), takeOff(file),
    h("dl", {}, ...facts([
      ["Firmware", [file.project, file.app_version].filter(Boolean).join(" ")],
      ["Image", of.join(", ")],
      ["Chip", file.chip], ["Size", file.size_bytes && size(file.size_bytes)],
      ["SHA-256", file.kind !== "refused" && file.sha256],
      ["Steps", file.steps?.map((step) => step.join(", ")).join(", then ")]])),
    file.images && h("ul", {}, ...file.images.map((image) => h("li", {},
      here.has(image.sha256) ? "✓ " : "", h("strong", {}, image.name), `: ${[image.file,
        image.version, image.project, image.chip].filter(Boolean).join(", ")}${
        imageBoards(file, image)}`))),
    file.error && errorNotice(file.error));
}
