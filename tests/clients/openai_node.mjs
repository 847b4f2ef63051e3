// openai-node: the same rules as for the Python SDK. Throws when one is broken.
import assert from "node:assert/strict";
import OpenAI from "openai";

const { BASE, KEY, UPSTREAM } = process.env;
const client = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: KEY, maxRetries: 0 });
const plan = (small = {}) => [{ role: "user", content: JSON.stringify({ small, large: small }) }];
const upstream = async () => (await fetch(UPSTREAM)).json();
const weather = { type: "function", function: { name: "weather", parameters: { type: "object" } } };

// whole answers, with what the headers say
const { data, response, request_id } = await client.chat.completions
  .create({ model: "auto", messages: plan(), logprobs: true, top_logprobs: 2, n: 2 }, { headers: { "x-request-id": "mine-2" } })
  .withResponse();
assert.equal(request_id, "mine-2");
assert.deepEqual(data.choices.map((choice) => choice.message.content), ["The answer is 42", "The answer is 42"]);
assert.equal(data.usage.total_tokens, data.usage.prompt_tokens + data.usage.completion_tokens);
assert.equal(data.choices[0].logprobs.content[0].top_logprobs.length, 2);
assert.equal(response.headers.get("x-route-tier"), "cheap");

// streams
let text = "", usage = null, finishes = [];
for await (const chunk of await client.chat.completions.create({
  model: "auto", messages: plan(), stream: true, stream_options: { include_usage: true },
})) {
  usage = chunk.usage ?? usage;
  for (const choice of chunk.choices) {
    text += choice.delta.content ?? "";
    if (choice.finish_reason) finishes.push(choice.finish_reason);
  }
}
assert.equal(text, "The answer is 42");
assert.deepEqual(finishes, ["stop"]);
assert.equal(usage.total_tokens, 12);
const streamed = client.chat.completions.stream({
  model: "dear", messages: plan({ calls: [["weather", "{\"city\": \"Bern\"}"]] }), tools: [weather],
});
const last = (await streamed.finalChatCompletion()).choices[0];
assert.equal(last.finish_reason, "tool_calls");
assert.deepEqual(JSON.parse(last.message.tool_calls[0].function.arguments), { city: "Bern" });

// errors
await assert.rejects(client.chat.completions.create({ model: "atuo", messages: plan() }), OpenAI.NotFoundError);
await assert.rejects(client.chat.completions.create({ model: "auto", messages: [] }), OpenAI.BadRequestError);
await assert.rejects(client.chat.completions.create({ model: "auto", messages: plan({ fault: "500" }) }), OpenAI.InternalServerError);
await assert.rejects(new OpenAI({ baseURL: `${BASE}/v1`, apiKey: "wrong", maxRetries: 0 }).models.list(), OpenAI.AuthenticationError);
const slow = new OpenAI({ baseURL: `${BASE}/v1`, apiKey: process.env.SLOW_KEY, maxRetries: 0 });
await slow.chat.completions.create({ model: "auto", messages: plan() });
await assert.rejects(slow.chat.completions.create({ model: "auto", messages: plan() }), OpenAI.RateLimitError);

// the other endpoints
const names = [];
for await (const model of client.models.list()) names.push(model.id);
assert.ok(names.includes("auto") && names.includes("dear"));
assert.equal((await client.completions.create({ model: "auto", prompt: "Once" })).choices[0].text, "The answer is 42");

// fifty at once
const many = await Promise.all([...Array(50).keys()].map((n) =>
  client.chat.completions.create({ model: "auto", messages: plan({ text: `nonce ${n}` }) })));
many.forEach((answer, n) => assert.equal(answer.choices[0].message.content, `nonce ${n}`));

// leaving in the midst of a stream frees the upstream
const before = (await upstream()).let_go;
const left = await client.chat.completions.create({ model: "dear", messages: plan({ repeat: 50, pause: 0.2 }), stream: true });
for await (const _ of left) { left.controller.abort(); break; }
let freed = false;
for (let tries = 0; tries < 100 && !freed; tries++) {
  freed = (await upstream()).let_go > before;
  await new Promise((done) => setTimeout(done, 100));
}
assert.ok(freed, "the upstream goes on for nobody");
