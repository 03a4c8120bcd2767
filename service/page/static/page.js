// The live parts of the page; everything else works without. Texts are only ever set as text.
"use strict";

const one = (selector, root = document) => root.querySelector(selector);

function seconds(value) {
  if (value < 9.995) return `${value.toFixed(2)} s`;
  if (value < 60) return `${value.toFixed(1)} s`;
  const whole = Math.round(value), minutes = Math.floor(whole / 60);
  return minutes < 60 ? `${minutes} min ${whole % 60} s` : `${Math.floor(minutes / 60)} h ${minutes % 60} min`;
}

// --- server-sent events of a response, for streams that take more than an EventSource gives --------

async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const parts = (rest + value).split("\n\n");
    rest = parts.pop();
    for (const part of parts)
      for (const line of part.split("\n")) if (line.startsWith("data: ")) yield line.slice(6);
  }
}

// Appends what an answer's first choice says; returns how many chunks came, and whether it is whole.
async function read(response, place) {
  let chunks = 0;
  for await (const data of events(response)) {
    if (data === "[DONE]") return { chunks, whole: true };
    const chunk = JSON.parse(data);
    if (chunk.error) return { chunks, error: chunk.error.message };
    chunks += 1;
    const choice = (chunk.choices || []).find((each) => each.index === 0);
    if (choice && choice.delta && choice.delta.content) place.append(choice.delta.content);
  }
  return { chunks, whole: false };
}

// --- Now --------------------------------------------------------------------------------------------

function showNow(table) {
  const body = one("tbody", table), template = one("#row");
  let skew = 0, stale = 0;

  function rowOf(id) {
    const found = [...body.rows].find((row) => row.dataset.id === id);
    if (found) return found;
    const row = template.content.firstElementChild.cloneNode(true);
    row.dataset.id = id;
    const path = `/page/completions/${encodeURIComponent(id)}`;
    const link = one("a", row);
    link.href = path;
    link.textContent = id;
    link.setAttribute("aria-label", `completion ${id}`);
    one("form", row).action = `${path}/cancel`;
    one("button", row).setAttribute("aria-label", `cancel ${id}`);
    body.prepend(row);
    return row;
  }

  function showState(row, change) {
    const chips = one('[data-cell="state"]', row);
    const state = change.state || chips.firstElementChild.textContent.replace(" ", "_");
    const away = "detached" in change ? change.detached : chips.childElementCount > 1;
    chips.replaceChildren(...[state, ...(away ? ["away"] : [])].map((kind) => {
      const chip = document.createElement("span");
      chip.className = `chip ${kind}`;
      chip.textContent = kind === "away" ? "detached" : kind.replace("_", " ");
      return chip;
    }));
  }

  function show(change) {
    for (const part of change.rows || []) {
      const row = rowOf(part.id);
      for (const name of ["model", "owner", "agent", "replica", "tokens", "rate", "readers"]) {
        const cell = one(`[data-cell="${name}"]`, row);
        if (cell && name in part) cell.textContent = part[name];
      }
      if ("state" in part || "detached" in part) showState(row, part);
      if (part.is_hidden) one('[data-cell="id"]', row).textContent = "not stored";
      if (part.created_at) row.dataset.created = part.created_at;
    }
    for (const id of change.gone || []) {
      const row = [...body.rows].find((each) => each.dataset.id === id);
      if (row) row.remove();
    }
    for (const [name, value] of Object.entries(change.totals || {}))
      one(`[data-total="${name}"]`).textContent = value;
    if ("missing" in change) {
      one("#missing").textContent = change.missing;
      one("#missing").hidden = !change.missing;
    }
    one("#idle").hidden = body.rows.length > 0;
    table.hidden = !body.rows.length;
    one("#more").hidden = Number(one('[data-total="streams"]').textContent) <= body.rows.length;
    if ((change.gone || []).length && !stale) stale = setTimeout(showFailures, 2000);
  }

  async function showFailures() {
    try {
      const response = await fetch("/page/failures", { redirect: "error" });
      if (response.ok) {
        const page = new DOMParser().parseFromString(await response.text(), "text/html");
        one("#failures").replaceChildren(...page.body.childNodes);
      }
    } catch { /* away, or the session is over: what is shown stays */ }
    stale = 0;
  }

  const source = new EventSource(table.dataset.events);
  let isFirst = true;
  source.onopen = () => { one("#live").hidden = false; isFirst = true; };
  source.onerror = () => { one("#live").hidden = true; };
  source.onmessage = (event) => {
    const change = JSON.parse(event.data);
    if (isFirst) {  // all that runs: what else is shown has ended meanwhile
      const known = new Set((change.rows || []).map((row) => row.id));
      change.gone = [...body.rows].map((row) => row.dataset.id).filter((id) => !known.has(id));
      isFirst = false;
    }
    if (change.at) skew = change.at - Date.now() / 1000;
    show(change);
  };
  setInterval(() => {
    for (const row of body.rows)
      one('[data-cell="age"]', row).textContent = seconds(Math.max(0, Date.now() / 1000 + skew - row.dataset.created));
  }, 500);
}

