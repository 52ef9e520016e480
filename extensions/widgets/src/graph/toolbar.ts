/** The row of search, colouring and buttons above the graph. */

import { button, make } from "../dom";

export interface Actions {
  search(text: string): void;
  step(by: 1 | -1): void;
  colour(by: string): void;
  openAll(): void;
  closeAll(): void;
  fit(): void;
  path(): void;
  copy(): void;
  export(kind: "svg" | "png" | "dot" | "json"): void;
  details(): void;
  leaveSearch(): void;
}

const TYPING_MS = 180;
const SEARCH_HELP = `Search in the whole graph ( / ). All words have to be found in a node:
names: layers.0.wq
primitives: matmul, all_sum, and what was fused
shapes: (2, 8) or [2, 8] or 2x8 or 2, 8
dtypes: bfloat16
arguments: axis=1
modules: layers.3 attention
phase and device: forward, backward, optimizer, cpu, gpu
in a difference: added, removed, changed, same`;

export class Toolbar {
  readonly element: HTMLElement;
  readonly input: HTMLInputElement;
  private readonly hits = make("span", { class: "mlxgraph-hits", "aria-live": "polite" });
  private readonly pathButton: HTMLButtonElement;
  private readonly detailsButton: HTMLButtonElement;
  private readonly colours = make("select", { "aria-label": "Colour by", title: "Colour by" });
  private readonly steps: HTMLButtonElement[];
  private typing = 0;

  constructor(private readonly actions: Actions) {
    this.input = make("input", {
      type: "search",
      placeholder: "Find name, shape…",
      "aria-label": "Search in the whole graph",
      title: SEARCH_HELP,
      spellcheck: "false",
    });
    this.input.addEventListener("input", () => {
      window.clearTimeout(this.typing);
      this.typing = window.setTimeout(() => actions.search(this.input.value), TYPING_MS);
    });
    this.input.addEventListener("keydown", (event) => this.key(event));
    this.steps = [
      button("↑", "Previous hit (Shift+N)", () => actions.step(-1)),
      button("↓", "Next hit (N)", () => actions.step(1)),
    ];
    this.colours.addEventListener("change", () => actions.colour(this.colours.value));
    this.pathButton = button("Path", "Path: select a box, then another one", () => actions.path());
    this.pathButton.setAttribute("aria-pressed", "false");
    this.detailsButton = button("Details", "Show or hide details", () => actions.details());
    const files = make("select", { "aria-label": "Export", title: "Export as a file" });
    files.append(make("option", { value: "" }, "Export…"));
    for (const kind of ["svg", "png", "dot", "json"]) {
      files.append(make("option", { value: kind }, kind.toUpperCase()));
    }
    files.addEventListener("change", () => {
      if (files.value) actions.export(files.value as "svg" | "png" | "dot" | "json");
      files.value = "";
    });
    const group = (...parts: Node[]) => make("div", { class: "mlxgraph-group" }, ...parts);
    this.element = make(
      "div",
      { class: "mlxgraph-toolbar", role: "toolbar", "aria-label": "Graph" },
      group(this.input, this.hits, ...this.steps),
      group(make("span", { class: "mlxgraph-by" }, "Colour"), this.colours),
      group(
        button("Open all", "Open all groups", () => actions.openAll()),
        button("Close all", "Close all groups", () => actions.closeAll()),
        button("Fit", "Fit the whole graph (0)", () => actions.fit()),
        this.pathButton,
      ),
      group(
        button("Copy", "Copy as text: the selected box, or the whole graph", () => actions.copy()),
        files,
        this.detailsButton,
      ),
    );
    this.showHits(0, -1, "");
  }

  setColours(names: string[]): void {
    this.colours.replaceChildren(...names.map((name) => make("option", { value: name }, name)));
  }

  showHits(count: number, current: number, text: string): void {
    if (!text) this.hits.textContent = "";
    else if (!count) this.hits.textContent = "no hits";
    else this.hits.textContent = `${current + 1} of ${count}`;
    for (const step of this.steps) step.disabled = count < 1;
  }

  showPath(choosing: boolean): void {
    this.pathButton.setAttribute("aria-pressed", String(choosing));
  }

  showDetails(open: boolean): void {
    this.detailsButton.setAttribute("aria-expanded", String(open));
  }

  clearSearch(): void {
    window.clearTimeout(this.typing);
    this.input.value = "";
  }

  private key(event: KeyboardEvent): void {
    if (event.key === "Enter") {
      if (this.typing) {
        window.clearTimeout(this.typing);
        this.typing = 0;
      }
      this.actions.search(this.input.value);
      if (this.hits.textContent) this.actions.step(event.shiftKey ? -1 : 1);
    } else if (event.key === "Escape") {
      event.preventDefault();
      this.actions.leaveSearch();
    }
  }
}
