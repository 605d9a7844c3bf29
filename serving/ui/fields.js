// A row of features as the texts of a form, and candidates as lines of JSON.

// One field's text -> the value that JSON sends: undefined when it is empty, which is missing.
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

// A row as JSON -> the texts of its fields.
export function texts(features, json) {
  const given = object(json, "the row");
  const known = new Set(features.map((feature) => feature.name));
  const strange = Object.keys(given).find((name) => !known.has(name));
  if (strange !== undefined) throw new Error(`the row: the model has no feature '${strange}'`);
  return Object.fromEntries(Object.entries(given).map(([name, one]) => [name, one === null ? "" : Array.isArray(one) ? one.join(", ") : String(one)]));
}

// One object of features a line.
export function candidates(text) {
  const lines = text.split("\n").filter((line) => line.trim());
  if (!lines.length) throw new Error("no candidates: write one JSON object of features a line");
  return lines.map((line, index) => object(line, `candidate ${index + 1}`));
}

// What all candidates share: the row's features that none of them has.
export function context(features, theirs) {
  return Object.fromEntries(Object.entries(features).filter(([name]) => !theirs.some((one) => name in one)));
}

function object(json, what) {
  let read;
  try {
    read = JSON.parse(json);
  } catch (error) {
    throw new Error(`${what} is no JSON: ${error.message}`);
  }
  if (typeof read !== "object" || read === null || Array.isArray(read)) throw new Error(`${what} is no JSON object`);
  return read;
}
