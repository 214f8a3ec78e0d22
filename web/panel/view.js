// The panel: heading, progress, score curve, family tree, the particle under the pointer, cost. DOM only, text as text.

import { isDark } from "../draw/colours.js";
import { mayMove, playButton, setInMotion } from "../draw/clip.js";
import { CurveView } from "../draw/curves.js";
import { element, number } from "../draw/dom.js";
import { TreeView } from "../draw/tree.js";
import { AskView } from "./ask.js";
import { say } from "./texts.js";

const STATUS = ["running", "complete", "budget", "interrupted", "failed"]; // also the names of their texts
const STRIP = 8;

export class PanelView {
  /**
   * `host`: {answer(id, message), reportUrl(run), clipUrl(run, step, row),
   * useParticle(id) -> names of the nodes that were set}.
   */
  constructor(store, host) {
    this.store = store;
    this.host = host;
    this.shown = null;
    this.follow = true;
    this.root = element("section", "testtime-panel");
    this.root.setAttribute("aria-label", say("panel"));
    this.select = element("select", "testtime-runs");
    this.select.setAttribute("aria-label", say("whichSearch"));
    this.select.addEventListener("change", () => {
      this.follow = this.select.selectedIndex === this.select.options.length - 1;
      this.shown = this.select.value;
      this.draw();
    });
    this.ask = new AskView(host.answer);
    this.prompt = element("p", "testtime-prompt");
    this.status = element("p", "testtime-status");
    this.status.setAttribute("role", "status");
    this.bar = element("progress");
    this.bar.max = 1;
    this.bar.setAttribute("aria-label", say("progress"));
    this.curve = new CurveView();
    this.tree = new TreeView({ onPoint: (particle) => this.inspect(particle) });
    const keys = element("span", "testtime-spoken", say("treeHelp"));
    keys.id = "testtime-tree-keys";
    this.tree.canvas.setAttribute("aria-describedby", keys.id);
    this.strip = element("div", "testtime-strip");
    this.strip.tabIndex = 0; // it scrolls
    this.strip.setAttribute("role", "group");
    this.strip.setAttribute("aria-label", say("bestPreviews"));
    this.inspector = element("div", "testtime-inspector");
    this.costs = element("dl", "testtime-costs");
    this.notes = element("ul", "testtime-notes");
    this.report = element("a", "testtime-report", say("openReport"));
    this.report.target = "_blank";
    this.report.rel = "noopener";
    this.empty = element("p", "testtime-empty", say("empty"));
    this.body = element("div", "testtime-body");
    this.body.append(
      this.prompt, this.status, this.bar, this.report,
      element("h3", "", say("curve")), this.curve.canvas,
      element("h3", "", say("bestNow")), this.strip,
      element("h3", "", say("tree")), this.inspector, this.tree.canvas, keys,
      element("h3", "", say("cost")), this.costs, this.notes,
    );
    this.root.append(this.ask.root, this.select, this.empty, this.body);
    this.onChange = () => this.later();
    this.onQuestion = () => this.ask.show(store.question);
    this.onClosed = (event) => this.ask.question?.question === event.detail.question && this.closed(event.detail);
    store.addEventListener("change", this.onChange);
    store.addEventListener("question", this.onQuestion);
    store.addEventListener("closed", this.onClosed);
    this.onQuestion();
    this.observer = new ResizeObserver(() => this.later());
    this.observer.observe(this.root);
    this.themes = new MutationObserver(() => this.later());
    for (const at of [document.documentElement, document.body]) {
      this.themes.observe(at, { attributes: true, attributeFilter: ["class", "style"] });
    }
    this.later();
  }

  dispose() {
    this.store.removeEventListener("change", this.onChange);
    this.store.removeEventListener("question", this.onQuestion);
    this.store.removeEventListener("closed", this.onClosed);
    this.ask.dispose();
    this.observer.disconnect();
    this.themes.disconnect();
    cancelAnimationFrame(this.frame);
    this.root.remove();
  }

  closed({ how, mine }) {
    if (mine) this.ask.show(null);
    else this.ask.over(how);
  }

  /** Draw once in the next frame, however many messages arrive until then. */
  later() {
    cancelAnimationFrame(this.frame);
    this.frame = requestAnimationFrame(() => this.draw());
  }

  get run() {
    if (this.follow || !this.store.runs.has(this.shown)) return this.store.latest;
    return this.store.runs.get(this.shown);
  }

  draw() {
    const run = this.run;
    this.empty.hidden = !!run;
    this.empty.textContent = say(this.store.hidden ? "hidden" : "empty");
    this.body.hidden = this.select.hidden = !run;
    if (!run) return;
    if (this.drawn !== run.id) this.tree.focus = this.tree.pinned = null;
    this.drawn = run.id;
    this.list(run);
    const dark = isDark(this.root);
    this.root.classList.toggle("testtime-dark", dark);
    this.prompt.textContent = (run.about.prompts ?? []).join("  |  ");
    const last = run.records.at(-1);
    const step = last ? say("step", last) : say("starting");
    this.status.textContent = `${STATUS.includes(run.status) ? say(run.status) : run.status}, ${step}`;
    this.status.dataset.status = run.status;
    this.bar.value = run.status === "running" ? run.progress : 1;
    this.report.hidden = run.status === "running" || run.status === "failed";
    this.report.href = this.host.reportUrl(run.id);
    this.curve.show(run, dark);
    this.tree.show(run, dark);
    this.best(run);
    this.inspect(this.tree.focus);
    this.spent(run);
    this.notes.replaceChildren(...run.warnings.map((text) => element("li", "", text)));
  }

