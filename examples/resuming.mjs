// Reads an answer to its true end, however often the connection breaks, with the official Node SDK.
//
//     npm install --prefix examples
//     node examples/resuming.mjs [BASE_URL [QUESTION]]
//
// `read` is what to take along; it works in browsers too. The base URL is that of a running service,
// http://127.0.0.1:8000/v1 if neither the argument nor OPENAI_BASE_URL says another. Prints each chunk of
// an answer of the agent `demo`, a line of JSON each, those that tell of its tools included.
// `examples/cuts.py` shows what it is good for.

import OpenAI, { APIConnectionError, APIError, NotFoundError } from "openai";

const TRIES = 10; // so often in a row nothing may come

// Each chunk of an answer, once and in order. Throws what the SDK throws if the answer broke off.
export async function* read(client, request) {
  const key = crypto.randomUUID();
  const usage = request.stream_options?.include_usage ?? false;
  let [id, position, failures, finished] = [null, 0, 0, 0];
  while (true) {
    try {
      const asking = !id // the key: if this has arrived already, nobody is asked twice
        ? client.chat.completions.create({ ...request, stream: true }, { headers: { "Idempotency-Key": key } })
        : client.get(`/chat/completions/${id}`, {
            query: { stream: true, starting_after: position, include_usage: usage },
            stream: true,
          });
      const { data: stream, response } = await asking.withResponse();
      id = response.headers.get("x-completion-id");
      for await (const chunk of stream) {
        [position, failures] = [position + 1, 0];
        finished += chunk.choices.filter((choice) => choice.finish_reason).length;
        yield chunk;
      }
      if (finished >= (request.n ?? 1) || (await isOver(client, id))) return;
    } catch (error) {
      failures += 1;
      if (failures === TRIES || !isWorthATry(error)) throw error;
      const seconds = (0.5 + Math.random() / 2) * Math.min(0.25 * 2 ** failures, 8);
      await new Promise((resolve) => setTimeout(resolve, 1000 * seconds));
    }
  }
}

// True of an answer that somebody stopped; a proxy may have hidden a cut, so the service is asked.
async function isOver(client, id) {
  try {
    return !["pending", "streaming"].includes((await client.chat.completions.retrieve(id)).state);
  } catch (error) {
    if (error instanceof NotFoundError) return true; // asked for with store: false, and over
    throw error;
  }
}

// True if asking again may help.
function isWorthATry(error) {
  if (!(error instanceof APIError) || error instanceof APIConnectionError) {
    return error instanceof APIConnectionError || error instanceof TypeError; // what `fetch` throws
  }
  const { status, headers } = error; // an error within the stream has no status
  if (headers?.get("x-should-retry") === "false") return false;
  return status === 409 || status === 429 || status >= 500;
}

const [, program, url, question] = process.argv;
if (program === new URL(import.meta.url).pathname) {
  const client = new OpenAI({
    baseURL: url ?? process.env.OPENAI_BASE_URL ?? "http://127.0.0.1:8000/v1",
    apiKey: process.env.OPENAI_API_KEY ?? "unused",
  });
  const messages = [{ role: "user", content: question ?? "Can you be read again?" }];
  for await (const chunk of read(client, { model: "demo", messages })) console.log(JSON.stringify(chunk));
}
