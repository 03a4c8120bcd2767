// The official SDK: `stream` and `runTools`, which fold the chunks themselves and run tools, here one that nobody calls.
import OpenAI from "openai";
import { add, isStreamed, key, messages, model, tell, url } from "./told.mjs";

const run = () => add("", null, ["run"]);
const description = "Say what the weather is like.";
const parameters = { type: "object", properties: {} };
const weather = { type: "function", function: { name: "weather", description, parameters, function: run } };

await tell(async () => {
  const { completions } = new OpenAI({ baseURL: url, apiKey: key }).chat;
  const body = { model, messages, tools: [weather] };
  const runner = completions.runTools(isStreamed ? { ...body, stream: true } : body);
  const [choice] = (await runner.finalChatCompletion()).choices;
  add(choice.message.content, choice.finish_reason, choice.message.tool_calls);
});
