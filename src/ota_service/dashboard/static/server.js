// SPDX-License-Identifier: GPL-3.0-or-later
// Talking to the page's server. What it refuses, and that it is gone, is thrown as an error of the
// table: {message, remedy, code}.

async function ask(path, options) {
  let response;
  try {
    response = await fetch(path, options);
  } catch {
    throw { message: "The command esp32-ota dashboard no longer runs.", remedy: "Start it again." };
  }
  const reply = await response.json().catch(() => ({}));
  if (!response.ok || reply.error) {
    throw reply.error ?? { message: `The server answered ${response.status}.` };
  }
  return reply;
}

const sent = (type, body) => ({ method: "POST", headers: { "Content-Type": type }, body });

export const post = (path, body) => ask(path, sent("application/json", JSON.stringify(body)));

export const command = (verb, args = {}) => post("/api/command", { command: verb, ...args });

/** One file, onto the bench. */
export const upload = (file) =>
  ask(`/api/firmware?name=${encodeURIComponent(file.name)}`, sent("application/octet-stream", file));

/** The session {machine, bench, verbs}; "stranger" to whom shows no token; null: nobody answers. */
export async function session() {
  try {
    const response = await fetch("/api/session");
    return response.ok ? await response.json() : "stranger";
  } catch {
    return null;
  }
}

/** Server-sent events: `take` gets each, until it returns true; `lost` is told of each loss, with
 * whether the browser has given up. */
export function events(path, take, lost) {
  const source = new EventSource(path);
  source.onmessage = (event) => { if (take(JSON.parse(event.data))) source.close(); };
  source.onerror = () => lost(source.readyState === EventSource.CLOSED);
  return source;
}
