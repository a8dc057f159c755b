// Parts of pages that keep themselves up to date (`[data-live]`) wait while somebody reads in them: while a text is
// selected, and in a list (`[data-live=rows]`) while the pointer or the focus is on it. The page says if it is not up
// to date, and goes on asking.

const words = document.getElementById("live-state");
const signIn = document.createElement("a");
signIn.href = location.pathname + location.search; // leads back to this page
signIn.textContent = "sign in";
const STATES = {
  current: [words?.textContent],
  paused: ["paused while you read"],
  stale: ["not up to date"],
  "signed-out": ["you are signed out: ", signIn],
};
if (words) words.hidden = false;

// Screen readers read each change aloud.
const say = (state) => {
  if (!words || words.dataset.state === state) return;
  words.dataset.state = state;
  words.replaceChildren(...STATES[state]);
};

const isSelected = (part) => {
  const selection = getSelection();
  return !selection.isCollapsed && part.contains(selection.anchorNode);
};

document.addEventListener("htmx:before:request", (event) => {
  const part = event.target;
  if (!part.matches?.("[data-live]") || event.detail.ctx.sourceEvent?.type !== "every") return;
  // a job that has ended changes no more, so its page came without the trigger
  if (!part.hasAttribute("hx-trigger")) return event.preventDefault();
  const isRead = isSelected(part) || (part.dataset.live === "rows" && part.matches(":hover, :focus-within"));
  if (!isRead) return;
  say("paused");
  event.preventDefault();
});

document.addEventListener("htmx:before:response", ({ defaultPrevented, detail }) => {
  const { redirected, status } = detail.ctx.response.raw;
  if (!defaultPrevented) say("current");
  else say(redirected || status === 401 ? "signed-out" : "stale");
});

document.addEventListener("htmx:error", ({ detail }) => detail.ctx && say("stale"));
