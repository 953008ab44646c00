// The description of the API, as this server generates it.

import type { ComponentChild } from "preact";
import { useEffect, useState } from "preact/hooks";
import { description, Problem } from "./api";
import { Markdown } from "./markdown";

interface Schema {
  $ref?: string;
  type?: string | string[];
  format?: string;
  description?: string;
  enum?: unknown[];
  const?: unknown;
  items?: Schema;
  properties?: Record<string, Schema>;
  required?: string[];
  anyOf?: Schema[];
  oneOf?: Schema[];
  allOf?: Schema[];
  additionalProperties?: Schema | boolean;
  contentEncoding?: string;
  minimum?: number;
  maximum?: number;
  minLength?: number;
  maxLength?: number;
  minItems?: number;
  maxItems?: number;
  maxProperties?: number;
}

interface Body {
  description?: string;
  required?: boolean;
  content?: Record<string, { schema: Schema }>;
  headers?: Record<string, { description?: string }>;
  $ref?: string;
}

interface Operation {
  summary: string;
  description?: string;
  operationId: string;
  parameters?: { name: string; in: string; required?: boolean; description?: string; schema: Schema }[];
  requestBody?: Body;
  responses: Record<string, Body>;
}

interface Document {
  info: { title: string; version: string; description: string };
  paths: Record<string, Record<string, Operation>>;
  components: { schemas: Record<string, Schema>; responses?: Record<string, Body> };
}

/** How deep fields are shown within fields: a turn has parts, which have pictures. */
const DEEPEST = 6;

class Reader {
  constructor(private readonly document: Document) {}

  /** What a reference means. */
  schema(schema: Schema): Schema {
    const name = schema.$ref?.split("/").pop();
    const found = name ? this.document.components.schemas[name] : undefined;
    return found ? { ...found, description: schema.description ?? found.description ?? "" } : schema;
  }

  body(body: Body): Body {
    const name = body.$ref?.split("/").pop();
    return (name && this.document.components.responses?.[name]) || body;
  }

  /** Those that it can be, null aside. */
  variants(schema: Schema): Schema[] {
    const all = schema.anyOf ?? schema.oneOf ?? schema.allOf;
    return all?.map((variant) => this.schema(variant)).filter(({ type }) => type !== "null") ?? [];
  }

  /** Its type in words. */
  type(given: Schema, depth = 0): string {
    const schema = this.schema(given);
    if (schema.const !== undefined) return JSON.stringify(schema.const);
    if (schema.enum)
      return schema.enum
        .filter((value) => value !== null)
        .map((value) => JSON.stringify(value))
        .join(" | ");
    const variants = this.variants(schema);
    if (variants.length > 0) {
      return [...new Set(variants.map((variant) => this.type(variant, depth)))].join(" or ");
    }
    const types = [schema.type ?? "anything"].flat().filter((type) => type !== "null");
    const plain = types.join(" or ");
    if (plain === "array" && schema.items && depth < 3)
      return `array of ${this.type(schema.items, depth + 1)}`;
    if (plain === "string" && schema.format === "binary") return "file";
    return plain;
  }

  /** The objects that fields of a schema are in: its own, an item's, a variant's. */
  objects(given: Schema): Schema[] {
    const schema = this.schema(given);
    const more = [...(schema.items ? [schema.items] : []), ...this.variants(schema)];
    const found = more.flatMap((inner) => this.objects(inner));
    return schema.properties ? [schema, ...found] : found;
  }
}

function limits(schema: Schema): string {
  const { minimum, maximum, minLength, maxLength, minItems, maxItems, maxProperties } = schema;
  const range = (least: number | undefined, most: number | undefined, unit: string) => {
    if (least === undefined && most === undefined) return [];
    if (least === undefined) return [`at most ${most}${unit}`];
    return [most === undefined ? `at least ${least}${unit}` : `${least} to ${most}${unit}`];
  };
  return [
    ...range(minimum, maximum, ""),
    ...range(minLength, maxLength, " characters"),
    ...range(minItems, maxItems, " items"),
    ...range(undefined, maxProperties, " entries"),
  ].join(", ");
}

