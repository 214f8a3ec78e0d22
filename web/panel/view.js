// The panel: heading, progress, score curve, family tree, the particle under the pointer, cost. DOM only, text as text.

import { isDark } from "./colours.js";
import { AskView } from "./ask.js";
import { CurveView } from "./curve.js";
import { element, number } from "./dom.js";
import { TreeView } from "./tree.js";

const STATUS = {
  running: "running",
  complete: "complete",
  budget: "budget spent",
  interrupted: "cancelled",
  failed: "failed",
};
const METHODS = {
  best_of_n: "Best-of-N",
  importance_sampling: "Importance Sampling",
  svdd: "SVDD",
  smc: "SMC",
  das: "DAS",
  fk: "FK Steering",
  rbf: "Rollover Budget Forcing",
  beam_search: "Beam Search",
  random_search: "Random Search",
  zero_order_search: "Zero-Order Search",
  path_search: "Path Search",
  ttgen: "TTGen",
  replay: "Replay",
};
const STRIP = 8;

export class PanelView {
  /** `host`: {answer(id, message), reportUrl(run), useParticle(id) -> names of the nodes that were set}. */
  constructor(store, host) {
    this.store = store;
    this.host = host;
    this.shown = null;
    this.follow = true;
    this.root = element("section", "testtime-panel");
    this.root.setAttribute("aria-label", "Search panel");
    this.select = element("select", "testtime-runs");
    this.select.setAttribute("aria-label", "Which search to show");
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
    this.bar.setAttribute("aria-label", "Progress of the search");
    this.curve = new CurveView();
    this.tree = new TreeView((particle) => this.inspect(particle));
    this.strip = element("div", "testtime-strip");
    this.strip.tabIndex = 0; // it scrolls
    this.strip.setAttribute("role", "group");
    this.strip.setAttribute("aria-label", "Best previews now");
    this.inspector = element("div", "testtime-inspector");
    this.costs = element("dl", "testtime-costs");
    this.notes = element("ul", "testtime-notes");
    this.report = element("a", "testtime-report", "Open report");
    this.report.target = "_blank";
    this.report.rel = "noopener";
    this.empty = element("p", "testtime-empty", "No search yet. Queue a workflow with a search node and watch it here.");
    this.body = element("div", "testtime-body");
    this.body.append(
      this.prompt, this.status, this.bar, this.report,
      element("h3", "", "Scores over compute"), this.curve.canvas,
      element("h3", "", "Best now"), this.strip,
      element("h3", "", "Family tree"), this.inspector, this.tree.canvas,
      element("h3", "", "Cost"), this.costs, this.notes,
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
    this.body.hidden = this.select.hidden = !run;
    if (!run) return;
    if (this.drawn !== run.id) this.tree.focus = this.tree.pinned = null;
    this.drawn = run.id;
    this.list(run);
    const dark = isDark(this.root);
    this.root.classList.toggle("testtime-dark", dark);
    this.prompt.textContent = (run.about.prompts ?? []).join("  |  ");
    const last = run.records[run.records.length - 1];
    const step = last ? `step ${last.step} of ${last.steps}` : "starting";
    this.status.textContent = `${STATUS[run.status] ?? run.status}, ${step}`;
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
      const name = METHODS[r.about.method] ?? r.about.method;
      return [r.id, `${k + 1}. ${name}${r.about.node ? ` (node ${r.about.node})` : ""}`];
    });
    if (JSON.stringify(wanted) !== this.listed) {
      this.listed = JSON.stringify(wanted);
      this.select.replaceChildren(...wanted.map(([id, text]) => Object.assign(element("option", "", text), { value: id })));
    }
    this.select.value = run.id;
  }

  best(run) {
    const record = [...run.records].reverse().find((r) => r.rows.some((p) => p.thumb));
    const rows = record ? record.rows.filter((p) => p.thumb).sort((a, b) => (b.score ?? -1e9) - (a.score ?? -1e9)) : [];
    this.strip.replaceChildren(
      ...rows.slice(0, STRIP).map((p) => {
        const figure = element("figure");
        figure.append(picture(p), element("figcaption", "", number(p.score)));
        figure.addEventListener("pointerenter", () => this.tree.choose(p));
        return figure;
      }),
    );
    if (!rows.length) this.strip.append(element("p", "testtime-muted", "previews appear when the search looks at them"));
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
      element("strong", "", particle ? `Particle ${p.id}` : `Leader: particle ${p.id}`),
      element("span", "", `score ${number(p.score)}`),
      element("span", "", `step ${p.record.step} of ${p.record.steps}`),
      element("span", "", p.parent === null ? "from fresh noise" : `child of ${p.parent}`),
    );
    if (p.prompt) words.append(element("span", "testtime-rewrite", `prompt: ${p.prompt}`));
    const missing = (p.record.rewrites ?? []).filter((r) => r.group === p.group).flatMap((r) => r.missing);
    if (missing.length) words.append(element("span", "testtime-rewrite", `missing: ${[...new Set(missing)].join("; ")}`));
    if (this.run.status !== "running") {
      const use = element("button", "testtime-use", "Use in the graph");
      use.type = "button";
      use.title = "Write this particle's number into the selected (or all) Replay Particle and Continue Search nodes";
      use.addEventListener("click", () => {
        const set = this.host.useParticle(p.id);
        use.textContent = set.length ? `Set in ${set.join(", ")}` : "No Replay or Continue node in the graph";
      });
      words.append(use);
    }
    this.inspector.replaceChildren(...(seen ? [picture(seen)] : []), words);
  }

  spent(run) {
    const { ledger, about } = run;
    const of = (value, limit) => (limit ? `${value} of ${limit}` : String(value));
    const seconds = ledger.total_seconds ?? run.records.at(-1)?.seconds ?? 0;
    const rows = [
      ["Forward passes", of(ledger.nfe ?? run.records.at(-1)?.nfe ?? 0, about.max_nfe)],
      ["Seconds", of(seconds.toFixed(1), about.max_seconds)],
      ["Decodes", ledger.decodes ?? 0],
      ["Images judged", ledger.verifier_images ?? 0],
    ];
    if (ledger.rewriter_calls) rows.push(["Rewriter calls", ledger.rewriter_calls]);
    if (ledger.backward) rows.push(["Differentiated passes", ledger.backward]);
    if (ledger.peak_memory) rows.push(["Peak memory", `${(ledger.peak_memory / 2 ** 30).toFixed(2)} GiB`]);
    if (ledger.rejected_rewards) rows.push(["Scores rejected", ledger.rejected_rewards]);
    rows.push(["Verifier", about.verifier ?? "none"]);
    if (about.held_out) rows.push(["Held out", about.held_out]);
    this.costs.replaceChildren(...rows.flatMap(([name, value]) => [element("dt", "", name), element("dd", "", String(value))]));
  }
}

function picture(particle) {
  const image = element("img");
  image.src = `data:image/jpeg;base64,${particle.thumb}`;
  image.alt = `preview of particle ${particle.id}`;
  return image;
}
