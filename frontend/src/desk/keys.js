// Keys: one for "good, next", two for any other verdict. Single keys do nothing while the reviewer types.

import { editAnswer, find, form, isTyping } from "./page.js";

const hint = find("verdict-hint");
const REASONS = [...document.querySelectorAll("#verdict [name=reason]")];
let verdict = null; // the one that Ctrl+Enter sends, once it is chosen by its key

const button = (value) => form?.querySelector(`button[value=${value}]`);

const choose = (value, words) => {
  verdict = value;
  for (const each of ["redo", "reject"]) button(each)?.setAttribute("aria-pressed", String(each === value));
  if (hint) hint.textContent = words;
};

const chooseRedo = () => {
  if (!form) return;
  choose("redo", "Write the instruction to the model, then Ctrl+Enter sends it back");
  form.note.focus();
};

const chooseReject = () => {
  if (!form) return;
  const number = Math.min(REASONS.length, 9);
  choose("reject", number ? `Press 1–${number} for the reason, or n to write one` : "Write the reason, then Ctrl+Enter rejects");
  if (number) button("reject").focus();
  else form.note.focus();
};

const pickReason = (number) => {
  const reason = REASONS[number - 1];
  if (!reason) return;
  reason.checked = true;
  if (verdict === "reject") button("reject").click();
};

const move = (step) => {
  const links = [...document.querySelectorAll(".q-item")];
  const current = links.findIndex((link) => link.getAttribute("aria-current"));
  links[current + step]?.click(); // none before the first and after the last one
};

const press = (key) => document.querySelector(`[data-key="${key}"]`)?.click();
const keys = {
  j: () => move(1),
  ArrowRight: () => move(1),
  k: () => move(-1),
  ArrowLeft: () => move(-1),
  a: () => press("a"),
  e: editAnswer,
  r: chooseRedo,
  x: chooseReject,
  n: () => (verdict === "reject" ? form.note.focus() : press("n")),
  s: () => press("s"),
  u: () => press("u"),
  "?": () => find("sheet").showModal(),
};

const isOnChoice = (key) => key.startsWith("Arrow") && document.activeElement?.matches("[type=radio]");

addEventListener("keydown", (event) => {
  if (find("sheet").open || event.metaKey || event.altKey || event.defaultPrevented) return;
  if (event.key === "Escape") {
    if (isTyping()) document.activeElement.blur();
    else if (verdict) choose(null, "");
  } else if (event.key === "Enter" && event.ctrlKey && form) {
    event.preventDefault();
    if (!event.repeat) button(verdict ?? "approve").click(); // the next page comes while the keys are still down
  } else if (!isTyping() && !event.ctrlKey && !event.repeat && !isOnChoice(event.key)) {
    if (/^[1-9]$/.test(event.key)) pickReason(Number(event.key));
    else if (Object.hasOwn(keys, event.key)) keys[event.key]();
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
  find("edit").addEventListener("click", editAnswer);
}
