/** One view: what is selected, found and lit up, and who is asked for what. */

import { Details } from "./details";
import { button, make } from "../dom";
import { copy, download, fileName } from "./files";
import { among, beside, first, next } from "./follow";
import { type Gestures, keepKeys, listen } from "./input";
import { type Ask, type Arguments, type Link, type Model, type Timeline } from "./messages";
import { type Condition, GONE, Kernel, type Reply } from "./kernel";
import { marksOf } from "./marks";
import { MemoryStrip } from "./memory";
import { LARGEST } from "./poster";
import { Kind, Scene, int32 } from "./scene";
import { LEGIBLE, Stage } from "./stage";
import { Toolbar } from "./toolbar";

const NARROW = 560;
const NOTICE_MS = 4000;
const NOTHING = Number.MIN_SAFE_INTEGER;

export class View {
  private readonly root = make("div", {
    class: "mlxgraph", role: "region",
  });
  private readonly stage = new Stage();
  private readonly kernel: Kernel;
  private readonly toolbar: Toolbar;
  private readonly details: Details;
  private readonly waiting = make("div", { class: "mlxgraph-waiting", role: "status" });
  private readonly notice = make("div", { class: "mlxgraph-notice", role: "status" });
  private readonly spoken = make("div", { class: "mlxgraph-spoken", "aria-live": "polite" });
  private selected = NOTHING; // an item: boxes have other numbers in the next scene
  private hovered = -1;
  private hits = new Int32Array();
  private hit = -1;
  private path: Link[] = [];
  private choosing = false;
  private searched = "";
  private noticed = 0;
  private memory?: MemoryStrip;
  /** How wide it is, is known once it is in the page. */
  private readonly appeared = new ResizeObserver(() => {
    if (!this.root.clientWidth) return;
    this.appeared.disconnect();
    this.showDetails(this.root.clientWidth >= NARROW);
    const focus = this.model.get("focus");
    if (focus !== null) void this.begin(focus);
  });
  private readonly stop: () => void;

  constructor(private readonly model: Model, parent: HTMLElement) {
    this.kernel = new Kernel(model, parent, (condition) => this.say(condition));
    this.toolbar = new Toolbar({
      search: (text) => void this.search(text),
      step: (by) => void this.step(by),
      colour: (by) => void this.ask("colour", { text: by }),
      openAll: () => void this.redraw("open_all"),
      closeAll: () => void this.redraw("close_all"),
      fit: () => this.fit(),
      path: () => this.choose(!this.choosing),
      copy: () => void this.copy(),
      export: (kind) => void this.export(kind),
      details: () => this.showDetails(!this.details.open),
      leaveSearch: () => this.leaveSearch(),
    });
    this.details = new Details((item) => void this.go(item));
    this.root.setAttribute("aria-label", `Graph ${model.get("title")}`);
    this.root.style.height = `${model.get("height")}px`;
    const title = make("div", { class: "mlxgraph-title" }, model.get("title"));
    title.append(make("span", {}, model.get("summary")));
    const zoom = make("div", { class: "mlxgraph-zoom" },
      button("+", "Zoom in (+)", () => this.zoom(1.25)),
      button("−", "Zoom out (-)", () => this.zoom(0.8)),
    );
    zoom.addEventListener("pointerdown", (event) => event.stopPropagation());
    this.notice.hidden = true;
    if (!this.kernel.gone) this.waiting.hidden = true;
    const status = make("div", { class: "mlxgraph-status" }, this.waiting, this.notice);
    this.stage.element.append(zoom, status, this.spoken);
    const body = make("div", { class: "mlxgraph-body" }, this.stage.element, this.details.element);
    this.root.append(title, this.toolbar.element, body, this.stage.legend);
    const timeline = model.get("timeline");
    if (timeline.at) {
      this.memory = new MemoryStrip(timeline as Timeline, (at) => void this.alive(at));
      body.after(this.memory.element);
    }
    parent.append(this.root);
    this.toolbar.setColours(model.get("colours"));
    this.details.showNothing(model.get("summary"));
    this.showDetails(false);
    this.appeared.observe(this.root);
    this.stage.connect();
    this.rescene();
    model.on("change:scene", this.rescene);
    const stops = [keepKeys(this.root), listen(this.stage.element, this.gestures())];
    this.stop = () => stops.forEach((stop) => stop());
  }

  dispose(): void {
    this.stop();
    this.model.off("change:scene", this.rescene);
    window.clearTimeout(this.noticed);
    this.kernel.dispose();
    this.appeared.disconnect();
    this.memory?.dispose();
    this.stage.dispose();
    this.root.remove();
  }