// --- the box that asks ------------------------------------------------------------------------------

function showBox(form) {
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const words = one("#words"), told = one("#asked"), button = one("button", form);
    const messages = [{ role: "user", content: form.elements.question.value }];
    const body = JSON.stringify({ model: form.dataset.model, stream: true, messages });
    one("#said").hidden = false;
    words.replaceChildren();
    told.replaceChildren();
    button.disabled = true;
    try {
      const headers = { "Content-Type": "application/json" };
      const response = await fetch("/v1/chat/completions", { method: "POST", headers, body });
      if (!response.ok) throw new Error((await response.json()).error.message);
      const id = response.headers.get("x-completion-id"), link = document.createElement("a");
      link.href = `/page/completions/${encodeURIComponent(id)}`;
      link.textContent = id;
      link.setAttribute("aria-label", `completion ${id}`);
      told.append(link);
      const end = await read(response, words);
      told.append(end.error ? ` broke off: ${end.error}` : end.whole ? " is stored." : " was stopped; what was said is stored.");
    } catch (error) {
      told.append(` ${error.message}`);
    }
    button.disabled = false;
  });
}

// --- one that runs: the same stream that clients resume ---------------------------------------------

// Why there is no stream, in the words of a page or of the API.
async function reason(response) {
  const text = await response.text(), kind = response.headers.get("content-type") || "";
  if (kind.includes("json")) return JSON.parse(text).error.message;
  const told = one("main .note", new DOMParser().parseFromString(text, "text/html"));
  return told ? told.textContent : `The service answered ${response.status}.`;
}

// Appends what comes. Reloads the page only once it has ended; says so where it can't go on.
async function grow(note) {
  const place = one("#answer"), count = one("#chunks");
  let position = Number(note.dataset.position), problem = "The connection broke.";
  one("#live").hidden = false;
  for (let tries = 0; tries < 5; tries += 1) {
    try {
      const response = await fetch(`${note.dataset.stream}?starting_after=${position}`, { redirect: "error" });
      let isOver = [404, 409].includes(response.status);
      if (!isOver && !response.ok) {
        problem = await reason(response).catch(() => `The service answered ${response.status}.`);
        break;
      }
      if (!isOver) {
        const end = await read(response, place);
        position += end.chunks;
        count.textContent = position;
        isOver = end.whole || end.error;
      }
      if (isOver) {
        setTimeout(() => location.reload(), 700);
        return;
      }
    } catch { /* the connection broke; what came is shown, and the rest is asked for */ }
    await new Promise((resolve) => setTimeout(resolve, 500));
  }
  one("#live").hidden = true;
  note.firstChild.textContent = `${problem} `;
}

// --- copying ----------------------------------------------------------------------------------------

for (const button of document.querySelectorAll("[data-copy]")) {
  if (!navigator.clipboard) continue;
  button.hidden = false;
  button.addEventListener("click", async () => {
    await navigator.clipboard.writeText(one(`#${button.dataset.copy}`).textContent);
    const before = button.textContent;
    button.textContent = "copied";
    setTimeout(() => { button.textContent = before; }, 1500);
  });
}

if (one("#running")) showNow(one("#running"));
if (one("#ask")) showBox(one("#ask"));
if (one("#growing")) grow(one("#growing"));
