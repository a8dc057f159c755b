// The review lease: opened with the page, renewed while it is open, given back when the reviewer leaves.

import { desk } from "./page.js";
import { refreshQueue } from "./queue.js";

const RENEW_MS = 60_000;
const act = (action) =>
  fetch(`${desk.root}/api/reviews/${desk.job}/${action}`, { method: "POST", headers: { accept: "application/json" } })
    .catch(() => null); // no network: the next try may work

let isRefused = false; // somebody else has the answer, or has decided
let keepsLease = false;

const open = async () => {
  isRefused = (await act("open"))?.status === 409;
  refreshQueue(); // it says who has the answer now
};

// A page that shows the same answer gives it back when it goes, which may be after this one has come.
const renew = async () => {
  if (isRefused) return;
  const response = await act("renew");
  if (response?.status === 409 && !document.hidden) open();
};

if (desk.job && (desk.mine || desk.free)) {
  if (desk.free) open();
  else renew();
  setInterval(renew, RENEW_MS);
  addEventListener("visibilitychange", () => document.hidden || renew());
  // A verdict, a skip and the like settle the lease on the server.
  addEventListener("submit", (event) => (keepsLease = event.target.matches(".desk form[method=post]")));
  addEventListener("pagehide", () => {
    if (!keepsLease) navigator.sendBeacon(`${desk.root}/api/reviews/${desk.job}/leave`);
  });
}