  private readonly rescene = (): void => {
    const before = this.stage.scene as Scene | undefined;
    const { camera } = this.stage;
    const anchor = before ? before.box(this.selected) : -1;
    const at = anchor >= 0 ? [before!.x[anchor]!, before!.y[anchor]!] : undefined;
    this.hovered = -1;
    this.stage.setScene(new Scene(this.model.get("scene")));
    const now = this.stage.scene.box(this.selected);
    // What one has just opened or closed stays where it is on the screen.
    if (at && now >= 0) {
      camera.x += this.stage.scene.x[now]! - at[0]!;
      camera.y += this.stage.scene.y[now]! - at[1]!;
    }
    this.mark();
  };

  private async ask(ask: Ask, args: Arguments = {}): Promise<Reply | undefined> {
    const reply = await this.kernel.ask(ask, args);
    if (reply.error === undefined) return reply;
    this.tell(this.kernel.gone ? "that needs the kernel, which is gone" : reply.error);
    return undefined;
  }

  private say(condition: Condition): void {
    this.waiting.hidden = condition === "answers";
    this.waiting.textContent = condition === "gone" ? GONE : "waiting for the kernel…";
  }

  /** Select a node that the kernel has opened for this view. */
  private async begin(focus: number): Promise<void> {
    let box = this.stage.scene.box(focus);
    if (box < 0 && !this.kernel.gone) {
      const { item } = await this.kernel.ask("reveal", { item: focus });
      box = item === undefined ? -1 : this.stage.scene.box(item);
    }
    if (box < 0) return;
    this.stage.beginAt(box);
    this.select(box);
  }

  private async redraw(ask: "open_all" | "close_all"): Promise<void> {
    if (await this.ask(ask)) this.fit();
  }

  private async toggle(item: number): Promise<void> {
    if (!(await this.ask("toggle", { item }))) return;
    const box = this.stage.scene.box(item);
    this.stage.moved = true;
    if (box >= 0) this.stage.camera.show(this.stage.boundsOf(box), 0.2);
    this.stage.request();
  }

  /** Select an item and bring it into sight, whatever has to be opened for that. */
  private async go(item: number, focus = true): Promise<void> {
    let box = this.stage.scene.box(item);
    if (box < 0) {
      const reply = await this.ask("reveal", { item });
      if (!reply) return;
      box = this.stage.scene.box(reply.item ?? item);
    }
    if (box < 0) return this.tell("this node is in no open group");
    this.select(box);
    this.stage.moved = true;
    this.stage.camera.show(this.stage.boundsOf(box), LEGIBLE);
    if (focus) this.stage.element.focus({ preventScroll: true });
    this.stage.request();
  }

  private select(box: number): void {
    const { scene } = this.stage;
    this.selected = box < 0 ? NOTHING : scene.item[box]!;
    this.path = [];
    this.mark();
    if (box < 0) return this.details.showNothing(this.model.get("summary"));
    const title = scene.title[box] ?? "", note = scene.note[box] ?? "", item = this.selected;
    this.spoken.textContent = `${title} ${note}`;
    this.details.show(title, note, this.kernel.gone ? beside(scene, box) : undefined);
    if (this.kernel.gone) return;
    void this.kernel.ask("details", { item }).then((reply) => {
      if (this.selected !== item || this.path.length) return;
      if (reply.error === undefined) this.details.show(title, note, reply);
      else if (this.kernel.gone) this.details.show(title, note, beside(scene, box));
      else this.tell(reply.error);
    });
  }

  private mark(): void {
    const { hits, path, selected, hovered } = this;
    this.stage.setMarks(marksOf(this.stage.scene, { hits, path, selected, hovered }));
  }

  private async search(text: string): Promise<void> {
    if (text === this.searched) return;
    this.searched = text;
    if (!text.trim()) return this.found(new Int32Array(), text);
    if (this.kernel.gone) {
      this.found(among(this.stage.scene, text), text);
      this.tell("searched in what is open: the rest needs the kernel, which is gone");
      if (this.hits.length) await this.step(1);
      return;
    }
    const reply = await this.ask("search", { text });
    if (!reply || this.searched !== text) return;
    this.found(reply.buffers[0] ? int32(reply.buffers[0]) : new Int32Array(), text);
    if (this.hits.length) await this.step(1);
  }

  private found(hits: Int32Array, text: string): void {
    this.hits = hits as Int32Array<ArrayBuffer>;
    this.hit = -1;
    this.toolbar.showHits(hits.length, this.hit, text.trim());
    this.mark();
  }

  private async step(by: 1 | -1): Promise<void> {
    const count = this.hits.length;
    if (!count) return;
    this.hit = this.hit < 0 ? (by > 0 ? 0 : count - 1) : (this.hit + by + count) % count;
    this.toolbar.showHits(count, this.hit, this.searched);
    await this.go(this.hits[this.hit]!, document.activeElement !== this.toolbar.input);
  }

  private leaveSearch(): void {
    this.toolbar.clearSearch();
    this.searched = "";
    this.found(new Int32Array(), "");
    this.stage.element.focus({ preventScroll: true });
  }

  private choose(choosing: boolean): void {
    this.choosing = choosing;
    this.toolbar.showPath(choosing);
    if (choosing) this.tell(this.selected === NOTHING ? "click the first node of the path" : "click the other end of the path");
  }

