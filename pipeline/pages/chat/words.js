"use strict";
// Every word of the page, in two languages.
const WORDS = {
  en: {
    languageName: "中文", language: "切换到中文", skip: "Skip to the message box", model: "Model", other: "Second model",
    compare: "Compare", fresh: "New chat", settings: "Settings", close: "Close", hello: "What would you like to know?",
    say: "Message", sayHint: "Ask something", send: "Send", stop: "Stop (Esc)", edit: "Edit", again: "Again", copy: "Copy",
    copied: "Copied", cancel: "Cancel", save: "Ask again", lineage: "what it was made from", reasoning: "Reasoning",
    system: "System prompt", systemHelp: "What the model is told before the conversation.", reset: "Model's own settings",
    key: "API key", keyHelp: "Only needed if the server asks for one. It is kept until you close this tab.",
    note: "Small models make mistakes. Nothing you write leaves this server.",
    temperature: "Temperature",
    temperatureHelp: "How much chance there is. 0 always takes the likeliest token; around 0.7 is lively; above 1 gets wild.",
    top_k: "Top-k", top_kHelp: "Draw only from the K likeliest tokens. 0 means no limit.",
    top_p: "Top-p",
    top_pHelp: "Draw only from the likeliest tokens that together have this share. 0.9 leaves out the unlikely tail; 1 leaves out nothing.",
    min_p: "Min-p", min_pHelp: "Leave out tokens less likely than this share of the likeliest one. 0 is off.",
    repetition_penalty: "Repetition penalty", repetition_penaltyHelp: "Makes tokens that were used already less likely. 1 is off.",
    max_tokens: "Longest answer", max_tokensHelp: "In tokens. Empty leaves it to the model.",
    seed: "Seed", seedHelp: "The same seed gives the same answer. Empty draws a new one each time.",
    own: "model's own", perSecond: "tokens/s", first: "first after", seconds: "s", tokens: "tokens",
    length: "cut off: longest answer reached", stopped: "stopped", forgotten: "earlier messages were left out: the model's window is full",
    done: "Answer complete.", failed: "That did not work: ", unreachable: "the server cannot be reached",
    unauthorized: "the server asks for an API key: see Settings", called: "calls", reads: "reads up to", parameters: "parameters",
    ideas: ["What is a tokenizer?", "What is MinHash?", "Why does a model need evaluation?"],
  },
  zh: {
    languageName: "English", language: "Switch to English", skip: "跳到输入框", model: "模型", other: "第二个模型",
    compare: "对比", fresh: "新对话", settings: "设置", close: "关闭", hello: "想问点什么？",
    say: "消息", sayHint: "输入问题", send: "发送", stop: "停止（Esc）", edit: "编辑", again: "重新生成", copy: "复制",
    copied: "已复制", cancel: "取消", save: "重新提问", lineage: "它是由什么训练的", reasoning: "思考过程",
    system: "系统提示词", systemHelp: "对话开始前告诉模型的话。", reset: "恢复模型自己的设置",
    key: "API 密钥", keyHelp: "服务器要求时才需要。关闭此标签页后即清除。",
    note: "小模型会出错。你写的内容不会离开这台服务器。",
    temperature: "温度", temperatureHelp: "随机的程度。0 总取最可能的词元；0.7 左右较活泼；大于 1 会变得很随意。",
    top_k: "Top-k", top_kHelp: "只从最可能的 K 个词元中抽取。0 表示不限。",
    top_p: "Top-p", top_pHelp: "只从概率之和达到此比例的最可能词元中抽取。0.9 去掉不太可能的尾部；1 表示不去掉。",
    min_p: "Min-p", min_pHelp: "去掉概率低于最可能词元此比例的词元。0 表示关闭。",
    repetition_penalty: "重复惩罚", repetition_penaltyHelp: "降低已用过的词元的概率。1 表示关闭。",
    max_tokens: "最长回答", max_tokensHelp: "以词元计。留空则由模型决定。",
    seed: "随机种子", seedHelp: "同一个种子给出同样的回答。留空则每次新取。",
    own: "模型默认", perSecond: "词元/秒", first: "首词元", seconds: "秒", tokens: "词元",
    length: "已截断：达到最长回答", stopped: "已停止", forgotten: "较早的消息已略去：模型窗口已满",
    done: "回答完毕。", failed: "出错了：", unreachable: "无法连接服务器",
    unauthorized: "服务器需要 API 密钥：请见“设置”", called: "调用", reads: "最多读", parameters: "参数",
    ideas: ["什么是分词器？", "什么是 MinHash？", "模型为什么需要评测？"],
  },
};

let language = localStorage.getItem("language") || (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
const word = (name) => WORDS[language][name];
const at = (id) => document.getElementById(id);

/** Write the page's fixed texts in the present language. */
function label() {
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const each of document.querySelectorAll("[data-word]")) each.textContent = word(each.dataset.word);
  for (const each of document.querySelectorAll("[data-label]")) {
    each.setAttribute("aria-label", word(each.dataset.label));
    each.title = word(each.dataset.label);
  }
  at("say").placeholder = word("sayHint");
}
