// Vercel's AI SDK.

import assert from "node:assert/strict";
import { setTimeout } from "node:timers/promises";
import * as cells from "./cells.mjs";

// docs: ai-sdk
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateText, streamText } from "ai";

const helixq = createOpenAICompatible({
  name: "helixq",
  baseURL: "http://127.0.0.1:8000/v1",
  apiKey: "hq_...",
});
const { text } = await generateText({ model: helixq("helixnet"), prompt: "Why?" });
// docs end
// docs: ai-sdk-openai
import { createOpenAI } from "@ai-sdk/openai";

const openai = createOpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "hq_..." });
// docs end

assert.equal(text, "You said: Why?");

const user = (content) => ({ role: "user", content });

function checksOf(model, { remembers, reasons, stops }) {
  return {
    async turns() {
      const messages = [user(cells.NAME)];
      const first = await generateText({ model: model("helixnet"), messages });
      if (reasons) assert.match(first.reasoningText, /You said: My name is Ada\./);
      messages.push(...first.response.messages, user(cells.WHO));
      const second = await generateText({ model: model("helixnet"), messages });
      if (remembers) {
        assert.equal(second.text, cells.WHO_ANSWER);
        return null;
      }
      assert.equal(second.text, "I do not know your name.");
      const third = await generateText({
        model: model("helixnet"),
        prompt: cells.WHO,
        providerOptions: {
          openai: { previousResponseId: first.providerMetadata.openai.responseId },
        },
      });
      assert.equal(third.text, cells.WHO_ANSWER);
      return "by id";
    },
    async silence() {
      const result = streamText({ model: model("helixnet"), prompt: cells.SILENT });
      let pieces = "";
      for await (const piece of result.textStream) pieces += piece;
      assert.equal(pieces, cells.SILENT_ANSWER);
    },
    ...(stops && {
      async stop() {
        const { text } = await generateText({
          model: model("helixnet"),
          prompt: cells.STOPPED,
          stopSequences: [cells.STOP],
        });
        assert.equal(text, cells.STOPPED_ANSWER);
      },
    }),
    async cancel() {
      const controller = new AbortController();
      const result = streamText({
        model: model("helixnet"),
        prompt: cells.ENDLESS,
        abortSignal: controller.signal,
      });
      const reading = result.consumeStream();
      while (!(await cells.find(cells.ENDLESS))) await setTimeout(100);
      controller.abort();
      await reading;
      return await cells.cancelByQuestion(cells.ENDLESS);
    },
    async errors() {
      await cells.expectError(
        () =>
          generateText({
            model: model("helixnet"),
            prompt: "Why?",
            temperature: cells.BAD_TEMPERATURE,
          }),
        cells.BAD_TEMPERATURE_MESSAGE,
      );
      await cells.expectError(
        () => generateText({ model: model(cells.UNKNOWN_MODEL), prompt: "Why?" }),
        cells.UNKNOWN_MODEL_MESSAGE,
      );
    },
  };
}

await cells.run({
  "openai-compatible": checksOf(helixq, { remembers: true, reasons: true, stops: true }),
  // It has no way to set a parameter that it does not know, or that OpenAI's API does not have.
  "openai, Responses": checksOf((name) => openai.responses(name), {
    remembers: false,
    reasons: true,
    stops: false,
  }),
  // It shows no reasoning.
  "openai, chat completions": checksOf((name) => openai.chat(name), {
    remembers: true,
    reasons: false,
    stops: true,
  }),
});
