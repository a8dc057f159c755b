// The playground with streams: both answers appear as they come. Without this script, the form works by its button.

const form = document.getElementById("playground");
const root = form.dataset.root;
const find = (id) => document.getElementById(id);
let stopping = null;

// The members of the request; null if the server shall say what is wrong with the form.
const members = () => {
  const value = (name) => form.elements[name].value.trim();
  if (value("body")) {
    try {
      const { model, stream, stream_options, ...rest } = JSON.parse(value("body"));
      return rest;
    } catch {
      return null;
    }
  }
  if (!value("message")) return null;
  const system = value("system") ? [{ role: "system", content: form.elements.system.value }] : [];
  const body = { messages: [...system, { role: "user", content: form.elements.message.value }] };
  for (const name of ["temperature", "max_tokens"]) {
    if (!value(name)) continue;
    if (Number.isNaN(Number(value(name)))) return null;
    body[name] = Number(value(name));
  }
  return body;
};

const show = (side, name) => {
  find(`card-${side}`).hidden = false;
  find(`title-${side}`).textContent = name;
  find(`text-${side}`).textContent = "";
  find(`facts-${side}`).textContent = "";
  find(`job-${side}`).hidden = true;
  state(side, "In progress", "run");
};

const state = (side, word, colour) => {
  const label = document.createElement("span");
  label.className = `status ${colour}`;
  label.textContent = word;
  find(`state-${side}`).replaceChildren(label);
};

// Yields the data of each server-sent event of a response.
async function* events(response) {
  let rest = "";
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const pieces = (rest + value).split(/\r?\n\r?\n/);
    rest = pieces.pop();
    for (const piece of pieces) {
      const data = piece.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      if (data.length) yield data.map((line) => line.slice(5).trim()).join("\n");
    }
  }
}

const fail = (side, error) => {
  const isHeld = error?.code === "review_pending";
  state(side, isHeld ? "In review" : "Failed", isHeld ? "hold" : "bad");
  const held = "The answer waits for a person, who decides whether you get it.";
  find(`text-${side}`).textContent = isHeld ? held : error?.message ?? "The answer did not come.";
};

const ask = async (side, name, body, signal) => {
  show(side, name);
  const began = performance.now();
  let first = null;
  let usage = null;
  const response = await fetch(`${root}/v1/chat/completions`, {
    method: "POST",
    headers: { "content-type": "application/json" },
    body: JSON.stringify({ model: name, ...body, stream: true, stream_options: { include_usage: true } }),
    signal,
  });
  const job = response.headers.get("x-signoff-job");
  if (job) {
    find(`job-${side}`).href = `${root}/dashboard/jobs/${job}`;
    find(`job-${side}`).hidden = false;
  }
  if (!response.ok) return fail(side, (await response.json().catch(() => null))?.error);
  for await (const data of events(response)) {
    if (data === "[DONE]") break;
    const chunk = JSON.parse(data);
    if (chunk.error) return fail(side, chunk.error);
    const delta = chunk.choices?.[0]?.delta ?? {};
    const calls = delta.tool_calls ? JSON.stringify(delta.tool_calls) : "";
    if (delta.content || calls) {
      first ??= performance.now() - began;
      find(`text-${side}`).append((delta.content ?? "") + calls);
    }
    usage = chunk.usage ?? usage;
  }
  state(side, "Answered", "ok");
  const tokens = usage ? `${usage.prompt_tokens} tokens in, ${usage.completion_tokens} out · ` : "";
  const whole = ((performance.now() - began) / 1000).toPrecision(3);
  const start = first === null ? "" : `first byte ${Math.round(first)} ms, `;
  find(`facts-${side}`).textContent = `${tokens}${start}whole answer ${whole} s`;
};

form.addEventListener("submit", async (event) => {
  const body = members();
  if (body === null) return; // the server says what is wrong
  event.preventDefault();
  stopping?.abort();
  const mine = (stopping = new AbortController());
  const sides = ["left", "right"].filter((side) => form.elements[side].value.trim());
  find("card-right").hidden = !sides.includes("right");
  find("stop").hidden = false;
  await Promise.all(
    sides.map((side) =>
      ask(side, form.elements[side].value.trim(), body, mine.signal).catch((error) => {
        if (stopping !== mine) return; // the card shows the answer to a later question
        if (error.name === "AbortError") state(side, "Stopped", "");
        else fail(side, { message: "The server cannot be reached. Try again." });
      }),
    ),
  );
  if (stopping === mine) find("stop").hidden = true;
});

find("stop").addEventListener("click", () => stopping?.abort());
form.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
});
find("hint").textContent = "Ctrl+Enter asks";
