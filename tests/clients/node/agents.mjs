// The OpenAI Agents SDK for JavaScript.

import assert from "node:assert/strict";
import * as cells from "./cells.mjs";

// docs: openai-agents-js
import { Agent, run, setDefaultOpenAIClient, setTracingDisabled } from "@openai/agents";
import OpenAI from "openai";

setDefaultOpenAIClient(new OpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "hq_..." }));
setTracingDisabled(true); // traces would go to OpenAI
const modelSettings = { providerData: { context: "turns" } };
const agent = new Agent({ name: "Helix", model: "helixnet", modelSettings });
// docs end
import { OpenAIChatCompletionsModel } from "@openai/agents";

const client = new OpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "hq_..." });

function checksOf(agentWith) {
  return {
    async turns() {
      const asked = agentWith();
      const first = await run(asked, cells.NAME);
      const history = [...first.history, { role: "user", content: cells.WHO }];
      assert.equal((await run(asked, history)).finalOutput, cells.WHO_ANSWER);
    },
    async silence() {
      const result = await run(agentWith(), cells.SILENT, { stream: true });
      let text = "";
      for await (const piece of result.toTextStream()) text += piece;
      assert.equal(text, cells.SILENT_ANSWER);
    },
    async stop() {
      const asked = agentWith("helixnet", { providerData: { stop: [cells.STOP] } });
      assert.equal((await run(asked, cells.STOPPED)).finalOutput, cells.STOPPED_ANSWER);
      return "providerData";
    },
    async cancel() {
      const controller = new AbortController();
      const result = await run(agentWith(), cells.ENDLESS, {
        stream: true,
        signal: controller.signal,
      });
      for await (const event of result) {
        if (event.type === "raw_model_stream_event") break;
      }
      controller.abort();
      return await cells.cancelByQuestion(cells.ENDLESS);
    },
    async errors() {
      await cells.expectError(
        () => run(agentWith("helixnet", { temperature: cells.BAD_TEMPERATURE }), "Why?"),
        cells.BAD_TEMPERATURE_MESSAGE,
      );
      await cells.expectError(
        () => run(agentWith(cells.UNKNOWN_MODEL), "Why?"),
        cells.UNKNOWN_MODEL_MESSAGE,
      );
    },
  };
}

await cells.run({
  Responses: checksOf((model = "helixnet", settings = {}) =>
    agent.clone({ model, modelSettings: { ...modelSettings, ...settings } }),
  ),
  "chat completions": checksOf((model = "helixnet", settings = {}) =>
    agent.clone({
      model: new OpenAIChatCompletionsModel(client, model),
      modelSettings: { ...modelSettings, ...settings },
    }),
  ),
});
