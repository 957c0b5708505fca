// What is said, with which settings, and what the buttons do.

const KNOBS = [
  ["temperature", { type: "range", min: 0, max: 2, step: 0.05 }],
  ["top_k", { type: "range", min: 0, max: 200, step: 1 }],
  ["top_p", { type: "range", min: 0.05, max: 1, step: 0.01 }],
  ["min_p", { type: "range", min: 0, max: 1, step: 0.01 }],
  ["repetition_penalty", { type: "range", min: 1, max: 2, step: 0.01 }],
  ["max_tokens", { type: "number", min: 1, step: 1 }],
  ["seed", { type: "number", min: 0, step: 1 }],
];
const OFF = { temperature: 0, top_k: 0, top_p: 1, min_p: 0, repetition_penalty: 1 };

let models = [];
let turns = [];
let running = null; // what stops the answers that are being made
let settings = JSON.parse(localStorage.getItem("settings") || "{}");

const comparing = () => at("compare").getAttribute("aria-pressed") === "true";
const chosen = () => [at("model").value, ...(comparing() ? [at("other").value] : [])];
const known = (id) => models.find((model) => model.id === id);

async function load() {
  let wrong = "";
  try {
    const response = await fetch("/v1/models", { headers: headers() });
    if (response.ok) models = (await response.json()).data;
    else wrong = await complaint(response);
  } catch {
    wrong = word("unreachable");
  }
  const second = document.querySelector("meta[name=compare]").content;
  for (const id of ["model", "other"]) {
    const before = at(id).value;
    at(id).replaceChildren(...models.map((model) => make("option", { value: model.id }, model.id)));
    const fallback = id === "other" ? second || (models[1] || models[0] || {}).id : (models[0] || {}).id;
    at(id).value = known(before) ? before : fallback || "";
  }
  at("compare").hidden = !models.length;
  if (second && !turns.length) compare(true);
  if (wrong) at("status").textContent = wrong;
  drawEmpty(wrong);
  drawKnobs();
}

function drawEmpty(wrong = "") {
  at("empty").hidden = turns.length > 0;
  const facts = chosen().map(known).filter(Boolean).map((model) => {
    const { window: reads, parameters, about } = model.facts || {};
    const size = parameters ? (parameters / 1e6).toFixed(1) + "M " + word("parameters") : "";
    return [about || model.id, size, reads ? word("reads") + " " + reads.toLocaleString() + " " + word("tokens") : ""].filter(Boolean).join(" · ");
  });
  at("about").replaceChildren(...(wrong ? [make("span", { class: "wrong" }, word("failed") + wrong)] : facts.flatMap((text, i) => (i ? [make("br"), text] : [text]))));
  at("ideas").replaceChildren(...word("ideas").map((text) => make("button", { type: "button", onclick: () => say(text) }, text)));
}

function drawKnobs() {
  const own = (known(at("model").value) || { facts: {} }).facts || {};
  const focused = document.activeElement && document.activeElement.id;
  at("knobs").replaceChildren(...KNOBS.flatMap(([name, attributes]) => {
    const id = "knob-" + name;
    const fallback = (own.defaults || {})[name] ?? OFF[name];
    const value = settings[name];
    const output = make("output", { for: id }, value ?? (attributes.type === "range" ? fallback + " (" + word("own") + ")" : ""));
    const input = make("input", { id, ...attributes, "aria-describedby": id + "-help" });
    input.value = value ?? fallback ?? "";
    input.oninput = () => {
      if (input.value === "") delete settings[name];
      else settings[name] = Number(input.value);
      output.textContent = settings[name] ?? "";
      remember();
    };
    return [make("label", { for: id }, make("span", {}, word(name)), output), input, make("p", { id: id + "-help", class: "help" }, word(name + "Help"))];
  }));
  if (focused && focused.startsWith("knob-")) at(focused).focus();
  at("system").value = settings.system || "";
  at("key").value = apiKey();
}

const remember = () => localStorage.setItem("settings", JSON.stringify(settings));

/** Draw one turn again, or all of them. */
function draw(only) {
  document.body.classList.toggle("two", comparing() || turns.some((turn) => turn.answers.length > 1));
  const log = at("log");
  const atEnd = log.scrollHeight - log.scrollTop - log.clientHeight < 80;
  if (only === undefined) at("turns").replaceChildren(...turns.map(drawTurn));
  else at("turns").children[only].replaceWith(drawTurn(turns[only], only));
  if (atEnd) log.scrollTop = log.scrollHeight;
  at("stop").hidden = !running;
  at("send").hidden = Boolean(running);
  at("send").disabled = !at("say").value.trim();
}

