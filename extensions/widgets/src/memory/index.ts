/** The ES module that anywidget loads: bars of the pools, and the timelines of ranks. */

import uPlotStyle from "uplot/dist/uPlot.min.css";
import { make } from "../dom";
import { Bars } from "./bars";
import type { Message, Model } from "./messages";
import style from "./style.css";
import { Timeline } from "./timeline";

const STYLE_ID = "mlxmem-style";

export default {
  render({ model, el }: { model: Model; el: HTMLElement }): () => void {
    if (!document.getElementById(STYLE_ID)) {
      const sheet = make("style", { id: STYLE_ID });
      sheet.textContent = uPlotStyle + style;
      document.head.append(sheet);
    }
    const bars = new Bars(model);
    const timeline = new Timeline(model);
    el.classList.add("mlxmem");
    el.append(bars.element, timeline.element);

    let asked = 0;
    const draw = () => {
      asked = 0;
      bars.show();
      timeline.draw();
    };
    const later = () => {
      if (!asked) asked = requestAnimationFrame(draw);
    };
    const take = (message: Message, buffers: DataView[]) => {
      if (message.kind === "who") {
        model.send({ kind: "here" });
        return;
      }
      timeline.take(message, buffers);
      later();
    };
    model.on("change:bars", later);
    const told = () => {
      timeline.changed();
      later();
    };
    model.on("change:ranks", told);
    model.on("msg:custom", take);
    const sizes = new ResizeObserver(() => {
      bars.show();
      timeline.resized();
    });
    sizes.observe(el);
    model.send({ kind: "ready" });
    later();
    const leave = () => {
      try {
        model.send({ kind: "gone" });
      } catch {
        // the kernel has ended before: nobody is there to be told
      }
    };
    window.addEventListener("pagehide", leave);
    return () => {
      window.removeEventListener("pagehide", leave);
      cancelAnimationFrame(asked);
      sizes.disconnect();
      model.off("change:bars", later);
      model.off("change:ranks", told);
      model.off("msg:custom", take);
      timeline.dispose();
      leave();
    };
  },
};
