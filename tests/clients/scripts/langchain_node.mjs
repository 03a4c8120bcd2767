// LangChain.js's ChatOpenAI.
import { ChatOpenAI } from "@langchain/openai";
import { add, isStreamed, key, messages, model, tell, url } from "./told.mjs";

await tell(async () => {
  const chat = new ChatOpenAI({ model, apiKey: key, configuration: { baseURL: url } });
  if (!isStreamed) {
    const answer = await chat.invoke(messages);
    return add(answer.text, answer.response_metadata.finish_reason, answer.tool_calls);
  }
  for await (const chunk of await chat.stream(messages)) {
    add(chunk.text, chunk.response_metadata.finish_reason, chunk.tool_call_chunks);
  }
});
