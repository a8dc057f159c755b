// A form is sent once: a second click while the answer is on its way would make a second job, token or run.
// What a script has taken over is left alone. The form can be sent again when the page is shown again.

let sent = new WeakSet();

addEventListener("submit", (event) => {
  const form = event.target;
  if (event.defaultPrevented || form.getAttribute("method") !== "post" || form.hasAttribute("target")) return;
  if (sent.has(form)) return event.preventDefault();
  sent.add(form);
  form.setAttribute("aria-busy", "true");
});

addEventListener("pageshow", () => {
  sent = new WeakSet();
  for (const form of document.querySelectorAll("form[aria-busy]")) form.removeAttribute("aria-busy");
});
