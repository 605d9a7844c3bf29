// What /metrics tells, read from Prometheus' text.

const LINE = /^(\w+)\{(.*)\} (\S+)$/;
const LABEL = /(\w+)="((?:[^"\\]|\\.)*)"/g;

// The samples of one name: [[labels, number]].
function samples(text, name) {
  const found = [];
  for (const line of text.split("\n")) {
    const match = line.startsWith(`${name}{`) && LINE.exec(line);
    if (match) found.push([Object.fromEntries([...match[2].matchAll(LABEL)].map(([, label, told]) => [label, told])), Number(match[3])]);
  }
  return found;
}

// Histograms of one name, those of the same key together: {key: {buckets: upper end -> so many up to it, sum}}.
function histograms(text, name, keyOf, counts = () => true) {
  const found = {};
  const entry = (labels) => (found[keyOf(labels)] ??= { buckets: new Map(), sum: 0 });
  for (const [labels, count] of samples(text, `${name}_bucket`)) {
    if (!counts(labels)) continue;
    const { buckets } = entry(labels);
    const end = labels.le === "+Inf" ? Infinity : Number(labels.le);
    buckets.set(end, (buckets.get(end) ?? 0) + count);
  }
  for (const [labels, sum] of samples(text, `${name}_sum`)) if (counts(labels)) entry(labels).sum += sum;
  return found;
}

// {stage: seconds}, all models together: of predictions, and of recommendations.
export const stages = (text) => histograms(text, "ctrkit_stage_seconds", (labels) => labels.stage);
export const recommendations = (text) => histograms(text, "ctrkit_recommend_seconds", (labels) => `recommend: ${labels.stage}`);

// {task: probabilities}, all versions of a model together.
export const scores = (text, model) => histograms(text, "ctrkit_score", (labels) => labels.task, (labels) => labels.model === model);

// Histograms of the same buckets as one; those that there are.
export function together(...parts) {
  const whole = { buckets: new Map(), sum: 0 };
  for (const part of parts.filter(Boolean)) {
    for (const [end, count] of part.buckets) whole.buckets.set(end, (whole.buckets.get(end) ?? 0) + count);
    whole.sum += part.sum;
  }
  return whole;
}

// [[model and version, feature or task, index]], the largest index first.
export function drifts(text) {
  const whose = (labels) => `${labels.model} ${labels.version}`;
  return [
    ...samples(text, "ctrkit_feature_drift").map(([labels, index]) => [whose(labels), labels.feature, index]),
    ...samples(text, "ctrkit_score_drift").map(([labels, index]) => [whose(labels), `score ${labels.task}`, index]),
  ].sort((one, other) => other[2] - one[2]);
}

// What came between two readings: how many, their mean, and quantiles as Prometheus estimates them, by a line through the bucket; in thousandths.
export function between(before, after) {
  const grown = [...after.buckets].map(([end, total]) => [end, total - (before?.buckets.get(end) ?? 0)]);
  const count = grown.at(-1)?.[1] ?? 0;
  if (!count) return { count };
  const quantile = (share) => {
    let [start, below] = [0, 0];
    for (const [end, total] of grown) {
      if (total >= share * count) return 1000 * (end === Infinity ? Infinity : start + ((end - start) * (share * count - below)) / (total - below));
      [start, below] = [end, total];
    }
  };
  return { count, mean: (1000 * (after.sum - (before?.sum ?? 0))) / count, p50: quantile(0.5), p99: quantile(0.99) };
}

// How many lie in each bucket of a histogram: [[upper end, count]].
export function shares(before, after) {
  let below = 0;
  return [...after.buckets].map(([end, total]) => {
    const upTo = total - (before?.buckets.get(end) ?? 0);
    const inside = upTo - below;
    below = upTo;
    return [end, inside];
  });
}