function Properties({ reader, schema, depth }: { reader: Reader; schema: Schema; depth: number }) {
  return (
    <ul class="properties">
      {Object.entries(schema.properties ?? {}).map(([name, given]) => {
        const field = reader.schema(given);
        const within = depth < DEEPEST ? reader.objects(given) : [];
        const limit = limits(field);
        return (
          <li key={name}>
            <code>{name}</code>
            <span class="property-type">
              {reader.type(given)}
              {limit && `, ${limit}`}
            </span>
            {schema.required?.includes(name) && <span class="required">required</span>}
            {field.description && <Markdown text={field.description} />}
            {within.length > 0 && (
              <details>
                <summary>Fields of {name}</summary>
                {within.map((inner, index) => (
                  <Properties key={index} reader={reader} schema={inner} depth={depth + 1} />
                ))}
              </details>
            )}
          </li>
        );
      })}
    </ul>
  );
}

function Content({ reader, body }: { reader: Reader; body: Body }) {
  return (
    <>
      {Object.entries(body.content ?? {}).map(([kind, { schema }]) => {
        const objects = reader.objects(schema);
        return (
          <div key={kind}>
            <p class="note">
              <code>{kind}</code> {objects.length === 0 && reader.type(schema)}
            </p>
            {objects.map((object, index) => (
              <Properties key={index} reader={reader} schema={object} depth={0} />
            ))}
          </div>
        );
      })}
    </>
  );
}

interface OperationProps {
  reader: Reader;
  method: string;
  path: string;
  operation: Operation;
}

function Endpoint({ reader, method, path, operation }: OperationProps) {
  const { summary, description, operationId, parameters = [], requestBody, responses } = operation;
  return (
    <section class="operation" id={operationId} aria-labelledby={`${operationId}-title`}>
      <h2 id={`${operationId}-title`}>
        <span class="method">{method.toUpperCase()}</span> {path}
      </h2>
      <p>{summary}</p>
      {description && <Markdown text={description} />}
      {parameters.length > 0 && (
        <>
          <h3>Parameters</h3>
          <ul class="properties">
            {parameters.map((parameter) => (
              <li key={parameter.name}>
                <code>{parameter.name}</code>
                <span class="property-type">in the {parameter.in}</span>
                {parameter.description && <Markdown text={parameter.description} />}
              </li>
            ))}
          </ul>
        </>
      )}
      {requestBody && (
        <>
          <h3>Request</h3>
          <Content reader={reader} body={requestBody} />
        </>
      )}
      <h3>Answers</h3>
      <ul class="properties">
        {Object.entries(responses).map(([status, given]) => {
          const body = reader.body(given);
          return (
            <li key={status}>
              <code>{status}</code> {body.description}
              {body.content && (
                <details>
                  <summary>Fields of {status}</summary>
                  <Content reader={reader} body={body} />
                </details>
              )}
            </li>
          );
        })}
      </ul>
    </section>
  );
}

export function Docs() {
  const [document, setDocument] = useState<Document | null>(null);
  const [trouble, setTrouble] = useState("");
  useEffect(() => {
    description()
      .then((found) => setDocument(found as Document))
      .catch((error) => {
        const wantsKey = error instanceof Problem && (error.status === 401 || error.status === 403);
        setTrouble(
          wantsKey
            ? "This server wants an API key: enter one in the settings of the playground, in this tab."
            : "The description cannot be loaded. Is percept still running?",
        );
      });
  }, []);
  const operations: { method: string; path: string; operation: Operation }[] = [];
  for (const [path, methods] of Object.entries(document?.paths ?? {})) {
    for (const [method, operation] of Object.entries(methods)) operations.push({ method, path, operation });
  }
  const reader = document && new Reader(document);
  let content: ComponentChild = null;
  if (document && reader) {
    content = (
      <>
        <nav aria-label="Endpoints">
          {operations.map(({ method, path, operation }) => (
            <a key={operation.operationId} href={`#${operation.operationId}`}>
              <span class="method">{method.toUpperCase()}</span> {path}
            </a>
          ))}
        </nav>
        <div>
          <Markdown text={document.info.description} />
          {operations.map(({ method, path, operation }) => (
            <Endpoint key={operation.operationId} {...{ reader, method, path, operation }} />
          ))}
        </div>
      </>
    );
  }
  return (
    <>
      <header class="top">
        <h1>
          <img src="ui/icon.svg" alt="" width="24" height="24" /> percept API {document?.info.version}
        </h1>
        <span />
        <div class="top-right">
          <a class="top-link" href="openapi.json">
            openapi.json
          </a>
          <a class="top-link" href="./">
            Playground
          </a>
        </div>
      </header>
      <main class="docs">{trouble ? <p class="failure">{trouble}</p> : content}</main>
    </>
  );
}
