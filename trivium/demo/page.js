// Renders the events of the server. Gradio runs this once, with the `element` to render in, and `watch` and `props` to
// receive updates. Texts are inserted as text nodes, never as markup, so that user input cannot inject HTML.

const MAX_ATTENDED = 5; // tokens listed by attention weight
const GENERATING = "Generating …";
let received = ""; // events rendered so far, as JSON lines; the first line is unique to the answer
let stopped = ""; // first line of a stopped answer, whose late events are ignored
let pieces, steps; // input pieces and generated steps
let inputTokens, outputTokens, details; // the two token lists, and the details of the selected token

function make(tag, name, text, ...children) {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text) node.textContent = text;
  node.append(...children);
  return node;
}

const percent = (share) => (share < 0.001 && share > 0 ? "<0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`);

// Replace leading and trailing whitespace, which would be invisible, with symbols.
function visible(text) {
  const marks = { "\n": "↵", "\r": "↵", "\t": "⇥" };
  return (text || "∅").replace(/^\s+|\s+$/g, (spaces) => [...spaces].map((space) => marks[space] ?? "␣").join(""));
}

function status(text) {
  const line = element.querySelector(".status");
  if (line.textContent !== text) line.textContent = text; // screen readers announce each change
}

// --- Tokens and attention ------------------------------------------------------------------------------------------

// A list of tokens that is a single tab stop; arrow keys move between tokens.
class Tokens {
  constructor(title, showDetails) {
    this.showDetails = showDetails;
    this.chips = [];
    this.list = make("div", "tokens");
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", title);
    this.list.setAttribute("aria-orientation", "horizontal");
    this.list.dir = "auto";
    this.part = make("section", "part", "", make("h2", "", title), this.list);
    this.list.addEventListener("keydown", (event) => this.navigate(event));
    for (const kind of ["pointerover", "focusin", "click"]) {
      this.list.addEventListener(kind, (event) => {
        const index = this.chips.indexOf(event.target.closest(".token"));
        if (index >= 0) this.select(index, kind === "click");
      });
    }
  }

  add(text, isSpecial, number) {
    // No bdi: the direction of the list follows these texts, except for special tokens.
    const word = make("span", "text", visible(text));
    if (isSpecial) word.dir = "ltr";
    const chip = make("span", isSpecial ? "token special" : "token", "", word, make("span", "number", number ?? ""));
    chip.setAttribute("role", "option");
    chip.setAttribute("aria-selected", "false");
    chip.setAttribute("aria-describedby", "details");
    chip.tabIndex = this.chips.length ? -1 : 0;
    this.chips.push(chip);
    this.list.append(chip);
    return chip;
  }

  navigate(event) {
    const current = this.chips.indexOf(document.activeElement);
    const forward = getComputedStyle(this.list).direction === "rtl" ? -1 : 1;
    const steps = { ArrowRight: forward, ArrowLeft: -forward, ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (current < 0 || !(event.key in steps)) return;
    event.preventDefault();
    this.chips[Math.min(Math.max(current + steps[event.key], 0), this.chips.length - 1)].focus();
  }

  select(index, mustFocus) {
    if (mustFocus) this.chips[index].focus();
    for (const tokens of [inputTokens, outputTokens]) {
      tokens.chips.forEach((chip, i) => {
        const isSelected = tokens === this && i === index;
        if (chip.getAttribute("aria-selected") !== String(isSelected)) chip.setAttribute("aria-selected", isSelected);
      });
    }
    this.chips.forEach((chip, i) => (chip.tabIndex = i === index ? 0 : -1));
    this.showDetails(index);
  }
}

// Shade the tokens by their weights; a scrollable list scrolls to the largest weight, the page does not move.
function shade(chips, weights) {
  for (const chip of element.querySelectorAll(".token")) {
    chip.style.removeProperty("--weight");
    if (chip.parentNode === inputTokens.list) chip.querySelector(".number").textContent = "";
  }
  chips.forEach((chip, i) => {
    chip.style.setProperty("--weight", weights[i]);
    if (chip.parentNode === inputTokens.list && weights[i] >= 0.005) chip.querySelector(".number").textContent = percent(weights[i]);
  });
  const strongest = chips[weights.indexOf(Math.max(...weights))];
  const list = strongest?.parentNode;
  if (list?.scrollHeight > list?.clientHeight && !list.contains(document.activeElement)) {
    list.scrollTop = strongest.offsetTop - list.offsetTop - list.clientHeight / 2;
  }
}

function rows(title, named, chosen) {
  const table = make("table", "shares", "", make("caption", "", title));
  for (const [name, share, label] of named) {
    const bar = make("td", "bar");
    bar.style.setProperty("--share", Math.min(Math.max(share, 0), 1));
    const isChosen = name === chosen;
    const head = make("th", "", "", make("bdi", "", visible(name)), isChosen ? "\u00a0✓" : "");
    head.scope = "row";
    if (isChosen) head.title = "chosen";
    table.append(make("tr", isChosen ? "chosen" : "", "", head, make("td", "share", label ?? percent(share)), bar));
  }
  return table;
}

function strongestTokens(chips, weights) {
  return chips
    .map((chip, i) => [chip.firstChild.textContent, weights[i]])
    .sort((one, other) => other[1] - one[1])
    .slice(0, MAX_ATTENDED)
    .filter(([, weight]) => weight >= 0.005);
}

function showOutputToken(index) {
  const step = steps[index];
  const chips = [...inputTokens.chips, ...outputTokens.chips].slice(0, step.attention.length);
  shade(chips, step.attention);
  details.replaceChildren(
    make("h3", "", `Output token ${index + 1}: `, make("bdi", "", visible(step.name))),
    make("div", "columns", "", rows("Most probable tokens", step.alternatives, step.name), rows("Attention", strongestTokens(chips, step.attention))),
  );
}

function showInputToken(index) {
  const weights = steps.map((step) => step.attention[index] ?? 0);
  shade(outputTokens.chips, weights);
  details.replaceChildren(
    make("h3", "", "Input token: ", make("bdi", "", visible(pieces[index].text))),
    make("div", "columns", "", rows("Attention from output tokens", strongestTokens(outputTokens.chips, weights))),
  );
}

// --- Events ----------------------------------------------------------------------------------------------------------

function begin(...parts) {
  const line = make("p", "status");
  line.setAttribute("role", "status");
  element.replaceChildren(make("div", "drawing", "", line, ...parts));
}

function end(word, beams) {
  if (outputTokens.chips.length && !element.querySelector("[aria-selected=true]")) outputTokens.select(0);
  if (beams.length) {
    const list = make("ol");
    for (const [text, score] of beams) {
      list.append(make("li", "", "", make("bdi", "", text || "∅"), make("span", "score", ` ${score.toFixed(3)}`)));
    }
    const title = make("h2", "", "Beams and their scores, best first");
    element.querySelector(".beams").replaceChildren(title, list);
  }
  status(`${word} after ${steps.length} ${steps.length === 1 ? "token" : "tokens"}.`);
}

const draw = {
  begin() {},

  problem(event) {
    const message = make("p", "problem", event.message);
    message.setAttribute("role", "alert");
    begin(message);
  },

  read(event) {
    pieces = event.pieces;
    steps = [];
    inputTokens = new Tokens("Input tokens", showInputToken);
    outputTokens = new Tokens("Output tokens", showOutputToken);
    details = make("section", "details");
    details.id = "details";
    const result = make("p", "result");
    result.dir = "auto";
    begin(result, make("div", "beams"), outputTokens.part, details, inputTokens.part);
    for (const piece of pieces) inputTokens.add(piece.text, piece.is_special);
    outputTokens.part.hidden = details.hidden = true;
    status(GENERATING);
  },

  step(event) {
    steps.push(event);
    const text = event.is_special ? event.name : event.text || event.name;
    const chip = outputTokens.add(text, event.is_special, percent(event.probability));
    chip.style.setProperty("--probability", event.probability);
    outputTokens.part.hidden = details.hidden = false;
    element.querySelector(".result").append(event.text);
  },

  end(event) {
    end("Finished", event.beams);
  },

  stopped() {
    stopped = firstLine(received);
    if (element.querySelector(".status")?.textContent === GENERATING) end("Stopped", []);
  },

  fillings({ fillings }) {
    begin(...fillings.map((named, i) => rows(fillings.length > 1 ? `Mask ${i + 1}` : "Mask", named)));
    status(`Filled ${fillings.length === 1 ? "the mask" : `${fillings.length} masks`}.`);
  },

  labels({ labels, is_number: isNumber }) {
    const named = labels.map(([name, score]) => (isNumber ? [name, 0, score.toPrecision(4)] : [name, score]));
    begin(rows(isNumber ? "Predicted value" : "Labels and their probabilities", named));
    status(`${named[0][0]}: ${named[0][2] ?? percent(named[0][1])}`);
  },

  answers({ answers }) {
    begin(rows("Answers and their probabilities", answers));
    status(`${answers[0][0]}: ${percent(answers[0][1])}`);
  },

  tags({ tags }) {
    begin(rows("Words and their tags", tags.map(([word, tag, share]) => [word, share, `${tag} ${percent(share)}`])));
    status(`Tagged ${tags.length} ${tags.length === 1 ? "word" : "words"}.`);
  },
};

const firstLine = (value) => value.slice(0, value.indexOf("\n"));

watch("value", () => {
  const value = props.value ?? "";
  if (stopped && firstLine(value) === stopped) return;
  const added = value.startsWith(received) ? value.slice(received.length) : value; // otherwise a new answer
  received = value;
  for (const line of added.split("\n").filter(Boolean)) {
    const event = JSON.parse(line);
    draw[event.kind](event);
  }
});
