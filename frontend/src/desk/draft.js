// The draft: saved after a pause in typing. The server returns the difference, and what is wrong next to each field.

import { address, find, form } from "./page.js";

const PAUSE_MS = 600;
let timer = null;
let saving = Promise.resolve();
let isSubmitting = false;

const body = () => new URLSearchParams(new FormData(form));

const show = (html) => {
  const parsed = new DOMParser().parseFromString(html, "text/html");
  for (const part of parsed.querySelectorAll("#difference, [data-live]")) find(part.id)?.replaceWith(part);
  const { seen, changed, savable } = find("difference").dataset;
  form.seen.value = seen;
  find("approve").textContent = changed ? form.dataset.changed : form.dataset.approve;
  return savable;
};

const save = async () => {
  const state = find("draft-state");
  state.textContent = "Saving …";
  const response = await fetch(`${address}/draft`, { method: "POST", body: body() }).catch(() => null);
  if (!response?.ok) {
    state.textContent = response ? "Not saved: reload the page, and look again" : "Not saved: the server cannot be reached";
    return;
  }
  state.textContent = show(await response.text()) ? "Draft saved" : "Not saved: see what is wrong";
};

/** Save what is not saved yet. */
const flush = () => {
  if (timer === null) return saving;
  clearTimeout(timer);
  timer = null;
  saving = saving.then(save);
  return saving;
};

const isEdit = (field) => field.form === form && (field.name === "answer" || field.name.startsWith("call."));

if (form) {
  addEventListener("input", (event) => {
    if (!isEdit(event.target)) return;
    clearTimeout(timer);
    timer = setTimeout(flush, PAUSE_MS);
  });
  // What was typed last is not lost if the reviewer leaves at once.
  addEventListener("pagehide", () => timer !== null && navigator.sendBeacon(`${address}/draft`, body()));
  form.addEventListener("submit", async (event) => {
    const hasReason = form.note.value.trim() || form.querySelector("[name=reason]:checked");
    if (event.submitter?.value === "reject" && !hasReason) {
      event.preventDefault();
      event.stopPropagation();
      find("reason-missing").hidden = false;
      form.note.focus();
    } else if (isSubmitting) {
      event.preventDefault(); // a second press of a key is no second verdict
      event.stopPropagation();
    } else if (timer !== null) {
      event.preventDefault();
      event.stopPropagation();
      await flush();
      form.requestSubmit(event.submitter);
    } else {
      isSubmitting = true;
      await saving;
    }
  });
}
