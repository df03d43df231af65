#!/usr/bin/env bash
# Check and time ditwright on this machine's GPU beside a plain DiT, and diffusers' where it is installed.
#
#     bench/gpu.sh [--output DIR]       all of it, in under 9 minutes; writes DIR/gpu.json and DIR/gpu.md
#     bench/gpu.sh --cpu-smoke          the same path with tiny networks on the CPU, in seconds; its numbers mean nothing
#
# Needs torch, numpy, einops and safetensors, and no network. PYTHON names the interpreter; otherwise it is that of
# .venv, where there is one.
set -euo pipefail
here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
[[ -n "${PYTHON:-}" ]] || { [[ -x "$here/../.venv/bin/python" ]] && PYTHON="$here/../.venv/bin/python"; } || PYTHON=python3
PYTHONPATH="$here/../src${PYTHONPATH:+:$PYTHONPATH}" exec "$PYTHON" "$here/speed.py" "$@"
