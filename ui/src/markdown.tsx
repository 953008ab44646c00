// Markdown as elements. No HTML is made of a model's words anywhere, and none that they contain is taken for HTML.

import MarkdownIt from "markdown-it";
import { type ComponentChild, h } from "preact";

// A picture in an answer would be fetched from wherever the model says.
const parser = new MarkdownIt({ html: false, breaks: true }).disable(["image"]);

type Token = ReturnType<typeof parser.parse>[number];

/** Headings of an answer are below those of the page. */
const TAGS: Record<string, string> = { h1: "h3", h2: "h4", h3: "h5", h4: "h6" };

function attributes(token: Token): Record<string, string> {
  const attrs: Record<string, string> = {};
  for (const [name, given] of token.attrs ?? []) {
    const value = String(given);
    const align = name === "style" ? /text-align:(\w+)/.exec(value)?.[1] : undefined;
    if (align) attrs.class = `align-${align}`;
    if (name === "href" || name === "title" || name === "start") attrs[name] = value;
  }
  return token.tag === "a" ? { ...attrs, target: "_blank", rel: "noopener noreferrer" } : attrs;
}

function leaf(token: Token): ComponentChild {
  switch (token.type) {
    case "inline":
      return elements(token.children ?? []);
    case "code_inline":
      return <code>{token.content}</code>;
    case "fence":
    case "code_block":
      return (
        // It scrolls, so the keyboard must reach it.
        // biome-ignore lint/a11y/noNoninteractiveTabindex: see above
        <pre tabIndex={0}>
          <code>{token.content}</code>
        </pre>
      );
    case "softbreak":
    case "hardbreak":
      return <br />;
    case "hr":
      return <hr />;
    default:
      return token.content;
  }
}

function elements(tokens: Token[]): ComponentChild[] {
  const stack: { token: Token | null; children: ComponentChild[] }[] = [{ token: null, children: [] }];
  const add = (child: ComponentChild) => stack[stack.length - 1]?.children.push(child);
  for (const token of tokens) {
    if (token.nesting === 1) {
      stack.push({ token, children: [] });
    } else if (token.nesting === 0) {
      add(leaf(token));
    } else {
      const closed = stack.pop();
      if (!closed?.token) continue;
      if (closed.token.hidden) add(closed.children);
      else add(h(TAGS[closed.token.tag] ?? closed.token.tag, attributes(closed.token), closed.children));
    }
  }
  return stack[0]?.children ?? [];
}

export function Markdown({ text }: { text: string }) {
  return <div class="markdown">{elements(parser.parse(text, {}))}</div>;
}
