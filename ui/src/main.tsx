// One bundle for both pages.

import { render } from "preact";
import { App } from "./app";
import { Docs } from "./docs";
import { applyTheme, savedTheme } from "./settings";

applyTheme(savedTheme());
render(document.body.dataset.page === "docs" ? <Docs /> : <App />, document.body);
