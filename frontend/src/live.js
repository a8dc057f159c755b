// Parts of pages that keep themselves up to date (`[data-live]`) wait while somebody reads in them: while a text is
// selected, and in a list (`[data-live=rows]`) while the pointer or the focus is on it.

const words = document.getElementById("live-state");
if (words) words.hidden = false;

const isSelected = (part) => {
  const selection = getSelection();
  return !selection.isCollapsed && part.contains(selection.anchorNode);
};

document.addEventListener("htmx:before:request", (event) => {
  const part = event.target;
  if (!part.matches?.("[data-live]") || event.detail.ctx.sourceEvent?.type !== "every") return;
  const isRead = isSelected(part) || (part.dataset.live === "rows" && part.matches(":hover, :focus-within"));
  const state = isRead ? "paused while you read" : "live";
  if (words && words.textContent !== state) words.textContent = state;
  // a job that has ended changes no more, so its page came without the trigger
  if (isRead || !part.hasAttribute("hx-trigger")) event.preventDefault();
});