function drawTurn(turn, i) {
  const question = drawQuestion(turn, {
    edit: () => { turn.editing = true; draw(i); },
    cancel: () => { turn.editing = false; draw(i); },
    save: (text) => { if (text.trim()) { turns = turns.slice(0, i); say(text); } },
  });
  const answers = turn.answers.map((answer, column) => drawAnswer(answer, known(answer.model), { again: () => again(i, column) }));
  return make("div", { class: "turn" }, question, make("div", { class: "answers" }, ...answers));
}

/** The conversation before turn `i` as the model of a column had it, with the question of that turn. */
function messages(i, column) {
  const said = settings.system ? [{ role: "system", content: settings.system }] : [];
  for (const turn of turns.slice(0, i)) {
    const answer = turn.answers[Math.min(column, turn.answers.length - 1)];
    if (!answer.text) continue; // what was not answered is not part of the conversation
    said.push({ role: "user", content: turn.text }, { role: "assistant", content: answer.text });
  }
  return [...said, { role: "user", content: turns[i].text }];
}

const blank = (model) => ({ model, text: "", why: "", wrong: "", finish: "", tokens: 0, first: 0, speed: 0, forgotten: 0, going: true });

/** Let the models of some columns answer turn `i`. */
async function answer(i, columns) {
  const stopper = new AbortController();
  running = stopper;
  const turn = turns[i];
  let waiting = false;
  const changed = () => {
    if (waiting || turns[i] !== turn) return;
    waiting = true;
    requestAnimationFrame(() => { waiting = false; if (turns[i] === turn) draw(i); });
  };
  const { system, ...options } = settings;
  draw();
  at("log").scrollTop = at("log").scrollHeight;
  await Promise.all(columns.map((column) => ask(turn.answers[column], { model: turn.answers[column].model, messages: messages(i, column), ...options }, stopper.signal, changed)));
  if (running === stopper) running = null;
  at("status").textContent = word("done");
  draw();
}

function say(text) {
  if (running) running.abort();
  if (!text.trim() || !models.length) return;
  turns.push({ text: text.trim(), answers: chosen().map(blank), editing: false });
  drawEmpty();
  answer(turns.length - 1, chosen().map((_, column) => column));
}

/** Ask once more; what came later belonged to the answer before, and goes. */
function again(i, column) {
  if (running) running.abort();
  turns = turns.slice(0, i + 1);
  turns[i].answers[column] = blank(turns[i].answers[column].model);
  answer(i, [column]);
}

function compare(on) {
  at("compare").setAttribute("aria-pressed", String(on));
  at("other").hidden = !on;
  drawEmpty();
  draw();
}

function fit() {
  const box = at("say");
  box.style.height = "auto";
  box.style.height = box.scrollHeight + "px";
  at("send").disabled = !box.value.trim();
}

function panel(open) {
  at("panel").hidden = !open;
  at("settings").setAttribute("aria-expanded", String(open));
  if (open) at("system").focus();
  else at("settings").focus();
}

at("composer").onsubmit = (event) => {
  event.preventDefault();
  const text = at("say").value;
  if (!text.trim() || running) return;
  at("say").value = "";
  fit();
  say(text);
};
at("say").oninput = fit;
at("say").onkeydown = (event) => {
  // an Enter that ends the choice of a Chinese character sends nothing
  if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
    event.preventDefault();
    at("composer").requestSubmit();
  }
};
at("stop").onclick = () => running && running.abort();
at("compare").onclick = () => compare(!comparing());
at("fresh").onclick = () => { if (running) running.abort(); turns = []; drawEmpty(); draw(); at("say").focus(); };
at("settings").onclick = () => panel(at("panel").hidden);
at("close").onclick = () => panel(false);
at("reset").onclick = () => { settings = {}; remember(); drawKnobs(); };
at("system").oninput = () => { settings.system = at("system").value; remember(); };
at("key").onchange = () => { sessionStorage.setItem("key", at("key").value.trim()); load(); };
at("model").onchange = () => { drawEmpty(); drawKnobs(); };
at("other").onchange = () => drawEmpty();
at("language").onclick = () => {
  language = language === "zh" ? "en" : "zh";
  localStorage.setItem("language", language);
  label(); drawEmpty(); drawKnobs(); draw();
};
document.onkeydown = (event) => {
  if (event.key !== "Escape") return;
  if (running) running.abort();
  else if (!at("panel").hidden) panel(false);
};
label();
load();
draw();
fit();
at("say").focus();
