// htmx as the pages use it. The page allows no inline styles and no `eval`, so neither is asked for.
// Nor does the browser keep snapshots of pages: what they show is not to be stored.

import htmx from "htmx.org/dist/htmx.esm.js";

// A page that nobody looks at asks for nothing.
document.addEventListener("htmx:before:request", (event) => {
  if (event.detail.ctx.sourceEvent?.type === "every" && document.hidden) event.preventDefault();
});

// A request that fails leaves the page as it is: htmx would show the page of the error, or the one for signing in.
document.addEventListener("htmx:before:response", (event) => {
  const { ok, redirected } = event.detail.ctx.response.raw;
  if (!ok || redirected) event.preventDefault();
});

export default htmx;
