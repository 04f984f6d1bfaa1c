// The official client for Node.

import assert from "node:assert/strict";
import * as cells from "./cells.mjs";

// docs: openai-node
import OpenAI from "openai";

const client = new OpenAI({ baseURL: "http://127.0.0.1:8000/v1", apiKey: "hq_..." });
// docs end

const model = "helixnet";
const user = (content) => ({ role: "user", content });

const responses = {
  async turns() {
    const first = await client.responses.create({ model, input: cells.NAME, context: "turns" });
    const input = [user(cells.NAME), ...first.output, user(cells.WHO)];
    const second = await client.responses.create({ model, input, context: "turns" });
    assert.equal(second.output_text, cells.WHO_ANSWER);
    const third = await client.responses.create({
      model,
      input: cells.WHO,
      previous_response_id: first.id,
    });
    assert.equal(third.output_text, cells.WHO_ANSWER);
  },
  async silence() {
    let text = "";
    const stream = await client.responses.create({ model, input: cells.SILENT, stream: true });
    for await (const event of stream) {
      if (event.type === "response.output_text.delta") text += event.delta;
    }
    assert.equal(text, cells.SILENT_ANSWER);
  },
  async stop() {
    const response = await client.responses.create({
      model,
      input: cells.STOPPED,
      stop: [cells.STOP],
    });
    assert.equal(response.output_text, cells.STOPPED_ANSWER);
  },
  async cancel() {
    const response = await client.responses.create({
      model,
      input: cells.ENDLESS,
      background: true,
    });
    assert.equal((await client.responses.cancel(response.id)).status, "cancelled");
  },
  async errors() {
    const bad = { model, input: "Why?", temperature: cells.BAD_TEMPERATURE };
    const error = await cells.expectError(
      () => client.responses.create(bad),
      cells.BAD_TEMPERATURE_MESSAGE,
    );
    assert.ok(error instanceof OpenAI.BadRequestError);
    assert.equal(error.param, "temperature");
    const unknown = await cells.expectError(
      () => client.responses.retrieve(cells.UNKNOWN_ID),
      cells.UNKNOWN_ID_MESSAGE,
    );
    assert.ok(unknown instanceof OpenAI.NotFoundError);
  },
};

const chat = {
  async turns() {
    const messages = [user(cells.NAME)];
    const first = await client.chat.completions.create({ model, messages });
    messages.push(first.choices[0].message, user(cells.WHO));
    const second = await client.chat.completions.create({ model, messages });
    assert.equal(second.choices[0].message.content, cells.WHO_ANSWER);
  },
  async silence() {
    let text = "";
    const messages = [user(cells.SILENT)];
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    for await (const chunk of stream) text += chunk.choices[0].delta.content ?? "";
    assert.equal(text, cells.SILENT_ANSWER);
  },
  async stop() {
    const messages = [user(cells.STOPPED)];
    const completion = await client.chat.completions.create({ model, messages, stop: cells.STOP });
    assert.equal(completion.choices[0].message.content, cells.STOPPED_ANSWER);
  },
  async cancel() {
    const messages = [user(cells.ENDLESS)];
    const stream = await client.chat.completions.create({ model, messages, stream: true });
    let id;
    for await (const chunk of stream) {
      id = chunk.id;
      break;
    }
    await cells.cancelById(id);
  },
  async errors() {
    const messages = [user("Why?")];
    await cells.expectError(
      () =>
        client.chat.completions.create({ model, messages, temperature: cells.BAD_TEMPERATURE }),
      cells.BAD_TEMPERATURE_MESSAGE,
    );
    await cells.expectError(
      () => client.chat.completions.create({ model: cells.UNKNOWN_MODEL, messages }),
      cells.UNKNOWN_MODEL_MESSAGE,
    );
  },
};

await cells.run({ Responses: responses, "chat completions": chat });
