"use strict";
const content = JSON.parse(document.getElementById("content").textContent);
const element = id => document.getElementById(id);
const show = id => { for (const name of ["welcome", "trial", "end"]) element(name).hidden = name !== id; };

const answers = [];
let trials = [], participant = "", asked = null;

// Fisher and Yates; each participant has an order and sides of their own, so that neither favours a method.
const shuffled = list => {
  const items = [...list];
  for (let i = items.length - 1; i > 0; i--) {
    const j = Math.floor(Math.random() * (i + 1));
    [items[i], items[j]] = [items[j], items[i]];
  }
  return items;
};

const next = async () => {
  element("progress").value = answers.length;
  if (answers.length === trials.length) return finish();
  const trial = trials[answers.length];
  const shown = { left: `${trial.left}/${trial.picture}`, middle: `condition/${trial.picture}`, right: `${trial.right}/${trial.picture}` };
  // The time runs from when all three can be seen.
  await Promise.all(Object.entries(shown).map(([id, name]) => { element(id).src = content.pictures[name]; return element(id).decode(); }));
  const begun = performance.now();
  element("pictures").classList.remove("away");
  setTimeout(() => {
    element("pictures").classList.add("away");
    const now = performance.now();
    asked = { trial, shown_seconds: (now - begun) / 1000, at: now };
    for (const side of ["left", "right"]) element(`choose-${side}`).disabled = false;
  }, 1000 * content.seconds);
};

const choose = side => {
  if (asked === null) return;
  const { trial, shown_seconds, at } = asked;
  asked = null;
  for (const button of ["left", "right"]) element(`choose-${button}`).disabled = true;
  answers.push({ ...trial, chosen: trial[side], shown_seconds, answer_seconds: (performance.now() - at) / 1000 });
  next();
};

const finish = () => {
  const text = JSON.stringify({ study: content.study, participant, question: content.question, seconds: content.seconds, answers }, null, 1);
  element("answers").value = text;
  element("save").href = URL.createObjectURL(new Blob([text], { type: "application/json" }));
  element("save").download = `study-${content.study}-${participant.replace(/[^\p{L}\p{N}]+/gu, "-")}.json`;
  show("end");
};

element("begin").addEventListener("submit", event => {
  event.preventDefault();
  participant = element("participant").value.trim();
  if (!participant) return;
  trials = shuffled(content.trials).map(({ task, picture, sources }) => {
    const [left, right] = shuffled(sources);
    return { task, picture, left, right };
  });
  show("trial");
  next();
});
for (const side of ["left", "right"]) element(`choose-${side}`).addEventListener("click", () => choose(side));
document.addEventListener("keydown", event => {
  if (event.key === "ArrowLeft") choose("left");
  if (event.key === "ArrowRight") choose("right");
});
// Answers live in this page alone until they are saved.
window.addEventListener("beforeunload", event => { if (answers.length) event.preventDefault(); });
