// What the scripts of Node's clients share: as in python/cells.py.

import assert from "node:assert/strict";

const BASE = process.env.OPENAI_BASE_URL;
const HEADERS = { Authorization: `Bearer ${process.env.OPENAI_API_KEY}` };

export const NAME = "My name is Ada.";
export const WHO = "What is my name?";
export const WHO_ANSWER = "Your name is Ada.";
export const SILENT = "Stay silent for a while.";
export const SILENT_ANSWER = "You said: Stay silent for a while.";
export const STOPPED = "Stop before the end of this.";
export const STOP = " end";
export const STOPPED_ANSWER = "You said: Stop before the";
export const ENDLESS = `Tell an endless story about ${process.pid}.`;
export const BAD_TEMPERATURE = 9;
export const BAD_TEMPERATURE_MESSAGE = "Invalid value for `temperature`";
export const UNKNOWN_MODEL = "other";
export const UNKNOWN_MODEL_MESSAGE = "No such model: 'other'";
export const UNKNOWN_ID = "resp_00000000000000000000000000000000";
export const UNKNOWN_ID_MESSAGE = "No such job";

// Runs the checks of each API, given as {name of the row: {name of the column: function}}.
export async function run(apis) {
  const checks = Object.entries(apis).flatMap(([api, each]) =>
    Object.entries(each).map(([check, call]) => ({ api, check, call })),
  );
  const silent = checks.filter(({ check }) => check === "silence").map(runOne);
  for (const check of checks) if (check.check !== "silence") await runOne(check);
  await Promise.all(silent);
  process.exit(0);
}

async function runOne({ api, check, call }) {
  const outcome = { api, check, error: null, note: null };
  try {
    outcome.note = (await call()) ?? null;
  } catch (error) {
    console.error(error);
    outcome.error = String(error);
  }
  console.log(JSON.stringify(outcome));
}

export async function expectError(call, message) {
  let result;
  try {
    result = await call();
  } catch (error) {
    const text = `${error} ${error.responseBody ?? ""} ${error.cause ?? ""}`;
    assert.ok(text.includes(message), `${text} does not have ${message}`);
    return error;
  }
  assert.fail(`${JSON.stringify(result)} instead of an error with ${message}`);
}

export async function cancelById(id) {
  id = id.replace("chatcmpl-", "resp_");
  assert.equal((await request(`/responses/${id}/cancel`, "POST")).status, "cancelled");
}

export async function cancelByQuestion(question) {
  const id = await find(question);
  assert.ok(id, `no open response has the question ${question}`);
  await cancelById(id);
  return "id not shown";
}

// Returns the id of the response with a question that has not ended, if there is one.
export async function find(question) {
  // In this order: it may go from one to the other.
  for (const status of ["queued", "in_progress"]) {
    for (const { id } of (await request(`/responses?status=${status}&limit=100`)).data) {
      const items = await request(`/responses/${id}/input_items`);
      if (JSON.stringify(items).includes(question)) return id;
    }
  }
  return null;
}

async function request(path, method = "GET") {
  const reply = await fetch(BASE + path, { method, headers: HEADERS });
  assert.equal(reply.status, 200);
  return await reply.json();
}
