// The console: what the service serves, one row's score, candidates in order, how long it takes. Text from the service is only ever set as text.

import { candidates, context, row, texts } from "./fields.js";
import { between, drifts, recommendations, scores, shares, stages, together } from "./metrics.js";
import { bar, columns, lines } from "./plots.js";

export const PATHS = { models: "v1/models", metrics: "metrics", model: (name) => `v1/models/${encodeURIComponent(name)}` };
const REFRESH_MS = 2000;
const READINGS = 60;
const DRIFTS = 15;
const SOME = 0.1;
const MUCH = 0.25;

export function start(document, fetch) {
  const element = (id) => document.getElementById(id);
  const made = (tag, text) => Object.assign(document.createElement(tag), { textContent: text });
  const line = (cells) => {
    const all = document.createElement("tr");
    for (const cell of cells) {
      const td = all.appendChild(document.createElement("td"));
      if (typeof cell === "object") td.replaceChildren(cell);
      else td.textContent = cell;
    }
    return all;
  };
  const option = (name) => Object.assign(made("option", name), { value: name });
  const problem = (text) => (element("problem").textContent = text);
  let models = [];
  let features = [];
  let first = null;
  let before = null;
  const history = { p50: [], p99: [], requests: [] };

  async function ask(path, options = {}) {
    const key = element("key").value;
    const answer = await fetch(path, { ...options, headers: { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) } });
    if (answer.ok) return answer;
    const detail = (await answer.json()).detail;
    throw new Error(Array.isArray(detail) ? detail.map((one) => one.msg).join("; ") : detail);
  }

  async function post(verb, content) {
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(content) };
    return (await ask(`${PATHS.model(element("model").value)}:${verb}`, options)).json();
  }

  // The default version, and those that the requests are split with or shown to.
  const serves = (model) => {
    const split = Object.entries(model.split ?? {}).map(([version, share]) => `, ${version} for ${+(100 * share).toFixed(2)} %`);
    return `${model.version ?? "none"}${split.join("")}${model.shadow === undefined ? "" : `, ${model.shadow} in the shadow`}`;
  };

  async function listed() {
    models = (await (await ask(PATHS.models)).json()).models;
    element("models").replaceChildren(
      ...models.map((model) =>
        line([model.name, serves(model), model.versions.join(", "), model.refused.map((one) => `${one.version}: ${one.reason}`).join(" ")]),
      ),
    );
    const names = models.filter((model) => model.version !== null).map((model) => model.name);
    const chosen = element("model");
    if (names.join("\n") !== [...chosen.children].map((one) => one.value).join("\n")) {
      chosen.replaceChildren(...names.map(option));
      await form();
    }
  }

  const scorer = () => models.find((model) => model.name === element("model").value)?.kind === "scorer";

  async function form() {
    const name = element("model").value;
    if (!name) return;
    const told = await (await ask(PATHS.model(name))).json();
    features = told.features ?? told.user_features;
    element("row").replaceChildren(
      ...features.map((feature) => {
        const label = made("label", feature.name);
        label.appendChild(made("small", `${feature.kind}, ${feature.dtype}`));
        label.appendChild(document.createElement("input")).name = feature.name;
        return label;
      }),
    );
    element("ask").textContent = scorer() ? "Score" : "Recommend";
    element("ranking").hidden = !scorer();
    element("result").textContent = "";
    element("ranked").replaceChildren();
  }

  const inputs = () => [...element("row").querySelectorAll("input")];
  const filled = () => row(features, Object.fromEntries(inputs().map((input) => [input.name, input.value])));

  function fill() {
    const given = texts(features, element("json").value);
    for (const input of inputs()) input.value = given[input.name] ?? "";
  }

  async function answered() {
    if (scorer()) await scored();
    else await recommended();
  }

  async function scored() {
    const answer = await post("score", { rows: [filled()] });
    const told = answer.probabilities;
    const one = Array.isArray(told) ? told[0].toFixed(5) : Object.entries(told).map(([task, [p]]) => `${task} ${p.toFixed(5)}`).join(", ");
    element("result").textContent = `${one} (version ${answer.version})`;
    element("ranked").replaceChildren();
  }

  async function ranked() {
    const theirs = candidates(element("candidates").value);
    const answer = await post("rank", { context: context(filled(), theirs), candidates: theirs });
    element("result").textContent = `${theirs.length} candidates (version ${answer.version})`;
    inOrder(answer.candidates.map((one) => [JSON.stringify(one.candidate), one.score]), 1);
  }

  async function recommended() {
    const answer = await post("recommend", { user: filled() });
    const { items } = answer.recommendations[0];
    element("result").textContent = `${items.length} items (version ${answer.version})`;
    inOrder(items.map((one) => [String(one.item), one.score]), Math.max(...items.map((one) => Math.abs(one.score))) || 1);
  }

  function inOrder(entries, full) {
    element("ranked").replaceChildren(...entries.map(([what, score], index) => line([index + 1, score.toFixed(5), bar(document, score / full), what])));
  }

  function drift(text) {
    const word = (index) => (index < SOME ? "" : index < MUCH ? "some" : "much");
    const colour = (index) => (index < SOME ? "#7a9e7e" : index < MUCH ? "#e0a030" : "#d1495b");
    const told = drifts(text).slice(0, DRIFTS);
    element("drift").replaceChildren(
      ...told.map(([model, what, index]) => line([model, what, index.toFixed(3), bar(document, index, colour(index)), word(index)])),
    );
  }

  function latencies(text) {
    const now = { ...stages(text), ...recommendations(text) };
    first ??= now;
    const shown = (number) => (number === undefined ? "" : Number.isFinite(number) ? number.toPrecision(3) : "> 10,000");
    element("latency").replaceChildren(
      ...Object.entries(now).map(([stage, entry]) => {
        const { count, mean, p50, p99 } = between(first[stage], entry);
        return line([stage, count, shown(mean), shown(p50), shown(p99)]);
      }),
    );
    const total = together(now.total, now["recommend: total"]);
    const at = Date.now();
    const came = before ? between(before.total, total) : {};
    const reading = { p50: came.p50, p99: came.p99, requests: before && (came.count * 1000) / Math.max(at - before.at, 1) };
    for (const [name, numbers] of Object.entries(history)) numbers.splice(0, numbers.push(reading[name]) - READINGS);
    before = { at, total };
    element("times").replaceChildren(lines(document, { p50: history.p50, p99: history.p99 }, "ms", READINGS));
    element("rates").replaceChildren(lines(document, { requests: history.requests }, "/s", READINGS));
  }

  const firstScores = {};
  function distribution(text) {
    const name = element("model").value;
    const now = scores(text, name);
    const since = (firstScores[name] ??= now);
    const grown = Object.entries(now).map(([task, entry]) => [task, shares(since[task], entry).filter(([end]) => Number.isFinite(end))]);
    element("scores").replaceChildren(
      ...grown.flatMap(([task, counts]) => [made("small", task), columns(document, `scores of ${name}: ${task}`, counts)]),
    );
  }

  const guarded = (work) => async () => {
    try {
      await work();
      problem("");
    } catch (error) {
      problem(error.message);
    }
  };
  const refresh = guarded(async () => {
    await listed();
    const text = await (await ask(PATHS.metrics)).text();
    latencies(text);
    distribution(text);
    drift(text);
  });
  const stayed = (work) => (event) => {
    event.preventDefault();
    return guarded(work)();
  };
  element("model").addEventListener("change", guarded(form));
  element("key").addEventListener("change", refresh);
  element("entry").addEventListener("submit", stayed(refresh));
  element("row").addEventListener("submit", stayed(answered));
  element("fill").addEventListener("click", guarded(fill));
  element("rank").addEventListener("click", guarded(ranked));
  return refresh;
}

if (globalThis.document) {
  const refresh = start(document, (...asked) => fetch(...asked));
  const again = () => refresh().then(() => setTimeout(again, REFRESH_MS)); // a slow service is not asked twice at a time
  again();
}
