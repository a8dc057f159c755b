// The review desk by keyboard: keys, drafts that save themselves, and the review lease of the open answer.
// Without this script, every form of the page works by its buttons.

const desk = document.getElementById("desk").dataset;
const find = (id) => document.getElementById(id);
const answer = find("answer");
const form = find("verdict");
const RENEW_MS = 60_000;
const DRAFT_MS = 600;

// The review lease: opened with the page, renewed while it is open, given back when it closes.

let isLeaving = false;
const act = (action) => fetch(`${desk.root}/api/reviews/${desk.job}/${action}`, { method: "POST" });

if (desk.job && (desk.mine || desk.free)) {
  if (desk.free) act("open").then((response) => response.ok && find("open")?.closest("form").remove());
  setInterval(() => act("renew"), RENEW_MS);
  addEventListener("submit", (event) => (isLeaving = event.target.method === "post"));
  addEventListener("pagehide", () => {
    if (!isLeaving) navigator.sendBeacon(`${desk.root}/api/reviews/${desk.job}/leave`);
  });
}

// The draft: saved after a pause in typing; the server returns the difference to the model's answer.

let timer = null;
let saving = Promise.resolve();

const saveDraft = async () => {
  const body = new URLSearchParams({ round: form.round.value, answer: answer.value });
  find("draft-state").textContent = "Saving …";
  const response = await fetch(`${desk.root}/dashboard/review/${desk.job}/draft`, { method: "POST", body });
  if (!response.ok) {
    find("draft-state").textContent = "Not saved: reload the page, and look again";
    return;
  }
  const parsed = new DOMParser().parseFromString(await response.text(), "text/html").getElementById("difference");
  find("difference").replaceWith(parsed);
  form.seen.value = parsed.dataset.seen;
  find("approve").textContent = parsed.dataset.changed ? "Approve with edit" : "Approve";
  find("draft-state").textContent = "Draft saved";
};

const flushDraft = () => {
  if (timer === null) return saving;
  clearTimeout(timer);
  timer = null;
  saving = saveDraft();
  return saving;
};

answer?.addEventListener("input", () => {
  clearTimeout(timer);
  timer = setTimeout(flushDraft, DRAFT_MS);
});

form?.addEventListener("submit", async (event) => {
  const verdict = event.submitter?.value;
  const hasReason = form.note.value.trim() || form.querySelector("[name=reason]:checked");
  if (verdict === "reject" && !hasReason) {
    event.preventDefault();
    isLeaving = false;
    find("reason-missing").hidden = false;
    form.note.focus();
  } else if (timer !== null) {
    event.preventDefault();
    await flushDraft();
    form.requestSubmit(event.submitter);
  }
});

// Undo: the bar counts down, and goes when it is too late.

const left = document.querySelector(".undo-left");
if (left) {
  const countdown = setInterval(() => {
    left.value -= 1;
    if (left.value <= 0) {
      clearInterval(countdown);
      left.closest(".undo").remove();
    }
  }, 1000);
}

// Keys: single ones do nothing while the reviewer types.

const isTyping = () => document.activeElement?.matches("textarea, select, input:not([type=radio])");

const move = (step) => {
  const links = [...document.querySelectorAll(".q-item")];
  const current = links.findIndex((link) => link.getAttribute("aria-current"));
  links[Math.min(Math.max(current + step, 0), links.length - 1)]?.click();
};

const press = (key) => document.querySelector(`[data-key="${key}"]`)?.click();
const keys = {
  j: () => move(1),
  ArrowDown: () => move(1),
  ArrowRight: () => move(1),
  k: () => move(-1),
  ArrowUp: () => move(-1),
  ArrowLeft: () => move(-1),
  e: () => answer?.focus(),
  "?": () => find("sheet").showModal(),
};

addEventListener("keydown", (event) => {
  if (event.key === "Escape" && isTyping()) {
    document.activeElement.blur();
  } else if (event.key === "Enter" && event.ctrlKey && form) {
    press("a");
  } else if (!isTyping() && !event.ctrlKey && !event.metaKey && !event.altKey && !find("sheet").open) {
    if (/^[1-9]$/.test(event.key)) document.querySelectorAll("[name=reason]")[event.key - 1]?.click();
    else if (keys[event.key]) keys[event.key]();
    else if ("anrxsu".includes(event.key)) press(event.key);
    else return;
    event.preventDefault();
  }
});

addEventListener("focusin", () => (find("typing").hidden = !isTyping()));
addEventListener("focusout", () => (find("typing").hidden = true));
document.querySelector('[data-key="?"]').addEventListener("click", keys["?"]);
find("keys").hidden = false;
if (find("edit")) {
  find("edit").hidden = false;
  find("edit").addEventListener("click", keys.e);
}
