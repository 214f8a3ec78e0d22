// A question to the person: the candidates of a step, to be picked in order or dropped, by click or by keyboard.

import { playButton, setInMotion } from "../draw/clip.js";
import { element, number } from "../draw/dom.js";
import { say } from "./texts.js";

const HOW = { person: "byPerson", verifier: "byVerifier", time: "byTime", nobody: "byNobody", cancelled: "byCancel" };

export class AskView {
  /** `send(id, message)` -> Promise of {ok, body}: posts an answer. */
  constructor(send) {
    this.send = send;
    this.root = element("section", "testtime-ask");
    this.root.setAttribute("aria-label", say("pickByHand"));
    this.root.hidden = true;
    this.title = element("h3", "", say("yourTurn"));
    this.lead = element("p", "testtime-question");
    this.clock = element("p", "testtime-clock");
    this.clock.setAttribute("role", "timer");
    this.grids = element("div", "testtime-grids");
    this.said = element("p", "testtime-said");
    this.said.setAttribute("role", "status");
    this.only = button("testtime-primary", () => this.answer(true));
    this.prefer = button("", () => this.answer(false));
    this.skip = button("", () => this.post({ skip: true }));
    this.actions = element("div", "testtime-actions");
    this.actions.append(this.only, this.prefer, this.skip);
    this.help = element("p", "testtime-muted", say("keys"));
    this.root.append(this.title, this.lead, this.clock, this.grids, this.actions, this.said, this.help);
    this.root.addEventListener("keydown", (event) => this.key(event));
  }

  /** Show a question as the server describes it; null takes it away. */
  show(question) {
    clearInterval(this.timer);
    if (!question) {
      this.question = null;
      this.root.hidden = true;
      return;
    }
    if (this.question?.question !== question.question) {
      this.picked = [];
      this.dropped = new Set();
      this.sent = false;
      this.said.textContent = "";
      this.question = question;
      this.build();
    }
    this.until = performance.now() + 1000 * question.seconds;
    this.timer = setInterval(() => this.tick(), 500);
    this.root.hidden = false;
    this.tick();
    this.refresh();
  }

  build() {
    const { prompts, step, steps, fallback, candidates } = this.question;
    this.title.textContent = say(step >= steps - 1 ? "yourTurnEnd" : "yourTurnStep", { step, steps });
    this.lead.textContent = prompts.length === 1 ? prompts[0] : "";
    this.skip.textContent = say("letDecide", { fallback });
    const images = [...new Set(candidates.map((c) => c.image))];
    this.cards = [];
    this.grids.replaceChildren(
      ...images.flatMap((image, place) => {
        const grid = element("div", "testtime-cards");
        grid.setAttribute("role", "group");
        grid.setAttribute("aria-label", say("candidatesOf", { image: image + 1 }));
        grid.append(...candidates.filter((c) => c.image === image).map((c) => this.card(c)));
        const title = () => say("imageTitle", { image: image + 1, prompt: prompts[place] ?? "" });
        return images.length > 1 ? [element("h4", "", title()), grid] : [grid];
      }),
    );
    this.focusable(0);
  }

  card(candidate) {
    const place = this.cards.length;
    const card = element("div", "testtime-card");
    let play = null;
    const pick = button("testtime-pick", () => this.pick(place));
    if (candidate.picture) {
      const image = element("img");
      image.src = `data:image/jpeg;base64,${candidate.picture}`;
      image.alt = "";
      pick.append(image);
      if (candidate.clip) play = playButton(setInMotion(image, `data:image/webp;base64,${candidate.clip}`, card));
    }
    // The name of the button is what it says, in this order: the parts in words are for those who listen.
    const badge = element("span", "testtime-badge");
    const score = element("span", "testtime-score", number(candidate.score));
    const words = element("span", "testtime-spoken");
    pick.append(element("span", "testtime-spoken", say("candidate", { number: place + 1 })), score, words, badge);
    const drop = button("testtime-drop", () => this.drop(place), "×");
    drop.tabIndex = -1; // X does the same; one stop per candidate is enough
    card.append(pick, drop, ...(play ? [play] : []));
    this.cards.push({ candidate, card, pick, drop, badge, words });
    return card;
  }

  pick(place) {
    const { row } = this.cards[place].candidate;
    this.dropped.delete(row);
    this.picked = this.picked.includes(row) ? this.picked.filter((r) => r !== row) : [...this.picked, row];
    this.refresh();
  }

  drop(place) {
    const { row } = this.cards[place].candidate;
    this.picked = this.picked.filter((r) => r !== row);
    if (!this.dropped.delete(row)) this.dropped.add(row);
    this.refresh();
  }

