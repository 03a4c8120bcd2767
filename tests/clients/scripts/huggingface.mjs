// Hugging Face's InferenceClient, with an address of one's own.
import { InferenceClient } from "@huggingface/inference";
import { add, isStreamed, key, messages, model, tell, url } from "./told.mjs";

await tell(async () => {
  const client = new InferenceClient(key, { endpointUrl: url });
  if (!isStreamed) {
    const [choice] = (await client.chatCompletion({ model, messages })).choices;
    return add(choice.message.content, choice.finish_reason, choice.message.tool_calls);
  }
  for await (const chunk of client.chatCompletionStream({ model, messages })) {
    for (const each of chunk.choices) {
      add(each.delta.content, each.finish_reason, each.delta.tool_calls);
    }
  }
});
