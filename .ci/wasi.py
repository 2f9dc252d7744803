"""Runs a WebAssembly program with WASI: `python wasi.py PROGRAM ARGUMENTS...`. Cargo's runner."""

import os
import sys

from wasmtime import Engine, ExitTrap, Linker, Module, Store, WasiConfig

file, *args = sys.argv[1:]
engine = Engine()
linker = Linker(engine)
linker.define_wasi()
wasi = WasiConfig()
wasi.argv = [file, *args]
wasi.env = list(os.environ.items())
wasi.inherit_stdin()
wasi.inherit_stdout()
wasi.inherit_stderr()
store = Store(engine)
store.set_wasi(wasi)
instance = linker.instantiate(store, Module.from_file(engine, file))
try:
    instance.exports(store)["_start"](store)
except ExitTrap as trap:
    sys.exit(trap.code)
