// The unmodified AG-UI client against a server: `node run.mjs`, one JSON request on stdin, one JSON report on stdout.
//
//   {"do": "run", "url": ..., "headers": {...}, "threadId": ..., "runId": ..., "content": ..., "then": [...]}
//     HttpAgent posts one user message, with the frontend tools of `tools`. Each entry of `then` is another run:
//     {"runId", "answer"} adds a result for each call that has none, {"runId", "resume": payload} answers each
//     interrupt. Report: {messages, events: [type, ...], ends: [outcome, ...], error}
//   {"do": "verify", "streams": [[event, ...], ...]}
//     Each stream goes through schema, verifier and reducer. Report: {results: [{messages, error}, ...]}
import { HttpAgent, defaultApplyEvents, verifyEvents } from "@ag-ui/client";
import { EventSchemas } from "@ag-ui/core/schemas";
import { from, lastValueFrom, tap, toArray } from "rxjs";

function answerOpenCalls(agent, content) {
  const answered = new Set(agent.messages.filter((m) => m.role === "tool").map((m) => m.toolCallId));
  const calls = agent.messages.flatMap((m) => m.toolCalls ?? []).filter((call) => !answered.has(call.id));
  const results = calls.map((call) => ({ id: `r-${call.id}`, role: "tool", toolCallId: call.id, content }));
  agent.messages = [...agent.messages, ...results];
}

async function run({ url, headers, threadId, runId, content, tools = [], then = [] }) {
  const agent = new HttpAgent({ url, headers, threadId });
  agent.messages = [{ id: `user-${runId}`, role: "user", content }];
  const events = [];
  const ends = [];
  let error = null;
  const subscriber = {
    onEvent: ({ event }) => {
      EventSchemas.parse(event);
      events.push(event.type);
      if (event.type === "RUN_FINISHED") ends.push(event.outcome);
      // The test reads this from stderr, to know when the server may be killed.
      process.stderr.write(`${event.type}\n`);
    },
    onRunErrorEvent: ({ event }) => void (error = event.message),
  };
  try {
    await agent.runAgent({ runId, tools }, subscriber);
    for (const next of then) {
      if (next.answer !== undefined) answerOpenCalls(agent, next.answer);
      const interrupts = ends.at(-1).interrupts ?? [];
      const resume = interrupts.map(({ id }) => ({ interruptId: id, status: "resolved", payload: next.resume }));
      await agent.runAgent({ runId: next.runId, tools, ...(resume.length ? { resume } : {}) }, subscriber);
    }
  } catch (failure) {
    error = String(failure);
  }
  return { messages: agent.messages, events, ends, error };
}

async function verify(events) {
  const input = { threadId: "t", runId: "r", messages: [], tools: [], context: [], state: {}, forwardedProps: {} };
  const holder = { messages: [], state: {} };
  try {
    const checked = from(events).pipe(
      tap((event) => EventSchemas.parse(event)),
      verifyEvents(false),
    );
    const changes = await lastValueFrom(defaultApplyEvents(input, checked, holder, []).pipe(toArray()));
    const messages = changes.map((change) => change.messages).filter(Boolean);
    return { messages: messages.at(-1) ?? [], error: null };
  } catch (failure) {
    return { messages: [], error: String(failure) };
  }
}

const chunks = [];
for await (const chunk of process.stdin) chunks.push(chunk);
const request = JSON.parse(Buffer.concat(chunks).toString());
const report =
  request.do === "run" ? await run(request) : { results: await Promise.all(request.streams.map(verify)) };
process.stdout.write(JSON.stringify(report));
