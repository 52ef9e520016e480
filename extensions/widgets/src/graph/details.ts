/** What is known of the selected box, at the right. */

import { make } from "../dom";
import type { Answer, Link } from "./messages";

export class Details {
  private readonly said = make("div", { class: "mlxgraph-said" });
  /** Where the minimap stands while this is open: there it covers nothing. */
  readonly foot = make("div", { class: "mlxgraph-foot" });
  readonly element = make("aside", { class: "mlxgraph-details", "aria-label": "Details" }, this.said, this.foot);

  /** `onGo` is told where a link leads. */
  constructor(private readonly onGo: (item: number) => void) {
    this.showNothing("");
  }

  set open(open: boolean) {
    this.element.hidden = !open;
  }

  get open(): boolean {
    return !this.element.hidden;
  }

  showNothing(summary: string): void {
    this.said.replaceChildren(
      ...(summary ? [make("p", {}, summary)] : []),
      make("h4", {}, "Select a box to see its details"),
      table(KEYS),
    );
  }

  /** At once with what the scene tells; `answer` follows when the kernel has time. */
  show(title: string, note: string, answer?: Answer): void {
    const parts: Node[] = [make("h3", {}, title)];
    if (!answer) {
      if (note) parts.push(make("p", {}, note));
    } else {
      parts.push(table(answer.rows ?? []));
      const { inputs, outputs, more } = answer;
      parts.push(...this.links("Inputs", inputs, more?.inputs), ...this.links("Outputs", outputs, more?.outputs));
    }
    this.said.replaceChildren(...parts);
  }

  showAlive(said: string, alive: Link[]): void {
    this.said.replaceChildren(
      make("h3", {}, "Memory"),
      make("p", {}, said),
      ...this.links("Alive, the largest first", alive),
    );
  }

  showPath(path: Link[]): void {
    this.said.replaceChildren(...this.links(`Path of ${path.length} nodes`, path));
  }

  private links(title: string, links: Link[] | undefined, more = 0): Node[] {
    if (!links?.length) return [];
    const list = make("ul");
    for (const { item, label } of links) {
      const link = make("button", { type: "button", class: "mlxgraph-link" }, label);
      link.addEventListener("click", () => this.onGo(item));
      list.append(make("li", {}, link));
    }
    if (more) list.append(make("li", { class: "mlxgraph-more" }, `and ${more.toLocaleString("en")} more`));
    return [make("h4", {}, title), list];
  }
}

/** Plain elements: JupyterLab has styles of its own for lists and tables in an output. */
function table(rows: readonly (readonly [string, string])[]): HTMLElement {
  const cells = rows.flatMap(([label, text]) => [make("span", {}, label), make("div", {}, text)]);
  return make("div", { class: "mlxgraph-rows" }, ...cells);
}

const KEYS = [
  ["drag", "pan"],
  ["wheel", "zoom"],
  ["double click, Enter", "open or close a group"],
  ["arrow keys", "follow an edge"],
  ["Backspace", "select the group around"],
  ["+ − 0", "zoom in, out, fit"],
  ["/", "search"],
  ["n, Shift+n", "next, previous hit"],
  ["Shift+click", "path to a second node"],
  ["Esc", "clear"],
] as const;
