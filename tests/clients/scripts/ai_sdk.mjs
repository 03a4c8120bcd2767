// The AI SDK with its openai-compatible provider, and a tool of its own.
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, jsonSchema, stepCountIs, streamText, tool } from "ai";
import { add, isStreamed, key, model, question, tell, url } from "./told.mjs";

const weather = tool({
  description: "Say what the weather is like.",
  inputSchema: jsonSchema({ type: "object", properties: {} }),
  execute: () => add("", null, ["run"]),
});

await tell(async () => {
  const provider = createOpenAICompatible({ name: "verbatim", baseURL: url, apiKey: key });
  const asked = { model: provider(model), prompt: question, tools: { weather }, stopWhen: stepCountIs(3) };
  if (!isStreamed) {
    const { text, finishReason, toolCalls } = await generateText(asked);
    return add(text, finishReason, toolCalls);
  }
  for await (const part of streamText(asked).fullStream) {
    if (part.type === "error") throw part.error;
    if (part.type === "text-delta") add(part.text);
    if (part.type === "finish-step") add("", part.finishReason);
    if (part.type.startsWith("tool-")) add("", null, [part]);
  }
});
