/** The ES module that anywidget loads. */

import type { Model } from "./messages";
import { hideStandIn } from "./stand_in";
import style from "./style.css";
import { View } from "./view";

const STYLE_ID = "mlxgraph-style";

export default {
  /** Before there is a view: so the picture is never seen where there will be one. */
  initialize({ model }: { model: Model }): () => void {
    return hideStandIn(model.get("picture"));
  },

  render({ model, el }: { model: Model; el: HTMLElement }): () => void {
    if (!document.getElementById(STYLE_ID)) {
      const sheet = document.createElement("style");
      sheet.id = STYLE_ID;
      sheet.textContent = style;
      document.head.append(sheet);
    }
    const view = new View(model, el);
    return () => view.dispose();
  },
};
