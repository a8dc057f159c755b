// The answer that comes next is read ahead, and shown for reading as soon as a verdict is sent; the page of the server,
// which opens it, replaces it. To read it opens nothing, so others may still be faster.

import { find, form } from "./page.js";

const link = document.querySelector(".q-item:not([aria-current], .taken)");
let coming = null;

const readAhead = async () => {
  const response = await fetch(link.href, { headers: { accept: "text/html" } }).catch(() => null);
  if (!response?.ok || response.redirected) return;
  coming = new DOMParser().parseFromString(await response.text(), "text/html").querySelector(".item");
};

const show = () => {
  coming.classList.add("coming");
  coming.inert = true;
  find("item").replaceWith(coming);
};

if (form && link) {
  setTimeout(readAhead, 300); // after what the page itself needs
  // The form is read after this event, with the fields that would go.
  addEventListener("submit", (event) => event.target === form && coming && setTimeout(show));
}
