// One answer from the server, as it is made.

const apiKey = () => sessionStorage.getItem("key") || "";
const headers = () => (apiKey() ? { Authorization: "Bearer " + apiKey() } : {});

/** What is wrong, in words, of an answer that is not 2xx. */
async function complaint(response) {
  if (response.status === 401) return word("unauthorized");
  try {
    return (await response.json()).error.message;
  } catch {
    return response.status + " " + response.statusText;
  }
}

/** The events of a response, parsed; ends at [DONE]. Lines may be cut anywhere between two reads. */
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  for (;;) {
    const { done, value } = await reader.read();
    if (done) return;
    const lines = (rest + value).split("\n");
    rest = lines.pop();
    for (const line of lines) {
      if (!line.startsWith("data: ")) continue;
      if (line === "data: [DONE]") return;
      yield JSON.parse(line.slice(6));
    }
  }
}

/**
 * Ask a model and fill `answer` as it speaks; `changed` is called after each piece. Never throws: what goes wrong is in
 * `answer.wrong`.
 */
async function ask(answer, body, signal, changed) {
  const begun = performance.now();
  let first = 0;
  let last = 0;
  let pieces = 0;
  try {
    const response = await fetch("/v1/chat/completions", {
      method: "POST",
      headers: { "Content-Type": "application/json", ...headers() },
      body: JSON.stringify({ ...body, stream: true, stream_options: { include_usage: true }, truncation: "auto" }),
      signal,
    });
    if (!response.ok) {
      answer.wrong = await complaint(response);
      return;
    }
    for await (const chunk of events(response)) {
      if (chunk.error) {
        answer.wrong = chunk.error.message;
        continue;
      }
      if (chunk.usage) answer.tokens = chunk.usage.completion_tokens;
      if (chunk.forgotten) answer.forgotten = chunk.forgotten;
      const choice = (chunk.choices || [])[0];
      if (!choice) continue;
      const { content, reasoning_content, tool_calls } = choice.delta;
      if (content || reasoning_content || tool_calls) {
        last = performance.now();
        first = first || last;
        pieces += 1;
      }
      answer.text += content || "";
      answer.why += reasoning_content || "";
      for (const call of tool_calls || []) answer.text += (call.function.name ? "\n" + word("called") + " " + call.function.name + " " : "") + (call.function.arguments || "");
      if (choice.finish_reason) answer.finish = choice.finish_reason;
      changed();
    }
  } catch (error) {
    if (error.name === "AbortError") answer.finish = "stopped";
    else answer.wrong = error instanceof TypeError ? word("unreachable") : String(error.message || error);
  } finally {
    answer.tokens = answer.tokens || pieces;
    answer.first = first ? (first - begun) / 1000 : 0;
    answer.speed = last > first ? (answer.tokens - 1) / ((last - first) / 1000) : 0;
    answer.going = false;
    changed();
  }
}
