// The upload of a batch shows how far it is, and can be stopped. Without this script, the form sends itself.

const find = (id) => document.getElementById(id);
const form = find("upload");
const size = (bytes) => `${(bytes / 1e6).toFixed(bytes < 1e7 ? 1 : 0)} MB`;

const fail = (message) => {
  find("sending").hidden = true;
  find("send").disabled = false;
  find("upload-fault").hidden = false;
  find("upload-fault").querySelector("span").textContent = message;
};

/** Show the page that the upload led to, or the fault that it says. */
const finish = (request) => {
  if (request.status === 200) return location.assign(request.responseURL);
  const answer = new DOMParser().parseFromString(request.responseText, "text/html");
  fail(answer.querySelector("[role=alert]:not([hidden])")?.textContent.trim() || `The server answered ${request.status}.`);
};

form.addEventListener("submit", (event) => {
  event.preventDefault();
  const request = new XMLHttpRequest(); // `fetch` does not say how much it has sent
  request.upload.addEventListener("progress", ({ loaded, total }) => {
    find("sent").value = loaded / total;
    find("sent-words").textContent = `${size(loaded)} of ${size(total)}`;
  });
  request.addEventListener("load", () => finish(request));
  request.addEventListener("error", () => fail("The server cannot be reached. Try again."));
  request.addEventListener("abort", () => fail("The upload was stopped; nothing was kept."));
  find("stop").onclick = () => request.abort();
  find("upload-fault").hidden = true;
  find("sending").hidden = false;
  find("send").disabled = true;
  request.open("POST", form.action);
  request.setRequestHeader("accept", "text/html");
  request.send(new FormData(form));
});
