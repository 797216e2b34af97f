// Draws what the model did. Gradio calls this once, with the `element` to draw in, and `watch` and `props` to hear of
// every new drawing. Texts become text nodes and attributes, never markup: what people type stays what they typed.

const LOOKED_AT = 5; // named in words, at most
let drawing = {}; // what is on the page
let read, written, details; // its two lists of tokens, and what is told of one of them

function make(tag, name, text, ...children) {
  const made = document.createElement(tag);
  if (name) made.className = name;
  if (text) made.textContent = text;
  made.append(...children);
  return made;
}

const percent = (share) => (share < 0.001 && share > 0 ? "<0.1 %" : `${(100 * share).toFixed(share < 0.0995 ? 1 : 0)} %`);

// Spaces and line breaks at the ends, which nobody would see.
function visible(text) {
  const marks = { "\n": "↵", "\r": "↵", "\t": "⇥" };
  return (text || "∅").replace(/^\s+|\s+$/g, (spaces) => [...spaces].map((space) => marks[space] ?? "␣").join(""));
}

function status(text) {
  const line = element.querySelector(".status");
  if (line.textContent !== text) line.textContent = text; // it is read aloud
}

// --- Tokens, and the attention between them ------------------------------------------------------------------------

// A list of tokens that is one stop of the Tab key: the arrow keys go from token to token.
class Tokens {
  constructor(title, tell) {
    this.tell = tell;
    this.chips = [];
    this.list = make("div", "tokens");
    this.list.setAttribute("role", "listbox");
    this.list.setAttribute("aria-label", title);
    this.list.setAttribute("aria-orientation", "horizontal");
    this.list.dir = "auto";
    this.part = make("section", "part", "", make("h2", "", title), this.list);
    this.list.addEventListener("keydown", (event) => this.go(event));
    for (const kind of ["pointerover", "focusin", "click"]) {
      this.list.addEventListener(kind, (event) => {
        const place = this.chips.indexOf(event.target.closest(".token"));
        if (place >= 0) this.choose(place, kind === "click");
      });
    }
  }

