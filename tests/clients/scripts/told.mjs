// What a client's script is asked by the test, and how it tells what its client made of the answer:
//     node NAME.mjs URL stream|plain

export const url = process.argv[2];
export const isStreamed = process.argv[3] === "stream";
export const key = "unused";
export const model = "demo";
export const question = "Roll the dice, and tell the time";
export const messages = [{ role: "user", content: question }];

const told = { text: "", finish: [], tool_calls: 0 };

export function add(text, finish, toolCalls) {
  told.text += text ?? "";
  if (finish) told.finish.push(finish);
  told.tool_calls += toolCalls?.length ?? 0;
}

/** Asks, and prints one line of JSON, errors too. */
export async function tell(ask) {
  let error = null;
  try {
    await ask();
  } catch (failed) {
    error = `${failed.name}: ${failed.message}`;
  }
  console.log(JSON.stringify({ ...told, error }));
}
