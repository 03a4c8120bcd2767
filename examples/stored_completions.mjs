// The five calls for stored completions, with the official Node SDK.
//
//     npm install --prefix examples
//     node examples/stored_completions.mjs [BASE_URL]
//
// The base URL is that of a running service, http://127.0.0.1:8000/v1 if neither the argument nor
// OPENAI_BASE_URL says another. Asks the agent `demo` for some answers, then lists, retrieves,
// updates and deletes them, and reads their messages. Ends with status 1 if anything is not as it
// should be; deletes what it made.

import { randomUUID } from "node:crypto";
import { isDeepStrictEqual as same } from "node:util";
import OpenAI, { NotFoundError } from "openai";

const QUESTIONS = ["What is a journal?", "What is a ping?", "What is a drain?", "And a saver?", "Bye!"];

function expect(right, what) {
  console.log(`  ${right ? "ok" : "WRONG"}  ${what}`);
  if (!right) process.exit(1);
}

async function isNotFound(call) {
  try {
    await call;
    return false;
  } catch (error) {
    if (error instanceof NotFoundError) return error.code === "not_found";
    throw error;
  }
}

async function all(pages) {
  const items = [];
  for await (const item of pages) items.push(item);
  return items;
}

const baseURL = process.argv[2] ?? process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8000/v1";
const apiKey = process.env.OPENAI_API_KEY ?? "unused";
const { completions } = new OpenAI({ baseURL, apiKey }).chat;
const run = randomUUID();

console.log(`ask ${QUESTIONS.length} questions`);
const made = [];
for (const [number, content] of QUESTIONS.entries()) {
  made.push(
    await completions.create({
      model: "demo",
      messages: [{ role: "user", content, name: "Ada" }],
      metadata: { run, kind: number % 2 ? "odd" : "even" },
      store: true,
    }),
  );
}
const hidden = await completions.create({
  model: "demo",
  messages: [{ role: "user", content: "Not to be shown." }],
  metadata: { run },
  store: false,
});
const ids = made.map((completion) => completion.id);
console.log("   ", ...ids);

console.log("list");
const found = (await all(completions.list({ metadata: { run }, limit: 2 }))).map(({ id }) => id);
expect(same(found, ids), `auto-pagination by twos finds all ${found.length}, oldest first`);
const backwards = await all(completions.list({ metadata: { run }, limit: 2, order: "desc" }));
expect(same(backwards.map(({ id }) => id), ids.toReversed()), "order=desc: newest first");
const odd = await completions.list({ metadata: { run, kind: "odd" }, model: "demo" });
expect(same(odd.data.map(({ id }) => id), [ids[1], ids[3]]), "filters by model and metadata");
const page = await completions.list({ metadata: { run }, after: ids[1], limit: 2 });
expect(same(page.data.map(({ id }) => id), ids.slice(2, 4)), "after: the page goes on there");
expect(page.has_more === true, "has_more says that there is another");

console.log("retrieve");
const one = await completions.retrieve(ids[0]);
expect(same(one.choices, made[0].choices), JSON.stringify(one.choices[0].message.content).slice(0, 60));
expect(same(one.usage, made[0].usage), `usage: ${one.usage?.total_tokens}`);
expect(same(one.metadata, { run, kind: "even" }), "metadata");
expect(one.state === "completed", "state: completed");
expect(await isNotFound(completions.retrieve(hidden.id)), "store: false is hidden: 404 not_found");

console.log("update");
const changed = await completions.update(ids[0], { metadata: { run, kind: "changed" } });
expect(same(changed.metadata, { run, kind: "changed" }), "metadata is replaced");
const again = await completions.list({ metadata: { run, kind: "changed" } });
expect(same(again.data.map(({ id }) => id), [ids[0]]), "and found by its new value");

console.log("messages");
const messages = await all(completions.messages.list(ids[0], { limit: 1 }));
expect(same(messages.map(({ content }) => content), [QUESTIONS[0]]), messages[0]?.content);
expect(messages[0].role === "user" && messages[0].content_parts === null, "role, content_parts");

console.log("delete");
for await (const { id } of completions.list({ metadata: { run }, limit: 2 })) {
  expect((await completions.delete(id)).deleted, `${id} while the list is read`);
}
expect((await completions.list({ metadata: { run } })).data.length === 0, "none is left");
expect(await isNotFound(completions.retrieve(ids[0])), "a deleted one is gone");
