// The official SDK: `create`.
import OpenAI from "openai";
import { add, isStreamed, key, messages, model, tell, url } from "./told.mjs";

await tell(async () => {
  const { completions } = new OpenAI({ baseURL: url, apiKey: key }).chat;
  if (!isStreamed) {
    const [choice] = (await completions.create({ model, messages })).choices;
    return add(choice.message.content, choice.finish_reason, choice.message.tool_calls);
  }
  for await (const chunk of await completions.create({ model, messages, stream: true })) {
    for (const each of chunk.choices) {
      add(each.delta.content, each.finish_reason, each.delta.tool_calls);
    }
  }
});