  add(text, isSpecial, number) {
    // No bdi: the list takes its direction from these texts, but not from that of a special token.
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

  go(event) {
    const now = this.chips.indexOf(document.activeElement);
    const forward = getComputedStyle(this.list).direction === "rtl" ? -1 : 1;
    const steps = { ArrowRight: forward, ArrowLeft: -forward, ArrowDown: 1, ArrowUp: -1, Home: -Infinity, End: Infinity };
    if (now < 0 || !(event.key in steps)) return;
    event.preventDefault();
    this.chips[Math.min(Math.max(now + steps[event.key], 0), this.chips.length - 1)].focus();
  }

  choose(place, mustFocus) {
    if (mustFocus) this.chips[place].focus();
    for (const tokens of [read, written]) {
      tokens.chips.forEach((chip, i) => {
        const isChosen = tokens === this && i === place;
        if (chip.getAttribute("aria-selected") !== String(isChosen)) chip.setAttribute("aria-selected", isChosen);
      });
    }
    this.chips.forEach((chip, i) => (chip.tabIndex = i === place ? 0 : -1));
    this.tell(place);
  }
}

// Shade the tokens by their weights; an own list scrolls to the heaviest, the page stays where it is.
function shade(chips, weights) {
  for (const chip of element.querySelectorAll(".token")) {
    chip.style.removeProperty("--weight");
    if (chip.parentNode === read.list) chip.querySelector(".number").textContent = "";
  }
  chips.forEach((chip, i) => {
    chip.style.setProperty("--weight", weights[i]);
    if (chip.parentNode === read.list && weights[i] >= 0.005) chip.querySelector(".number").textContent = percent(weights[i]);
  });
  const heaviest = chips[weights.indexOf(Math.max(...weights))];
  const list = heaviest?.parentNode;
  if (list?.scrollHeight > list?.clientHeight && !list.contains(document.activeElement)) {
    list.scrollTop = heaviest.offsetTop - list.offsetTop - list.clientHeight / 2;
  }
}

function rows(title, named, chosen) {
  const table = make("table", "shares", "", make("caption", "", title));
  for (const [name, share, words] of named) {
    const bar = make("td", "bar");
    bar.style.setProperty("--share", Math.min(Math.max(share, 0), 1));
    const isChosen = name === chosen;
    const head = make("th", "", "", make("bdi", "", visible(name)), isChosen ? " ✓" : "");
    head.scope = "row";
    if (isChosen) head.title = "chosen";
    table.append(make("tr", isChosen ? "chosen" : "", "", head, make("td", "share", words ?? percent(share)), bar));
  }
  return table;
}

function heaviest(chips, weights) {
  return chips
    .map((chip, i) => [chip.firstChild.textContent, weights[i]])
    .sort((one, other) => other[1] - one[1])
    .slice(0, LOOKED_AT)
    .filter(([, weight]) => weight >= 0.005);
}

function tellOfWritten(place) {
  const step = drawing.steps[place];
  const chips = [...read.chips, ...written.chips].slice(0, step.attention.length);
  shade(chips, step.attention);
  details.replaceChildren(
    make("h3", "", `Token ${place + 1}: `, make("bdi", "", visible(step.name))),
    make("div", "columns", "", rows("What it could have written", step.alternatives, step.name), rows("Where it looked", heaviest(chips, step.attention))),
  );
}

function tellOfRead(place) {
  const weights = drawing.steps.map((step) => step.attention[place] ?? 0);
  shade(written.chips, weights);
  details.replaceChildren(
    make("h3", "", "Read: ", make("bdi", "", visible(drawing.read[place].text))),
    make("div", "columns", "", rows("Which tokens looked at it, and how much of their attention it had", heaviest(written.chips, weights))),
  );
}

// --- Each kind of drawing --------------------------------------------------------------------------------------------

function begin(...parts) {
  const line = make("p", "status");
  line.setAttribute("role", "status");
  element.replaceChildren(make("div", "drawing", "", line, ...parts));
}

const draw = {
  problem() {
    const message = make("p", "problem", drawing.message);
    message.setAttribute("role", "alert");
    begin(message);
  },

  writing(isNew) {
    if (isNew) {
      read = new Tokens("What it read", tellOfRead);
      written = new Tokens("What it wrote, token by token", tellOfWritten);
      details = make("section", "details");
      details.id = "details";
      const result = make("p", "result");
      result.dir = "auto";
      begin(result, make("div", "beams"), written.part, details, read.part);
      for (const piece of drawing.read) read.add(piece.text, piece.is_special);
    }
    for (const step of drawing.steps.slice(written.chips.length)) {
      const chip = written.add(step.is_special ? step.name : step.text || step.name, step.is_special, percent(step.probability));
      chip.style.setProperty("--probability", step.probability);
    }
    written.part.hidden = details.hidden = !drawing.steps.length;
    element.querySelector(".result").textContent = drawing.steps.map((step) => step.text).join("");
    const isDone = drawing.is_complete || drawing.stopped;
    if (isDone && written.chips.length && !element.querySelector("[aria-selected=true]")) written.choose(0);
    if (isDone) drawBeams(drawing.beams);
    status(isDone ? `${drawing.stopped ? "Stopped" : "Finished"} after ${drawing.steps.length} tokens.` : "Writing …");
  },

  fillings() {
    begin(
      ...drawing.fillings.map((named, i) => rows(drawing.fillings.length > 1 ? `Mask ${i + 1}` : "The mask", named)),
    );
    status(`Filled ${drawing.fillings.length === 1 ? "the mask" : `${drawing.fillings.length} masks`}.`);
  },

  labels() {
    const named = drawing.labels.map(([name, score]) => (drawing.is_number ? [name, 0, score.toPrecision(4)] : [name, score]));
    begin(rows(drawing.is_number ? "Its number" : "Labels and their probabilities", named));
    status(`${named[0][0]}: ${named[0][2] ?? percent(named[0][1])}`);
  },
};

function drawBeams(beams) {
  if (!beams.length) return;
  const list = make("ol", "", "");
  for (const [text, score] of beams) {
    const beam = make("bdi", "", text || "∅");
    list.append(make("li", "", "", beam, make("span", "score", ` ${score.toFixed(3)}`)));
  }
  const title = make("h2", "", "Beams, and the mean log probability of their tokens");
  element.querySelector(".beams").replaceChildren(title, list);
}

watch("value", () => {
  const isNew = drawing.run !== props.value?.run;
  drawing = props.value ?? {};
  draw[drawing.kind]?.(isNew);
});
