// What the modules of the desk share: the parts of the page.

export const find = (id) => document.getElementById(id);
export const desk = find("desk").dataset;
export const form = find("verdict");
export const answer = find("answer");
export const address = `${desk.root}/dashboard/review/${desk.job}`;

/** Return true while the reviewer types, so that no single key may do anything. */
export const isTyping = () => {
  const active = document.activeElement;
  return Boolean(active?.isContentEditable || active?.matches("textarea, select, input:not([type=radio], [type=checkbox])"));
};

/** Move the focus to the answer: to the first field of its calls if it has any. */
export const editAnswer = () => {
  const field = document.querySelector(".call-sent :is(input, select, textarea)");
  if (field) field.focus();
  else if (answer?.hidden) document.querySelector(".code-editor .cm-content").focus();
  else answer?.focus();
};
