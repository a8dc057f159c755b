// The draft: saved after a pause in typing, and tried again until it is saved. The server returns the difference, and
// what is wrong next to each field.

import { address, find, form } from "./page.js";

const PAUSE_MS = 600;
const FIRST_RETRY_MS = 1_000;
const LONGEST_RETRY_MS = 30_000;
const MOST_WAIT_MS = 20_000;
const LONGEST_BEACON = 60_000; // bytes; browsers refuse 64 KiB
const UNSAVED = {
  401: "Not saved: you are signed out. Sign in in another tab",
  413: "Not saved: the text is too long",
};

let isDirty = false; // until a save of the whole text succeeds
let isRefused = false; // the last save failed, or the server could not read the fields
let edits = 0;
let retryMs = FIRST_RETRY_MS;
let timer = null;
let verdict = null; // "waits" for the draft, then "goes", then is "sent"
let saving = Promise.resolve();

const body = () => new URLSearchParams(new FormData(form));

// Screen readers read each change aloud.
const say = (words) => {
  const state = find("draft-state");
  if (state.textContent !== words) state.textContent = words;
};

const saveAfter = (pause) => {
  clearTimeout(timer);
  timer = setTimeout(() => verdict === null && flush(), pause); // beside a verdict, it would change what that has seen
};

/** Save what is not saved yet, after the save that is on its way; return false if that failed. */
const flush = () => {
  clearTimeout(timer);
  saving = saving.catch(() => false).then(save);
  return saving;
};

const save = async () => {
  if (!isDirty) return true;
  const saved = edits;
  if (!isRefused) say("Saving …");
  const { status, text } = await post();
  if (status !== 200) return fail(status, text);
  retryMs = FIRST_RETRY_MS;
  const isSavable = show(text);
  isRefused = !isSavable;
  if (isSavable && saved === edits) isDirty = false;
  say(isSavable ? "Draft saved" : "Not saved: see what is wrong");
  return true;
};

const post = async () => {
  try {
    const response = await fetch(`${address}/draft`, { method: "POST", body: body(), signal: AbortSignal.timeout(MOST_WAIT_MS) });
    return { status: response.redirected ? 401 : response.status, text: await response.text() };
  } catch {
    return { status: 0, text: "" }; // no network, or it broke off
  }
};

const show = (html) => {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  for (const part of parsed.querySelectorAll("#difference, [data-live]")) find(part.id)?.replaceWith(part);
  const { seen, changed, savable } = find("difference").dataset;
  form.seen.value = seen;
  find("approve").textContent = changed ? form.dataset.changed : form.dataset.approve;
  return savable;
};

const fail = (status, text) => {
  const mayPass = status === 0 || status === 401 || status === 429 || status >= 500;
  if (mayPass) saveAfter(retryMs);
  retryMs = Math.min(2 * retryMs, LONGEST_RETRY_MS);
  isRefused = true;
  say(UNSAVED[status] ?? (mayPass ? "Not saved yet; trying again" : `Not saved: ${messageOf(text)}`));
  return false;
};

/** Return the message of an error of the server. */
const messageOf = (text) => {
  try {
    return JSON.parse(text).detail;
  } catch {
    return "reload the page, and look again";
  }
};

const isEdit = (field) => field.form === form && (field.name === "answer" || field.name.startsWith("call."));

const hasReason = () => Boolean(form.note.value.trim() || form.querySelector("[name=reason]:checked"));

const askForReason = () => {
  find("reason-missing").hidden = false;
  form.note.focus();
};

if (form) {
  addEventListener("input", (event) => {
    if (!isEdit(event.target)) return;
    isDirty = true;
    edits += 1;
    saveAfter(PAUSE_MS);
  });
  // What was typed last is not lost if the reviewer leaves at once; the browser asks if it would be.
  addEventListener("pagehide", () => isDirty && verdict !== "sent" && navigator.sendBeacon(`${address}/draft`, body()));
  addEventListener("beforeunload", (event) => {
    if (isDirty && verdict !== "sent" && (isRefused || String(body()).length > LONGEST_BEACON)) event.preventDefault();
  });
  // A verdict waits for the draft: it names what the reviewer has seen, and each save changes that.
  form.addEventListener("submit", async (event) => {
    const isComplete = event.submitter?.value !== "reject" || hasReason();
    if (verdict === "goes" || (verdict === null && isComplete && !isDirty)) {
      verdict = "sent";
      return;
    }
    event.preventDefault();
    event.stopPropagation();
    if (verdict !== null) return; // a second press of a key is no second verdict
    if (!isComplete) return askForReason();
    verdict = "waits";
    const isSaved = await flush();
    verdict = isSaved ? "goes" : null;
    if (isSaved) form.requestSubmit(event.submitter);
    else find("verdict-hint").textContent = `Not sent. ${find("draft-state").textContent}`;
  });
}
