// The review lease: opened with the page, renewed while it is open, given back when the reviewer leaves.

import { desk } from "./page.js";
import { refreshQueue } from "./queue.js";

const RENEW_MS = 60_000;
const act = (action) =>
  fetch(`${desk.root}/api/reviews/${desk.job}/${action}`, { method: "POST", headers: { accept: "application/json" } });

let keepsLease = false;

const renew = async () => {
  const response = await act("renew").catch(() => null); // no network: the next try may work
  if (response?.status === 409) refreshQueue(); // the page says who has it now
};

const keep = async () => {
  if (desk.free) {
    const response = await act("open");
    refreshQueue();
    if (!response.ok) return; // somebody else was faster, whom the page shows now
  }
  setInterval(renew, RENEW_MS);
  addEventListener("visibilitychange", () => document.hidden || renew());
};

if (desk.job && (desk.mine || desk.free)) {
  keep();
  // A verdict, a skip and the like settle the lease on the server.
  addEventListener("submit", (event) => (keepsLease = event.target.matches(".desk form[method=post]")));
  addEventListener("pagehide", () => {
    if (!keepsLease) navigator.sendBeacon(`${desk.root}/api/reviews/${desk.job}/leave`);
  });
}