  refresh() {
    this.cards.forEach(({ candidate, card, pick, drop, badge, words }, place) => {
      const rank = this.picked.indexOf(candidate.row);
      const gone = this.dropped.has(candidate.row);
      card.classList.toggle("testtime-picked", rank >= 0);
      card.classList.toggle("testtime-dropped", gone);
      badge.textContent = rank >= 0 ? String(rank + 1) : "";
      words.textContent = rank >= 0 ? say("pickedAs") : gone ? say("dropped") : "";
      pick.setAttribute("aria-pressed", String(rank >= 0));
      drop.setAttribute("aria-label", say(gone ? "takeBack" : "drop", { number: place + 1 }));
      drop.setAttribute("aria-pressed", String(gone));
    });
    const [picked, dropped] = [this.picked.length, this.dropped.size];
    const prefer = dropped ? ["dropOnly", "preferDrop"] : ["preferNone", "preferKeep"];
    this.only.textContent = say(picked ? "keep" : "keepNone", { picked });
    this.prefer.textContent = say(prefer[picked ? 1 : 0], { picked, dropped });
    this.only.disabled = this.sent || !picked;
    this.prefer.disabled = this.sent || !(picked || dropped);
    this.skip.disabled = !!this.sent;
  }

  tick() {
    const left = Math.max(0, Math.ceil((this.until - performance.now()) / 1000));
    const time = `${Math.floor(left / 60)}:${String(left % 60).padStart(2, "0")}`;
    const text = say("timeLeft", { time, fallback: this.question.fallback });
    if (this.clock.textContent !== text) this.clock.textContent = text;
    if (left <= 0) clearInterval(this.timer);
  }

  focusable(place) {
    this.cards.forEach(({ pick }, k) => (pick.tabIndex = k === place ? 0 : -1));
    this.at = place;
  }

  key(event) {
    if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
      if (!this.only.disabled) this.answer(true);
    } else {
      const place = this.cards.findIndex(({ pick }) => pick === event.target);
      if (place < 0) return;
      const columns = this.columns(place);
      const moves = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -columns, ArrowDown: columns };
      if (event.key in moves) {
        const next = place + moves[event.key];
        if (this.cards[next]) {
          this.focusable(next);
          this.cards[next].pick.focus();
        }
      } else if (event.key === "x" || event.key === "X" || event.key === "Delete" || event.key === "Backspace") {
        this.drop(place);
      } else if (/^[1-9]$/.test(event.key) && this.cards[event.key - 1]) {
        this.pick(event.key - 1);
      } else {
        return; // Enter and Space press the button by themselves
      }
    }
    event.preventDefault();
    event.stopPropagation();
  }

  /** Candidates beside each other in the row of one. */
  columns(place) {
    const top = (k) => this.cards[k].card.offsetTop;
    let [first, last] = [place, place];
    while (first > 0 && top(first - 1) === top(place)) first -= 1;
    while (last < this.cards.length - 1 && top(last + 1) === top(place)) last += 1;
    return Math.max(1, last - first + 1);
  }

  answer(only) {
    const dropped = new Set(this.dropped);
    if (only) {
      const picked = this.cards.filter(({ candidate }) => this.picked.includes(candidate.row));
      const images = new Set(picked.map(({ candidate }) => candidate.image));
      for (const { candidate } of this.cards) {
        if (images.has(candidate.image) && !this.picked.includes(candidate.row)) dropped.add(candidate.row);
      }
    }
    return this.post({ ranked: this.picked, dropped: [...dropped] });
  }

  async post(message) {
    const asked = this.question;
    if (!asked || this.sent) return;
    this.sent = true;
    this.refresh();
    const { ok, body } = await this.send(asked.question, message);
    if (this.question !== asked) return;
    if (ok) this.show(null);
    else if (body?.how) this.over(body.how);
    else {
      this.sent = false;
      this.said.textContent = body?.error ?? say("notTaken");
      this.refresh();
    }
  }

  /** The question was closed elsewhere; the note stays a moment, so that nobody wonders. */
  over(how) {
    clearInterval(this.timer);
    this.sent = true;
    this.refresh();
    this.clock.textContent = "";
    this.said.textContent = say(HOW[how] ?? "closed");
    const asked = this.question;
    setTimeout(() => this.question === asked && this.show(null), 6000);
  }

  focus() {
    this.cards?.[this.at ?? 0]?.pick.focus({ preventScroll: true });
  }

  dispose() {
    clearInterval(this.timer);
    this.root.remove();
  }
}

function button(className, action, text = "") {
  const made = element("button", className, text);
  made.type = "button";
  made.addEventListener("click", action);
  return made;
}
