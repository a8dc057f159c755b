// The queue is polled by htmx; it stays as it is while the reviewer types.

import htmx from "../htmx.js";
import { find, isTyping } from "./page.js";

/** Read the queue and who has the open answer now, whatever the reviewer does. */
export const refreshQueue = () => {
  const live = find("queue-live");
  htmx.ajax("GET", live.getAttribute("hx-get"), { source: live, target: live, swap: "innerMorph" });
};


document.addEventListener("htmx:before:request", (event) => {
  const isPoll = event.target === find("queue-live") && event.detail.ctx.sourceEvent?.type === "every";
  if (isPoll && (isTyping() || find("sheet").open)) event.preventDefault();
});