  list(run) {
    const wanted = [...this.store.runs.values()].map((r, k) => {
      const name = r.about.title ?? r.about.method;
      return [r.id, `${k + 1}. ${r.about.node ? say("nodeOf", { name, node: r.about.node }) : name}`];
    });
    if (JSON.stringify(wanted) !== this.listed) {
      this.listed = JSON.stringify(wanted);
      const options = wanted.map(([id, text]) => Object.assign(element("option", "", text), { value: id }));
      this.select.replaceChildren(...options);
    }
    this.select.value = run.id;
  }

  best(run) {
    const record = run.records.findLast((r) => r.rows.some((p) => p.thumb));
    const rows = record ? record.rows.filter((p) => p.thumb).sort((a, b) => (b.score ?? -1e9) - (a.score ?? -1e9)) : [];
    this.strip.replaceChildren(
      ...rows.slice(0, STRIP).map((p) => {
        const figure = element("figure");
        const image = picture(p);
        if (p.clip) setInMotion(image, this.host.clipUrl(run.id, ...p.clip), figure);
        figure.append(image, element("figcaption", "", number(p.score)));
        figure.addEventListener("pointerenter", () => this.tree.choose(p));
        return figure;
      }),
    );
    if (!rows.length) this.strip.append(element("p", "testtime-muted", say("noPreviews")));
  }

  inspect(particle) {
    const p = particle ?? this.run?.leader();
    if (!p) {
      this.inspector.replaceChildren();
      return;
    }
    const seen = this.run.path(p.id).find((q) => q.thumb);
    const words = element("div");
    words.append(
      element("strong", "", say(particle ? "particle" : this.run.winners.includes(p.id) ? "winner" : "leader", p)),
      element("span", "", p.score === null ? say("noScore") : say("score", { score: number(p.score) })),
      element("span", "", say("step", p.record)),
      element("span", "", p.parent === null ? say("freshNoise") : say("childOf", { id: p.parent })),
    );
    if (p.prompt) words.append(element("span", "testtime-rewrite", say("prompt", { text: p.prompt })));
    const missing = (p.record.rewrites ?? []).filter((r) => r.group === p.group).flatMap((r) => r.missing);
    const text = [...new Set(missing)].join("; ");
    if (text) words.append(element("span", "testtime-rewrite", say("missing", { text })));
    if (this.run.status !== "running") words.append(this.sender(p));
    this.inspector.replaceChildren(...(seen ? this.pictures(seen, words) : []), words);
  }

  /** The picture of a particle; a clip plays, and gets a button among `words`. */
  pictures(particle, words) {
    const image = picture(particle);
    if (!particle.clip) return [image];
    const motion = setInMotion(image, this.host.clipUrl(this.run.id, ...particle.clip));
    // Drawn anew with every step: what somebody has stopped stays so.
    this.still ??= !mayMove();
    if (!this.still) motion.play();
    const button = playButton(motion);
    button.addEventListener("click", () => (this.still = !motion.playing));
    words.append(button);
    return [image];
  }

  /** The button that sends a particle to the nodes that take one. */
  sender(particle) {
    const use = element("button", "testtime-use", say("use"));
    use.type = "button";
    use.title = say("useTooltip");
    use.addEventListener("click", () => {
      const set = this.host.useParticle(particle.id);
      use.textContent = set.length ? say("used", { nodes: set.join(", ") }) : say("usedNowhere");
    });
    return use;
  }

  spent({ ledger, about, records }) {
    const last = records.at(-1);
    const of = (value, limit) => (limit ? say("ofLimit", { value, limit }) : String(value));
    const seconds = ledger.total_seconds ?? last?.seconds ?? 0;
    const always = [
      ["forwardPasses", of(ledger.nfe ?? last?.nfe ?? 0, about.max_nfe)],
      ["seconds", of(seconds.toFixed(1), about.max_seconds)],
      ["decodes", ledger.decodes ?? 0],
      ["imagesJudged", ledger.verifier_images ?? 0],
    ];
    const sometimes = [
      ["rewriterCalls", ledger.rewriter_calls],
      ["differentiatedPasses", ledger.backward],
      ["compute", ledger.flops && `${(ledger.flops / 1e9).toFixed(0)} GFLOP`],
      ["peakMemory", ledger.peak_memory && `${(ledger.peak_memory / 2 ** 30).toFixed(2)} GiB`],
      ["scoresRejected", ledger.rejected_rewards],
      ["verifier", about.verifier ?? say("none")],
      ["heldOut", about.held_out],
    ];
    const rows = [...always, ...sometimes.filter(([, value]) => value)];
    const cells = rows.flatMap(([key, value]) => [element("dt", "", say(key)), element("dd", "", String(value))]);
    this.costs.replaceChildren(...cells);
  }
}

function picture(particle) {
  const image = element("img");
  image.src = `data:image/jpeg;base64,${particle.thumb}`;
  image.alt = say("previewOf", particle);
  return image;
}