  private async pathTo(other: number): Promise<void> {
    const item = this.selected;
    this.choose(false);
    const reply = await this.ask("path", { item, other });
    if (!reply) return;
    if (!reply.path?.length) return this.tell("neither node needs the other: there is no path");
    this.path = reply.path;
    this.details.showPath(this.path);
    this.tell(`path of ${this.path.length} nodes`);
    this.mark();
  }

  private async alive(at: number): Promise<void> {
    const reply = await this.ask("alive", { other: at });
    if (!reply) return;
    this.showDetails(true);
    this.details.showAlive(reply.text ?? "", reply.outputs ?? []);
  }

  private fit(): void {
    this.stage.moved = true;
    this.stage.camera.fit(this.stage.scene.bounds);
    this.stage.request();
  }

  private zoom(factor: number, px?: number, py?: number): void {
    this.stage.moved = true;
    this.stage.camera.zoomBy(factor, px, py);
    this.stage.request();
  }

  private async copy(): Promise<void> {
    const reply = await this.ask("text", { item: this.selected === NOTHING ? null : this.selected });
    if (reply) this.tell((await copy(reply.text ?? "")) ? "copied" : "the browser refused to copy");
  }

  private async export(kind: "svg" | "png" | "dot" | "json"): Promise<void> {
    const name = fileName(this.model.get("title"), kind);
    if (kind === "png") {
      const { picture, scale } = await this.stage.poster(this.model.get("title"));
      if (!picture) return this.tell("the browser could not make so large a picture: export SVG");
      download(name, picture);
      if (scale < 1) {
        const share = scale < 0.1 ? (100 * scale).toFixed(1) : Math.round(100 * scale);
        this.tell(`scaled down to ${share} % to be at most ${LARGEST} pixels wide and high: SVG keeps every text`);
      }
      return;
    }
    const reply = await this.ask("export", { text: kind });
    if (reply) download(name, new Blob([reply.text ?? ""], { type: kind === "svg" ? "image/svg+xml" : "text/plain" }));
  }

  private showDetails(open: boolean): void {
    this.details.open = open;
    this.stage.standMinimap(open ? this.details.foot : undefined);
    this.toolbar.showDetails(open);
  }

  private tell(text: string): void {
    this.notice.textContent = text;
    this.notice.hidden = false;
    window.clearTimeout(this.noticed);
    this.noticed = window.setTimeout(() => (this.notice.hidden = true), NOTICE_MS);
  }

  private gestures(): Gestures {
    const { camera } = this.stage;
    const at = (px: number, py: number) => this.stage.grid.at(...camera.toScene(px, py));
    return {
      pan: (dx, dy) => {
        this.stage.moved = true;
        camera.panBy(dx, dy);
        this.stage.request();
      },
      zoom: (factor, px, py) => this.zoom(factor, px, py),
      hover: (px, py) => this.hover(at(px, py), px, py),
      leave: () => this.hover(-1, 0, 0),
      click: (px, py, shift) => {
        const box = at(px, py), chosen = this.selected !== NOTHING;
        if (box >= 0 && chosen && (shift || this.choosing)) void this.pathTo(this.stage.scene.item[box]!);
        else {
          this.select(box);
          if (this.choosing) this.choose(box >= 0);
        }
      },
      doubleClick: (px, py) => this.enter(at(px, py)),
      key: (key) => this.key(key),
    };
  }

  private hover(box: number, px: number, py: number): void {
    this.stage.tip(box, px, py);
    if (box === this.hovered) return;
    this.hovered = box;
    this.stage.element.style.cursor = box >= 0 ? "pointer" : "";
    this.mark();
  }

  private enter(box: number): void {
    const kind = box >= 0 ? this.stage.scene.kind[box] : undefined;
    if (kind === Kind.Group || kind === Kind.Frame) void this.toggle(this.stage.scene.item[box]!);
  }

  private key(key: string): boolean {
    if (key === "0") this.fit();
    else if (key === "/") this.toolbar.input.select();
    else if (key === "n") void this.step(1);
    else if (key === "N") void this.step(-1);
    else if (key === "Enter") this.enter(this.stage.scene.box(this.selected));
    else if (key === "Backspace") {
      const box = this.stage.scene.box(this.selected), around = box < 0 ? -1 : this.stage.scene.frame[box]!;
      if (around >= 0) this.select(around);
    } else if (key === "Escape") {
      this.choose(false);
      if (this.searched) this.leaveSearch();
      this.select(-1);
    } else if (key.startsWith("Arrow")) this.follow(key);
    else return false;
    return true;
  }

  /** Up and down follow an edge, left and right go to the next box that shares one. */
  private follow(key: string): void {
    const { scene } = this.stage, from = scene.box(this.selected);
    const to = from < 0 ? first(scene) : next(scene, from, key);
    if (to >= 0) void this.go(scene.item[to]!);
  }
}
