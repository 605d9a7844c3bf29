// The console: what the service serves, one row's score, how long it takes. Text from the service is only ever set as text.

export const PATHS = { models: "v1/models", metrics: "metrics", model: (name) => `v1/models/${encodeURIComponent(name)}` };
const REFRESH_MS = 2000;
const DRIFTS = 15;

// One form field's text -> the value that JSON sends: undefined when it is empty, which is missing.
export function value(feature, text) {
  text = text.trim();
  if (text === "") return undefined;
  const many = feature.kind === "multi_valued" || feature.kind === "sequence";
  const one = (part) => (feature.dtype === "string" ? part : number(feature, part));
  return many ? text.split(",").map((part) => one(part.trim())) : one(text);
}

function number(feature, text) {
  const read = Number(text);
  if (!Number.isFinite(read)) throw new Error(`${feature.name}: '${text}' is no number`);
  if (feature.dtype === "int" && !Number.isSafeInteger(read)) throw new Error(`${feature.name}: '${text}' is no whole number that a browser can send`);
  return read;
}

export function row(features, texts) {
  const entries = features.map((feature) => [feature.name, value(feature, texts[feature.name] ?? "")]);
  return Object.fromEntries(entries.filter(([, given]) => given !== undefined));
}

// Prometheus' text -> {stage: {buckets: [[upper end in seconds, requests up to it]], sum}}, all models together.
export function stages(text) {
  const found = {};
  for (const line of text.split("\n")) {
    const match = /^ctrkit_stage_seconds_(bucket|sum)\{(.*)\} (\S+)$/.exec(line);
    if (!match) continue;
    const stage = /stage="([^"]*)"/.exec(match[2])[1];
    const entry = (found[stage] ??= { buckets: new Map(), sum: 0 });
    if (match[1] === "sum") {
      entry.sum += Number(match[3]);
    } else {
      const end = /le="([^"]*)"/.exec(match[2])[1];
      const seconds = end === "+Inf" ? Infinity : Number(end);
      entry.buckets.set(seconds, (entry.buckets.get(seconds) ?? 0) + Number(match[3]));
    }
  }
  return found;
}

// Prometheus' text -> [[model and version, feature or task, index]], the largest index first.
export function drifts(text) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = /^ctrkit_(feature|score)_drift\{(.*)\} (\S+)$/.exec(line);
    if (!match) continue;
    const label = (name) => new RegExp(`(?:^|,)${name}="((?:[^"\\\\]|\\\\.)*)"`).exec(match[2])[1];
    const what = match[1] === "feature" ? label("feature") : `score ${label("task")}`;
    found.push([`${label("model")} ${label("version")}`, what, Number(match[3])]);
  }
  return found.sort((one, other) => other[2] - one[2]);
}

// What came between two readings: requests, mean and quantiles in milliseconds; a quantile is the end of its bucket.
export function latency(before, after) {
  const count = (after.buckets.get(Infinity) ?? 0) - (before?.buckets.get(Infinity) ?? 0);
  const quantile = (share) => {
    for (const [end, total] of after.buckets) if (total - (before?.buckets.get(end) ?? 0) >= share * count) return 1000 * end;
  };
  return count ? { count, mean: (1000 * (after.sum - (before?.sum ?? 0))) / count, p50: quantile(0.5), p99: quantile(0.99) } : { count };
}

export function start(document, fetch) {
  const element = (id) => document.getElementById(id);
  const cells = (texts) => {
    const line = document.createElement("tr");
    for (const text of texts) line.appendChild(document.createElement("td")).textContent = text;
    return line;
  };
  const option = (name) => {
    const made = document.createElement("option");
    made.textContent = made.value = name;
    return made;
  };
  const problem = (text) => (element("problem").textContent = text);
  let features = [];
  let first = null;

  async function ask(path, options = {}) {
    const key = element("key").value;
    const answer = await fetch(path, { ...options, headers: { ...options.headers, ...(key && { Authorization: `Bearer ${key}` }) } });
    if (answer.ok) return answer;
    const detail = (await answer.json()).detail;
    throw new Error(Array.isArray(detail) ? detail.map((one) => one.msg).join("; ") : detail);
  }

  // The default version, and those that the requests are split with or shown to.
  const serves = (model) => {
    const split = Object.entries(model.split ?? {}).map(([version, share]) => `, ${version} for ${+(100 * share).toFixed(2)} %`);
    return `${model.version}${split.join("")}${model.shadow === undefined ? "" : `, ${model.shadow} in the shadow`}`;
  };

  async function models() {
    const listed = (await (await ask(PATHS.models)).json()).models;
    element("models").replaceChildren(
      ...listed.map((model) =>
        cells([model.name, serves(model), model.versions.join(", "), model.refused.map((one) => `${one.version}: ${one.reason}`).join(" ")]),
      ),
    );
    const names = listed.filter((model) => model.kind === "scorer").map((model) => model.name);
    const chosen = element("model");
    if (names.join("\n") !== [...chosen.children].map((one) => one.value).join("\n")) {
      chosen.replaceChildren(...names.map(option));
      await form();
    }
  }

  async function form() {
    const name = element("model").value;
    if (!name) return;
    features = (await (await ask(PATHS.model(name))).json()).features;
    element("row").replaceChildren(
      ...features.map((feature) => {
        const label = document.createElement("label");
        label.textContent = feature.name;
        const about = label.appendChild(document.createElement("small"));
        about.textContent = `${feature.kind}, ${feature.dtype}`;
        label.appendChild(document.createElement("input")).name = feature.name;
        return label;
      }),
    );
  }

  async function score() {
    const texts = {};
    for (const input of element("row").querySelectorAll("input")) texts[input.name] = input.value;
    const body = JSON.stringify({ rows: [row(features, texts)] });
    const options = { method: "POST", headers: { "Content-Type": "application/json" }, body };
    const answer = await (await ask(`${PATHS.model(element("model").value)}:score`, options)).json();
    const told = answer.probabilities;
    const one = Array.isArray(told) ? told[0].toFixed(5) : Object.entries(told).map(([task, [p]]) => `${task} ${p.toFixed(5)}`).join(", ");
    element("result").textContent = `${one} (version ${answer.version})`;
  }

  function drift(text) {
    const word = (index) => (index < 0.1 ? "" : index < 0.25 ? "some" : "much");
    const told = drifts(text).slice(0, DRIFTS);
    element("drift").replaceChildren(...told.map(([model, what, index]) => cells([model, what, index.toFixed(3), word(index)])));
  }

  function latencies(text) {
    const now = stages(text);
    first ??= now;
    const shown = (number) => (number === undefined ? "" : Number.isFinite(number) ? number.toPrecision(3) : "> 10,000");
    element("latency").replaceChildren(
      ...Object.entries(now).map(([stage, entry]) => {
        const { count, mean, p50, p99 } = latency(first[stage], entry);
        return cells([stage, count, shown(mean), shown(p50), shown(p99)]);
      }),
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
    await models();
    const text = await (await ask(PATHS.metrics)).text();
    latencies(text);
    drift(text);
  });
  element("model").addEventListener("change", guarded(form));
  element("key").addEventListener("change", refresh);
  element("row").addEventListener("submit", (event) => {
    event.preventDefault();
    return guarded(score)();
  });
  return refresh;
}

if (globalThis.document) {
  const refresh = start(document, (...asked) => fetch(...asked));
  refresh();
  setInterval(refresh, REFRESH_MS);
}
