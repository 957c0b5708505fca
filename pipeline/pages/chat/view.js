// Conversations to elements. Everything that anyone wrote becomes text nodes, so nothing in it can be markup.

/** An element with attributes, properties that are functions, and children. */
function make(tag, options = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(options)) {
    if (typeof value === "function") element[name] = value;
    else if (value === true) element.setAttribute(name, "");
    else if (value !== false && value !== undefined) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined && child !== ""));
  return element;
}

const ICONS = {
  edit: "M4 16l1-4 8-8 3 3-8 8zM12 5l3 3", again: "M15.5 8A6 6 0 1 0 16 11M16 4v4h-4",
  copy: "M7 7h9v9H7zM4 13V4h9",
};

/** A small button with an icon. */
function act(name, onclick) {
  const svg = document.createElementNS("http://www.w3.org/2000/svg", "svg");
  svg.setAttribute("viewBox", "0 0 20 20");
  svg.setAttribute("aria-hidden", "true");
  const path = document.createElementNS("http://www.w3.org/2000/svg", "path");
  path.setAttribute("d", ICONS[name]);
  svg.append(path);
  return make("button", { type: "button", class: "act " + name, title: word(name), "aria-label": word(name), onclick }, svg);
}

/** Text with fenced code, `code` and **bold**; anything else as it was written. */
function rich(text) {
  const parts = [];
  text.split(/^```/m).forEach((block, i) => {
    if (i % 2) {
      const body = block.slice(block.indexOf("\n") + 1 || block.length);
      parts.push(make("pre", { tabindex: "0" }, make("code", {}, body.replace(/\n$/, ""))));
      return;
    }
    for (const piece of (i ? block.replace(/^\n/, "") : block).split(/(`[^`\n]+`|\*\*[^*\n]+\*\*)/)) {
      if (piece.length > 2 && piece.startsWith("`")) parts.push(make("code", {}, piece.slice(1, -1)));
      else if (piece.length > 4 && piece.startsWith("**")) parts.push(make("strong", {}, piece.slice(2, -2)));
      else parts.push(piece);
    }
  });
  return parts;
}

/** Numbers and what ended an answer, in a line. */
function numbers(answer) {
  if (answer.going) return "";
  const parts = [];
  if (answer.speed) parts.push(answer.speed.toFixed(answer.speed < 100 ? 1 : 0) + " " + word("perSecond"));
  if (answer.first) parts.push(word("first") + " " + answer.first.toFixed(2) + " " + word("seconds"));
  if (answer.tokens) parts.push(answer.tokens + " " + word("tokens"));
  if (answer.finish === "length" || answer.finish === "stopped") parts.push(word(answer.finish));
  if (answer.forgotten) parts.push(word("forgotten"));
  return parts.join(" · ");
}

/** One model's answer. */
function drawAnswer(answer, known, actions) {
  const facts = (known && known.facts) || {};
  const link = facts.lineage
    ? make("a", { href: encodeURI(facts.lineage), target: "_blank", rel: "noopener", onclick: (event) => openLineage(event, facts.lineage) }, word("lineage"))
    : "";
  const why = answer.why
    ? make("details", { class: "why", open: answer.going && !answer.text }, make("summary", {}, word("reasoning")), make("div", {}, answer.why))
    : "";
  const buttons = answer.going ? [] : [act("copy", (event) => copied(event.currentTarget, answer.text)), act("again", actions.again)];
  return make(
    "article",
    { class: "answer" + (answer.going ? " going" : ""), "aria-busy": String(answer.going), "aria-label": answer.model },
    make("p", { class: "by", title: facts.artifact || undefined }, make("b", {}, answer.model), link),
    why,
    make("div", { class: "said" }, ...rich(answer.text)),
    answer.wrong ? make("div", { class: "wrong", role: "alert" }, word("failed") + answer.wrong) : "",
    make("div", { class: "foot" }, make("span", { class: "numbers" }, numbers(answer)), make("span", { class: "acts" }, ...buttons)),
  );
}

/** A question, or the box in which it is edited. */
function drawQuestion(turn, actions) {
  if (!turn.editing) {
    const buttons = turn.answers.some((answer) => answer.going) ? [] : [act("copy", (event) => copied(event.currentTarget, turn.text)), act("edit", actions.edit)];
    return make("div", { class: "asked-by" }, make("div", { class: "question" }, turn.text), make("div", { class: "acts" }, ...buttons));
  }
  const box = make("textarea", { rows: "3", "aria-label": word("edit") });
  box.value = turn.text;
  box.onkeydown = (event) => {
    if (event.key === "Escape") actions.cancel();
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      actions.save(box.value);
    }
  };
  setTimeout(() => box.focus());
  const buttons = make(
    "div",
    { class: "acts" },
    make("button", { type: "button", class: "plain", onclick: actions.cancel }, word("cancel")),
    make("button", { type: "button", class: "strong", onclick: () => actions.save(box.value) }, word("save")),
  );
  return make("div", { class: "asked-by" }, make("div", { class: "editor" }, box, buttons));
}

/** Put a text into the clipboard and say so. */
async function copied(button, text) {
  try {
    await navigator.clipboard.writeText(text);
    at("status").textContent = word("copied");
    button.title = word("copied");
  } catch {
    at("status").textContent = "";
  }
}

/** A lineage page needs the key where there is one, which a plain link cannot carry. */
async function openLineage(event, path) {
  if (!apiKey()) return;
  event.preventDefault();
  const response = await fetch(encodeURI(path), { headers: headers() });
  if (response.ok) window.open(URL.createObjectURL(await response.blob()), "_blank", "noopener");
}
