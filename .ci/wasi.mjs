// Runs a WebAssembly program with WASI: `node .ci/wasi.mjs PROGRAM ARGUMENTS...`. Cargo's runner.
import { readFile } from "node:fs/promises";
import process from "node:process";
import { WASI } from "node:wasi";

const [, , file, ...args] = process.argv;
const wasi = new WASI({ version: "preview1", args: [file, ...args], env: process.env });
const program = await WebAssembly.compile(await readFile(file));
// Not `process.exit`, which crashes now and then while V8 still compiles.
process.exitCode = wasi.start(await WebAssembly.instantiate(program, wasi.getImportObject()));
