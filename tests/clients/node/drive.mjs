// Calls the official JavaScript client as it is told, a line of JSON at a time:
//   {"call": "Box.create", "arguments": [...], "keep": "box"}   then   {"call": "box.exec.command", ...}
// Each is answered by a line: {"value": ...}, or {"error": {"name", "message", "statusCode"}}.
//   node drive.mjs DIRECTORY-WITH-NODE-MODULES

import { createInterface } from "node:readline"
import { pathToFileURL } from "node:url"

// By its path: an ES module is looked up beside the file that imports it, and nowhere else.
const entry = `${process.argv[2]}/node_modules/@upstash/box/dist/index.js`
const known = { ...(await import(pathToFileURL(entry).href)) }

function told(value) {
  if (value instanceof known.Run) {
    const { type, status, result, exitCode, stdout, stderr } = value
    return { type, status, result, exitCode, stdout, stderr }
  }
  if (value instanceof known.Box || value instanceof known.EphemeralBox) {
    const { id, size, keepAlive, networkPolicy, expiresAt, cwd } = value
    return { id, size, keepAlive, networkPolicy, expiresAt, cwd }
  }
  return value ?? null
}

async function chunks(stream) {
  const all = []
  for await (const chunk of stream) all.push(chunk)
  return { chunks: all, run: told(stream) }
}

async function answer({ call, arguments: given = [], keep }) {
  const path = call.split(".")
  const last = path.pop()
  const owner = path.reduce((value, name) => value[name], known)
  const found = owner[last]
  const value = typeof found === "function" ? await found.apply(owner, given) : found
  if (keep) known[keep] = value
  return value instanceof known.StreamRun ? chunks(value) : told(value)
}

for await (const line of createInterface({ input: process.stdin })) {
  let reply
  try {
    reply = { value: await answer(JSON.parse(line)) }
  } catch (error) {
    reply = { error: { name: error.name, message: error.message, statusCode: error.statusCode ?? null } }
  }
  process.stdout.write(JSON.stringify(reply) + "\n")
}
