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
  refill($("dropped"), files, () => files.map(fileItem));
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

function imageBoards(file, image) {
  if (!file.boards) return "";
  const names = Object.keys(file.boards).filter((name) => file.boards[name] === image.name);
  return names.length > 0 ? `, for ${names.join(", ")}` : ", for no board";
}

function fileItem(file) {
  const [kind, text] = KINDS[file.kind] ?? ["", file.kind];
  return h("li", {}, h("p", { class: "row" }, badge(kind, text), h("strong", {}, file.name)),
    h("dl", {}, ...facts([
      ["Firmware", [file.project, file.app_version].filter(Boolean).join(" ")],
      ["Chip", file.chip], ["Size", file.size_bytes && size(file.size_bytes)],
      ["SHA-256", file.kind !== "refused" && file.sha256],
      ["Steps", file.steps?.map((step) => step.join(", ")).join(", then ")]])),
    file.images && h("ul", {}, ...file.images.map((image) => h("li", {},
      h("strong", {}, image.name), `: ${[image.file, image.version, image.project, image.chip]
        .filter(Boolean).join(", ")}${imageBoards(file, image)}`))),
    file.error && errorNotice(file.error));
}
